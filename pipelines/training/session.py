"""What the training loop is given: by its surroundings (`Session`), and by what is trained (`Work`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from indm_core.model import Trainable
from pipelines.runs.job import Training
from pipelines.runs.record import HeldOut, Record, Unit

__all__ = ["Batch", "Session", "Work", "WorkOf"]

T = TypeVar("T", bound=Trainable)
Batch = Callable[[torch.Generator], Sequence[tuple[Any, Tensor | None]]]
"""A step's batch: given the step's noise, this rank's micro-batches (x, y) on its device."""


@dataclass(frozen=True, kw_only=True)
class Work(Generic[T]):
    """What is trained: a model on a data set, or a sampler that needs none.

    Args:
        training: The directory, and how it is trained.
        build: Makes what is trained. The loop seeds the global generator before, so that the weights follow from the seed.
        batches: batches(step) -> the batches of that step and of the steps after it.
        unit: Of the terms of the losses.
        write_config: Writes what the run's model is rebuilt from.
        draw: draw(averaged model, file): a picture of what it has learned.
        validate: validate(averaged model) -> its NELBO on rows that are not trained on; None where there are none.
        shared_steps: Steps at the start after which the networks are kept in RUN/pretrained; 0 for none.
        made_of: What the weights are made of, as JSON that is kept in every checkpoint; empty where that is not recorded.
        suspect: What to change or to look at, besides the optimiser, where the training has diverged.
    """

    training: Training
    build: Callable[[], T]
    batches: Callable[[int], Iterator[Batch]]
    unit: Unit
    write_config: Callable[[], None]
    draw: Callable[[T, Path], None]
    validate: Callable[[T], HeldOut] | None = None
    shared_steps: int = 0
    made_of: Mapping[str, Any] = field(default_factory=dict)
    suspect: str = "look at the data"


@dataclass(frozen=True, kw_only=True)
class Session:
    """What a worker is given.

    Args:
        rank, world: Of this worker.
        device: That it computes on.
        average: The mean of a vector over the ranks.
        agree: Rank 0's value of a small picklable thing, on every rank (file systems show one change at different times).
        stopping: Asked on rank 0 every now and then, with (training, the step that it has come to): whether it is to end there.
        wrap: Wraps the model for gradient averaging, anew where a phase begins.
        begins: Called on rank 0 with (training, model) before the first step that is taken now.
        publish: Called on every rank with (training, record) for every record; that of rank 0 stands in metrics.jsonl by then,
            and it alone has figures of held-out rows.
        checkpointed: Called on every rank with (training, directory, latest record) after each checkpoint.
        say: Called on every rank with a line for whoever gave the command; that of rank 0 is shown.
    """

    rank: int
    world: int
    device: torch.device
    average: Callable[[Tensor], Tensor]
    agree: Callable[[Any], Any]
    stopping: Callable[[Training, int], bool]
    wrap: Callable[[Trainable], nn.Module]
    begins: Callable[[Training, Trainable], None]
    publish: Callable[[Training, Record], None]
    checkpointed: Callable[[Training, Path, Record], None]
    say: Callable[[str], None] = field(default=partial(print, flush=True))


WorkOf = Callable[[Any, Session], Work[Any]]
"""work(job, session) -> what the loop is given of a job; a function of a module, since it goes to the workers of a cluster."""
