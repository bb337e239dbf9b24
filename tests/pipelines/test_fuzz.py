"""Every parser, on files that chance has damaged: it reads them or refuses them in one line, in bounded time and memory.

Each parser has a small file that it reads, a way to damage it and a seed, so that a failure comes back by its number. INDM_FUZZ
sets the number of damaged files for each parser.
"""

from __future__ import annotations

import copy
import gzip
import hashlib
import json
import os
import pickle
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from sources import WHOLE, pixels, png

from pipelines.config.provenance import Provenance, config_document
from pipelines.config.store import read_run, write_run
from pipelines.data.card import load_card
from pipelines.data.ingest import prepare
from pipelines.data.shards import read_all
from pipelines.data.source import Options
from pipelines.data.spec import DataSpec
from pipelines.evaluation.results.document import Evaluation
from pipelines.evaluation.sampling.comparison import Comparison
from pipelines.recipes import RECIPES
from pipelines.runs.kept import Kept
from pipelines.runs.record import Record, RecordReader
from pipelines.storage import checkpoint
from pipelines.storage.manifest import OWN

NUM = int(os.environ.get("INDM_FUZZ", "20"))
FOUND = {"parquet": (558,)}
"""Damaged files that a parser has failed on; they are always tried."""
SECONDS = 20.0
MEBIBYTES = 512


@dataclass(frozen=True, kw_only=True)
class Parser:
    """Writes a file that is whole into a folder and names it; reads that folder, whatever has become of the file."""

    write: Callable[[Path], Path]
    read: Callable[[Path], Any]
    document: bool = False


def of_source(name: str, write: Callable[[Path], object], options: Options = WHOLE, source: str = "") -> Parser:
    """A file of a data set, which is prepared."""

    def wrote(folder: Path) -> Path:
        write(folder / name)
        return folder / name

    def read(folder: Path) -> None:
        prepare(folder / (source or name), folder / "out", options)

    return Parser(write=wrote, read=read)


def array(file: Path) -> None:
    np.save(file, np.random.default_rng(0).normal(size=(12, 3)))


def archive(file: Path) -> None:
    np.savez_compressed(file, x=pixels(12, 4, 4), y=np.array(["cat", "dog"] * 6))


def table(separator: str) -> Callable[[Path], object]:
    x = np.random.default_rng(0).normal(size=(12, 3)).round(4)
    return lambda file: file.write_text(
        "\n".join(["a,b,c".replace(",", separator), *(separator.join(map(str, r)) for r in x)])
    )


def hdf5(file: Path) -> None:
    with h5py.File(file, "w") as stream:
        stream.create_dataset("train", data=np.random.default_rng(0).normal(size=(12, 3)), compression="gzip")
        stream["test"] = np.random.default_rng(1).normal(size=(4, 3))


def idx(x: np.ndarray) -> bytes:
    return bytes([0, 0, 8, x.ndim]) + b"".join(length.to_bytes(4, "big") for length in x.shape) + x.tobytes()


def mnist(zipped: bool) -> Callable[[Path], object]:
    def write(file: Path) -> None:
        text, labels = idx(pixels(12, 4, 4)), idx(np.arange(12, dtype=np.uint8) % 3)
        file.write_bytes(gzip.compress(text) if zipped else text)
        (file.parent / "train-labels-idx1-ubyte").write_bytes(labels)

    return write


def mnist_labels(file: Path) -> None:
    file.write_bytes(idx(np.arange(12, dtype=np.uint8) % 3))
    (file.parent / "train-images-idx3-ubyte").write_bytes(idx(pixels(12, 4, 4)))


def cifar(protocol: int) -> Callable[[Path], object]:
    def write(file: Path) -> None:
        for index in range(1, 6):
            content = {b"data": pixels(2, 3072, seed=index), b"labels": [index, 0], b"batch_label": b"one of 5"}
            file.with_name(f"data_batch_{index}").write_bytes(pickle.dumps(content, protocol))

    return write


def cifar_binary(file: Path) -> None:
    for index in range(1, 6):
        file.with_name(f"data_batch_{index}.bin").write_bytes(bytes([index]) + pixels(3072, seed=index).tobytes())


def hub(file: Path) -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cells = [{"bytes": png(pixels(1, 4, 4, seed=row)), "path": None} for row in range(12)]
    pq.write_table(pa.table({"image": pa.array(cells, kind), "label": ["cat", "dog"] * 6}), file)


def picture(file: Path) -> None:
    file.parent.mkdir()
    for index in range(4):
        Image.fromarray(np.moveaxis(pixels(3, 8, 8, seed=index), 0, -1)).save(file.with_stem(f"{file.stem}{index}"))
    file.with_stem(f"{file.stem}0").rename(file)


def card(folder: Path) -> Path:
    np.savez(folder / "rows.npz", x=pixels(12, 4, 4), y=np.array(["cat", "dog"] * 6))
    prepare(folder / "rows.npz", folder / "out", WHOLE)
    return folder / "out" / "card.json"


def read_card(folder: Path) -> None:
    found = load_card(folder / "out")
    for split in found.splits:
        read_all(folder / "out", found, split)
    asdict(found)


def config(folder: Path) -> Path:
    spec = DataSpec(name="set", shape=(1, 8, 8), levels=17, low=-1.0, high=1.0, num_classes=10)
    write_run(folder / "config.json", RECIPES["digits_vp_nll"](), spec)
    return folder / "config.json"


def metrics(folder: Path) -> Path:
    records = [Record(step=step, phase="joint", terms={"nelbo": 3.0}, unit="bits/dim") for step in (10, 20)]
    (folder / "metrics.jsonl").write_text("".join(record.to_json() + "\n" for record in records))
    return folder / "metrics.jsonl"


def read_metrics(folder: Path) -> None:
    for record in RecordReader(folder / "metrics.jsonl").read():
        assert all(isinstance(number, int | float) for number in record.figures().values())


CHECKPOINT = "step-00000010"


def state(folder: Path) -> Path:
    run, spec = (
        RECIPES["digits_vp_nll"](),
        DataSpec(name="set", shape=(1, 8, 8), levels=17, low=-1.0, high=1.0, num_classes=10),
    )
    rows = {"train": {"rows": 12, "sha256": "0" * 64}}
    made_of = {"config": config_document(run, spec), "data": rows, "partner": {}}
    numbers = {"step": 10, "skipped": 0, "averaged": 10, "recipe": run.recipe, "nelbo": 3.0, **made_of}
    checkpoint.write(folder / "checkpoints" / CHECKPOINT, {"model.x": torch.zeros(3)}, numbers)
    return folder / "checkpoints" / CHECKPOINT / "state.json"


def earlier_state(folder: Path) -> Path:
    """As it was written before states had a checksum."""
    file = state(folder)
    held = json.loads(file.read_text())
    file.write_text(json.dumps({name: value for name, value in held.items() if name not in OWN}))
    return file


def checkpoint_tensors(folder: Path) -> Path:
    return state(folder).with_name("training.safetensors")


def read_checkpoint(folder: Path) -> None:
    """What goes on with a run asks all of this."""
    directory = folder / "checkpoints" / CHECKPOINT
    checkpoint.latest(folder)
    checkpoint.prune(folder, 3)
    held = checkpoint.read_state(directory)
    Provenance.read(held.content, str(held.file))
    checkpoint.read(directory)


def read_signed(folder: Path) -> None:
    """Of somebody who wrote the checksum of what he damaged."""
    file = folder / "checkpoints" / CHECKPOINT / "state.json"
    with suppress(ValueError, RecursionError):
        held = json.loads(file.read_bytes())
        if isinstance(held, dict):
            held.pop("sha256", None)
            digest = hashlib.sha256((json.dumps(held, indent=1) + "\n").encode()).hexdigest()
            file.write_text(json.dumps({**held, "sha256": digest}, indent=1) + "\n")
    read_checkpoint(folder)


def kept(folder: Path) -> Path:
    Kept(run_id="a", models={10: "m-1"}).write(folder)
    return folder / "mlflow.json"


ESTIMATE = {"mean": 2.5, "se": 0.1, "se_images": 0.2}
DISTANCES = {"frechet": {"mean": 1.0, "se": 0.1, "samples": 50}, "kernel": {"mean": 0.1, "se": 0.01, "samples": 50}}
EVALUATION = {
    "unit": "bits/dim",
    "data": "digits",
    "features": "digits-cnn",
    "images": 20,
    "settings": {"images": 20, "samples": 50},
    "weights": {"run": "0" * 64},
    "seconds": 1.5,
    "runs": {"run": {"parameters": 10, "evaluations": {"score": 1}, "nll": ESTIMATE, "nelbo": ESTIMATE, **DISTANCES}},
}
COMPARISON = {
    "features": "digits-cnn",
    "num_samples": 50,
    "data": "digits",
    "key": "0123",
    "weights": "0" * 64,
    "runs": {"run": [{"row": "em:10", "seconds": 1.0, "evaluations": 10, **DISTANCES}]},
}


def of_document(kind: Any, earlier: dict[str, Any], today: bool) -> Parser:
    """A measurement as it was written before there were versions, or as it is written today."""

    def write(folder: Path) -> Path:
        file = folder / "document.json"
        file.write_text(json.dumps(earlier))
        if today:
            kind.read(file).write(file)
        return file

    return Parser(write=write, read=lambda folder: kind.read(folder / "document.json"), document=True)


PARSERS = {
    "csv": of_source("x.csv", table(",")),
    "tsv": of_source("x.tsv", table("\t")),
    "npy": of_source("x.npy", array),
    "npz": of_source("x.npz", archive),
    "hdf5": of_source("x.h5", hdf5),
    "idx": of_source("train-images-idx3-ubyte", mnist(False), source="."),
    "idx-gzip": of_source("train-images-idx3-ubyte.gz", mnist(True), source="."),
    "idx-labels": of_source("train-labels-idx1-ubyte", mnist_labels, source="."),
    "cifar-pickle-2": of_source("data_batch_3", cifar(2), source="."),
    "cifar-pickle-4": of_source("data_batch_3", cifar(4), source="."),
    "cifar-binary": of_source("data_batch_3.bin", cifar_binary, source="."),
    "parquet": of_source("train.parquet", hub),
    "png": of_source("in/x.png", picture, Options(test_fraction=0, max_skip=0.3), "in"),
    "jpeg": of_source("in/x.jpg", picture, Options(test_fraction=0, max_skip=0.3), "in"),
    "card": Parser(write=card, read=read_card, document=True),
    "config": Parser(write=config, read=lambda folder: read_run(folder / "config.json"), document=True),
    "metrics": Parser(write=metrics, read=read_metrics, document=True),
    "state": Parser(write=state, read=read_checkpoint, document=True),
    "state-signed": Parser(write=state, read=read_signed, document=True),
    "state-earlier": Parser(write=earlier_state, read=read_checkpoint, document=True),
    "checkpoint": Parser(write=checkpoint_tensors, read=read_checkpoint),
    "mlflow": Parser(write=kept, read=Kept.read, document=True),
    "evaluation": of_document(Evaluation, EVALUATION, today=True),
    "evaluation-earlier": of_document(Evaluation, EVALUATION, today=False),
    "compare": of_document(Comparison, COMPARISON, today=True),
    "compare-earlier": of_document(Comparison, COMPARISON, today=False),
}

ODD: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    2**31,
    2**63,
    2**70,
    -(10**30),
    0.5,
    float("nan"),
    float("inf"),
    "",
    "\x1b[31m\n",
    "x",
)
ODD += ("x" * 10_000, [], {}, [[]], {"": {}}, [1, 2], {"type": "INDMConfig"}, "../../etc/passwd", "\x00")


def damaged(text: bytes, chance: random.Random) -> bytes:
    """Bytes of which a few are others, twice there or gone."""
    text = bytearray(text)
    for _ in range(chance.choice((1, 1, 2, 8))):
        at = chance.randrange(len(text) or 1)
        kind = chance.randrange(7)
        if kind == 0 and text:
            text[at] ^= 1 << chance.randrange(8)
        elif kind == 1 and text:
            text[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, 0x0A, 0x22))
        elif kind == 2:
            text[at : at + 4] = chance.choice((b"\xff" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\x10"))
        elif kind == 3:
            del text[at:]
        elif kind == 4:
            del text[at : at + chance.randrange(1, 64)]
        elif kind == 5:
            text[at:at] = text[at : at + chance.randrange(1, 64)]
        else:
            text[at:at] = chance.randbytes(chance.randrange(1, 16))
    return bytes(text)


def places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of everything within a JSON value."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [pair for key in keys for pair in ((value, key), *places(value[key]))]


def reshaped(text: bytes, chance: random.Random) -> bytes:
    """A JSON text of another shape: members replaced, renamed, gone, or nested without end."""
    first, _, rest = text.partition(b"\n{")  # of JSON lines, the first
    value = json.loads(first if rest else text)
    for _ in range(chance.choice((1, 1, 1, 3))):
        found = places(value)
        if not found:
            break
        holder, key = chance.choice(found)
        kind = chance.randrange(6)
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, dict):
            holder[chance.choice(("x", "type", "\x1b[2J", key + "2"))] = holder.pop(key)
        elif kind == 2:
            holder[key] = copy.deepcopy(chance.choice(found)[0])
        else:
            holder[key] = chance.choice(ODD)
    new = json.dumps(value)
    if chance.randrange(20) == 0:
        new = chance.choice(("[" * 100_000, '{"version":' * 5_000, json.dumps(chance.choice(ODD)), "9" * 10_000, ""))
    return new.encode() + (b"\n{" + rest if rest else b"")


@contextmanager
def bounded(told: str) -> Iterator[None]:
    """A block that ends in time, without gigabytes."""

    def stop(*_: object) -> None:
        raise AssertionError(f"{told}: not done after {SECONDS:.0f} seconds")

    before, begun = signal.signal(signal.SIGALRM, stop), time.process_time()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    start = peak()
    signal.setitimer(signal.ITIMER_REAL, 3 * SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert time.process_time() - begun < SECONDS, told
    assert peak() - start < MEBIBYTES, told


def peak() -> float:
    """The highest memory of this process, MiB."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


def outcome(parser: Parser, folder: Path, told: str) -> bool:
    """Whether the folder was read; anything but a refusal in one line fails."""
    try:
        with bounded(told):
            parser.read(folder)
    except ValueError as error:
        said = str(error)
        assert said, told
        assert said.isprintable(), f"{told}: {said!r}"
        assert len(said) < 2000, told
        return False
    except Exception as error:
        raise AssertionError(f"{told}: {type(error).__name__}: {str(error)[:300]}") from error
    return True


@pytest.mark.parametrize("name", PARSERS)
def test_damaged_files_are_read_or_refused(name: str, tmp_path: Path) -> None:
    parser, read = PARSERS[name], 0
    file = parser.write(tmp_path)
    whole = file.read_bytes()
    assert outcome(parser, tmp_path, f"{name} whole")
    numbers = sorted({*range(NUM), *FOUND.get(name, ())})
    for number in numbers:
        chance = random.Random(f"{name} {number}")
        by_shape = parser.document and chance.randrange(4) > 0
        file.write_bytes((reshaped if by_shape else damaged)(whole, chance))
        read += outcome(parser, tmp_path, f"{name} {number}")
        file.write_bytes(whole)
    print(f"{name}: {len(numbers)} damaged files, {read} read, {len(numbers) - read} refused, no traceback")
