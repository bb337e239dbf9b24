r"""How a step's time grows: log-log slopes against the batch, the side of the images and the number of blocks.

    python -m benchmarks growth

For sizes n_1 < n_2 < ... whose steps take T(n), the slope of least squares of log T against log n. Work that is proportional to
n^p has the slope p; what a step costs whatever its size makes it smaller. Expected are 1 of the batch (every image is worked on
alone), 2 of the side (convolutions: there is no attention here, whose slope is 4), 1 of the residual blocks of the flow and of
the score network's blocks per level. The sizes take turns; the spread is that of the slopes of single rounds.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence

import torch

from benchmarks.figure import AT_MOST, Absent, Bound, Row
from indm_core.model import Objective
from indm_core.training import Trainer
from pipelines.config.flows import ResFlowConfig
from pipelines.config.models import INDMConfig
from pipelines.config.networks import UNetConfig
from pipelines.data.spec import DataSpec
from pipelines.recipes.common import adamw

Step = Callable[[], object]
TARGET = Bound(AT_MOST, 1.1)
"""Of a slope over the one that is expected."""


def step(*, batch: int = 8, side: int = 16, flow_blocks: int = 2, score_blocks: int = 1) -> Step:
    """A training step of an INDM with small networks on noise."""
    torch.manual_seed(0)
    config = INDMConfig(
        flow=ResFlowConfig(blocks=(flow_blocks, flow_blocks), width=32, constraint="spectral"),
        backbone=UNetConfig(nf=16, ch_mult=(1, 2), num_res_blocks=score_blocks, attention=(), dropout=0.0),
        objective=Objective(pretrain_steps=0),
    )
    model = config.build(DataSpec(name="noise", shape=(3, side, side), levels=256, low=-1.0, high=1.0, num_classes=0))
    trainer = Trainer(model, adamw(1e-4, "score", "flow"))
    x = 2 * torch.rand(batch, 3, side, side) - 1

    def act() -> None:
        generator = torch.Generator().manual_seed(0)  # the same number of terms of the flow's series in every step
        trainer.step([(x, None)], generator)

    return act


def slope(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """Of least squares, log seconds against log sizes."""
    x, y = [math.log(size) for size in sizes], [math.log(took) for took in seconds]
    mean_x, mean_y = statistics.fmean(x), statistics.fmean(y)
    rise = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return rise / sum((a - mean_x) ** 2 for a in x)


def slopes(sizes: Sequence[int], steps: Sequence[Step], rounds: int) -> tuple[float, list[float]]:
    """The slope of the median times, and those of single rounds, in which the sizes take turns."""
    for act in steps:
        act()
    times: list[list[float]] = []
    for _ in range(rounds):
        times.append([])
        for act in steps:
            began = time.process_time()
            act()
            times[-1].append(time.process_time() - began)
    medians = [statistics.median(each) for each in zip(*times, strict=True)]
    return slope(sizes, medians), [slope(sizes, each) for each in times]


def figure(quick: bool) -> Iterator[Row | Absent]:
    """Log-log slopes of a step's time against batch, side and blocks, beside the slopes that are expected."""
    few = slice(0, 2) if quick else slice(None)
    grown: list[tuple[str, tuple[int, ...], Callable[[int], Step], float]] = [
        ("batch", (4, 8, 16, 32), lambda n: step(batch=n), 1.0),
        ("side of the images", (8, 16, 32), lambda n: step(side=n), 2.0),
        ("residual blocks of the flow", (1, 2, 4, 8), lambda n: step(flow_blocks=n), 1.0),
        ("blocks per level of the score", (1, 2, 4, 8), lambda n: step(score_blocks=n), 1.0),
    ]
    for name, sizes, make, expected in grown:
        sizes = sizes[few]
        found, single = slopes(sizes, [make(n) for n in sizes], 2 if quick else 7)
        yield Row(
            what=f"{name}, {', '.join(map(str, sizes))}",
            reference="the slope that is expected",
            unit="slope",
            ours=found,
            theirs=expected,
            ratio=found / expected,
            low=min(single) / expected,
            high=max(single) / expected,
            target=TARGET,
        )
