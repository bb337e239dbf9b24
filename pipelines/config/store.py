"""Configurations and models in a directory. Nothing is unpickled: it holds

config.json         {"version": 1, "run": RunConfig, "spec": DataSpec}; where extensions define classes of the run also what to
                    import for them, "modules"; and how the run came about, "history"
model.safetensors   the averaged (EMA) weights, one tensor per line of the model's networks
model.json          the step of the weights, their SHA-256, and where they come from (`provenance`)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from indm_core.model import GenerativeModel
from indm_core.training import load_networks
from pipelines.config.codec import former, to_json
from pipelines.config.history import History
from pipelines.config.modules import use
from pipelines.config.provenance import Provenance, config_document, config_from, say_unverified
from pipelines.config.run import RunConfig, Train
from pipelines.config.terminal.cli import options, with_values
from pipelines.config.weights import Weights
from pipelines.data.card import Card
from pipelines.data.spec import DataSpec
from pipelines.storage import checkpoint
from pipelines.storage.files import sha256_of, write_tensors, write_text
from pipelines.storage.manifest import DamagedError, Manifest, read_manifest, write_manifest
from pipelines.storage.messages import one_line
from pipelines.storage.reading import read_json

__all__ = [
    "CONFIG",
    "WEIGHTS",
    "WEIGHTS_STATE",
    "as_begun",
    "check_data",
    "configuration",
    "digest",
    "identity",
    "load",
    "read_run",
    "read_weights_state",
    "trained",
    "weights_state",
    "write_run",
    "write_weights",
]

CONFIG, WEIGHTS, WEIGHTS_STATE = "config.json", "model.safetensors", "model.json"
REMEDY = "restore it, or give the training command again, which writes it from the last checkpoint"


def write_run(file: Path, run: RunConfig, spec: DataSpec, history: History | None = None) -> None:
    """Writes config.json: the configuration and, where it is known, how the run came about."""
    document = config_document(run, spec) | (history.to_document() if history else {})
    write_text(file, json.dumps(document, indent=1) + "\n")


def read_run(file: Path) -> tuple[RunConfig, DataSpec]:
    """Reads config.json.

    Raises:
        ValueError: no such file, not JSON, a file of something else, another version, or a configuration that this code does
            not know; of classes that a file of the user's own defines, how to allow that the file is run.
    """
    try:
        document = read_json(file)
    except OSError as error:
        raise ValueError(f"{file}: no readable run here ({error.strerror}); give the directory of a run") from None
    except ValueError as error:
        if file.name != CONFIG:
            raise ValueError(f"{file}: no configuration of a run (it is no JSON); give RUN/{CONFIG}") from None
        raise ValueError(
            f"{file}: no readable run here: the file is damaged ({one_line(error, 100)}); restore it or train the run again"
        ) from None
    return config_from(document, str(file))


def write_weights(directory: Path, tensors: dict[str, Tensor], step: int, made_of: Mapping[str, Any]) -> None:
    """Writes the weights and then what vouches for them: a kill in between leaves a run that is not finished.

    Args:
        directory: Of the run, or of an exported model.
        tensors: The averaged weights.
        step: After which they are.
        made_of: Their provenance, as JSON.
    """
    digest = write_tensors(directory / WEIGHTS, tensors)
    write_manifest(directory / WEIGHTS_STATE, {"step": step, **made_of}, {WEIGHTS: digest})


def read_weights_state(directory: Path) -> Manifest | None:
    """What vouches for the weights of a run; None where they were written before there was such a file, or not at all.

    Raises:
        DamagedError: it is not what was written.
    """
    file = directory / WEIGHTS_STATE
    if not file.is_file():
        return None
    state = read_manifest(file)
    if not state.checked or WEIGHTS not in state.files or type(state.content.get("step")) is not int:
        raise DamagedError(f"{file} says nothing of {WEIGHTS}")
    return state


def check_data(weights: Weights | Path, card: Card, *, partner: bool = False) -> None:
    """Refuses to measure weights on other rows than those that they were trained with.

    Args:
        weights: Of a checkpoint or, given by its directory, of a finished run.
        card: Of the prepared data.
        partner: Whether they are the second data set of a bridge.

    Raises:
        ValueError: they are others; the message says what differs.
    """
    weights = Weights.of(weights)
    state = weights_state(weights)
    made = Provenance.read(state.content, str(state.file)) if state else None
    if made is None:
        say_unverified(weights.run)
        return
    now = Provenance.of(made.run, made.spec, card, card)
    changed = made.partner_changed(now.partner) if partner else made.data_changed(now.data)
    if changed:
        raise ValueError(
            f"{weights.run} was trained on other data: {changed}; put {card.source} back as it was, or train the run again"
        )


def as_begun(run: RunConfig, file: Path) -> RunConfig:
    """A configuration in the form in which the run in `file` was begun, where that is from before today's classes."""
    then = former(read_run(file)[0])
    known = {option.path for option in options(run)}
    return with_values(run, {path: value for path, value in then.items() if path in known})


def configuration(weights: Weights | Path) -> tuple[RunConfig, DataSpec]:
    """What a model was configured as; the steps are those that its weights have taken."""
    weights = Weights.of(weights)
    run, spec = read_run(weights.run / CONFIG)
    return (run if weights.step is None else replace(run, train=_cut(run.train, weights.step))), spec


def _cut(train: Train, step: int) -> Train:
    """A training as it is after a step; a schedule of learning rates that is longer than it is no fault."""
    optimisers = {
        name: replace(each, decay="none") if step <= each.warmup else each for name, each in train.optimisers.items()
    }
    return replace(train, steps=step, optimisers=optimisers)


def digest(weights: Weights | Path) -> str:
    """A SHA-256 that says which model a document measured: of the file of a finished run's weights; of a checkpoint, of its
    file's and of which of its weights."""
    weights = Weights.of(weights)
    if weights.step is None:
        return sha256_of(weights.run / WEIGHTS)
    whole = weights.state.files.get(checkpoint.TENSORS) or sha256_of(weights.checkpoint / checkpoint.TENSORS)
    return hashlib.sha256(f"{weights.part}{whole}".encode()).hexdigest()


def trained(weights: Weights) -> bool:
    """Whether the weights are there: those of a run that is not finished are not, those of a checkpoint are."""
    return weights.step is not None or (weights.run / WEIGHTS).is_file()


def identity(weights: Weights | Path) -> str:
    """A hash of a model's weights and of the model that they are for."""
    config, _ = configuration(weights)
    text = f"{digest(weights)}\n{json.dumps(to_json(config.model), sort_keys=True)}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def load(path: str | Path | Weights, module: str | Path = "") -> GenerativeModel:
    """The trained model of a run, in evaluation mode, rebuilt from config.json and safetensors.

    Args:
        path: The directory of a run (its averaged weights) or of an exported model; of a checkpoint `DIRECTORY@STEP`, `@last`
            or `@best`, with `:raw` for weights that are not averaged (see `weights`).
        module: The extension that defines the run's own classes, where it has any (see `modules`): the path of a file or the
            name of an entry point; it is executed. What the environment variable INDM_MODULES names need not be given.

    Raises:
        ValueError: not a run, a run that has no weights yet, a checkpoint that is gone, weights or a configuration other than
            those that were written, or weights that do not fit the configuration.
    """
    if module:
        use(module)
    weights = Weights.of(path)
    run, spec = read_run(weights.run / CONFIG)
    file, tensors = _tensors(weights, run, spec)
    model = run.model.build(spec)
    try:
        load_networks(model, tensors)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    return model.eval()


def _tensors(weights: Weights, run: RunConfig, spec: DataSpec) -> tuple[Path, dict[str, Tensor]]:
    """The weights, verified, and the file that they lie in."""
    if weights.step is not None:
        place = weights.checkpoint
        _verify(weights, run, spec)
        try:
            return place / checkpoint.TENSORS, checkpoint.read_part(place, weights.part)
        except DamagedError as error:
            raise ValueError(f"{weights}: {error}; take another checkpoint, or give the command again") from None
    file = weights.run / WEIGHTS
    if not file.is_file():
        state = checkpoint.newest_state(weights.run)
        one = (
            f", or take its newest checkpoint: {weights.name}@last (step {state.content['step']})"
            if state
            else " first"
        )
        raise ValueError(f"{file}: the run has no trained weights yet; train it to its end{one}")
    _verify(weights, run, spec)
    try:
        return file, load_file(file)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file}: not a readable safetensors file ({error})") from None


def weights_state(weights: Weights) -> Manifest | None:
    """What vouches for weights; None where nothing does.

    Raises:
        ValueError: it is not what was written.
    """
    if weights.step is not None:
        return weights.state
    try:
        return read_weights_state(weights.run)
    except DamagedError as error:
        raise ValueError(f"{error}; {REMEDY}") from None


def _verify(weights: Weights, run: RunConfig, spec: DataSpec) -> None:
    """Refuses weights that are not those that were written, or that another configuration made."""
    state, directory = weights_state(weights), weights.run
    if state is None or not state.checked:
        say_unverified(directory)
        return
    try:
        state.verify()
    except DamagedError as error:
        gone = f"take another checkpoint, or {directory.name}@last: a training keeps its last and its best ones only"
        raise ValueError(f"{error}; {REMEDY if weights.step is None else gone}") from None
    made = Provenance.read(state.content, str(state.file))
    changed = made.config_changed(run, spec) if made else ""
    if changed:
        raise ValueError(
            f"{directory / CONFIG} has changed since the weights were written: {changed}; put it back as it was "
            f"({state.file.name} has it under 'config')"
        )
