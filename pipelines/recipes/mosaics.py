"""Pieces of mosaics of digits and of random fields, whose long-range truth is known: models for collages
(`sample.py --collage`)."""

from __future__ import annotations

from dataclasses import replace

from indm_core.model import Objective
from indm_core.sde import VP
from pipelines.config.flows import IdentityConfig, ResFlowConfig
from pipelines.config.models import INDMConfig
from pipelines.config.networks import UNetConfig
from pipelines.config.run import Data, RunConfig, Train
from pipelines.data.source import Options
from pipelines.recipes.common import adamw, by_name

__all__ = ["MOSAICS"]

UNET = UNetConfig(nf=24, ch_mult=(1, 2, 2), num_res_blocks=1, attention=(12, 8), dropout=0.0, time="log-snr")
CELLS = Objective(mode="fid", smallest_window=(8, 8), window_step=8)
"""Windows are whole cells, as what neighbouring pieces share is."""
DIFFUSION = VP(t_min=1e-3)
"""Below 1e-3 the noise is a tenth of a level; with more of the times above it the rule is learned sooner."""
LINEAR = INDMConfig(flow=IdentityConfig(), backbone=UNET, objective=CELLS, sde=DIFFUSION)
FLOW = ResFlowConfig(blocks=(6,), width=32, constraint="torus", actnorm="channel")
"""One map at every size, and invertible there."""
TRAIN = Train(
    steps=4000,
    batch_size=64,
    optimisers=adamw(1e-3, "score", "flow", decay="cosine"),
    ema_decay=0.998,
    log_every=100,
    checkpoint_every=500,
    sample_every=1000,
    validate_every=1000,
)
UNLABELLED = Options(labels="ignore")


def strips_linear() -> RunConfig:
    """Three digits in a row that follow a rule, for collages of any length: a linear diffusion, 40 minutes on one core."""
    data = Data(source="mosaic:digits:1x3", options=UNLABELLED)
    return RunConfig(recipe="strips_linear", data=data, model=LINEAR, train=TRAIN)


def strips_indm() -> RunConfig:
    """strips_linear with a flow that is one map at every size: collages are made in its latent."""
    objective = replace(CELLS, mode="nll", pretrain_steps=600)
    model = replace(LINEAR, flow=FLOW, objective=objective)
    return replace(strips_linear(), recipe="strips_indm", model=model)


def strips_conditional() -> RunConfig:
    """strips_linear with the class of the first digit as label, for a class of each piece."""
    data = Data(source="mosaic:digits:1x3")
    model = replace(LINEAR, conditional=True)
    return replace(strips_linear(), recipe="strips_conditional", data=data, model=model)


def sequences_conditional() -> RunConfig:
    """strips_conditional on sequences (c, l), columns of strips, or those of your file (--source); 7 minutes on one core."""
    data = Data(source="mosaic:digits:1x3", options=Options(as_sequences=True))
    network = replace(UNET, nf=48, attention=(12,))
    model = replace(LINEAR, backbone=network, objective=replace(CELLS, smallest_window=(8,)), conditional=True)
    train = replace(TRAIN, steps=2000)
    return replace(strips_linear(), recipe="sequences_conditional", data=data, model=model, train=train)


def squares_linear() -> RunConfig:
    """Two by two digits that follow a rule, for grids of any height and width: a linear diffusion."""
    data = Data(source="mosaic:digits:2x2", options=UNLABELLED)
    return replace(strips_linear(), recipe="squares_linear", data=data)


def field_linear() -> RunConfig:
    """Twice as wide as high pieces of a random field, for chains, loops and cubes: a linear diffusion."""
    return _of_field("field_linear", "field:4:8x16", (8, 4))


def field_squares() -> RunConfig:
    """Square pieces of a random field, for grids: a linear diffusion."""
    return _of_field("field_squares", "field:4:16x16", (4, 4))


def field_conditional() -> RunConfig:
    """field_squares of two correlation lengths, rough and smooth, which are labels: for a map of classes on a canvas."""
    recipe = _of_field("field_conditional", "field:0.5,6:16x16", (4, 4))
    return replace(recipe, model=replace(recipe.model, conditional=True))


def _of_field(name: str, source: str, smallest: tuple[int, ...]) -> RunConfig:
    objective = replace(CELLS, smallest_window=smallest, window_step=4)
    data = Data(source=source, options=Options(low=-4.0, high=4.0))
    return replace(strips_linear(), recipe=name, data=data, model=replace(LINEAR, objective=objective))


MOSAICS = by_name(
    strips_linear,
    strips_indm,
    strips_conditional,
    sequences_conditional,
    squares_linear,
    field_linear,
    field_squares,
    field_conditional,
)
