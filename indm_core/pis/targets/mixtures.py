r"""Mixtures whose components are known: mu(x) = sum_k w_k p_k(x), normalised, so that log Z = 0.

    Gaussian     p_k = N(m_k, C_k)
    Student      p_k(x) = prod_i t_nu(x_i - m_ki),    t_nu(y) = c_nu (1 + y^2/nu)^(-(nu + 1)/2),
                 c_nu = Gamma((nu + 1)/2) / (Gamma(nu/2) sqrt(nu pi)): independent coordinates of unit scale.

A draw of t_nu is z_0 sqrt(nu / (z_1^2 + ... + z_nu^2)) of independent standard normals z, for whole nu. With nu = 2 the mean is
finite and the variance is not.

References:
    Zhang, Chen 2022, "Path integral sampler" (nine modes); Midgley et al. 2023, "Flow annealed importance sampling
    bootstrap" (40 modes); Blessing et al. 2024, "Beyond ELBOs: a large-scale evaluation of variational methods for sampling"
    (40 modes in 50 dimensions, Student).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import final

import torch
from torch import Tensor

from indm_core.noise import Noise, rand, randn_like
from indm_core.pis.targets.base import Target
from indm_core.ranges import check_count
from indm_core.shapes import Float, Int

__all__ = ["GaussianMixture", "Mixture", "StudentMixture", "by_component", "mog40", "nine_modes", "students"]


def by_component(
    roots: Float[Tensor, "k d d"], which: Int[Tensor, " n"], z: Float[Tensor, "n d"]
) -> Float[Tensor, "n d"]:
    """L_k z of the component of each row, one component at a time: n matrices would not fit into memory."""
    moved = torch.empty_like(z)
    for k in which.unique().tolist():
        here = which == k
        moved[here] = z[here] @ roots[k].mT
    return moved


class Mixture(Target):
    """A mixture; its modes are the centres of its components.

    Args:
        means: m_k, (k, d).
        weights: w_k, (k,), positive; they need not sum to one. None: equal.

    Raises:
        ValueError: other shapes, centres that are not finite, or weights that are not positive.
    """

    means: Tensor
    weights: Tensor
    log_z = 0.0
    exact = True

    def __init__(self, means: Tensor, weights: Tensor | None) -> None:
        super().__init__()
        if means.ndim != 2 or not means.numel() or not means.isfinite().all():
            raise ValueError(
                f"means of the shape {tuple(means.shape)}: give a finite tensor (k, d), a row per component"
            )
        weights = means.new_ones(len(means)) if weights is None else weights
        if weights.shape != means.shape[:1] or not ((weights > 0) & weights.isfinite()).all():
            raise ValueError(f"weights={weights.tolist()}: give {len(means)} positive numbers, one per component")
        self.dim = means.shape[1]
        self.keep(means=means, modes=means, weights=weights / weights.sum())

    @abstractmethod
    def components(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """log p_k(x), nats."""

    @abstractmethod
    def offsets(self, which: Int[Tensor, " n"], generator: Noise) -> Float[Tensor, "n d"]:
        """Draws of x - m_k of given components."""

    def log_prob(self, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        return (self.components(x) + self.weights.log().to(x)).logsumexp(1)

    def sample(self, num: int, generator: Noise = None) -> Float[Tensor, "num d"]:
        check_count(num=num)
        places = self.weights.double().cumsum(0)
        which = torch.searchsorted(places / places[-1], rand(num, self.means, generator), right=True)
        return self.means[which] + self.offsets(which, generator)


@final
class GaussianMixture(Mixture):
    """A mixture of Gaussians.

    Args:
        means: m_k, (k, d).
        covs: C_k, (k, d, d), positive definite.
        stds: In place of `covs`, the standard deviations of independent coordinates: (k, d), or (k, 1) for all alike.
        weights: See `Mixture`.

    Raises:
        ValueError: both or none of `covs` and `stds`; other shapes; no covariances; see `Mixture`.
    """

    roots: Tensor  # Cholesky factors (k, d, d), or standard deviations (k, d)

    def __init__(
        self, means: Tensor, *, covs: Tensor | None = None, stds: Tensor | None = None, weights: Tensor | None = None
    ) -> None:
        super().__init__(means, weights)
        if covs is not None and stds is None:
            self.keep(roots=_factors(means, covs))
        elif stds is not None and covs is None:
            self.keep(roots=_deviations(means, stds))
        else:
            raise ValueError("covs and stds: give one of the two")

    @property
    def covs(self) -> Float[Tensor, "k d d"]:
        """C_k, as the exact control asks for them."""
        return self.roots @ self.roots.mT if self.roots.ndim == 3 else self.roots.square().diag_embed()

    def components(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        centred, roots = x[:, None] - self.means.to(x), self.roots.to(x)
        if roots.ndim == 3:
            white = torch.linalg.solve_triangular(roots, centred.permute(1, 2, 0), upper=False).permute(2, 0, 1)
            log_det = roots.diagonal(dim1=1, dim2=2).log().sum(1)
        else:
            white, log_det = centred / roots, roots.log().sum(1)
        return -0.5 * white.square().sum(2) - log_det - 0.5 * self.dim * math.log(2 * math.pi)

    def offsets(self, which: Int[Tensor, " n"], generator: Noise) -> Float[Tensor, "n d"]:
        z = randn_like(self.means[which], generator)
        return by_component(self.roots, which, z) if self.roots.ndim == 3 else self.roots[which] * z


@final
class StudentMixture(Mixture):
    """A mixture of products of Student's t.

    Args:
        means: m_k, (k, d).
        freedom: nu, degrees of freedom, an integer.
        weights: See `Mixture`.

    Raises:
        ValueError: see `Mixture`; nu is no integer of at least 1.
    """

    def __init__(self, means: Tensor, *, freedom: int = 2, weights: Tensor | None = None) -> None:
        super().__init__(means, weights)
        check_count(freedom=freedom)
        self.freedom = freedom

    def components(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        nu = self.freedom
        log_c = math.lgamma((nu + 1) / 2) - math.lgamma(nu / 2) - 0.5 * math.log(nu * math.pi)
        centred = x[:, None] - self.means.to(x)
        return self.dim * log_c - (nu + 1) / 2 * (centred.square() / nu).log1p().sum(2)

    def offsets(self, which: Int[Tensor, " n"], generator: Noise) -> Float[Tensor, "n d"]:
        z = randn_like(self.means[which][:, None].expand(-1, 1 + self.freedom, -1), generator)
        return z[:, 0] * (self.freedom / z[:, 1:].square().sum(1)).sqrt()


def nine_modes() -> GaussianMixture:
    """The chapter's mixture: a grid of 3 x 3 modes of variance 0.3 at distances of 5; the sampler needs T g^2 = 25."""
    line = 5 * torch.arange(-1, 2, dtype=torch.float64)
    return GaussianMixture(
        torch.cartesian_prod(line, line), stds=torch.full((9, 1), math.sqrt(0.3), dtype=torch.float64)
    )


def mog40(dim: int = 2, seed: int = 0) -> GaussianMixture:
    """40 equal Gaussians of standard deviation softplus(1) = 1.313, centres uniform in [-40, 40]^d.

    Args:
        dim: d; published: 2 and 50.
        seed: Of the centres, which are therefore not the published ones.
    """
    std = math.log1p(math.e)
    return GaussianMixture(_uniform(40, dim, 40.0, seed), stds=torch.full((40, 1), std, dtype=torch.float64))


def students(dim: int = 2, seed: int = 0) -> StudentMixture:
    """10 equal components of 2 degrees of freedom, centres uniform in [-10, 10]^d.

    Args:
        dim: d.
        seed: As of `mog40`.
    """
    return StudentMixture(_uniform(10, dim, 10.0, seed))


def _uniform(num: int, dim: int, half: float, seed: int) -> Tensor:
    check_count(dim=dim)
    return half * (2 * torch.rand(num, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) - 1)


def _deviations(means: Tensor, stds: Tensor) -> Tensor:
    if stds.shape not in (means.shape, (len(means), 1)) or not ((stds > 0) & stds.isfinite()).all():
        raise ValueError(
            f"stds of the shape {tuple(stds.shape)}: give positive numbers {tuple(means.shape)}, or {(len(means), 1)} for "
            "coordinates that are all alike"
        )
    return stds.expand_as(means).contiguous()


def _factors(means: Tensor, covs: Tensor) -> Tensor:
    if covs.shape != (*means.shape, means.shape[1]):
        raise ValueError(f"covs of the shape {tuple(covs.shape)}: give {(*means.shape, means.shape[1])}")
    roots, failed = torch.linalg.cholesky_ex(covs)
    if failed.any() or not torch.allclose(covs, covs.mT):
        at = int(failed.nonzero()[0]) if failed.any() else 0
        raise ValueError(f"covs[{at}]={covs[at].tolist()}: covariances are symmetric and positive definite")
    return roots
