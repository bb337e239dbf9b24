"""Data of one's own: images, vectors or sequences from --source, with networks for their shape (`config.sized`)."""

from __future__ import annotations

from dataclasses import replace

from indm_core.model import Objective
from pipelines.config.run import Data, RunConfig, Train
from pipelines.config.sized import SizedINDMConfig
from pipelines.data.source import Options
from pipelines.recipes.common import adamw, by_name

__all__ = ["OWN"]


def images() -> RunConfig:
    """INDM on your images: --source is a folder or file of them; --size-of-model small, medium or large."""
    return RunConfig(
        recipe="images",
        data=Data(source="", options=Options(fit="common", labels="optional")),
        model=SizedINDMConfig(objective=Objective(pretrain_steps=200)),
        train=Train(
            steps=5000,
            batch_size=64,
            optimisers=adamw(5e-4, "score", decay="cosine") | adamw(1e-3, "flow", decay="cosine"),
            ema_decay=0.999,
            log_every=25,
            checkpoint_every=250,
            sample_every=500,
        ),
    )


def images_linear() -> RunConfig:
    """The linear diffusion that `images` generalises, for --baseline: the same score network, budget and data."""
    return _linear(images(), "images_linear")


def vectors() -> RunConfig:
    """INDM on your table: --source is a .csv, .tsv, .npy, .npz or .h5 file of vectors, standardised by its training rows."""
    base = images()
    return replace(
        base,
        recipe="vectors",
        data=Data(source="", options=Options(standardise=True, labels="optional")),
        model=SizedINDMConfig(objective=Objective(pretrain_steps=0)),
        train=replace(
            base.train, steps=3000, optimisers=adamw(1e-3, "score", "flow", decay="cosine"), sample_every=1000
        ),
    )


def vectors_linear() -> RunConfig:
    """The linear diffusion that `vectors` generalises, for --baseline."""
    return _linear(vectors(), "vectors_linear")


def sequences() -> RunConfig:
    """INDM on your sequences: --source is a .npy or .npz file of floats (n, c, l), standardised channel by channel."""
    options = Options(as_sequences=True, standardise=True, labels="optional")
    return replace(vectors(), recipe="sequences", data=Data(source="", options=options))


def sequences_linear() -> RunConfig:
    """The linear diffusion that `sequences` generalises, for --baseline and for collages."""
    return _linear(sequences(), "sequences_linear")


def _linear(run: RunConfig, name: str) -> RunConfig:
    model = SizedINDMConfig(flow=False, objective=Objective(pretrain_steps=0))
    return replace(run, recipe=name, model=model)


OWN = by_name(images, images_linear, vectors, vectors_linear, sequences, sequences_linear)
