r"""Likelihoods of a diffusion model, in nats per sample.

NLL. The probability-flow ODE  du/dt = v(u, t) = drift - 1/2 GG^T score  transports densities:

    log p_t(u_t) = log p_{t_start}(u_{t_start}) + int_t^{t_start} div v dt,

For a linear SDE, whose drift is F u,

    div v = tr F - 1/2 tr(GG^T ds/du) = tr F - 1/2 E[p^T GG^T (ds/du) p],        p with E[p p^T] = I where GG^T is not zero,

tr F in closed form and Rademacher probes p, held along a trajectory, in the coordinates that noise acts on (CLD: the
velocities), which is unbiased; or exactly, with the unit vectors of these coordinates. Probes over the whole state would see
the large blocks of F and of GG^T ds/du between position and velocity, which cancel in the mean only. Where the drift is
learned the probes go over the whole state and div v is E[p^T (dv/du) p]. The score is unusable below t_min, so data enter at
t_min through q(u | x) and the residual (`LinearSDE.residual`):

    -log p(x) <= -log_det + E_q[-log p_{t_min}(u) + log q(u | x) - log p(x | u)],        both densities at the same draw.

Two solvers: `rk45`, to tolerances of the state and of the integral, for every model; and `exponential` (`density`), for linear
SDEs, at a number of evaluations or to a tolerance of the log-density itself, in nats.

NELBO. The bound on the generative SDE's likelihood, whose form is the model's (`elbo`, `diffflow`). The sign of NELBO - NLL
is no theorem: the NLL is the ODE's, the NELBO bounds the SDE's likelihood.

References:
    Theis et al. 2016 (dequantisation); Chen et al. 2018 (FFJORD); Song et al. 2021, Eq. 39; Kim et al. 2022 (INDM),
    section 7.1 and appendix E.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from indm_core.errors import ConvergenceError
from indm_core.exponential import Carried, Local, carry_density
from indm_core.model import GenerativeModel, Node
from indm_core.noise import Noise, branch, rademacher_like, rand_like, randn_like
from indm_core.ode import State, in_sqrt_time, rk45
from indm_core.ranges import check_not_negative, check_positive
from indm_core.sde import SDE, apply
from indm_core.shapes import Float
from indm_core.times import MOST_STEPS

__all__ = ["Node", "Solver", "bits_per_dim", "check_solver", "dequantise", "log_prob_u", "nelbo", "nll", "quantise"]

Solver = Literal["rk45", "exponential"]

LADDER = tuple(round(30 * 1.5**k) for k in range(10))
"""Steps of the grids that `exponential` refines to a tolerance; coarser ones may err by more than they say."""


def bits_per_dim(nats: Tensor, num_dims: int, levels: int, low: float, high: float) -> Tensor:
    """nats / (D ln 2) + log2(levels / (high - low)): bits/dim of the discrete data behind dequantised, scaled values.

    Args:
        nats: Negative log-likelihood of x in [low, high].
        num_dims: D.
        levels: Number of levels the data had: k became low + (high - low) (k + u)/levels.
    """
    check_positive(num_dims=num_dims)
    if not 2 <= levels < math.inf or not -math.inf < low < high < math.inf:
        raise ValueError(f"levels={levels} must be at least 2 and high={high} above low={low}")
    return nats / (num_dims * math.log(2)) + math.log2(levels / (high - low))


def dequantise(k: Tensor, levels: int, low: float, high: float, generator: Noise = None) -> Tensor:
    """x = low + (high - low) (k + u)/levels with u uniform on [0, 1): continuous data whose density integrates over a cell
    to the probability of a level (Theis et al. 2016).

    Args:
        k: Levels 0, ..., levels - 1, (b, *event), any dtype.
        levels: L; 0 says that the data are continuous already, and they are returned as float32.
        low, high: Range of x.
    """
    check_not_negative(levels=levels)
    x = k.float()
    if levels == 0:
        return x
    return low + (high - low) * (x + rand_like(x, generator)) / levels


def quantise(x: Tensor, levels: int, low: float, high: float) -> Tensor:
    """The level of each x, the inverse of `dequantise`; x outside [low, high) goes to the nearest level. int64."""
    return ((x - low) / (high - low) * levels).floor().clamp(0, levels - 1).long()


def nll(
    model: GenerativeModel,
    x: Float[Tensor, " b *event"],
    *,
    residual: bool = True,
    num_probes: int = 1,
    exact_divergence: bool = False,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    solver: Solver = "rk45",
    nfe: int = 0,
    tolerance: float = 3e-2,
    generator: Noise = None,
    y: Tensor | None = None,
) -> Float[Tensor, " b"]:
    """-log p(x) by the probability-flow ODE.

    Args:
        residual: True ("after correction"): an upper bound in expectation over one draw at t_min. False ("before"): x is
            fed at t_min as it is, without the term; not comparable with the bound.
        num_probes: Hutchinson probes per trajectory.
        exact_divergence: One vector-Jacobian product per coordinate that noise acts on (all where the drift is learned) instead
            of probes.
        rtol, atol: Tolerances of rk45, per sample.
        solver: rk45, or exponential, for linear SDEs.
        nfe: Evaluations of exponential; 0: as many as a sample's error estimate takes to be at most `tolerance`.
        tolerance: Of that estimate, nats; the error itself is smaller, mostly five times or more.
        y: Labels, for a conditional score: the likelihood is that of x given y.

    Returns:
        Nats per sample; unbiased for the bound given exact arithmetic in t.
    """
    model.check_data(x)
    model.check_label(y, len(x))
    check_solver(solver, nfe, tolerance)
    how = {"rtol": rtol, "atol": atol, "solver": solver, "nfe": nfe, "tolerance": tolerance}
    options = {"num_probes": num_probes, "exact_divergence": exact_divergence, **how}
    with torch.no_grad():
        u, log_det = model.encode(x, branch(generator))
        t_min = torch.tensor(model.sde.t_min, dtype=torch.float64, device=x.device)
        correction = x.new_zeros(x.shape[0])
        if residual:
            u, correction = model.sde.enter(u, t_min, randn_like(u, generator), lambda u, t: model.score(u, t, y))
    log_prob = log_prob_u(model, u, model.sde.t_min, generator=generator, y=y, **options)
    return -log_det - log_prob + correction


def log_prob_u(
    model: GenerativeModel,
    u: Float[Tensor, "b *event k"],
    t: float,
    *,
    num_probes: int = 1,
    exact_divergence: bool = False,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    solver: Solver = "rk45",
    nfe: int = 0,
    tolerance: float = 3e-2,
    generator: Noise = None,
    y: Tensor | None = None,
) -> Float[Tensor, " b"]:
    """log p_t(u) of the probability-flow ODE that starts from the model's law at t_start, nats.

    Args:
        t: Time of u, in [t_min, t_start].
        rtol, atol, solver, nfe, tolerance: As of `nll`.

    Raises:
        ValueError: t outside [t_min, t_max], no probe, or a solver that the SDE does not allow.
        ConvergenceError: the ODE does not reach its tolerance.
    """
    model.sde.check_time("t", float(t))
    check_solver(solver, nfe, tolerance)
    if num_probes < 1:
        raise ValueError(f"num_probes={num_probes} must be at least 1")
    probes = _probes(model.sde, u, num_probes, exact_divergence, generator)
    field = _Field(model, probes, 1.0 if exact_divergence else 1 / num_probes, y)
    if solver == "exponential":
        u_T, growth = _exponential(field, u, float(t), nfe, tolerance)
    else:
        ends = math.sqrt(t), math.sqrt(model.t_start)
        (u_T, growth), _ = rk45(in_sqrt_time(field), (u, u.new_zeros(u.shape[0])), *ends, rtol=rtol, atol=atol)
    with torch.no_grad():
        return model.log_prob_start(u_T, generator) + growth


def check_solver(solver: str, nfe: int, tolerance: float) -> None:
    """Refuses options of `nll` that do not go together."""
    if solver not in get_args(Solver):
        raise ValueError(f"solver={solver!r} is none of {', '.join(get_args(Solver))}")
    check_positive(tolerance=tolerance)
    if nfe and solver != "exponential":
        raise ValueError(f"nfe={nfe} is of solver='exponential', to be given with it; rk45 goes to rtol and atol")
    if nfe < 0 or nfe == 1:
        raise ValueError(f"nfe={nfe} must be at least 2, or 0, which takes as many as the tolerance needs")
    if nfe > MOST_STEPS:
        raise ValueError(f"nfe={nfe} must be at most {MOST_STEPS:,}")


@dataclass(frozen=True)
class _Field:
    """The ODE of a state and of the integral of div v, for some rows of a batch.

    Args:
        probes: (n, b, *event, k).
        average: What the sum over probes is multiplied by.
        y: Labels of the batch.
    """

    model: GenerativeModel
    probes: Tensor
    average: float
    y: Tensor | None

    def __call__(self, t: Tensor, state: State, rows: Tensor) -> State:
        """(v, div v), each row at its own time."""
        u, t = state[0], t.reshape(-1, *[1] * (state[0].ndim - 2))
        _, w, divergence = self.evaluate(u, t, rows)
        sde: SDE = self.model.sde
        if sde.linear is None:
            return w, divergence
        return sde.drift(u, t) + w, sde.linear.drift_divergence(u, t) + divergence

    def evaluate(self, u: Tensor, t: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The score, w and div w from one evaluation of the score; w is the part of v that is not linear, or v where the drift
        is learned."""
        sde: SDE = self.model.sde
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            score = self.model.score(u, t, None if self.y is None else self.y[rows])
            w = -apply(0.5 * sde.GG(t), score)
            if sde.linear is None:
                w = sde.drift(u, t) + w
            probed = u.new_zeros(u.shape[0])
            for i, p in enumerate(self.probes[:, rows]):
                (pulled,) = torch.autograd.grad(w, u, p, retain_graph=i + 1 < len(self.probes))
                probed = probed + (pulled * p).flatten(1).sum(1)
        return score.detach(), w.detach(), self.average * probed


def _exponential(field: _Field, u: Tensor, t: float, nfe: int, tolerance: float) -> tuple[Tensor, Tensor]:
    """The state at t_start and int div v by exponential integrators."""
    sde, high = field.model.sde.linear, field.model.t_start
    if sde is None:
        raise ValueError(f"solver='exponential' needs a linear SDE, not {type(field.model.sde).__name__}; use 'rk45'")
    if t >= high:
        return u, u.new_zeros(len(u))

    def carried(rows: Tensor, num_steps: int) -> Carried:
        def local(u: Tensor, t: Tensor) -> Local:
            score, _, probed = field.evaluate(u, t, rows)
            return Local(score=score, probed=probed)

        return carry_density(sde, local, u[rows], t, high, num_steps=num_steps)

    every = torch.arange(len(u), device=u.device)
    found = carried(every, nfe - 1) if nfe else _refined(carried, every, tolerance)
    return found.u, found.growth


def _refined(carried: Callable[[Tensor, int], Carried], rows: Tensor, tolerance: float) -> Carried:
    """Every sample on the grid that it needs, whatever the others do.

    All begin with the coarsest grid of the ladder. A sample whose estimate is above the tolerance goes to a finer one, the one
    that the estimate asks for where it falls with the third power of the steps.
    """
    steps = torch.tensor(LADDER, dtype=torch.float64, device=rows.device)
    found, rung = carried(rows, LADDER[0]), torch.zeros_like(rows)
    while bool((unfit := ~(found.error <= tolerance)).any()):
        wanted = steps[rung] * (found.error.double() / tolerance).nan_to_num(math.inf) ** (1 / 3)
        following = torch.maximum(torch.searchsorted(steps, wanted), rung + 1)
        k = int(following[unfit].min())
        if k == len(LADDER):
            raise ConvergenceError(
                f"solver='exponential' at tolerance={tolerance:g}: {LADDER[-1]} steps were not enough for {int(unfit.sum())} "
                f"of {len(rows)} samples; use a larger tolerance, or rk45, or check that the model's output is finite"
            )
        here = (unfit & (following == k)).nonzero().squeeze(1)
        found, rung[here] = found.with_rows(here, carried(rows[here], LADDER[k])), k
    return found


def _probes(sde: SDE, u: Tensor, num_probes: int, exact: bool, generator: Noise) -> Tensor:
    """Probes (n, b, *event, k) in the coordinates whose divergence has no closed form: those that noise acts on, or all where
    the drift is learned. Exact: the unit vectors of these coordinates."""
    acting = torch.ones_like(u[:1]) if sde.linear is None else sde.linear.driven(u)
    if not exact:
        return torch.stack([rademacher_like(u, generator) * acting for _ in range(num_probes)])
    units = torch.diag(acting.flatten())[acting.flatten() > 0]
    return units.reshape(-1, 1, *u.shape[1:]).expand(-1, *u.shape)


@torch.no_grad()
def nelbo(
    model: GenerativeModel,
    x: Float[Tensor, " b *event"],
    *,
    residual: bool = True,
    num_draws: int = 1,
    nodes: Sequence[Node] | None = None,
    generator: Noise = None,
    y: Tensor | None = None,
) -> Float[Tensor, " b"]:
    """The variational bound on -log p(x) of the generative SDE.

    Args:
        residual: Whether the bound is carried from t_min to the data; without it, it is the bound at t_min.
        num_draws: Draws of (t, eps) per sample; an even number is taken as antithetic pairs, and from 8 on the control variate
            is fitted, on the sample's own draws.
        nodes: Explicit quadrature nodes instead of draws.
        y: Labels, for a conditional score: the likelihood is that of x given y.

    Returns:
        Nats per sample, unbiased over the draws.
    """
    return model.nelbo(x, residual=residual, num_draws=num_draws, nodes=nodes, generator=generator, y=y)
