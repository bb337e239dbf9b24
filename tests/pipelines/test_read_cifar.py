"""CIFAR-10 batches come back byte by byte; hostile pickles are refused."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from sources import WHOLE, pixels, refused, stored

from pipelines.data.ingest import prepare


def test_cifar_binary_round_trip(tmp_path: Path) -> None:
    x, label = pixels(24, 3, 32, 32), np.arange(24) % 10
    records = np.concatenate([label[:, None].astype(np.uint8), x.reshape(24, -1)], axis=1)
    for index in range(5):
        (tmp_path / f"data_batch_{index + 1}.bin").write_bytes(records[4 * index : 4 * index + 4].tobytes())
    (tmp_path / "test_batch.bin").write_bytes(records[20:].tobytes())
    assert prepare(tmp_path, tmp_path / "good").num_classes == 10
    np.testing.assert_array_equal(stored(tmp_path / "good")[0], x[:20])
    np.testing.assert_array_equal(stored(tmp_path / "good", "test")[1], label[20:])
    (tmp_path / "data_batch_3.bin").write_bytes(records[:1].tobytes()[:-1])
    refused(tmp_path, tmp_path / "out", "data_batch_3.bin", "3072 bytes")
    bad = records[:4].copy()
    bad[2, 0] = 10
    (tmp_path / "data_batch_3.bin").write_bytes(bad.tobytes())
    refused(tmp_path, tmp_path / "out", "data_batch_3.bin row 2", "label 10")
    (tmp_path / "data_batch_3.bin").unlink()
    refused(tmp_path, tmp_path / "out", "data_batch_3.bin", "missing")


class Python2Array:
    """Pickles as Python 2 and NumPy 1 wrote the arrays of the published batches."""

    def __init__(self, x: np.ndarray) -> None:
        self.x = x

    def __reduce__(self) -> tuple:
        state = (1, self.x.shape, Python2Type(), False, self.x.tobytes())
        return Global("numpy.core.multiarray", "_reconstruct"), (Global("numpy", "ndarray"), (0,), b"b"), state


class Python2Type:
    def __reduce__(self) -> tuple:
        return Global("numpy", "dtype"), ("u1", 0, 1), (3, "|", None, None, None, -1, -1, 0)


class Global:
    """A name that is written into the pickle as it is."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name

    def __call__(self) -> None:
        raise AssertionError


class Python2Pickler(pickle._Pickler):  # the pure Python one: its dispatch can be extended
    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_name(self, obj: Global) -> None:
        self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())

    def save_string(self, obj: str | bytes) -> None:
        encoded = obj.encode("ascii") if isinstance(obj, str) else obj
        self.write(pickle.BINSTRING + len(encoded).to_bytes(4, "little") + encoded)

    dispatch |= {Global: save_name, str: save_string, bytes: save_string}


def python2(content: object) -> bytes:
    stream = io.BytesIO()
    Python2Pickler(stream, 2).dump(content)
    return stream.getvalue()


def modern(x: np.ndarray, label: list[int], protocol: int) -> bytes:
    return pickle.dumps({b"data": x, b"labels": label, b"batch_label": b"one of 5"}, protocol)


@pytest.mark.parametrize("writer", ["python2", 2, 4])
def test_cifar_python_round_trip(tmp_path: Path, writer: str | int) -> None:
    x, label = pixels(20, 3072), [int(value) for value in np.arange(20) % 10]
    for index in range(5):
        part = slice(4 * index, 4 * index + 4)
        content = {b"data": Python2Array(x[part]), b"labels": label[part]}
        batch = python2(content) if isinstance(writer, str) else modern(x[part], label[part], writer)
        (tmp_path / f"data_batch_{index + 1}").write_bytes(batch)
    card = prepare(tmp_path, tmp_path / "out", WHOLE)
    assert (card.shape, list(card.splits)) == ((3, 32, 32), ["train"])
    np.testing.assert_array_equal(stored(tmp_path / "out")[0].reshape(20, -1), x)
    np.testing.assert_array_equal(stored(tmp_path / "out")[1], label)


class Malicious:
    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.witness}",)


def test_a_malicious_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    for index in range(5):
        (tmp_path / f"data_batch_{index + 1}").write_bytes(modern(pixels(4, 3072), [0, 1, 2, 3], 2))
    witness = tmp_path / "witness"
    file = tmp_path / "data_batch_2"
    file.write_bytes(pickle.dumps({b"data": Malicious(witness), b"labels": []}))
    refused(tmp_path, tmp_path / "out", str(file), "system")
    assert not witness.exists()
    pickle.loads(file.read_bytes())  # noqa: S301  the attack is real: the ordinary unpickler falls for it
    assert witness.exists()


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (pickle.dumps({b"data": eval, b"labels": []}), "eval"),
        (pickle.dumps({b"data": np.array([object], object), b"labels": [1]}), "object"),
        (pickle.dumps({b"data": pixels(4, 3072).astype(float), b"labels": [0] * 4}), "f8"),
        (pickle.dumps({b"data": pixels(4, 3072), b"labels": [0] * 3}), "labels"),
        (pickle.dumps([1]), "refused"),
        (b"\x80\x02not a pickle", "refused"),
        (b"", "refused"),
    ],
)
def test_strange_batches_are_refused(tmp_path: Path, content: bytes, part: str) -> None:
    for index in range(5):
        (tmp_path / f"data_batch_{index + 1}").write_bytes(content)
    refused(tmp_path, tmp_path / "out", "data_batch_1", part)
