r"""The path integral sampler: a diffusion from 0 whose control leads it to a density that is known up to a constant.

    dx = g u_t(x) dt + g dw,   x_0 = 0,   t from 0 to T,       D = T/N,    x_{i+1} = x_i + g D u_i + g sqrt(D) eps_i.

Without control x_T ~ mu^0 = N(0, T g^2 I), which must cover mu. With Psi = log mu^0/mu^ the controlled path is right where it
minimises the cost E[sum_i D/2 |u_i|^2 + Psi(x_N)], and a path weighs

    log w = -sum_i (D/2 |u_i|^2 + sqrt(D) u_i . eps_i) - Psi(x_N):                                          (5.18)

the ratio of the two discrete processes, exactly, so that E[w] = Z for every control and every N (5.20), and E[log w] <= log Z.

Two losses. `kl` is the cost (5.15), by backpropagation through the path: `gradient` is 'checkpoint' (segments of about
sqrt(N) steps, whose activations are computed anew), 'adjoint' (a sweep that keeps states alone, see `adjoint`) or 'autograd'
(all is kept). `log-variance` is the variance of log w over paths,

    S = sum_i (sqrt(D) u_i . z_i - D/2 |u_i|^2) + Psi(x_N),    z_i = (x_{i+1} - x_i) / (g sqrt(D)),

on states that are detached: neither the path nor the target is differentiated, and 'adjoint' is 'checkpoint'. It holds for
paths of any process; `exploration` is a factor of their noise. Its mean is that of the paths of all ranks.

References:
    Zhang, Chen 2022, "Path integral sampler", Algorithms 3 and 4, Eqs. 5.15, 5.18-5.20 of the thesis; Richter, Berner 2024,
    "Improved sampling via learned diffusions" (log-variance).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, final

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from indm_core.adjoint import Path, mean_by_adjoint
from indm_core.model.base import Losses, Trainable
from indm_core.noise import Noise, randn_like
from indm_core.pis.targets.base import Density, like, log_mu
from indm_core.ranges import check_count, check_positive
from indm_core.shapes import Float

__all__ = ["ControlledPath", "PathIntegralSampler"]

Gradient = Literal["checkpoint", "adjoint", "autograd"]
Loss = Literal["kl", "log-variance"]
Observed = tuple[Tensor, Tensor, Tensor]
"""x (n, d), and two sums over the steps before it, (n,)."""


@final
class ControlledPath(Path):
    """A grid of N equal steps, and what a control pays on it; its terms are the control's and the end's.

    Args:
        control: u(t, x), t of shape (n,).
        log_prob: log mu^, nats (n,).
        t_max, g, num_steps: T, g and N.
    """

    def __init__(
        self,
        control: Callable[[Tensor, Tensor], Tensor],
        log_prob: Callable[[Tensor], Tensor],
        *,
        t_max: float,
        g: float,
        num_steps: int,
    ) -> None:
        self.step = t_max / num_steps
        super().__init__([g * math.sqrt(self.step)] * num_steps, [math.sqrt(self.step)] * num_steps)
        self.control, self.log_prob, self.var = control, log_prob, t_max * g**2

    def f(self, i: int, x: Tensor) -> Tensor:
        return self.control(torch.full((len(x),), i * self.step, dtype=torch.float64, device=x.device), x)

    def point(self, i: int, x: Tensor, q: Tensor | None) -> tuple[Tensor | None, Tensor]:
        zero = x.new_zeros(len(x))
        if i == len(self.scale):
            return None, torch.stack([zero, self.end(x)])
        u = self.f(i, x)
        return u, torch.stack([0.5 * self.step * u.square().sum(1), zero])

    def end(self, x: Tensor) -> Tensor:
        """Psi(x) = log mu^0(x) - log mu^(x)."""
        log_mu_0 = -0.5 * (x.square() / self.var + math.log(2 * math.pi * self.var)).sum(1)
        return log_mu_0 - self.log_prob(x)

    def log_ratio(self, u: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(D) u.z - D/2 |u|^2, and D/2 |u|^2, of a step by the increment z."""
        cost = 0.5 * self.step * u.square().sum(1)
        return math.sqrt(self.step) * (u * z).sum(1) - cost, cost

    def observed(self, first: int, x: Tensor, log_ratio: Tensor, cost: Tensor, *noise: Tensor) -> Observed:
        """Steps from point `first` on, whose states no gradient goes through: x, log_ratio and cost after them.

        Args:
            x: The state there.
            log_ratio: sum sqrt(D) u.z - D/2 |u|^2 so far, (n,); the gradient is that of u at given states.
            cost: sum D/2 |u|^2 so far, (n,), detached.
            noise: Of the steps, of any variance.
        """
        for i, e in enumerate(noise, first):
            u = self.f(i, x)
            z = e + self.rate[i] * u.detach()
            ratio, paid = self.log_ratio(u, z)
            log_ratio, cost = log_ratio + ratio, cost + paid.detach()
            x = x + self.scale[i] * z
        return x, log_ratio, cost

    def constants(self, x: Tensor, eps: Sequence[Tensor]) -> Tensor:
        return x.new_zeros(2, len(x))


@final
class PathIntegralSampler(Trainable):
    """A control, trained so that its paths end in a target.

    Args:
        control: See `Control`.
        dim: d.
        target: What is sampled from in training; `sample` may take another.
        t_max, g: T and g; T g^2 is the variance of the uncontrolled end.
        num_steps: N.
        loss, gradient, exploration: See above.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        control: nn.Module,
        dim: int,
        *,
        target: Density | None = None,
        t_max: float = 5.0,
        g: float = 0.2**0.5,
        num_steps: int = 100,
        loss: Loss = "kl",
        gradient: Gradient = "checkpoint",
        exploration: float = 1.0,
    ) -> None:
        super().__init__()
        check_positive(t_max=t_max, g=g, exploration=exploration)
        check_count(num_steps=num_steps, dim=dim)
        if loss not in ("kl", "log-variance"):
            raise ValueError(f"loss={loss!r} is neither 'kl' nor 'log-variance'")
        if gradient not in ("checkpoint", "adjoint", "autograd"):
            raise ValueError(f"gradient={gradient!r} is none of 'checkpoint', 'adjoint', 'autograd'")
        self.control, self.dim, self.target = control, dim, target
        self.t_max, self.g, self.num_steps = t_max, g, num_steps
        self.loss, self.gradient, self.exploration = loss, gradient, exploration

    def steps(self, num_steps: int) -> int:
        """The number of steps that is asked for; 0 asks for N.

        Raises:
            ValueError: no integer of at least 0.
        """
        num_steps = num_steps or self.num_steps
        check_count(num_steps=num_steps)
        return num_steps

    def path(self, target: Density, num_steps: int = 0) -> ControlledPath:
        """The path to a target, of `num_steps` steps (0: N)."""

        def control(t: Tensor, x: Tensor) -> Tensor:
            return self.control(t, x, target=target, t_max=self.t_max, g=self.g)

        return ControlledPath(
            control, partial(log_mu, target), t_max=self.t_max, g=self.g, num_steps=self.steps(num_steps)
        )

    def forward(self, x: Any, y: Tensor | None = None, generator: Noise = None) -> Losses:
        """The losses of as many paths as the number x.

        Raises:
            ValueError: there is no target.
        """
        if self.target is None:
            raise ValueError("target: none was given; training needs one")
        return self.losses(self.target, int(x), generator)

    def losses(self, target: Density, num: int, generator: Noise = None) -> Losses:
        """The losses of `num` paths to a target."""
        path, begin = self.path(target), self.begin(num)
        if self.loss == "log-variance":
            return self._log_variance(path, begin, generator)
        return self._kl(path, begin, generator)

    def _kl(self, path: ControlledPath, x: Tensor, generator: Noise) -> Losses:
        eps = path.noise(x, generator)
        if self.gradient == "adjoint" and torch.is_grad_enabled():
            parameters = [p for p in self.control.parameters() if p.requires_grad]
            objective, terms = mean_by_adjoint(path, parameters, eps, x)
        else:
            segments = (
                max(2, math.isqrt(self.num_steps)) if self.gradient == "checkpoint" and torch.is_grad_enabled() else 1
            )
            terms = path.costs(x, eps, segments)
            objective = terms.sum(0)
        control, end = terms.detach()
        return Losses(objective, {"cost": control + end, "control": control, "end": end})

    def _log_variance(self, path: ControlledPath, x: Tensor, generator: Noise) -> Losses:
        noise = [self.exploration * eps for eps in path.noise(x, generator)]
        walk = path.observed if self.gradient == "autograd" else partial(checkpoint, path.observed, use_reentrant=False)
        log_ratio = control = x.new_zeros(len(x))
        size = max(1, math.isqrt(self.num_steps))
        for first in range(0, self.num_steps, size):
            x, log_ratio, control = walk(first, x, log_ratio, control, *noise[first : first + size])
        with torch.no_grad():
            end = path.end(x)
        s = log_ratio + end
        mean, num = _mean_over_ranks(s.detach())
        objective = (s - mean).square() * (num / (num - 1).clamp(min=1)).to(s)
        return Losses(
            objective, {"cost": control + end, "control": control, "end": end, "log_variance": objective.detach()}
        )

    @torch.no_grad()
    def sample(
        self, target: Density, num: int, *, generator: Noise = None, num_steps: int = 0
    ) -> tuple[Float[Tensor, "num d"], Float[Tensor, " num"]]:
        """x and log w of paths to a target (Algorithm 4).

        Args:
            num: Paths.
            generator: See `noise`: one stream, or one per path.
            num_steps: 0 takes N.
        """
        check_count(num=num)
        path = self.path(target, num_steps)
        x = self.begin(num)
        log_w = x.new_zeros(num)
        for i, (scale, rate) in enumerate(zip(path.scale, path.rate, strict=True)):
            u, eps = path.f(i, x), randn_like(x, generator)
            log_w = log_w - (0.5 * path.step * u.square() + rate * u * eps).sum(1)
            x = x + scale * (eps + rate * u)
        return x, log_w - path.end(x)

    def begin(self, num: int) -> Float[Tensor, "num d"]:
        """The beginnings of paths, all 0, of the control's dtype and on its device."""
        return like(self.control).new_zeros(num, self.dim)

    def evaluations(self) -> dict[str, int]:
        anew = self.gradient != "autograd"
        begin = self.loss == "kl" and self.gradient == "checkpoint"  # the first point is not computed anew
        return dict.fromkeys(self.networks(), (1 + anew) * self.num_steps - begin)

    def networks(self) -> dict[str, nn.Module]:
        """`control`."""
        return {"control": self.control}

    def phase(self, step: int) -> str:
        return "training"

    def begin_phase(self, phase: str) -> None:
        self.control.requires_grad_(True)


def _mean_over_ranks(s: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of the paths of all ranks, and their number in float64; the host does not wait for either."""
    total = torch.stack([s.sum(), torch.full_like(s.sum(), len(s))]).double()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(total)
    return (total[0] / total[1]).to(s), total[1]
