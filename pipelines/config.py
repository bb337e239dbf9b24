"""What a run is: frozen dataclasses that survive a JSON round trip and rebuild their model.

A nested dataclass is written with the name of its class under "type"; reading looks that name up among the subclasses of the
annotated class, so that a file can name nothing but configurations that this package defines, and a new SDE, flow or model
needs an entry nowhere. Nothing is unpickled: a model directory holds

    config.json         {"version": 1, "run": RunConfig, "spec": DataSpec}
    model.safetensors   the averaged (EMA) weights, one tensor per line of the model's networks
"""

from __future__ import annotations

import json
import math
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from indm_core.flow import ActNorm, Composed, Flow, Identity
from indm_core.indm import INDM, Bridge
from indm_core.model import GenerativeModel
from indm_core.nn import MLP, UNet
from indm_core.resflow import LipSwish, ResFlow, Roulette, Sine
from indm_core.sde import VP, LinearSDE, log_abs_det
from indm_core.training import AdamW, load_networks
from pipelines.atomic import write_text
from pipelines.card import Card
from pipelines.source import Options

__all__ = [
    "Backbone",
    "BridgeConfig",
    "Data",
    "DataSpec",
    "Dense",
    "FlowConfig",
    "INDMConfig",
    "ModelConfig",
    "NoFlow",
    "ResidualFlow",
    "RunConfig",
    "Train",
    "UNetConfig",
    "from_json",
    "load",
    "read_run",
    "to_json",
]

VERSION = 1


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """What a model needs to know of its data.

    Args:
        name: Of the data set.
        shape: (c, h, w) or (d,).
        levels: Levels per dimension; 0 for continuous data.
        low, high: Range that dequantised data are scaled to.
        num_classes: Labels, 0 for none.
    """

    name: str
    shape: tuple[int, ...]
    levels: int
    low: float
    high: float
    num_classes: int

    @staticmethod
    def of(card: Card) -> DataSpec:
        """The specification of a prepared data set."""
        return DataSpec(
            name=card.name,
            shape=card.shape,
            levels=card.levels,
            low=card.low,
            high=card.high,
            num_classes=card.num_classes,
        )

    @property
    def num_dims(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class Data:
    """Where the data come from.

    Args:
        source: An embedded set (digits, toy2d:spiral, ...) or a path in any format that prepare.py reads.
        options: How the source is prepared.
        flip: Whether images are mirrored left to right at random.
        partner: A second data set of the same shape, for a bridge; its training rows come with the first's as `y`.
    """

    source: str = "digits"
    options: Options = field(default_factory=Options)
    flip: bool = False
    partner: str = ""


@dataclass(frozen=True, kw_only=True)
class FlowConfig(ABC):
    """A flow of the latent."""

    @abstractmethod
    def build(self, shape: tuple[int, ...]) -> Flow:
        """The flow on events of this shape."""


@dataclass(frozen=True, kw_only=True)
class NoFlow(FlowConfig):
    """The identity: a linear diffusion."""

    def build(self, shape: tuple[int, ...]) -> Flow:
        return Identity()


@dataclass(frozen=True, kw_only=True)
class ResidualFlow(FlowConfig):
    """A residual flow (see indm_core/resflow.py).

    Args:
        blocks: Residual blocks at each scale.
        width: Hidden channels or units.
        kernels: Sides of a block's convolutions.
        dense: Treat images as vectors.
        coefficient: Lipschitz bound of a block, in (0, 1).
        constraint: Norm that is bounded.
        activation: 1-Lipschitz activation.
        roulette: Law of the number of series terms in training.
        actnorm: A learned scale and shift before the blocks, per channel or per pixel.
        actnorm_init: Start of these: identity (an INDM goes on from the linear diffusion that it was), or the mean and the
            standard deviation of the first batch.
    """

    blocks: tuple[int, ...] = (16, 16)
    width: int = 512
    kernels: tuple[int, ...] = (3, 1, 3)
    dense: bool = False
    coefficient: float = 0.98
    constraint: Literal["spectral", "infinity"] = "infinity"
    activation: Literal["sine", "lipswish"] = "sine"
    roulette: Roulette = field(default_factory=Roulette)
    actnorm: Literal["none", "channel", "pixel"] = "none"
    actnorm_init: Literal["identity", "data"] = "identity"

    def __post_init__(self) -> None:
        if self.actnorm == "none" and self.actnorm_init != "identity":
            raise ValueError(f"actnorm_init={self.actnorm_init!r} needs actnorm='channel' or 'pixel', not 'none'")

    def build(self, shape: tuple[int, ...]) -> Flow:
        blocks = ResFlow(
            shape,
            blocks=self.blocks,
            width=self.width,
            kernels=self.kernels,
            dense=self.dense,
            coefficient=self.coefficient,
            constraint=self.constraint,
            activation=Sine if self.activation == "sine" else LipSwish,
            roulette=self.roulette,
        )
        if self.actnorm == "none":
            return blocks
        per_pixel, data_init = self.actnorm == "pixel", self.actnorm_init == "data"
        return Composed([ActNorm(shape, per_pixel=per_pixel, data_init=data_init), blocks])


@dataclass(frozen=True, kw_only=True)
class Backbone(ABC):
    """A score network."""

    @abstractmethod
    def build(self, spec: DataSpec, sde: LinearSDE) -> nn.Module:
        """The network for the states of `sde` on this data."""


TimeFeature = Literal["scaled", "log-sigma", "log-snr"]


@dataclass(frozen=True, kw_only=True)
class UNetConfig(Backbone):
    """The DDPM++ U-Net, or NCSN++: with filtered resampling, Fourier features and a path of the image itself.

    Args:
        family: ddpm++ or ncsn++.
        nf: Channels of the first level.
        ch_mult: Channels of each level in units of nf.
        num_res_blocks: Residual blocks per level.
        attention: Image sides at which attention is applied.
        dropout: In the residual blocks.
        time: What the embedding sees: scaled (999 t, as published for VP), log-sigma (as published for VE), or log-snr
            (smooth at small t: fewer ODE steps).
    """

    family: Literal["ddpm++", "ncsn++"] = "ddpm++"
    nf: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 2, 2)
    num_res_blocks: int = 4
    attention: tuple[int, ...] = (16,)
    dropout: float = 0.1
    time: TimeFeature = "scaled"

    def build(self, spec: DataSpec, sde: LinearSDE) -> nn.Module:
        ncsn = self.family == "ncsn++"
        return UNet(
            network_shape(spec, sde),
            embedding="fourier" if ncsn else "positional",
            fir=ncsn,
            progressive_input="residual" if ncsn else "none",
            time_feature=_time_feature(self.time, sde),
            nf=self.nf,
            ch_mult=self.ch_mult,
            num_res_blocks=self.num_res_blocks,
            attention=self.attention,
            dropout=self.dropout,
        )


@dataclass(frozen=True, kw_only=True)
class Dense(Backbone):
    """A residual MLP for vectors.

    Args:
        width: Hidden units.
        depth: Residual blocks.
        time: What the embedding sees: scaled (999 t), log-sigma or log-snr.
    """

    width: int = 128
    depth: int = 3
    time: TimeFeature = "log-snr"

    def build(self, spec: DataSpec, sde: LinearSDE) -> nn.Module:
        shape = network_shape(spec, sde)
        if len(shape) != 1:
            raise ValueError(f"backbone=Dense is for vectors, {spec.name} has events {spec.shape}; take UNetConfig")
        (num_dims,) = shape
        return MLP(num_dims, time_feature=_time_feature(self.time, sde), width=self.width, depth=self.depth)


def _time_feature(kind: str, sde: LinearSDE) -> Callable[[torch.Tensor], torch.Tensor]:
    """999 t; log sigma(t); or minus twice the log-SNR, which the importance law of t draws uniformly."""
    if kind == "scaled":
        return lambda t: 999 * t
    if kind == "log-sigma":
        return lambda t: log_sigma(sde, t)
    return lambda t: 2 * sde.log_importance(t.reshape(-1, 1, 1, 1)).reshape(t.shape)


def log_sigma(sde: LinearSDE, t: torch.Tensor) -> torch.Tensor:
    """The logarithm of the noise's standard deviation (geometric mean over coordinates) at times (b,)."""
    R = sde.R(t.reshape(-1, 1, 1, 1))
    return log_abs_det(R).reshape(len(t), -1).mean(1) / R.shape[-1]


def network_shape(spec: DataSpec, sde: LinearSDE) -> tuple[int, ...]:
    """The event that a backbone sees."""
    return tuple(sde.to_network(sde.embed(torch.zeros(1, *spec.shape))).shape[1:])


@dataclass(frozen=True, kw_only=True)
class ModelConfig(ABC):
    """A generative model."""

    @abstractmethod
    def build(self, spec: DataSpec) -> GenerativeModel:
        """The model with fresh weights, drawn from torch's default generator."""

    @property
    def shared_steps(self) -> int:
        """Steps at the start that a baseline shares: RUN/pretrained is what they lead to. 0: none."""
        return 0


@dataclass(frozen=True, kw_only=True)
class INDMConfig(ModelConfig):
    """INDM, or with NoFlow the linear diffusion (see indm_core/indm.py).

    Args:
        sde: The diffusion in the latent.
        flow: From data to latent.
        backbone: The score network.
        mode: nll or fid: the weighting of the score's loss.
        pretrain_steps: Steps at the start in which only the score is trained, as a linear diffusion.
        soft_truncation: Exponent k of Soft Truncation, at least 1; 0 for none.
    """

    sde: LinearSDE = field(default_factory=VP)
    flow: FlowConfig = field(default_factory=ResidualFlow)
    backbone: Backbone = field(default_factory=UNetConfig)
    mode: Literal["nll", "fid"] = "nll"
    pretrain_steps: int = 0
    soft_truncation: float = 0.0

    @property
    def shared_steps(self) -> int:
        return self.pretrain_steps

    def build(self, spec: DataSpec) -> GenerativeModel:
        return self._built(INDM, spec)

    def _built(self, kind: type[INDM], spec: DataSpec) -> INDM:
        backbone = self.backbone.build(spec, self.sde)
        return kind(
            self.flow.build(spec.shape),
            backbone,
            self.sde,
            shape=spec.shape,
            mode=self.mode,
            pretrain_steps=self.pretrain_steps,
            soft_truncation=self.soft_truncation,
        )


@dataclass(frozen=True, kw_only=True)
class BridgeConfig(INDMConfig):
    """An INDM whose flow carries the data set `data.partner` to the prior (see indm_core/indm.py)."""

    def build(self, spec: DataSpec) -> GenerativeModel:
        return self._built(Bridge, spec)


@dataclass(frozen=True, kw_only=True)
class Train:
    """How a run is trained.

    Args:
        steps: Optimiser steps, pre-training included.
        batch_size: Rows per step over all workers.
        accumulate: Micro-batches that a worker splits its share into.
        optimisers: By network: learning rate, betas, weight decay, gradient clip.
        ema_decay: Decay of the averaged weights.
        ema_ramp: Whether the decay rises as (1 + n)/(10 + n) to `ema_decay`.
        precision: fp32, or bf16 autocast of the networks.
        seed: Of weights, order of rows and noise.
        log_every: Steps between progress lines.
        checkpoint_every: Steps between checkpoints.
        keep: Checkpoints kept, the best by NELBO; the last one is always kept.
        sample_every: Steps between sample grids, 0 for none.
    """

    steps: int = 1000
    batch_size: int = 128
    accumulate: int = 1
    optimisers: dict[str, AdamW] = field(default_factory=lambda: {"score": AdamW(lr=2e-4), "flow": AdamW(lr=1e-3)})
    ema_decay: float = 0.9999
    ema_ramp: bool = True
    precision: Literal["fp32", "bf16"] = "fp32"
    seed: int = 0
    log_every: int = 50
    checkpoint_every: int = 500
    keep: int = 2
    sample_every: int = 500

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "log_every", "checkpoint_every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.seed < 0 or self.sample_every < 0:
            raise ValueError(f"seed={self.seed} and sample_every={self.sample_every} must not be negative")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run: data, model and training.

    Args:
        recipe: Its recipe's name.
        data: Where the data come from.
        model: What is trained.
        train: How.
    """

    recipe: str
    data: Data = field(default_factory=Data)
    model: ModelConfig = field(default_factory=INDMConfig)
    train: Train = field(default_factory=Train)


def to_json(value: Any) -> Any:
    """Plain JSON values of a configuration; a dataclass carries its class under "type"."""
    if is_dataclass(value):
        members = {f.name: to_json(getattr(value, f.name)) for f in fields(value)}
        return {"type": type(value).__name__, **members}
    if isinstance(value, dict):
        return {key: to_json(member) for key, member in value.items()}
    if isinstance(value, tuple | list):
        return [to_json(member) for member in value]
    return value


def from_json(annotation: Any, value: Any, where: str = "config") -> Any:
    """The inverse of `to_json` for a value of the annotated type.

    Raises:
        ValueError: an unknown class or field, or a value of another type; the message names the place.
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if is_dataclass(annotation):
        return _dataclass_from_json(annotation, value, where)
    if origin in (typing.Union, types.UnionType):
        inner = [a for a in arguments if a is not type(None)]
        return None if value is None else from_json(inner[0], value, where)
    if origin is tuple and isinstance(value, list):
        return tuple(from_json(arguments[0], member, f"{where}[{i}]") for i, member in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {key: from_json(arguments[1], member, f"{where}.{key}") for key, member in value.items()}
    if origin is Literal and value in arguments:
        return value
    if annotation is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if annotation in (int, str, bool) and type(value) is annotation:
        return value
    raise ValueError(f"{where}: {value!r} is no {getattr(annotation, '__name__', annotation)}")


def subclasses(base: type) -> dict[str, type]:
    """The concrete dataclasses below (and including) a class, by name."""
    found = {} if getattr(base, "__abstractmethods__", None) else {base.__name__: base}
    for child in base.__subclasses__():
        if is_dataclass(child):
            found |= subclasses(child)
    return found


def _dataclass_from_json(base: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected an object of type {base.__name__}, got {value!r}")
    choices = subclasses(base)
    name = value.get("type", base.__name__)
    if not isinstance(name, str) or name not in choices:
        raise ValueError(f"{where}: type {name!r} is none of {', '.join(sorted(choices))}")
    chosen = choices[name]
    hints = typing.get_type_hints(chosen)
    known = {f.name for f in fields(chosen)}  # pyright: ignore[reportArgumentType]
    unknown = sorted(value.keys() - known - {"type"})
    if unknown:
        raise ValueError(f"{where}: {name} has no field {unknown[0]!r}; it has {', '.join(sorted(known))}")
    members = {k: from_json(hints[k], v, f"{where}.{k}") for k, v in value.items() if k != "type"}
    try:
        return chosen(**members)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from None


def write_run(file: Path, run: RunConfig, spec: DataSpec) -> None:
    """Writes config.json."""
    document = {"version": VERSION, "run": to_json(run), "spec": to_json(spec)}
    write_text(file, json.dumps(document, indent=1) + "\n")


def read_run(file: Path) -> tuple[RunConfig, DataSpec]:
    """Reads config.json.

    Raises:
        ValueError: no such file, not JSON, another version, or a configuration that this code does not know.
    """
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{file}: no readable run here ({type(error).__name__}); give the directory of a run"
        ) from None
    if not isinstance(document, dict) or document.get("version") != VERSION:
        raise ValueError(f"{file}: written by another version of this project; this one reads version {VERSION}")
    run = from_json(RunConfig, document.get("run"), f"{file}: run")
    return run, from_json(DataSpec, document.get("spec"), f"{file}: spec")


def load(path: str | Path) -> GenerativeModel:
    """The trained model of a run, in evaluation mode, rebuilt from config.json and safetensors.

    Args:
        path: The directory of a run (its averaged weights) or of an exported model.

    Raises:
        ValueError: not a run, a run that has no weights yet, or weights that do not fit its configuration.
    """
    directory = Path(path)
    run, spec = read_run(directory / "config.json")
    file = directory / "model.safetensors"
    if not file.is_file():
        raise ValueError(f"{file}: the run has no trained weights yet; train it to its end first")
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file}: not a readable safetensors file ({error})") from None
    model = run.model.build(spec)
    try:
        load_networks(model, tensors)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    return model.eval()
