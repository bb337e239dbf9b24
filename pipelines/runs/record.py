"""The records of a training: what each logging interval measured, and how metrics.jsonl keeps it.

RUN/metrics.jsonl has one record a line, a flat JSON object:

    step, phase     the interval's last optimiser step, and its training phase
    nelbo, ...      the mean loss terms in `unit`, under their own names; absent where no step of the interval was finite
    unit            bits/dim for dequantised data, nats/dim for continuous data
    images_per_s, data_wait, step_s, eta_s, skipped   (step_s is absent from records of earlier versions)
    gradient_norm/NETWORK
    validation/nelbo, validation/se
                    the NELBO of the averaged weights of this step on the run's held-out rows in `unit`, and its standard error
                    over rows; absent where it was not measured. Of a sampler of a density they are of its paths, and there
                    are validation/log_z, validation/log_z_se and validation/ess too

A record of the step that a run begins at has nothing but the last ones.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.storage.reading import open_regular, parse_json

if TYPE_CHECKING:
    from torch import Tensor

    from indm_core.training import StepReport, Trainer

__all__ = ["VALIDATION", "HeldOut", "Meter", "Record", "RecordReader", "Unit"]

WORDS, NUMBERS = ("step", "phase", "unit"), ("images_per_s", "data_wait", "step_s", "eta_s", "skipped")
NORM, MEASURED, VALIDATION = "gradient_norm/", "validation/", ("validation/nelbo", "validation/se")
VALIDATION_IN_MLFLOW = dict(zip(VALIDATION, ("validation/nelbo", "validation/nelbo_se"), strict=True))
"""There the errors of figures end in _se."""


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """The mean NELBO on held-out rows, or on the paths of a sampler, and its standard error over them.

    Args:
        others: What was measured with it, by name.
    """

    nelbo: float
    se: float
    others: Mapping[str, float] = field(default_factory=dict)

    def figures(self) -> dict[str, float]:
        """Every number, under its name in metrics.jsonl."""
        others = {f"{MEASURED}{name}": number for name, number in self.others.items()}
        return {**dict(zip(VALIDATION, (self.nelbo, self.se), strict=True)), **others}

    @staticmethod
    def taken(found: dict[str, float]) -> HeldOut | None:
        """Those of a record, which are taken out of it; None where there are none."""
        named = {name: found.pop(name) for name in list(found) if name.startswith(MEASURED)}
        nelbo, se = (named.pop(name, None) for name in VALIDATION)
        if nelbo is None or se is None:
            return None
        others = {name.removeprefix(MEASURED): number for name, number in named.items()}
        return HeldOut(nelbo=nelbo, se=se, others=others)


@dataclass(frozen=True, kw_only=True)
class Record:
    """What a logging interval measured.

    Args:
        step: Its last optimiser step.
        phase: Training phase.
        terms: Mean loss terms by name, in `unit`; progress is read from the first. Empty where no step was finite.
        unit: Of the terms; empty where there are none.
        images_per_s: Rows (of a sampler: draws) per second, over all workers.
        data_wait: Share of the time that steps waited for their batch, in [0, 1].
        step_s: Mean seconds of an optimiser step, without waiting for its batch and without what is done between steps
            (held-out rows, pictures, checkpoints); 0 where it was not measured.
        eta_s: Seconds to the last step, at the mean speed since the training began, or went on, and its last phase began.
        skipped: Steps skipped since the run began.
        gradient_norms: Mean gradient norm of each trained network before clipping.
        held_out: What the averaged weights of the step reach on the run's held-out rows, in `unit`; None: not measured.
    """

    step: int
    phase: str = ""
    terms: Mapping[str, float] = field(default_factory=dict)
    unit: str = ""
    images_per_s: float = 0.0
    data_wait: float = 0.0
    step_s: float = 0.0
    eta_s: float = 0.0
    skipped: int = 0
    gradient_norms: Mapping[str, float] = field(default_factory=dict)
    held_out: HeldOut | None = None

    @property
    def trained(self) -> bool:
        """Whether a step was taken in its interval; of the record of a run's beginning none was."""
        return self.images_per_s > 0 or self.held_out is None

    def figures(self) -> dict[str, float]:
        """Every number but the step, under its name in metrics.jsonl."""
        numbers = {name: getattr(self, name) for name in NUMBERS} if self.trained else {}
        if not self.step_s:
            numbers.pop("step_s", None)
        norms = {NORM + name: norm for name, norm in self.gradient_norms.items()}
        return {**self.terms, **numbers, **norms, **(self.held_out.figures() if self.held_out else {})}

    @property
    def rows(self) -> str:
        """What a second's work is counted in: images are in bits/dim, vectors in nats/dim, draws from a density in nats."""
        return {"bits/dim": "images", "nats/dim": "rows"}.get(self.unit, "draws" if self.unit else "rows")

    @property
    def measured(self) -> str:
        """The held-out figures as a person reads them; '' where there are none."""
        if not self.held_out:
            return ""
        others = "".join(f", {name} {number:.3f}" for name, number in self.held_out.others.items())
        what = "paths" if self.rows == "draws" else "held out"
        return f"{what} {self.held_out.nelbo:.3f} +- {self.held_out.se:.3f} {self.unit}{others}"

    def metrics(self) -> dict[str, float]:
        """Every number but the step, under its name in MLflow: train/nelbo, train/rows_per_s, ..., validation/nelbo."""
        speed = {"images_per_s": f"{self.rows}_per_s"}
        return {_in_mlflow(name, speed): number for name, number in self.figures().items()}

    def to_json(self) -> str:
        """The record as a line of metrics.jsonl, without the end of the line."""
        unit = {"unit": self.unit} if self.unit else {}
        return json.dumps({"step": self.step, "phase": self.phase, **unit, **self.figures()})

    @staticmethod
    def from_json(line: str) -> Record:
        """The inverse of `to_json`.

        Raises:
            ValueError: no record.
        """
        found = parse_json(line)
        if not isinstance(found, dict) or type(found.get("step")) is not int:
            raise ValueError(f"no record of a training: {line[:80]!r}")
        own = {name: found.pop(name) for name in (*WORDS, *NUMBERS) if name in found}
        for name, value in (own | found).items():
            if not isinstance(value, str if name in WORDS[1:] else float | int) or isinstance(value, bool):
                raise ValueError(f"no record of a training: {name[:80]!r} is {str(value)[:80]!r}")
        norms = {name.removeprefix(NORM): found.pop(name) for name in list(found) if name.startswith(NORM)}
        held_out = HeldOut.taken(found)
        return Record(**own, terms=found, gradient_norms=norms, held_out=held_out)


def _in_mlflow(name: str, speed: Mapping[str, str]) -> str:
    if name.startswith(MEASURED):
        return VALIDATION_IN_MLFLOW.get(name, name)
    return f"train/{speed.get(name, name)}"


class RecordReader:
    """Reads the records that a metrics.jsonl gains; a call costs what has been added since the call before.

    A training that goes on from an earlier checkpoint writes the file anew. The reader notices that the line which it read last
    is no longer in its place, and then begins at the file's start.

    Args:
        file: May be missing, and may be written at the same time.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._begin()

    def _begin(self) -> None:
        self.offset, self.line, self.last_step = 0, b"", 0

    def read(self) -> list[Record]:
        """The records after the ones that were read before, or all of them where the file was written anew.

        `last_step` is then the step of the last record in the file, 0 where there is none. A last line without an end is still
        being written, or was cut short by a kill: it is left for the next call.
        """
        try:
            with open_regular(self.file) as stream:
                stream.seek(self.offset - len(self.line))
                if stream.read(len(self.line)) != self.line:
                    self._begin()
                    stream.seek(0)
                added = stream.read()
        except (FileNotFoundError, NotADirectoryError):
            self._begin()
            return []
        lines = added[: added.rfind(b"\n") + 1].splitlines(keepends=True)
        self.offset += sum(map(len, lines))
        self.line = lines[-1] if lines else self.line
        records = []
        for line in lines:
            try:
                records.append(Record.from_json(line.decode("utf-8")))
            except ValueError:  # cut short by a kill
                continue
        self.last_step = records[-1].step if records else self.last_step
        return records


@dataclass(frozen=True)
class Unit:
    """How the terms of the losses are shown.

    Args:
        name: Such as bits/dim.
        of: of(name of a term, nats) -> its value in the unit.
    """

    name: str
    of: Callable[[str, Tensor], float]


class Meter:
    """Sums over a logging interval; it does not wait for the device before the interval's end.

    Args:
        batch_size: Rows of a step over all workers.
        steps: Of the whole run.
        unit: Of the terms.
        average: The mean of a vector over the ranks.
        begun: Steps that were taken before.
    """

    def __init__(
        self, *, batch_size: int, steps: int, unit: Unit, average: Callable[[Tensor], Tensor], begun: int
    ) -> None:
        self.batch_size, self.all_steps, self.unit, self.average = batch_size, steps, unit, average
        self.latest = Record(step=begun)
        self.first_step, self.first_time, self.first_phase = begun, time.monotonic(), ""
        self._reset()

    def _reset(self) -> None:
        self.terms: dict[str, Tensor] = {}
        self.norms: dict[str, float] = {}
        self.steps, self.wait, self.aside, self.began = 0, 0.0, 0.0, time.monotonic()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """A context whose time is taken for waiting for a batch."""
        began = time.monotonic()
        yield
        self.wait += time.monotonic() - began

    @contextmanager
    def between_steps(self) -> Iterator[None]:
        """A context whose time belongs to no step."""
        began = time.monotonic()
        yield
        self.aside += time.monotonic() - began

    def add(self, report: StepReport) -> None:
        """Adds a step's figures, unless it was skipped."""
        if report.skipped:
            return
        for name, term in report.terms.items():
            self.terms[name] = self.terms.get(name, 0.0) + term
        for name, norm in report.gradient_norms.items():
            self.norms[name] = self.norms.get(name, 0.0) + norm
        self.steps += 1

    def record(self, trainer: Trainer) -> Record:
        """The interval's record; every rank calls it, because the terms are averaged over ranks."""
        import torch  # not with the module: records are read without it

        now, steps = time.monotonic(), max(1, trainer.step_count - self.latest.step)
        seconds = now - self.began
        phase = trainer.model.phase(trainer.step_count - 1)
        if phase != self.first_phase:  # of another speed
            self.first_step, self.first_time, self.first_phase = self.latest.step, self.began, phase
        pace = (now - self.first_time) / max(1, trainer.step_count - self.first_step)
        means = torch.empty(0)
        if self.steps:
            means = self.average(torch.stack(list(self.terms.values())) / self.steps).double().cpu()
        self.latest = Record(
            step=trainer.step_count,
            phase=phase,
            terms={name: self.unit.of(name, mean) for name, mean in zip(self.terms, means, strict=True)},
            unit=self.unit.name if self.steps else "",
            images_per_s=steps * self.batch_size / seconds,
            data_wait=self.wait / seconds,
            step_s=max(0.0, seconds - self.wait - self.aside) / steps,
            eta_s=(self.all_steps - trainer.step_count) * pace,
            skipped=trainer.skipped,
            gradient_norms={name: total / max(1, self.steps) for name, total in self.norms.items()},
        )
        self._reset()
        return self.latest
