"""What faults cost: they are injected at random moments into the project's own commands, which have to go on by themselves.

    python benchmarks/faults.py worker --times 10     one kind; those of clusters are in fault_clusters.py
    python benchmarks/faults.py all --times 3         all kinds of one machine

    worker    SIGKILL of a worker of Ray Train
    driver    SIGKILL of the command, which is given again
    hang      SIGSTOP of a worker, which is never continued
    write     SIGKILL of a worker while it writes a checkpoint
    damage    SIGKILL of the command, a bit of the newest checkpoint turned round, and the command given again
    disk      the disk of the output directory is full (a memory file system; needs root); then there is room, and the command
              is given again
    mlflow    MLflow's server is killed, and started again a minute later
    actor     SIGKILL of an actor of evaluate.py
    trial     SIGKILL of a trial's process of a sweep, which is given again

Printed of each: faults injected and recovered from, steps taken again (the most of a fault, of the interval of checkpoints),
the seconds from the fault to the first step beyond the last one before it, and whether the result is that of an undisturbed
run: of a training with one worker the SHA-256 of its weights, of an evaluation its figures.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.fault_table import PART, Asked, Row, run
from benchmarks.injection import (
    Case,
    Cost,
    Moment,
    Running,
    digest,
    end,
    moments,
    processes,
    send,
    through,
    undisturbed,
)
from pipelines.evaluation.results.document import Evaluation
from pipelines.storage import checkpoint

ROOT = Path(__file__).resolve().parents[1]
STALL_SECONDS = 10
AWAY_SECONDS = 60.0
FULL_BYTES = 64 << 20
WRITE_SECONDS = 0.004


def trained(kind: str, asked: Asked, case: Case, inject: Callable[[Running, Moment], float], says: str = "") -> Row:
    """A training through faults, compared with one without.

    Args:
        says: What the command must have printed at each fault.
    """
    costs, said = through(case, asked.moments(case), inject)
    if says and said.count(says) < len(costs):
        raise RuntimeError(f"{kind}: {says!r} was not said at each fault: {case.out / 'log.txt'}")
    same = digest(case.run) == undisturbed(case)
    equal = f"SHA-256 {digest(case.run)[:12]} {'is' if same else 'IS NOT'} that of the undisturbed run"
    return Row(kind=kind, injected=asked.times, costs=costs, interval=case.every, equal=equal)


def of_worker(running: Running, moment: Moment, number: int = signal.SIGKILL) -> float:
    """Sends a signal to one of the workers."""
    running.wait_for(lambda: bool(running.workers()), "a worker")
    found = running.workers()
    return send(number, found[int(moment.draw * len(found))])


def worker(asked: Asked) -> Row:
    return trained("worker", asked, asked.case("worker", "--max-failures", str(asked.times)), of_worker)


def driver(asked: Asked) -> Row:
    return trained("driver", asked, asked.case("driver"), lambda running, moment: end(running, again=True))


def hang(asked: Asked) -> Row:
    words = ("--max-failures", str(asked.times), "--stall-seconds", str(STALL_SECONDS))
    stop = lambda running, moment: of_worker(running, moment, signal.SIGSTOP)  # noqa: E731
    return trained("hang", asked, asked.case("hang", *words), stop, says="no step for")


def write(asked: Asked) -> Row:
    """The worker is ended when the directory is there that a checkpoint is built in, and up to `WRITE_SECONDS` later; how often
    that was before the checkpoint was whole is printed."""
    cut: list[bool] = []

    def inject(running: Running, moment: Moment) -> float:
        place, workers = running.case.run / "checkpoints", running.workers()
        deadline = time.monotonic() + 120
        while not any(place.glob(".*.partial")) and time.monotonic() < deadline:
            time.sleep(0.0002)
        time.sleep(WRITE_SECONDS * moment.draw)
        fault = send(signal.SIGKILL, *workers)
        cut.append(any(place.glob(".*.partial")))
        assert checkpoint.latest(running.case.run), "no checkpoint is whole"
        return fault

    row = trained("write", asked, asked.case("write", "--max-failures", str(asked.times)), inject)
    return replace(row, equal=f"{row.equal}; {sum(cut)} of {len(cut)} before it was whole")


def damage(asked: Asked) -> Row:
    def inject(running: Running, moment: Moment) -> float:
        fault = end(running, again=False)
        *_, newest = checkpoint.checkpoints(running.case.run)
        with (newest / checkpoint.TENSORS).open("r+b") as file:
            file.seek(int(moment.draw * (newest / checkpoint.TENSORS).stat().st_size))
            byte = file.read(1)[0]
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 1]))
        return fault

    case = asked.case("damage")
    row = trained("damage", asked, case, inject, says="damaged, going on from an earlier checkpoint")
    return replace(row, interval=2 * case.every)


def disk(asked: Asked) -> Row:
    """A disk of 64 MiB is filled to its last byte until the command has ended."""
    case = asked.case("disk", "--max-failures", "0")
    case.out.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={FULL_BYTES}", "none", str(case.out)], check=True)

    def inject(running: Running, moment: Moment) -> float:
        filler, fault = case.out / "filler", time.monotonic()
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        try:
            running.process.wait(timeout=300)
        finally:
            filler.unlink()
        return fault

    try:
        return trained("disk", asked, case, inject)
    finally:
        subprocess.run(["umount", "--lazy", str(case.out)], check=True)


class Server:
    """MLflow's server, in a session of its own."""

    def __init__(self, place: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = str(free.getsockname()[1])
        self.place, self.uri = place, f"http://127.0.0.1:{self.port}"
        place.mkdir(parents=True, exist_ok=True)

    def start(self) -> None:
        """Starts it."""
        words = ["server", "--host", "127.0.0.1", "--port", self.port, "--workers", "1"]
        words += [
            "--backend-store-uri",
            f"sqlite:///{self.place}/mlflow.db",
            "--artifacts-destination",
            str(self.place),
        ]
        quiet = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self.place / "server.txt").open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", *words], stdout=log, stderr=log, start_new_session=True, env=quiet
            )

    def kill(self) -> None:
        """Ends it at once, with its own processes."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def mlflow(asked: Asked) -> Row:
    """Every step's figures have to be in the store at the end."""
    from mlflow.tracking import MlflowClient

    from pipelines.runs.kept import run_id

    server = Server(asked.out / "mlflow-server")
    server.start()
    time.sleep(20)
    case = asked.case("mlflow")
    case = replace(case, steps=20 * case.steps, variables={"MLFLOW_TRACKING_URI": server.uri})

    def inject(running: Running, moment: Moment) -> float:
        for before in waited:  # it is back from the time before
            before.join()
        server.kill()
        back = threading.Timer(AWAY_SECONDS, server.start)
        back.start()
        waited.append(back)
        return time.monotonic()

    waited = list[threading.Timer]()
    try:
        row = trained("mlflow", asked, case, inject)
        for back in waited:
            back.join()
        history = MlflowClient(server.uri).get_metric_history(run_id(case.run), "train/nelbo")
        there = {metric.step for metric in history}
        shipped = f"{len(there)} of {case.steps} steps in MLflow"
        return replace(row, equal=f"{row.equal}; {shipped}")
    finally:
        server.kill()


def actor(asked: Asked) -> Row:
    """An evaluation of the undisturbed training, without and with actors that are ended when they are at work."""
    case = Case(out=asked.out / "actor", steps=PART)
    undisturbed(case)
    trained_run = case.out.parent / f"undisturbed-{case.steps}" / "digits_vp_nll"
    documents, costs = list[str](), list[Cost]()
    for times in (0, asked.times):
        run = case.out / f"with-{times}" / trained_run.name
        shutil.rmtree(run, ignore_errors=True)  # of an earlier command
        shutil.copytree(trained_run, run)
        words = [sys.executable, str(ROOT / "pipelines" / "evaluate.py"), str(run), "--actors", "1", "--images", "64"]
        words += ["--nll-replicates", "2", "--nelbo-replicates", "2", "--samples", "200"]
        began = time.monotonic()
        own = {"RAY_ADDRESS": "local", "INDM_RUNS": str(run.parent)}
        process = subprocess.Popen(words, env=os.environ | own, stdout=subprocess.DEVNULL)
        for moment in moments(times, 1, asked.seed):
            while process.poll() is None and not processes("ray::Evaluator.", process.pid):
                time.sleep(0.1)
            time.sleep(2 * moment.later)
            killed = send(signal.SIGKILL, *processes("ray::Evaluator.", process.pid))
            while process.poll() is None and not processes("ray::Evaluator.", process.pid):
                time.sleep(0.1)
            costs.append(Cost(step=0, lost=0, seconds=time.monotonic() - killed))
        if process.wait():
            raise RuntimeError(f"evaluate.py: status {process.returncode}")
        documents.append(repr(Evaluation.read(run / "evaluation.json").runs))
        print(f"  evaluation with {times} faults: {time.monotonic() - began:.0f} s", flush=True)
    same = documents[0] == documents[1]
    equal = f"figures {'are' if same else 'ARE NOT'} those of the undisturbed evaluation"
    return Row(kind="actor", injected=asked.times, costs=costs, interval=0, equal=equal)


def trial(asked: Asked) -> Row:
    """A sweep whose trial is ended; the same command goes on until all trials are done."""
    out = asked.out / "trial"
    words = [
        sys.executable,
        str(ROOT / "tune" / "sweep.py"),
        "--recipe",
        "toy2d_spiral",
        "--space",
        "score.lr=1e-3,2e-3",
    ]
    words += [
        "--name",
        "sweep",
        "--trial-steps",
        "300",
        "--concurrent",
        "1",
        "--backbone.width",
        "16",
        "--batch-size",
        "16",
    ]
    words += ["--sample-every", "0", "--log-every", "1", "--checkpoint-every", "10", "--evaluation.images", "32"]
    words += ["--evaluation.samples", "100", "--out", str(out)]
    out.mkdir(parents=True, exist_ok=True)
    costs = list[Cost]()
    for moment in [*moments(asked.times, 1, asked.seed), None]:
        with (out / "log.txt").open("a") as log:
            process = subprocess.Popen(words, env=os.environ | {"RAY_ADDRESS": "local"}, stdout=log, stderr=log)
        if moment is not None:
            while process.poll() is None and not processes("ray::RayTrainWorker", process.pid):
                time.sleep(0.05)
            time.sleep(5 + 10 * moment.draw)
            send(signal.SIGKILL, *processes("ray::ImplicitFunc", process.pid))
            killed = time.monotonic()
        status = process.wait()
        if moment is not None and status == 1:
            costs.append(Cost(step=0, lost=0, seconds=time.monotonic() - killed))
    equal = "all trials are measured" if status == 0 else f"STATUS {status}"
    return Row(kind="trial", injected=asked.times, costs=costs, interval=0, equal=equal)


KINDS: dict[str, Callable[[Asked], Row]] = {
    each.__name__: each for each in (worker, driver, hang, write, damage, disk, mlflow, actor, trial)
}


if __name__ == "__main__":
    sys.exit(run(KINDS))
