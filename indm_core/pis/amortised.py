r"""One control for the posteriors of all observations.

Of a family of densities mu^_y(x) = p(x) p(y | x), whose constant is Z_y = p(y), the control u_t(x; y) minimises the mean over
observations of the cost of its paths (5.15 of the thesis),

    E_{y ~ p(y)} E[sum_i D/2 |u_i|^2 + Psi_y(x_N)] = E_y KL(paths || optimal paths to mu_y) - E_y log Z_y,

whose minimiser is, at every y, the control that `sampler` finds for that y alone. Training takes another y for each path; then
`sampler.sample(Given(family, y), n)` draws weighted samples of any y, by N evaluations a path and no training.

The log-variance loss has no such mean: the variance of log w over paths of different y holds that of log Z_y.

References:
    Zhang, Chen 2022, "Path integral sampler" (5.5 of the thesis names amortisation).
"""

from __future__ import annotations

from typing import Any, Protocol, final, runtime_checkable

from torch import Tensor, nn

from indm_core.model.base import Losses, Trainable
from indm_core.noise import Noise
from indm_core.pis.sampler import PathIntegralSampler
from indm_core.pis.targets.base import Target
from indm_core.shapes import Float

__all__ = ["AmortisedSampler", "Family", "Given"]


@runtime_checkable
class Family(Protocol):
    """Densities of x (n, d) given observations y (n, m)."""

    @property
    def dim(self) -> int: ...
    def observe(self, num: int, generator: Noise = None) -> Float[Tensor, "num m"]:
        """Observations, drawn from p(y): what paths are trained on."""
        ...

    def log_prob(self, x: Float[Tensor, "n d"], y: Float[Tensor, "n m"]) -> Float[Tensor, " n"]:
        """log mu^_y(x) of each row, nats."""
        ...


@final
class Given(Target):
    """The density of a family that an observation gives.

    Args:
        family: The family.
        y: One observation (m,), or one for each of the rows that are asked for, (n, m).
    """

    y: Tensor

    def __init__(self, family: Family, y: Tensor) -> None:
        super().__init__()
        self.family, self.dim = family, family.dim
        self.keep(y=y)

    def given_observation(self) -> Tensor:
        return self.y

    def log_prob(self, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """Raises: ValueError: another number of observations than of rows."""
        if self.y.ndim == 2 and len(self.y) != len(x):
            raise ValueError(
                f"y of {tuple(self.y.shape)} for x of {tuple(x.shape)}: give one observation, or one per row"
            )
        return self.family.log_prob(x, self.y.to(x).expand(len(x), -1))


@final
class AmortisedSampler(Trainable):
    """Trains the control of a sampler, one that sees y (its `dim_y`), on a family.

    Args:
        sampler: It needs no target; its loss is kl.
        family: What is observed in training.

    Raises:
        ValueError: another loss.
    """

    def __init__(self, sampler: PathIntegralSampler, family: Family) -> None:
        super().__init__()
        if sampler.loss != "kl":
            raise ValueError(f"loss={sampler.loss!r}: log Z differs between observations, and so does log w; give 'kl'")
        self.sampler, self.family = sampler, family

    def forward(self, x: Any, y: Tensor | None = None, generator: Noise = None) -> Losses:
        """The losses of as many paths as the number x, each to the density of an observation of its own."""
        target = Given(self.family, self.family.observe(int(x), generator))
        return self.sampler.losses(target, int(x), generator)

    def evaluations(self) -> dict[str, int]:
        return self.sampler.evaluations()

    def networks(self) -> dict[str, nn.Module]:
        """`control`."""
        return self.sampler.networks()

    def phase(self, step: int) -> str:
        return self.sampler.phase(step)

    def begin_phase(self, phase: str) -> None:
        self.sampler.begin_phase(phase)
