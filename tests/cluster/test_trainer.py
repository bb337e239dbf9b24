"""The group of workers as other drivers take it: made without being started, told of by callbacks, refusing as it should."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ray_session import TINY, TINY_2D, later_wins

from pipelines.config.terminal.cli import override, split_arguments
from pipelines.recipes import RECIPES
from pipelines.runs.job import finished, read_metrics
from pipelines.training.jobs import jobs_for
from pipelines.training.launch import Launch
from pipelines.training.stream import local_rows

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module")
def session():
    import ray

    from pipelines.cluster.session import connect

    kept = dict(os.environ)
    for name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
        os.environ.pop(name, None)
    connect(1, 1.0)
    yield
    ray.shutdown()
    os.environ.clear()
    os.environ |= kept


@pytest.fixture(scope="module")
def root(session, tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


def job_of(root: Path, name: str, *words: str):
    from pipelines.runs.tracking import open_run

    _, given = split_arguments(later_wins(["toy2d_spiral", *TINY_2D, *words])[1:])
    (job,) = jobs_for(override(RECIPES["toy2d_spiral"](), given), Launch(name=name), root)
    job.directory.mkdir()
    open_run(job, root)
    return job


def test_labels_come_with_their_images_as_without_ray(root):
    """In the same order, from any row on, for every rank of a group."""
    from pipelines.training.on_ray.stream import ray_rows

    words = ["digits_conditional", *TINY]
    _, given = split_arguments(later_wins(words)[1:])
    (job,) = jobs_for(override(RECIPES["digits_conditional"](), given), Launch(name="labels"), root)
    first = 2 * job.run.train.batch_size
    here = list(local_rows(job, first))
    there = [list(ray_rows(job, first, rank, 2)) for rank in (0, 1)]
    assert len(here) == len(there[0]) == 4
    for alone, parts in zip(here, zip(*there, strict=True), strict=True):
        order = np.argsort(np.concatenate([part["row"] for part in parts]))
        for column in ("x", "label", "row"):
            together = np.concatenate([part[column] for part in parts])[order]
            np.testing.assert_array_equal(together, alone[column][np.argsort(alone["row"])])
    (whole,) = {len(set(part["label"])) > 1 for part in here}
    assert whole


def test_a_group_is_made_without_being_started_and_is_told_of(root):
    """As a parameter search takes it: callbacks and the name come from outside, and reports carry the figures."""
    import ray
    from ray.train import UserCallback

    from pipelines.training.on_ray.group import build_trainer, fit

    heard, job = root / "heard.jsonl", job_of(root, "listened")

    class Listener(UserCallback):
        """Lives in the process of Ray Train's controller."""

        def after_report(self, run_context, metrics, checkpoint) -> None:
            with heard.open("a") as file:
                file.write(json.dumps(metrics[0]) + "\n")

    trainer = build_trainer([job], Launch(threads=1), root, callbacks=[Listener()], name="trial-1")
    assert not job.directory.joinpath("metrics.jsonl").exists()
    assert trainer.run_config.name == "trial-1"
    told = ray.get(trainer.train_loop_config["assignment"])
    assert (told.jobs, told.threads) == ((job,), 1)
    assert fit(trainer).refusal is None
    assert finished(job.training)
    records = {record.step: record for record in read_metrics(job.directory)}
    reports = [json.loads(text) for text in heard.read_text().splitlines()]
    assert [report["step"] for report in reports] == [2, 3, 4, 6]
    for report in reports:
        assert report["run"] == "listened"
        assert report["nelbo"] == records[report["step"]].terms["nelbo"]


def test_what_a_worker_refuses_comes_back_with_its_trace(root):
    from pipelines.training.on_ray.group import build_trainer, fit

    job = job_of(root, "refused")
    other = replace(job, start_from=root / "nowhere")
    outcome = fit(build_trainer([other], Launch(threads=1), root))
    assert outcome.refusal is not None
    assert "nowhere: no complete checkpoint" in outcome.refusal.reason
    assert "\n" not in outcome.refusal.reason
    assert "Traceback (most recent call last)" in outcome.refusal.trace
    assert not finished(job.training)
