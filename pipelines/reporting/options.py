"""What the commands that report take."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["DiagnoseOptions", "ErrorOptions", "ReportOptions"]


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """What is reported.

    Args:
        images: Test images (or rows) that the diagnostics are taken on; 0 leaves them out, which makes the report fast.
        samples: Images that are drawn of a run of which `evaluate.py` left none, beside as many of the data; 0 draws none, and
            no pair plots of vectors either.
        out: Directory of the report; RUN/report of the first run where it is empty.
        traceback: Show where an error came from.
    """

    images: int = 64
    samples: int = 64
    out: str = ""
    traceback: bool = False

    def __post_init__(self) -> None:
        if self.samples < 0:
            raise ValueError(f"samples={self.samples} must not be negative; 0 draws none")
        if self.images < 0 or self.images == 1:
            raise ValueError(f"images={self.images} must be 0 or at least 2")


@dataclass(frozen=True, kw_only=True)
class ErrorOptions:
    """How the three errors are measured.

    Args:
        rows: Data that the sets are made of; 0 leaves Theorem 4 out.
        steps: N of the sampler whose discretisation is measured, on the quadratic grid.
        fine_steps: N of the fine solution.
    """

    rows: int = 500
    steps: int = 20
    fine_steps: int = 500

    def __post_init__(self) -> None:
        if self.rows < 0 or 0 < self.rows < 40:
            raise ValueError(f"rows={self.rows} must be 0 or at least 40: errors come from 20 groups of rows")
        if not 1 <= self.steps < self.fine_steps:
            raise ValueError(f"steps={self.steps} must lie between 1 and fine_steps={self.fine_steps}")


@dataclass(frozen=True, kw_only=True)
class DiagnoseOptions:
    """What is diagnosed.

    Args:
        images: Test images, and as many samples, that the figures are taken on.
        errors: How the three errors of Theorem 4 are measured.
        out: Directory of the page and its figures; RUN/diagnose of the first run where it is empty.
        traceback: Show where an error came from.
    """

    images: int = 32
    errors: ErrorOptions = field(default_factory=ErrorOptions)
    out: str = ""
    traceback: bool = False

    def __post_init__(self) -> None:
        if self.images < 2:
            raise ValueError(f"images={self.images} must be at least 2")
