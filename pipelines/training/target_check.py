"""What a target is asked before any work is spent on it: all that training and drawing will ask.

A target of the user's is code of any kind. x are draws of N(0, T g^2 I), where uncontrolled paths end. At them log mu^(x) is a
number or -inf, and it leaves x as it is; with the loss log-variance, which is infinite where one path ends at -inf, a number.
What goes wrong only elsewhere shows in training, which skips such steps.
"""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral, Real
from typing import TypeVar

import torch
from torch import Tensor

from indm_core.pis import Target
from pipelines.config.pis import PISRun
from pipelines.storage.messages import one_line

__all__ = ["check_target"]

NUM, SEED = 64, 0
T = TypeVar("T")


def check_target(run: PISRun) -> None:
    """Asks the target at draws of the uncontrolled process what training and drawing will ask it.

    Raises:
        ValueError: its code raises, it has no dim, its log_z is no number, its log_prob gives what cannot be trained on, or its
            exact samples are none.
    """
    target, generator = run.target.build(), torch.Generator().manual_seed(SEED)
    dim = _asked(
        run, "dim", lambda: target.requires_grad_(False).dim, "set it, and begin __init__ by super().__init__()"
    )
    _check_numbers(run, dim, target.log_z)
    x = run.volatility * run.t_max**0.5 * torch.randn(NUM, dim, generator=generator)
    given = x.clone().requires_grad_(run.differentiates)
    log_mu = _asked(run, "log_prob", lambda: target.log_prob(given))
    _check_form(run, log_mu, x)
    if not torch.equal(given.detach(), x):
        raise ValueError(f"{run.recipe}: log_prob changes the x that it is given; let it change a copy, x.clone()")
    _check_values(run, log_mu, x)
    if run.differentiates:
        _check_gradient(run, log_mu, given)
    if target.exact:
        _check_exact(run, target, generator)


def _asked(run: PISRun, what: str, ask: Callable[[], T], remedy: str = "correct it; --traceback shows where") -> T:
    """What code of the user's answers.

    Raises:
        ValueError: it raises; what, and the remedy.
    """
    try:
        return ask()
    except (Exception, SystemExit) as error:
        raise ValueError(f"{run.recipe}: {what} raised {type(error).__name__}: {one_line(error)}; {remedy}") from error


def _check_numbers(run: PISRun, dim: object, log_z: object) -> None:
    if not isinstance(dim, Integral) or dim < 1:
        raise ValueError(f"{run.recipe}: dim={dim!r} must be an integer of at least 1")
    if not isinstance(log_z, Real | Tensor) or (isinstance(log_z, Tensor) and log_z.numel() != 1):
        raise ValueError(f"{run.recipe}: log_z={log_z!r} is no number; leave it out where it is not known")


def _check_form(run: PISRun, log_mu: object, x: Tensor) -> None:
    if not isinstance(log_mu, Tensor):
        raise ValueError(f"{run.recipe}: log_prob gave a {type(log_mu).__name__}; it gives a torch.Tensor of ({NUM},)")
    if log_mu.shape != (NUM,):
        raise ValueError(
            f"{run.recipe}: log_prob gave the shape {tuple(log_mu.shape)} for x of {tuple(x.shape)}; it gives ({NUM},)"
        )
    if log_mu.is_complex() or log_mu.dtype == torch.bool:
        raise ValueError(f"{run.recipe}: log_prob gave {log_mu.dtype}; it gives real numbers")


def _check_values(run: PISRun, log_mu: Tensor, x: Tensor) -> None:
    wrong = log_mu.isnan() | log_mu.isposinf()
    if wrong.any():
        raise ValueError(
            f"{run.recipe}: log_prob is {log_mu[wrong][0]:g} at x={_shown(x[wrong])}; it gives a number, or -inf, everywhere"
        )
    nowhere = log_mu.isneginf()
    if nowhere.all():
        raise ValueError(
            f"{run.recipe}: log_prob is infinite at all of {NUM} draws of N(0, {run.volatility**2 * run.t_max:g} I); give "
            "another --variance"
        )
    if nowhere.any() and run.loss == "log-variance":
        raise ValueError(
            f"{run.recipe}: log_prob is -inf at x={_shown(x[nowhere])}, where the loss log-variance is infinite; give --loss "
            "kl, or let log_prob fall off to a large negative number"
        )


def _check_gradient(run: PISRun, log_mu: Tensor, x: Tensor) -> None:
    remedy = "give --control nn --loss log-variance, which ask for none"
    if not log_mu.requires_grad:
        raise ValueError(f"{run.recipe}: log_prob has no gradient in x; {remedy}")
    finite = log_mu[log_mu.isfinite()].sum()
    (gradient,) = _asked(run, "the gradient of log_prob", lambda: torch.autograd.grad(finite, x))
    if not gradient.isfinite().all():
        raise ValueError(f"{run.recipe}: the gradient of log_prob is not finite at some x; mend it, or {remedy}")


def _check_exact(run: PISRun, target: Target, generator: torch.Generator) -> None:
    remedy = (
        f"it gives ({NUM}, {target.dim}) finite numbers of `num={NUM}` and a generator, or leave out `exact = True`"
    )
    found = _asked(run, "sample", lambda: target.sample(NUM, generator), remedy)
    if not isinstance(found, Tensor) or found.shape != (NUM, target.dim) or not found.isfinite().all():
        gave = f"the shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise ValueError(f"{run.recipe}: sample gave {gave}; {remedy}")


def _shown(x: Tensor) -> str:
    """The first of some points, its first coordinates."""
    numbers = ", ".join(f"{number:.4g}" for number in x[0, :4].tolist())
    return f"[{numbers}{', ...' if x.shape[1] > 4 else ''}]"
