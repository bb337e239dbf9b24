"""Log-densities by the solvers at equal measured error: RK45 per sample, exponential integrators, and RK45 of the whole batch.

    python benchmarks/likelihood.py                     # exact scores: 25 modes in the plane, correlated images of 64 pixels
    python benchmarks/likelihood.py --run RUN           # the network of a run trained on the digits

The last is the form of public codes: scipy's solve_ivp over the batch as one vector, in t, one step size for all samples. All
take the same states at t_min and the same probes. The error is the mean over samples of |log p - reference|, nats; the
reference is RK45 at 1e-9 (of a network `--reference`). Evaluations are of the network, per sample; seconds
those of the processor, one thread, the median of `--rounds` in turn. The last columns are interpolated ratios: the seconds, and
the evaluations, that RK45 of the whole batch and RK45 per sample take for the same error, over those of the row.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor, nn

from benchmarks.inverse import digits
from benchmarks.samplers import Mixture, correlated, modes
from indm_core.flow import Identity
from indm_core.likelihood import log_prob_u
from indm_core.model import INDM, GenerativeModel
from indm_core.noise import rademacher_like
from indm_core.sde import VP, LinearSDE, apply
from pipelines import load

__all__ = ["Case", "Row", "by_scipy", "measure"]

RTOL = (1e-2, 1e-3, 1e-4, 1e-5)
NFE = (21, 31, 46, 69)
TOLERANCES = (1e-1, 3e-2, 1e-2)


class Exact(nn.Module):
    """A backbone whose eps is that of a mixture."""

    def __init__(self, law: Mixture) -> None:
        super().__init__()
        self.law = law

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        sde = self.law.sde
        u = sde.from_network(x)
        t = t.reshape(-1, *[1] * (u.ndim - 2))
        return sde.to_network(-apply(sde.R(t).mT, self.law.score(u, t)))


@dataclass(frozen=True, kw_only=True)
class Case:
    """States at t_min of a model, and the log-densities there with the probes of seed 0."""

    model: INDM
    u: Tensor
    reference: Tensor


@dataclass(frozen=True, kw_only=True)
class Row:
    """One solver: mean and largest error in nats, evaluations per sample, seconds of the processor."""

    name: str
    error: float
    largest: float
    evaluations: float
    seconds: float


def of_mixture(make: Callable[[LinearSDE], Mixture], num: int) -> Case:
    """Samples of the law at t_min."""
    law, generator = make(VP()), torch.Generator().manual_seed(1)
    sde, picks = law.sde, torch.randint(len(law.means), (num,), generator=generator)
    noise = torch.randn(law.means[picks].shape, generator=generator, dtype=torch.float64)
    u_0 = sde.embed(law.means[picks] + law.variances[picks].sqrt() * noise)
    t = torch.tensor(sde.t_min, dtype=torch.float64)
    u = sde.perturb(u_0, t, torch.randn(u_0.shape, generator=generator, dtype=torch.float64))
    model = INDM(Identity(), Exact(law), sde, shape=tuple(law.means.shape[1:])).double().eval()
    return Case(model=model, u=u, reference=solved(model, u, rtol=1e-9, atol=1e-9))


def of_run(run: str, num: int, dtype: torch.dtype, tolerance: float) -> Case:
    """Digits, dequantised, encoded and noised to t_min."""
    model, generator = load(run).to(dtype).eval(), torch.Generator().manual_seed(1)
    with torch.no_grad():
        u_0, _ = model.encode(digits((1, 8, 8))[-num:].to(dtype), generator)
    if not isinstance(model, INDM):
        raise ValueError(f"{run} is of a {type(model).__name__}; give the run of an INDM")
    sde, t = model.sde, torch.tensor(model.sde.t_min, dtype=torch.float64)
    u = sde.perturb(u_0, t, torch.randn(u_0.shape, generator=generator, dtype=dtype))
    return Case(model=model, u=u, reference=solved(model, u, rtol=tolerance, atol=tolerance).double())


def solved(model: GenerativeModel, u: Tensor, **options: object) -> Tensor:
    """log p at t_min by `log_prob_u` with the probes of seed 0."""
    return log_prob_u(model, u, model.sde.t_min, generator=torch.Generator().manual_seed(0), **options)  # pyright: ignore


def by_scipy(model: GenerativeModel, u: Tensor, tolerance: float) -> Tensor:
    """The same by scipy's RK45 over the whole batch in t."""
    sde = model.sde.linear
    assert sde is not None
    probe = rademacher_like(u, torch.Generator().manual_seed(0)) * sde.driven(u)

    def field(t: float, flat: np.ndarray) -> np.ndarray:
        time = torch.full((len(u), *[1] * (u.ndim - 2)), t, dtype=torch.float64)
        with torch.enable_grad():
            state = torch.from_numpy(flat[: u.numel()]).to(u.dtype).reshape(u.shape).requires_grad_()
            w = -apply(0.5 * sde.GG(time), model.score(state, time))
            (pulled,) = torch.autograd.grad(w, state, probe)
        v = (sde.drift(state, time) + w).detach()
        divergence = sde.drift_divergence(state.detach(), time) + (pulled * probe).flatten(1).sum(1)
        return torch.cat([v.flatten(), divergence.flatten()]).double().numpy()

    start = torch.cat([u.flatten(), u.new_zeros(len(u))]).double().numpy()
    found = solve_ivp(field, (sde.t_min, model.t_start), start, rtol=tolerance, atol=tolerance, method="RK45").y[:, -1]
    end = torch.from_numpy(found[: u.numel()]).to(u.dtype).reshape(u.shape)
    return model.log_prob_start(end) + torch.from_numpy(found[u.numel() :]).to(u.dtype)


def measure(case: Case, rounds: int, rtol: Sequence[float], nfe: Sequence[int], nats: Sequence[float]) -> list[Row]:
    """All solvers in turn: both RK45 at the tolerances, the exponential one at numbers of evaluations and to errors in nats."""
    solvers: dict[str, Callable[[], Tensor]] = {}
    for tolerance in rtol:
        solvers[f"whole batch {tolerance:g}"] = lambda r=tolerance: by_scipy(case.model, case.u, r)
        solvers[f"rk45 {tolerance:g}"] = lambda r=tolerance: solved(case.model, case.u, rtol=r, atol=r)
    for num in nfe:
        solvers[f"exponential, {num} evaluations"] = lambda n=num: _exponential(case, nfe=n)
    for error in nats:
        solvers[f"exponential to {error:g} nats"] = lambda n=error: _exponential(case, tolerance=n)
    seconds: dict[str, list[float]] = {name: [] for name in solvers}
    found: dict[str, tuple[Tensor, float]] = {}
    for _ in range(rounds):
        for name, solver in solvers.items():
            with _Counted(case.model) as count:
                start = time.process_time()
                log_prob = solver()
                seconds[name].append(time.process_time() - start)
            found[name] = log_prob, count.rows / len(case.u)
    rows = []
    for name, (log_prob, evaluations) in found.items():
        error = (log_prob.double() - case.reference).abs()
        median = statistics.median(seconds[name])
        rows.append(
            Row(
                name=name,
                error=float(error.mean()),
                largest=float(error.max()),
                evaluations=evaluations,
                seconds=median,
            )
        )
    return rows


def _exponential(case: Case, **options: object) -> Tensor:
    return solved(case.model, case.u, solver="exponential", **options)


class _Counted:
    """Counts the rows that a model's backbone is given."""

    def __init__(self, model: INDM) -> None:
        self.rows, self.model = 0, model

    def __enter__(self) -> _Counted:
        self.hook = self.model.score_model.register_forward_hook(self._count)
        return self

    def __exit__(self, *_: object) -> None:
        self.hook.remove()

    def _count(self, network: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
        self.rows += len(out)


def at_error(rows: list[Row], kind: str, error: float, of: Callable[[Row], float]) -> float:
    """What a family of rows takes for an error: logarithms interpolated between tolerances; nan outside of them."""
    line = sorted((math.log(row.error), math.log(of(row))) for row in rows if row.name.startswith(kind))
    x, y = zip(*line, strict=True)
    return math.exp(float(np.interp(math.log(error), x, y, left=math.nan, right=math.nan)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", default="")
    parser.add_argument("--float32", action="store_true", help="a network in float32, not float64")
    parser.add_argument("--reference", type=float, default=1e-7, help="tolerance of a network's reference")
    parser.add_argument("--rtol", type=float, nargs="*", default=RTOL)
    parser.add_argument("--nfe", type=int, nargs="*", default=NFE)
    parser.add_argument("--nats", type=float, nargs="*", default=TOLERANCES)
    parser.add_argument("--num", type=int, default=16, help="samples")
    parser.add_argument("--rounds", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.run:
        dtype = torch.float32 if given.float32 else torch.float64
        cases = {given.run: lambda: of_run(given.run, given.num, dtype, given.reference)}
    else:
        cases = {
            name: lambda make=make: of_mixture(make, given.num)
            for name, make in (("25 modes", modes), ("correlated, 64-D", correlated))
        }
    for name, make_case in cases.items():
        rows = measure(make_case(), given.rounds, given.rtol, given.nfe, given.nats)
        print(f"{name}, {given.num} samples\n\n| solver | error (nats) | largest | evaluations | seconds | ", end="")
        print("whole batch / this: seconds | rk45 / this: evaluations |\n|---|---|---|---|---|---|---|")
        for row in rows:
            time_ratio = at_error(rows, "whole", row.error, lambda row: row.seconds) / row.seconds
            ratio = at_error(rows, "rk45", row.error, lambda row: row.evaluations) / row.evaluations
            print(
                f"| {row.name} | {row.error:.2g} | {row.largest:.2g} | {row.evaluations:.0f} | {row.seconds:.2f} "
                f"| {time_ratio:.2f} | {ratio:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
