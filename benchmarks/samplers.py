"""Error of every fast sampler against the ODE's own solution, at equal evaluations of the score, each on its best grid.

    python benchmarks/samplers.py                      # VP, both problems, beside the peers that are installed
    python benchmarks/samplers.py --sde CLD --problem modes
    python benchmarks/samplers.py --law --num 4000     # the law of the samples: the table for samplers with noise

Problems with exact scores, float64: (modes) 25 Gaussians of standard deviation 0.1 on a 5 x 5 lattice; (correlated) images of
8 x 8 pixels, a mixture of 10 Gaussians whose covariances are diagonal in the DCT basis, with spectra like 1/(1 + f^2). States
are in that basis, a rotation, which VP, sub-VP, VE and CLD do not see and in which BDM works anyway.

The error is the root mean square over states and coordinates of x at t_min, against RK45 at 1e-9 from the same starts. A row
is a method, a cell its smallest error over the grids, with the grid. The peers (`peers`) take the same grids, so that every row
ends at the same t_min.

With --law the error is that of the law: the root mean square distance of the quantiles of samples and of as many draws of the
data's own law at t_min, over 64 directions (sliced Wasserstein distance of order 2); the last row is that of two sets of draws.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from benchmarks.figure import AT_MOST, Absent, Bound, Row
from benchmarks.peers import peers
from indm_core.exponential import check_method, sample_deis
from indm_core.fitting import fit_grid, usual_grids
from indm_core.sample import Score, sample_em, sample_ode
from indm_core.sde import BDM, CLD, VE, VP, LinearSDE, SubVP, inverse
from indm_core.sde.algebra import log_abs_det
from indm_core.times import edm_times, log_rho_times, power_times, uniform_times

Samplers = dict[str, Callable[[Tensor], Tensor]]
COUNTS = (5, 8, 10, 15, 20)
GRIDS: dict[str, Callable[[LinearSDE, int], Tensor]] = {
    "uniform": uniform_times,
    "power 2": partial(power_times, power=2.0),
    "power 3": partial(power_times, power=3.0),
    "log-rho": log_rho_times,
    "edm": edm_times,
}
PEC = {"corrector": True, "reevaluate": False}
OURS: dict[str, dict] = {
    "DDIM": {"order": 0},
    "eps, t, 2": {"order": 2},
    "eps, t, 3 (the default)": {"order": 3},
    "eps, rho, 3": {"order": 3, "method": "rho-AB"},
    "iPNDM 3": {"order": 3, "method": "iPNDM"},
    "eps, log rho, 2": {"order": 2, "method": "log-rho-AB"},
    "eps, t, 3, PEC": {"order": 3, **PEC},
    "data, log rho, 1": {"order": 1, "method": "log-rho-AB", "prediction": "data"},
    "data, log rho, 2, PEC": {"order": 2, "method": "log-rho-AB", "prediction": "data", **PEC},
    "data, rho, 2, PEC": {"order": 2, "method": "rho-AB", "prediction": "data", **PEC},
    "data, t, 1": {"order": 1, "prediction": "data"},
    "data, t, 2": {"order": 2, "prediction": "data"},
    "data, t, 3": {"order": 3, "prediction": "data"},
    "data, t, 1, PEC": {"order": 1, "prediction": "data", **PEC},
    "data, t, 2, PEC": {"order": 2, "prediction": "data", **PEC},
    "data, t, 3, PEC": {"order": 3, "prediction": "data", **PEC},
    "velocity, t, 1": {"order": 1, "prediction": "velocity"},
    "velocity, t, 2": {"order": 2, "prediction": "velocity"},
    "velocity, t, 3": {"order": 3, "prediction": "velocity"},
    "velocity, t, 1, PEC": {"order": 1, "prediction": "velocity", **PEC},
    "velocity, t, 2, PEC": {"order": 2, "prediction": "velocity", **PEC},
    **{f"velocity, log rho, {r}": {"order": r, "method": "log-rho-AB", "prediction": "velocity"} for r in (1, 2, 3)},
    **{
        f"velocity, log rho, {r}, PEC": {"order": r, "method": "log-rho-AB", "prediction": "velocity", **PEC}
        for r in (1, 2, 3)
    },
    "velocity, t, 3, PEC": {"order": 3, "prediction": "velocity", **PEC},
    "eps, Heun": {"order": 1, "method": "t-RK"},
    "eps, t-RK 2": {"order": 2, "method": "t-RK"},
    "data, Heun": {"order": 1, "method": "t-RK", "prediction": "data"},
    "data, t-RK 2": {"order": 2, "method": "t-RK", "prediction": "data"},
    "velocity, Heun": {"order": 1, "method": "t-RK", "prediction": "velocity"},
    "data, t, 1, PEC, low-order end": {"order": 1, "prediction": "data", "final": "low-order", **PEC},
    "data, t, 2, PEC, low-order end": {"order": 2, "prediction": "data", "final": "low-order", **PEC},
}
FITTED = ("data, t, 1, PEC", "velocity, t, 1, PEC", "velocity, t, 2, PEC")
DATA = {"prediction": "data"}
NOISY: dict[str, dict] = {
    "DDIM": {"order": 0},
    "data, t, 2, PEC": {"order": 2, **DATA, **PEC},
    **{f"gDDIM, lam {lam}": {"order": 0, "lam": lam} for lam in (0.5, 1.0)},
    **{f"data, t, {r}, lam {lam}": {"order": r, "lam": lam, **DATA} for lam in (0.5, 1.0) for r in (1, 2)},
    **{f"data, t, {r}, PEC, lam {lam}": {"order": r, "lam": lam, **DATA, **PEC} for lam in (0.5, 1.0) for r in (1, 2)},
    "eps, t, 1, lam 0.5": {"order": 1, "lam": 0.5},
    "data, Heun": {"order": 1, "method": "t-RK", **DATA},
    **{f"data, Heun, churn {c}": {"order": 1, "method": "t-RK", "churn": c, **DATA} for c in (0.5, 2.0)},
}
"""Samplers with noise, beside the same without."""


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Gaussians with diagonal covariances: weights (m,), means and variances (m, *event) of the SDE's coordinates."""

    sde: LinearSDE
    log_weights: Tensor
    means: Tensor
    variances: Tensor

    def score(self, u: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        t = t.unsqueeze(0) if t.ndim else t
        column = self.sde.psi0(t)[..., :1]
        precision = inverse(self.sde.cov(t) + self.variances[:, None, ..., None, None] * (column @ column.mT))
        away = self.means[:, None, ..., None] * column[..., 0] - u
        pulls = (precision * away.unsqueeze(-2)).sum(-1)
        log_det = log_abs_det(precision).expand(away.shape[:-1]).flatten(2).sum(2)
        logits = self.log_weights[:, None] + 0.5 * log_det - 0.5 * (away * pulls).flatten(2).sum(2)
        return (logits.softmax(0).reshape(*logits.shape, *[1] * (u.ndim - 1)) * pulls).sum(0)

    def sample(self, num: int, t: Tensor, generator: torch.Generator) -> Tensor:
        """Draws of u_t (num, *event, K)."""
        draw = partial(torch.randn, dtype=torch.float64, generator=generator)
        k = torch.multinomial(self.log_weights.exp(), num, replacement=True, generator=generator)
        x = self.means[k] + self.variances[k].sqrt() * draw(num, *self.means.shape[1:])
        blocks = [x, *[torch.zeros_like(x)] * (self.sde.prior_cov().shape[-1] - 1)]
        u_0 = torch.stack(blocks, -1)
        return self.sde.perturb(u_0, t, draw(u_0.shape))


def modes(sde: LinearSDE) -> Mixture:
    side = torch.linspace(-1.4, 1.4, 5, dtype=torch.float64)
    means = torch.cartesian_prod(side, side).reshape(25, *_event(sde, 1, 2))
    weights = torch.full((25,), -math.log(25), dtype=torch.float64)
    return Mixture(sde=sde, log_weights=weights, means=means, variances=torch.full_like(means, 0.01))


def correlated(sde: LinearSDE) -> Mixture:
    draw = partial(torch.randn, 10, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    f = torch.arange(8, dtype=torch.float64)
    power = 1 / (1 + f.square().unsqueeze(1) + f.square())
    power, event = power / power.mean(), _event(sde, 8, 8)
    means, variances = 0.7 * power.sqrt() * draw(), 0.1 * power * torch.exp(0.7 * draw())
    weights = torch.full((10,), -math.log(10), dtype=torch.float64)
    return Mixture(
        sde=sde, log_weights=weights, means=means.reshape(10, *event), variances=variances.reshape(10, *event)
    )


def _event(sde: LinearSDE, height: int, width: int) -> tuple[int, ...]:
    return (height * width,) if sde.pixelwise else (1, height, width)


def diffused(name: str, height: int, width: int) -> LinearSDE:
    if name == "BDM":
        return BDM(height=height, width=width)
    return {"VP": VP(), "SubVP": SubVP(), "VE": VE(), "CLD": CLD()}[name]


def table(sde: LinearSDE, law: Mixture, num: int, chosen: str, fit: list[int]) -> None:
    """One table: a row for each method that the SDE allows, the smallest error over the grids and its grid in each cell; then
    those of `FITTED` on grids that are fitted."""
    mine, theirs, error = _rows(sde, law, num)
    _print(sde, mine | theirs, chosen, error)
    for label in FITTED if fit else ():
        if label in mine:
            cells = [
                f"{error(mine[label](fitted(sde, law, label, count))):.2g}" if count in fit else "-" for count in COUNTS
            ]
            print(f"| {label}, fitted | {' | '.join(cells)} |", flush=True)


def _rows(sde: LinearSDE, law: Mixture, num: int) -> tuple[Samplers, Samplers, Callable[[Tensor], float]]:
    """Our samplers and the peers, from the same starts, and the error of where they end."""
    like = torch.zeros(num, *law.means.shape[1:], sde.prior_cov().shape[-1], dtype=torch.float64)
    u = sde.sample_prior(like, torch.Generator().manual_seed(1))
    exact = sample_ode(sde, law.score, u, uniform_times(sde, 1), rtol=1e-9, atol=1e-9)[..., 0]
    mine = {label: partial(ours, law, u, options) for label, options in OURS.items() if _has(sde, options)}
    theirs = peers() if isinstance(sde, VP) else {}
    others = {label: partial(peer, sde, law.score, u) for label, peer in theirs.items()}
    return mine, others, lambda u: float((u[..., 0] - exact).square().mean().sqrt())


def fitted(sde: LinearSDE, law: Mixture, label: str, count: int) -> Tensor:
    """The times that are fitted to a method of ours on 256 other starts."""

    def sampler(sde: LinearSDE, score: Score, u: Tensor, ts: Tensor, *rest: object) -> Tensor:
        return sample_deis(sde, score, u, ts, **OURS[label])

    like = torch.zeros(256, *law.means.shape[1:], sde.prior_cov().shape[-1], dtype=torch.float64)
    starts = sde.sample_prior(like, torch.Generator().manual_seed(7))
    return fit_grid(sde, sampler, law.score, starts, usual_grids(sde, count)).times


def figure(quick: bool) -> Iterator[Row | Absent]:
    """Error of our best sampler against the ODE's solution beside that of the peers' best, at equal evaluations."""
    for name, make_law, sides in (("modes", modes, (1, 2)), ("correlated", correlated, (8, 8))):
        sde = diffused("VP", *sides)
        mine, theirs, error = _rows(sde, make_law(sde), 8 if quick else 64)
        if not theirs:
            yield Absent(what=name, reason="neither diffusers nor azula is installed")
            continue
        for count in COUNTS[:1] if quick else COUNTS:
            (here, own), (there, peer) = (
                min((_best(sde, label, sampler, count, error)[0], label) for label, sampler in samplers.items())
                for samplers in (mine, theirs)
            )
            ratio = here / there
            numbers = {"ours": here, "theirs": there, "ratio": ratio, "low": ratio, "high": ratio}
            what = f"{name}, {count} evaluations: {own}"
            yield Row(what=what, reference=peer, unit="rms", target=Bound(AT_MOST, 1.0), **numbers)


def table_of_laws(sde: LinearSDE, law: Mixture, num: int, chosen: str) -> None:
    """The same with the error of the law, for samplers with noise and, beside them, without."""
    draws = [
        law.sample(num, torch.tensor(sde.t_min).double(), torch.Generator().manual_seed(k))[..., 0] for k in (2, 3)
    ]
    u = law.sample(num, torch.tensor(sde.t_max).double(), torch.Generator().manual_seed(1))
    rows = {label: partial(ours, law, u, options) for label, options in NOISY.items()}
    rows |= {"Euler-Maruyama": lambda ts: sample_em(sde, law.score, u, ts, generator=torch.Generator().manual_seed(4))}
    _print(sde, rows, chosen, lambda u: _apart(u[..., 0], draws[0]))
    print(f"| two sets of draws | {_apart(draws[1], draws[0]):.2g} |")


def ours(law: Mixture, u: Tensor, options: dict, ts: Tensor) -> Tensor:
    return sample_deis(law.sde, law.score, u, ts, generator=torch.Generator().manual_seed(4), **options)


def _print(
    sde: LinearSDE, rows: dict[str, Callable[[Tensor], Tensor]], chosen: str, error: Callable[[Tensor], float]
) -> None:
    print(f"| method | {' | '.join(map(str, COUNTS))} |\n|---|{'---|' * len(COUNTS)}")
    for label, sampler in rows.items():
        if not re.search(chosen, label):
            continue
        cells = ["{:.2g} {}".format(*_best(sde, label, sampler, count, error)) for count in COUNTS]
        print(f"| {label} | {' | '.join(cells)} |", flush=True)


def _best(
    sde: LinearSDE, label: str, sampler: Callable[[Tensor], Tensor], count: int, error: Callable[[Tensor], float]
) -> tuple[float, str]:
    """The smallest error over the grids at so many evaluations, and its grid."""
    options = (OURS | NOISY).get(label, {})
    steps = count // (1 + options["order"]) if options.get("method", "").endswith("RK") else count
    errors = {grid: error(sampler(make(sde, steps))) for grid, make in GRIDS.items()}
    best = min(errors, key=lambda grid: math.inf if math.isnan(errors[grid]) else errors[grid])
    return errors[best], best


def _apart(a: Tensor, b: Tensor) -> float:
    """The sliced Wasserstein distance of order 2, per coordinate, of two sets of samples of one size."""
    a, b = a.flatten(1), b.flatten(1)
    directions = torch.randn(a.shape[1], 64, dtype=a.dtype, generator=torch.Generator().manual_seed(0))
    directions = directions / directions.norm(dim=0)
    between = (a @ directions).sort(0).values - (b @ directions).sort(0).values
    return float(between.square().mean().sqrt())


def _has(sde: LinearSDE, options: dict) -> bool:
    try:
        check_method(sde, options.get("method", "t-AB"), options.get("prediction", "eps"))
    except ValueError:
        return False
    return True


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sde", choices=("VP", "SubVP", "VE", "CLD", "BDM"), default="VP")
    parser.add_argument("--problem", choices=("modes", "correlated", "both"), default="both")
    parser.add_argument("--num", type=int, default=64, help="starts")
    parser.add_argument("--rows", default="", help="only rows with this pattern in their name: 'velocity|Heun'")
    parser.add_argument("--law", action="store_true", help="the error of the law, of samplers with noise")
    parser.add_argument("--fit", default="", help="numbers of evaluations for which grids are fitted too: 5,8,10")
    given = parser.parse_args()
    fit = [int(count) for count in given.fit.split(",") if count]
    for problem, make_law, sides in (("modes", modes, (1, 2)), ("correlated", correlated, (8, 8))):
        if given.problem in (problem, "both"):
            sde = diffused(given.sde, *sides)
            what = "sliced Wasserstein distance" if given.law else "root mean square error"
            print(f"{given.sde}, {problem}, {given.num} starts: {what} at so many evaluations, best grid")
            if given.law:
                table_of_laws(sde, make_law(sde), given.num, given.rows)
            else:
                table(sde, make_law(sde), given.num, given.rows, fit)
