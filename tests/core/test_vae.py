"""The variational autoencoder: its bounds against sums over a grid of latents and over all pictures."""

from __future__ import annotations

import math
from itertools import pairwise, product

import pytest
import torch
from problems import randn, rng
from torch import Tensor, nn

from indm_core.model import VAE, dense_vae
from indm_core.pis.targets import Posterior
from indm_core.training import AdamW, Trainer

F64 = torch.float64
LINE = torch.linspace(-9, 9, 1201, dtype=F64)
PICTURES = torch.tensor(list(product([0.0, 1.0], repeat=4)), dtype=F64).reshape(16, 1, 2, 2)


def small(dim: int = 1) -> VAE:
    """Of pictures of 2 x 2, with weights that do something."""
    vae = dense_vae((1, 2, 2), dim=dim, width=6).double().requires_grad_(False)
    for i, p in enumerate(vae.parameters()):
        p.copy_(0.7 * randn(*p.shape, seed=i))
    return vae


def log_prob(vae: VAE, x: Tensor) -> Tensor:
    """log p(x) of pictures by a sum over a grid of the latent."""
    z = torch.cartesian_prod(*[LINE[::6]] * 2) if vae.dim == 2 else LINE[:, None]
    step = 6 * (LINE[1] - LINE[0]) if vae.dim == 2 else LINE[1] - LINE[0]
    log_joint = torch.stack([vae.log_prior(z) + vae.log_likelihood(z, one[None]) for one in x])
    return log_joint.logsumexp(1) + vae.dim * step.log()


@pytest.mark.parametrize("dim", [1, 2])
def test_the_probabilities_of_all_pictures_sum_to_one(dim):
    assert float(log_prob(small(dim), PICTURES).exp().sum()) == pytest.approx(1, abs=1e-8)


def test_the_bound_falls_short_by_the_divergence_of_the_encoder():
    """log p(x) - ELBO = KL(q(z | x) | p(z | x)), the latter by the same sum."""
    vae, x, num = small(), PICTURES[[3, 9]], 40_000
    found = vae.elbo(x.repeat_interleave(num, 0), rng()).reshape(2, num)
    exact = log_prob(vae, x)
    mean, log_std = vae.encode(x)
    log_q = torch.distributions.Normal(mean, log_std.exp()).log_prob(LINE)
    log_joint = torch.stack([vae.log_prior(LINE[:, None]) + vae.log_likelihood(LINE[:, None], one[None]) for one in x])
    gap = (log_q.exp() * (log_q - log_joint + exact[:, None])).sum(1) * (LINE[1] - LINE[0])
    assert (gap > 0.01).all()
    assert ((found.mean(1) - exact + gap).abs() < 5 * found.std(1) / math.sqrt(num)).all()


def test_the_terms_of_the_loss_add_up_and_the_divergence_is_torchs():
    vae = small(2)
    losses = vae(PICTURES, None, rng())
    mean, log_std = vae.encode(PICTURES)
    normal = torch.distributions.Normal
    kl = torch.distributions.kl_divergence(normal(mean, log_std.exp()), normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(losses.terms["kl"], kl)
    torch.testing.assert_close(losses.terms["reconstruction"] + kl, losses.objective)
    torch.testing.assert_close(losses.objective, -vae.elbo(PICTURES, rng()))


def test_weights_are_unbiased_and_the_bound_rises_with_the_draws():
    vae, x, runs = small(2), PICTURES[5:6], 4000
    exact = float(log_prob(vae, x))
    log_w = vae.log_weights(x.expand(runs, 1, 2, 2), 16, rng())
    w = (log_w - exact).exp().flatten()
    assert abs(float(w.mean()) - 1) < 5 * float(w.std()) / math.sqrt(len(w))
    bounds = [log_w[:num].logsumexp(0) - math.log(num) for num in (1, 2, 4, 16)]
    for lower, higher in pairwise(bounds):
        rise = higher - lower
        assert float(rise.mean()) > 3 * float(rise.std()) / math.sqrt(runs)
    assert float(bounds[-1].mean()) < exact
    torch.testing.assert_close(vae.bound(x, 16, rng(1)), vae.log_weights(x, 16, rng(1)).logsumexp(0) - math.log(16))


def test_where_the_decoder_ignores_the_latent_the_prior_is_the_posterior():
    """Then every weight is p(x) itself, and every bound is exact."""

    class Ignoring(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return z.new_tensor([0.3, -1.0, 2.0, 0.1]).expand(len(z), 4)

    class Prior(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.new_zeros(len(x), 6)

    vae = VAE(Prior(), Ignoring(), shape=(1, 2, 2), dim=3)
    p = torch.tensor([0.3, -1.0, 2.0, 0.1], dtype=F64).sigmoid()
    exact = torch.distributions.Bernoulli(p).log_prob(PICTURES.flatten(1)).sum(1)
    torch.testing.assert_close(vae.elbo(PICTURES, rng()), exact)
    torch.testing.assert_close(vae.log_weights(PICTURES, 3, rng()), exact.expand(3, -1))


def test_the_posterior_of_a_picture_has_its_probability_as_constant():
    vae, x = small(), PICTURES[7:8]
    target = Posterior(1, vae.log_prior, lambda z: vae.log_likelihood(z, x))
    total = target.log_prob(LINE[:, None]).logsumexp(0) + (LINE[1] - LINE[0]).log()
    # p(x) by the same grid, but as the mean of p(x | z) over the prior, product by product
    p = vae.decode(LINE[:, None]).sigmoid().flatten(1)
    likelihood = torch.where(x.flatten() == 1, p, 1 - p).prod(1)
    prior = torch.distributions.Normal(0.0, 1.0).log_prob(LINE).exp()
    assert float(total.exp()) == pytest.approx(float((prior * likelihood).sum() * (LINE[1] - LINE[0])))


def test_training_comes_to_the_entropy_of_two_pictures():
    """Pictures of all 0 and all 1, as often: log 2 nats is the least that a bound of any model can be."""
    torch.manual_seed(0)
    vae = dense_vae((1, 2, 2), dim=1, width=16)
    settings = AdamW(lr=2e-2, clip=10.0)
    trainer = Trainer(vae, {"encoder": settings, "decoder": settings}, ema_decay=0.0)
    x = torch.cat([torch.zeros(32, 1, 2, 2), torch.ones(32, 1, 2, 2)])
    for step in range(80):
        trainer.step([(x, None)], rng(step))
    found = -float(vae.bound(x.repeat(4, 1, 1, 1), 16, rng()).mean().detach())
    assert math.log(2) - 0.02 < found < 1.0
    pictures = (vae.sample(200, rng()) > 0.5).flatten(1).float().mean(1)
    assert ((pictures == 0) | (pictures == 1)).float().mean() > 0.9


def test_what_is_refused():
    vae = dense_vae((1, 2, 2), dim=2, width=4)
    with pytest.raises(ValueError, match=r"takes batches \(b, \(1, 2, 2\)\)"):
        vae(torch.zeros(3, 2, 2))
    with pytest.raises(ValueError, match=r"x holds 0\.5: the likelihood is of 0 and 1"):
        vae(torch.full((3, 1, 2, 2), 0.5))
    with pytest.raises(ValueError, match="dim=0"):
        dense_vae((1, 2, 2), dim=0)
