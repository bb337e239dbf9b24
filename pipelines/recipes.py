"""Recipes: one function per run. The name of a recipe is the name of its function.

Adding a recipe is adding a function here and its name to `RECIPES`; a variant of one is `dataclasses.replace(base(), ...)`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from indm_core.training import AdamW
from pipelines.config import Data, Dense, INDMConfig, NoFlow, ResidualFlow, RunConfig, Train, UNetConfig

__all__ = ["BASELINES", "DEFAULT", "RECIPES"]

_DIGITS_UNET = UNetConfig(nf=24, ch_mult=(1, 2), num_res_blocks=1, attention=(), dropout=0.0, time="log-snr")


def digits_vp_nll() -> RunConfig:
    """INDM (VP, likelihood weighting) on scikit-learn's 8x8 digits: minutes on two cores."""
    return RunConfig(
        recipe="digits_vp_nll",
        data=Data(source="digits"),
        model=INDMConfig(
            flow=ResidualFlow(blocks=(4,), width=32, constraint="spectral", actnorm="pixel"),
            backbone=_DIGITS_UNET,
            pretrain_steps=300,
        ),
        train=Train(
            steps=1200,
            batch_size=128,
            optimisers={"score": AdamW(lr=1e-3), "flow": AdamW(lr=1e-3)},
            ema_decay=0.995,
            log_every=25,
            checkpoint_every=200,
            sample_every=400,
        ),
    )


def digits_linear_nll() -> RunConfig:
    """The linear diffusion that digits_vp_nll generalises: the same score network, budget and data."""
    return replace(digits_vp_nll(), recipe="digits_linear_nll", model=INDMConfig(flow=NoFlow(), backbone=_DIGITS_UNET))


def toy2d_spiral() -> RunConfig:
    """INDM on a generated spiral."""
    return _toy2d("spiral")


def toy2d_eight_gaussians() -> RunConfig:
    """INDM on eight Gaussians."""
    return _toy2d("eight_gaussians")


def toy2d_checkerboard() -> RunConfig:
    """INDM on a checkerboard."""
    return _toy2d("checkerboard")


def toy2d_rings() -> RunConfig:
    """INDM on concentric rings."""
    return _toy2d("rings")


def toy2d_moons() -> RunConfig:
    """INDM on two moons."""
    return _toy2d("moons")


def _toy2d(name: str) -> RunConfig:
    return RunConfig(
        recipe=f"toy2d_{name}",
        data=Data(source=f"toy2d:{name}"),
        model=INDMConfig(
            flow=ResidualFlow(blocks=(8,), width=64, constraint="spectral"),
            backbone=Dense(width=128, depth=3),
            pretrain_steps=500,
        ),
        train=Train(
            steps=3000,
            batch_size=500,
            optimisers={"score": AdamW(lr=1e-3), "flow": AdamW(lr=1e-3)},
            ema_decay=0.995,
            log_every=100,
            checkpoint_every=1000,
            sample_every=1000,
        ),
    )


def mnist_vp_nll() -> RunConfig:
    """INDM on MNIST; give the directory of its IDX files as --source."""
    return RunConfig(
        recipe="mnist_vp_nll",
        data=Data(source=""),
        model=INDMConfig(
            flow=ResidualFlow(blocks=(8, 8), width=128, constraint="spectral"),
            backbone=UNetConfig(nf=64, ch_mult=(1, 2, 2), num_res_blocks=2, attention=(14,)),
            pretrain_steps=20_000,
        ),
        train=Train(steps=100_000, log_every=100, checkpoint_every=2000, sample_every=5000),
    )


def cifar10_vp_nll() -> RunConfig:
    """The paper's INDM (VP, NLL) on CIFAR-10 at the paper's sizes: days on a GPU; --source is its directory."""
    return RunConfig(
        recipe="cifar10_vp_nll",
        data=Data(source="", flip=True),
        model=INDMConfig(flow=ResidualFlow(), backbone=UNetConfig(), pretrain_steps=500_000),
        train=Train(
            steps=1_000_000,
            ema_ramp=False,
            precision="fp32",
            log_every=100,
            checkpoint_every=5000,
            sample_every=25_000,
        ),
    )


def cifar10_vp_tiny() -> RunConfig:
    """cifar10_vp_nll with small networks: a smoke test for a CPU."""
    base = cifar10_vp_nll()
    return replace(
        base,
        recipe="cifar10_vp_tiny",
        model=INDMConfig(
            flow=ResidualFlow(blocks=(1, 1), width=16),
            backbone=UNetConfig(nf=16, ch_mult=(1, 2, 2), num_res_blocks=1, attention=(8,)),
            pretrain_steps=20,
        ),
        train=Train(steps=50, batch_size=32, log_every=10, checkpoint_every=25, sample_every=0),
    )


RECIPES: dict[str, Callable[[], RunConfig]] = {
    recipe.__name__: recipe
    for recipe in (
        digits_vp_nll,
        digits_linear_nll,
        toy2d_spiral,
        toy2d_eight_gaussians,
        toy2d_checkerboard,
        toy2d_rings,
        toy2d_moons,
        mnist_vp_nll,
        cifar10_vp_nll,
        cifar10_vp_tiny,
    )
}
DEFAULT = "digits_vp_nll"
BASELINES = {"digits_vp_nll": "digits_linear_nll"}
"""What the main job trains beside its recipe."""
