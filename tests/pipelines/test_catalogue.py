"""What MLflow keeps of a run: source, data set with its digest, kept checkpoints as models, and figures linked to both."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mlflow.tracking import MlflowClient
from ray_session import TINY_2D, train

from indm_core.training import network_tensors
from pipelines.config import load
from pipelines.config.history import Command, installed
from pipelines.config.store import read_run
from pipelines.data.cache import ensure
from pipelines.data.card import load_card
from pipelines.runs import catalogue, tracking
from pipelines.runs.job import Job
from pipelines.runs.kept import Kept, run_id
from pipelines.storage import checkpoint


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Job, Path, str]:
    """A tiny run with three checkpoints of which two are kept, logged into a store of its own."""
    root = tmp_path_factory.mktemp("root")
    train("toy2d_spiral", *TINY_2D, out=root)
    directory = root / "toy2d_spiral"
    run, spec = read_run(directory / "config.json")
    job = Job(run=run, spec=spec, directory=directory, data=ensure(run.data.source, root / "data", run.data.options))
    job = replace(job, command=Command.of_this_process())
    tracking.open_run(job, root)
    uri = tracking.tracking_uri(root)
    catalogue.log_models(directory, uri)
    return job, root, uri


def test_a_run_names_its_source_and_its_data(logged):
    job, _, uri = logged
    run = MlflowClient(uri).get_run(run_id(job.directory))
    tags, command = run.data.tags, job.command
    assert (tags["mlflow.source.name"], tags["command"]) == (command.line.split()[0], command.line)
    assert len(tags["mlflow.source.git.commit"]) == 40
    assert tags["mlflow.source.git.dirty"] in ("true", "false")
    assert {tags[f"version.{name}"] for name in ("torch", "ray", "mlflow")} == set(
        installed("torch", "ray", "mlflow").values()
    )
    (used,) = run.inputs.dataset_inputs
    card = load_card(job.data)
    assert (used.dataset.name, used.dataset.digest) == (card.name, catalogue.data_set(card).digest)
    assert json.loads(used.dataset.profile)["train rows"] == card.split("train").count
    assert used.tags[0].value == "training"


def test_the_digest_is_of_the_rows(tmp_path):
    first, second, other = (
        load_card(ensure("toy2d:rings", tmp_path / name, options))
        for name, options in (("a", tiny(0)), ("b", tiny(0)), ("c", tiny(1)))
    )
    assert catalogue.data_set(first).digest == catalogue.data_set(second).digest
    assert catalogue.data_set(first).digest != catalogue.data_set(other).digest


def tiny(seed: int):
    from pipelines.data.source import Options

    return Options(rows=50, seed=seed)


def test_kept_checkpoints_are_models_that_load_reads(logged, tmp_path):
    job, _, uri = logged
    client, kept = MlflowClient(uri), Kept.read(job.directory)
    steps = [int(place.name.removeprefix("step-")) for place in checkpoint.checkpoints(job.directory)]
    assert sorted(kept.models) == steps
    for step, place in zip(steps, checkpoint.checkpoints(job.directory), strict=True):
        model = client.get_logged_model(kept.models[step])
        assert (model.status.value, model.tags["step"], model.source_run_id) == ("READY", str(step), kept.run_id)
        tensors, numbers = checkpoint.read(place)
        (metric,) = [metric for metric in model.metrics if metric.key == "train/nelbo"]
        assert (metric.step, metric.value) == (step, pytest.approx(numbers["nelbo"]))
        folder = Path(model.artifact_location.removeprefix("file://"))
        loaded = network_tensors(load(folder))
        assert all(torch.equal(tensor, tensors[f"ema.{name}"]) for name, tensor in loaded.items())


def test_a_checkpoint_is_logged_once(logged):
    job, _, uri = logged
    before = Kept.read(job.directory)
    catalogue.log_models(job.directory, uri)
    assert Kept.read(job.directory) == before


def test_later_figures_are_linked_to_the_last_model_and_its_data(logged, tmp_path):
    job, _, uri = logged
    card, kept = load_card(job.data), Kept.read(job.directory)
    table = tmp_path / "table.json"
    table.write_text("{}")
    made = catalogue.Made(figures={"test/nll": 1.5}, files=(str(table), str(tmp_path / "absent.png")))
    catalogue.log_figures(job.directory, uri, made, card)
    client = MlflowClient(uri)
    model = client.get_logged_model(kept.models[max(kept.models)])
    (metric,) = [metric for metric in model.metrics if metric.key == "test/nll"]
    assert (metric.value, metric.dataset_digest) == (1.5, catalogue.data_set(card).digest)
    assert [artifact.path for artifact in client.list_artifacts(kept.run_id)] == ["table.json"]


def test_the_page_opens_in_the_mode_of_model_training(logged):
    _, _, uri = logged
    address = catalogue.experiment_address(uri, tracking.EXPERIMENT, "http://127.0.0.1:5000")
    found = MlflowClient(uri).get_experiment_by_name(tracking.EXPERIMENT)
    assert address == f"http://127.0.0.1:5000/#/experiments/{found.experiment_id}?workflowType=machine_learning"
    assert catalogue.experiment_address(uri, "nothing of that name", "http://h") == "http://h"


def test_a_directory_without_a_run_is_left_alone(tmp_path):
    catalogue.log_figures(tmp_path, "sqlite:////nowhere/at/all.db", catalogue.Made(figures={"a": 1.0}))
    assert run_id(tmp_path) == ""
