"""Samples and their features on disk, in pieces: what a table of samplers has done is not done again."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from indm_core.sampling import Sampling
from pipelines.config.weights import Weights
from pipelines.evaluation.measurements.distances import SampleBatch
from pipelines.evaluation.sampling.rows import Row
from pipelines.storage.files import write_tensors

__all__ = ["PIECE", "Pieces"]

PIECE = 250
"""Samples of a task and of a file."""
SHOWN = 2000
"""Samples that are kept themselves, of the first piece."""
LATER = (
    "times",
    "power",
    "langevin_steps",
    "langevin_step",
    "final_step",
    "predictor",
    "metropolis",
    "repeats",
    "reevaluate",
    "prediction",
    "final",
    "churn",
    "churn_noise",
    "churn_from",
    "churn_to",
)
"""Options that came after the first pieces were written: at their defaults they do not count, so that those are still found."""


@dataclass(frozen=True)
class Pieces:
    """The samples of one row of one run; the directory follows from all that they depend on.

    Args:
        directory: RUN/compare/SAMPLER-HASH.
    """

    directory: Path

    @staticmethod
    def of(run: Weights, model: str, row: Row, features: str) -> Pieces:
        """
        Args:
            model: Identity of the run's model.
            features: Of the feature network and the kind of device.
        """
        default = Sampling()
        options = {k: v for k, v in asdict(row.sampling).items() if k not in LATER or v != getattr(default, k)}
        options |= {"start": row.start} if row.start != "prior" else {}
        options |= {"strength": row.strength} if row.strength != 1 else {}
        text = f"{model}\n{json.dumps(options, sort_keys=True)}\n{features}"
        key = hashlib.sha256(text.encode()).hexdigest()[:16]
        return Pieces(run / "compare" / f"{row.sampling.sampler}-{key}")

    def write(self, seeds: range, made: SampleBatch) -> None:
        """Keeps the samples of some seeds."""
        self.directory.mkdir(parents=True, exist_ok=True)
        tensors = made.pack()
        # the features of vectors are the vectors, and a file takes no memory twice
        first = {"shown": tensors.pop("shown")[:SHOWN].clone()} if seeds.start == 0 else {}
        write_tensors(self._file(seeds), tensors | first)

    def read(self, seeds: range) -> SampleBatch | None:
        """What was kept; None where there is none, or half of one."""
        try:
            return SampleBatch.unpack(load_file(self._file(seeds)))
        except (OSError, SafetensorError, KeyError, ValueError):
            return None

    def _file(self, seeds: range) -> Path:
        return self.directory / f"{seeds.start:06d}-{seeds.stop:06d}.safetensors"
