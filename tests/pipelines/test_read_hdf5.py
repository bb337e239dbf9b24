"""HDF5 files of vectors: what is in them, and nothing that lies elsewhere."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from sources import prepared

RNG = np.random.default_rng(0)


def test_hdf5_files_that_do_not_fit_are_named(tmp_path):
    file = tmp_path / "x.h5"
    with h5py.File(file, "w") as archive:
        archive["train"], archive["test"] = RNG.normal(size=(30, 3)), RNG.normal(size=(5, 4))
    with pytest.raises(ValueError, match=r"x.h5:test: 4 columns, but 3 in .*x.h5:train; all splits have the same"):
        prepared(tmp_path, file)
    with h5py.File(file, "w") as archive:
        archive["cube"] = RNG.normal(size=(30, 3, 2))
    with pytest.raises(ValueError, match=r"x.h5: holds cube \(30, 3, 2\); a table is numbers of shape"):
        prepared(tmp_path, file)


def test_hdf5_is_judged_before_it_is_read(tmp_path):
    """Small files that unpack to much, and types that NumPy does not have."""
    file = tmp_path / "x.h5"
    with h5py.File(file, "w") as archive:
        for name in ("a", "b"):
            archive.create_dataset(name, data=np.zeros((1000, 30), "u1"), compression="gzip")
    with pytest.raises(
        ValueError, match=r"x.h5: a, b are no split that is known; say which each is, such as --split train=a,test=b"
    ):
        prepared(tmp_path, file)
    with h5py.File(file, "w") as archive:
        for name in ("train", "test"):
            archive.create_dataset(name, shape=(10**6, 100), chunks=(1000, 100), dtype="u1", compression="gzip")
    with pytest.raises(ValueError, match=r"x.h5:train: \(1000000, 100\) are more numbers than the file can hold"):
        prepared(tmp_path, file)
    with h5py.File(file, "w") as archive:
        h5py.h5d.create(archive.id, b"train", h5py.h5t.UNIX_D32LE, h5py.h5s.create_simple((3, 2)))
    with pytest.raises(ValueError, match=r"x.h5: not a readable HDF5 file"):
        prepared(tmp_path, file)
    with h5py.File(file, "w") as archive:
        archive["train"] = np.zeros((0, 3))
    with pytest.raises(ValueError, match=r"x.h5:train: shape \(0, 3\) has no numbers"):
        prepared(tmp_path, file)


def test_an_hdf5_file_does_not_read_other_files(tmp_path):
    (tmp_path / "secret").write_bytes(bytes(range(256)) * 4)
    with h5py.File(tmp_path / "other.h5", "w") as archive:
        archive["train"] = RNG.normal(size=(30, 3))
    file = tmp_path / "x.h5"
    with h5py.File(file, "w") as archive:
        archive["linked"] = h5py.ExternalLink("other.h5", "train")
        archive.create_dataset("train", shape=(128, 8), dtype="u1", external=[(str(tmp_path / "secret"), 0, 1024)])
    with pytest.raises(ValueError, match=r"x.h5: holds train; a table is numbers of shape"):
        prepared(tmp_path, file)
