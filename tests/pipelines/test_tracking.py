"""The tracking store: its address, whether it answers, and that nothing is lost, repeated or waited for where it does not.

The store of these tests lies in a directory whose name has the characters that mean something in an address.
"""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from ray_session import TINY_2D, one_line, train
from sqlalchemy import make_url

from pipelines.config.history import Command, History
from pipelines.config.store import CONFIG, read_run, write_weights
from pipelines.config.weights import Weights
from pipelines.data.cache import ensure
from pipelines.runs import shipping, store, tracking
from pipelines.runs.job import METRICS, Job, read_metrics
from pipelines.runs.kept import Ended, Kept, began, run_id
from pipelines.runs.record import Record
from pipelines.runs.series import streaming
from pipelines.runs.shipping import Feed, Shipper
from pipelines.runs.store import reach, tracking_uri
from pipelines.runs.tracking import Made, close_lost_runs, close_runs, deliver, open_missed, open_run, post
from pipelines.storage.along import Figure, Measured, add_measured
from pipelines.storage.locks import held

DEAD = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def _no_store_from_outside(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output directory with a store and a trained run."""
    root = tmp_path_factory.mktemp("outputs") / "50%20 of a?b#c"
    train("toy2d_spiral", *TINY_2D, out=root)
    return root


@pytest.fixture
def job(root: Path, request: pytest.FixtureRequest) -> Job:
    """A run of this test's own, with the records of the trained one."""
    run, spec = read_run(root / "toy2d_spiral" / "config.json")
    directory = root / request.node.name.partition("[")[0]
    directory.mkdir()
    (directory / METRICS).write_bytes((root / "toy2d_spiral" / METRICS).read_bytes())
    data = ensure(run.data.source, root / "data", run.data.options)
    return Job(run=run, spec=spec, directory=directory, data=data)


def steps_of(root: Path, job: Job) -> list[int]:
    """The steps of the figures that the store has, in the order in which they were logged."""
    history = MlflowClient(tracking_uri(root)).get_metric_history(run_id(job.directory), "train/nelbo")
    return [metric.step for metric in history]


def append(job: Job, *steps: int) -> None:
    with (job.directory / METRICS).open("a") as file:
        file.writelines(Record(step=step, terms={"nelbo": float(step)}).to_json() + "\n" for step in steps)


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """As another program that writes for long."""
    with closing(sqlite3.connect(root / "mlflow.db", isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield


@contextmanager
def hung() -> Iterator[str]:
    """A server that takes calls and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def until(due: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not due():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("sqlite:///rel.db", "{cwd}/rel.db"),
        ("sqlite:///sub/../rel.db", "{cwd}/sub/../rel.db"),
        ("sqlite:////abs/x.db", "/abs/x.db"),
        ("sqlite:///100%25.db", "{cwd}/100%.db"),
        ("sqlite:///~/x.db", "{home}/x.db"),
    ],
)
def test_an_address_is_the_same_in_every_process(given, path, tmp_path, monkeypatch):
    here = tmp_path / "50%20?"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
    uri = store.environment(tmp_path)["MLFLOW_TRACKING_URI"]
    assert make_url(uri).database == path.format(cwd=here, home=Path.home())
    monkeypatch.chdir("/")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert tracking_uri(tmp_path) == uri


def test_the_query_of_an_address_stays_and_a_server_s_is_untouched(tmp_path, monkeypatch):
    for given in ("sqlite:////abs/x.db?timeout=3", "http://head:5000", "databricks"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
        assert tracking_uri(tmp_path) == given


@pytest.mark.parametrize("given", ["sqlite://", "sqlite:///:memory:"])
def test_a_store_in_memory_is_refused(given, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
    with pytest.raises(ValueError, match="a store in memory is lost; give") as caught:
        tracking_uri(tmp_path)
    one_line(str(caught.value), given)


def test_a_password_is_not_printed():
    assert store.named("postgresql://user:secret@host/db") == "postgresql://***@host/db"
    assert store.named("sqlite:////a/b@c.db") == "sqlite:////a/b@c.db"


def test_figures_of_checkpoints_are_a_series_each_logged_once(root, job):
    open_run(job, root)

    def measured(step: int, **figures: float) -> None:
        taken = {name: Figure(value=value, se=0.5) for name, value in figures.items()}
        add_measured(job.directory, Measured(step=step, checkpoint="x", figures=taken))

    def series(name: str) -> list[tuple[int, float]]:
        history = MlflowClient(tracking_uri(root)).get_metric_history(run_id(job.directory), name)
        return [(metric.step, metric.value) for metric in history]

    feed = Feed(job.directory, tracking_uri(root))
    feed.ship(whole=True)
    records = steps_of(root, job)
    measured(2, nll=3.0, fd=9.0)
    assert feed.gained()
    feed.ship(whole=True)
    assert not feed.gained()
    measured(4, fd=8.0)
    for other in (feed, Feed(job.directory, tracking_uri(root))):  # a new command asks the store
        other.ship(whole=True)
    assert series("along/fd") == [(2, 9.0), (4, 8.0)]
    assert series("along/fd_se") == [(2, 0.5), (4, 0.5)]
    assert series("along/nll") == [(2, 3.0)]
    assert steps_of(root, job) == records  # the others are not logged again


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("dead", "Connection refused"),
        ("hung", "no answer within"),
        ("junk", "file is not a database"),
        ("locked", "database is locked"),
        ("unwritable", "unable to open database file"),
        ("directory", "unable to open database file"),
        ("nonsense", "IPv6"),
    ],
)
def test_a_store_that_cannot_be_had_is_refused_before_training_and_soon(name, reason, job, root, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "HTTP_SECONDS", 0.5)
    monkeypatch.setattr(store.reach, "__defaults__", (0.5,))
    (tmp_path / "junk.db").write_bytes(b"junk" * 1000)
    sqlite3.connect(tmp_path / "locked.db").close()
    with hung() as silent, closing(sqlite3.connect(tmp_path / "locked.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        files = {"junk": tmp_path / "junk.db", "locked": tmp_path / "locked.db", "directory": tmp_path}
        files |= {"unwritable": Path("/sys/x.db")}
        uri = {"dead": DEAD, "hung": silent, "nonsense": "http://["}.get(name) or f"sqlite:///{files[name]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        began = time.monotonic()
        with pytest.raises(ValueError, match=reason) as caught:
            open_run(job, root)
    assert time.monotonic() - began < 5
    one_line(str(caught.value), f"MLFLOW_TRACKING_URI={uri}", "mend or unset it")
    job.directory.joinpath(METRICS).unlink()
    job.directory.rmdir()


def test_a_store_of_the_output_directory_that_is_none(tmp_path, job, root):
    (tmp_path / "mlflow.db").write_text("no database" * 100)
    with pytest.raises(ValueError, match="not a database; mend or remove that file") as caught:
        open_run(job, tmp_path)
    one_line(str(caught.value), str(tmp_path / "mlflow.db"))


def test_a_store_that_is_locked_while_a_run_trains_is_said_once_and_gets_everything(job, root, monkeypatch, capsys):
    monkeypatch.setattr(shipping, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(shipping, "LONGEST_PAUSE", 0.2)
    open_run(job, root)
    uri, said = tracking_uri(root), []
    with Shipper([Feed(job.directory, uri)], uri):
        until(lambda: steps_of(root, job) == [1, 2, 3, 4, 5, 6])
        with locked(root):
            append(job, 7, 8)
            until(
                lambda: said.append(capsys.readouterr().out) or "does not answer (database is locked)" in "".join(said)
            )
            append(job, 9)
            time.sleep(1)
        until(lambda: steps_of(root, job) == list(range(1, 10)))
        until(lambda: said.append(capsys.readouterr().out) or "answers again" in "".join(said))
    assert "".join(said).count("does not answer") == 1
    assert len("".join(said).splitlines()) == 2


def test_what_is_logged_once_is_not_logged_again(job, root):
    """A training that goes on from a checkpoint writes its last records anew; another command begins at the file's start."""
    open_run(job, root)
    uri = tracking_uri(root)
    feed = Feed(job.directory, uri)
    feed.ship(whole=False)
    lines = (job.directory / METRICS).read_text().splitlines(keepends=True)
    (job.directory / METRICS).write_text("".join(lines[:4]))
    append(job, 5, 6, 7)
    feed.ship(whole=False)
    append(job, 8)
    Feed(job.directory, uri).ship(whole=True)
    assert steps_of(root, job) == list(range(1, 9))


def test_a_picture_is_logged_when_it_is_whole(job, root):
    open_run(job, root)
    uri = tracking_uri(root)
    (job.directory / "samples").mkdir()
    for step in (4, 6):
        (job.directory / "samples" / f"step-{step:08d}.png").write_bytes(b"picture")
    feed, client = Feed(job.directory, uri), MlflowClient(uri)

    def there() -> list[str]:
        return [Path(file.path).name for file in client.list_artifacts(run_id(job.directory), "samples")]

    feed.ship(whole=False)  # the last record is of step 6: its picture may be half written
    assert there() == ["step-00000004.png"]
    assert feed.gained()
    append(job, 7)
    feed.ship(whole=False)
    assert there() == ["step-00000004.png", "step-00000006.png"]
    assert not feed.gained()


def test_a_hung_store_holds_nobody_up(job, root, monkeypatch, capsys):
    """Neither the training, which writes its file, nor the end of the command."""
    monkeypatch.setattr(shipping, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(shipping, "END_SECONDS", 0.5)
    open_run(job, root)
    with hung() as uri:
        began = time.monotonic()
        with Shipper([Feed(job.directory, uri)], uri) as shipper:
            time.sleep(0.3)
            append(job, 7)
        assert time.monotonic() - began < 2
    shipper.thread.join(30)
    assert capsys.readouterr().out.count("\n") <= 1
    assert steps_of(root, job) == []
    deliver([job.directory], root)
    assert steps_of(root, job) == list(range(1, 8))


def test_an_interrupt_does_not_wait_for_the_store(job, root, monkeypatch):
    monkeypatch.setattr(shipping, "POLL_SECONDS", 0.05)
    open_run(job, root)
    began = time.monotonic()
    with hung() as uri:
        shipper = Shipper([Feed(job.directory, uri)], uri).__enter__()
        time.sleep(0.3)
        shipper.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
        assert time.monotonic() - began < 2
    shipper.thread.join(30)


def test_what_a_command_made_waits_for_the_store(job, root, monkeypatch, capsys):
    open_run(job, root)
    curve = job.directory / "learning_curve.png"
    curve.write_bytes(b"picture")
    made = Made(figures={"test/nll": 1.5}, files=(str(curve), str(root / "absent")), data=str(job.data))
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", DEAD)
        for _ in range(2):  # the same command again makes the same
            post(Weights(run=job.directory), made)
            deliver([job.directory], root)
    said = capsys.readouterr().out
    assert said.count(f"not logged to MLflow at {DEAD}: ") == 2
    assert Kept.read(job.directory).waiting == (made,)
    deliver([job.directory], root)
    assert Kept.read(job.directory).waiting == ()
    client = MlflowClient(tracking_uri(root))
    run = client.get_run(run_id(job.directory))
    assert run.data.metrics["test/nll"] == 1.5
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["learning_curve.png"]
    assert steps_of(root, job) == [1, 2, 3, 4, 5, 6]


def status_of(root: Path, job: Job) -> str:
    return MlflowClient(tracking_uri(root)).get_run(run_id(job.directory)).info.status


def tags_of(root: Path, job: Job) -> dict[str, str]:
    return MlflowClient(tracking_uri(root)).get_run(run_id(job.directory)).data.tags


def begin(job: Job, seconds: int = 0) -> None:
    """As a worker does, some seconds ago."""
    job.write_config()
    then = time.time() - seconds
    os.utime(job.directory / CONFIG, (then, then))


def test_a_training_that_ends_before_its_last_step_has_failed_or_was_killed(job, root):
    open_run(job, root)
    begin(job)
    close_runs([job.directory], root, "FAILED", "it has diverged at step 6")
    assert (status_of(root, job), tags_of(root, job)["reason"]) == ("FAILED", "it has diverged at step 6")
    assert steps_of(root, job) == [1, 2, 3, 4, 5, 6]
    close_runs([job.directory], root, "KILLED", "interrupted")  # a command in which it did not begin
    assert (status_of(root, job), tags_of(root, job)["reason"]) == ("FAILED", "it has diverged at step 6")
    open_run(job, root)  # it goes on
    assert status_of(root, job) == "RUNNING"
    assert "reason" not in tags_of(root, job)
    close_runs([job.directory], root, "KILLED", "terminated")
    assert (status_of(root, job), tags_of(root, job)["reason"]) == ("KILLED", "terminated")


def test_a_run_is_finished_when_its_last_weights_are_written(job, root):
    open_run(job, root)
    begin(job, seconds=60)
    write_weights(job.directory, {}, 6, {})
    then = time.time() - 30
    os.utime(job.directory / "model.json", (then, then))
    close_runs([job.directory], root, "FAILED", "of the training after it")
    info = MlflowClient(tracking_uri(root)).get_run(run_id(job.directory)).info
    assert (info.status, info.end_time) == ("FINISHED", int(then * 1000))
    assert "reason" not in tags_of(root, job)
    begin(job)  # more steps: the weights are older than that
    open_run(job, root)
    deliver([job.directory], root)
    assert status_of(root, job) == "RUNNING"


def test_the_end_of_a_training_waits_for_the_store(job, root, monkeypatch):
    open_run(job, root)
    begin(job)
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", DEAD)
        close_runs([job.directory], root, "FAILED", "why")
    assert status_of(root, job) == "RUNNING"
    deliver([job.directory], root)
    assert (status_of(root, job), tags_of(root, job)["reason"]) == ("FAILED", "why")
    assert Kept.read(job.directory).ended is None


def test_a_command_that_could_not_tell_its_end_is_found(job, root):
    """By the page; not while a process trains."""
    open_run(job, root)
    begin(job)
    with held(job.directory / ".lock"):
        close_lost_runs(root)
        assert status_of(root, job) == "RUNNING"
    close_lost_runs(root)
    assert (status_of(root, job), tags_of(root, job)["reason"]) == ("KILLED", tracking.LOST)


def test_a_second_run_is_opened_when_its_training_begins(job, root, monkeypatch):
    monkeypatch.setattr(shipping, "POLL_SECONDS", 0.05)
    uri, opens = tracking_uri(root), partial(open_run, job, root)
    with Shipper([Feed(job.directory, uri, opens)], uri):
        time.sleep(0.5)
        assert run_id(job.directory) == ""
        begin(job, seconds=20)
        until(lambda: run_id(job.directory) and steps_of(root, job) == [1, 2, 3, 4, 5, 6])
    assert MlflowClient(uri).get_run(run_id(job.directory)).info.start_time == began(job.directory)


def test_a_training_that_began_and_ended_without_the_store_is_logged_later(job, root, monkeypatch, capsys):
    job = replace(job, command=Command(line="train.py it", commit="a" * 40, changed=True))
    begin(job, seconds=20)
    write_weights(job.directory, {}, 6, {})
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", DEAD)
        open_missed([job], root)
        one_line(capsys.readouterr().out, job.directory.name, "is not in MLflow", "the same command puts it there")
    again = replace(job, command=Command(line="train.py again"))
    open_missed([again], root)
    deliver([job.directory], root)
    assert status_of(root, job) == "FINISHED"
    tags = tags_of(root, job)
    assert (tags["command"], tags["mlflow.source.git.commit"], tags["mlflow.source.git.dirty"]) == (
        "train.py it",
        "a" * 40,
        "true",
    )
    assert len(History.read(job.directory / CONFIG).commands) == 1


def test_a_run_that_an_earlier_version_logged_goes_on(job, root):
    """Its figures had no prefix."""
    client, own = MlflowClient(tracking_uri(root)), open_run(job, root)
    for step in (1, 2, 3):
        client.log_metric(own, "nelbo", 1.0, step=step)
        client.log_metric(own, "images_per_s", 1.0, step=step)
    deliver([job.directory], root)
    assert steps_of(root, job) == [4, 5, 6]


def test_what_is_made_of_a_run_elsewhere_goes_to_the_store_beside_it(job, root, tmp_path, capsys):
    open_run(job, root)
    post(Weights(run=job.directory), Made(figures={"test/nll": 1.5}))
    deliver([job.directory], tmp_path)
    assert MlflowClient(tracking_uri(root)).get_run(run_id(job.directory)).data.metrics["test/nll"] == 1.5
    assert (list(tmp_path.iterdir()), capsys.readouterr().out) == ([], "")


def test_a_run_without_an_mlflow_run_is_left_alone(tmp_path):
    post(Weights(run=tmp_path), Made(figures={"a": 1.0}))
    deliver([tmp_path], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_was_deleted_in_the_browser_is_begun_anew(job, root):
    client = MlflowClient(tracking_uri(root))
    first = open_run(job, root)
    Feed(job.directory, tracking_uri(root)).ship(whole=True)
    client.delete_run(first)
    second = open_run(job, root)
    assert second != first
    assert client.get_run(second).info.lifecycle_stage == "active"
    deliver([job.directory], root)
    assert steps_of(root, job) == [1, 2, 3, 4, 5, 6]
    assert open_run(job, root) == second


def test_an_experiment_that_was_deleted_in_the_browser_comes_back(job, root):
    client = MlflowClient(tracking_uri(root))
    open_run(job, root)
    client.delete_experiment(client.get_experiment_by_name(tracking.EXPERIMENT).experiment_id)
    (job.directory / "mlflow.json").unlink()
    run = client.get_run(open_run(job, root))
    assert client.get_experiment(run.info.experiment_id).lifecycle_stage == "active"
    assert run.info.lifecycle_stage == "active"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "3",
        "[]",
        "null",
        '{"run_id": 3, "models": []}',
        '{"run_id": "a", "waiting": [3]}',
        '{"run_id": "a", "models": {"x": 1}}',
    ],
)
def test_a_file_of_another_shape_remembers_nothing(text, tmp_path):
    (tmp_path / "mlflow.json").write_text(text)
    assert Kept.read(tmp_path) == Kept()


def test_a_file_of_earlier_versions_is_read(tmp_path):
    (tmp_path / "mlflow.json").write_text('{"run_id": "a", "models": {"4": "m"}}\n')
    kept = Kept.read(tmp_path)
    assert kept == Kept(run_id="a", models={4: "m"})
    made = Made(figures={"x": 0.1}, files=("f",), data="d")
    replace(kept, waiting=(made,), ended=Ended(status="FAILED", time=5, reason="why")).write(tmp_path)
    document = json.loads((tmp_path / "mlflow.json").read_text())
    document["waiting"][0]["finished"] = True  # as it was
    (tmp_path / "mlflow.json").write_text(json.dumps(document))
    assert Kept.read(tmp_path) == replace(kept, waiting=(made,), ended=Ended(status="FAILED", time=5, reason="why"))


def test_the_store_lies_in_the_output_directory(root):
    assert (root / "mlflow.db").is_file()
    assert sorted(path.name for path in root.parent.iterdir()) == [root.name]
    reach(tracking_uri(root))


def test_every_figure_of_a_record_is_logged(job, root):
    open_run(job, root)
    deliver([job.directory], root)
    last = read_metrics(job.directory)[-1]
    assert MlflowClient(tracking_uri(root)).get_run(run_id(job.directory)).data.metrics == pytest.approx(last.metrics())


# Series of a command's running figures.


def test_running_figures_are_a_series_against_what_was_done(root, job):
    open_run(job, root)
    weights, checkpoint = Weights(run=job.directory), Weights(run=job.directory, step=4, raw=True)
    with streaming([weights, checkpoint], root) as (series, other):
        for count in (10, 20, 30):
            series.add({"nll": 3.0 + 1 / count, "nll_se": float("nan")}, count)
        other.add({"nll": 1.0}, 10)
    client, known = MlflowClient(tracking_uri(root)), run_id(job.directory)
    history = client.get_metric_history(known, "test/running/nll")
    assert [(metric.step, metric.value) for metric in history] == [(n, 3.0 + 1 / n) for n in (10, 20, 30)]
    assert client.get_metric_history(known, "test/running/nll_se") == []
    assert len(client.get_metric_history(known, "test/raw/running/step-4/nll")) == 1


def test_a_store_that_is_away_costs_a_measurement_nothing(root, job, capsys, monkeypatch):
    open_run(job, root)
    monkeypatch.setattr(shipping, "POLL_SECONDS", 0.02)
    with streaming([Weights(run=job.directory)], root) as (series,):
        with locked(root):
            began = time.monotonic()
            for count in range(100):
                series.add({"nll": 1.0}, count)
            assert time.monotonic() - began < 1
            until(lambda: "does not answer" in capsys.readouterr().out)
        until(lambda: not series.gained())
    history = MlflowClient(tracking_uri(root)).get_metric_history(run_id(job.directory), "test/running/nll")
    assert [metric.step for metric in history] == list(range(100))
    with streaming([Weights(run=root / "nowhere")], root) as found:
        assert found == [None]
