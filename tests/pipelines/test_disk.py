"""Full disks, processes that ended, links and names: what a run writes stays in its place, and nothing is left behind."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ray_session import ROOT, TINY_2D, environment, later_wins, main_of, one_line, train
from safetensors import SafetensorError

from pipelines.reporting.page.html import is_picture, write_page
from pipelines.reporting.page.parts import Page, Section, Table
from pipelines.runs import pictures
from pipelines.runs.pictures import put
from pipelines.storage import checkpoint, files
from pipelines.storage.files import append_text, new_directory, opened, replaced, sweep, write_tensors, write_text
from pipelines.storage.outputs import check_name, find_run, only_one, output_root, writing
from pipelines.training.launch import Launch

WORDS = ("toy2d_spiral", *TINY_2D, "--name", "r")


def hidden(root: Path) -> list[Path]:
    return list(root.rglob("*.partial"))


@pytest.fixture
def full(monkeypatch) -> None:
    """A disk that is full for tensors, as the library says it."""

    def save_file(tensors: dict[str, torch.Tensor], file: Path) -> None:
        file.write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", save_file)


def test_a_full_disk_is_an_error_of_the_system_that_names_the_file(tmp_path, full):
    with pytest.raises(OSError, match="No space left on device") as told:
        checkpoint.write(tmp_path / "step-00000002", {"w": torch.zeros(3)}, {"step": 2, "skipped": 0, "averaged": 2})
    assert told.value.errno == errno.ENOSPC
    assert str(told.value).endswith(f"'{tmp_path / 'step-00000002' / 'training.safetensors'}'")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "w").write_text("old")
    with pytest.raises(OSError, match=f"'{tmp_path / 'w'}'"):
        write_tensors(tmp_path / "w", {"w": torch.zeros(3)})
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_a_full_disk_ends_a_training_in_one_line_and_the_same_command_goes_on(tmp_path, full, monkeypatch, capsys):
    train(*WORDS, out=tmp_path, status=2)
    one_line(capsys.readouterr().err, "error: ", "No space left on device", "training.safetensors", "same command")
    assert not hidden(tmp_path)
    monkeypatch.undo()
    train(*WORDS, out=tmp_path)
    train(*WORDS, out=tmp_path / "whole")
    mine, theirs = ((place / "r" / "model.safetensors").read_bytes() for place in (tmp_path, tmp_path / "whole"))
    assert mine == theirs


def test_a_picture_that_cannot_be_written_ends_no_run(tmp_path, monkeypatch, capsys):
    def save(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    put(tmp_path / "a.png", save)
    put(tmp_path / "nowhere" / "a.png", lambda path: path.touch())
    shown = capsys.readouterr().out.splitlines()
    assert shown == [
        f"no picture {tmp_path / 'a.png'}: No space left on device",
        f"no picture {tmp_path / 'nowhere' / 'a.png'}: No such file or directory",
    ]
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "samples").write_text("a file where the pictures would be")
    train(*later_wins([*WORDS, "--sample-every", "3"]), out=tmp_path)
    assert capsys.readouterr().out.count("no picture") == 2


def test_a_figure_is_a_picture(tmp_path):
    """Whole files of the right kind, through the hidden place."""
    pictures.lines({"a": [(1.0, 2.0, 0.1), (2.0, 1.0, 0.1)]}, "x", "y", tmp_path / "curve.png")
    assert is_picture(tmp_path / "curve.png", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["curve.png"]


LEAVE = """
import os, signal, sys
from pathlib import Path
from pipelines.storage.files import new_directory, replaced
with new_directory(Path(sys.argv[1]) / "a") as building, replaced(Path(sys.argv[1]) / "b") as partial:
    (building / "rows").write_text("half")
    partial.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def leave(directory: Path) -> None:
    """What a killed process leaves in a directory."""
    directory.mkdir(parents=True, exist_ok=True)
    done = subprocess.run([sys.executable, "-c", LEAVE, str(directory)], env=environment(), check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(hidden(directory)) == 2


def test_a_start_removes_what_killed_processes_left_and_nothing_else(tmp_path):
    for place in (tmp_path, tmp_path / "data", tmp_path / "features", tmp_path / "r", tmp_path / "r" / "checkpoints"):
        leave(place)
    with new_directory(tmp_path / "r" / "mine") as building, replaced(tmp_path / "data" / "mine") as partial:
        partial.write_text("of a process that lives")
        output_root(str(tmp_path))
        with only_one(tmp_path / "r"):
            assert sorted(path.parent.name for path in hidden(tmp_path)) == ["data", "r"]
        (building / "rows").touch()
    assert not hidden(tmp_path)
    assert (tmp_path / "data" / "mine").read_text() == "of a process that lives"
    assert (tmp_path / "r" / "mine" / "rows").is_file()


def test_what_earlier_versions_left_is_removed_when_it_is_old(tmp_path):
    for name, age in ((".old.1.partial", 7200), (".new.1.partial", 60)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "rows").touch()
        (tmp_path / f".file{name}").touch()
        for path in (tmp_path / name, tmp_path / f".file{name}"):
            os.utime(path, (path.stat().st_mtime - age,) * 2)
    (tmp_path / ".empty.1.partial").mkdir()
    sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".file.new.1.partial", ".new.1.partial"]


def test_a_sweep_before_the_lock_does_no_harm(tmp_path, monkeypatch):
    """It takes the hidden directory of a process that has just made it; the process makes another one."""
    real, calls = files.open_lock, []

    def open_lock(file: Path) -> int:
        if not calls:
            calls.append(file)
            sweep(tmp_path)
        return real(file)

    monkeypatch.setattr(files, "open_lock", open_lock)
    write_text(tmp_path / "a", "text")
    assert len(calls) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_weights_get_the_mode_that_the_umask_leaves(mask, tmp_path):
    before = os.umask(mask)
    try:
        train(*WORDS, out=tmp_path)
    finally:
        os.umask(before)
    for file in [path for path in (tmp_path / "r").rglob("*") if path.is_file()]:
        assert stat.S_IMODE(file.stat().st_mode) == 0o666 & ~mask, file


NAMES = ["../x", "a/b", "/tmp/x", "a\\b", "..", ".", ".hidden", "data", "ray", "features", "a\nb", "a\0b", "x" * 300]


@pytest.mark.parametrize("name", NAMES)
def test_a_run_name_is_one_path_component(name, tmp_path, capsys):
    train(*later_wins([*WORDS, "--name", name]), out=tmp_path / "out", status=2)
    one_line(capsys.readouterr().err, "error: --name ")
    assert not list(tmp_path.glob("*/r*"))
    assert not (tmp_path / "x").exists()


def test_names_of_people_are_names():
    for name in ("r", "größe 2", "a-b_c.d", "x" * 200, "data-2"):
        check_name(name)
        assert Launch(name=name).name == name


def test_a_lock_that_is_a_link_empties_nothing(tmp_path, capsys):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "r").mkdir()
    for name in (".lock", ".writing"):
        link = tmp_path / "r" / name
        link.symlink_to(tmp_path / "precious")
        train(*WORDS, out=tmp_path, status=2)
        one_line(capsys.readouterr().err, "error: ", f"{link}: a link", "remove it")
        link.unlink()
    with only_one(tmp_path / "r"):
        pass
    assert (tmp_path / "precious").read_text() == "precious"


def test_links_are_replaced_and_never_written_through(tmp_path):
    """Every file that a training writes lies there as a link before."""
    train(*WORDS, out=tmp_path)
    run, names = tmp_path / "r", ("config.json", "metrics.jsonl", "model.safetensors", "model.json")
    shutil.rmtree(run)
    run.mkdir()
    for name in names:
        (tmp_path / f"precious-{name}").write_text("precious")
        if name not in ("config.json", "model.json"):  # which are read before they are written
            (run / name).symlink_to(tmp_path / f"precious-{name}")
    train(*WORDS, out=tmp_path)
    for name in names:
        assert (tmp_path / f"precious-{name}").read_text() == "precious"
        assert not (run / name).is_symlink()
    (run / "link").symlink_to(tmp_path / "precious-config.json")
    for write in (lambda file: append_text(file, "x"), lambda file: opened(file).close()):
        with pytest.raises(OSError, match="symbolic links"):
            write(run / "link")
    assert (tmp_path / "precious-config.json").read_text() == "precious"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives a link to somebody else")
def test_links_that_somebody_else_made_are_refused(tmp_path, capsys):
    train(*WORDS, out=tmp_path)
    run = tmp_path / "r"
    (tmp_path / "elsewhere").mkdir()
    (run / "samples").symlink_to(tmp_path / "elsewhere")
    find_run(str(run))  # one's own
    os.lchown(run / "samples", 12345, 12345)
    said = (f"{run / 'samples'}: a link that another user made", "remove it")
    train(*later_wins([*WORDS, "--steps", "9"]), out=tmp_path, status=2)
    one_line(capsys.readouterr().err, "error: ", *said)
    for command in ("sample", "report", "evaluate", "compare"):
        assert main_of(command)([str(run)]) == 2
        one_line(capsys.readouterr().err, "error: ", *said)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_report_embeds_nothing_from_outside_and_escapes_what_it_prints(tmp_path, capsys):
    train(*WORDS, out=tmp_path)
    run = (tmp_path / "r").rename(tmp_path / "<b>r|![x](http:..x)")
    outside, before = tmp_path / "outside.png", (run / "config.json").read_bytes()
    shutil.copy(ROOT / "tests" / "pipelines" / "old_runs" / "figures.json", outside)
    put(outside, lambda path: pictures.figure_of(1, 1).savefig(path))
    words = [str(run), "--images", "0", "--samples", "0", "--out", str(tmp_path / "made")]
    (run / "compare.png").symlink_to(outside)
    assert main_of("report")(words) == 0
    assert f"{run / 'compare.png'}: left out, it is a link to {outside}" in capsys.readouterr().out
    (run / "compare.png").unlink()
    (run / "compare.png").write_text("no picture")
    assert main_of("report")(words) == 0
    assert f"{run / 'compare.png'}: left out, it is no PNG picture" in capsys.readouterr().out
    page, text = ((tmp_path / "made" / f"report.{kind}").read_text() for kind in ("html", "md"))
    assert page.count("data:image/png") == 1  # the learning curve
    for made in (page, text):
        assert "<b>r" not in made
        assert "&lt;b&gt;r" in made
    assert "![x]" not in text
    assert r"\|!\[x\]" in text
    assert (run / "config.json").read_bytes() == before


def test_cells_of_markdown_stay_in_their_cell(tmp_path):
    table = Table(title="<b>", head=("a", "b"), rows=[("<script>x</script>", "c\nd|e")])
    write_page("p", Page(title="t", sections=[Section(title="<i>", parts=[table])]), tmp_path)
    lines = (tmp_path / "p.md").read_text().splitlines()
    assert lines[2:5:2] == ["## &lt;i&gt;", "### &lt;b&gt;"]
    assert lines[-1] == r"| &lt;script&gt;x&lt;/script&gt; | c; d\|e |"
    cells = "<td>&lt;script&gt;x&lt;/script&gt;</td><td><span>c</span><small>d|e</small></td>"
    assert cells in (tmp_path / "p.html").read_text()


HOLD = """
import sys, time
from pathlib import Path
from pipelines.storage.outputs import writing
with writing(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def test_a_new_command_waits_for_the_writer_of_an_earlier_one(tmp_path, monkeypatch, capsys):
    """The command's own lock is free, as when a driver died; a worker of it writes on."""
    for seconds, patience, status in ((2.0, 60.0, 0), (60.0, 0.5, 2)):
        monkeypatch.setattr("pipelines.storage.outputs.PATIENCE", patience)
        program = [sys.executable, "-c", HOLD, str(tmp_path / "r"), str(seconds)]
        with subprocess.Popen(program, env=environment(), stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            try:
                train(*later_wins([*WORDS, "--steps", str(6 + status)]), out=tmp_path, status=status)
                assert status or process.poll() is not None, "it did not wait"
            finally:
                process.kill()
    one_line(capsys.readouterr().err, "error: ", str(tmp_path / "r"), "an earlier command still writes there")
    assert json.loads((tmp_path / "r" / "model.json").read_text())["step"] == 6


def test_the_writer_holds_the_lock_of_its_run(tmp_path):
    with writing(tmp_path / "r"), only_one(tmp_path / "r"):
        pass
    assert sorted(path.name for path in (tmp_path / "r").iterdir()) == [".lock", ".writing"]
