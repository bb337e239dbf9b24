r"""What trainers, samplers and likelihoods see of a model.

A `Trainable` is what a training loop needs: a loss, the networks that are optimised, and the phases of the training. A sampler
that is trained against a density, without data, is one too.

A generative model maps data x to a state u = encode(x), diffuses it by its SDE from t_min to t_start, and knows the law of u
there. Sampling runs the other way: a draw at t_start, a sampler down to t_min, decode.

    -log p(x) = -log_det - log p_{t_min}(u),         p_{t_min} transported from the law at t_start by the ODE or the SDE.

What is done with a model is written once, as functions of it (`draw`, `likelihood`). The methods `sample` and `nll` call these,
and import them when they are called, because the functions stand above the models.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from indm_core.model.labels import labels_of
from indm_core.noise import Noise
from indm_core.ranges import check_not_negative, check_positive
from indm_core.sampling import Sampling
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
    """A model of data x of shape (b, *shape), levels scaled to the card's range and dequantised.

    Its score may take labels of `num_classes` classes (see `labels`): p(x) is then p(x | y) wherever y is given. It may be
    trained on windows of the data too, which a collage asks for: of sides from `smallest_window` on, () for none, in steps of
    `window_step` (see `Objective`).

    `one_size` says why all samples have the size of the data, and is empty where the state may be larger, decoded as one piece.
    A model that says nothing of it is of one size.
    """

    sde: SDE
    t_start: float
    shape: tuple[int, ...]
    num_classes: int = 0
    smallest_window: tuple[int, ...] = ()
    window_step: int = 1
    one_size: str = "its class does not say that it makes samples of every size"

    @abstractmethod
    def forward(self, x: Float[Tensor, " b *event"], y: Tensor | None = None, generator: Noise = None) -> Losses:
        """The training losses of a batch of data.

        Args:
            y: Labels (b,) or weights (b, K + 1), of which training drops some (`Objective`); of a bridge the second data set.
        """

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
        residual: bool = True,
        num_draws: int = 1,
        nodes: Sequence[Node] | None = None,
        generator: Noise = None,
        y: Tensor | None = None,
    ) -> Tensor:
        """The variational bound on -log p(x) of the generative SDE.

        Args:
            x: Data (b, *shape) as the model takes them: levels are dequantised and scaled (`likelihood.dequantise`).
            residual, num_draws, nodes, generator, y: See `likelihood.nelbo`.

        Returns:
            Nats per sample (b,), unbiased over the draws; without gradients.

        Raises:
            ValueError: x of another shape, or integers.
        """

    @abstractmethod
    def times(self, num_steps: int, low: float) -> Tensor:
        """The model's own grid of decreasing times from t_start, float64: num_steps + 1 of them down to `low`, or those of a
        grid that training fixed, num_steps of them of which the ones below `low` are left out."""

    def nll(
        self,
        x: Tensor,
        *,
        residual: bool = True,
        num_probes: int = 1,
        exact_divergence: bool = False,
        rtol: float = 1e-5,
        atol: float = 1e-5,
        solver: Literal["rk45", "exponential"] = "rk45",
        nfe: int = 0,
        tolerance: float = 3e-2,
        generator: Noise = None,
        y: Tensor | None = None,
    ) -> Tensor:
        """-log p(x) by the probability-flow ODE: `likelihood.nll`, which says what the arguments mean.

        Args:
            x: As `nelbo` takes it.

        Returns:
            Nats per sample (b,); an upper bound in expectation over the draws, for the residual is one. Without gradients.

        Raises:
            ValueError: x of another shape, or integers.
            ConvergenceError: the ODE does not reach its tolerance.
        """
        from indm_core.likelihood import nll

        options = {"residual": residual, "num_probes": num_probes, "exact_divergence": exact_divergence}
        how = {"rtol": rtol, "atol": atol, "solver": solver, "nfe": nfe, "tolerance": tolerance}
        return nll(self, x, **options, **how, generator=generator, y=y)

    def sample(
        self,
        num: int,
        *,
        sampler: str | Sampling = "deis",
        nfe: int = 20,
        seed: int = 0,
        batch_size: int = 64,
        label: int | Tensor | None = None,
        guidance: float = 0.0,
    ) -> Tensor:
        """Samples by a sampler of `indm_core.sampling`, one seed each: sample i is the same for every num and batch_size.

        Args:
            num: How many.
            sampler: "deis", "em" or "pc" with as many steps as `nfe` allows, "ode" to its own tolerances; or a `Sampling`,
                which says all by itself. deis needs a `LinearSDE`; the others take any.
            nfe: Evaluations of the score that a sample may take.
            seed: Of the first sample; sample i has seed + i.
            batch_size: Samples that are drawn together.
            label: A class for all samples, one for each (num,), or weights (num, K + 1); None draws without.
            guidance: w of s(u, y) + w (s(u, y) - s(u, none)), not negative; above 0 an evaluation takes the network twice.

        Returns:
            x (num, *shape), in the model's dtype and on its device, scaled as the data that it was trained on; rounding apart,
            what `pipelines/sample.py` draws with the same options.

        Raises:
            ValueError: a name that there is not, a sampler that needs another SDE than the model's, or labels that the
                model was not trained with.
        """
        from indm_core.draw import draw_by

        check_not_negative(seed=seed)
        check_positive(num=num, batch_size=batch_size)
        sampling = sampler if isinstance(sampler, Sampling) else Sampling.named(sampler, nfe)
        seeds = range(seed, seed + num)
        batches = [seeds[first : first + batch_size] for first in range(0, num, batch_size)]
        every = None if label is None else labels_of(label, num, self.num_classes)
        labels = [None] * len(batches) if every is None else every.split(batch_size)
        given = zip(batches, labels, strict=True)
        return torch.cat([draw_by(self, batch, sampling, label=y, guidance=guidance).x for batch, y in given])

    def check_any_size(self) -> None:
        """Refuses a model whose states cannot be larger than its data; what its networks take is not looked at.

        Raises:
            ValueError: such a model; the reason is named.
        """
        if self.one_size:
            raise ValueError(f"{type(self).__name__} makes samples of one size, {self.shape}: {self.one_size}")

    def check_data(self, x: Tensor) -> None:
        """Refuses what is no batch of data of this model.

        Raises:
            ValueError: another shape, or integers, which have no density.
        """
        if x.shape[1:] != torch.Size(self.shape):
            shape = ", ".join(map(str, ("b", *self.shape)))
            raise ValueError(f"x has the shape {tuple(x.shape)}, and the model takes batches ({shape})")
        if not x.is_floating_point():
            raise ValueError(
                f"x is of {x.dtype}: levels have no density; dequantise them first (likelihood.dequantise)"
            )

    def check_label(self, y: Tensor | None, num: int) -> None:
        """Refuses labels of `num` rows that the model does not know; a network without classes refuses all by itself.

        Raises:
            ValueError: a class outside the model's, or another shape.
        """
        if y is not None and self.num_classes:
            labels_of(y, num, self.num_classes)

    def state_like(self, num: int, like: Tensor) -> Tensor:
        """Zeros of the shape of `num` states, in the dtype and on the device of `like`."""
        return self.sde.embed(like.new_zeros(num, *self.shape))


class LinearModel(GenerativeModel):
    """A model whose diffusion is linear."""

    sde: LinearSDE

    @abstractmethod
    def expected_log_prob_start(self, u_0: Tensor, eps: Tensor, generator: Noise = None) -> Tensor:
        """E[log p(u at t_start) | u_0]: closed where the law allows, else the value at the noise eps, which is unbiased."""
