r"""The sampling error in its three parts (Theorem 4), each measured apart: as a bound, and as a distance between samples.

A sampler starts from pi in place of p_T, the law of diffused data at T = t_start (prior error), follows a learned score s_theta
in place of s = grad log p_t (score error), and takes N steps (discretisation error).

Bounds, of total variations int |p - q| in [0, 2]. They compare the sampler at t_min with p_{t_min}, and h changes none of them.

    prior           sqrt(2 KL_pri),     KL_pri = KL(p_T || pi)                                  any linear SDE
    score           sqrt(2 KL_est),     KL_est = 1/2 int E |G^T (s_theta - s)|^2 dt             any linear SDE
    discretisation  6 sqrt(delta) (1 + E[|z|^4]^(1/4)) (1 + K + L (1 + 1/sqrt(2 alpha)))        VP

The first two are Pinsker's inequality and Girsanov's theorem, and E[nelbo at t_min] = entropy of p_{t_min} + KL_pri + KL_est.
KL_est needs the exact score: denoising score matching gives it up to a constant that data alone do not tell. Without s, two
models of one latent are compared exactly (the difference of their nelbos is that of KL_pri + KL_est), and KL_pri + KL_est is at
least E[nelbo] - E[-log q] for any density q, the model's own nll for one.

The third is the paper's, up to o(sqrt delta), for du = -u dtau + sqrt(2) dw only; VP is that on the clock tau = -log psi(t, 0),
which T, L, alpha and delta refer to. VE has no law at rest, sub-VP another volatility, and CLD's noise does not reach x.

The paper prints e^-T sqrt(2 KL_pri) and 2 T M^2 with M >= |s_theta - s|. Neither is a bound: e^-T belongs to KL(p_0 || pi), by
KL_pri <= e^-2T KL(p_0 || pi), and KL_est <= T M^2 gives sqrt(2 T) M, of which 2 T M^2 is the square, too small for a small M.

Distances, between laws of x that differ in one thing:

    data -truncation- exact at ts[-1] -score- learned score, short steps -prior- the same from pi in place of p_T
                                                           '-discretisation- the same in N steps

References:
    Kim, Na, Kwon, Lee, Kang, Moon 2022, "Maximum likelihood training of implicit nonlinear diffusion models", Theorem 4, after
    De Bortoli et al. 2021, "Diffusion Schroedinger bridge", and Guth et al. 2022, "Wavelet score-based generative modeling";
    Song et al. 2021, "Maximum likelihood training of score-based diffusion models", Theorem 1 (the sum of the two KL).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from indm_core.diagnostics.indm import (
    MeanAndError,
    along_times,
    hessian_norm,
    mean_and_error,
    score_rate,
    squared_norms,
)
from indm_core.draw import Sampler
from indm_core.metrics import Moments, frechet_distance
from indm_core.model import GenerativeModel, LinearModel
from indm_core.model.score import importance_times, likelihood_error, stratified
from indm_core.noise import Noise, branch, randn_like
from indm_core.sample import Score
from indm_core.sde import SDE, LinearSDE, apply, event_sum, inverse, log_abs_det, sqrt_psd
from indm_core.shapes import Float
from indm_core.times import check_times

__all__ = [
    "PriorDivergence",
    "SampleSets",
    "SamplingErrors",
    "ScoreDivergence",
    "Smoothness",
    "common_seed",
    "coupled_em",
    "draw_sets",
    "gaussian_prior_error",
    "ou_clock",
    "prior_divergence",
    "sample_frechet_distance",
    "sampling_errors",
    "score_divergence",
    "smoothness",
    "total_variation_bound",
]

Coupling = Callable[[SDE, Score, Tensor, Tensor, Tensor, Noise], tuple[Tensor, Tensor]]
"""coupling(sde, score, u, ts, ts_fine, generator) -> (state in the steps of ts, state in short steps), both from u."""


@dataclass(frozen=True, kw_only=True)
class PriorDivergence:
    """KL_pri in nats, between estimates from below and from above, whose gap is O(1/samples).

    `prior_loss` is E_x KL(p(u_T | x) || pi), a bound: KL_pri plus the information that u_T still has of x. Closed for INDM.
    """

    lower: MeanAndError
    upper: MeanAndError
    prior_loss: MeanAndError


@dataclass(frozen=True, kw_only=True)
class ScoreDivergence:
    """KL_est in nats, unbiased, its standard error rather too large; and M, the largest |s_theta - s| met, in 1/units of z.

    M is below the supremum of Theorem 4, which is infinite already for a slope that is wrong, and grows with the sample.
    """

    kl: MeanAndError
    M: float


@dataclass(frozen=True, kw_only=True)
class Smoothness:
    """The constants of the discretisation term, on the clock tau, in units of z.

    K is the largest |grad^2 log p|_F (not less than the operator norm of the proof); |d score/dtau| / |u| <= L exp(-alpha tau)
    where it was measured; moment is E[|z|^4]^(1/4). Largest values over samples and times lie below the suprema: that of L is
    infinite unless d score/dtau vanishes at u = 0, as it does for data whose law is even.
    """

    K: float
    L: float
    alpha: float
    moment: float

    def bound(self, sde: LinearSDE, ts: Float[Tensor, " n"]) -> float:
        """The discretisation term, total variation; delta = max gamma^2 / min gamma for steps gamma on the clock tau."""
        gamma = -ou_clock(sde, ts).diff()
        delta, rough = float(gamma.max().square() / gamma.min()), 1 + self.L * (1 + 1 / math.sqrt(2 * self.alpha))
        return 6 * math.sqrt(delta) * (1 + self.moment) * (rough + self.K)


def total_variation_bound(kl: float) -> float:
    """sqrt(2 KL) >= int |p - q|, for KL_pri at its upper estimate, KL_est, or their sum; 0 for an estimate below 0."""
    return math.sqrt(2 * max(kl, 0.0))


def ou_clock(sde: LinearSDE, t: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """tau(t) = -log psi(t, 0), on which the SDE is du = -u dtau + sqrt(2) dw; refuses one that is not."""
    if not (sde.scalar and torch.allclose(sde.GG(t), -2 * sde.F(t))):
        raise ValueError(f"sde: {sde} has not GG^T = -2 F; the discretisation term of Theorem 4 is for VP alone")
    return -sde.log_det_psi0(t)


def smoothness(
    model: LinearModel, x: Float[Tensor, " b *event"], ts: Tensor, *, num_probes: int = 8, generator: Noise = None
) -> Smoothness:
    """The constants at draws of u_t given data x, the model's score for grad log p_t, and (L, alpha) of the smallest bound.

    Args:
        ts: Times in [t_min, t_start], (n,) float64; the smallest decides most.
        num_probes: Of `hessian_norm`. Few probes scatter, and the largest of scattered values is too large.
    """
    tau, pace = ou_clock(model.sde, ts), -model.sde.F(ts)[..., 0, 0]
    hessian = partial(hessian_norm, num_probes=num_probes, generator=branch(generator))
    K = along_times(model, x, ts, hessian, generator=generator).max()
    rates = along_times(model, x, ts, score_rate, generator=generator).amax(1).to(tau) / pace
    alpha = torch.logspace(-2, 2, 801).to(tau)
    log_L = (rates.log() + alpha[:, None] * tau).amax(1)
    best = int((log_L + torch.log1p(1 / (2 * alpha).sqrt())).argmin())
    fourth = squared_norms(model, x, generator=generator).latent.square().mean()
    return Smoothness(K=float(K), L=float(log_L[best].exp()), alpha=float(alpha[best]), moment=float(fourth) ** 0.25)


@torch.no_grad()
def prior_divergence(model: LinearModel, x: Float[Tensor, " b *event"], *, generator: Noise = None) -> PriorDivergence:
    """KL(p_T || pi) of any data set, pi the model's law at t_start: the means of log p_i(u_i) / pi(u_i), u_i drawn given x_i.

    p_i is the mean of p(u | x_j) over all j (the KL of a finite mixture, too large by convexity) or over j != i (too small); a
    fitted control variate takes most of the noise off. Terms of the size of D cancel: give model and data in float64.

    Args:
        x: Independent data, b >= 2; the cost is b^2 distances.

    References: Poole et al. 2019, "On variational bounds of mutual information", section 2 (KL is prior loss less information).
    """
    sde, t = model.sde, torch.tensor(model.t_start, dtype=torch.float64, device=x.device)
    u_0, _ = model.encode(x, branch(generator))
    eps, D = randn_like(u_0, generator), u_0[0].numel()
    log_pi = model.log_prob_start(sde.perturb(u_0, t, eps), generator).double()
    log_norm = 0.5 * D * math.log(2 * math.pi) + event_sum(log_abs_det(sde.R(t)), u_0)
    prior_loss = -model.expected_log_prob_start(u_0, eps, generator).double() - log_norm - 0.5 * D
    centres = apply(inverse(sde.R(t)) @ sde.psi0(t), u_0).flatten(1).double()
    log_p = -0.5 * torch.cdist(centres + eps.flatten(1).double(), centres).square() - log_norm[:, None]

    mixed, others = log_p.logsumexp(1) - math.log(len(x)), log_p.clone().fill_diagonal_(-math.inf).logsumexp(1)
    share = (log_pi - mixed).exp()  # pi/p_i: 1 on average, the u_i being draws of the mixture
    c = -torch.cov(torch.stack([mixed - log_pi, share]))[0, 1] / share.var().clamp(min=1e-300)  # 1 where KL is small
    pull = log_p.softmax(1).T @ (1 - c * share)  # of x_j on the mixture

    def estimate(ratio: Tensor) -> MeanAndError:
        kl = ratio + c * (share - 1)
        return MeanAndError(kl.mean(), mean_and_error(kl + pull).error)

    lower, upper = estimate(others - math.log(len(x) - 1) - log_pi), estimate(mixed - log_pi)
    return PriorDivergence(lower=lower, upper=upper, prior_loss=mean_and_error(prior_loss))


@torch.no_grad()
def score_divergence(
    model: LinearModel, score: Score, x: Float[Tensor, " b *event"], *, generator: Noise = None
) -> ScoreDivergence:
    """KL_est of the model's score against `score`, the exact one of a Gaussian or a mixture, at one (t, eps) per sample.

    (The finite set of training data has an exact score as well, which a model should not learn.)
    """
    sde = model.sde
    u_0, _ = model.encode(x, branch(generator))
    t, density = importance_times(sde, stratified(len(x), x, generator), sde.t_min, model.t_start)
    t = t.reshape(-1, *[1] * (u_0.ndim - 2))
    u_t = sde.perturb(u_0, t, randn_like(u_0, generator))
    difference = model.score(u_t, t) - score(u_t, t)
    kl = likelihood_error(sde, sde.eps_from_score(difference, t), t) / density
    return ScoreDivergence(kl=mean_and_error(kl), M=float(difference.flatten(1).norm(dim=1).max()))


@dataclass(frozen=True, kw_only=True, eq=False)
class SampleSets:
    """Samples x (n, *shape) each; row i of all comes from one datum and one noise.

    data, stopped: the data; the same diffused to ts[-1] and decoded, without a sampler.
    fine, prior: the learned score in short steps, from the diffused latents of the data; from the model's law at t_start.
    coarse, sampled: as `fine` and `prior`, but in the steps of ts.
    """

    data: Tensor
    stopped: Tensor
    fine: Tensor
    prior: Tensor
    coarse: Tensor
    sampled: Tensor

    def map(self, features: Callable[[Tensor], Tensor]) -> SampleSets:
        """The sets of features(x), a row per sample."""
        return SampleSets(**{f.name: features(getattr(self, f.name)) for f in fields(self)})


@dataclass(frozen=True, kw_only=True)
class SamplingErrors:
    """Prior to fine, coarse to fine, fine to stopped (Theorem 4); stopped to data; sampled to data; in the distance's unit."""

    prior: MeanAndError
    discretisation: MeanAndError
    score: MeanAndError
    truncation: MeanAndError
    total: MeanAndError


@torch.no_grad()
def coupled_em(
    sde: SDE, score: Score, u: Tensor, ts: Tensor, ts_fine: Tensor, generator: Noise = None, lam: float = 1.0
) -> tuple[Tensor, Tensor]:
    """`sample_em` on ts, and on ts and ts_fine together, along one Brownian path: what differs is the step, not the noise.

    A long step h takes sum_i sqrt(h_i/h) z_i of the normals z_i of its short steps h_i (Giles 2008, multilevel Monte Carlo).
    """
    new = ((ts_fine[:, None] - ts).abs() > 1e-9 * sde.t_max).all(1)
    merged = torch.cat([ts, ts_fine[new]]).sort(descending=True).values
    check_times(sde, merged)

    def step(u: Tensor, t: Tensor, s: Tensor, z: Tensor) -> Tensor:
        mean = u - (t - s).to(u.dtype) * sde.reverse_drift(u, t, score(u, t), lam)
        return mean + apply(lam * sqrt_psd((t - s) * sde.GG(t)), z)

    coarse, fine, noise, k = u, u, torch.zeros_like(u), 0
    for t, s in pairwise(merged):
        z = randn_like(u, generator)
        fine, noise = step(fine, t, s, z), noise + ((t - s) / (ts[k] - ts[k + 1])).sqrt().to(u.dtype) * z
        if s == ts[k + 1]:
            coarse, noise, k = step(coarse, ts[k], s, noise), torch.zeros_like(u), k + 1
    return coarse, fine


def common_seed(
    sampler: Sampler, sde: SDE, score: Score, u: Tensor, ts: Tensor, ts_fine: Tensor, generator: Noise
) -> tuple[Tensor, Tensor]:
    """Any sampler on both grids: partial(common_seed, sampler) is a coupling, a full one where the sampler draws no noise."""
    return sampler(sde, score, u, ts, _twin(generator)), sampler(sde, score, u, ts_fine, _twin(generator))


def _twin(generator: Noise) -> Noise:
    """A source of the noise that the given one would draw next; the given one stays where it is."""
    if generator is None:
        raise ValueError("generator=None: sets that share their noise need a generator, or one per sample")
    return generator.clone_state() if isinstance(generator, torch.Generator) else [g.clone_state() for g in generator]


@torch.no_grad()
def draw_sets(
    model: GenerativeModel, x: Tensor, ts: Tensor, ts_fine: Tensor, *, generator: Noise, coupling: Coupling = coupled_em
) -> SampleSets:
    """Draws the sets whose contrasts are the errors: 2 (N + N_fine) evaluations of the score per sample.

    Args:
        x: Data (n, *shape) that the model has not seen.
        ts: The sampler's N + 1 times, decreasing from t_start, float64, as `model.times`.
        ts_fine: Times with the same ends, so many that their own error (N / N_fine of that of ts for `coupled_em`) is none.
        generator: One, or one per sample.
        coupling: The sampler on both grids; the theorem's is Euler-Maruyama.
    """
    ends = torch.tensor([model.t_start, ts[-1]], dtype=torch.float64)
    for name, grid in (("ts", ts), ("ts_fine", ts_fine)):
        if not torch.allclose(grid[[0, -1]], ends, rtol=1e-9, atol=0):
            raise ValueError(f"{name}: from {float(grid[0]):g} to {float(grid[-1]):g} in place of {ends.tolist()}")
    u_0, _ = model.encode(x, branch(generator))
    zero, start, path = torch.zeros_like(ts[0]), branch(generator), branch(generator)
    stopped = model.sde.transition(u_0, ts[-1], zero, branch(generator))
    diffused = model.sde.transition(u_0, ts[0], zero, _twin(start))
    drawn = model.sample_start(model.state_like(len(x), x), _twin(start))
    coarse, fine = coupling(model.sde, model.score, diffused, ts, ts_fine, _twin(path))
    sampled, prior = coupling(model.sde, model.score, drawn, ts, ts_fine, _twin(path))
    stopped, fine, prior, coarse, sampled = (model.decode(u) for u in (stopped, fine, prior, coarse, sampled))
    return SampleSets(data=x, stopped=stopped, fine=fine, prior=prior, coarse=coarse, sampled=sampled)


def sample_frechet_distance(a: Float[Tensor, " n *event"], b: Float[Tensor, " m *event"]) -> Float[Tensor, ""]:
    """Squared 2-Wasserstein distance of the Gaussians with the moments of two sets, units of x squared."""
    p, q = (Moments().update(v.flatten(1)) for v in (a, b))
    return frechet_distance(p.mean, p.cov, q.mean, q.cov)


def sampling_errors(
    sets: SampleSets, distance: Callable[[Tensor, Tensor], Tensor], *, num_groups: int = 20
) -> SamplingErrors:
    """A distance across each contrast, its O(1/n) bias taken off and its standard error by the jackknife over groups of rows.

    Where laws agree a value may be below 0, and its standard error is too large, by about sqrt 2 (Efron, Stein 1981).

    Args:
        distance: distance(a, b) -> 0-d, smooth in the laws: a squared metric, not its root. Called 5 (num_groups + 1) times.
    """
    group, last = torch.arange(len(sets.data), device=sets.data.device) % num_groups, num_groups - 1
    if not 2 <= num_groups <= len(group) // 2:
        raise ValueError(f"num_groups={num_groups} must lie between 2 and half of the {len(group)} samples")

    def contrast(a: Tensor, b: Tensor) -> MeanAndError:
        left = torch.stack([distance(a[group != g], b[group != g]) for g in range(num_groups)])
        return MeanAndError(num_groups * distance(a, b) - last * left.mean(), last / math.sqrt(num_groups) * left.std())

    return SamplingErrors(
        prior=contrast(sets.prior, sets.fine),
        discretisation=contrast(sets.coarse, sets.fine),
        score=contrast(sets.fine, sets.stopped),
        truncation=contrast(sets.stopped, sets.data),
        total=contrast(sets.sampled, sets.data),
    )


def gaussian_prior_error(sde: LinearSDE, s: Tensor, t: Tensor, mean: Tensor, cov: Tensor) -> Float[Tensor, ""]:
    """`SamplingErrors.prior` to s from t for Gaussian data and their exact score, squared 2-Wasserstein, in closed form.

    The reverse SDE is then a Gaussian kernel of mean m_s + H (u_t - m_t), H = C_s psi(t, s)^T C_t^-1, so that pi = N(0, C_pi)
    in place of N(m_t, C_t) moves the moments by -H m_t and H (C_pi - C_t) H^T. mean and cov are the moments of embed(z), as in
    `discretisation_error`, which has the other part.
    """
    psi_t, psi_s = sde.psi0(t), sde.psi0(s)
    C_t, C_s = (psi @ cov @ psi.mT + sde.cov(r) for psi, r in ((psi_t, t), (psi_s, s)))
    H = C_s @ sde.psi(t, s).mT @ inverse(C_t)
    shift = (H @ psi_t @ mean.unsqueeze(-1))[..., 0, 0]
    moved = C_s + H @ (sde.prior_cov() - C_t) @ H.mT
    return (shift.square() + (moved[..., 0, 0].sqrt() - C_s[..., 0, 0].sqrt()).square()).sum()
