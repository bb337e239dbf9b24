"""NumPy files come back value by value, or are refused with file, row and column."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sources import WHOLE, pixels, refused, stored

from pipelines.data.ingest import prepare
from pipelines.data.order import permutation
from pipelines.data.source import Options


@pytest.mark.parametrize(
    ("x", "layout"),
    [
        (pixels(20, 6, 5), lambda x: x[:, None]),
        (pixels(20, 6, 5, 3), lambda x: np.moveaxis(x, -1, 1)),
        (pixels(20, 3, 6, 5), lambda x: x),
        (pixels(20, 4).astype(np.float64) / 7, lambda x: x.astype(np.float32)),
        (pixels(20, 4).astype(">f4"), lambda x: x.astype(np.float32)),
    ],
    ids=["nhw", "nhwc", "nchw", "float64", "big-endian"],
)
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_numpy_round_trip(tmp_path: Path, x: np.ndarray, layout: Callable, suffix: str) -> None:
    file, label = tmp_path / f"rows.{suffix}", np.arange(20) % 3
    if suffix == "npy":
        np.save(file, x)
    else:
        np.savez_compressed(file, images=x, y=label[:, None])
    card = prepare(file, tmp_path / "out", WHOLE)
    found = stored(tmp_path / "out")
    np.testing.assert_array_equal(found[0], layout(x))
    np.testing.assert_array_equal(found[1], label if suffix == "npz" else -1)
    assert card.num_classes == (3 if suffix == "npz" else 0)


def test_numpy_splits(tmp_path: Path) -> None:
    x = pixels(9, 6, 5)
    np.savez(tmp_path / "a.npz", x_train=x[:6], x_test=x[6:], y_train=np.arange(6), y_test=np.arange(3))
    card = prepare(tmp_path / "a.npz", tmp_path / "out", Options(splits=("test",)))
    assert list(card.splits) == ["test"]
    np.testing.assert_array_equal(stored(tmp_path / "out", "test")[0][:, 0], x[6:])


def test_levels_are_checked(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 1000, (20, 6, 5))
    x[11, 2, 3] = 1000
    file = tmp_path / "rows.npy"
    np.save(file, x)
    refused(file, tmp_path / "out", str(file), "int64", "--levels")
    limited = Options(test_fraction=0, levels=1000)
    refused(file, tmp_path / "out", f"{file} row 11", "value 1000", "1000 levels", options=limited)
    x[11, 2, 3] = -1
    np.save(file, x)
    refused(file, tmp_path / "out", f"{file} row 11", "value -1", options=limited)
    x[11, 2, 3] = 0
    np.save(file, x)
    prepare(file, tmp_path / "out", limited)
    np.testing.assert_array_equal(stored(tmp_path / "out")[0][:, 0], x)


def test_bad_arrays_are_refused(tmp_path: Path) -> None:
    file, out = tmp_path / "rows.npy", tmp_path / "out"
    np.save(file, np.array([{}], object), allow_pickle=True)
    refused(file, out, str(file), "nothing is unpickled")
    np.save(file, np.array([[1.0, 2.0], [np.nan, 1.0]]))
    refused(file, out, f"{file} row 1", "nan", "finite")
    np.save(file, np.array([[1.0, 2.0], [1e300, 1.0]]))
    refused(file, out, f"{file} row 1", "inf")
    np.save(file, np.asfortranarray(pixels(20, 4) / 7))
    refused(file, out, "Fortran")
    np.save(file, pixels(20, 4))
    refused(file, out, "(20, 4)", "(n, h, w, c)")
    np.save(file, pixels(20, 6, 5))
    file.write_bytes(file.read_bytes()[:-1])
    refused(file, out, str(file), "truncated at row 19")
    file.write_bytes(b"nothing")
    refused(file, out, str(file), "not a NumPy array")
    np.savez(tmp_path / "a.npz", pictures=pixels(20, 6, 5))
    refused(tmp_path / "a.npz", out, "pictures", "call the rows x")
    np.savez(tmp_path / "a.npz", x=pixels(20, 6, 5), y=np.zeros(19, int))
    refused(tmp_path / "a.npz", out, "a.npz:y", "20 rows")
    (tmp_path / "a.npz").write_bytes(b"PK nothing")
    refused(tmp_path / "a.npz", out, "a.npz", "not a readable .npz")


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (4, 2",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-4, 2), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (True, 8), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (" + "-" * 5000 + "4, 2), }",
        "{'descr': '<f4',\n 'fortran_order': False, 'shape': (4, 2), }\n  indented\n outdented",
        "[" * 9000,
    ],
)
def test_damaged_headers_are_refused(tmp_path: Path, header: str) -> None:
    file, text = tmp_path / "rows.npy", header.encode() + b"\n"
    file.write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(32))
    refused(file, tmp_path / "out", str(file), "save it")


def test_an_archive_that_claims_more_than_it_holds_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.npz"
    with zipfile.ZipFile(file, "w") as archive, archive.open("x.npy", "w") as stream:
        np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": (10**12, 2)})
    text = bytearray(file.read_bytes())
    at = text.index(b"PK\x01\x02") + 24  # the uncompressed size in the central directory
    text[at : at + 4] = (0xFFFFFFF0).to_bytes(4, "little")
    file.write_bytes(text)
    refused(file, tmp_path / "out", "a.npz:x", "more than the archive can hold")


def test_a_column_that_is_constant_in_training_is_refused(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((100, 3)).astype(np.float32)
    x[:, 1] = 3
    x[permutation(0, 0, 0, 100)[0], 1] = 4  # a row that is held out
    np.save(tmp_path / "rows.npy", x)
    refused(tmp_path / "rows.npy", tmp_path / "out", "rows.npy column 1", "constant 3", options=Options())
