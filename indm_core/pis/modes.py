"""Which of a target's modes weighted samples cover.

The neighbourhood of a mode is all that lies nearer to its centre than to the others (`Target.modes`). A mode's fair weight is
the share of exact samples there or, of modes that weigh the same, 1/(number of modes).
"""

from __future__ import annotations

import torch
from torch import Tensor

from indm_core.shapes import Float

__all__ = ["mode_shares", "modes_covered"]


def mode_shares(
    x: Float[Tensor, "n d"], log_w: Float[Tensor, " n"], modes: Float[Tensor, "k d"]
) -> Float[Tensor, " k"]:
    """The share of the weight in the neighbourhood of each centre; they sum to 1.

    Raises:
        ValueError: no centres.
    """
    if not len(modes):
        raise ValueError("modes: the target names none, so that there are none to count")
    nearest = torch.cdist(x, modes.to(x)).argmin(1)
    shares = torch.zeros(len(modes), dtype=torch.float64, device=x.device)
    return shares.index_add(0, nearest, log_w.double().softmax(0))


def modes_covered(
    shares: Float[Tensor, " k"], fair: Float[Tensor, " k"] | None = None, *, at_least: float = 0.5
) -> int:
    """The number of modes that hold at least a share of their fair weight.

    Args:
        shares: Of `mode_shares`.
        fair: Fair weights, such as `mode_shares` of exact samples; None where all modes weigh the same.
        at_least: The share, above 0.

    Raises:
        ValueError: `at_least` is not above 0: every mode would count.
    """
    if not at_least > 0:
        raise ValueError(f"at_least={at_least} must be above 0: else modes without any weight count")
    fair = torch.full_like(shares, 1 / len(shares)) if fair is None else fair
    return int((shares >= at_least * fair).sum())
