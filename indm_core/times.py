r"""Time grids: decreasing times from t_max (or where a model starts) to t_min, float64.

    uniform      t_i equally spaced
    power        t_i^(1/power) equally spaced: power 2 is the quadratic grid, dense at small t
    log-rho      log rho(t_i) equally spaced, rho the noise in units of the signal
    edm          rho(t_i)^(1/power) equally spaced
    arctan       arctan(rho(t_i)^(1/3)) equally spaced: dense where noise and signal are of one size

References:
    Song et al. 2021, "Score-based generative modeling through SDEs"; Karras et al. 2022 (EDM), Eq. 5.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from indm_core.ranges import check_positive
from indm_core.sde import SDE, LinearSDE
from indm_core.shapes import Float

__all__ = [
    "MOST_STEPS",
    "arctan_times",
    "check_times",
    "clock",
    "edm_times",
    "log_rho_times",
    "on_device",
    "power_times",
    "times_at",
    "uniform_times",
]

MOST_STEPS = 1_000_000
"""Of a grid: the times of many more would fill the memory."""


def uniform_times(
    sde: SDE, num_steps: int, *, low: float | None = None, high: float | None = None
) -> Float[Tensor, " n"]:
    """num_steps + 1 equally spaced times from t_max down to t_min, float64.

    Args:
        low, high: Other ends: where sampling stops, where it starts.
    """
    return power_times(sde, num_steps, 1.0, low=low, high=high)


def power_times(
    sde: SDE, num_steps: int, power: float, *, low: float | None = None, high: float | None = None
) -> Float[Tensor, " n"]:
    """Times equally spaced in t^(1/power): power 2 is the quadratic grid, dense at small t."""
    check_positive(power=power)
    share, (low, high) = _descending(num_steps), _ends(sde, low, high)
    first, last = low ** (1 / power), high ** (1 / power)
    ts = ((first + share * (last - first)) ** power).clamp(low, high)
    ts[0], ts[-1] = high, low  # a root and its power leave a rounding
    return _with_lengths(ts, power)


def log_rho_times(
    sde: LinearSDE, num_steps: int, *, low: float | None = None, high: float | None = None
) -> Float[Tensor, " n"]:
    """Times equally spaced in log rho, the noise in units of the signal (`LinearSDE.log_rho`)."""
    share, (low, high) = _descending(num_steps), _ends(sde, low, high)
    first, last = _log_rho(sde, low, high)
    return _times_of(sde, first + share * (last - first), low, high)


def edm_times(
    sde: LinearSDE, num_steps: int, power: float = 7.0, *, low: float | None = None, high: float | None = None
) -> Float[Tensor, " n"]:
    """Times equally spaced in rho^(1/power) (Karras et al. 2022, Eq. 5)."""
    check_positive(power=power)
    share, (low, high) = _descending(num_steps), _ends(sde, low, high)
    first, last = (torch.exp(v / power) for v in _log_rho(sde, low, high))
    return _times_of(sde, _with_lengths(power * torch.log(first + share * (last - first)), power), low, high)


def arctan_times(
    sde: LinearSDE, num_steps: int, *, low: float | None = None, high: float | None = None
) -> Float[Tensor, " n"]:
    """Times equally spaced in `clock`."""
    share, (low, high) = _descending(num_steps), _ends(sde, low, high)
    _log_rho(sde, low, high)
    first, last = clock(sde, torch.tensor([low, high], dtype=torch.float64))
    return _times_of(sde, 3 * torch.log(torch.tan(first + share * (last - first))), low, high)


def clock(sde: LinearSDE, t: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """arctan(rho^(1/3)): like rho^(1/3) where there is little noise, and like -rho^(-1/3) where there is little signal."""
    return torch.atan(torch.exp(sde.log_rho(t) / 3))


def _descending(num_steps: int) -> Tensor:
    if num_steps < 1:
        raise ValueError(f"num_steps={num_steps} must be at least 1")
    if num_steps > MOST_STEPS:
        raise ValueError(f"num_steps={num_steps} must be at most {MOST_STEPS:,}")
    return torch.linspace(1, 0, num_steps + 1, dtype=torch.float64)


def _with_lengths(values: Tensor, power: float) -> Tensor:
    """Decreasing values; refuses a power at which rounding makes neighbours equal."""
    if not (values.diff() < 0).all():
        raise ValueError(f"power={power}: of the {len(values) - 1} steps some have no length; take a power nearer to 1")
    return values


def _ends(sde: SDE, low: float | None, high: float | None) -> tuple[float, float]:
    """The ends of a grid inside [t_min, t_max]."""
    low, high = sde.t_min if low is None else low, sde.t_max if high is None else high
    sde.check_time("low", low)
    sde.check_time("high", high)
    if not low < high:
        raise ValueError(f"low={low} must lie below high={high}")
    return low, high


def _log_rho(sde: LinearSDE, low: float, high: float) -> tuple[Tensor, Tensor]:
    """log rho at both ends.

    Raises:
        ValueError: it does not grow between them. A Langevin diffusion that is damped weakly has a psi that passes 0, where rho
            is infinite.
    """
    share = torch.linspace(0, 1, 257, dtype=torch.float64)
    between = torch.cat([low * (high / low) ** share, low + share * (high - low)]).clamp(low, high).sort().values
    value = sde.log_rho(between)
    if not bool((value.diff() >= -1e-12 * (1 + value[1:].abs())).all()):  # nan is no growth either
        raise ValueError(
            f"log-rho and EDM grids need a rho that grows with t, which {sde}'s does not; take a power grid"
        )
    first, last = sde.log_rho(torch.tensor([low, high], dtype=torch.float64))
    return first, last


def times_at(sde: LinearSDE, log_rho: Float[Tensor, " n"], low: float, high: float) -> Float[Tensor, " n"]:
    """The times in [low, high] at which log rho, which grows between them, takes the given values: by bisection in log t."""
    a, b = torch.full_like(log_rho, math.log(low)), torch.full_like(log_rho, math.log(high))
    for _ in range(60):
        middle = 0.5 * (a + b)
        below = sde.log_rho(middle.exp()) < log_rho
        a, b = torch.where(below, middle, a), torch.where(below, b, middle)
    return torch.exp(0.5 * (a + b)).clamp(low, high)


def _times_of(sde: LinearSDE, log_rho: Tensor, low: float, high: float) -> Tensor:
    """`times_at`, with exact ends."""
    t = times_at(sde, log_rho, low, high)
    t[0], t[-1] = high, low
    if not (sde.log_rho(t).diff() < 0).all() or not (t.diff() < 0).all():
        raise ValueError(
            f"log-rho and EDM grids need a rho that grows with t, which {sde}'s does not; take a power grid"
        )
    return t


def check_times(sde: SDE, ts: Tensor) -> None:
    """Refuses a grid that is not strictly decreasing or leaves [t_min, t_max]."""
    if ts.dtype != torch.float64:
        raise ValueError(
            f"ts: times of type {ts.dtype}; give float64, or the smallest time is rounded out of the range"
        )
    if ts.ndim != 1 or len(ts) < 2:
        raise ValueError(f"ts: a grid needs at least two times in one dimension, got shape {tuple(ts.shape)}")
    steps = ts[1:] - ts[:-1]
    if not bool((steps < 0).all()):
        i = int((~(steps < 0)).nonzero()[0])
        raise ValueError(f"ts must decrease: ts[{i}]={float(ts[i]):g} is followed by ts[{i + 1}]={float(ts[i + 1]):g}")
    sde.check_time("ts[0]", float(ts[0]))
    sde.check_time("ts[-1]", float(ts[-1]))


def on_device(ts: Float[Tensor, " n"], device: torch.device) -> Float[Tensor, " n"]:
    """The grid on a device, float64. It is sent there once for all samplings of the same grid, so that nothing is sent in the
    middle of one that is recorded as a CUDA graph."""
    return _sent(tuple(ts.tolist()), device)


@lru_cache(maxsize=8)
def _sent(times: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(times, dtype=torch.float64, device="cpu").to(device)
