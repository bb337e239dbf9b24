"""What the recipes train: data, number of parameters, and what a step costs, without the data and without large networks.

A model is built on torch's meta device, where tensors have shapes and no content. Data that come from a path have the shape
that they were published with; a recipe that takes any data has that of the path, and no number is given.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from indm_core.model import GenerativeModel
from pipelines.config.run import RunConfig
from pipelines.data.readers.embedded import embedded
from pipelines.data.spec import DataSpec
from pipelines.recipes.common import Recipe

__all__ = ["HEAD", "Overview"]

CLASSES = {"digits": 10, "mosaic:digits": 10, "mnist": 10, "cifar10": 10}
"""Of the sets that have labels, likewise."""
PUBLISHED: dict[str, tuple[tuple[int, ...], int]] = {
    "digits": ((1, 8, 8), 17),
    "mosaic:digits:1x3": ((1, 8, 24), 17),
    "mosaic:digits:2x2": ((1, 16, 16), 17),
    "field:4:8x16": ((1, 8, 16), 64),
    "field:4:16x16": ((1, 16, 16), 64),
    "toy2d": ((2,), 0),
    "sklearn:wine": ((13,), 0),
    "mnist": ((1, 28, 28), 256),
    "cifar10": ((3, 32, 32), 256),
    "celeba64": ((3, 64, 64), 256),
    "celebahq256": ((3, 256, 256), 256),
    "power": ((6,), 0),
    "gas": ((8,), 0),
    "hepmass": ((21,), 0),
    "miniboone": ((43,), 0),
    "bsds300": ((63,), 0),
}
"""Shape and levels, by the beginning of an embedded source's or of a recipe's name."""
HEAD = f"{'recipe':<28} {'data':<24} {'shape':<12} {'parameters':>10}  {'steps':>9} {'batch':>6}  evaluations per step"


@dataclass(frozen=True, kw_only=True)
class Overview:
    """A recipe.

    Args:
        name: By which train.py takes it.
        source: Of its data; '' where --source has to be given.
        shape: Of a row; () where that depends on the source.
        parameters: Of its networks; 0 where that depends on the source.
        evaluations: Of each network, in a training step on one sample.
        steps, batch_size: Of its training.
    """

    name: str
    source: str
    shape: tuple[int, ...]
    parameters: int
    evaluations: dict[str, int]
    steps: int
    batch_size: int

    @staticmethod
    def of(name: str, recipe: Recipe) -> Overview:
        run = recipe()
        source, train = run.data.source, run.train
        known = source if embedded(source) else name
        shape, levels = next((found for start, found in PUBLISHED.items() if known.startswith(start)), ((), 0))
        shape = shape[1:] if run.data.options.as_sequences else shape
        classes = next((found for start, found in CLASSES.items() if known.startswith(start)), 0)
        model = _built(run, shape, levels, classes) if shape else None
        return Overview(
            name=name,
            source=source,
            shape=shape,
            parameters=sum(p.numel() for p in model.parameters()) if model else 0,
            evaluations=model.evaluations() if model else {},
            steps=train.steps,
            batch_size=train.batch_size,
        )

    def line(self) -> str:
        """As a row below `HEAD`."""
        size = f"{self.parameters / 1e6:.2f}M" if self.parameters else "-"
        cost = ", ".join(f"{network} {num}" for network, num in self.evaluations.items()) or "-"
        shape = " x ".join(map(str, self.shape)) or "any"
        steps = f"{self.steps:,} {self.batch_size:>6,}"
        return f"{self.name:<28} {self.source or '--source PATH':<24} {shape:<12} {size:>10}  {steps:>16}  {cost}"


def _built(run: RunConfig, shape: tuple[int, ...], levels: int, classes: int) -> GenerativeModel:
    """The model; really built where a part of it cannot do without numbers."""
    low = run.data.options.low if math.isfinite(run.data.options.low) else -1.0
    spec = DataSpec(name="", shape=shape, levels=levels, low=low, high=1.0, num_classes=classes)
    try:
        with torch.device("meta"):
            return run.model.build(spec)
    except RuntimeError:
        return run.model.build(spec)
