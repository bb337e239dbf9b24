"""What the surroundings give to the training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from indm_core.model import GenerativeModel
from pipelines.runs.job import Job

__all__ = ["Rows", "Session"]


Rows = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Session:
    """What a worker is given.

    Args:
        rank, world: Of this worker.
        device: That it computes on.
        rows: rows(job, first_row) -> this rank's rows {x, label} in chunks of its share of a batch, from a row of the run on.
        average: The mean of a vector over the ranks.
        agree: Rank 0's value of a small picklable thing, on every rank (file systems show one change at different times).
        wrap: Wraps the model for gradient averaging.
        publish: Called on rank 0 with (job, record) for every record.
        publish_picture: Called on rank 0 with (job, file) for every picture.
        checkpointed: Called on every rank with (job, directory, record) after each checkpoint.
    """

    rank: int
    world: int
    device: torch.device
    rows: Callable[[Job, int], Iterator[Rows]]
    average: Callable[[Tensor], Tensor]
    agree: Callable[[Any], Any]
    wrap: Callable[[GenerativeModel], nn.Module]
    publish: Callable[[Job, dict[str, Any]], None]
    publish_picture: Callable[[Job, Path], None]
    checkpointed: Callable[[Job, Path, dict[str, Any]], None]
