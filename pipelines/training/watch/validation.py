"""The validation curve: the NELBO of the averaged model on rows that it is not trained on.

Every point is taken on the same rows, with the same dequantisation, times and noise, so that the points of a run, and of runs
on the same data, differ by the model alone; a conditional model is given their labels. With values v_i of n rows, each the mean
over `DRAWS` draws of (t, eps),

    NELBO = mean_i v_i,     se^2 = Var_i(v_i)/n.

The rows are of the split `valid` where the data have one, else of `test`; what is chosen by them (`RUN@best`) has seen them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from indm_core.likelihood import nelbo
from indm_core.model import GenerativeModel
from indm_core.training import step_seed
from pipelines.data.card import load_card
from pipelines.data.shards import read_split
from pipelines.data.spec import DataSpec
from pipelines.runs.job import Job
from pipelines.runs.record import HeldOut

__all__ = ["held_out_rows"]

ROWS, BLOCKS = {3: 128, 2: 128, 1: 1024}, 16
"""Rows at most, by the rank of an event (images, sequences, vectors), and the stretches of the split that they are taken from,
since rows may be sorted by class. A point costs about as much as five training steps of a batch of 128."""
DRAWS, BATCH, SEED = 2, 128, 0


def held_out_rows(job: Job, device: torch.device) -> Callable[[GenerativeModel], HeldOut] | None:
    """What measures a model on the run's held-out rows, in the unit of its data; None where the data have none."""
    card = load_card(job.data)
    split = next((name for name in ("valid", "test") if name in card.splits), "")
    count = card.splits[split].count if split else 0
    if count < 2:
        return None
    most = min(count, ROWS[len(card.shape)])
    starts = np.linspace(0, count - most // BLOCKS, BLOCKS, dtype=int) if most < count else (0,)
    size = most // len(starts)
    parts = [part for start in starts for part in read_split(job.data, card, split, size, int(start))]
    k, labels = (torch.from_numpy(np.concatenate([part[name] for part in parts])) for name in ("x", "label"))
    x = job.spec.to_model(k, torch.Generator().manual_seed(SEED))
    return partial(_measure, job.spec, x, labels if job.run.model.conditional else None, device)


def _measure(spec: DataSpec, x: Tensor, labels: Tensor | None, device: torch.device, model: GenerativeModel) -> HeldOut:
    values, parts = [], x.split(BATCH)
    ys = [None] * len(parts) if labels is None else labels.to(device).split(BATCH)
    for number, (part, y) in enumerate(zip(parts, ys, strict=True)):
        generator = torch.Generator(device).manual_seed(step_seed(SEED, number, 0))
        values.append(nelbo(model, part.to(device), num_draws=DRAWS, generator=generator, y=y).cpu())
    nelbos = spec.in_unit(torch.cat(values).double())
    return HeldOut(nelbo=float(nelbos.mean()), se=float(nelbos.std() / math.sqrt(len(nelbos))))
