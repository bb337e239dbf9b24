"""Where outputs go, also for a script that `ray submit` has copied alone to a home directory."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ray_session import ROOT, TINY_2D, environment, one_line

from pipelines.storage import outputs
from pipelines.storage.outputs import RULE, output_root


@pytest.fixture(autouse=True)
def _no_variable(monkeypatch):
    monkeypatch.delenv("INDM_RUNS", raising=False)


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """The package as if installed from another clone."""
    (tmp_path / "clone" / "pipelines").mkdir(parents=True)
    (tmp_path / "clone" / "pyproject.toml").touch()
    monkeypatch.setattr(outputs, "__file__", str(tmp_path / "clone" / "pipelines" / "storage" / "outputs.py"))
    return tmp_path / "clone"


def test_out_then_the_variable_then_the_clone(clone, tmp_path, monkeypatch):
    assert output_root("") == output_root(None) == clone / "runs"
    monkeypatch.setenv("INDM_RUNS", str(tmp_path / "variable"))
    assert output_root(None) == tmp_path / "variable"
    assert output_root(str(tmp_path / "out")) == tmp_path / "out"
    assert all((tmp_path / name).is_dir() for name in ("clone/runs", "variable", "out"))
    assert not any((tmp_path / "out").iterdir())


def test_the_directory_is_absolute_and_the_home_is_expanded(clone, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert output_root("here") == tmp_path / "here"
    assert output_root("~/runs") == tmp_path / "home" / "runs"


@pytest.mark.parametrize("place", ["x", "x/below", "x/below/deeper"])
def test_what_cannot_be_written_is_refused(place, tmp_path):
    (tmp_path / "x").write_text("a file")
    with pytest.raises(ValueError, match="cannot be written") as caught:
        output_root(str(tmp_path / place))
    one_line(str(caught.value), str(tmp_path / place), "give another --out DIR")


@pytest.mark.parametrize("place", ["site-packages", "working_dir_files/_ray_pkg_0123"])
def test_a_temporary_or_installed_copy_is_refused_with_the_rule(place, tmp_path, monkeypatch):
    copy = tmp_path / place
    copy.mkdir(parents=True)
    if "ray" in place:
        (copy / "pyproject.toml").touch()
    monkeypatch.setattr(outputs, "__file__", str(copy / "pipelines" / "storage" / "outputs.py"))
    with pytest.raises(ValueError, match="temporary or installed copy") as caught:
        output_root(None)
    one_line(str(caught.value), RULE, str(copy), "give --out DIR or set INDM_RUNS")
    assert output_root(str(tmp_path / "out")) == tmp_path / "out"
    assert not (copy / "runs").exists()


def copy_of_the_clone(place: Path) -> Path:
    """What `file_mounts` brings to ~/indm: the tree without what git ignores."""
    left_out = shutil.ignore_patterns("__pycache__")
    for name in ("indm_core", "pipelines", "tune"):
        shutil.copytree(ROOT / name, place / name, ignore=left_out)
    shutil.copy(ROOT / "pyproject.toml", place)
    return place


def start(script: Path, cwd: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, str(script), *words]
    kept = {name: value for name, value in environment().items() if name != "PYTHONPATH"} | variables
    return subprocess.run(program, cwd=cwd, env=kept, capture_output=True, text=True, timeout=240)


def test_a_script_copied_alone_finds_the_package_and_its_clone(tmp_path):
    """`ray submit` copies train.py to the head's home; ~/indm is installed there (PYTHONPATH stands for that)."""
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    home.mkdir()
    elsewhere.mkdir()
    clone = copy_of_the_clone(home / "indm")
    shutil.copy(ROOT / "pipelines" / "train.py", home / "train.py")
    words = ["toy2d_spiral", *TINY_2D, "--local", "--threads", "1"]
    fonts = str(tmp_path / "fonts")  # which matplotlib lists below HOME otherwise
    variables = {"HOME": str(home), "MPLCONFIGDIR": fonts, "PYTHONPATH": str(clone)}
    done = start(home / "train.py", elsewhere, *words, **variables)
    assert done.returncode == 0, done.stderr
    assert (clone / "runs" / "toy2d_spiral" / "model.safetensors").is_file()
    assert list((clone / "runs" / "data").glob("toy2d-spiral*/card.json"))
    assert sorted(os.listdir(home)) == ["indm", "train.py"]
    assert not list(elsewhere.iterdir())
    fonts = str(tmp_path / "fonts")  # which matplotlib lists below HOME otherwise
    variables = {"HOME": str(home), "MPLCONFIGDIR": fonts, "PYTHONPATH": str(clone)}
    done = start(home / "train.py", elsewhere, *words, **variables)
    assert "complete, 6 steps" in done.stdout


def test_a_job_in_a_temporary_working_directory_is_refused(tmp_path):
    """`ray job submit --working-dir .` runs a copy that is removed with the job."""
    copy = copy_of_the_clone(tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_0123")
    words = ["toy2d_spiral", *TINY_2D, "--local"]
    done = start(copy / "pipelines" / "train.py", copy, *words)
    assert done.returncode == 2
    one_line(done.stderr, f"error: {RULE}", "give --out DIR or set INDM_RUNS")
    assert not (copy / "runs").exists()
