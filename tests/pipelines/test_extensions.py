"""--import: modules of the user's own before the command line is read, by their paths or by entry points of packages."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from ray_session import TINY_2D, main_of, one_line, run_script
from test_own_recipes import MINE

from pipelines.config import load
from pipelines.config.modules import GROUP, VARIABLE, use

READS = '''
from pipelines.data.readers import Reader
from pipelines.data.source import vectors


def read_pairs(source, options):
    """Two numbers a line, with a slash between them."""
    if not source.endswith(".pairs"):
        return None
    rows = [[float(part) for part in line.split("/")] for line in open(source)]
    return vectors({"train": (np.array(rows), source)})


PAIRS = Reader(read_pairs, ".pairs")


def in_halves() -> RunConfig:
    """A recipe that says what it returns."""
    return mine()
'''
HEAD = "import numpy as np\nfrom pipelines.config.run import RunConfig\n"


@pytest.fixture(autouse=True)
def _trusting_nobody(monkeypatch):
    monkeypatch.setenv(VARIABLE, "")


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    """A folder of the import path with a package that names a module of its own by an entry point, and data for its reader."""
    place = tmp_path_factory.mktemp("site")
    (place / "of_a_package").mkdir()
    (place / "of_a_package" / "__init__.py").write_text("")
    own = MINE.replace("Halved", "Lowered").replace("Stretch", "Enlarge")  # a class has one definition in a process
    (place / "of_a_package" / "diffusions.py").write_text(own.replace("import os\n", f"import os\n{HEAD}", 1) + READS)
    (place / "of_a_package" / "broken.py").write_text("import nothing_of_that_name\n")
    info = place / "of_a_package-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: of_a_package\nVersion: 1\n")
    points = (
        "halves = of_a_package.diffusions\nbroken = of_a_package.broken\nno_module = of_a_package.diffusions:mine\n"
    )
    (info / "entry_points.txt").write_text(f"[{GROUP}]\n{points}")
    (place / "table.pairs").write_text("".join(f"{i % 7 / 7}/{i % 5 / 5}\n" for i in range(200)))
    return place


def here(package: Path, *words: str, script: str = "train"):
    return run_script(script, *words, PYTHONPATH=f"{Path(__file__).resolve().parents[2]}:{package}", INDM_MODULES="")


def test_an_installed_extension_trains_on_its_own_format_and_is_read_by_its_name(package):
    words = ("in_halves", "--source", str(package / "table.pairs"), *TINY_2D[:2], *TINY_2D[6:8], "--sample-every", "0")
    where = ("--local", "--threads", "1", "--out", str(package / "runs"), "--steps", "6", "--pretrain-steps", "3")
    done = here(package, *words, *where, "--import", "halves")
    assert done.returncode == 0, done.stderr
    assert f"report: python pipelines/report.py {package / 'runs' / 'in_halves'} --import halves" in done.stdout
    run, file = package / "runs" / "in_halves", package / "of_a_package" / "diffusions.py"
    (kept,) = json.loads((run / "config.json").read_text())["modules"]
    assert (kept["import"], kept["file"]) == ("halves", str(file))
    draw = (str(run), "--num-samples", "3", "--out", str(package / "samples"), "--rtol", "0.1", "--atol", "0.1")
    one_line(here(package, *draw, script="sample").stderr, "unknown class 'Lowered'", "--import halves", str(file))
    assert here(package, *draw, "--import", "halves", script="sample").returncode == 0
    shown = here(package, "in_halves", "--import", "halves", "--help").stdout
    for part in ("of halves: in_halves", "--share 0.5", "--factor 1.0"):
        assert part in shown, part


@pytest.mark.parametrize(
    ("word", "parts"),
    [
        ("halfs", ["--import halfs", "did you mean halves?"]),
        (
            "broken",
            [
                "--import broken (of_a_package.broken): ModuleNotFoundError",
                "nothing_of_that_name",
                "correct the package",
            ],
        ),
        ("no_module", ["--import no_module", "of_a_package.diffusions:mine is no module"]),
    ],
)
def test_an_extension_that_cannot_be_had_is_refused_in_one_line(word, parts, package, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(package))
    assert main_of("train")(["--import", word]) == 2
    one_line(capsys.readouterr().err, "error: ", *parts)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (None, ["mine.py: no such Python file"]),
        ("raise RuntimeError('out of ideas')", ["RuntimeError: out of ideas", "correct"]),
    ],
    ids=["missing", "failing"],
)
@pytest.mark.parametrize("script", ["train", "sample", "prepare", "report"])
def test_a_file_that_cannot_be_imported_is_refused_in_one_line(script, text, parts, tmp_path, capsys):
    if text:
        (tmp_path / "mine.py").write_text(text)
    assert main_of(script)(["anything", "--import", str(tmp_path / "mine.py")]) == 2
    one_line(capsys.readouterr().err, "error: ", *parts)


@pytest.mark.slow
def test_several_files_are_imported_and_one_that_changed_or_moved_is_said(tmp_path, capsys):
    mine, other = tmp_path / "mine.py", tmp_path / "other.py"
    text = MINE.replace("Halved", "Lessened").replace("Stretch", "Widen")  # a class has one definition in a process
    mine.write_text(text)
    other.write_text("from pipelines.config.run import RunConfig\ndef unused() -> RunConfig: ...\n")
    words = ["mine", "--import", str(mine), "--import", str(other), *TINY_2D[:2], *TINY_2D[6:]]
    assert main_of("train")([*words, "--local", "--threads", "1", "--out", str(tmp_path)]) == 0
    run = tmp_path / "mine"
    assert [use(file).word for file in (mine, other)] == [str(mine), str(other)]
    moved = tmp_path / "elsewhere" / "mine.py"
    moved.parent.mkdir()
    shutil.move(mine, moved)
    said = run_script("report", str(run), INDM_MODULES="").stderr
    one_line(said, "unknown class 'Lessened'", f"{mine} is not there any more", "--import")
    moved.write_text(f"{text}\n# another line\n")
    draw = ("--num-samples", "2", "--rtol", "0.1", "--atol", "0.1", "--out", str(tmp_path / "samples"))
    done = run_script("sample", str(run), "--import", str(moved), *draw, INDM_MODULES="")
    assert done.returncode == 0, done.stderr
    assert f"{mine} is not as it was when this was written" in done.stdout
    moved.write_text(text)
    done = run_script("sample", str(run), "--import", str(moved), *draw, INDM_MODULES="")
    assert "is not as it was" not in done.stdout + done.stderr


def test_a_run_of_before_there_were_checksums_names_its_file_alone(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    document = {"version": 1, "modules": [str(tmp_path / "mine.py")], "run": {"type": "RunConfig", "recipe": "mine"}}
    document["run"]["model"] = {"type": "INDMConfig", "sde": {"type": "HalvedOfThen"}}
    (tmp_path / "config.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match="unknown class") as caught:
        load(tmp_path)
    one_line(str(caught.value), f"--import {tmp_path / 'mine.py'}")
