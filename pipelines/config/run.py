"""What a run is: data, model and training, as frozen dataclasses that survive a JSON round trip (`codec`, `document`)."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import pipelines.config.sized  # noqa: F401  (a document names its class)
from indm_core.training import AdamW
from pipelines.config import sized  # noqa: F401  (a reader of a run's file knows the classes that are imported)
from pipelines.config.document import documented, rebuilt
from pipelines.config.models import INDMConfig, ModelConfig
from pipelines.config.modules import defining
from pipelines.data.source import Options
from pipelines.storage.checkpoint import By

__all__ = ["Configured", "Data", "RunConfig", "Train", "from_document", "same_but_seed", "to_document"]


@dataclass(frozen=True, kw_only=True)
class Data:
    """Where the data come from.

    Args:
        source: An embedded set (digits, toy2d:spiral, ...), a path in any format that prepare.py reads, or mosaics of either
            (mosaic:digits:1x3).
        options: How the source is prepared.
        flip: Whether images are mirrored left to right at random.
        partner: A second data set of the same shape, for a bridge; its training rows come with the first's as `y`.
    """

    source: str = "digits"
    options: Options = field(default_factory=Options)
    flip: bool = False
    partner: str = ""


@dataclass(frozen=True, kw_only=True)
class Train:
    """How a run is trained.

    Args:
        steps: Optimiser steps, pre-training included.
        batch_size: Rows per step over all workers.
        accumulate: Micro-batches that a worker splits its share into.
        optimisers: By network: learning rate, betas, weight decay, gradient clip.
        frozen: Networks that are not trained; with --start-from they are the averaged ones of the checkpoint.
        ema_decay: Decay of the averaged weights.
        ema_ramp: Whether the decay rises as (1 + n)/(10 + n) to `ema_decay`.
        precision: fp32; bf16 autocast of the networks (not of log-dets and losses) where the device has instructions for it,
            else fp32; or tf32, products of matrices with 10 bits of mantissa, of CUDA devices.
        compile: Whether blocks that a network repeats are compiled (torch.compile), where the machine has a compiler: minutes
            at the beginning, and on GPUs fewer reads of memory in every step.
        seed: Of weights, order of rows and noise.
        order: Of the rows: streams, of which each worker reads its own; or windows, of which every worker reads all, as it was
            before there were streams. A run keeps the one that it was begun with.
        log_every: Steps between progress lines.
        checkpoint_every: Steps between checkpoints.
        keep: Checkpoints kept, the best by `keep_by` (by the NELBO on training rows where that is not measured); the last two
            are always kept.
        keep_by: What the best checkpoints, and RUN@best, are the lowest in: the NELBO on held-out rows (validate_every), or the
            NLL or Frechet distance that measure_every gives.
        measure_every: Steps between checkpoints whose averaged weights are measured beside the training (NLL, NELBO, Frechet
            distance; see --along), 0 for none; the last one is too.
        sample_every: Steps between sample grids, 0 for none.
        validate_every: Steps between measurements of the averaged weights on held-out rows, 0 for none; also taken at the first
            and at the last step. They change no weights.
    """

    steps: int = 1000
    batch_size: int = 128
    accumulate: int = 1
    optimisers: dict[str, AdamW] = field(default_factory=lambda: {"score": AdamW(lr=2e-4), "flow": AdamW(lr=1e-3)})
    frozen: tuple[str, ...] = ()
    ema_decay: float = 0.9999
    ema_ramp: bool = True
    precision: Literal["fp32", "bf16", "tf32"] = "fp32"
    compile: bool = False
    seed: int = 0
    order: Literal["streams", "windows"] = "streams"
    log_every: int = 50
    checkpoint_every: int = 500
    keep: int = 2
    keep_by: By = "nelbo"
    measure_every: int = 0
    sample_every: int = 500
    validate_every: int = 500

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "log_every", "checkpoint_every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("seed", "measure_every", "sample_every", "validate_every"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")
        if self.seed >= 2**63:
            raise ValueError(f"seed={self.seed} must lie below 2^63")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay={self.ema_decay} must lie in [0, 1)")
        for optimiser in self.optimisers.values():
            optimiser.check_steps(self.steps)
        if self.measure_every % self.checkpoint_every:
            raise ValueError(
                f"measure_every={self.measure_every}: checkpoints are measured, and there is one every {self.checkpoint_every} "
                f"steps; give a multiple of that, or --checkpoint-every {self.measure_every}"
            )
        if self.keep_by != "nelbo" and not self.measure_every:
            raise ValueError(
                f"keep_by={self.keep_by}: no checkpoint is measured by it; give --measure-every {self.checkpoint_every}, or a "
                "multiple of that"
            )

    def measures(self, step: int) -> bool:
        """Whether the checkpoint of a step is measured beside the training."""
        return bool(self.measure_every) and (step % self.measure_every == 0 or step == self.steps)


class Configured(Protocol):
    """What the configuration of any run has; it is a frozen dataclass."""

    @property
    def recipe(self) -> str: ...

    @property
    def train(self) -> Train: ...


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run: data, model and training.

    Args:
        recipe: Its recipe. On the command line the name of one, or path.py:function of your own file; the same as the word
            without --.
        data: Where the data come from.
        model: What is trained.
        train: How.
    """

    recipe: str
    data: Data = field(default_factory=Data)
    model: ModelConfig = field(default_factory=INDMConfig)
    train: Train = field(default_factory=Train)

    def __reduce__(self) -> tuple[Any, ...]:
        return from_document, (to_document(self),)


def to_document(run: RunConfig) -> dict[str, Any]:
    """{"run": its JSON} and, where extensions define classes of it, {"modules": what to import for them (`Defined`)}."""
    return documented(run, defining(run))


def same_but_seed(run: RunConfig) -> str:
    """What a configuration says beside the seed of its training: equal texts are of trainings of one recipe."""
    return json.dumps(to_document(replace(run, train=replace(run.train, seed=0))), sort_keys=True)


def from_document(document: dict[str, Any], where: str = "") -> RunConfig:
    """The inverse of `to_document`.

    Args:
        document: What `to_document` gave, or an earlier version of it.
        where: What the document is, for messages.

    Raises:
        ValueError: a configuration that this process does not know; where a file of the user's defines it, how to name that.
    """
    return rebuilt(RunConfig, document, where)
