"""A group of runs in MLflow: a run that the others are shown below (`open_run(parent=...)`), and the best in the registry.

The group's directory keeps the id of its run in mlflow.json, as a run's does. A model is registered as the directory with
safetensors that its last checkpoint is logged as, and found by an alias. Nothing is pickled.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from pipelines.config.history import Command
from pipelines.runs.catalogue import source_tags
from pipelines.runs.kept import Kept
from pipelines.runs.store import named, reach, tracking_uri
from pipelines.runs.tracking import experiment
from pipelines.storage.messages import one_line

__all__ = ["Member", "close_group", "log_members", "open_group", "register"]

MOST_MEMBERS = 10_000


def open_group(directory: Path, root: Path, command: Command, parameters: Mapping[str, str]) -> str:
    """The id of a group's MLflow run, created where there is none yet, or where it was deleted.

    Args:
        directory: Of the group; its name is the run's.
        root: The output directory.
        command: That makes the group.
        parameters: What all its runs have in common.

    Raises:
        ValueError: the store does not answer.
    """
    uri = tracking_uri(root)
    try:
        reach(uri)
        client, known = MlflowClient(uri), Kept.read(directory).run_id
        if known and _is_active(client, known):
            client.update_run(known, status="RUNNING")
            Kept(run_id=known).write(directory)  # it has not ended
            return known
        run = client.create_run(experiment(client, root), None, source_tags(command), directory.name)
        client.log_batch(run.info.run_id, params=[Param(name, text[:500]) for name, text in parameters.items()])
    except Exception as error:  # whatever a store's driver raises
        raise ValueError(
            f"MLflow at {named(uri)}: {one_line(error, 200)}; mend that, and give the same command again"
        ) from error
    Kept(run_id=run.info.run_id).write(directory)
    return run.info.run_id


@dataclass(frozen=True, kw_only=True)
class Member:
    """What a group has measured that is no run of a directory, a sampler for instance.

    Args:
        name: Of its MLflow run.
        parameters: What it is.
        figures: Finite numbers are logged.
    """

    name: str
    parameters: Mapping[str, str]
    figures: Mapping[str, float]


def log_members(directory: Path, root: Path, members: Sequence[Member]) -> None:
    """Logs members below their group's run, each once; a store that does not answer is told, and no error."""
    uri, own, now = tracking_uri(root), Kept.read(directory).run_id, int(time.time() * 1000)
    try:
        reach(uri)
        client = MlflowClient(uri)
        place = experiment(client, root)
        below = client.search_runs([place], f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{own}'", max_results=MOST_MEMBERS)
        there = {run.info.run_name for run in below if run.info.status == "FINISHED"}
        for member in members:
            if member.name in there:
                continue
            run = client.create_run(place, None, {MLFLOW_PARENT_RUN_ID: own}, member.name)
            metrics = [Metric(name, v, now, 0) for name, v in member.figures.items() if math.isfinite(v)]
            parameters = [Param(name, text[:500]) for name, text in member.parameters.items()]
            client.log_batch(run.info.run_id, metrics=metrics, params=parameters)
            client.set_terminated(run.info.run_id, "FINISHED")
    except Exception as error:  # whatever a store's driver raises
        print(
            f"{directory.name} is not logged to MLflow at {named(uri)}: {one_line(error, 200)}; the same command does it",
            flush=True,
        )


def close_group(directory: Path, root: Path, status: str, figures: Mapping[str, float], files: Sequence[Path]) -> None:
    """Logs what came of a group, and how it has ended; a store that does not answer is told, and no error.

    Args:
        status: FINISHED, FAILED or KILLED.
        figures: Finite numbers are logged.
        files: Tables and pictures; those that are absent are left out.
    """
    uri, own, now = tracking_uri(root), Kept.read(directory).run_id, int(time.time() * 1000)
    try:
        reach(uri)
        client = MlflowClient(uri)
        metrics = [Metric(name, value, now, 0) for name, value in figures.items() if math.isfinite(value)]
        client.log_batch(own, metrics=metrics)
        for file in filter(Path.is_file, files):
            client.log_artifact(own, str(file))
        client.set_terminated(own, status)
    except Exception as error:  # whatever a store's driver raises
        print(
            f"{directory.name} is not logged to MLflow at {named(uri)}: {one_line(error, 200)}; the same command does it",
            flush=True,
        )


def register(run: Path, root: Path, name: str, alias: str) -> str:
    """Registers the last model of a run under a name, and gives it an alias, where it is not the one that has it already.

    Args:
        run: Its directory; its checkpoints are logged (`tracking.deliver`).

    Returns:
        The address of the model, models:/NAME@ALIAS; '' where the store does not answer or has no model of the run, which is
        said.
    """
    uri, kept = tracking_uri(root), Kept.read(run)
    try:
        reach(uri)
        client, model = MlflowClient(uri), kept.models[max(kept.models)]
        place = client.get_logged_model(model).artifact_location
        if _registered(client, name, alias) != place:
            try:
                client.create_registered_model(name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            version = client.create_model_version(name, place, kept.run_id, model_id=model)
            client.set_registered_model_alias(name, alias, version.version)
    except Exception as error:  # whatever a store's driver raises
        said = one_line(error, 200) if kept.models else f"{run.name} has no model there"
        print(f"no model is registered at {named(uri)}: {said}; the same command does it", flush=True)
        return ""
    return f"models:/{name}@{alias}"


def _is_active(client: MlflowClient, known: str) -> bool:
    try:
        return client.get_run(known).info.lifecycle_stage == "active"
    except MlflowException:  # another store
        return False


def _registered(client: MlflowClient, name: str, alias: str) -> str:
    """Where the model lies that has an alias; '' where there is none."""
    try:
        return client.get_model_version_by_alias(name, alias).source or ""
    except MlflowException:
        return ""
