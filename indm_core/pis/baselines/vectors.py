r"""Flows of vectors that carry a Gaussian to a target: x = h(x_0).

The map that is trained and sampled is `Flow.forward`, whose log-det is log|det dx/dx_0|, so that no inverse is ever asked for:
`ResFlow`, whose inverse is an iteration, costs in this direction what couplings cost.

log_det stands in the logarithm of an importance weight, and the exponential of an unbiased estimate is biased. So samples are
weighed in evaluation mode, in which both flows here have the exact log-det. In training `residual` takes the unbiased estimate
above four dimensions, whose gradient is unbiased too.
"""

from __future__ import annotations

from indm_core.flow import ActNorm, Composed, Flow, Glow, LipSwish, ResFlow
from indm_core.ranges import check_count

__all__ = ["couplings", "residual"]


def couplings(dim: int, *, steps: int = 4, hidden: int = 32) -> Flow:
    """Affine couplings between learned scales and mixings (`Glow` on a vector); begins at the identity.

    One coordinate has no other to be coupled to: there it is `residual`, of as many blocks and units.

    Args:
        dim: d.
        steps: Of actnorm, mixing and coupling.
        hidden: Units of a coupling's network.
    """
    check_count(dim=dim)
    if dim == 1:
        return residual(dim, blocks=steps, width=hidden)
    return Glow((dim,), levels=1, steps=steps, hidden=hidden, start="identity")


def residual(dim: int, *, blocks: int = 8, width: int = 64) -> Flow:
    """Residual blocks and a learned scale and shift; begins at the identity.

    The exact log-det asks for a Jacobian of d rows per block in evaluation.

    Args:
        dim: d.
        blocks: Residual blocks.
        width: Units of their two hidden layers.
    """
    check_count(dim=dim, blocks=blocks)
    flow = ResFlow((dim,), blocks=(blocks,), width=width, activation=LipSwish, exact_eval=dim)
    return Composed([flow, ActNorm((dim,))])
