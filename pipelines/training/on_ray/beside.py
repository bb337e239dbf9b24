"""Checkpoints measured beside a training by an actor of the driver's own.

The driver sees in the runs' directories which checkpoints are due, and gives them to one actor, the oldest first. So a
group of workers that is started again, a driver that is killed and comes back, and several trainings one after the other
need nothing more: what is due lies on the disk, and not in a queue. Ray Train's own validation of checkpoints hangs on the
reports of one group of workers, needs its checkpoints to be Ray's, and ends with that group.

The actor takes no CPU and no GPU from what the session shares out, since the workers may have all of them: on a CPU it
computes in one thread, nicer than they are, and where its process sees a GPU it shares that one with a worker.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import ray
import torch
from ray.exceptions import RayError, RayTaskError

from pipelines.cluster.session import connect
from pipelines.config.terminal.device import device_of
from pipelines.evaluation.settings import Settings
from pipelines.runs.job import Training
from pipelines.storage import checkpoint
from pipelines.storage.along import Measured
from pipelines.storage.messages import one_line
from pipelines.storage.signals import Stop
from pipelines.training.along import due, keep_figures, pass_over, prune

__all__ = ["Beside", "measure_left"]

POLL_SECONDS, WATCH_SECONDS = 1.0, 0.2
NICENESS = 5
"""Above the command's: of a core that a worker wants too, it gets a quarter."""
MOST_DEATHS = 3
"""Of the actor, at one checkpoint."""
MANY, MOST = 4, 16
"""Checkpoints that wait, of which it is said once that they are many; and beyond which the oldest gets no figures, since each
lies on the disk meanwhile."""


class Aside:
    """The actor."""

    def __init__(self, settings: Settings, root: Path, device: str) -> None:
        from pipelines.evaluation.checkpoints import CheckpointMeasurer  # seconds, which a driver does not need

        os.nice(NICENESS)
        torch.set_num_threads(1)
        self.measurer = CheckpointMeasurer(settings, root, str(device_of(device)))

    def measure(self, run: Path, step: int) -> Measured:
        return self.measurer.measure(run, step)


class Beside:
    """A context in which the checkpoints of trainings are measured as they appear; a checkpoint that cannot be measured is
    said, once, and costs the training nothing.

    Args:
        trainings: Of one command, on the same data.
        settings: How; None: nothing is measured.
        root: The output directory.
        device: Of the workers. The actor takes a GPU where it sees one, unless they are to compute on CPUs.
    """

    def __init__(self, trainings: Sequence[Training], settings: Settings | None, root: Path, device: str) -> None:
        self.trainings, self.settings, self.root = list(trainings), settings, root
        self.device = "cpu" if device == "cpu" else "auto"
        self.actor: Any = None
        self.deaths, self.given_up, self.said = Counter[Path](), set[Path](), False
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True, name="beside")

    def __enter__(self) -> Beside:
        if self.settings:
            self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stopping.set()
        if self.settings:
            self.thread.join()
        if self.actor is not None:
            ray.kill(self.actor)

    def finish(self, stop: Stop) -> None:
        """Waits, when the trainings have ended, until all that is due has been measured, or a signal has come; then lets go
        of the checkpoints that were kept for it.
        """
        if not self.settings or stop.requested:
            return
        if num := len(self._due()):
            print(f"measuring {num} checkpoint{'s' * (num > 1)} more, which the training was quicker than", flush=True)
        while self._due() and self.thread.is_alive() and not stop.requested:
            self.stopping.wait(WATCH_SECONDS)
        for training in self.trainings:
            prune(training)

    def _due(self) -> list[tuple[Training, Path]]:
        found = [(training, place) for training in self.trainings for place in due(training)]
        return [(training, place) for training, place in found if place not in self.given_up]

    def _run(self) -> None:
        while not self.stopping.wait(POLL_SECONDS):
            waiting = self._due()
            if len(waiting) >= MANY and not self.said:
                self.said = True
                print(
                    f"{len(waiting)} checkpoints wait to be measured, and are kept until then, since the training is quicker; "
                    "with a larger --measure-every, or smaller --along.images and --along.samples, fewer wait",
                    flush=True,
                )
            if len(waiting) > MOST:
                self._give_up(*waiting[0], f"{MOST} others wait to be measured")
            elif waiting:
                self._measure(*waiting[0])

    def _measure(self, training: Training, place: Path) -> None:
        if self.actor is None:
            remote = ray.remote(num_cpus=0, num_gpus=0, scheduling_strategy="DEFAULT")(Aside)
            self.actor = remote.remote(self.settings, self.root, self.device)  # pyright: ignore[reportCallIssue]
        asked = self.actor.measure.remote(training.directory, checkpoint.step_of(place))
        while not ray.wait([asked], timeout=WATCH_SECONDS)[0]:
            if self.stopping.is_set():
                return
        try:
            keep_figures(training, ray.get(asked))
        except RayTaskError as error:
            self._give_up(training, place, one_line(error.cause, 200))
        except RayError as error:  # the actor is lost, or its machine
            self.actor = None
            self.deaths[place] += 1
            if self.deaths[place] >= MOST_DEATHS:
                self._give_up(training, place, one_line(error, 200))
        except OSError as error:  # the disk is full, say
            self._give_up(training, place, str(error))

    def _give_up(self, training: Training, place: Path, reason: str) -> None:
        if place.exists():  # else the training has begun again from one before
            self.given_up.add(place)
            pass_over(training, place, reason)


def measure_left(trainings: Sequence[Training], settings: Settings | None, root: Path, device: str, stop: Stop) -> None:
    """Measures what is due of trainings that have ended, where there is any."""
    if settings and any(due(training) for training in trainings):
        connect(1, 1.0)
        with stop.at_boundary(), Beside(trainings, settings, root, device) as beside:
            beside.finish(stop)
