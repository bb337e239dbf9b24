"""Tables of vectors: the published ones of density estimation, and any other."""

from __future__ import annotations

from dataclasses import replace

from pipelines.config.models import DiffFlowConfig
from pipelines.config.networks import MLPConfig
from pipelines.config.run import Data, RunConfig, Train
from pipelines.data.source import Options
from pipelines.recipes.common import Recipe, adamw, by_name, named

__all__ = ["TABLES"]


def tabular_diffflow() -> RunConfig:
    """DiffFlow on a table of vectors; --source is a .csv, .npy, .npz or .h5 file, or sklearn:NAME.

    Small networks and few steps: the bundled sets have 120 to 450 training rows, which larger ones learn by heart.
    """
    network = MLPConfig(width=32, depth=1, time="scaled")
    stages, changes = (5, 10, 20), (200, 400)
    return RunConfig(
        recipe="tabular_diffflow",
        data=Data(source="sklearn:wine"),
        model=DiffFlowConfig(drift=network, score=network, g=1.0, t_max=0.5, num_steps=stages, change_at=changes),
        train=Train(
            steps=600,
            batch_size=100,
            optimisers=adamw(1e-3, "drift", "score"),
            ema_decay=0.99,
            log_every=50,
            checkpoint_every=200,
            sample_every=0,
            validate_every=200,
        ),
    )


def _published(table: str, width: int, batch_size: int) -> RunConfig:
    """A published table; the thesis does not print its settings for them, so that these are ours."""
    network = MLPConfig(width=width, depth=3, time="scaled")
    stages, changes = (5, 10, 20, 30), (5000, 10_000, 15_000)
    base = tabular_diffflow()
    train = replace(
        base.train,
        steps=30_000,
        batch_size=batch_size,
        ema_decay=0.999,
        log_every=100,
        checkpoint_every=1000,
        validate_every=1000,
    )
    return replace(
        base,
        data=Data(source="", options=Options(table=table)),
        model=DiffFlowConfig(drift=network, score=network, g=0.2, t_max=0.1, num_steps=stages, change_at=changes),
        train=train,
    )


def _recipe(table: str, *, width: int, batch_size: int) -> Recipe:
    text = f"DiffFlow on the published table {table.upper()}; --source is its file (see pipelines/data/readers/density.py)."
    return named(f"{table}_diffflow", text, lambda: _published(table, width, batch_size))


TABLES = by_name(
    tabular_diffflow,
    _recipe("power", width=256, batch_size=5000),
    _recipe("gas", width=256, batch_size=5000),
    _recipe("hepmass", width=512, batch_size=2000),
    _recipe("miniboone", width=256, batch_size=1000),
    _recipe("bsds300", width=512, batch_size=5000),
)
