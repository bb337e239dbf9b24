"""Faults at random moments in the project's own commands, and what they cost: what faults.py and goodput.py share.

A moment is a step: with n faults a run of N steps is cut into n + 1 parts, and fault i comes in part i, at

    m_i = N/(n + 1) (i + u_i),   u_i uniform in [0.2, 0.8), drawn from a seed, and up to `LATER` seconds after that step.

What a fault costs is read off metrics.jsonl, which has a record for every step, from outside: with f the last step before it
and r the one that is gone on from, f - r steps are taken again, and it is over when a step beyond f is there.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipelines.runs.job import read_metrics
from pipelines.runs.record import RecordReader

__all__ = [
    "BATCH",
    "WORKER",
    "Case",
    "Cost",
    "Moment",
    "Running",
    "Seen",
    "cost_of",
    "digest",
    "end",
    "moments",
    "processes",
    "send",
    "through",
    "undisturbed",
]

ROOT = Path(__file__).resolve().parents[1]
RECIPE, WORKER = "digits_vp_nll", "ray::RayTrainWorker"
BATCH = 16
TINY = (
    *(
        "--nf",
        "8",
        "--ch-mult",
        "1",
        "--num-res-blocks",
        "1",
        "--blocks",
        "2",
        "--flow.width",
        "16",
        "--batch-size",
        "16",
    ),
    *(
        "--pretrain-steps",
        "10",
        "--sample-every",
        "0",
        "--validate-every",
        "0",
        "--log-every",
        "1",
        "--evaluate",
        "false",
    ),
    *("--threads", "1"),
)
LATER, LEAST, MOST = 0.5, 0.2, 0.8
PATIENCE = 600.0
POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Moment:
    """When a fault comes.

    Args:
        step: After it.
        later: Seconds after it.
        draw: Uniform in [0, 1), for what else is random of it.
    """

    step: int
    later: float
    draw: float


def moments(times: int, steps: int, seed: int) -> list[Moment]:
    """The moments of a run, in their order."""
    drawn, part = random.Random(seed), steps / (times + 1)
    steps_drawn = [round(part * (i + drawn.uniform(LEAST, MOST))) for i in range(times)]
    return [Moment(max(1, step), LATER * drawn.random(), drawn.random()) for step in steps_drawn]


@dataclass(frozen=True)
class Seen:
    """The last step of a metrics.jsonl at some time."""

    when: float
    step: int


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a fault cost.

    Args:
        step: The last one before it.
        lost: Steps that were taken again.
        seconds: From the fault until the first step beyond `step`.
    """

    step: int
    lost: int
    seconds: float


def cost_of(when: float, step: int, seen: Sequence[Seen]) -> Cost | None:
    """What a fault at a time cost, by what was seen of a run; None where it is not over.

    Args:
        step: The last one before the fault.
    """
    resumed = step
    for each in seen:
        if each.when <= when:
            continue
        if each.step > step:
            return Cost(step=step, lost=step - resumed, seconds=each.when - when)
        resumed = min(resumed, each.step)
    return None


@dataclass(frozen=True, kw_only=True)
class Case:
    """A training of the project's command.

    Args:
        out: The output directory.
        steps: Of the run.
        every: Steps between two checkpoints.
        words: More options.
        variables: Of the environment.
        launcher: What stands before the recipe.
    """

    out: Path
    steps: int
    every: int = 10
    words: tuple[str, ...] = ()
    variables: dict[str, str] = field(default_factory=dict)
    launcher: tuple[str, ...] = (sys.executable, str(ROOT / "pipelines" / "train.py"))

    @property
    def run(self) -> Path:
        """The run's directory."""
        return self.out / RECIPE

    def command(self) -> list[str]:
        """The command line."""
        options = ("--steps", str(self.steps), "--checkpoint-every", str(self.every), "--out", str(self.out))
        return [*self.launcher, RECIPE, *TINY, *options, *self.words]


class Running:
    """A command and what its run's metrics.jsonl shows, from the block's beginning to its end."""

    def __init__(self, case: Case) -> None:
        self.case, self.seen, self.ended = case, list[Seen](), threading.Event()
        self.reader = RecordReader(case.run / "metrics.jsonl")
        self.log = case.out / "log.txt"

    def __enter__(self) -> Running:
        self.case.out.mkdir(parents=True, exist_ok=True)
        self.start()
        self.thread = threading.Thread(target=self._follow, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait()

    def start(self) -> None:
        """Gives the command, or gives it again."""
        with self.log.open("a") as log:
            log.write(f"$ {shlex.join(self.case.command()[1:])}\n")
            log.flush()
            own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "RAY_ADDRESS": "local"}
            self.process = subprocess.Popen(
                self.case.command(), stdout=log, stderr=log, env=os.environ | own | self.case.variables
            )

    def said(self) -> str:
        """What the commands have printed so far."""
        return self.log.read_text()

    @property
    def step(self) -> int:
        """The last step."""
        return self.seen[-1].step if self.seen else 0

    def wait_for(self, due: Callable[[], bool], what: str, seconds: float = PATIENCE) -> bool:
        """Waits until something is due; returns whether it came before the command's end.

        Raises:
            TimeoutError: it does not come.
        """
        deadline = time.monotonic() + seconds
        while not due():
            if self.process.poll() is not None:
                return due()
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what} did not come in {seconds:.0f} s; {self.log} says what happened")
            time.sleep(POLL_SECONDS / 5)
        return True

    def workers(self) -> list[int]:
        """The worker processes of the command."""
        return processes(WORKER, self.process.pid)

    def _follow(self) -> None:
        while not self.ended.wait(POLL_SECONDS):
            self.reader.read()
            if not self.seen or self.seen[-1].step != self.reader.last_step:
                self.seen.append(Seen(time.monotonic(), self.reader.last_step))


def through(case: Case, when: Sequence[Moment], inject: Callable[[Running, Moment], float]) -> tuple[list[Cost], str]:
    """A training through faults, to its end.

    Args:
        inject: Brings a fault about and returns when it was; where it ends the command, the same command is given again.

    Returns:
        What each fault cost, and what was printed.

    Raises:
        RuntimeError: the command refused to go on.
        TimeoutError: it did not go on.
    """
    costs: list[Cost] = []
    with Running(case) as running:
        for moment in when:
            if not running.wait_for(lambda moment=moment: running.step >= moment.step, f"step {moment.step}"):
                break
            time.sleep(moment.later)
            fault = inject(running, moment)
            began = time.monotonic()
            before = max((record.step for record in read_metrics(case.run)), default=0)
            if running.process.poll() is not None:
                running.start()
            running.wait_for(
                lambda at=began, before=before: cost_of(at, before, running.seen) is not None, "the next step"
            )
            if (cost := cost_of(began, before, running.seen)) is None:
                raise RuntimeError(f"status {running.process.poll()} after step {before}: {running.said()[-800:]}")
            cost = replace(cost, seconds=cost.seconds + began - fault)
            print(f"  step {cost.step}: {cost.lost} steps again, {cost.seconds:.1f} s", flush=True)
            costs.append(cost)
        status = running.process.wait()
        if status:
            raise RuntimeError(f"status {status}: {running.said()[-800:]}")
        return costs, running.said()


def digest(run: Path) -> str:
    """SHA-256 of the weights of a run."""
    return hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest()


def undisturbed(case: Case) -> str:
    """SHA-256 of the weights of the same training in one process, without faults; kept beside it."""
    place = case.out.parent / f"undisturbed-{case.steps}"
    known = place / "digest.json"
    if not known.is_file():
        words = [*replace(case, out=place, words=()).command(), "--local"]
        own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        subprocess.run(words, env=os.environ | own, check=True, stdout=subprocess.DEVNULL)
        known.write_text(json.dumps(digest(place / RECIPE)))
    return json.loads(known.read_text())


def processes(title: str, ancestor: int) -> list[int]:
    """The ids of the processes below another one that have a title such as ray::RayTrainWorker, oldest first."""
    parents, named = dict[int, int](), list[int]()
    for place in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(place.name)] = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            if (place / "cmdline").read_bytes().startswith(title.encode()):
                named.append(int(place.name))
        except OSError:  # it has just ended
            continue
    return sorted(number for number in named if _below(number, ancestor, parents))


def _below(number: int, ancestor: int, parents: dict[int, int]) -> bool:
    while number > 1 and number != ancestor:
        number = parents.get(number, 0)
    return number == ancestor


def send(number: int, *to: int) -> float:
    """Sends a signal to processes, of which some may have ended; returns when."""
    for process in to:
        try:
            os.kill(process, number)
        except ProcessLookupError:
            continue
    return time.monotonic()


def end(running: Running, *, again: bool) -> float:
    """Ends a command at once, as `kill -9` does, and waits until its workers, which may take another step, have ended too.

    Args:
        again: The same command is given meanwhile.

    Returns:
        When the command was ended.
    """
    workers = set(running.workers())
    running.process.send_signal(signal.SIGKILL)
    now = time.monotonic()
    running.process.wait()
    if again:
        running.start()
    while any(Path(f"/proc/{worker}").exists() for worker in workers) and time.monotonic() < now + PATIENCE:
        time.sleep(POLL_SECONDS)
    return now
