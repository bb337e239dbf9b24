"""The sampler that is taken of a run where the options leave it open: what auto stands for, and a grid that is fitted.

A fitted grid is fitted when it is first asked for, and kept in RUN/grids/deis-KEY.json (RUN/@400/grids of a checkpoint).
Whoever asks again with the same weights, sampler, number of steps, classes and guidance reads it. The folder holds nothing
else, and may be removed at any time.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from indm_core.automatic import settled
from indm_core.draw import check_sampling, fit_times, times_of
from indm_core.model import GenerativeModel
from indm_core.model.labels import labels_of
from indm_core.sampling import Sampling
from indm_core.times import check_times
from pipelines.config.codec import from_json, to_json
from pipelines.config.store import identity
from pipelines.config.weights import Weights
from pipelines.storage.files import write_text
from pipelines.storage.reading import read_json

__all__ = ["KeptGrid", "sampling_for"]

FOLDER = "grids"
STARTS = 256
"""At the most, where classes are led to: they are taken in turn."""


@dataclass(frozen=True, kw_only=True)
class KeptGrid:
    """A fitted grid as a run keeps it.

    Args:
        sampler: What it was fitted for.
        times: Decreasing.
        error: Root mean square of the state's position at the last time against the ODE's solution, in units of the latent.
        before: The same of the best grid that needs no fit.
        evaluations: Of the score, of each start.
        seconds: That the fit took.
    """

    sampler: str
    times: tuple[float, ...]
    error: float
    before: float
    evaluations: int
    seconds: float

    def __str__(self) -> str:
        return f"error against the ODE {self.error:.2g}, {self.before:.2g} on the best grid without a fit"


def sampling_for(
    run: Weights, model: GenerativeModel, sampling: Sampling, label: Sequence[int] = (), guidance: float = 0.0
) -> Sampling:
    """The sampling itself or, where it leaves something open, what is taken; which is said.

    Args:
        model: Of the run.
        label, guidance: Of the samples: classes in turn, and how far the score is led to them.

    Raises:
        ValueError: a sampler that the model does not allow.
    """
    check_sampling(model, sampling)
    taken = settled(model.sde, sampling)
    if taken.unfitted:
        kept, place = _grid(run, model, taken, label, guidance)
        taken = replace(taken, times=kept.times)
        print(f"{run.name}: fitted grid of {len(kept.times) - 1} steps, {kept}, {place}", flush=True)
    if sampling.sampler == "auto":
        learned = "" if model.sde.linear else ", because its drift is learned"
        print(f"{run.name}: auto takes {taken}{learned}", flush=True)
    return taken


def _grid(
    run: Weights, model: GenerativeModel, sampling: Sampling, label: Sequence[int], guidance: float
) -> tuple[KeptGrid, Path]:
    """The grid and the file that keeps it, read or fitted."""
    said = [identity(run), to_json(sampling), list(label), guidance]
    key = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]
    file = run / FOLDER / f"{sampling.sampler}-{key}.json"
    try:
        kept = from_json(KeptGrid, read_json(file), str(file))
        check_times(model.sde, times_of(model, replace(sampling, times=kept.times)))
        return kept, file
    except (OSError, ValueError):
        pass  # absent, or damaged: it is fitted again
    print(f"{run.name}: fitting the grid of {sampling}, once", flush=True)
    began = time.monotonic()
    classes = labels_of(torch.tensor(label), len(label), model.num_classes) if label else None
    num = 0 if classes is None else STARTS
    y = None if classes is None else classes[torch.arange(num) % len(classes)]
    fit = fit_times(model, sampling=sampling, num=num, label=y, guidance=guidance).fit
    kept = KeptGrid(
        sampler=str(sampling),
        times=tuple(fit.times.tolist()),
        error=fit.error,
        before=fit.before,
        evaluations=fit.evaluations,
        seconds=time.monotonic() - began,
    )
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(to_json(kept), indent=1) + "\n")
    except OSError as error:  # a run of somebody else's may be sampled from
        print(f"{run.name}: the grid is not kept, and will be fitted again: {error}", flush=True)
    return kept, file
