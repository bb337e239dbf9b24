"""The figures of a logging interval."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from indm_core.training import StepReport, Trainer
from pipelines.runs.job import Job
from pipelines.training.session import Session

__all__ = ["Meter"]


class Meter:
    """Sums of a logging interval, without waiting for the device until the interval's end."""

    def __init__(self, job: Job, session: Session) -> None:
        self.job, self.session = job, session
        self.latest: dict[str, Any] = {}
        self._reset()

    def _reset(self) -> None:
        self.terms: dict[str, Tensor] = {}
        self.norms: dict[str, float] = {}
        self.steps, self.wait, self.began = 0, 0.0, time.monotonic()

    def waiting(self) -> _Stopwatch:
        return _Stopwatch(self)

    def add(self, report: StepReport) -> None:
        if not report.skipped:
            for name, term in report.terms.items():
                self.terms[name] = self.terms.get(name, 0.0) + term
            for name, norm in report.gradient_norms.items():
                self.norms[name] = self.norms.get(name, 0.0) + norm
            self.steps += 1

    def record(self, trainer: Trainer) -> dict[str, Any]:
        """The interval's record; every rank calls it, because the terms are averaged over ranks."""
        train, seconds = self.job.run.train, time.monotonic() - self.began
        record: dict[str, Any] = {"step": trainer.step_count, "phase": trainer.model.phase(trainer.step_count - 1)}
        if self.steps:
            means = self.session.average(torch.stack(list(self.terms.values())) / self.steps).double().cpu()
            record |= self._in_unit(dict(zip(self.terms, means, strict=True)))
        steps = max(1, trainer.step_count - self.latest.get("step", trainer.step_count - max(1, self.steps)))
        record |= {
            "images_per_s": steps * train.batch_size / seconds,
            "data_wait": self.wait / seconds,
            "eta_s": (train.steps - trainer.step_count) * seconds / steps,
            "skipped": trainer.skipped,
        }
        record |= {f"gradient_norm/{name}": total / max(1, self.steps) for name, total in self.norms.items()}
        self.latest = record
        self._reset()
        return record

    def _in_unit(self, means: dict[str, Tensor]) -> dict[str, Any]:
        spec, shown = self.job.spec, {}
        for name, value in means.items():
            in_unit = spec.in_unit(value)
            is_part = name not in ("nelbo", "partner")
            shown[name] = float(in_unit - spec.in_unit(torch.zeros_like(value)) if is_part else in_unit)
            shown["unit"] = spec.unit
        return shown


class _Stopwatch:
    def __init__(self, meter: Meter) -> None:
        self.meter = meter

    def __enter__(self) -> None:
        self.began = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.meter.wait += time.monotonic() - self.began
