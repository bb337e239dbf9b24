r"""A variational autoencoder of binary pictures.

    z ~ N(0, I_k),    p(x | z) = prod_i Bernoulli(x_i; sigmoid(l_i(z))),    q(z | x) = N(m(x), diag s(x)^2),

l the decoder's logits, (m, log s) the encoder's numbers. For every q, by Jensen's inequality,

    log p(x) = log E_q[w] >= E_q[log w] = E_q[log p(x | z)] - KL(q | p) = ELBO(x),      w = p(z) p(x | z)/q(z | x),
    KL(q | p) = 1/2 sum_j (m_j^2 + s_j^2 - 1 - 2 log s_j),

and the gap is KL(q(z | x) | p(z | x)). The loss is -ELBO in nats, at one draw z = m + s eps with the KL in closed form. With K
draws the importance-weighted bound

    L_K(x) = E[log (1/K) sum_k w_k]

rises with K from L_1 = ELBO to log p(x): E[1/K sum w] = p(x) for every K, so that it too is a bound by Jensen's inequality, and
a mean over K is the mean of those over its subsets.

The posterior p(z) p(x | z) of one picture is a density with the constant p(x), which a sampler of densities estimates
(5.22): see `indm_core.pis.targets.Posterior` with `log_prior` and `log_likelihood`.

References:
    Kingma, Welling 2014, "Auto-encoding variational Bayes"; Burda et al. 2016, "Importance weighted autoencoders", Theorem 1;
    Zhang, Chen 2022, "Path integral sampler", Eq. 5.22 of the thesis.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from indm_core.model.base import Losses, Trainable
from indm_core.noise import Noise, randn_like
from indm_core.ranges import check_count
from indm_core.shapes import Float

__all__ = ["VAE", "dense_vae"]

LOG_STD = 7.0
"""log s lies between -LOG_STD and LOG_STD, so that no encoder makes the loss overflow."""


@final
class VAE(Trainable):
    """Encoder and decoder, trained by -ELBO.

    Args:
        encoder: x (b, *shape) -> (b, 2 k), m before log s.
        decoder: z (b, k) -> the logits, (b, prod shape).
        shape: Event of the data.
        dim: k.

    Raises:
        ValueError: dim or a side that is no integer of at least 1.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, *, shape: Sequence[int], dim: int) -> None:
        super().__init__()
        check_count(dim=dim, **{f"shape[{i}]": side for i, side in enumerate(shape)})
        self.encoder, self.decoder, self.shape, self.dim = encoder, decoder, tuple(shape), dim

    def encode(self, x: Float[Tensor, " b *event"]) -> tuple[Float[Tensor, "b k"], Float[Tensor, "b k"]]:
        """m(x) and log s(x)."""
        mean, log_std = self.encoder(x).chunk(2, 1)
        return mean, log_std.clamp(-LOG_STD, LOG_STD)

    def decode(self, z: Float[Tensor, "b k"]) -> Float[Tensor, " b *event"]:
        """l(z), logits."""
        return self.decoder(z).reshape(len(z), *self.shape)

    def log_prior(self, z: Float[Tensor, "b k"]) -> Float[Tensor, " b"]:
        """log p(z), nats."""
        return -0.5 * (z.square() + math.log(2 * math.pi)).sum(1)

    def log_likelihood(self, z: Float[Tensor, "b k"], x: Float[Tensor, " n *event"]) -> Float[Tensor, " b"]:
        """log p(x | z), nats; x holds a picture for each z, or one for all (1, *shape)."""
        logits = self.decode(z)
        nats = F.binary_cross_entropy_with_logits(logits, x.to(logits).expand_as(logits), reduction="none")
        return -nats.flatten(1).sum(1)

    def elbo(self, x: Float[Tensor, " b *event"], generator: Noise = None) -> Float[Tensor, " b"]:
        """ELBO(x) at one draw, nats; unbiased."""
        reconstruction, kl = self._terms(x, generator)
        return -reconstruction - kl

    def log_weights(
        self, x: Float[Tensor, " b *event"], num_draws: int, generator: Noise = None
    ) -> Float[Tensor, "n b"]:
        """log w of draws of q(z | x); E[w] = p(x)."""
        check_count(num_draws=num_draws)
        self.check_data(x)
        mean, log_std = self.encode(x)
        log_w = list[Tensor]()
        for _ in range(num_draws):
            eps = randn_like(mean, generator)
            z = mean + log_std.exp() * eps
            # The constants of both Gaussians cancel.
            log_ratio = (0.5 * (eps.square() - z.square()) + log_std).sum(1)
            log_w.append(log_ratio + self.log_likelihood(z, x))
        return torch.stack(log_w)

    def bound(self, x: Float[Tensor, " b *event"], num_draws: int, generator: Noise = None) -> Float[Tensor, " b"]:
        """L_K(x) at `num_draws` = K draws, nats: a lower bound on log p(x) in the mean."""
        return self.log_weights(x, num_draws, generator).logsumexp(0) - math.log(num_draws)

    def forward(self, x: Float[Tensor, " b *event"], y: Tensor | None = None, generator: Noise = None) -> Losses:
        """-ELBO of pictures of 0 and 1, whatever their labels y.

        Raises:
            ValueError: pictures of another shape, or of other numbers.
        """
        reconstruction, kl = self._terms(x, generator)
        nelbo = reconstruction + kl
        terms = {"nelbo": nelbo, "reconstruction": reconstruction, "kl": kl}
        return Losses(nelbo, {name: term.detach() for name, term in terms.items()})

    def _terms(self, x: Tensor, generator: Noise) -> tuple[Tensor, Tensor]:
        """-log p(x | z) at a draw, and KL(q | p)."""
        self.check_data(x)
        mean, log_std = self.encode(x)
        z = mean + log_std.exp() * randn_like(mean, generator)
        kl = 0.5 * (mean.square() + (2 * log_std).exp() - 1 - 2 * log_std).sum(1)
        return -self.log_likelihood(z, x), kl

    @torch.no_grad()
    def sample(self, num: int, generator: Noise = None) -> Float[Tensor, " num *event"]:
        """The probabilities of a 1, of draws of z."""
        check_count(num=num)
        like = next(self.parameters(), torch.zeros(()))
        return self.decode(randn_like(like.new_empty(num, self.dim), generator)).sigmoid()

    def check_data(self, x: Tensor) -> None:
        """Refuses what is no batch of binary pictures of this model.

        Raises:
            ValueError: another shape, or numbers other than 0 and 1.
        """
        if x.shape[1:] != torch.Size(self.shape):
            raise ValueError(f"x has the shape {tuple(x.shape)}, and the model takes batches (b, {self.shape})")
        other = x[(x != 0) & (x != 1)]
        if other.numel():
            raise ValueError(
                f"x holds {float(other[0]):g}: the likelihood is of 0 and 1; give binary pictures, as (x > 0.5).float() of "
                "grey ones"
            )

    def evaluations(self) -> dict[str, int]:
        return dict.fromkeys(self.networks(), 1)

    def networks(self) -> dict[str, nn.Module]:
        """`encoder` and `decoder`."""
        return {"encoder": self.encoder, "decoder": self.decoder}

    def phase(self, step: int) -> str:
        return "training"

    def begin_phase(self, phase: str) -> None:
        self.requires_grad_(True)


def dense_vae(shape: Sequence[int], *, dim: int = 16, width: int = 200, depth: int = 2) -> VAE:
    """A VAE of two perceptrons.

    Args:
        shape: Event of the data.
        dim: k; the chapter's posteriors are of 30.
        width, depth: Of the hidden layers and their number.
    """
    check_count(dim=dim, width=width, depth=depth)
    size, hidden = math.prod(shape), [width] * depth
    encoder = nn.Sequential(nn.Flatten(), *_perceptron(size, *hidden, 2 * dim))
    return VAE(encoder, nn.Sequential(*_perceptron(dim, *hidden, size)), shape=shape, dim=dim)


def _perceptron(*sizes: int) -> list[nn.Module]:
    layers = list[nn.Module]()
    for before, after in itertools.pairwise(sizes):
        layers += [nn.SiLU(), nn.Linear(before, after)]
    return layers[1:]
