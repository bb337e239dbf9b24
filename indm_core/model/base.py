r"""What trainers, samplers and likelihoods see of a model.

A `Trainable` is what a training loop needs: a loss, the networks that are optimised, and the phases of the training. A sampler
that is trained against a density, without data, is one too.

A generative model maps data x to a state u = encode(x), diffuses it by its SDE from t_min to t_start, and knows the law of u
there. Sampling runs the other way: a draw at t_start, a sampler down to t_min, decode.

    -log p(x) = -log_det - log p_{t_min}(u),         p_{t_min} transported from the law at t_start by the ODE or the SDE.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from indm_core.noise import Noise
from indm_core.sde import SDE, LinearSDE
from indm_core.shapes import Float

__all__ = ["GenerativeModel", "LinearModel", "Losses", "Node", "Trainable"]

Node = tuple[Tensor, Tensor, float | Tensor]
"""t (0-d or (b, 1, ..., 1)), eps like u, and the weight, a number or (b,)."""


class Losses(NamedTuple):
    """Per-sample losses.

    Args:
        objective: What is minimised, (b,); its unit is the model's own.
        terms: Detached figures in nats, (b,) each. The first is the one that progress is read from; of a generative model it is
            `nelbo`, the bound, by which the best checkpoints are kept.
    """

    objective: Tensor
    terms: dict[str, Tensor]


class Trainable(nn.Module, ABC):
    """What is trained by the gradient of its own loss."""

    @abstractmethod
    def forward(self, x: Any, y: Tensor | None = None, generator: Noise = None) -> Losses:
        """The training losses; they are `forward` because DistributedDataParallel averages gradients only through it.

        Args:
            x: A batch of whatever is trained on: data (b, *shape), or, where samples are drawn here, their number.
            y: What comes with a batch of data.
            generator: Drives every draw, so that the losses are a function of the weights, the batch and the seed.
        """

    @abstractmethod
    def networks(self) -> dict[str, nn.Module]:
        """The networks that are optimised, by name; each has its own optimiser settings and gradient clip."""

    @abstractmethod
    def evaluations(self) -> dict[str, int]:
        """How often a training step evaluates each network on a sample, backward passes not counted."""

    @abstractmethod
    def phase(self, step: int) -> str:
        """The name of the training phase that optimiser step `step` belongs to."""

    @abstractmethod
    def begin_phase(self, phase: str) -> None:
        """Enters a phase: sets what is trained (`requires_grad`) and how the loss is formed."""


class GenerativeModel(Trainable):
    """A model of data x of shape (b, *shape), levels scaled to the card's range and dequantised."""

    sde: SDE
    t_start: float
    shape: tuple[int, ...]

    @abstractmethod
    def forward(self, x: Float[Tensor, " b *event"], y: Tensor | None = None, generator: Noise = None) -> Losses:
        """The training losses of a batch of data."""

    @abstractmethod
    def encode(self, x: Tensor, generator: Noise = None) -> tuple[Tensor, Tensor]:
        """The state's mean u (b, *event, k) at time 0 and log_det (b,), nats."""

    @abstractmethod
    def decode(self, u: Tensor) -> Tensor:
        """x from a state at time 0 (or t_min)."""

    @abstractmethod
    def score(self, u: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """grad log p_t(u), like u."""

    @abstractmethod
    def sample_start(self, like: Tensor, generator: Noise = None, temperature: float = 1.0) -> Tensor:
        """A draw of u at t_start, like the state `like`; the temperature is a factor of the law's Gaussian noise."""

    @abstractmethod
    def log_prob_start(self, u: Tensor, generator: Noise = None) -> Tensor:
        """log p(u) at t_start, nats (b,); the generator drives an estimator where there is one."""

    @abstractmethod
    def nelbo(
        self,
        x: Tensor,
        *,
        residual: bool,
        num_draws: int,
        nodes: Sequence[Node] | None,
        generator: Noise,
        y: Tensor | None,
    ) -> Tensor:
        """The bound on -log p(x), nats (b,); `likelihood.nelbo` says what the arguments mean."""

    @abstractmethod
    def times(self, num_steps: int, low: float) -> Tensor:
        """The model's own grid of decreasing times from t_start, float64: num_steps + 1 of them down to `low`, or those of a
        grid that training fixed, num_steps of them of which the ones below `low` are left out."""

    def state_like(self, num: int, like: Tensor) -> Tensor:
        """Zeros of the shape of `num` states, in the dtype and on the device of `like`."""
        return self.sde.embed(like.new_zeros(num, *self.shape))


class LinearModel(GenerativeModel):
    """A model whose diffusion is linear."""

    sde: LinearSDE

    @abstractmethod
    def expected_log_prob_start(self, u_0: Tensor, eps: Tensor, generator: Noise = None) -> Tensor:
        """E[log p(u at t_start) | u_0]: closed where the law allows, else the value at the noise eps, which is unbiased."""
