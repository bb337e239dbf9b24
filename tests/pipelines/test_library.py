"""The packages as libraries: names, version, what an import touches, and a run's model in a few lines."""

from __future__ import annotations

import pkgutil
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from ray_session import environment, main_of, one_line

import indm_core
import pipelines
from indm_core.draw import draw_by
from indm_core.likelihood import nelbo, nll
from indm_core.sampling import Sampling
from pipelines.config.store import read_run
from pipelines.evaluation.sampling import shown

ROOT = Path(__file__).parents[2]
OLD = Path(__file__).parent / "old_runs"
RUNS = ("indm", "dinof", "diffflow")


def in_a_fresh_interpreter(text: str, *options: str) -> str:
    """What a program prints."""
    done = subprocess.run(
        [sys.executable, *options, "-c", text],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


def test_every_name_is_there_and_every_module_has_one():
    assert set(indm_core.__all__) <= set(dir(indm_core))
    assert set(pipelines.__all__) <= set(dir(pipelines))
    for package in (indm_core, pipelines):
        for name in package.__all__:
            assert getattr(package, name) is not None
    inner = {"shapes", "ranges", "ode", "adjoint", "optimiser", "average", "precision", "automatic", "compiled"}
    assert {module.name for module in pkgutil.iter_modules(indm_core.__path__)} - inner <= set(dir(indm_core))
    with pytest.raises(AttributeError, match="module 'indm_core' has no attribute 'Glwo'"):
        indm_core.Glwo  # noqa: B018


def test_one_version_that_a_clone_without_an_installation_has_too():
    """-S: neither torch nor this project is installed there."""
    text = "import indm_core, pipelines; print(indm_core.__version__, pipelines.__version__)"
    assert in_a_fresh_interpreter(text, "-S") == f"{indm_core.__version__} {indm_core.__version__}"
    assert f'version = "{indm_core.__version__}"' not in (ROOT / "pyproject.toml").read_text()


def test_an_import_leaves_the_process_as_it_was():
    """Its threads, its matplotlib backend, its log, its environment and its warnings."""
    state = (
        "def state(): return (torch.get_num_threads(), torch.get_default_dtype(), matplotlib.rcParams._get('backend'), "
        "logging.root.handlers[:], logging.root.level, dict(os.environ), warnings.filters[:])"
    )
    modules = [
        f"{path.relative_to(ROOT)}".removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for folder in ("indm_core", "pipelines/storage", "pipelines/data", "pipelines/config", "pipelines/recipes")
        for path in sorted((ROOT / folder).rglob("*.py"))
    ]
    text = f"""
import logging, os, sys, warnings
import h5py, matplotlib, numpy, PIL.Image, pyarrow, safetensors, sklearn.datasets, torch
{state}
before = state()
import {", ".join(modules)}, pipelines
pipelines.load, pipelines.from_pretrained
import pipelines.runs.pictures
pipelines.runs.pictures.figure_of(1, 1)
assert state() == before, (before, state())
print([name for name in ("ray", "mlflow", "matplotlib.pyplot") if name in sys.modules])
"""
    assert in_a_fresh_interpreter(text) == "[]"


@pytest.fixture(params=RUNS)
def run(request) -> Path:
    return OLD / request.param


def test_a_model_measures_by_the_functions(run):
    model = pipelines.load(run).double()
    x = 2 * torch.rand(3, *model.shape, generator=torch.Generator().manual_seed(1)).double() - 1
    seeded = torch.Generator().manual_seed
    options = {"rtol": 1e-2, "atol": 1e-2, "num_probes": 2}
    found = model.nll(x, **options, generator=seeded(2))
    assert torch.equal(found, nll(model, x, **options, generator=seeded(2)))
    bound = model.nelbo(x, num_draws=2, generator=seeded(3))
    assert torch.equal(bound, nelbo(model, x, num_draws=2, generator=seeded(3)))
    assert not found.requires_grad
    assert not bound.requires_grad


def test_what_is_no_batch_of_the_data_is_refused(run, unchecked):
    model = pipelines.load(run)
    x = torch.zeros(2, *model.shape)
    for measure in (model.nll, model.nelbo):
        with pytest.raises(ValueError, match=r"x has the shape \(2, 3\), and the model takes batches \(b, "):
            measure(torch.zeros(2, 3))
        with pytest.raises(ValueError, match="levels have no density; dequantise them first"):
            measure(x.to(torch.uint8))


def test_a_sample_has_its_seed_whatever_is_drawn_with_it(run):
    model = pipelines.load(run).double()
    name = "em" if run.name == "diffflow" else "deis"
    x = model.sample(5, sampler=name, nfe=4, seed=3)
    assert x.shape == (5, *model.shape)
    assert x.dtype == torch.float64
    torch.testing.assert_close(model.sample(2, sampler=name, nfe=4, seed=4, batch_size=1), x[1:3])
    torch.testing.assert_close(draw_by(model, range(3, 8), Sampling(sampler=name, nfe=4)).x, x)


@pytest.mark.parametrize(("name", "nfe"), [("deis", 7), ("em", 7), ("pc", 7), ("pc", 8)])
def test_nfe_is_what_a_sample_takes_at_most(name, nfe):
    model = pipelines.load(OLD / "dinof")
    taken = draw_by(model, [0], Sampling.named(name, nfe)).evaluations
    assert taken == {("pc", 8): 7}.get((name, nfe), nfe)


def test_a_sampler_is_named_or_described(run):
    model = pipelines.load(run)
    with pytest.raises(ValueError, match="sampler='dies' is none of auto, ode, em, pc, deis"):
        model.sample(1, sampler="dies")
    if run.name == "diffflow":
        with pytest.raises(ValueError, match=r"sampler=deis needs a linear diffusion, .* take em, pc or ode"):
            model.sample(1)
    for name in ("em", "pc"):
        with pytest.raises(ValueError, match=r"nfe=1: one step takes . evaluations; give more"):
            model.sample(1, sampler=name, nfe=1)
    loose = Sampling(rtol=0.1, atol=0.1)
    torch.testing.assert_close(model.sample(2, sampler=loose), draw_by(model, range(2), loose).x)
    for bad in ({"num": 0}, {"num": 1, "seed": -1}, {"num": 1, "batch_size": 0}):
        with pytest.raises(ValueError, match="must"):
            model.sample(**bad)


def test_the_command_draws_the_same_samples(tmp_path, capsys):
    run = tmp_path / "indm"
    shutil.copytree(OLD / "indm", run)
    words = ["--num-samples", "4", "--seed", "5", "--sampler", "deis", "--nfe", "6", "--out", str(tmp_path / "out")]
    assert main_of("sample")([str(run), *words]) == 0
    capsys.readouterr()
    _, spec = read_run(run / "config.json")
    mine = shown(pipelines.load(run).sample(4, nfe=6, seed=5), spec).values
    drawn = [np.asarray(Image.open(tmp_path / "out" / f"sample-{i:06d}.png")).astype(float) for i in range(4)]
    theirs = np.round(np.stack(drawn) * (spec.levels - 1) / 255)
    assert np.array_equal(mine.numpy().reshape(theirs.shape), theirs)


def test_a_directory_without_a_run_is_one_line(tmp_path):
    with pytest.raises(ValueError) as refused:  # noqa: PT011
        pipelines.load(tmp_path)
    one_line(str(refused.value), "no readable run here", "give the directory of a run")
