r"""`check_sde`: what every SDE owes (`every_sde`), and what a linear one does (`linear_sde`)."""

from __future__ import annotations

import torch

from indm_core.checks.claims import holds, seeded, verify
from indm_core.checks.every_sde import FIRST, LAST, Case
from indm_core.checks.linear_sde import LINEAR, LinearCase
from indm_core.sde import SDE

__all__ = ["check_sde"]


def check_sde(sde: SDE, *, shape: tuple[int, ...] | None = None) -> None:
    """The identities of an SDE, and those of a linear one where `sde.linear` is one; in float64.

    A learned drift that takes float32 only is checked in float32.

    Args:
        sde: An instance; several with unusual parameters find more than one.
        shape: Event of the data, (d,) or (c, h, w). None: one that the SDE accepts is looked for.

    Raises:
        AssertionError: an identity does not hold. The message names it, its largest error, where and what should be there.
        ValueError: no event's shape was accepted; give `shape`.
    """
    shape = _event(sde) if shape is None else tuple(shape)
    dtype = next((dtype for dtype in (torch.float64, torch.float32) if _accepts(sde, shape, dtype)), torch.float64)
    x = torch.randn(4, *shape, generator=seeded(5), dtype=torch.float64).to(dtype)
    name, linear = type(sde).__name__, sde.linear
    verify(name, {"embed(x) gives a state": lambda sde: holds(sde.embed(x).ndim == x.ndim + 1, "of another rank")}, sde)
    u, other = torch.randn(2, *sde.embed(x).shape, generator=seeded(4), dtype=torch.float64).to(dtype)
    if linear is None:
        verify(name, FIRST | LAST, Case(sde=sde, x=x, u=u, other=other))
    else:
        verify(name, FIRST | LINEAR | LAST, LinearCase(sde=linear, x=x, u=u, other=other))


def _event(sde: SDE) -> tuple[int, ...]:
    """The first event that the SDE accepts: of the positions *e of its coefficients, or of a few shapes where it has none."""
    e = _positions(sde)
    shapes = [e, (1, *e), (2, *e)] if e else [(3,), (2,), (1,), (2, 3, 4), (1, 4, 4), (1, 8, 8), (3, 8, 8), (3, 32, 32)]
    for shape in shapes:
        if any(_accepts(sde, shape, dtype) for dtype in (torch.float64, torch.float32)):
            return shape
    if sde.linear is not None:
        return shapes[0]  # what it raises there is what is wrong with it
    raise ValueError(f"shape: none of {shapes} is an event that {type(sde).__name__} accepts; give its own")


def _positions(sde: SDE) -> tuple[int, ...]:
    """*e, () where there is none to see."""
    try:
        t = torch.tensor(0.5 * sde.t_max, dtype=torch.float64)
        return tuple(sde.linear.psi0(t).shape[:-2]) if sde.linear is not None else ()
    except Exception:
        return ()


def _accepts(sde: SDE, shape: tuple[int, ...], dtype: torch.dtype) -> bool:
    try:
        u = sde.embed(torch.zeros(2, *shape, dtype=dtype))
        sde.check_state(u)
        sde.drift(u, torch.tensor(0.5 * sde.t_max, dtype=torch.float64))
    except Exception:
        return False
    return True
