"""The tables of density estimation: the published cleaning, split and normalisation, on files of their formats."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from sources import assert_normal, prepared

RNG = np.random.default_rng(0)


def test_power(tmp_path):
    """Columns 1 and 3 go; rows in the order of NumPy's legacy generator at 42, which then draws the noise."""
    raw = np.round(RNG.normal(size=(1000, 8)) * [1, 1, 5, 1, 9, 9, 9, 1] + 50, 2)
    np.save(tmp_path / "data.npy", raw)
    parts = prepared(tmp_path, tmp_path / "data.npy", table="power")
    assert {name: x.shape for name, x in parts.items()} == {"train": (810, 6), "valid": (90, 6), "test": (100, 6)}
    legacy = np.random.RandomState(42)
    expected = raw.copy()
    legacy.shuffle(expected)
    expected = np.delete(np.delete(expected, 3, axis=1), 1, axis=1)
    expected[:, 1] += 0.01 * legacy.rand(1000)
    expected[:, 0] += 0.001 * legacy.rand(1000)
    expected[:, 2:5] += legacy.rand(1000, 3)
    rest = expected[:900]
    expected = (expected - rest.mean(axis=0)) / rest.std(axis=0)
    np.testing.assert_allclose(np.concatenate([parts["train"], parts["valid"], parts["test"]]), expected, atol=1e-5)


def test_gas_drops_what_is_correlated(tmp_path):
    base = RNG.normal(size=(500, 15))
    sensors = np.column_stack([base[:, 0], base[:, 1], base[:, 0] + 1e-3 * base[:, 2], base[:, 2:]])
    table = np.column_stack([np.arange(500), RNG.random((500, 2)), 7 + 3 * sensors])
    header = ",".join(["Time", "Meth", "Eth", *(f"s{i}" for i in range(1, 17))])
    np.savetxt(tmp_path / "gas.csv", table, delimiter=",", header=header, comments="")
    parts = prepared(tmp_path, tmp_path / "gas.csv", table="gas")
    assert parts["train"].shape == (405, 15)
    whole = np.concatenate([parts["train"], parts["valid"], parts["test"]])
    kept = sensors[:, 1:]  # of s1 and s3 the first goes
    np.testing.assert_allclose(whole, (kept - kept.mean(axis=0)) / kept.std(axis=0, ddof=1), atol=1e-4)
    np.save(tmp_path / "gas.npy", table)
    with pytest.raises(
        ValueError, match=r"gas.npy: 19 columns where the published table has 16 \(16 sensors, without Time"
    ):
        prepared(tmp_path, tmp_path / "gas.npy", table="gas")


def test_hepmass(tmp_path):
    """Rows of class 1, without features whose least value repeats (others may), and without the test file's extra column."""
    place = tmp_path / "hepmass"
    place.mkdir()
    features = {}
    for split, rows, extra in (("train", 300, 0), ("test", 60, 1)):
        continuous = RNG.normal(size=(rows, 3)) * 4 + 1
        continuous[:, 1] = np.minimum(continuous[:, 1], 2.0)
        twice = np.flatnonzero(np.arange(rows) % 3)[:6]  # of class 1
        often = RNG.normal(size=(rows, 2))
        often[twice[:5], 0] = often[twice, 1] = -9.0  # the least value 5 times, and 6 times
        continuous = np.column_stack([continuous[:, :2], often])
        x = np.column_stack([continuous, RNG.integers(0, 3, rows), np.full((rows, extra), 1000.0)])
        label = (np.arange(rows) % 3 > 0).astype(float)
        names = ",".join(["# label", *(f"f{i}" for i in range(x.shape[1]))])
        table = np.column_stack([label, x])
        np.savetxt(place / f"1000_{split}.csv", table, delimiter=",", header=names, comments="")
        features[split] = x[label == 1]
    parts = prepared(tmp_path, place, table="hepmass")
    train = features["train"][:, :3]  # the one with 5 stays, the one with 6 goes
    mean, std = train.mean(axis=0), train.std(axis=0, ddof=1)
    np.testing.assert_allclose(np.concatenate([parts["train"], parts["valid"]]), (train - mean) / std, atol=1e-5)
    np.testing.assert_allclose(parts["test"], (features["test"][:, :3] - mean) / std, atol=1e-5)
    assert len(parts["valid"]) == len(train) // 10


def test_miniboone(tmp_path):
    raw = RNG.normal(size=(200, 43)) * 3 + 2
    np.save(tmp_path / "data.npy", raw)
    parts = prepared(tmp_path, tmp_path / "data.npy", table="miniboone")
    assert {name: len(x) for name, x in parts.items()} == {"train": 162, "valid": 18, "test": 20}
    assert_normal(np.concatenate([parts["train"], parts["valid"]]))


def test_bsds300_and_plain_hdf5(tmp_path):
    sizes = {"train": 40, "validation": 10, "test": 12}
    arrays = {name: RNG.normal(size=(rows, 63)).astype(np.float32) for name, rows in sizes.items()}
    file = tmp_path / "BSDS300.hdf5"
    with h5py.File(file, "w") as archive:
        for name, x in arrays.items():
            archive[name] = x
    for options in ({"table": "bsds300"}, {}):
        parts = prepared(tmp_path, file, **options)
        for name, x in arrays.items():
            np.testing.assert_array_equal(parts[name.removesuffix("ation")], x)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[:, :5], r"data.npy: 5 columns where the published table has 8"),
        (lambda x: np.where(np.arange(8) == 4, 1.5, x), r"data.npy column 2: the constant"),
        (
            lambda x: np.where((np.arange(len(x)) == 7)[:, None] & (np.arange(8) == 3), np.nan, x),
            r"row 7 column 3: nan is",
        ),
        (lambda x: x[:9], "9 rows; a table that is split into tenths has at least 20"),
        (lambda x: x.astype(str), r"dtype <U32 is not read .*; save plain numbers"),
        (lambda x: x[0], "a table is numbers of shape"),
        (lambda x: np.array([{"a": 1}] * 30), r"dtype object is not read .nothing is unpickled."),
        (
            lambda x: np.where(np.arange(len(x))[:, None] == 60, 1e60, x),
            r"data.npy row 60 column 0: 1e\+60 is missing or",
        ),
    ],
)
def test_bad_tables_are_named(tmp_path, change, message):
    x = RNG.normal(size=(100, 8))
    table = change(x)
    if "constant" in message:
        table[:, 4:7] = 1.5
        np.save(tmp_path / "data.npy", table[:, [0, 1, 4, 4, 4, 5]])
        with pytest.raises(ValueError, match=message):
            prepared(tmp_path, tmp_path / "data.npy", table="miniboone")
        return
    np.save(tmp_path / "data.npy", table)
    with pytest.raises(ValueError, match=message):
        prepared(tmp_path, tmp_path / "data.npy", table="power")


def test_text_and_missing_values_of_a_csv_are_named(tmp_path):
    file = tmp_path / "gas.csv"
    file.write_text("Time,s1,s2\n0,1.5,2\n1,warm,3\n")
    with pytest.raises(ValueError, match=r"gas.csv line 3 column s1: 'warm' is not a number"):
        prepared(tmp_path, file, table="gas")
    file.write_text("Time,s1,s2\n0,1.5,2\n1,,3\n")
    with pytest.raises(ValueError, match=r"gas.csv line 3 column s1: a missing value"):
        prepared(tmp_path, file, table="gas")


def test_other_refusals(tmp_path):
    with pytest.raises(ValueError, match=r"the bundled tables are sklearn:wine"):
        prepared(tmp_path, "sklearn:boston")
    with pytest.raises(ValueError, match=r"table='gass': the published tables are power"):
        prepared(tmp_path, tmp_path, table="gass")
    with pytest.raises(ValueError, match=r"1000_train.csv: table=hepmass is a directory"):
        prepared(tmp_path, tmp_path, table="hepmass")
    (tmp_path / "a.h5").write_bytes(b"no such format")
    with pytest.raises(ValueError, match=r"a.h5: not a readable HDF5 file"):
        prepared(tmp_path, tmp_path / "a.h5")
    (tmp_path / "x.pickle").write_bytes(b"\x80")
    with pytest.raises(ValueError, match=r"x.pickle: .pickle is not read; save the table as .npy"):
        prepared(tmp_path, tmp_path / "x.pickle", table="miniboone")


def test_columns_are_named_as_in_the_file(tmp_path):
    """Before columns are dropped, and before noise hides that one is constant."""
    raw = RNG.normal(size=(100, 8))
    raw[:, 5] = 2.0
    np.savetxt(tmp_path / "power.csv", raw, delimiter=",", header="a,b,c,d,e,f,g,h", comments="")
    with pytest.raises(ValueError, match=r"power.csv column f: the constant 2 in every row"):
        prepared(tmp_path, tmp_path / "power.csv", table="power")
    np.save(tmp_path / "x.npy", raw)
    with pytest.raises(ValueError, match=r"x.npy column 5: the constant 2 in every row"):
        prepared(tmp_path, tmp_path / "x.npy")
    raw[7, 5] = np.nan
    np.savez(tmp_path / "x.npz", x=raw)
    with pytest.raises(ValueError, match=r"x.npz:x row 7 column 5: the value nan is not a finite float32"):
        prepared(tmp_path, tmp_path / "x.npz")


def test_a_file_that_claims_more_than_it_holds_is_refused(tmp_path):
    file = tmp_path / "x.npy"
    with file.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, {"descr": "<f8", "fortran_order": False, "shape": (10**12, 8)})
    for options in ({}, {"table": "miniboone"}):
        with pytest.raises(ValueError, match=r"x.npy: a header of shape \(1000000000000, 8\) float64, but 128 bytes"):
            prepared(tmp_path, file, **options)
    file.write_bytes(b"")
    with pytest.raises(ValueError, match=r"x.npy: not a NumPy array"):
        prepared(tmp_path, file, table="miniboone")
    with h5py.File(tmp_path / "x.h5", "w") as archive:
        archive.create_dataset("train", shape=(10**9, 10**4), chunks=(10, 10), dtype="f4")
    with pytest.raises(ValueError, match=r"x.h5:train: \(1000000000, 10000\) are more numbers than the file can hold"):
        prepared(tmp_path, tmp_path / "x.h5")


def test_sensors_that_are_all_the_same_leave_one(tmp_path):
    np.save(tmp_path / "gas.npy", RNG.normal(size=(100, 1)) + 1e-3 * RNG.normal(size=(100, 16)))
    assert prepared(tmp_path, tmp_path / "gas.npy", table="gas")["train"].shape[1] == 1
