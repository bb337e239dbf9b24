"""Preparation happens once, whole or not at all, and every refusal is one line that says where and what to do."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
from ray_session import ROOT, command, main_of
from sources import pixels, refused, stored, verify

from pipelines.data import cache, ingest
from pipelines.data.cache import data_directory, embedded, ensure
from pipelines.data.card import Card, load_card
from pipelines.data.ingest import prepare
from pipelines.data.readers import READERS
from pipelines.data.source import Options


def test_the_hold_out_depends_on_the_seed_only(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        prepare("digits", tmp_path / name, Options(seed=seed))
    a, b, c = (stored(tmp_path / name, "test")[0] for name in "abc")
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()


def test_embedded_and_directories(tmp_path: Path) -> None:
    assert embedded("digits")
    assert embedded("toy2d:rings")
    assert not embedded("/some/path")
    assert data_directory("digits", tmp_path) == tmp_path / "digits"
    assert data_directory("toy2d:spiral", tmp_path) == tmp_path / "toy2d-spiral"
    plain, other = data_directory("/x/mnist", tmp_path), data_directory("/y/mnist", tmp_path)
    assert plain.name.startswith("mnist-")
    assert plain == data_directory("/x/../x/mnist", tmp_path)
    assert len({plain, other, data_directory("/x/mnist", tmp_path, Options(size=8))}) == 3
    assert data_directory("digits", tmp_path, Options(seed=1)) != tmp_path / "digits"


def test_options_are_checked(tmp_path: Path) -> None:
    for change in ({"size": -1}, {"max_skip": 1.0}, {"test_fraction": -0.1}, {"rows": 4}):
        with pytest.raises(ValueError, match=next(iter(change))):
            Options(**change)
    refused("digits", tmp_path, "size=4", "only image files", options=Options(size=4))
    refused("digits", tmp_path, "splits=valid", "test, train", options=Options(splits=("valid",)))
    refused("digits", tmp_path, "test_fraction=0.0001", options=Options(test_fraction=0.0001))
    refused("toy2d:rings", tmp_path, "continuous", options=Options(levels=4))
    refused("digits", tmp_path, "digits row 0", "levels 0 to 9", options=Options(levels=10))


def test_the_source_is_never_overwritten(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", pixels(20, 6, 5))
    refused(tmp_path / "rows.npy", tmp_path / "rows.npy", "is the source itself")
    prepare("digits", tmp_path / "digits")
    with pytest.raises(ValueError, match="already prepared"):
        prepare(tmp_path / "digits", tmp_path / "out")


def test_preparing_again_replaces(tmp_path: Path) -> None:
    prepare("toy2d:rings", tmp_path, Options(rows=50_000))
    (tmp_path / ".0.preparing").mkdir()
    (tmp_path / ".0.preparing" / "train-00009.parquet").touch()
    prepare("toy2d:moons", tmp_path, Options(rows=100))
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "card.json",
        "test-00000.parquet",
        "train-00000.parquet",
    ]
    assert load_card(tmp_path).name == "toy2d-moons"


def test_a_preparation_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    card = prepare("toy2d:moons", tmp_path / "out", Options(rows=100))
    np.save(tmp_path / "rows.npy", np.full((9, 2), np.nan))
    with pytest.raises(ValueError, match=r"rows.npy row 0 column 0: the value nan"):
        prepare(tmp_path / "rows.npy", tmp_path / "out")
    assert load_card(tmp_path / "out") == card
    assert not list((tmp_path / "out").glob(".*"))


def test_a_prepared_set_made_otherwise_is_refused(tmp_path: Path) -> None:
    """A recipe that asks for a published table, or for images in [0, 1], does not train on something else."""
    prepare("digits", tmp_path / "digits")
    assert ensure(tmp_path / "digits", tmp_path, Options(rows=7)) == tmp_path / "digits"
    with pytest.raises(ValueError, match=r"low=0.0: .*digits was prepared with low=-1.0; prepare it again with --low"):
        ensure(tmp_path / "digits", tmp_path, Options(low=0.0))
    with pytest.raises(ValueError, match=r"table=power: .*digits was prepared with table=; .* or give --table ''"):
        ensure(tmp_path / "digits", tmp_path, Options(table="power"))


@pytest.mark.parametrize("text", ["[" * 200_000, "{", "7"])
def test_a_damaged_card_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "card.json").write_text(text)
    with pytest.raises(ValueError, match=r"card.json: .*prepare the data set again"):
        load_card(tmp_path)


def test_killed_preparation_leaves_nothing_that_looks_complete(tmp_path: Path) -> None:
    """The process is killed as it would write the card, the last thing it does."""
    code = (
        "import os, signal; from pipelines.data import cache, ingest; "
        "ingest.write_card = lambda *a: os.kill(os.getpid(), signal.SIGKILL); "
        f"{{}}('toy2d:rings', {str(tmp_path)!r})"
    )
    for call in ("ingest.prepare", "cache.ensure"):
        done = subprocess.run([sys.executable, "-c", code.format(call)], cwd=ROOT, check=False)
        assert done.returncode == -9
    assert not list(tmp_path.rglob("card.json"))
    assert list(tmp_path.rglob("*.parquet"))
    assert ensure("toy2d:rings", tmp_path) == tmp_path / "toy2d-rings"
    verify(load_card(tmp_path / "toy2d-rings"), tmp_path / "toy2d-rings")


def test_ensure_prepares_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = ensure("toy2d:rings", tmp_path, Options(rows=100))
    before = (directory / "card.json").stat().st_mtime_ns
    assert ensure("toy2d:rings", tmp_path, Options(rows=100)) == directory
    assert (directory / "card.json").stat().st_mtime_ns == before
    card = load_card(directory)
    text = (directory / "card.json").read_text()
    (directory / "card.json").write_text(text.replace("toy2d:rings", "toy2d:moons"))
    assert ensure("toy2d:rings", tmp_path, Options(rows=100)) == directory
    assert load_card(directory) == card
    (directory / "train-00000.parquet").unlink()
    ensure("toy2d:rings", tmp_path, Options(rows=100))
    assert load_card(directory) == card
    assert [entry.name for entry in tmp_path.iterdir()] == [directory.name]
    with pytest.raises(ValueError, match="no such file"):
        ensure(tmp_path / "nothing", tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == [directory.name]


def test_a_source_that_has_changed_is_prepared_anew(tmp_path: Path) -> None:
    source = tmp_path / "points.npy"
    np.save(source, np.arange(40, dtype=np.float32).reshape(20, 2))
    directory = ensure(source, tmp_path / "data")
    first = load_card(directory)
    assert load_card(ensure(source, tmp_path / "data")) == first
    np.save(source, np.arange(60, dtype=np.float32).reshape(30, 2))
    assert ensure(source, tmp_path / "data") == directory
    second = load_card(directory)
    assert sum(split.count for split in second.splits.values()) == 30
    source.unlink()  # what was prepared from it stays good
    with pytest.raises(ValueError, match="no such file"):
        prepare(source, tmp_path / "again")
    assert load_card(ensure(source, tmp_path / "data")) == second


@pytest.mark.parametrize("stale", [False, True])
def test_two_at_once_share_one_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stale: bool) -> None:
    """Four preparations finish at the same moment, into an empty root or over a stale directory."""
    options = Options(rows=100)
    if stale:
        (ensure("toy2d:rings", tmp_path, options) / "train-00000.parquet").unlink()
    together = Barrier(4)

    def finish_together(source: str, out: Path, given: Options) -> Card:
        card = prepare(source, out, given)
        together.wait(timeout=20)
        return card

    monkeypatch.setattr(cache, "prepare", finish_together)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: ensure("toy2d:rings", tmp_path, options), range(4)))
    assert len(set(found)) == 1
    verify(load_card(found[0]), found[0])
    assert list(tmp_path.iterdir()) == [found[0]]


def test_the_command_line_prepares(tmp_path: Path) -> None:
    words = command("prepare", "toy2d:rings", "--out", str(tmp_path / "out"), "--rows", "100")
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2].split() == ["train", "toy2d:rings", "train", "100", "0", "0"]
    assert done.stderr == ""
    assert load_card(tmp_path / "out").split("test").count == 20


def test_the_command_line_takes_every_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By its name with a hyphen or an underscore; splits are divided by commas."""
    np.save(tmp_path / "rows.npy", pixels(40, 6, 5) % 16)
    words = [
        "--name",
        "small",
        "--levels",
        "16",
        "--low",
        "0",
        "--high=2",
        "--max-skip",
        "0",
        "--test_fraction",
        "0.25",
    ]
    words += ["--seed", "3", "--splits", "test,train", "--rows", "50", "--size", "0", "--crop", "0", "--table", ""]
    words += ["--split", "()", "--channels", "auto", "--background", "white", "--orient", "true"]
    assert main_of("prepare")([str(tmp_path / "rows.npy"), "--out", str(tmp_path / "out"), *words]) == 0
    assert "small: image (1, 6, 5), levels 16, 0 classes" in capsys.readouterr().out
    card = load_card(tmp_path / "out")
    assert (card.name, card.levels, card.low, card.high) == ("small", 16, 0.0, 2.0)
    assert {name: split.count for name, split in card.splits.items()} == {"train": 30, "test": 10}
    wanted = Options(name="small", levels=16, low=0.0, high=2.0, max_skip=0.0, test_fraction=0.25, seed=3, rows=50)
    assert card.options == replace(wanted, splits=("test", "train")).to_json()


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["digits"], ["--out DIR is missing"]),
        (["digits", "--max-skip", "2"], ["max_skip=2.0"]),
        (["digits", "--max-skip", "some"], ["--max-skip: 'some' does not fit", "a number"]),
        (["digits", "--max-skips", "0"], ["unknown option --max-skips", "did you mean --max-skip"]),
        (["digits", "--splits", "train", "test"], ["digits test", "--splits train,test"]),
        (["digits", "--table", "gass"], ["table='gass'", "power, gas"]),
        (["digits", "--seed", "1", "--seed", "2"], ["--seed is given twice"]),
    ],
)
def test_the_command_line_reports_errors_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], parts: list[str]
) -> None:
    out = [] if words == ["digits"] else ["--out", str(tmp_path / "out")]
    assert main_of("prepare")([*words, *out]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ")
    assert shown.count("\n") == 1
    assert all(part in shown for part in parts), shown
    assert not (tmp_path / "out").exists()


def test_the_command_line_shows_where_an_error_came_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(tmp_path / "none"), "--out", str(tmp_path / "out")]
    assert main_of("prepare")(words) == 2
    assert capsys.readouterr().err.startswith("error: source=")
    assert main_of("prepare")([*words, "--traceback"]) == 2
    assert "in _open_source" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "status"), [(["--help"], 0), (["-h"], 0), ([], 2)])
def test_help_names_every_option_and_format(words: list[str], status: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main_of("prepare")(words) == status
    shown = capsys.readouterr().out
    for option in [*fields(Options), "out", "traceback"]:
        assert f"  --{getattr(option, 'name', option).replace('_', '-')} " in shown
    for reader in READERS:
        assert reader.name in " ".join(shown.split())


def test_long_preparations_say_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(range(0, 10_000, 6))
    monkeypatch.setattr(ingest.time, "monotonic", lambda: next(clock))
    prepare("toy2d:rings", tmp_path, Options(rows=2048))
    assert "train: 1,024/2,048 rows, 171 rows/s" in capsys.readouterr().err


def test_a_refusal_leaves_no_directory(tmp_path):
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="at least 2"):
        prepare(tmp_path / "x.csv", tmp_path / "out")
    assert not (tmp_path / "out").exists()
