"""Files and directories are there whole or not at all, however a process ends."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
import torch
from ray_session import ROOT
from safetensors.torch import load_file

from pipelines.storage import files
from pipelines.storage.files import new_directory, replaced, sweep, write_tensors, write_text


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def fill(directory: Path, text: str) -> None:
    """Builds a directory of two files that say the same."""
    with new_directory(directory) as building:
        write_text(building / "a", text)
        (building / "b").write_text(text)


def test_what_is_written_replaces_what_was_there(tmp_path: Path) -> None:
    for text in ("old", "new, \N{GREEK SMALL LETTER PSI}"):
        write_text(tmp_path / "file", text)
        fill(tmp_path / "directory", text)
        assert (tmp_path / "file").read_text(encoding="utf-8") == text
        assert {path.read_text(encoding="utf-8") for path in (tmp_path / "directory").iterdir()} == {text}
    tensors = {"w": torch.arange(6.0).reshape(2, 3).T, "n": torch.tensor(3, requires_grad=False)}
    write_tensors(tmp_path / "w.safetensors", tensors)
    found = load_file(tmp_path / "w.safetensors")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert names(tmp_path) == ["directory", "file", "w.safetensors"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_a_block_that_raises_leaves_what_was_there_and_nothing_else(tmp_path: Path, error: type) -> None:
    write_text(tmp_path / "file", "old")
    fill(tmp_path / "directory", "old")

    def half_a_file() -> None:
        with replaced(tmp_path / "file") as partial:
            partial.write_text("ne")
            raise error

    def half_a_directory() -> None:
        with new_directory(tmp_path / "directory") as building:
            (building / "a").write_text("ne")
            raise error

    for half in (half_a_file, half_a_directory):
        with pytest.raises(error):
            half()
    assert names(tmp_path) == ["directory", "file"]
    assert (tmp_path / "file").read_text() == "old"
    assert names(tmp_path / "directory") == ["a", "b"]


def test_an_error_is_not_hidden_by_the_clearing_up(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        write_text(tmp_path / "file" / "below", "text")
    with pytest.raises(FileNotFoundError):
        write_text(tmp_path / "nothing" / "below", "text")


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_files_and_directories_get_the_permissions_that_the_umask_leaves(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        write_text(tmp_path / "text", "text")
        write_tensors(tmp_path / "tensors", {"w": torch.zeros(2)})
        fill(tmp_path / "directory", "text")
    finally:
        os.umask(before)
    for name, whole in (("text", 0o666), ("tensors", 0o666), ("directory", 0o777), ("directory/a", 0o666)):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == whole & ~mask, name


def test_content_is_on_the_disk_before_its_name_and_the_name_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the order of the calls: the file, its name, the directory that holds the name."""
    done: list[str] = []
    replace, rename, flush = Path.replace, Path.rename, files.flush
    monkeypatch.setattr(files, "flush", lambda path: (done.append(f"flush {kind(path)}"), flush(path)))
    monkeypatch.setattr(Path, "replace", lambda path, to: (done.append(f"name {to.name}"), replace(path, to)))
    monkeypatch.setattr(Path, "rename", lambda path, to: (done.append(f"name {kind(to)}"), rename(path, to)))

    def kind(path: Path) -> str:
        return f"new {path.name}" if ".partial" in path.parent.name else path.name

    write_text(tmp_path / "file", "text")
    assert done == ["flush new file", "name file", f"flush {tmp_path.name}"]
    done.clear()
    (tmp_path / "directory").mkdir()
    with new_directory(tmp_path / "directory") as building:
        (building / "a").touch()
    inside = ["flush a", "flush new directory"]
    assert done == [*inside, "name new directory.stale", "name directory", f"flush {tmp_path.name}"]


KILL = """
import os, signal, sys
from pathlib import Path
from pipelines.storage import files
from pipelines.storage.files import new_directory, write_text

left = int(sys.argv[2])

def counted(call):
    def wrapped(*arguments, **options):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **options)
    return wrapped

for name in ("open", "fsync"):
    setattr(os, name, counted(getattr(os, name)))
for name in ("replace", "rename", "write_text", "unlink", "mkdir"):
    setattr(Path, name, counted(getattr(Path, name)))
files.shutil.rmtree = counted(files.shutil.rmtree)
root = Path(sys.argv[1])
write_text(root / "file", "new")
with new_directory(root / "directory") as building:
    write_text(building / "a", "new")
    write_text(building / "b", "new")
"""


def test_a_kill_between_any_two_calls_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    """The process ends by SIGKILL before its n-th call of the file system, for every n."""
    seen: set[tuple[str, ...]] = set()
    for n in range(100):
        root = tmp_path / str(n)
        root.mkdir()
        write_text(root / "file", "old")
        fill(root / "directory", "old")
        done = subprocess.run([sys.executable, "-c", KILL, str(root), str(n)], cwd=ROOT, check=False)
        held = tuple(sorted(path.read_text() for path in (root / "directory").glob("*")))
        assert (root / "file").read_text() in ("old", "new")
        assert held in (("old", "old"), ("new", "new"), ())
        assert held or list(root.glob(".directory.*.partial/*/a"))  # between the two renames both are there, beside it
        assert {path.name for path in root.glob("[!.]*")} <= {"file", "directory"}
        seen.add(((root / "file").read_text(), *held))
        sweep(root)  # as the next start does
        assert not list(root.glob(".*"))
        assert len(list((root / "directory").iterdir())) == 2
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL
    assert done.returncode == 0
    assert names(root) == ["directory", "file"]
    assert {("old", "old", "old"), ("new", "old", "old"), ("new",), ("new", "new", "new")} == seen


def test_of_two_at_once_the_later_discards_its_own(tmp_path: Path) -> None:
    """Eight finish at the same moment; one is kept, and the others find it there."""
    place, together = tmp_path / "place", Barrier(8)
    asked: list[bool] = []

    def keep() -> bool:
        asked.append(place.is_dir())
        return asked[-1]

    def build(index: int) -> None:
        with new_directory(place, keep=keep) as building:
            for name in "ab":
                (building / name).write_text(str(index))
            together.wait(timeout=20)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(build, range(8)))
    assert sorted(asked) == [False] + [True] * 7
    assert (place / "a").read_text() == (place / "b").read_text()
    assert names(tmp_path) == ["place"]
