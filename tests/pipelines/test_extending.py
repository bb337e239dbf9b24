"""docs/extending.md: every block of code runs, the checks pass, and the commands train and sample."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from ray_session import ROOT, environment, run_script

PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's files, each made of the blocks that begin with its name."""
    place = tmp_path_factory.mktemp("page")
    blocks = re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE, flags=re.DOTALL)
    for file, text in blocks:
        with (place / file).open("a", encoding="utf-8") as stream:
            stream.write(text)
    assert sorted({file for file, _ in blocks}) == ["check.py", "mine.py", "sampler.py", "trainable.py"]
    return place


@pytest.mark.parametrize("file", ["check.py", "sampler.py", "trainable.py"])
def test_the_blocks_of_the_page_run(folder, file):
    done = subprocess.run(
        [sys.executable, str(folder / file)], env=environment(), cwd=folder, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_recipe_of_the_page_trains_and_its_run_is_read(folder):
    recipe, out = f"{folder / 'mine.py'}:spiral_ou", folder / "runs"
    tiny = ("--steps", "6", "--pretrain-steps", "3", "--rows", "200", "--batch-size", "16", "--sample-every", "0")
    done = run_script("train", recipe, "--local", "--threads", "1", "--out", str(out), *tiny)
    assert done.returncode == 0, done.stderr
    words = (str(out / "spiral_ou"), "--num-samples", "4", "--out", str(out / "samples"))
    done = run_script("sample", *words, "--recipe", recipe)
    assert done.returncode == 0, done.stderr
    refused = run_script("sample", *words)
    assert refused.returncode == 2
    assert "mine.py" in refused.stderr
