"""What the command takes that exports a run."""

from __future__ import annotations

from dataclasses import dataclass, field

from indm_core.sampling import Sampling

__all__ = ["ExportOptions"]


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Where a run is exported to.

    Args:
        to: The directory: new, empty, or one that an export wrote.
        num_samples: Samples in the grid; 0 takes 64 images or 1,000 vectors.
        seed: Of the first sample.
        sampling: The sampler and its options.
        licence: Of the weights, as the hub names it (apache-2.0, cc-by-4.0, ...).
        traceback: Show where an error came from.
    """

    to: str = ""
    num_samples: int = 0
    seed: int = 0
    sampling: Sampling = field(default_factory=Sampling)
    licence: str = "unknown"
    traceback: bool = False

    def __post_init__(self) -> None:
        if self.num_samples < 0 or self.seed < 0:
            raise ValueError(f"num_samples={self.num_samples} and seed={self.seed} must not be negative")
