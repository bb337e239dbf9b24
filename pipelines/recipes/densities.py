"""Recipes of densities: which path integral sampler suits which target. The name of a recipe is the name of its function.

T g^2 is meant to cover the target; other settings are the published ones (`config.pis.TRAIN`), and have not been searched
over. Paths in few dimensions are small enough to be kept whole for the backward pass (gradient autograd).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import FunctionType

from pipelines.config.modules import split_word, use
from pipelines.config.pis import PISRun
from pipelines.config.targets import (
    BreastCancerConfig,
    BrownianConfig,
    FunnelConfig,
    LGCPConfig,
    LogisticConfig,
    ManyWellConfig,
    MoG40Config,
    NineModesConfig,
    OwnTargetConfig,
    RingsConfig,
    StudentConfig,
)
from pipelines.storage.messages import nearest

__all__ = ["DENSITIES", "Density", "find_density"]

Density = Callable[[], PISRun]


def find_density(word: str) -> Density:
    """A recipe by its name, or that of path.py:name: what a function of the file that says -> PISRun configures, and of another
    function, or of a class, the published settings.

    Raises:
        ValueError: no such recipe, or no such file.
    """
    if word in DENSITIES:
        return DENSITIES[word]
    file, name = split_word(word)
    if not file:
        raise ValueError(
            f"unknown target {word!r}: {nearest(word, list(DENSITIES))}; a target of your own is path.py:name"
        )
    extension = use(file)
    make = vars(extension.module).get(name)
    if isinstance(make, FunctionType) and str(make.__annotations__.get("return")).rpartition(".")[2] == PISRun.__name__:
        return lambda: replace(make(), recipe=name)
    return lambda: PISRun(recipe=name or "target", target=OwnTargetConfig(word=f"{extension.word}:{name}"))


def funnel() -> PISRun:
    """Neal's funnel with s = 3 in 10 dimensions, the benchmark's; T g^2 = 9."""
    return PISRun(recipe="funnel", target=FunnelConfig(), variance=9.0, clip=100.0, gradient="autograd")


def funnel_unit() -> PISRun:
    """The funnel with s = 1, which the published code and its table have; T = 5, g^2 = 0.2 and 100 steps as there."""
    return PISRun(recipe="funnel_unit", target=FunnelConfig(scale=1.0), gradient="autograd")


def nine_modes() -> PISRun:
    """Nine Gaussians on a grid in the plane; T g^2 = 25."""
    return PISRun(recipe="nine_modes", target=NineModesConfig(), variance=25.0, gradient="autograd")


def rings() -> PISRun:
    """Three concentric rings in the plane; T g^2 = 9."""
    return PISRun(recipe="rings", target=RingsConfig(), variance=9.0, clip=100.0, gradient="autograd")


def mog40() -> PISRun:
    """40 Gaussians in [-40, 40]^2; T g^2 = 1,600."""
    return PISRun(recipe="mog40", target=MoG40Config(), variance=1600.0, gradient="autograd")


def mog40_50() -> PISRun:
    """40 Gaussians in [-40, 40]^50; T g^2 = 1,600."""
    return PISRun(recipe="mog40_50", target=MoG40Config(dim=50), variance=1600.0, gradient="autograd")


def student() -> PISRun:
    """10 products of Student's t with 2 degrees of freedom in [-10, 10]^2; T g^2 = 225."""
    return PISRun(recipe="student", target=StudentConfig(), variance=225.0, gradient="autograd")


def many_well() -> PISRun:
    """16 double wells in 32 dimensions; T g^2 = 4."""
    return PISRun(recipe="many_well", target=ManyWellConfig(), variance=4.0, clip=100.0, gradient="autograd")


def brownian() -> PISRun:
    """A random walk of 30 positions with its scales, 32 dimensions; T g^2 = 4."""
    return PISRun(recipe="brownian", target=BrownianConfig(), variance=4.0, clip=100.0, gradient="autograd")


def breast_cancer() -> PISRun:
    """Logistic regression of 569 tumours, 31 dimensions; T g^2 = 4."""
    return PISRun(recipe="breast_cancer", target=BreastCancerConfig(), variance=4.0, gradient="autograd")


def logistic() -> PISRun:
    """Logistic regression of your own table: --target.file TABLE.csv --label COLUMN; T g^2 = 4."""
    return PISRun(recipe="logistic", target=LogisticConfig(), variance=4.0, gradient="autograd")


def lgcp() -> PISRun:
    """The log-Gaussian Cox process of 126 pines on a grid of 40 x 40, whitened; --target.file for points of your own."""
    return PISRun(recipe="lgcp", target=LGCPConfig(), variance=4.0)


def lgcp_20() -> PISRun:
    """The same on a grid of 20 x 20."""
    return PISRun(recipe="lgcp_20", target=LGCPConfig(grid=20), variance=4.0)


DENSITIES: dict[str, Density] = {
    make.__name__: make
    for make in (
        *(funnel, funnel_unit, nine_modes, rings, mog40, mog40_50, student, many_well, brownian),
        *(breast_cancer, logistic, lgcp, lgcp_20),
    )
}
