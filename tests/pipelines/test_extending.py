"""docs/extending.md: every block of code runs, the checks pass, and the commands train and sample."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ray_session import ROOT, environment, run_script

from pipelines.data.source import Options
from pipelines.evaluation.measurements.distances import SampleBatch
from pipelines.evaluation.settings import Settings

PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's files, each made of the blocks that begin with its name."""
    place = tmp_path_factory.mktemp("page")
    blocks = re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE, flags=re.DOTALL)
    for file, text in blocks:
        with (place / file).open("a", encoding="utf-8") as stream:
            stream.write(text)
    assert sorted({file for file, _ in blocks}) == [
        "check.py",
        "mean.py",
        "mine.py",
        "sampler.py",
        "trainable.py",
        "tsv.py",
    ]
    return place


@pytest.mark.parametrize("file", ["check.py", "sampler.py", "trainable.py"])
def test_the_blocks_of_the_page_run(folder, file):
    done = subprocess.run(
        [sys.executable, str(folder / file)], env=environment(), cwd=folder, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_recipe_of_the_page_trains_and_its_run_is_read(folder):
    mine, out = ("--import", str(folder / "mine.py")), folder / "runs"
    tiny = ("--steps", "6", "--pretrain-steps", "3", "--rows", "200", "--batch-size", "16", "--sample-every", "0")
    done = run_script("train", "spiral_ou", *mine, "--local", "--threads", "1", "--out", str(out), *tiny)
    assert done.returncode == 0, done.stderr
    words = (str(out / "spiral_ou"), "--num-samples", "4", "--out", str(out / "samples"))
    done = run_script("sample", *words, *mine)
    assert done.returncode == 0, done.stderr
    refused = run_script("sample", *words)
    assert refused.returncode == 2
    assert "mine.py" in refused.stderr


def test_the_reader_of_the_page_reads_its_format_alone(folder):
    read = runpy.run_path(str(folder / "tsv.py"))["read_tsv"]
    file = folder / "table.tsv"
    file.write_text("1\t2\n3\t4\n5\t6.5\n", encoding="utf-8")
    source = read(str(file), Options())
    (chunk,) = source.splits["train"].chunks()
    assert (source.shape, source.splits["train"].count) == ((2,), 3)
    assert chunk.x.tolist() == [[1, 2], [3, 4], [5, 6.5]]
    assert read(str(folder / "mine.py"), Options()) is None


def test_the_metric_of_the_page_measures_the_samples_of_the_distances(folder):
    train = torch.tensor([[0.0, 1.0], [2.0, 3.0]])
    known = SimpleNamespace(found=None)
    settings = Settings(samples=3)
    plan = SimpleNamespace(
        settings=settings,
        sampling=lambda model: settings.sampling,
        train=train,
        labelled=lambda model: False,
        spans=lambda of, size: [],
        statistics=known,
    )
    metric = runpy.run_path(str(folder / "mean.py"))["MeanError"](plan, 0)
    made = SampleBatch(torch.zeros(2, 1), torch.zeros(2, 0), torch.tensor([[1.0, 5.0], [1.0, 5.0]]), 1.0, 0.0, 0)
    result = metric.reduce(dict.fromkeys(metric.tasks(), made))
    assert result.rms == pytest.approx((3.0**2 / 2) ** 0.5)
    assert result.metrics() == {"mean_error": result.rms}
