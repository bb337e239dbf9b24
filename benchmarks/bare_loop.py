"""What the trainer costs beside a bare PyTorch loop that does the same: the same model, draws, optimisers and average.

    python -m benchmarks bare-loop

The bare loop is what one writes by hand: forward, the mean of the losses, backward, the gradient of each network clipped, one
AdamW step of each, and the average of all weights by one `lerp`. The trainer adds the phases, the guard against losses that are
not finite, frozen networks, the terms with their variances and the norms that it reports. Both go on with their own weights,
from the same state.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.figure import AT_MOST, Absent, Bound, Row, in_turn
from indm_core.model import GenerativeModel
from indm_core.optimiser import AdamW
from indm_core.training import Trainer
from pipelines.config.run import RunConfig
from pipelines.data.spec import DataSpec
from pipelines.recipes import find

CASES = {"toy2d_spiral": (2,), "digits_linear_nll": (1, 8, 8), "digits_vp_nll": (1, 8, 8)}
"""Recipes, with the shape of their data."""
TARGET = Bound(AT_MOST, 1.03)


@dataclass
class BareLoop:
    """Forward, backward, clip, AdamW and the average, without a trainer.

    Args:
        model: Trained in place.
        settings: Of its networks.
        decay: Of the average.
    """

    model: GenerativeModel
    settings: dict[str, AdamW]
    decay: float

    def __post_init__(self) -> None:
        self.networks = self.model.networks()
        self.optimisers = {name: self.settings[name].over(network) for name, network in self.networks.items()}
        self.parameters: list[Tensor] = list(self.model.parameters())
        self.averaged = [p.detach().clone() for p in self.parameters]

    def step(self, x: Tensor, generator: torch.Generator) -> None:
        """One step."""
        self.model(x, None, generator).objective.mean().backward()
        for name, network in self.networks.items():
            torch.nn.utils.clip_grad_norm_(network.parameters(), self.settings[name].clip)
        for optimiser in self.optimisers.values():
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(self.averaged, self.parameters, 1 - self.decay)


def model_of(run: RunConfig, shape: tuple[int, ...]) -> GenerativeModel:
    """A recipe's model with the weights of seed 0, in the phase that trains everything."""
    torch.manual_seed(0)
    levels = 17 if len(shape) > 1 else 0
    model = run.model.build(DataSpec(name="noise", shape=shape, levels=levels, low=-1.0, high=1.0, num_classes=0))
    model.begin_phase(model.phase(run.train.steps - 1))
    return model.train()


def steps_of(recipe: str, shape: tuple[int, ...]) -> tuple[Callable[[], object], Callable[[], object]]:
    """(a step of the trainer, a step of the bare loop), each called again and again."""
    run = find(recipe)()
    train = run.train
    mine = model_of(run, shape)
    bare = BareLoop(copy.deepcopy(mine), train.optimisers, train.ema_decay)
    trainer = Trainer(mine, train.optimisers, steps=train.steps, ema_decay=train.ema_decay, ema_ramp=train.ema_ramp)
    trainer.step_count = train.steps // 2  # in the joint phase, where there are two
    x = 2 * torch.rand(train.batch_size, *shape, generator=torch.Generator().manual_seed(0)) - 1
    draws = [torch.Generator().manual_seed(0) for _ in range(2)]
    return lambda: trainer.step([(x, None)], draws[0]), lambda: bare.step(x, draws[1])


def figure(quick: bool) -> Iterator[Row | Absent]:
    """A step of the trainer beside one of a bare PyTorch loop, of the same model and draws."""
    for recipe, shape in CASES.items():
        trainer, bare = steps_of(recipe, shape)
        pairs = in_turn(trainer, bare, num_pairs=5 if quick else 25, warm_up=2 if quick else 5)
        yield pairs.row(recipe, "a bare PyTorch loop", TARGET, faster=False)
