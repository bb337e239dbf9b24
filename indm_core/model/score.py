r"""The score network and denoising score matching.

A backbone predicts eps_hat(u_t, t) in the basis R_t, and the score is s = -R_t^-T eps_hat. With d = eps_hat - eps the
likelihood-weighted loss is

    1/2 int E |G^T (s - grad log p_0t)|^2 dt = int E[1/2 d^T M_t d] dt,          M = R^-1 GG^T R^-T,

and the variance-weighted one is int E[1/2 |d|^2] dt. Both integrals are estimated at t ~ p(t) = tr M_t / int tr M, whose
inverse distribution function is closed (`LinearSDE.log_importance`), and divided by p(t).

Preconditioning. u_t = p x + R eps with p the first column of psi(t, 0): whatever the data, eps_hat = R^-1 (u - p E[x | u]) has
one free number per position, along q = R^-1 p. If every coordinate of x had variance v and no relation to others,

    E[eps | u] = R^T C^-1 u,   C = v p p^T + Sigma,        Cov[eps | u] = I - R^T C^-1 R = v q q^T / (1 + v |q|^2) = B,

so that eps_hat = R^T C^-1 u + B^{1/2} backbone(u) asks the network for what the data add to that, in units of its spread.
Where nothing is left of x (late, or in the high frequencies of a blurring diffusion) B = 0 and eps_hat is right by itself,
however far u is from what the network has seen: an error there would be blown up by the diffusion run backwards.

References:
    Vahdat, Kreis, Kautz 2021 (LSGM, the mixed score); Dockhorn, Vahdat, Kreis 2022 (CLD); Karras et al. 2022 (EDM), Table 1;
    Vincent 2011 (denoising score matching); Song et al. 2021, "Maximum likelihood training of score-based diffusion models",
    Theorems 1 and 3, and section 4.4 (importance sampling of t).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from indm_core.noise import Noise, rand
from indm_core.ranges import check_not_negative
from indm_core.sde import LinearSDE, apply, instant, inverse
from indm_core.shapes import Float

__all__ = ["ScoreModel", "importance_times", "likelihood_error", "preconditioning", "stratified"]


class ScoreModel(nn.Module):
    """score(u, t, y) = -R_t^-T eps_hat(u, t, y) from a backbone that sees `sde.to_network(u)`.

    Args:
        backbone: backbone(x, t, y) -> like x, with t of shape (b,).
        sde: Gives R and the map between states and the backbone's input.
        data_var: v of the preconditioning; 0 takes the backbone's output for eps_hat, as published.
    """

    def __init__(self, backbone: nn.Module, sde: LinearSDE, data_var: float = 0.0) -> None:
        super().__init__()
        check_not_negative(data_var=data_var)
        self.backbone, self.sde, self.data_var = backbone, sde, data_var

    def eps(self, u: Float[Tensor, "b *event k"], t: Float[Tensor, "*t"], y: Tensor | None = None) -> Tensor:
        """eps_hat = E[eps | u_t], like u; t is 0-d or (b, 1, ..., 1)."""
        t_b = t.to(u.device).reshape(-1).expand(u.shape[0])
        out = self.sde.from_network(self.backbone(self.sde.to_network(u), t_b, y)).to(u.dtype)
        if not self.data_var:
            return out
        skip, spread = preconditioning(self.sde, t.to(u.device), self.data_var)
        return apply(skip, u) + apply(spread, out)

    def forward(self, u: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """grad log p_t(u), like u."""
        return self.sde.score_from_eps(self.eps(u, t, y), t)


def preconditioning(sde: LinearSDE, t: Tensor, data_var: float) -> tuple[Tensor, Tensor]:
    """R^T (v p p^T + Sigma)^-1 and B^{1/2}, (*te, k, k)."""
    R, p = sde.R(t), sde.psi0(t)[..., :1]
    q = inverse(R) @ p
    square = (q.mT @ q).clamp(min=torch.finfo(q.dtype).tiny)
    spread = q @ q.mT * (data_var / (square * (1 + data_var * square))).sqrt()
    return R.mT @ inverse(data_var * p @ p.mT + sde.cov(t)), spread


def stratified(num: int, like: Tensor, generator: Noise = None) -> Float[Tensor, " num"]:
    """Uniforms on [0, 1), one in each of `num` equal strata, in an order drawn anew: each alone is uniform.

    Without the random order the first images of a batch would always get the small times, a bias per image.
    """
    order = rand(num, like, generator).argsort()
    return (order + rand(num, like, generator)) / num


def importance_times(
    sde: LinearSDE, q: Float[Tensor, " n"], t_low: float | Tensor, t_high: float
) -> tuple[Tensor, Tensor]:
    """Quantiles of p(t) ~ tr(GG^T Sigma^-1) on [t_low, t_high].

    Args:
        q: Levels in [0, 1), float64.
        t_low, t_high: The interval, inside [t_min, t_max]; numbers or 0-d.

    Returns:
        The times t (n,) and the density p(t) (n,), float64.
    """
    ends = torch.stack([instant(t_low, q), instant(t_high, q)])
    low, high = sde.log_importance(ends)
    t = sde.time_at(low + q * (high - low)).clamp(*ends)
    return t, sde.trace_M(t) / (high - low)


def likelihood_error(sde: LinearSDE, d: Float[Tensor, "b *event k"], t: Tensor) -> Float[Tensor, " b"]:
    """1/2 d^T M_t d, nats per unit time, for an error d = eps_hat - eps."""
    return 0.5 * (d * apply(sde.M(t), d)).flatten(1).sum(1)
