r"""One optimisation step and its state.

A step averages the objective over a global batch (several micro-batches, several ranks), clips the gradient of each network by
its own norm, takes an AdamW step and moves the exponential moving average

    ema <- d ema + (1 - d) theta,     d = min(decay, (1 + n)/(10 + n)) after n steps  (or d = decay, as published),

The average of a network begins at its weights after its first step. Some layers (`ActNorm`) set their weights from the first
batch; the weights that they had before are then no part of the average.

A frozen network is not trained: it is held in evaluation mode, takes no step and is its own average. The gradient passes
through it to the networks before it, so that a flow can be trained alone against a fixed score.

A step whose gradient is not finite is skipped and counted. The ranks share their gradients, so that all of them see the fault
and skip the step together. Noise is a function of (seed, step, rank): no generator's state is stored, and a resumed run draws
what it would have drawn.

References:
    Kim et al. 2022, appendix F (clip per network, EMA) and Theorem 3 (a fixed score).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from indm_core.average import MovingAverage
from indm_core.errors import NonFiniteLossError
from indm_core.flow.lipschitz import LipschitzLayer
from indm_core.model import Losses, Trainable
from indm_core.optimiser import AdamW

__all__ = [
    "AdamW",
    "NonFiniteLossError",
    "StepReport",
    "Trainer",
    "check_frozen",
    "load_networks",
    "network_tensors",
    "step_seed",
]

T = TypeVar("T", bound=Trainable)


@dataclass(frozen=True)
class StepReport:
    """What a step measured: mean terms in nats (this rank's), gradient norms before clipping, whether it was skipped, and the
    variances of the mean terms, by those over the rows of a micro-batch."""

    terms: dict[str, Tensor]
    gradient_norms: dict[str, float]
    skipped: bool
    variances: dict[str, Tensor] = field(default_factory=dict)


def step_seed(seed: int, step: int, rank: int) -> int:
    """A 63-bit seed for the noise of one step on one rank, statistically independent of every other."""
    words = np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)
    return int(words[0] >> np.uint64(1))


class Trainer(Generic[T]):
    """Model, optimisers and EMA.

    Args:
        model: Trained in place.
        optimisers: Settings by network name; every network that is trained needs one.
        steps: Of the whole training; only learning rates that decay ask for it.
        frozen: Networks of `model.networks()` that are not trained, by name.
        ema_decay: Decay of the average, in [0, 1).
        ema_ramp: Whether the decay is min(decay, (1 + n)/(10 + n)).
        max_skipped: Consecutive steps that may be skipped before the run stops.
        wrap: Wraps the model for several ranks; called anew where a phase begins, because what is trained may change.
        autocast: Context of the forward pass.

    Raises:
        ValueError: a trained network without settings, a frozen one that is not there, nothing left to train, or too few steps
            for a learning rate that decays.
    """

    def __init__(
        self,
        model: T,
        optimisers: dict[str, AdamW],
        *,
        steps: int = 0,
        frozen: Collection[str] = (),
        ema_decay: float = 0.9999,
        ema_ramp: bool = True,
        max_skipped: int = 10,
        wrap: Callable[[T], nn.Module] = lambda model: model,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        networks = model.networks()
        check_frozen(networks, frozen)
        self.frozen = {name: network for name, network in networks.items() if name in frozen}
        trained = {name: network for name, network in networks.items() if name not in frozen}
        missing = set(trained) - set(optimisers)
        if missing:
            raise ValueError(f"optimisers: no settings for {sorted(missing)}; given are {sorted(optimisers)}")
        if not 0 <= ema_decay < 1:
            raise ValueError(f"ema_decay={ema_decay} must lie in [0, 1)")
        if not max_skipped >= 1:
            raise ValueError(f"max_skipped={max_skipped} must be at least 1")
        self.model, self.settings, self.steps = model, {name: optimisers[name] for name in trained}, steps
        for settings in self.settings.values():
            settings.check_steps(steps)
        self.optimisers = {name: self.settings[name].over(network) for name, network in trained.items()}
        self._parameters = {name: list(network.parameters()) for name, network in trained.items()}
        self._device = next(model.parameters()).device
        self._foreach = self._device.type in ("cpu", "cuda") or None
        self.ema_decay, self.ema_ramp, self.max_skipped = ema_decay, ema_ramp, max_skipped
        self._average = MovingAverage(model)
        self._remember_frozen()
        self.wrap, self.autocast = wrap, autocast
        self.wrapped: nn.Module = model
        self.step_count, self.skipped, self.skipped_in_a_row = 0, 0, 0
        self._phase = ""

    def step(self, batches: Iterable[tuple[Any, Tensor | None]], generator: torch.Generator) -> StepReport:
        """One step over the micro-batches (x, y) of this rank, all of one size; x is what the model's `forward` takes.

        Raises:
            NonFiniteLossError: `max_skipped` steps in a row were not finite; the parameters are the last good ones.
            ValueError: no batch, or a phase that would train frozen networks only.
        """
        if self._phase != self.model.phase(self.step_count):
            self._begin_phase(self.model.phase(self.step_count))
        self.model.train()
        for network in self.frozen.values():
            network.eval()
        batches = list(batches)
        if not batches:
            raise ValueError("batches: none; a step takes at least one")
        totals: dict[str, Tensor] = {}
        variances: dict[str, Tensor] = {}
        for i, (x, y) in enumerate(batches):
            with self._synchronise(last=i + 1 == len(batches)):
                with self.autocast():
                    losses: Losses = self.wrapped(x, y, generator)
                (losses.objective.mean() / len(batches)).backward()
            for name, term in losses.terms.items():
                totals[name] = totals.get(name, 0.0) + term.mean() / len(batches)
                variances[name] = variances.get(name, 0.0) + term.var() / (len(term) * len(batches) ** 2)
        self._put_back_frozen()
        norms = self._clip()
        finite = all(np.isfinite(norm) for norm in norms.values())
        self._apply(finite)
        return StepReport(totals, norms, not finite, variances)

    def _begin_phase(self, phase: str) -> None:
        self._phase = phase
        self.model.begin_phase(phase)
        for network in self.frozen.values():
            network.requires_grad_(False)
        if self.frozen and not any(p.requires_grad for p in self.model.parameters()):
            raise ValueError(
                f"frozen: the phase {phase!r} trains no network but {', '.join(self.frozen)}; begin after it, or leave it out"
            )
        self.wrapped = self.wrap(self.model)

    def _remember_frozen(self) -> None:
        """Takes the buffers of the frozen networks, which `_put_back_frozen` restores."""
        buffers = [buffer for network in self.frozen.values() for buffer in network.buffers()]
        self._frozen_buffers = [(buffer, buffer.clone()) for buffer in buffers]

    @torch.no_grad()
    def _put_back_frozen(self) -> None:
        """A search for the norm (`LipschitzLayer`) moves its buffer even in evaluation: a resumed run would begin elsewhere."""
        for buffer, value in self._frozen_buffers:
            buffer.copy_(value)

    def _synchronise(self, last: bool) -> AbstractContextManager[Any]:
        """Ranks exchange gradients once a step, with the last micro-batch."""
        no_sync = getattr(self.wrapped, "no_sync", None)
        return nullcontext() if last or no_sync is None else no_sync()

    def _clip(self) -> dict[str, float]:
        """The norms before; the one place in a step where the host waits for the device, because it is the host that skips."""
        norms = {
            name: torch.nn.utils.clip_grad_norm_(
                [p for p in parameters if p.grad is not None], self.settings[name].clip, foreach=self._foreach
            )
            for name, parameters in self._parameters.items()
        }
        values = torch.stack([norm.to(self._device) for norm in norms.values()]).tolist()
        return dict(zip(norms, values, strict=True))

    def _apply(self, finite: bool) -> None:
        if finite:
            untrained = [name for name, optimiser in self.optimisers.items() if not optimiser.state]
            for name, optimiser in self.optimisers.items():
                optimiser.param_groups[0]["lr"] = self.settings[name].rate(self.step_count, self.steps)
                optimiser.step()
                # a fused step leaves the versions as they were, by which a layer knows that its weight is a new one
                increment_version(optimiser.param_groups[0]["params"])
            n = self.step_count
            self._average.update(min(self.ema_decay, (1 + n) / (10 + n)) if self.ema_ramp else self.ema_decay)
            begun = [name for name in untrained if self.optimisers[name].state]
            self._copy_parameters(self.model, self.averaged, begun)
            self.skipped_in_a_row = 0
        else:
            self.skipped, self.skipped_in_a_row = self.skipped + 1, self.skipped_in_a_row + 1
        for optimiser in self.optimisers.values():
            optimiser.zero_grad(set_to_none=True)
        self.step_count += 1
        if self.skipped_in_a_row >= self.max_skipped:
            raise NonFiniteLossError(
                f"the loss was not finite {self.skipped_in_a_row} steps in a row (steps "
                f"{self.step_count - self.skipped_in_a_row} to {self.step_count - 1}); lower lr or look at the data"
            )

    @staticmethod
    @torch.no_grad()
    def _copy_parameters(source: Trainable, target: Trainable, names: Collection[str]) -> None:
        for name in names:
            own: list[Tensor] = list(target.networks()[name].parameters())
            given: list[Tensor] = list(source.networks()[name].parameters())
            torch._foreach_copy_(own, given)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and plain numbers that `load` restores bit for bit."""
        tensors = {f"model.{key}": value for key, value in network_tensors(self.model).items()}
        tensors |= {f"ema.{key}": value for key, value in network_tensors(self.averaged).items()}
        for name, optimiser in self.optimisers.items():
            for index, slots in optimiser.state_dict()["state"].items():
                tensors |= {f"optimiser.{name}.{index}.{slot}": value for slot, value in slots.items()}
        averaged = 1 + self.step_count - self.skipped
        return tensors, {"step": self.step_count, "skipped": self.skipped, "averaged": averaged}

    def load(self, tensors: dict[str, Tensor], numbers: dict[str, Any], networks: Collection[str] = ()) -> None:
        """Restores `state`; the optimisers' settings stay those of this trainer.

        A frozen network takes the averaged weights, the ones that its own run is measured with.

        Args:
            tensors, numbers: What `state` gave.
            networks: The networks to restore; () restores all. A linear diffusion's state starts an INDM with ('score',).

        Raises:
            ValueError: tensors of another architecture.
        """
        load_networks(self.model, _under(tensors, "model."), networks)
        load_networks(self.averaged, _under(tensors, "ema."), networks)
        self._copy_parameters(self.averaged, self.model, self.frozen)
        self._remember_frozen()
        for name in self.optimisers.keys() & set(networks or self.optimisers):
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in _under(tensors, f"optimiser.{name}.").items():
                index, slot = key.split(".", 1)
                state.setdefault(int(index), {})[slot] = value.clone()  # AdamW would go on in the caller's tensors
            groups = self.optimisers[name].state_dict()["param_groups"]
            self.optimisers[name].load_state_dict({"state": state, "param_groups": groups})
        self.step_count, self.skipped = numbers["step"], numbers["skipped"]

    @property
    def averaged(self) -> T:
        """The model with averaged weights."""
        return self._average.module


def check_frozen(networks: Collection[str], frozen: Collection[str]) -> None:
    """Whether some of a model's networks can be frozen.

    Raises:
        ValueError: one that the model does not have, or all that it has.
    """
    unknown = sorted(set(frozen) - set(networks))
    if unknown:
        raise ValueError(f"frozen: the model has no network {unknown[0]!r}; it has {', '.join(networks)}")
    if frozen and set(networks) == set(frozen):
        raise ValueError(f"frozen: {', '.join(networks)} are all the networks of the model; leave one to train")


def network_tensors(model: Trainable) -> dict[str, Tensor]:
    """The state of the model's networks, 'network.tensor' -> tensor."""
    networks = model.networks().items()
    return {f"{name}.{key}": value for name, network in networks for key, value in network.state_dict().items()}


def load_networks(model: Trainable, tensors: dict[str, Tensor], networks: Collection[str] = ()) -> None:
    """Loads what `network_tensors` gave; () means every network.

    Raises:
        ValueError: a tensor that is missing, is not the model's, or has another shape; the message names it.
    """
    foreign = [] if networks else [key for key in tensors if key.split(".")[0] not in model.networks()]
    if foreign:
        raise ValueError(f"checkpoint of another architecture: the model has no tensor '{foreign[0]}'")
    for name, network in model.networks().items():
        if networks and name not in networks:
            continue
        own, given = network.state_dict(), _under(tensors, f"{name}.")
        for path, layer in network.named_modules():
            if isinstance(layer, LipschitzLayer):
                layer.of_today(given, f"{path}.")
        for key in sorted(own.keys() | given.keys()):
            if key not in own or key not in given:
                side = "model" if key not in own else "checkpoint"
                raise ValueError(f"checkpoint of another architecture: the {side} has no tensor '{name}.{key}'")
            if own[key].shape != given[key].shape:
                shapes = f"{tuple(given[key].shape)} in the checkpoint, {tuple(own[key].shape)} in the model"
                raise ValueError(f"checkpoint of another architecture: '{name}.{key}' has shape {shapes}")
        network.load_state_dict(given)


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
