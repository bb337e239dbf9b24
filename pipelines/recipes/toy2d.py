"""Generated sets of points on the plane: seconds to minutes on one core."""

from __future__ import annotations

from dataclasses import replace

from indm_core.model import Objective
from pipelines.config.flows import GlowConfig, ResFlowConfig
from pipelines.config.models import DiffFlowConfig, DiNofConfig, FFJORDConfig, INDMConfig
from pipelines.config.networks import MLPConfig
from pipelines.config.run import Data, RunConfig, Train
from pipelines.data.source import Options
from pipelines.recipes.common import Recipe, adam, adamw, by_name, linear, named

__all__ = ["TOY2D"]

MODEL = INDMConfig(
    flow=ResFlowConfig(blocks=(8,), width=64, constraint="spectral"),
    backbone=MLPConfig(width=128, depth=3),
    objective=Objective(pretrain_steps=500),
)
TRAIN = Train(
    steps=3000,
    batch_size=500,
    optimisers=adamw(1e-3, "score", "flow"),
    ema_decay=0.995,
    log_every=100,
    checkpoint_every=1000,
    sample_every=1000,
)
INDM_SHAPES = {
    "spiral": "a generated spiral",
    "eight_gaussians": "eight Gaussians",
    "checkerboard": "a checkerboard",
    "rings": "concentric rings",
    "moons": "two moons",
}
DIFFFLOW_SHAPES = ("spiral", "checkerboard", "rings", "olympic_rings", "fractal_tree", "sierpinski")


def _indm(shape: str) -> RunConfig:
    return RunConfig(recipe=f"toy2d_{shape}", data=Data(source=f"toy2d:{shape}"), model=MODEL, train=TRAIN)


def toy2d_linear() -> RunConfig:
    """The linear diffusion that the toy2d recipes generalise, with the same score network; --source toy2d:NAME."""
    return replace(_indm("spiral"), recipe="toy2d_linear", model=linear(MODEL))


def toy2d_dinof() -> RunConfig:
    """DiNof on a generated spiral; --source toy2d:NAME takes another shape."""
    model = DiNofConfig(prior=GlowConfig(levels=1, depth=6, hidden=48), backbone=MODEL.backbone)
    train = replace(TRAIN, optimisers=adamw(1e-3, "score", "prior", "flow"))
    return replace(_indm("spiral"), recipe="toy2d_dinof", model=model, train=train)


def _diffflow(shape: str) -> RunConfig:
    """The thesis's settings: 500,000 points, batches of 5,000, 90,000 parameters, g = 0.2, T = 0.05, N = 30, Adam.

    Departures: residual blocks instead of three layers of 128, N = 30 is reached progressively, Adam's rate is 3e-3, as
    residual blocks are unstable at its 1e-2, and gradients are clipped.
    """
    network = MLPConfig(width=66, depth=2, time="scaled")
    stages, changes = (5, 10, 20, 30), (750, 1500, 2250)
    return replace(
        _indm(shape),
        data=Data(source=f"toy2d:{shape}", options=Options(rows=500_000)),
        model=DiffFlowConfig(drift=network, score=network, g=0.2, t_max=0.05, num_steps=stages, change_at=changes),
        train=replace(
            TRAIN, batch_size=5000, optimisers=adam(3e-3, "drift", "score"), log_every=50, checkpoint_every=500
        ),
    )


def _ffjord(shape: str) -> RunConfig:
    """The baseline of the thesis's figures: as many parameters as the DiffFlow recipes' two networks."""
    network = MLPConfig(width=94, depth=2, time="slow")
    train = replace(TRAIN, optimisers=adam(1e-3, "drift"), log_every=50)
    return replace(_indm(shape), model=FFJORDConfig(drift=network), train=train)


def _indm_recipe(shape: str) -> Recipe:
    return named(f"toy2d_{shape}", f"INDM on {INDM_SHAPES[shape]}.", lambda: _indm(shape))


def _diffflow_recipe(shape: str) -> Recipe:
    text = f"DiffFlow on the generated set toy2d:{shape}, with the thesis's batch and grid."
    return named(f"toy2d_{shape}_diffflow", text, lambda: _diffflow(shape))


def _ffjord_recipe(shape: str) -> Recipe:
    text = f"FFJORD, DiffFlow without noise, on the generated set toy2d:{shape}."
    return named(f"toy2d_{shape}_ffjord", text, lambda: _ffjord(shape))


TOY2D = by_name(
    toy2d_linear,
    *map(_indm_recipe, INDM_SHAPES),
    toy2d_dinof,
    *map(_diffflow_recipe, DIFFFLOW_SHAPES),
    *map(_ffjord_recipe, DIFFFLOW_SHAPES),
)
