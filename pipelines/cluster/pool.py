"""A pool of Ray actors that share out named tasks.

An actor holds at most 1 + `ahead` results that were not taken: it is given a task when one of its results is. So
whoever takes results slowly slows the actors down, and no more than actors (1 + ahead) results wait in the object
store, whatever their number.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, NamedTuple

import ray
import torch
from ray.exceptions import RayError, RayTaskError

from pipelines.cluster.fair import FairQueue, K

__all__ = ["Call", "Pool", "places"]


def places(actors: int, device: str = "auto") -> tuple[int, str]:
    """How many actors, and the device of each: one per GPU where the cluster has any, else one for every two logical CPUs.

    Args:
        actors: A number that was asked for; 0 for the rule above.
        device: auto for the rule above; cpu or cuda.

    Raises:
        ValueError: more actors than GPUs, where there are any, or no GPU where one was asked for.
    """
    there = ray.cluster_resources()
    gpus = int(there.get("GPU", 0)) if device != "cpu" else 0
    if device == "cuda" and not gpus:
        raise ValueError("device=cuda: the cluster has no GPU; give --device cpu")
    if gpus and actors > gpus:
        raise ValueError(f"actors={actors}: the cluster has {gpus} GPUs and an actor takes one; take at most {gpus}")
    return actors or gpus or max(1, int(there.get("CPU", 1) // 2)), "cuda" if gpus else "cpu"


START = "the start of an actor"
MAX_DEATHS = 3
"""Of an actor, beside those that are paid for by tasks that are done."""
REMEDY = "where memory is short, give fewer --actors or a smaller chunk"


class Call(NamedTuple):
    """What an actor is asked for.

    Args:
        method, arguments: Of the actor.
        name: What a message calls it.
    """

    method: str
    arguments: tuple[Any, ...]
    name: str


class Pool:
    """Actors of one class; a context manager that ends them.

    Args:
        owner: The class of the actors.
        arguments: Of its constructor.
        num_actors: How many.
        cpus: Logical CPUs of each.
        gpus: GPUs of each.
        ahead: Tasks that an actor may be given while it is at another one, so that what they need is there in time.
    """

    def __init__(
        self,
        owner: type,
        arguments: tuple[Any, ...],
        num_actors: int,
        cpus: float = 1.0,
        gpus: float = 0.0,
        ahead: int = 0,
    ) -> None:
        for kind, each in (("CPU", cpus), ("GPU", gpus)):
            there = ray.cluster_resources().get(kind, 0.0)
            if num_actors * each > there:
                raise ValueError(
                    f"actors={num_actors} need {num_actors * each:g} {kind}s, the cluster has {there:g}: take fewer"
                )
        # By itself Ray would put actors on one machine until half of it is taken.
        remote = ray.remote(num_cpus=cpus, num_gpus=gpus, scheduling_strategy="SPREAD")(owner)
        self.make = lambda: remote.remote(*arguments)
        self.actors = [self.make() for _ in range(num_actors)]
        self.ahead = ahead
        self.starting = {_started(actor): actor for actor in self.actors}
        self.free = Counter[Any]()  # of tasks that an actor may take

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for actor in self.actors:
            ray.kill(actor)  # pyright: ignore[reportArgumentType]

    def stream(self, tasks: Mapping[K, Call], queue: FairQueue[K] | None = None) -> Iterator[tuple[K, Any]]:
        """Carries out tasks and gives (key, result) as each is done; a task is looked up when an actor takes it.

        An actor that dies is replaced, and its tasks repeated behind the others, so that a task that ends its actor every time
        costs the others nothing. Actors may die as often as tasks are done. An actor is waited for once, not in every stream.

        Args:
            queue: Which task is next; without it they are taken in their order. Whoever holds it may drop tasks on the way.

        Raises:
            What a task raised; ValueError where more actors die.
        """
        deaths = _Deaths(len(self.actors))
        busy: dict[Any, tuple[Any, K]] = {}
        try:
            yield from self._stream(tasks, FairQueue({"": tasks}) if queue is None else queue, busy, deaths)
        finally:  # not all that was begun is wanted any more
            self.free.update(actor for actor, _ in busy.values() if actor in self.actors)

    def _stream(
        self, tasks: Mapping[K, Call], queue: FairQueue[K], busy: dict[Any, tuple[Any, K]], deaths: _Deaths
    ) -> Iterator[tuple[K, Any]]:
        names: dict[K, str] = {}  # of tasks at work
        while len(queue):
            while (actor := self._idle()) is not None and (key := queue.take()) is not None:
                self.free[actor] -= 1
                call = tasks[key]
                names[key] = call.name
                busy[getattr(actor, call.method).remote(*call.arguments)] = (actor, key)
            ready = ray.wait([*busy, *self.starting])[0][0]
            if ready in self.starting:
                self._begin(ready, deaths)
                continue
            actor, key = busy.pop(ready)
            name = names.pop(key)
            try:
                result = ray.get(ready)
            except RayTaskError as error:
                raise _told(error, name) from None
            except RayError as error:  # the actor, its node, or what it gave is lost
                queue.back(key)
                self._lose(actor, name, error, deaths)
                continue
            self.free.update([actor] if actor in self.actors else [])
            deaths.progress()
            queue.done(key)
            yield key, result
            del ready, result  # what was taken goes before another task is begun

    def _begin(self, started: Any, deaths: _Deaths) -> None:
        """An actor has started, or could not."""
        actor = self.starting.pop(started)
        try:
            ray.get(started)
        except RayTaskError as error:
            raise _told(error, START) from None
        except RayError as error:
            self._lose(actor, START, error, deaths)
        else:
            self.free[actor] = 1 + self.ahead

    def _lose(self, actor: Any, name: str, error: RayError, deaths: _Deaths) -> None:
        if actor in self.actors:  # else another of its tasks has told so
            deaths.add(name, error)
            self._replace(actor)

    def _idle(self) -> Any | None:
        """The actor that may take the most tasks; None where all are busy."""
        actor, free = max(self.free.items(), key=lambda item: item[1], default=(None, 0))
        return actor if free else None

    def _replace(self, actor: Any) -> None:
        """A new actor in the place of one that is lost."""
        with suppress(RayError):
            ray.kill(actor)
        del self.free[actor]
        self.actors[self.actors.index(actor)] = new = self.make()
        self.starting[_started(new)] = new


class _Deaths:
    """Of actors, by the task that they were at; says when there are too many: `MAX_DEATHS` of each actor, and one more for each
    task that is done."""

    def __init__(self, num_actors: int) -> None:
        self.allowed, self.num, self.since_progress = MAX_DEATHS * num_actors, 0, 0
        self.by_task: Counter[str] = Counter()

    def progress(self) -> None:
        """A task is done."""
        self.allowed += 1
        self.since_progress = 0

    def add(self, name: str, error: RayError) -> None:
        """
        Raises:
            ValueError: there are too many, or this task has had several and nothing else is done any more.
        """
        self.num, self.since_progress = self.num + 1, self.since_progress + 1
        self.by_task[name] += 1
        said = textwrap.shorten(str(error), 300)
        if min(self.since_progress, self.by_task[name]) > MAX_DEATHS:
            raise ValueError(f"{name}: {self.by_task[name]} actors died of it, the last with: {said} ({REMEDY})")
        if self.num > self.allowed:
            raise ValueError(f"{self.num} actors died, the last one at {name} with: {said} ({REMEDY})")


def _told(error: RayTaskError, name: str) -> BaseException:
    """What a task raised; where memory was short, with what helps."""
    if isinstance(error.cause, MemoryError | torch.OutOfMemoryError):
        return ValueError(f"{name}: {textwrap.shorten(str(error.cause), 300)} ({REMEDY})")
    return error.cause if isinstance(error.cause, Exception) else error


def _started(actor: Any) -> Any:
    """A reference that is there when the actor is."""
    return actor.__ray_ready__.remote()
