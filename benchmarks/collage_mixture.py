r"""A collage of a Markov chain that is not Gaussian, with exact scores of its pieces: correlations and mode transitions.

    python benchmarks/collage_mixture.py [NUM]

Pairs of neighbours have the law of four Gaussians,

    p(a, b) = sum over z, z' in {-1, 1} of P(z, z') N((a, b); M (z, z'), S^2 [[1, R], [R, 1]]),  P(z, z') = STAY/2 where z = z',

else (1 - STAY)/2; each variable has the law of two. The chain p(x) = prod p(x_i, x_{i+1}) / prod p(x_i) is Markov, so that the
collage of pairs with overlap 1 is exact at t = 0. Its truth follows from the transfer operator on a fine grid. `stay k` is the
probability that x_i and x_{i+k} have one sign. NUM canvases of 32 variables are drawn by each sampler.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from indm_core.collage import chain, collage
from indm_core.noise import seeded
from indm_core.sample import power_times
from indm_core.sampling import Sampling, sampler_of
from indm_core.sde import VP

M, S, R, STAY, SDE = 1.0, 0.35, 0.5, 0.9, VP()
LAGS = (1, 2, 5, 10)
GRAPH = chain(31, 2, 1)


def components(d: int) -> tuple[Tensor, Tensor, Tensor]:
    """log weights (k,), means (k, d) and the common covariance (d, d) of a region of d = 1 or 2 variables."""
    signs = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    eye = torch.eye(d, dtype=torch.float64)
    means = M * torch.cartesian_prod(*[signs] * d).reshape(-1, d)
    weights = torch.where(means[:, 0] == means[:, -1], STAY / 2, (1 - STAY) / 2) if d == 2 else torch.full((2,), 0.5)
    return weights.double().log(), means, S**2 * (eye + R * (1 - eye))


def score(u: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
    """Exact, of u (n, d, 1) at a time t, 0-d."""
    log_w, means, cov = components(u.shape[1])
    p, var = SDE.psi0(t).squeeze(), SDE.cov(t).squeeze()
    noised = torch.linalg.inv(p**2 * cov + var * torch.eye(len(cov), dtype=torch.float64))
    off = u[:, None, :, 0] - p * means
    pull = off @ noised
    share = (log_w - 0.5 * (pull * off).sum(-1)).softmax(1)
    return -(share.unsqueeze(-1) * pull).sum(1).unsqueeze(-1)


def truth() -> list[tuple[float, float]]:
    """(correlation, P(same sign)) at each lag, by the transfer operator."""
    x = torch.linspace(-4, 4, 801, dtype=torch.float64)
    pair = torch.cartesian_prod(x, x)
    log_w, means, cov = components(2)
    off = pair[:, None] - means
    joint = (log_w - 0.5 * ((off @ torch.linalg.inv(cov)) * off).sum(-1)).exp().sum(1).reshape(len(x), len(x))
    joint = joint / joint.sum()
    marginal = joint.sum(1)
    step, found, ahead = joint / marginal[:, None], [], torch.eye(len(x), dtype=torch.float64)
    same = (x[:, None] * x > 0).double() + 0.5 * (x[:, None] * x == 0)
    for lag in range(1, max(LAGS) + 1):
        ahead = ahead @ step
        law = marginal[:, None] * ahead
        if lag in LAGS:
            found.append((float(x @ law @ x / (marginal @ x**2)), float((law * same).sum())))
    return found


def measured(x: Tensor) -> list[tuple[float, float, float]]:
    """(correlation, P(same sign), standard error of the latter over canvases) at each lag."""
    found = []
    for lag in LAGS:
        a, b = x[:, :-lag], x[:, lag:]
        same = (a * b > 0).double().mean(1)
        found.append(
            (float((a * b).mean() / x.square().mean()), float(same.mean()), float(same.std()) / math.sqrt(len(x)))
        )
    return found


def main() -> int:
    """Prints the table."""
    num = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    whole = collage(score, GRAPH)
    print(f"{'sampler':<44}" + "".join(f"  rho {lag:<3} stay {lag:<12}" for lag in LAGS))
    print(f"{'truth':<44}" + "".join(f"  {c:<7.3f} {s:<17.3f}" for c, s in truth()))
    samplings = [Sampling(sampler="deis", steps=n, order=0, denoise=False) for n in (50, 250, 1000)]
    samplings += [Sampling(sampler="em", steps=n, grid="power", denoise=False) for n in (250, 1000)]
    samplings += [Sampling(sampler="pc", steps=n // 2, grid="power", denoise=False) for n in (250, 1000)]
    samplings += [Sampling(sampler="resampled", steps=n // 5, denoise=False) for n in (250, 1000)]
    samplings += [Sampling(sampler="collage", steps=n // 5, denoise=False) for n in (50, 250, 1000)]
    samplings += [Sampling(sampler="collage", steps=n // 10, langevin_steps=9, denoise=False) for n in (1000,)]
    for sampling in samplings:
        generator = seeded(range(num))
        u = SDE.sample_prior(torch.zeros(num, *GRAPH.shape, 1, dtype=torch.float64), generator)
        ts = power_times(SDE, sampling.num_steps, 2.0)
        x = sampler_of(sampling)(SDE, whole, u, ts, generator).squeeze(-1)
        print(f"{sampling!s:<44}" + "".join(f"  {c:<7.3f} {s:.3f} +- {e:<8.3f}" for c, s, e in measured(x)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
