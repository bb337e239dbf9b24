"""How the time of actors was shared between the kinds of an evaluation's work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

__all__ = ["Share", "share_lines"]


@final
@dataclass(frozen=True, kw_only=True)
class Share:
    """The work of one kind.

    Args:
        model: The run that it was for; '' for the data, or for all.
        kind: Such as NLL, samples, canvases.
        tasks: How many.
        seconds: Of actors, all together.
    """

    model: str
    kind: str
    tasks: int
    seconds: float


def share_lines(shares: Sequence[Share], elapsed: float) -> str:
    """A line for each model: the actors' seconds by kind, and their part of all.

    Args:
        elapsed: Seconds that the evaluation took.
    """
    whole = sum(share.seconds for share in shares)
    if not whole:
        return ""
    models: dict[str, list[Share]] = {}
    for share in shares:
        models.setdefault(share.model, []).append(share)
    lines = [f"time of actors: {whole:.1f} s in {elapsed:.1f} s"]
    for model, of in models.items():
        each = (
            f"{share.kind} {share.seconds:.1f} s ({share.seconds / whole:.0%}, {share.tasks} tasks)" for share in of
        )
        lines.append(f"  {model or 'data'}: {', '.join(each)}")
    return "\n".join([*lines, ""])
