"""Recipes of DiNof and DiffFlow: one function per run, as in recipes.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from indm_core.sde import VE, VP, LinearSDE, SubVP
from indm_core.training import AdamW
from pipelines.config.models import (
    DiffFlowConfig,
    DiNofConfig,
    GlowConfig,
    MLPConfig,
    UNetConfig,
)
from pipelines.config.run import Data, RunConfig, Train
from pipelines.data.source import Options

__all__ = ["NONLINEAR"]

_DIGITS_UNET = UNetConfig(nf=24, ch_mult=(1, 2), num_res_blocks=1, attention=(), dropout=0.0, time="log-snr")
_HALF_UNET = UNetConfig(nf=16, ch_mult=(1, 2), num_res_blocks=1, attention=(), dropout=0.0)
_NCSN = UNetConfig(family="ncsn++", time="log-sigma")
_SHAPES = ("spiral", "checkerboard", "rings", "olympic_rings", "fractal_tree", "sierpinski")


def _optimisers(lr: float, *names: str) -> dict[str, AdamW]:
    return {name: AdamW(lr=lr) for name in names}


def _adam(lr: float, *names: str, warmup: int = 0) -> dict[str, AdamW]:
    """As these papers train: Adam, without weight decay."""
    return {name: AdamW(lr=lr, beta_2=0.999, weight_decay=0.0, warmup=warmup) for name in names}


def digits_dinof() -> RunConfig:
    """DiNof (VP) on scikit-learn's digits: minutes on two cores."""
    return RunConfig(
        recipe="digits_dinof",
        data=Data(source="digits"),
        model=DiNofConfig(prior=GlowConfig(levels=2, depth=4, hidden=48), backbone=_DIGITS_UNET),
        train=Train(
            steps=1200,
            batch_size=128,
            optimisers=_optimisers(1e-3, "score", "prior", "flow"),
            ema_decay=0.995,
            log_every=25,
            checkpoint_every=200,
            sample_every=400,
        ),
    )


def toy2d_dinof() -> RunConfig:
    """DiNof on a generated spiral; --source toy2d:NAME takes another shape."""
    return replace(
        digits_dinof(),
        recipe="toy2d_dinof",
        data=Data(source="toy2d:spiral"),
        model=DiNofConfig(prior=GlowConfig(levels=1, depth=6, hidden=48), backbone=MLPConfig(width=128, depth=3)),
        train=Train(
            steps=3000,
            batch_size=500,
            optimisers=_optimisers(1e-3, "score", "prior", "flow"),
            ema_decay=0.995,
            log_every=100,
            checkpoint_every=1000,
            sample_every=1000,
        ),
    )


def mnist_dinof() -> RunConfig:
    """DiNof on MNIST (two levels: 28 = 4 x 7); --source is the directory of the IDX files."""
    return RunConfig(
        recipe="mnist_dinof",
        data=Data(source=""),
        model=DiNofConfig(
            prior=GlowConfig(levels=2, depth=16, hidden=256),
            backbone=UNetConfig(nf=64, ch_mult=(1, 2, 2), num_res_blocks=2, attention=(14,)),
        ),
        train=Train(
            steps=100_000,
            optimisers=_adam(2e-4, "score", "prior", "flow", warmup=5000),
            log_every=100,
            checkpoint_every=2000,
            sample_every=5000,
        ),
    )


def cifar10_dinof_ve() -> RunConfig:
    """DiNof (VE, NCSN++) on CIFAR-10 at the paper's sizes; --source is its directory."""
    return _cifar10("cifar10_dinof_ve", VE(sigma_max=50.0), _NCSN, ema_decay=0.999, low=0.0)


def cifar10_dinof_ve_deep() -> RunConfig:
    """cifar10_dinof_ve with eight residual blocks per level."""
    deep = replace(_NCSN, num_res_blocks=8)
    return _cifar10("cifar10_dinof_ve_deep", VE(sigma_max=50.0), deep, ema_decay=0.999, low=0.0)


def cifar10_dinof_vp() -> RunConfig:
    """DiNof (VP, DDPM++) on CIFAR-10 at the paper's sizes; --source is its directory."""
    return _cifar10("cifar10_dinof_vp", VP(), UNetConfig(), ema_decay=0.9999)


def cifar10_dinof_subvp() -> RunConfig:
    """DiNof (sub-VP, DDPM++) on CIFAR-10 at the paper's sizes; --source is its directory."""
    return _cifar10("cifar10_dinof_subvp", SubVP(), UNetConfig(), ema_decay=0.9999)


def _cifar10(name: str, sde: LinearSDE, backbone: UNetConfig, *, ema_decay: float, low: float = -1.0) -> RunConfig:
    """L = 3, K = 16, 256 hidden channels, T_m = 0.6; 1.3 million steps of 128 images in [low, 1], 5,000 of them warm-up; EMA as
    that of the score's paper. A departure: the gradients of score and prior are clipped apart."""
    return RunConfig(
        recipe=name,
        data=Data(source="", options=Options(low=low), flip=True),
        model=DiNofConfig(sde=sde, t_m=0.6, prior=GlowConfig(levels=3, depth=16, hidden=256), backbone=backbone),
        train=Train(
            steps=1_300_000,
            batch_size=128,
            optimisers=_adam(2e-4, "score", "prior", "flow", warmup=5000),
            ema_decay=ema_decay,
            ema_ramp=False,
            log_every=100,
            checkpoint_every=5000,
            sample_every=50_000,
        ),
    )


def _toy2d_diffflow(shape: str) -> Callable[[], RunConfig]:
    """The thesis's settings: 500,000 points, batches of 5,000, 90,000 parameters, g = 0.2, T = 0.05, N = 30, Adam.

    Departures: residual blocks instead of three layers of 128, N = 30 is reached progressively, Adam's rate is 3e-3, as
    residual blocks are unstable at its 1e-2, and gradients are clipped.
    """

    def recipe() -> RunConfig:
        network = MLPConfig(width=66, depth=2, time="scaled")
        return RunConfig(
            recipe=recipe.__name__,
            data=Data(source=f"toy2d:{shape}", options=Options(rows=500_000)),
            model=DiffFlowConfig(
                drift=network, score=network, g=0.2, t_max=0.05, num_steps=(5, 10, 20, 30), change_at=(750, 1500, 2250)
            ),
            train=Train(
                steps=3000,
                batch_size=5000,
                optimisers=_adam(3e-3, "drift", "score"),
                ema_decay=0.995,
                log_every=50,
                checkpoint_every=500,
                sample_every=1000,
            ),
        )

    recipe.__name__ = f"toy2d_{shape}_diffflow"
    recipe.__doc__ = f"DiffFlow on the generated set toy2d:{shape}, with the thesis's batch and grid."
    return recipe


def _table_diffflow(table: str, *, width: int, batch_size: int) -> Callable[[], RunConfig]:
    """A published table; the thesis does not print its settings for them, so that these are ours."""

    def recipe() -> RunConfig:
        network = MLPConfig(width=width, depth=3, time="scaled")
        return RunConfig(
            recipe=recipe.__name__,
            data=Data(source="", options=Options(table=table)),
            model=DiffFlowConfig(
                drift=network,
                score=network,
                g=0.2,
                t_max=0.1,
                num_steps=(5, 10, 20, 30),
                change_at=(5000, 10_000, 15_000),
            ),
            train=Train(
                steps=30_000,
                batch_size=batch_size,
                optimisers=_optimisers(1e-3, "drift", "score"),
                ema_decay=0.999,
                log_every=100,
                checkpoint_every=1000,
                sample_every=0,
            ),
        )

    recipe.__name__ = f"{table}_diffflow"
    recipe.__doc__ = (
        f"DiffFlow on the published table {table.upper()}; --source is its file (see pipelines/read_tables.py)."
    )
    return recipe


def tabular_diffflow() -> RunConfig:
    """DiffFlow on a table of vectors; --source is a .csv, .npy, .npz or .h5 file, or sklearn:NAME.

    Small networks and few steps: the bundled sets have 120 to 450 training rows, which larger ones learn by heart.
    """
    network = MLPConfig(width=32, depth=1, time="scaled")
    return RunConfig(
        recipe="tabular_diffflow",
        data=Data(source="sklearn:wine"),
        model=DiffFlowConfig(
            drift=network, score=network, g=1.0, t_max=0.5, num_steps=(5, 10, 20), change_at=(200, 400)
        ),
        train=Train(
            steps=600,
            batch_size=100,
            optimisers=_optimisers(1e-3, "drift", "score"),
            ema_decay=0.99,
            log_every=50,
            checkpoint_every=200,
            sample_every=0,
        ),
    )


def digits_diffflow() -> RunConfig:
    """DiffFlow on scikit-learn's digits, N = 5 to 100: half an hour on one core."""
    return RunConfig(
        recipe="digits_diffflow",
        data=Data(source="digits"),
        model=DiffFlowConfig(
            drift=_HALF_UNET, score=_HALF_UNET, num_steps=(5, 10, 20, 50, 100), change_at=(400, 550, 640, 690)
        ),
        train=Train(
            steps=710,
            batch_size=64,
            optimisers=_optimisers(1e-3, "drift", "score"),
            ema_decay=0.99,
            log_every=25,
            checkpoint_every=100,
            sample_every=200,
        ),
    )


def mnist_diffflow() -> RunConfig:
    """DiffFlow on MNIST with the thesis's g = 1, T = 0.05 and N = 5, 10, 20, 30; --source is the directory of the IDX files."""
    network = UNetConfig(nf=64, ch_mult=(1, 2, 2), num_res_blocks=2, attention=(14,), dropout=0.0)
    return RunConfig(
        recipe="mnist_diffflow",
        data=Data(source=""),
        model=DiffFlowConfig(
            drift=network, score=network, num_steps=(5, 10, 20, 30), change_at=(10_000, 20_000, 30_000)
        ),
        train=Train(
            steps=40_000,
            optimisers=_adam(2e-4, "drift", "score"),
            log_every=100,
            checkpoint_every=1000,
            sample_every=5000,
        ),
    )


def cifar10_diffflow() -> RunConfig:
    """DiffFlow on CIFAR-10 with the thesis's settings: N up to 100, half-size DDPM U-Nets; --source is its directory."""
    network = UNetConfig(nf=88, ch_mult=(1, 2, 2, 2), num_res_blocks=2, attention=(16,), dropout=0.0)
    return RunConfig(
        recipe="cifar10_diffflow",
        data=Data(source="", flip=True),
        model=DiffFlowConfig(
            drift=network,
            score=network,
            num_steps=(5, 10, 20, 30, 50, 75, 100),
            change_at=(20_000, 40_000, 60_000, 80_000, 100_000, 120_000),
        ),
        train=Train(
            steps=150_000,
            optimisers=_adam(2e-4, "drift", "score"),
            log_every=100,
            checkpoint_every=1000,
            sample_every=10_000,
        ),
    )


NONLINEAR: dict[str, Callable[[], RunConfig]] = {
    recipe.__name__: recipe
    for recipe in (
        digits_dinof,
        toy2d_dinof,
        mnist_dinof,
        cifar10_dinof_ve,
        cifar10_dinof_ve_deep,
        cifar10_dinof_vp,
        cifar10_dinof_subvp,
        *map(_toy2d_diffflow, _SHAPES),
        tabular_diffflow,
        _table_diffflow("power", width=256, batch_size=5000),
        _table_diffflow("gas", width=256, batch_size=5000),
        _table_diffflow("hepmass", width=512, batch_size=2000),
        _table_diffflow("miniboone", width=256, batch_size=1000),
        _table_diffflow("bsds300", width=512, batch_size=5000),
        digits_diffflow,
        mnist_diffflow,
        cifar10_diffflow,
    )
}
