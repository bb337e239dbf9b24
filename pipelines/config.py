"""What a run is: frozen dataclasses that survive a JSON round trip and rebuild their model.

A nested dataclass is written with the name of its class under "type"; reading looks that name up among the subclasses of the
annotated class, so that a file can name nothing but configurations that this package defines, and a new SDE, flow or model
needs an entry nowhere. Nothing is unpickled: a model directory holds

    config.json         {"version": 1, "run": RunConfig, "spec": DataSpec}
    model.safetensors   the averaged (EMA) weights, one tensor per line of the model's networks
"""

from __future__ import annotations

import hashlib
import json
import types
import typing
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from safetensors.torch import load_file

from indm_core.model import GenerativeModel
from indm_core.training import AdamW, load_networks
from pipelines.atomic import write_text
from pipelines.models import DataSpec, INDMConfig, ModelConfig
from pipelines.source import Options

__all__ = [
    "Data",
    "RunConfig",
    "Train",
    "digest",
    "from_json",
    "identity",
    "load",
    "read_run",
    "subclasses",
    "to_json",
    "write_run",
]

VERSION = 1


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
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{file}: no readable run here ({type(error).__name__}); give the directory of a run"
        ) from None
    if not isinstance(document, dict) or document.get("version") != VERSION:
        raise ValueError(f"{file}: written by another version of this project; this one reads version {VERSION}")
    run = from_json(RunConfig, document.get("run"), f"{file}: run")
    return run, from_json(DataSpec, document.get("spec"), f"{file}: spec")


def digest(run: Path) -> str:
    """SHA-256 of a run's weights: which model a document measured."""
    with (run / "model.safetensors").open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def identity(run: Path) -> str:
    """A hash of a run's weights and of the model that they are for."""
    config, _ = read_run(run / "config.json")
    text = f"{digest(run)}\n{json.dumps(to_json(config.model), sort_keys=True)}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


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
