"""Ctrl-C and SIGTERM: one line, the right status, and a training that goes on to the bit from the step that it was in."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
import weakref
from contextlib import nullcontext, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ray_session import ROOT, TINY_2D, command, environment, later_wins, main_of, one_line, processes, train
from safetensors.torch import load_file

from pipelines.config.terminal.command import run_command
from pipelines.runs.job import read_metrics
from pipelines.storage import checkpoint, signals
from pipelines.storage.signals import Stop, until_signal
from pipelines.training.session import Session
from pipelines.training.watch.halt import Halt

NUMBERS = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
WORDS = {signal.SIGINT: "interrupted: ", signal.SIGTERM: "terminated: "}
STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}


@pytest.fixture(autouse=True)
def heard():
    """Ctrl-C is heard here, also where the tests are a shell's background job, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def send(*numbers: int) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)


def wait(stop: Stop) -> int:
    """Work that ends one step after a signal has come."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if stop.requested:
            return 0
        time.sleep(0.001)
    return 1


@NUMBERS
def test_a_signal_ends_the_work_and_is_told(number, capsys):
    before, closed = signal.getsignal(number), []

    def work(stop: Stop) -> int:
        try:
            send(number)
            return wait(stop)
        finally:
            closed.append(stop)

    assert until_signal(work, "nothing is lost; go on") == STATUS[number]
    assert closed
    assert capsys.readouterr().err == f"{WORDS[number]}nothing is lost; go on\n"
    assert signal.getsignal(number) is before


@NUMBERS
def test_work_at_a_boundary_comes_to_its_end_first(number, capsys):
    done = []

    def work(stop: Stop) -> int:
        with stop.at_boundary():
            send(number)
            done.append(wait(stop))
            stop.remark = lambda: f"step {len(done)} is saved"
        return 0

    assert until_signal(work, "") == STATUS[number]
    assert done == [0]
    assert capsys.readouterr().err == f"{WORDS[number]}step 1 is saved\n"


def test_a_second_signal_does_not_wait_for_the_boundary(capsys):
    def work(stop: Stop) -> int:
        with stop.at_boundary():
            send(signal.SIGINT, signal.SIGINT)
            time.sleep(30)
        return 0

    began = time.monotonic()
    assert until_signal(work, "kept") == 130
    assert time.monotonic() - began < 10
    one_line(capsys.readouterr().err, "interrupted: kept")


def test_sigterm_waits_for_a_boundary_no_longer_than_its_grace(monkeypatch, capsys):
    monkeypatch.setattr(signals, "GRACE_SECONDS", 0.2)

    def work(stop: Stop) -> int:
        with stop.at_boundary():
            send(signal.SIGTERM)
            time.sleep(30)
        return 0

    began = time.monotonic()
    assert until_signal(work, "kept") == 143
    assert 0.2 <= time.monotonic() - began < 10
    one_line(capsys.readouterr().err, "terminated: kept")


def test_what_fails_because_of_the_signal_is_not_told_beside_it(capsys):
    def work(stop: Stop) -> int:
        with suppress(KeyboardInterrupt):
            send(signal.SIGTERM)
            wait(stop)
        raise ValueError("a process of mine has died")

    assert until_signal(work, "kept") == 143
    one_line(capsys.readouterr().err, "terminated: kept")


@NUMBERS
def test_a_signal_in_a_callback_that_lets_nothing_out_ends_the_work_too(number, capsys):
    ended = []

    def work(stop: Stop) -> int:
        thing = threading.Event()
        watched = weakref.ref(thing, lambda _: signal.raise_signal(number))
        del thing  # the callback runs here, and Python drops what it raises
        time.sleep(5)
        ended.append(watched)
        return 0

    assert until_signal(work, "all is well") == STATUS[number]
    assert not ended
    one_line(capsys.readouterr().err, "all is well")


def test_an_error_without_a_signal_stays_one():
    with pytest.raises(ValueError, match="mine"):
        until_signal(lambda stop: int("mine"), "kept")


def test_an_ignored_signal_stays_ignored(monkeypatch):
    """As a shell's background jobs have Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:

        def work(stop: Stop) -> int:
            send(signal.SIGINT)
            return 7

        assert until_signal(work, "") == 7
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_closing_that_hangs_is_not_waited_for():
    program = """if True:
        import os, signal, time
        from pipelines.storage import signals
        signals.UNWIND_SECONDS = 0.2
        def work(stop):
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(30)
            finally:
                time.sleep(30)
        signals.until_signal(work, "kept")
    """
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(), capture_output=True, text=True, timeout=25
    )
    assert (done.returncode, done.stderr) == (143, "terminated: kept\n")


COMMANDS = sorted(path.stem for path in (ROOT / "pipelines").glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize("script", COMMANDS)
def test_every_command_takes_signals_from_its_first_line_on(script):
    """Before its packages are imported: the first import after the folder's is that of the handlers."""
    program = f"""if True:
        import os, runpy, signal, sys
        class Found(Exception): pass
        class Finder:
            def find_spec(self, name, *rest):
                if name.startswith("pipelines.") and not name.startswith("pipelines.storage"):
                    os.kill(os.getpid(), signal.SIGTERM)
        sys.meta_path.insert(0, Finder())
        sys.argv = ["{script}"]
        sys.path.insert(0, "")
        runpy.run_path({str(ROOT / "pipelines" / f"{script}.py")!r}, run_name="__main__")
    """
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(), capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (143, "terminated: nothing was begun; give the same command again\n")


LONG = later_wins(["toy2d_spiral", *TINY_2D, "--steps", "160", "--pretrain-steps", "40", "--log-every", "10"])
LONG = later_wins([*LONG, "--checkpoint-every", "100000"])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    train(*LONG, out=out)
    return out / "toy2d_spiral"


def stopped(number: signal.Signals, out: Path, step: int, *words: str, program: str = "train") -> str:
    """A training that was sent a signal after a step; what it said on stderr."""
    run = out / "toy2d_spiral"
    with subprocess.Popen(
        command(program, *LONG, *words, "--threads", "1", "--out", str(out)),
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which a shell's background jobs ignore
    ) as process:
        try:
            deadline = time.monotonic() + 240
            while process.poll() is None and time.monotonic() < deadline:
                records = read_metrics(run)
                if records and records[-1].step >= step:
                    break
                time.sleep(0.002)
            workers = processes("ray::", process.pid)
            process.send_signal(number)
            _, shown = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == STATUS[number]
    assert not [worker for worker in workers if os.path.exists(f"/proc/{worker}")]
    return shown


def same_weights(run: Path, other: Path) -> bool:
    mine, theirs = (load_file(place / "model.safetensors") for place in (run, other))
    return mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


@pytest.mark.parametrize(("number", "step"), [(signal.SIGINT, 10), (signal.SIGTERM, 60)], ids=["pre-training", "joint"])
def test_a_stopped_training_goes_on_to_the_same_end(number, step, undisturbed, tmp_path):
    shown = stopped(number, tmp_path, step, "--local")
    run = tmp_path / "toy2d_spiral"
    newest = checkpoint.checkpoints(run)[-1]
    reached = int(newest.name.removeprefix("step-"))
    assert step <= reached < 160
    one_line(shown, WORDS[number], f"toy2d_spiral is saved at step {reached:,}; the same command goes on from there")
    assert read_metrics(run)[-1].step == reached
    assert not (run / "model.safetensors").exists()
    train(*LONG, out=tmp_path)
    assert same_weights(run, undisturbed)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(("number", "workers"), [(signal.SIGINT, 1), (signal.SIGTERM, 1)])
def test_a_training_stopped_under_ray_goes_on_to_the_same_end(number, workers, undisturbed, tmp_path):
    shown = stopped(number, tmp_path, 20, "--evaluate", "false")
    one_line(shown, WORDS[number], "toy2d_spiral is saved at step ", "the same command goes on from there")
    train(*LONG, out=tmp_path)
    assert same_weights(tmp_path / "toy2d_spiral", undisturbed)


def test_ranks_end_at_the_same_step_and_ask_seldom():
    """Three ranks at the same steps, of which rank 0 alone knows that a signal has come after step 500."""
    world, sums = 3, [0]
    meet = threading.Barrier(world)
    vectors: dict[int, torch.Tensor] = {}
    ended: dict[int, int] = {}

    def average(rank: int, vector: torch.Tensor) -> torch.Tensor:
        vectors[rank] = vector
        meet.wait()
        mean = torch.stack([vectors[i] for i in range(world)]).mean(dim=0)
        meet.wait()
        sums[0] += rank == 0
        return mean

    training: Any = "training"

    def run(rank: int) -> None:
        step = [0]
        session = Session(
            rank=rank,
            world=world,
            device=torch.device("cpu"),
            average=lambda vector: average(rank, vector),
            agree=lambda value: value,
            stopping=lambda training, at: step[0] > 500,
            wrap=lambda model: model,
            begins=lambda training, model: None,
            publish=lambda training, record: None,
            checkpointed=lambda training, place, record: None,
        )
        halt = Halt(session, training)
        while step[0] < 100_000 and not halt.due(step[0]):
            step[0] += 1
            time.sleep(0.0005)
        ended[rank] = step[0]

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(set(ended.values())) == 1
    assert 500 < ended[0] < 5_000
    assert sums[0] < 60


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("first_begins", [True, False])
def test_workers_begin_where_the_first_one_does(first_begins, monkeypatch):
    """The second one comes when a signal has come: where the first one has begun, it needs the second to come to a step."""
    from pipelines.training.on_ray import worker
    from pipelines.training.on_ray.notices import Notices

    notices, begun = Notices(), []
    notices.ask_to_stop()
    handle = SimpleNamespace(
        all=SimpleNamespace(remote=notices.all),
        begin=SimpleNamespace(remote=notices.begin),
        join=SimpleNamespace(remote=notices.join),
    )
    here = SimpleNamespace(current_actor=None, get_node_id=lambda: "")
    monkeypatch.setattr(worker.ray, "get_runtime_context", lambda: here)
    context = SimpleNamespace(get_world_rank=lambda: 1, get_world_size=lambda: 2, get_local_world_size=lambda: 2)
    monkeypatch.setattr(worker.ray, "get", lambda value: value)
    monkeypatch.setattr(worker.ray.train, "get_context", lambda: context)
    monkeypatch.setattr(worker.ray.train.torch, "get_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(worker, "broadcast_from_rank_zero", lambda value: (not first_begins, 0))
    monkeypatch.setattr(worker, "Machine", lambda uri: nullcontext())
    monkeypatch.setattr(worker, "WorkerLog", lambda directory, rank, world, orderly: nullcontext())
    monkeypatch.setattr(worker, "run", lambda work, session: begun.append(work))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    job: Any = SimpleNamespace(directory=Path())
    assignment = worker.Assignment(
        jobs=(job,), work=lambda job, session: job, threads=torch.get_num_threads(), notices=handle
    )
    worker.train_worker({"assignment": assignment})
    assert begun == ([job] if first_begins else [])


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@NUMBERS
def test_the_page_ends_with_its_server(number, tmp_path):
    (tmp_path / "mlflow.db").touch()
    mark = f"PAGE_OF_TEST={tmp_path}"
    with subprocess.Popen(
        command("ui", "--out", str(tmp_path), "--port", "5963"),
        env=environment(PAGE_OF_TEST=str(tmp_path)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        try:
            assert process.stdout is not None
            assert "starting MLflow on sqlite:///" in process.stdout.readline()
            assert "experiments at http://127.0.0.1:5963" in process.stdout.readline()  # it answers by now
            with urllib.request.urlopen("http://127.0.0.1:5963/", timeout=60) as page:
                assert b"MLflow" in page.read()
            process.send_signal(number)
            _, shown = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == STATUS[number]
    assert shown.splitlines()[-1].startswith(f"{WORDS[number]}the page is closed")
    assert not list(with_variable(mark))


def with_variable(mark: str):
    """The processes that have a variable in their environment."""
    for place in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if mark.encode() in place.read_bytes().split(b"\0"):
                yield place.parent.name


def test_a_preparation_that_is_stopped_is_none_and_begins_again(tmp_path, monkeypatch, capsys):
    import numpy as np

    from pipelines.data import ingest

    def stop_there(*arguments: object) -> None:
        send(signal.SIGTERM)
        time.sleep(30)

    np.save(tmp_path / "x.npy", np.zeros((40, 8, 8, 1), np.uint8))
    monkeypatch.setattr(ingest, "write_card", stop_there)
    words = [str(tmp_path / "x.npy"), "--out", str(tmp_path / "out")]
    assert main_of("prepare")(words) == 143
    one_line(capsys.readouterr().err, "terminated: the data set is not prepared")
    assert not (tmp_path / "out" / "card.json").exists()
    assert not list(tmp_path.rglob("*.partial"))
    monkeypatch.undo()
    assert main_of("prepare")(words) == 0


def test_a_reader_that_goes_ends_a_command_quietly(monkeypatch, capsys):
    """As `| head -1` does."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert run_command(["--help"], lambda *_: "a line\n" * 100_000, lambda *_: 0, "nothing is lost") == 141
        print("nowhere", flush=True)
    assert capsys.readouterr().err == ""
