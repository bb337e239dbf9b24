"""Configurations and models in a directory. Nothing is unpickled: it holds

config.json         {"version": 1, "run": RunConfig, "spec": DataSpec}; where files of the user's own define classes of the run
                    also their paths, "modules"
model.safetensors   the averaged (EMA) weights, one tensor per line of the model's networks
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from indm_core.model import GenerativeModel
from indm_core.training import load_networks
from pipelines.config.cli import options, with_values
from pipelines.config.codec import from_json, to_json, unsaid
from pipelines.config.modules import import_file
from pipelines.config.run import RunConfig, from_document, to_document
from pipelines.data.spec import DataSpec
from pipelines.storage.files import write_text
from pipelines.storage.paths import local_path

__all__ = ["as_begun", "digest", "identity", "load", "read_run", "write_run"]


VERSION = 1


def write_run(file: Path, run: RunConfig, spec: DataSpec) -> None:
    """Writes config.json."""
    document = {"version": VERSION, **to_document(run), "spec": to_json(spec)}
    write_text(file, json.dumps(document, indent=1) + "\n")


def read_run(file: Path) -> tuple[RunConfig, DataSpec]:
    """Reads config.json.

    Raises:
        ValueError: no such file, not JSON, another version, or a configuration that this code does not know; of classes that a
            file of the user's own defines, how to allow that the file is run.
    """
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(
            f"{file}: no readable run here ({type(error).__name__}); give the directory of a run"
        ) from None
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{file}: no readable run here: the file is damaged ({type(error).__name__}); restore it or train the run again"
        ) from None
    if not isinstance(document, dict) or "version" not in document:
        raise ValueError(f"{file}: no configuration of a run (it has no version); give the directory of a run")
    if document["version"] != VERSION:
        raise ValueError(f"{file}: written by another version of this project; this one reads version {VERSION}")
    return from_document(document, f"{file}: "), from_json(DataSpec, document.get("spec"), f"{file}: spec")


def as_begun(run: RunConfig, file: Path) -> RunConfig:
    """A configuration in the form in which the run in `file` was begun, where that is from before today's classes."""
    there, _ = read_run(file)
    then = unsaid(there, json.loads(file.read_text(encoding="utf-8"))["run"])
    known = {option.path for option in options(run)}
    return with_values(run, {path: value for path, value in then.items() if path in known})


def digest(run: Path) -> str:
    """SHA-256 of a run's weights: which model a document measured."""
    with (run / "model.safetensors").open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def identity(run: Path) -> str:
    """A hash of a run's weights and of the model that they are for."""
    config, _ = read_run(run / "config.json")
    text = f"{digest(run)}\n{json.dumps(to_json(config.model), sort_keys=True)}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def load(path: str | Path, module: str | Path = "") -> GenerativeModel:
    """The trained model of a run, in evaluation mode, rebuilt from config.json and safetensors.

    Args:
        path: The directory of a run (its averaged weights) or of an exported model.
        module: The file that defines the run's own classes, where it has any; it is executed. A file that the environment
            variable INDM_MODULES names need not be given.

    Raises:
        ValueError: not a run, a run that has no weights yet, or weights that do not fit its configuration.
    """
    if module:
        import_file(module)
    directory = local_path(path, "run")
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
