"""The scores of pieces by actors are those of one process, also where an actor dies."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from PIL import Image
from problems import randn
from ray_session import main_of, processes, train

from indm_core.collage import chain, collage
from indm_core.model.labels import null_of
from indm_core.training import network_tensors
from pipelines.config.terminal.cli import override
from pipelines.data.spec import DataSpec
from pipelines.evaluation.plan import Subject
from pipelines.recipes import RECIPES

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("default")]
SPEC = DataSpec(name="digits", shape=(1, 8, 8), levels=17, low=-1.0, high=1.0, num_classes=10)


def subject() -> Subject:
    """A small conditional U-Net whose weights are all random."""
    torch.manual_seed(0)
    run = override(RECIPES["digits_conditional"](), {"nf": "8", "ch_mult": "1"})
    tensors = network_tensors(run.model.build(SPEC))
    return Subject(
        run, SPEC, {name: x + 0.05 * randn(*x.shape, seed=i).to(x) for i, (name, x) in enumerate(tensors.items())}
    )


@pytest.fixture(scope="module")
def spread() -> Iterator:
    import ray

    from pipelines.cluster.session import connect
    from pipelines.evaluation.collages.spread import Spread

    kept = dict(os.environ)
    os.environ.pop("RAY_ADDRESS", None)
    connect(2, 1.0)
    with Spread(subject(), 2, "cpu") as spread:
        yield spread
    ray.shutdown()
    os.environ.clear()
    os.environ |= kept


def check(spread, seed: int) -> None:
    """A guided collage of two shapes by actors against the plain one, with the gradient of a sum of squares."""
    model, graph, t = subject().build(), chain(9, 8, 4), torch.tensor(0.4, dtype=torch.float64)
    y = torch.tensor([0, -1, 3, -1, 2, 1, 9, -1, 4])
    options = {"guidance": 1.5, "null": null_of(y)}
    u = randn(2, 1, 8, 40, 1, seed=seed).float().requires_grad_()
    pairs = []
    for whole in (
        collage(model.score, graph, y, **options),
        collage(spread, graph, y, **options, evaluate=spread.evaluate),
    ):
        score = whole(u, t)
        pairs.append((score.detach(), *torch.autograd.grad(score.square().sum(), u)))
    for plain, got in zip(*pairs, strict=True):
        assert float(plain.abs().mean()) > 0.01
        assert torch.allclose(plain, got, atol=1e-5 * float(plain.abs().max()))


def test_actors_score_as_one_process_does(spread):
    check(spread, 0)
    one, all_t = randn(5, 1, 8, 4, 1).float(), torch.linspace(0.1, 0.9, 5, dtype=torch.float64).reshape(5, 1, 1, 1)
    assert torch.allclose(subject().build().score(one, all_t), spread(one, all_t), atol=1e-5)


def test_an_actor_that_dies_is_replaced(spread):
    """Its chunks go to the others at once; nobody waits for the new one."""
    before = set(spread.pool.actors)
    os.kill(processes("ray::Scorer", os.getpid())[-1], signal.SIGKILL)
    check(spread, 1)
    check(spread, 2)
    assert len(spread.pool.actors) == 2
    assert len(before - set(spread.pool.actors)) == 1


@pytest.mark.slow
def test_canvases_by_actors_are_those_of_one_process(spread, tmp_path):
    options = ("--nf", "8", "--ch-mult", "1", "--steps", "4", "--checkpoint-every", "4", "--sample-every", "0")
    train(
        "digits_linear_nll", *options, "--validate-every", "0", "--pretrain-steps", "0", "--name", "run", out=tmp_path
    )
    drawn = []
    for actors in ("0", "2"):
        words = ("--collage", "chain", "--num-factors", "4", "--steps", "3", "--num-samples", "2", "--actors", actors)
        assert main_of("sample")([str(tmp_path / "run"), *words, "--out", str(tmp_path / actors)]) == 0
        drawn.append(np.stack([np.asarray(Image.open(tmp_path / actors / f"canvas-00000{i}.png")) for i in range(2)]))
    assert drawn[0].shape == (2, 8, 20)
    assert (drawn[0] == drawn[1]).mean() > 0.95  # rounding may put a value into the next level
