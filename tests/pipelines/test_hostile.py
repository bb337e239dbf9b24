"""Input that was made to do harm: pipes, bombs, endless texts, names that write to the terminal; and places that are URLs."""

from __future__ import annotations

import gzip
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sources import WHOLE, pixels, refused
from test_fuzz import bounded, idx

from pipelines.config.store import read_run
from pipelines.data.cache import ensure
from pipelines.data.card import load_card
from pipelines.data.ingest import prepare
from pipelines.data.readers.cifar import read_cifar
from pipelines.data.source import Options
from pipelines.runs.record import RecordReader
from pipelines.storage.files import sha256_of
from pipelines.storage.manifest import DamagedError, read_manifest, write_manifest
from pipelines.storage.messages import one_line
from pipelines.storage.outputs import find_run, output_root
from pipelines.storage.paths import local_path
from pipelines.storage.reading import parse_json, read_json
from pipelines.storage.remote import is_remote

UNLABELLED = Options(labels="ignore", test_fraction=0)

NESTED = b"(K\x01K\x02t" + b"q\x00h\x00\x86" * 60  # ((...), (...)), each twice in the one around it


@pytest.mark.parametrize("suffix", ["", ".csv", ".npy", ".npz", ".h5", ".parquet", ".png"])
def test_a_pipe_is_no_source(tmp_path: Path, suffix: str) -> None:
    os.mkfifo(tmp_path / f"pipe{suffix}")
    with bounded("pipe"):
        refused(tmp_path / f"pipe{suffix}", tmp_path / "out", "pipe")


def test_pipes_and_devices_are_no_documents(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    os.mkfifo(tmp_path / "metrics.jsonl")
    (tmp_path / "endless.json").symlink_to("/dev/zero")
    with bounded("documents"):
        with pytest.raises(ValueError, match=r"config.json: no readable run here.*a FIFO and not a regular file"):
            read_run(tmp_path / "config.json")
        with pytest.raises(ValueError, match=r"metrics.jsonl: a FIFO"):
            RecordReader(tmp_path / "metrics.jsonl").read()
        with pytest.raises(ValueError, match=r"endless.json: a device"):
            read_json(tmp_path / "endless.json")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 1000, "[" * 70 + "]" * 70, str(2**70), "9" * 5000])
def test_json_without_end_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"JSON|digits"):
        parse_json(text)


@pytest.mark.parametrize("compression", ["zstd", "none"])
def test_a_cell_that_repeats_is_not_copied_for_each_row(tmp_path: Path, compression: str) -> None:
    """A hundred rows of one value of 16 MB, which lies once in the file: 1.6 GB in a list."""
    kind = pa.struct([("bytes", pa.dictionary(pa.int32(), pa.binary()))])
    values = pa.DictionaryArray.from_arrays(pa.array([0] * 100, pa.int32()), pa.array([bytes(16 << 20)], pa.binary()))
    table = pa.table({"image": pa.StructArray.from_arrays([values], fields=list(kind))})
    pq.write_table(table, tmp_path / "train.parquet", compression=compression)
    with bounded("cells"):
        refused(tmp_path / "train.parquet", tmp_path / "out", "train.parquet")


def test_zeros_that_are_compressed_a_thousandfold_are_no_cells(tmp_path: Path) -> None:
    kind = pa.struct([("bytes", pa.binary())])
    cells = pa.array([{"bytes": bytes(80 << 20)}], kind)
    pq.write_table(pa.table({"image": cells}), tmp_path / "train.parquet", compression="zstd", use_dictionary=False)
    with pytest.raises(ValueError, match=r"bytes in a file of .* are no data"):
        prepare(tmp_path / "train.parquet", tmp_path / "out", WHOLE)


def test_names_of_an_archive_are_cut_and_harmless(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for name in range(20_000):
            archive.writestr(f"\x1b[31m{name}\x07.npy", b"")
    with pytest.raises(ValueError, match=r"a.npz: holds .* and 19,992 more; call the rows x") as caught:
        prepare(tmp_path / "a.npz", tmp_path / "out")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


def test_what_the_commands_print_is_one_printable_line_of_bounded_length() -> None:
    said = one_line("a\nb\x1b[31m \u202eabc " + "x" * 10_000)
    assert said.startswith("a b?[31m ?abc xxx")
    assert said.isprintable()
    assert len(said) <= 1600


@pytest.mark.parametrize("zipped", [False, True])
def test_a_header_of_more_than_its_file_is_refused_before_anything_is_made(tmp_path: Path, zipped: bool) -> None:
    """Five million bytes that claim five thousand million rows."""
    text = bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in (4_000_000_000, 1, 1)) + bytes(5_000_000)
    file = tmp_path / f"train-images-idx3-ubyte{'.gz' if zipped else ''}"
    file.write_bytes(gzip.compress(text) if zipped else text)
    with bounded("idx"):
        refused(
            tmp_path,
            tmp_path / "out",
            str(file),
            "4000000000, 1, 1",
            "more than its bytes can hold",
            options=UNLABELLED,
        )
    claimed = idx(pixels(50, 4, 4))[:4] + (60).to_bytes(4, "big") + idx(pixels(50, 4, 4))[8:]
    file.write_bytes(gzip.compress(claimed) if zipped else claimed)
    refused(tmp_path, tmp_path / "out", str(file), "truncated at row 50 of the 60", options=UNLABELLED)


def test_a_member_of_zeros_is_not_expanded(tmp_path: Path) -> None:
    with (
        zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("x.npy", "w") as stream,
    ):
        np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": (1 << 27, 1, 1)})
        for _ in range(128):
            stream.write(bytes(1 << 20))
    with bounded("zeros"):
        refused(tmp_path / "a.npz", tmp_path / "out", "a.npz:x", "more than the archive can hold")


def test_a_header_of_a_numpy_file_is_not_read_whole(tmp_path: Path) -> None:
    with (tmp_path / "a.npy").open("wb") as stream:
        stream.write(b"\x93NUMPY\x02\x00" + (1 << 31).to_bytes(4, "little"))
        stream.truncate(1 << 32)
    with bounded("header"):
        refused(tmp_path / "a.npy", tmp_path / "out", "a.npy", "a header of 2,147,483,648 bytes")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"\x80\x02}(U\x04data" + NESTED + b"U\x06labels]u.", "uses a tuple twice"),
        (b"\x80\x02" + NESTED + b".", "uses a tuple twice"),
        (b"\x80\x02}" + NESTED + b"K\x01s.", "uses a tuple twice"),
        (b"\x80\x02}r\xff\xff\xff\x7f.", "remembers a value as number 2147483647"),
        (b"\x80\x04}(\x8c\x04data" + b"(" * 50 + b"K\x01" + b"t" * 50 + b"\x8c\x06labels]u.", "no array 'data'"),
        (b"\x80\x02" + b"(" * 100_000 + b"t" * 100_000 + b".", "no dictionary"),
        (b"\x80\x04\x8e" + (1 << 40).to_bytes(8, "little") + b"x.", "data_batch_1"),
        (b"\x80\x02c" + b"x" * 100_000 + b"\n\x1b[31m\n.", "which no CIFAR-10 batch needs"),
        (pickle.dumps({b"data": 1, b"labels": {1, 2}}, 4), "the opcode EMPTY_SET"),
    ],
    ids=["message", "value", "key", "memory", "nested", "deep", "length", "name", "set"],
)
def test_pickles_that_would_grow_are_refused(tmp_path: Path, text: bytes, told: str) -> None:
    for index in range(1, 6):
        (tmp_path / f"data_batch_{index}").write_bytes(text)
    with bounded("pickle"), pytest.raises(ValueError, match="refused as a CIFAR-10 batch") as caught:
        read_cifar(str(tmp_path), WHOLE)
    assert told in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 2000


def test_labels_of_a_batch_that_are_no_numbers_of_this_world_are_refused(tmp_path: Path) -> None:
    for index in range(1, 6):
        content = {b"data": pixels(2, 3072, seed=index), b"labels": [2**70, 0]}
        (tmp_path / f"data_batch_{index}").write_bytes(pickle.dumps(content, 2))
    refused(tmp_path, tmp_path / "out", "data_batch_1 row 0: the label 1180591620717411303424 is not in 0 to 9")


def test_a_card_whose_groups_nobody_wrote_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=pixels(40, 4, 4))
    prepare(tmp_path / "a.npz", tmp_path / "out", WHOLE)
    card = tmp_path / "out" / "card.json"
    card.write_text(card.read_text().replace('"group_rows": 1024', '"group_rows": 3'))
    with pytest.raises(ValueError, match=r"train-00000.parquet: 1 groups, not of the card's 3 rows"):
        load_card(tmp_path / "out")


@pytest.mark.parametrize(
    "place", ["s3://bucket/runs", "gs://b", "http://host/x", "file://host/x", "file:///x?y=1", "hdfs:/x"]
)
def test_a_url_is_no_place(tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "a.npz", x=pixels(40, 4, 4))
    calls = (
        lambda: output_root(place),
        lambda: find_run(place),
        lambda: prepare(tmp_path / "a.npz", place),
        lambda: prepare(place, tmp_path / "out"),
        lambda: ensure(place, tmp_path / "data"),
    )
    for call in calls[:3] if is_remote(place) else calls:  # a store is a place for sources
        with pytest.raises(ValueError, match="a URL is no place for files here; give a path"):
            call()
    assert [file.name for file in tmp_path.iterdir()] == ["a.npz"]


def test_a_file_url_is_a_path_and_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert output_root(f"file://{tmp_path}/my%20runs") == tmp_path / "my runs"
    np.savez(tmp_path / "a.npz", x=pixels(40, 4, 4))
    prepare("~/a.npz", "~/prepared", Options())
    assert ensure("~/prepared", tmp_path / "data") == ensure(f"file://{tmp_path}/prepared", tmp_path / "data")
    assert ensure("~/prepared", tmp_path / "data") == tmp_path / "prepared"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").touch()
    assert find_run("~/run") == tmp_path / "run"
    with pytest.raises(ValueError, match=r"source ~nobody-here/x: .*; give the whole path"):
        local_path("~nobody-here/x", "source")


def test_a_signalling_nan_is_refused_without_a_warning(tmp_path: Path) -> None:
    """Its cast raises the flag of an invalid operation, as that of a quiet one does not."""
    rows = np.zeros((40, 3))
    rows.view(np.uint64)[7, 1] = 0x7FF0_0000_0000_0001
    np.save(tmp_path / "a.npy", rows)
    refused(tmp_path / "a.npy", tmp_path / "out", "a.npy row 7")


def test_a_pipe_in_place_of_a_state_or_of_tensors_is_damage(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"rows")
    write_manifest(tmp_path / "state.json", {"step": 3}, {"data": sha256_of(tmp_path / "data")})
    (tmp_path / "data").unlink()
    os.mkfifo(tmp_path / "data")
    with bounded("pipes"):
        with pytest.raises(DamagedError, match=r"data: a FIFO"):
            read_manifest(tmp_path / "state.json").verify()
        (tmp_path / "state.json").unlink()
        os.mkfifo(tmp_path / "state.json")
        with pytest.raises(DamagedError, match=r"state.json: a FIFO"):
            read_manifest(tmp_path / "state.json")
