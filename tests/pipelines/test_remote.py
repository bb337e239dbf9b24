"""Object stores: sources that are read there, prepared data that lie there, runs that are mirrored there.

`memory://` and `local://` are fsspec's own stores; the slow tests speak S3 with a server of this machine.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest
from ray_session import TINY, main_of, train
from sources import pixels, png, stored

from pipelines.data.cache import ensure
from pipelines.data.card import load_card
from pipelines.data.ingest import prepare
from pipelines.data.source import Options
from pipelines.runs.mirror import Mirror, bring_back
from pipelines.storage import checkpoint
from pipelines.storage.files import sha256_of
from pipelines.storage.outputs import output_root
from pipelines.storage.remote import RemotePath


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No cluster of this machine is joined: the store of a process is its own."""
    monkeypatch.setenv("RAY_ADDRESS", "local")


@pytest.fixture
def bucket() -> Iterator[str]:
    """A store in this process's memory."""
    yield "memory://bucket"
    fsspec.filesystem("memory").rm("/", recursive=True)


def fill(folder: str, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        store, path = fsspec.url_to_fs(f"{folder}/{name}")
        store.makedirs(path.rpartition("/")[0], exist_ok=True)
        store.pipe_file(path, content)


def pictures(num: int = 30) -> dict[str, bytes]:
    images = {f"class{row % 2}/{row:02}.png": png(pixels(3, 5, 4, seed=row)) for row in range(num)}
    return images | {".DS_Store": b"x", "notes.txt": b"x"}


def names(folder: str) -> list[str]:
    return [str(entry.place.relative_to(RemotePath(folder))) for entry in RemotePath(folder).entries()]


def shards(directory: Path) -> dict[str, str]:
    return {file.name: sha256_of(file) for file in directory.glob("*.parquet")}


def test_a_folder_of_a_store_becomes_the_shards_of_the_same_folder_here(tmp_path: Path, bucket: str) -> None:
    fill(f"{bucket}/pictures", pictures())
    for name, content in pictures().items():
        (tmp_path / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pictures" / name).write_bytes(content)
    there = prepare(f"{bucket}/pictures/", tmp_path / "there")
    here = prepare(tmp_path / "pictures", tmp_path / "here")
    assert shards(tmp_path / "there") == shards(tmp_path / "here")
    assert there.source == f"{bucket}/pictures"
    same = {"source": "", "fingerprint": "", "splits": {}}
    assert replace(there, **same) == replace(here, **same)


def test_what_has_changed_in_a_store_is_prepared_anew(tmp_path: Path, bucket: str) -> None:
    fill(f"{bucket}/pictures", pictures())
    directory = ensure(f"{bucket}/pictures", tmp_path)
    before, times = load_card(directory).digest, (directory / "card.json").stat().st_mtime_ns
    assert ensure(f"{bucket}/pictures", tmp_path) == directory
    assert (directory / "card.json").stat().st_mtime_ns == times
    fill(f"{bucket}/pictures", {"class0/00.png": png(pixels(3, 5, 4, seed=99))})
    assert load_card(ensure(f"{bucket}/pictures", tmp_path)).digest != before


def test_prepared_data_in_a_store_come_shard_by_shard_and_are_checked(tmp_path: Path, bucket: str) -> None:
    fill(f"{bucket}/pictures", pictures())
    assert main_of("prepare")([f"{bucket}/pictures", "--out", f"{bucket}/prepared"]) == 0
    assert names(f"{bucket}/prepared") == ["card.json", "test-00000.parquet", "train-00000.parquet"]
    directory = ensure(f"{bucket}/prepared", tmp_path)
    assert not shards(directory)
    card = prepare(f"{bucket}/pictures", tmp_path / "here")
    from pipelines.data.shards import read_all

    assert (read_all(directory, load_card(directory), "train")["x"] == stored(tmp_path / "here")[0]).all()
    assert shards(directory).keys() == {"train-00000.parquet"}
    assert load_card(directory).digest == card.digest
    fill(f"{bucket}/prepared", {"test-00000.parquet": b"other"})
    with pytest.raises(ValueError, match=r"prepared/test-00000.parquet: sha256 .* where the card says"):
        read_all(directory, card, "test")
    assert shards(directory).keys() == {"train-00000.parquet"}


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("memory://bucket/nothing", "no such file, folder or bucket"),
        ("memory://bucket/table.csv", "of an object store, folders of images and Parquet files of images are read"),
        ("s3://key:hush@bucket/x", "credentials do not belong in a URL"),
    ],
)
def test_what_a_store_cannot_give_is_one_line(tmp_path: Path, bucket: str, url: str, said: str) -> None:
    fill(bucket, {"table.csv": b"1,2\n3,4\n"})
    with pytest.raises(ValueError, match=said) as caught:
        prepare(url, tmp_path / "out")
    assert "hush" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_store_whose_package_is_missing_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ValueError, match=r"gs:// needs gcsfs, which is not installed; .*'\.\[remote\]'"):
        prepare("gs://bucket/x", tmp_path / "out")


def test_runs_are_not_written_in_a_store() -> None:
    with pytest.raises(ValueError, match=r"--out s3://bucket/runs: .*--mirror s3://bucket/runs"):
        output_root("s3://bucket/runs")


def test_a_run_goes_on_from_its_mirror_on_another_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words, mirror = ["digits_vp_nll", *TINY, "--name", "run"], f"local://{tmp_path}/bucket"
    whole, first, second = (tmp_path / name for name in ("whole", "first", "second"))
    train(*words, out=whole)
    train(*words, "--mirror", mirror, out=first)
    copied = tmp_path / "bucket" / "run"
    expected = {
        file.relative_to(first / "run"): sha256_of(file) for file in (first / "run").rglob("[!.]*") if file.is_file()
    }
    assert {file.relative_to(copied): sha256_of(file) for file in copied.rglob("*") if file.is_file()} == expected
    for late in ("model.safetensors", "model.json", "checkpoints/step-00000006/state.json"):  # as a kill would leave it
        (copied / late).unlink()
    train(*words, "--mirror", mirror, out=second)
    assert "run: brought back from" in capsys.readouterr().out
    assert sha256_of(second / "run" / "model.safetensors") == sha256_of(whole / "run" / "model.safetensors")
    shutil.rmtree(second / "run" / "checkpoints" / "step-00000006")
    train(*words, "--mirror", mirror, out=second, status=2)
    assert "has step 6 of run" in capsys.readouterr().err


def test_a_mirror_has_no_checkpoint_that_was_removed_and_never_half_of_one(tmp_path: Path, bucket: str) -> None:
    run, mirror = tmp_path / "run", f"{bucket}/runs"
    run.mkdir()
    (run / "config.json").write_text("{}")
    (run / ".lock").touch()
    for step in (2, 4):
        place = run / "checkpoints" / f"step-{step:08d}"
        place.mkdir(parents=True)
        for name in (checkpoint.STATE, "training.safetensors"):
            (place / name).write_text(str(step))
    with Mirror([run], mirror):
        pass
    assert len(names(mirror)) == 5
    shutil.rmtree(run / "checkpoints" / "step-00000002")
    (run / "metrics.jsonl").touch()
    with Mirror([run], mirror):
        pass
    assert names(f"{mirror}/run") == [
        "checkpoints/step-00000004/state.json",
        "checkpoints/step-00000004/training.safetensors",
        "config.json",
        "metrics.jsonl",
    ]


def test_the_next_command_copies_what_the_store_lacks_and_what_was_written_since(
    tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, mirror, put = tmp_path / "run", f"{bucket}/again", list[str]()
    run.mkdir()
    for name in ("config.json", "a", "b", "c"):
        (run / name).write_text("{}")
    whole = RemotePath.put
    monkeypatch.setattr(RemotePath, "put", lambda self, file: [whole(self, file), put.append(file.name)])

    def copied(to: str) -> list[str]:
        put.clear()
        with Mirror([run], to):
            pass
        return sorted(put)

    assert copied(mirror) == ["a", "b", "c", "config.json"]
    assert copied(mirror) == []
    RemotePath(f"{mirror}/run/a").remove()
    os.utime(run / "b")
    assert copied(mirror) == ["a", "b"]
    assert copied(f"{bucket}/another") == ["a", "b", "c", "config.json"]
    (run / ".mirrored.json").write_text("[")
    assert copied(f"{bucket}/another") == ["a", "b", "c", "config.json"]


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A bucket of an S3 server of this machine; s3fs and moto[server] are installed for it by hand."""
    pytest.importorskip("s3fs")
    pytest.importorskip("moto")
    port, kept = "5056", dict(os.environ)
    server = subprocess.Popen([sys.executable, "-m", "moto.server", "-p", port], stderr=subprocess.DEVNULL)
    os.environ |= {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "hush", "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ["FSSPEC_S3_ENDPOINT_URL"] = f"http://127.0.0.1:{port}"
    fsspec.config.set_conf_env(fsspec.config.conf)
    store = fsspec.filesystem("s3")
    for _ in range(60):
        try:
            store.mkdir("bucket")
            break
        except Exception:
            time.sleep(1)
    yield "s3://bucket"
    server.terminate()
    server.wait()
    os.environ.clear()
    os.environ |= kept
    fsspec.config.conf.pop("s3", None)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_s3_holds_sources_prepared_data_and_mirrors(
    tmp_path: Path, s3: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(f"{s3}/pictures", pictures(40))
    assert main_of("prepare")([f"{s3}/pictures", "--out", f"{s3}/prepared"]) == 0
    here = prepare(f"{s3}/pictures", tmp_path / "here", Options())
    words = ["digits_vp_nll", *TINY, "--name", "run", "--source", f"{s3}/prepared", "--mirror", f"{s3}/runs"]
    train(*words, out=tmp_path / "first")
    assert load_card(next((tmp_path / "first" / "data").iterdir())).digest == here.digest
    train(*words, out=tmp_path / "second")
    assert "brought back" in capsys.readouterr().out
    assert sha256_of(tmp_path / "second/run/model.safetensors") == sha256_of(tmp_path / "first/run/model.safetensors")
    with pytest.raises(ValueError, match="no such file, folder or bucket"):
        prepare("s3://nobody/pictures", tmp_path / "out")


def test_a_mirror_of_another_run_and_a_run_without_its_configuration_are_left_alone(
    tmp_path: Path, bucket: str
) -> None:
    def made(place: Path, seed: int, step: int) -> Path:
        state = place / "run" / "checkpoints" / f"step-{step:08d}" / "state.json"
        state.parent.mkdir(parents=True)
        state.write_text("{}")
        config = {"run": {"recipe": "digits", "data": {}, "model": {}, "train": {"seed": seed}}}
        (place / "run" / "config.json").write_text(json.dumps(config))
        return place / "run"

    mirror = f"{bucket}/of-another"
    with Mirror([made(tmp_path / "theirs", seed=1, step=400)], mirror):
        pass
    mine = made(tmp_path / "mine", seed=2, step=500)
    with pytest.raises(
        ValueError, match=r"mirror=.*another run of the name run; give another --mirror, or another --name"
    ):
        bring_back(mine, mirror)
    (mine / "config.json").unlink()
    bring_back(mine, mirror)
    assert not (mine / "config.json").exists()
    assert [place.name for place in (mine / "checkpoints").iterdir()] == ["step-00000500"]
