"""Samplers: exact marginals stay exact, Euler-Maruyama's moments in closed form, grids, one generator per sample."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from problems import ISOTROPIC_SDES, SDES, Affine, Coupled, ExactModel, Gaussian, Mixture, ids, randn, rng, scalar
from scipy.stats import kstest, norm
from torch import Tensor

from indm_core import sample
from indm_core.draw import draw, forward_path, generative_path
from indm_core.noise import rademacher_like, rand, randn_like, seeded
from indm_core.sample import (
    edm_times,
    log_rho_times,
    power_times,
    sample_em,
    sample_ode,
    sample_pc,
    uniform_times,
)
from indm_core.sde import BDM, CLD, VE, VP

EVERY = pytest.mark.parametrize("sde", SDES, ids=ids)
ISOTROPIC = pytest.mark.parametrize("sde", ISOTROPIC_SDES, ids=ids)
COV = torch.tensor([[1.0, 0.5], [0.5, 0.6]], dtype=torch.float64)
MEAN = torch.tensor([0.4, -0.7], dtype=torch.float64)


class Bimodal:
    """Independent coordinates, each 0.3 N(-1, 0.3^2) + 0.7 N(0.8, 0.4^2), under a K = 1 SDE; score by hand."""

    def __init__(self, sde) -> None:
        self.sde = sde
        self.weight, self.mean, self.std = (torch.tensor(v).double() for v in ([0.3, 0.7], [-1.0, 0.8], [0.3, 0.4]))

    def at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Means and standard deviations of the two modes at time t, with an axis for the mode behind those of t."""
        alpha, var = self.sde.psi0(t)[..., 0], self.sde.cov(t)[..., 0]
        return alpha * self.mean, (alpha**2 * self.std**2 + var).sqrt()

    def score(self, u: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        mean, std = self.at(t)
        z = (u - mean) / std  # the block's axis becomes that of the modes
        first, second = (self.weight.log() - std.log() - z**2 / 2).unbind(-1)
        pull = z / std
        return -torch.lerp(pull[..., 1], pull[..., 0], torch.sigmoid(first - second)).unsqueeze(-1)

    def sample(self, num: int, dims: int, t: Tensor, generator: torch.Generator) -> Tensor:
        mean, std = self.at(t)
        which = (torch.rand(num, dims, generator=generator) > 0.3).long()
        return (mean[which] + std[which] * torch.randn(num, dims, dtype=torch.float64, generator=generator)).unsqueeze(
            -1
        )

    def cdf(self, t: Tensor):
        mean, std = (v.numpy() for v in self.at(t))
        return lambda x: 0.3 * norm.cdf((x - mean[0]) / std[0]) + 0.7 * norm.cdf((x - mean[1]) / std[1])


@ISOTROPIC
def test_the_ode_leaves_exact_marginals_invariant(sde):
    """10,000 samples of a mixture, from its law at t_max to its law at t_min: KS, alpha = 1e-4."""
    law = Bimodal(sde)
    u = sample_ode(sde, law.score, law.sample(10_000, 1, scalar(1.0), rng(0)), uniform_times(sde, 1))
    assert kstest(u.flatten().numpy(), law.cdf(scalar(sde.t_min))).pvalue > 1e-4


@ISOTROPIC
@pytest.mark.usefixtures("unchecked")
def test_euler_maruyama_at_a_thousand_steps_keeps_the_marginal(sde):
    """2,000 samples of the same."""
    law = Bimodal(sde)
    u = law.sample(2000, 1, scalar(1.0), rng(1))
    u = sample_em(sde, law.score, u, uniform_times(sde, 1000), generator=rng(2))
    assert kstest(u.flatten().numpy(), law.cdf(scalar(sde.t_min))).pvalue > 1e-4


@pytest.mark.slow
@ISOTROPIC
@pytest.mark.usefixtures("unchecked")
def test_predictor_corrector_at_a_thousand_steps_keeps_the_marginal(sde):
    """2,000 samples of 32 independent coordinates, one of them tested.

    The corrector's step is a function of |z|/|score|: near a constant in many dimensions, and no Langevin step in two,
    where the variance comes out several times too large.
    """
    law = Bimodal(sde)
    u = law.sample(2000, 32, scalar(1.0), rng(1))
    u = sample_pc(sde, law.score, u, uniform_times(sde, 1000), generator=rng(2))
    assert kstest(u[:, 0].flatten().numpy(), law.cdf(scalar(sde.t_min))).pvalue > 1e-4


@EVERY
def test_the_ode_maps_a_gaussian_onto_its_law(sde):
    """The flow map of a Gaussian's ODE is affine: its matrix carries the covariance at t_max to that at t_min."""
    law = Gaussian(sde=sde, mean=MEAN, cov=COV)
    (mean_T, cov_T), (mean_0, cov_0) = law.moments(scalar(1.0)), law.moments(scalar(sde.t_min))
    rows = torch.cat([mean_T[None], mean_T + torch.linalg.cholesky(cov_T).T])
    u = sample_ode(sde, law.score, rows.reshape(len(rows), 2, -1), uniform_times(sde, 1), rtol=1e-9, atol=1e-9).flatten(
        1
    )
    torch.testing.assert_close(u[0], mean_0, rtol=0, atol=1e-6)
    columns = (u[1:] - u[0]).T
    torch.testing.assert_close(columns @ columns.T, cov_0, rtol=0, atol=1e-6)


def em_moments(law: Gaussian, ts: Tensor, lam: float) -> tuple[Tensor, Tensor]:
    """Mean and covariance of Euler-Maruyama from the exact law at ts[0]: a linear recursion."""
    mean, cov = law.moments(ts[0])
    d, sde, eye = len(law.mean), law.sde, torch.eye(len(mean)).double()
    for t, s in pairwise(ts):
        h, (m_t, C_t) = t - s, law.moments(t)
        F, GG = (torch.block_diag(*A.expand(d, *A.shape[-2:])) for A in (sde.F(t), sde.GG(t)))
        pull = 0.5 * (1 + lam**2) * GG @ torch.linalg.inv(C_t)  # the reverse drift is F u + pull (u - m_t)
        A = eye - h * (F + pull)
        mean, cov = A @ mean + h * pull @ m_t, A @ cov @ A.T + lam**2 * h * GG
    return mean, cov


def responses(sampler, law: Gaussian, ts: Tensor, monkeypatch, **options) -> tuple[Tensor, Tensor]:
    """A linear sampler's own mean and covariance, without sampling: its answer to each unit of noise, one row each."""
    mean, cov = law.moments(ts[0])
    n, steps = len(mean), len(ts) - 1
    rows = (torch.cat([mean[None], mean + torch.linalg.cholesky(cov).T, mean.expand(steps * n, n)])).reshape(
        -1, 2, n // 2
    )
    calls = iter(range(steps))

    def impulse(u: Tensor, generator=None) -> Tensor:
        noise, first = torch.zeros_like(u).flatten(1), 1 + n + n * next(calls)
        noise[first : first + n] = torch.eye(n).double()
        return noise.reshape(u.shape)

    monkeypatch.setattr(sample, "randn_like", impulse)
    u = sampler(law.sde, law.score, rows, ts, **options).flatten(1)
    columns = u[1:] - u[0]
    return u[0], columns.T @ columns


@EVERY
@pytest.mark.parametrize("lam", [1.0, 0.5, 0.0])
def test_euler_maruyama_has_the_moments_of_its_recursion(sde, lam, monkeypatch):
    law, ts = Gaussian(sde=sde, mean=MEAN, cov=COV), power_times(sde, 12, 2.0)
    mean, cov = responses(sample_em, law, ts, monkeypatch, lam=lam)
    direct_mean, direct_cov = em_moments(law, ts, lam)
    scale = float(direct_cov.abs().max())
    torch.testing.assert_close(mean, direct_mean, rtol=1e-10, atol=1e-11 * scale)
    torch.testing.assert_close(cov, direct_cov, rtol=1e-10, atol=1e-11 * scale)


@EVERY
@pytest.mark.usefixtures("unchecked")
def test_euler_maruyama_has_weak_order_one(sde, monkeypatch):
    """The error of the mean and of the covariance halves with the step, to 5 %.

    VE's mean is exact and the leading error of its covariance nearly cancels over so many decades of sigma: it falls faster.
    """
    sde = type(sde)(t_min=0.02)
    law = Gaussian(sde=sde, mean=MEAN, cov=COV)
    exact_mean, exact_cov = law.moments(scalar(sde.t_min))
    errors = []
    for num_steps in (800, 1600):
        mean, cov = em_moments(law, log_rho_times(sde, num_steps), 1.0)
        errors.append(((mean - exact_mean).norm(), (cov - exact_cov).norm()))
    (mean_coarse, cov_coarse), (mean_fine, cov_fine) = errors
    if isinstance(sde, VE):
        assert float(cov_coarse / cov_fine) > 1.9
        assert float(mean_fine) < 1e-12
    else:
        assert float(cov_coarse / cov_fine) == pytest.approx(2, rel=0.05)
        assert float(mean_coarse / mean_fine) == pytest.approx(2, rel=0.05)
    ours = responses(sample_em, law, log_rho_times(sde, 40), monkeypatch)
    torch.testing.assert_close(ours[1], em_moments(law, log_rho_times(sde, 40), 1.0)[1], rtol=1e-9, atol=1e-10)


@EVERY
def test_euler_maruyama_samples_have_the_moments_of_the_recursion(sde):
    """The noise itself, 20,000 samples: covariance within 5 standard errors."""
    law, ts = Gaussian(sde=sde, mean=MEAN, cov=COV), power_times(sde, 30, 2.0)
    u = sample_em(sde, law.score, law.sample(20_000, ts[0], rng(0)), ts, generator=rng(1)).flatten(1)
    mean, cov = em_moments(law, ts, 1.0)
    v = cov.diagonal()
    assert ((u.mean(0) - mean).abs() < 5 * (v / len(u)).sqrt()).all()
    assert ((u.T.cov() - cov).abs() < 5 * ((v.outer(v) + cov**2) / len(u)).sqrt()).all()


@EVERY
@pytest.mark.parametrize("corrector_steps", [0, 2])
def test_predictor_corrector_is_langevin_then_euler_maruyama(sde, corrector_steps):
    """Corrector first, at the time where the step begins; the order of the draws is that of the text."""
    law, ts = Gaussian(sde=sde, mean=MEAN, cov=COV), power_times(sde, 5, 2.0)
    start = law.sample(3, ts[0], rng(0))
    ours = sample_pc(sde, law.score, start, ts, generator=rng(1), snr=0.1, corrector_steps=corrector_steps)
    u, generator = start, rng(1)
    for t, s in pairwise(ts):
        for _ in range(corrector_steps):
            u = sample._langevin_step(u, law.score(u, t), 0.1, generator)
        u = sample_em(sde, law.score, u, torch.stack([t, s]), generator=generator)
    torch.testing.assert_close(ours, u, rtol=1e-12, atol=1e-12)


def test_a_langevin_step_is_the_published_one():
    """a = 2 (snr |z|/|s|)^2 with the norms of each sample, u + a s + sqrt(2 a) z."""
    u, score, z = randn(3, 4, 1), randn(3, 4, 1, seed=1), randn_like(randn(3, 4, 1), rng(5))
    ours = sample._langevin_step(u, score, 0.16, rng(5))
    for i in range(3):
        a = 2 * (0.16 * float(z[i].norm()) / float(score[i].norm())) ** 2
        torch.testing.assert_close(ours[i], u[i] + a * score[i] + math.sqrt(2 * a) * z[i], rtol=1e-12, atol=1e-12)


@EVERY
def test_grids_decrease_from_t_max_to_t_min(sde):
    grids = [
        uniform_times(sde, 17),
        power_times(sde, 17, 2.0),
        power_times(sde, 17, 7.0),
        power_times(sde, 17, 1.5),
        log_rho_times(sde, 17),
        edm_times(sde, 17),
        uniform_times(sde, 1),
    ]
    for ts in grids:
        assert ts.dtype == torch.float64
        assert (ts[1:] < ts[:-1]).all()
        assert (float(ts[0]), float(ts[-1])) == (sde.t_max, sde.t_min)
        sample.check_times(sde, ts)
    torch.testing.assert_close(
        grids[0].diff(), torch.full((17,), -(1 - 1e-5) / 17, dtype=torch.float64), rtol=1e-9, atol=0
    )
    roots = grids[1].sqrt().diff()
    torch.testing.assert_close(roots, roots[:1].expand(17), rtol=1e-9, atol=0)


@ISOTROPIC
def test_rho_grids_are_equally_spaced_in_rho(sde):
    log_rho = torch.log(sde.R(log_rho_times(sde, 40)) / sde.psi0(log_rho_times(sde, 40))).flatten().diff()
    torch.testing.assert_close(log_rho, log_rho[:1].expand(40), rtol=1e-7, atol=0)
    ts = edm_times(sde, 40, 7.0)
    rho = ((sde.R(ts) / sde.psi0(ts)).flatten() ** (1 / 7)).diff()
    torch.testing.assert_close(rho, rho[:1].expand(40), rtol=1e-7, atol=0)


BAD_GRIDS = [
    (torch.tensor([0.5, 0.5, 0.1]), r"ts\[0\]=0.5 is followed by ts\[1\]=0.5"),
    (torch.tensor([0.1, 0.5]), "must decrease"),
    (torch.tensor([1.0, math.nan, 0.1]), "must decrease"),
    (torch.tensor([1.5, 0.5]), r"ts\[0\]=1.5"),
    (torch.tensor([1.0, 0.0]), r"ts\[-1\]=0"),
    (torch.tensor([1.0]), "at least two times"),
    (torch.tensor([[1.0, 0.5]]), "at least two times"),
]


@pytest.mark.parametrize("sampler", [sample_em, sample_pc, sample_ode])
@pytest.mark.parametrize(("ts", "message"), BAD_GRIDS)
def test_bad_grids_are_refused(sampler, ts, message):
    law = Bimodal(VP())
    with pytest.raises(ValueError, match=message):
        sampler(VP(), law.score, randn(2, 1, 1), ts.double())


def test_settings_out_of_range_are_named():
    sde, score, u = VP(), Bimodal(VP()).score, randn(2, 1, 1)
    ts = uniform_times(sde, 2)
    refusals = [
        (lambda: sample_em(sde, score, u, ts, lam=-1.0), "lam=-1"),
        (lambda: sample_pc(sde, score, u, ts, snr=0.0), "snr=0"),
        (lambda: sample_pc(sde, score, u, ts, corrector_steps=-1), "corrector_steps=-1"),
        (lambda: uniform_times(sde, 0), "num_steps=0"),
        (lambda: power_times(sde, 3, 0.0), "power=0"),
        (lambda: edm_times(sde, 3, -1.0), "power=-1"),
        (lambda: sample_em(sde, score, u, ts, generator=seeded([1])), "1 generators for a batch of 2"),
        (lambda: sample_ode(sde, score, u, ts, rtol=0.0), "rtol=0"),
    ]
    for call, message in refusals:
        with pytest.raises(ValueError, match=message):
            call()


SAMPLERS = {
    "EM": lambda sde, score, u, ts, generator: sample_em(sde, score, u, ts, generator=generator),
    "PC": lambda sde, score, u, ts, generator: sample_pc(sde, score, u, ts, generator=generator),
    "RK45": lambda sde, score, u, ts, generator: sample_ode(sde, score, u, ts, generator=generator),
}


@EVERY
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sample_is_that_of_its_seed_in_every_batch(sde, name):
    model = ExactModel(Gaussian(sde=sde, mean=MEAN, cov=COV))
    ts, like, seeds = power_times(sde, 15, 2.0), torch.zeros(1).double(), [11, 5, 7, 2]

    def drawn(chosen: list[int]) -> Tensor:
        return draw(model, SAMPLERS[name], ts, like, len(chosen), generator=seeded(chosen))

    together = drawn(seeds)
    for i, seed in enumerate(seeds):
        torch.testing.assert_close(drawn([seed])[0], together[i], rtol=0, atol=1e-12)
    torch.testing.assert_close(drawn(seeds[::-1]), together.flip(0), rtol=0, atol=1e-12)
    torch.testing.assert_close(drawn(seeds), together, rtol=0, atol=0)


@EVERY
@pytest.mark.usefixtures("unchecked")
def test_draw_returns_the_law_of_the_data(sde):
    """Start, ODE, Tweedie's mean at t_min and decoding, end to end: mean and covariance of 4,000 samples."""
    sde = type(sde)(t_min=1e-4)
    model = ExactModel(Gaussian(sde=sde, mean=MEAN, cov=COV))
    ts, like = uniform_times(sde, 1), torch.zeros(1).double()
    for denoise in (False, True):
        x = draw(model, SAMPLERS["RK45"], ts, like, 4000, generator=rng(0), denoise=denoise)
        t = scalar(sde.t_min)
        mean, cov = model.law.moments(t)
        k = len(mean) // 2
        if denoise:  # of the estimate E[u_0 | u], which is affine in u
            E = sde.embed(torch.eye(2).double()).flatten(1).T
            psi = torch.block_diag(*sde.psi0(t).expand(2, k, k))
            gain = E @ COV @ E.T @ psi.T @ torch.linalg.inv(cov)
            mean, cov = E @ MEAN, gain @ cov @ gain.T
        mean, cov = mean[::k], cov[::k, ::k]
        v = cov.diagonal()
        assert ((x.mean(0) - mean).abs() < 5 * (v / len(x)).sqrt()).all()
        assert ((x.T.cov() - cov).abs() < 5 * ((v.outer(v) + cov**2) / len(x)).sqrt()).all()


@pytest.mark.parametrize("grid", [uniform_times, partial(power_times, power=2.0), log_rho_times, edm_times])
@pytest.mark.parametrize("sde", [*SDES[:3], CLD(), BDM(height=4, width=4)], ids=ids)
def test_grids_take_other_ends(sde, grid):
    """Where sampling starts and stops early; the diffusion itself is not rescaled."""
    ts = grid(sde, 6, low=0.01, high=0.7)
    assert (float(ts[0]), float(ts[-1])) == (0.7, 0.01)
    assert bool((ts.diff() < 0).all())
    whole = grid(sde, 6)
    assert (float(whole[0]), float(whole[-1])) == (sde.t_max, sde.t_min)
    with pytest.raises(ValueError, match=r"low=0\.8 must lie below high=0\.7"):
        grid(sde, 6, low=0.8, high=0.7)


@pytest.mark.parametrize("sde", [CLD(), BDM(height=4, width=4)], ids=ids)
def test_rho_grids_of_unequal_coordinates_follow_one_of_them(sde):
    """The position of CLD, the frequency 0 of BDM: sqrt(Sigma)/psi of that coordinate is equally spaced in its logarithm."""
    ts = log_rho_times(sde, 8).reshape(-1, 1, 1)
    cov, psi = sde.cov(ts).reshape(9, -1)[:, 0], sde.psi0(ts).reshape(9, -1)[:, 0]
    spacing = (0.5 * cov.log() - psi.log()).diff()
    torch.testing.assert_close(spacing, spacing[:1].expand(8), rtol=1e-8, atol=0)


def test_a_mixture_in_two_dimensions_is_sampled():
    """A correlated mixture through `draw`: the share and the mean of each mode."""
    parts = [Gaussian(sde=VP(), mean=m * MEAN, cov=0.05 * COV) for m in (3.0, -3.0)]
    model = ExactModel(Mixture(weights=torch.tensor([0.3, 0.7]).double(), components=tuple(parts)), exact_start=False)
    x = draw(model, SAMPLERS["RK45"], uniform_times(VP(), 1), torch.zeros(1).double(), 2000, generator=rng(3))
    first = x @ MEAN > 0
    assert float(first.double().mean()) == pytest.approx(0.3, abs=5 * math.sqrt(0.21 / 2000))
    centre = x[first].mean(0)
    assert ((centre - 3 * MEAN).abs() < 5 * (0.05 * COV.diagonal() / int(first.sum())).sqrt()).all()


def test_noise_of_a_sample_is_that_of_its_generator():
    u = torch.zeros(3, 4, 2, dtype=torch.float64)
    rows = randn_like(u, seeded([4, 5, 6]))
    for i, seed in enumerate((4, 5, 6)):
        assert torch.equal(rows[i], torch.randn(4, 2, dtype=torch.float64, generator=rng(seed)))
    assert torch.equal(randn_like(u, rng(1)), torch.randn(3, 4, 2, dtype=torch.float64, generator=rng(1)))
    assert rand(3, u, seeded([1, 2, 3])).dtype == torch.float64
    signs = rademacher_like(torch.zeros(10_000, 1), rng(0))
    assert set(signs.flatten().tolist()) == {-1.0, 1.0}
    assert abs(float(signs.mean())) < 0.05


def test_float32_states_stay_float32():
    sde, law = VP(), Gaussian(sde=VP(), mean=MEAN, cov=COV)
    u = law.sample(4, scalar(1.0), rng(0)).float()
    for sampler in SAMPLERS.values():
        out = sampler(sde, lambda u, t, y=None: -u, u, power_times(sde, 5, 2.0), rng(1))
        assert out.dtype == torch.float32
    assert Coupled().sample_prior(u.expand(4, 2, 2), rng(0)).dtype == torch.float32


def affine_model(sde) -> ExactModel:
    """Gaussian latents behind an affine flow."""
    A, b = torch.tensor([[1.5, 0.2], [-0.3, 0.8]]).double(), torch.tensor([0.3, -0.1]).double()
    return ExactModel(Gaussian(sde=sde, mean=MEAN, cov=COV), flow=Affine(A, b))


@EVERY
@pytest.mark.usefixtures("unchecked")
def test_a_forward_path_has_the_marginals_of_the_diffusion(sde):
    """x_t = h^-1(z_t): mean and covariance at every rung, from exact transitions; the noise grows with the path."""
    model, num = affine_model(sde), 4000
    z = MEAN + randn(num, 2) @ torch.linalg.cholesky(COV).T
    ts = torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=torch.float64)
    path = forward_path(model, model.flow.inverse(z), ts, rng(1))
    assert path.shape == (4, num, 2)
    if bool((sde.cov(scalar(0.0)) == 0).all()):
        torch.testing.assert_close(path[0], model.flow.inverse(z))
    A_inv, k = torch.linalg.inv(model.flow.A.detach()), sde.prior_cov().shape[-1]
    for t, x in zip(ts, path, strict=True):
        mean, cov = model.law.moments(t)
        mean, cov = A_inv @ (mean[::k] - model.flow.b.detach()), A_inv @ cov[::k, ::k] @ A_inv.T
        v = cov.diagonal()
        assert ((x.mean(0) - mean).abs() < 5 * (v / num).sqrt()).all()
        assert ((x.T.cov() - cov).abs() < 5 * ((v.outer(v) + cov**2) / num).sqrt()).all()


@EVERY
def test_a_generative_path_is_its_sampler_seen_in_data_space(sde):
    model = affine_model(sde)
    u, ts = model.sample_start(torch.zeros(3, 2, sde.prior_cov().shape[-1]).double(), rng(0)), power_times(sde, 9, 2.0)
    path = generative_path(model, SAMPLERS["EM"], u, ts, 4, rng(5))
    assert path.shape == (4, 3, 2)
    torch.testing.assert_close(path[0], model.decode(u))
    torch.testing.assert_close(path[-1], model.decode(SAMPLERS["EM"](sde, model.score, u, ts, rng(5))))


@EVERY
def test_draw_starts_from_data_and_takes_temperatures(sde):
    """From diffused latents with the same noise; a temperature scales the latent, the other the start."""
    model, ts = affine_model(sde), uniform_times(sde, 3)
    like, x = torch.zeros(1).double(), randn(5, 2)
    seen = []

    def sampler(sde, score, u, ts, generator):
        seen.append(u)
        return u

    plain = {"like": like, "num": 5, "denoise": False}
    first = draw(model, sampler, ts, generator=rng(1), **plain)
    warm = draw(model, sampler, ts, generator=rng(1), temperature=0.5, **plain)
    torch.testing.assert_close(model.flow(warm)[0], 0.5 * model.flow(first)[0])
    draw(model, sampler, ts, generator=rng(1), start_temperature=0.5, **plain)
    start = model.sample_start(model.state_like(5, like), rng(1), 0.5)
    torch.testing.assert_close(seen[-1], start)
    draw(model, sampler, ts, generator=rng(1), start=x, **plain)
    u_0 = sde.embed(model.flow(x)[0])
    torch.testing.assert_close(seen[-1], sde.transition(u_0, ts[0], torch.zeros_like(ts[0]), rng(1)))


@pytest.mark.usefixtures("unchecked")
def test_bad_paths_and_temperatures_are_named():
    model, ts = affine_model(VP()), uniform_times(VP(), 3)
    with pytest.raises(ValueError, match="temperature=0"):
        draw(model, SAMPLERS["EM"], ts, torch.zeros(1).double(), 2, temperature=0.0)
    with pytest.raises(ValueError, match="must increase within"):
        forward_path(model, randn(2, 2), torch.tensor([0.5, 0.2]).double())
    with pytest.raises(ValueError, match="rungs=9"):
        generative_path(model, SAMPLERS["EM"], randn(2, 2, 1), ts, 9)


@pytest.mark.parametrize("gamma", [0.4, 0.7])
def test_a_rho_that_passes_infinity_has_no_grid(gamma):
    """A weakly damped Langevin diffusion swings: psi_xx passes 0 within [t_min, t_max]."""
    for grid in (log_rho_times, edm_times):
        with pytest.raises(ValueError, match="take a power grid"):
            grid(CLD(gamma=gamma), 20)
