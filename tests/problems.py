r"""Problems whose answers are known: Gaussian and mixture laws under any linear SDE, and the model that they make.

A latent z ~ N(mean, cov) in d dimensions, diffused by a linear SDE, has at every time a Gaussian law,

    u_t ~ N(A_t mean, A_t cov A_t^T + diag Sigma_t),        A_t = psi(t, 0) embed,

hence an exact score and log-density, for coefficients (*e, K, K) of any K and *e. `Coupled` is a linear SDE with K = 2
and coefficients of its own at each position, built on matrix exponentials: what is derived in `LinearSDE` must hold for
it too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor, nn

from indm_core.flow import ActNorm, Composed, Flow, Glow, Identity, LipSwish, ResFlow, Roulette
from indm_core.flow.glow import AffineCoupling, InvertibleConv
from indm_core.model import FFJORD, INDM, DiffFlow, DiNof, GenerativeModel, LinearModel, Losses, Objective
from indm_core.model.elbo import linear_nelbo
from indm_core.nn import MLP
from indm_core.noise import Noise, randn_like
from indm_core.sample import uniform_times
from indm_core.sde import BDM, CLD, VE, VP, LinearSDE, SubVP

__all__ = [
    "FIVE",
    "FLOWS",
    "ISOTROPIC_SDES",
    "MODELS",
    "SDES",
    "Affine",
    "Coupled",
    "ExactModel",
    "Gaussian",
    "Mixture",
    "SmallBackbone",
    "glow",
    "ids",
    "randn",
    "resflow",
    "rng",
    "scalar",
]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=rng(seed))


def scalar(t: float) -> Tensor:
    """A 0-d float64 tensor."""
    return torch.tensor(t, dtype=torch.float64)


def ids(value: object) -> str:
    return type(value).__name__


@dataclass(frozen=True, kw_only=True)
class Coupled(LinearSDE):
    """K = 2: position and velocity, coupled differently at each of two positions, on the clock tau(t) = t + t^2/2.

    F = tau' A, GG^T = tau' Q, Sigma_0 = 0.05 I; position 0 has noise in the velocity alone (rank 1),
    position 1 in both. psi and Sigma are matrix exponentials (Van Loan), R a Chebyshev interpolant of its own
    equation, put back on Sigma.
    """

    A = torch.tensor([[[0.0, 1.5], [-2.0, -1.0]], [[-0.5, 1.0], [0.3, -0.8]]], dtype=torch.float64)
    Q = torch.tensor([[[0.0, 0.0], [0.0, 2.0]], [[1.0, 0.4], [0.4, 1.5]]], dtype=torch.float64)
    COV_0 = 0.05 * torch.eye(2, dtype=torch.float64)

    @property
    def pixelwise(self) -> bool:
        return True

    def F(self, t: Tensor) -> Tensor:
        return (1 + t)[..., None, None] * self.A.to(t)

    def GG(self, t: Tensor) -> Tensor:
        return (1 + t)[..., None, None] * self.Q.to(t)

    def psi(self, t: Tensor, s: Tensor) -> Tensor:
        return torch.linalg.matrix_exp((_tau(t) - _tau(s))[..., None, None] * self.A.to(t))

    def cov(self, t: Tensor) -> Tensor:
        return self.cov_at(_tau(t))

    def cov_at(self, tau: Tensor) -> Tensor:
        zeros = torch.zeros_like(self.A)
        generator = torch.cat([torch.cat([-self.A, self.Q], -1), torch.cat([zeros, self.A.mT], -1)], -2).to(tau)
        exponential = torch.linalg.matrix_exp(tau[..., None, None] * generator)
        psi = exponential[..., 2:, 2:].mT
        cov = psi @ (exponential[..., :2, 2:] + self.COV_0.to(tau) @ psi.mT)
        return (cov + cov.mT) / 2

    def R(self, t: Tensor) -> Tensor:
        x = 2 * _tau(t) / _tau(scalar(self.t_max)).to(t) - 1
        basis = torch.cos(torch.arange(_DEGREE + 1).to(t) * torch.acos(x.clamp(-1, 1)).unsqueeze(-1))
        R = torch.einsum("...n,neij->...eij", basis, _chebyshev_R(self).to(t))
        R = R.squeeze(-4) if t.ndim and t.shape[-1] == 1 else R
        L = torch.linalg.cholesky(self.cov(t))
        U, _, Vh = torch.linalg.svd(torch.linalg.solve_triangular(L, R, upper=False))
        return L @ U @ Vh

    def prior_cov(self) -> Tensor:
        """The exact law at t_max of positions ~ N(0, I)."""
        T = scalar(self.t_max)
        start = torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
        return self.psi0(T) @ start @ self.psi0(T).mT + self.cov(T)

    def embed(self, x: Tensor) -> Tensor:
        return torch.stack([x, torch.zeros_like(x)], -1)

    def project(self, u: Tensor) -> Tensor:
        return u[..., 0]

    def to_network(self, u: Tensor) -> Tensor:
        return u.flatten(1)

    def from_network(self, out: Tensor) -> Tensor:
        return out.reshape(len(out), 2, 2)


_DEGREE = 64


def _tau(t: Tensor) -> Tensor:
    return t + t**2 / 2


@cache
def _chebyshev_R(sde: Coupled) -> Tensor:
    """Chebyshev coefficients in tau of the solution of dR/dtau = (A + 1/2 Q Sigma^-1) R, R(0) = sqrt(Sigma_0)."""
    end = float(_tau(scalar(sde.t_max)))

    def slope(tau: float, R: np.ndarray) -> np.ndarray:
        F_hat = sde.A + 0.5 * sde.Q @ torch.linalg.inv(sde.cov_at(scalar(tau)))
        return (F_hat @ torch.from_numpy(R).reshape(2, 2, 2)).flatten().numpy()

    nodes = np.cos(np.pi * (np.arange(_DEGREE + 1) + 0.5) / (_DEGREE + 1))
    start = (math.sqrt(0.05) * torch.eye(2, dtype=torch.float64)).expand(2, 2, 2).flatten().numpy()
    times = (nodes[::-1] + 1) / 2 * end
    solution = solve_ivp(slope, (0, end), start, method="DOP853", t_eval=times, rtol=1e-13, atol=1e-14)
    coefficients = np.polynomial.chebyshev.chebfit(nodes[::-1], solution.y.T, _DEGREE)
    return torch.from_numpy(coefficients).reshape(-1, 2, 2, 2)


ISOTROPIC_SDES = [VP(), SubVP(), VE()]
SDES = [*ISOTROPIC_SDES, Coupled()]
"""What the generic code is tested on: `Coupled` has everything that a linear SDE may have."""
FIVE = [*ISOTROPIC_SDES, CLD(), BDM(height=2, width=3)]
"""Every linear SDE of the project. A new one goes in here, and every test of linear SDEs has it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Gaussian:
    """z ~ N(mean, cov) in d dimensions, seen at time t through an SDE; `shape` makes events of them, (d,) by default."""

    sde: LinearSDE
    mean: Tensor
    cov: Tensor
    shape: tuple[int, ...] = ()

    @property
    def event(self) -> tuple[int, ...]:
        return self.shape or (len(self.mean),)

    def moments(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (dK,) and covariance (dK, dK) of the flat state, with a batch axis in front where t has one."""
        d = len(self.mean)
        psi, cov = self.sde.psi0(t), self.sde.cov(t)
        k = psi.shape[-1]
        b = t.shape[:1]
        psi, cov = (value.expand(*b, *self.event, k, k).reshape(*b, d, k, k) for value in (psi, cov))
        eye = torch.eye(d, dtype=t.dtype)
        embedded = self.sde.embed(eye.reshape(d, *self.event)).reshape(d, d, k)
        A = torch.einsum("...ikl,jil->...ikj", psi, embedded).reshape(*b, d * k, d)
        noise = torch.einsum("...ikl,ij->...ikjl", cov, eye).reshape(*t.shape[:1], d * k, d * k)
        return A @ self.mean, A @ self.cov @ A.mT + noise

    def score(self, u: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        mean, cov = self.moments(t)
        return (
            -torch.linalg.solve(cov, (u.reshape(len(u), mean.shape[-1]) - mean).unsqueeze(-1))
            .squeeze(-1)
            .reshape(u.shape)
        )

    def log_prob(self, u: Tensor, t: Tensor) -> Tensor:
        mean, cov = self.moments(t)
        centred = u.reshape(len(u), mean.shape[-1]) - mean
        L = torch.linalg.cholesky(cov)
        white = torch.linalg.solve_triangular(L, centred.unsqueeze(-1), upper=False).squeeze(-1)
        log_det = L.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return -0.5 * white.square().sum(-1) - log_det - 0.5 * mean.shape[-1] * math.log(2 * math.pi)

    def log_prob_0(self, z: Tensor) -> Tensor:
        """log p(z), which no noise blurs."""
        return torch.distributions.MultivariateNormal(self.mean, self.cov).log_prob(z.flatten(1))

    def sample(self, num: int, t: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A draw at a 0-d time, (num, d, K)."""
        mean, cov = self.moments(t)
        noise = torch.randn(num, len(mean), dtype=t.dtype, generator=generator)
        return (mean + noise @ torch.linalg.cholesky(cov).mT).reshape(num, *self.event, -1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Mixture:
    """A mixture of Gaussians, seen at time t through an SDE."""

    weights: Tensor
    components: tuple[Gaussian, ...]

    def _joint(self, u: Tensor, t: Tensor) -> Tensor:
        terms = [log_w + g.log_prob(u, t) for log_w, g in zip(self.weights.log(), self.components, strict=True)]
        return torch.stack(terms)

    def log_prob(self, u: Tensor, t: Tensor) -> Tensor:
        return self._joint(u, t).logsumexp(0)

    def log_prob_0(self, z: Tensor) -> Tensor:
        terms = [log_w + g.log_prob_0(z) for log_w, g in zip(self.weights.log(), self.components, strict=True)]
        return torch.stack(terms).logsumexp(0)

    def score(self, u: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        share = self._joint(u, t).softmax(0).reshape(len(self.weights), -1, *[1] * (u.ndim - 1))
        return (share * torch.stack([g.score(u, t) for g in self.components])).sum(0)

    def sample(self, num: int, t: Tensor, generator: torch.Generator | None = None) -> Tensor:
        which = torch.multinomial(self.weights, num, replacement=True, generator=generator)
        draws = torch.stack([g.sample(num, t, generator) for g in self.components])
        return draws[which, torch.arange(num)]


class Affine(Flow):
    """h(x) = A x + b over the last axis."""

    def __init__(self, A: Tensor, b: Tensor) -> None:
        super().__init__()
        self.A, self.b = nn.Parameter(A.clone()), nn.Parameter(b.clone())

    def forward(self, x: Tensor, generator: Noise = None) -> tuple[Tensor, Tensor]:
        return x @ self.A.T + self.b, torch.linalg.slogdet(self.A).logabsdet.expand(len(x))

    def inverse(self, z: Tensor) -> Tensor:
        return torch.linalg.solve(self.A, (z - self.b).unsqueeze(-1)).squeeze(-1)


class ExactModel(LinearModel):
    """A model whose latents follow `law`, with the exact score, times `gain`, and the exact law at t_max, or pi.

    Args:
        law: Of the latents z = flow(x).
        flow: h.
        gain: Factor of the score: any other value than 1 makes a wrong model.
        exact_start: Whether the law at t_start is the law's own, else the SDE's prior.
    """

    def __init__(
        self, law: Gaussian | Mixture, *, flow: Flow | None = None, gain: float = 1.0, exact_start: bool = True
    ) -> None:
        super().__init__()
        self.law, self.flow, self.gain, self.exact_start = law, flow or Identity(), gain, exact_start
        first = law if isinstance(law, Gaussian) else law.components[0]
        self.sde, self.shape, self.t_start = first.sde, first.event, first.sde.t_max

    def forward(self, x: Tensor, y: Tensor | None = None, generator: Noise = None) -> Losses:
        raise NotImplementedError

    def encode(self, x: Tensor, generator: Noise = None) -> tuple[Tensor, Tensor]:
        z, log_det = self.flow(x, generator)
        return self.sde.embed(z), log_det

    def decode(self, u: Tensor) -> Tensor:
        return self.flow.inverse(self.sde.project(u))

    def score(self, u: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return self.gain * self.law.score(u, t)

    def sample_start(self, like: Tensor, generator: Noise = None, temperature: float = 1.0) -> Tensor:
        if not self.exact_start:
            return temperature * self.sde.sample_prior(like, generator)
        mean, cov = self.law.moments(scalar(self.t_start))
        noise = temperature * randn_like(like, generator).reshape(len(like), len(mean))
        return (mean + noise @ torch.linalg.cholesky(cov).mT).reshape(like.shape)

    def log_prob_start(self, u: Tensor, generator: Noise = None) -> Tensor:
        return self.law.log_prob(u, scalar(self.t_start)) if self.exact_start else self.sde.log_prior(u)

    def expected_log_prob_start(self, u_0: Tensor, eps: Tensor, generator: Noise = None) -> Tensor:
        return self.log_prob_start(self.sde.perturb(u_0, scalar(self.t_start), eps))

    def nelbo(self, x: Tensor, **options) -> Tensor:
        return linear_nelbo(self, x, **options)

    def times(self, num_steps: int, low: float) -> Tensor:
        return uniform_times(self.sde, num_steps, low=low, high=self.t_start)

    def networks(self) -> dict[str, nn.Module]:
        return {}

    def evaluations(self) -> dict[str, int]:
        return {}

    def phase(self, step: int) -> str:
        return "joint"

    def begin_phase(self, phase: str) -> None:
        pass

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) of the data."""
        z, log_det = self.flow(x)
        return log_det + self.law.log_prob_0(z)


class SmallBackbone(nn.Module):
    """Two smooth layers of (x, t), in float64; events of any shape are taken as vectors."""

    def __init__(self, num_dims: int, width: int = 16, seed: int = 0) -> None:
        super().__init__()
        self.w_in = nn.Parameter(randn(width, num_dims, seed=seed) / math.sqrt(num_dims))
        self.w_time = nn.Parameter(randn(width, seed=seed + 1))
        self.w_out = nn.Parameter(randn(num_dims, width, seed=seed + 2) / math.sqrt(width))

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        hidden = x.flatten(1) @ self.w_in.T + t.unsqueeze(-1).to(x) * self.w_time
        return (torch.tanh(hidden) @ self.w_out.T).reshape(x.shape)


def glow(**options) -> Glow:
    return Glow((2,), levels=1, steps=2, hidden=8, **options)


def resflow(d: int, **options) -> ResFlow:
    return ResFlow((d,), blocks=(2,), width=16, **options)


FLOWS: dict[str, tuple[Callable[[], Flow], tuple[int, ...], float]] = {
    "Identity": (Identity, (3,), 1e-9),
    "ActNorm": (lambda: ActNorm((2, 3, 4), data_init=True), (2, 3, 4), 1e-9),
    "Composed": (lambda: Composed([Affine(randn(3, 3), randn(3, seed=1)), ActNorm((3,))]), (3,), 1e-9),
    "InvertibleConv": (lambda: InvertibleConv(5), (5, 2, 3), 1e-9),
    "AffineCoupling": (lambda: AffineCoupling((5,), hidden=8, flip=True), (5,), 1e-9),
    "Glow": (glow, (2,), 1e-9),
    "Glow image": (lambda: Glow((1, 4, 8), levels=2, steps=2, hidden=5), (1, 4, 8), 1e-9),
    "exact": (lambda: resflow(2), (2,), 1e-4),
    "exact image": (lambda: ResFlow((1, 4, 4), blocks=(1, 1), width=8, activation=LipSwish), (1, 4, 4), 1e-4),
    "exact image of any size": (
        lambda: ResFlow((1, 4, 4), blocks=(1, 1), width=8, constraint="torus", exact_eval=32),
        (1, 4, 4),
        1e-4,
    ),
    "estimated": (lambda: resflow(5, exact_train=0, exact_eval=0, constraint="infinity"), (5,), 1e-4),
    "estimated with few terms": (
        lambda: resflow(5, exact_eval=0, eval_terms=2, roulette=Roulette(law="geometric", parameter=0.7)),
        (5,),
        1e-4,
    ),
}
"""Every flow, as it is made, its event, and the tolerance of its inverse. A new one goes in here."""


class Dropped(SmallBackbone):
    """A backbone that draws in training, from torch's own generator."""

    def forward(self, x, t, y=None):
        return super().forward(nn.functional.dropout(x, 0.2, self.training), t, y)


MODELS: dict[str, Callable[[], GenerativeModel]] = {
    "INDM": lambda: INDM(
        glow(start="identity"), SmallBackbone(2), VP(), shape=(2,), objective=Objective(pretrain_steps=100)
    ),
    "linear": lambda: INDM(Identity(), SmallBackbone(2), SubVP(), shape=(2,)),
    "INDM FID VE": lambda: INDM(
        resflow(2), SmallBackbone(2), VE(), shape=(2,), objective=Objective(mode="fid", soft_truncation=1.2)
    ),
    "INDM CLD": lambda: INDM(glow(), MLP(4, time_feature=lambda t: t), CLD(), shape=(2,)),
    "INDM BDM": lambda: INDM(
        Glow((1, 4, 4), levels=1, steps=1, hidden=4), Dropped(16), BDM(height=4, width=4), shape=(1, 4, 4)
    ),
    "DiNof": lambda: DiNof(glow(), glow(start="identity"), SmallBackbone(2), VP(), shape=(2,), t_m=0.5),
    "DiNof CLD": lambda: DiNof(resflow(4), Identity(), SmallBackbone(4), CLD(), shape=(2,), t_m=0.3),
    "DiffFlow": lambda: DiffFlow(
        SmallBackbone(3, seed=1), SmallBackbone(3, seed=2), shape=(3,), schedule=((0, 4), (10, 6))
    ),
    "FFJORD": lambda: FFJORD(SmallBackbone(3, seed=1), shape=(3,), num_steps=3),
}
"""Every model, as it is made. A new one goes in here."""
