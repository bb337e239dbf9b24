"""A pool of Ray actors that share out named tasks, with progress."""

from __future__ import annotations

import textwrap
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, NamedTuple

import ray
import torch
from ray.exceptions import RayError, RayTaskError

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


Key = tuple[Any, ...]
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

    def stream(self, tasks: Mapping[Key, Call]) -> Iterator[tuple[Key, Any]]:
        """Carries out tasks and gives (key, result) as each is done; a task is looked up when an actor takes it.

        An actor that dies is replaced, and its tasks repeated behind the others, so that a task that ends its actor every time
        costs the others nothing. Actors may die as often as tasks are done. An actor is waited for once, not in every stream.

        Raises:
            What a task raised; ValueError where more actors die.
        """
        waiting, deaths = deque(tasks), _Deaths(len(self.actors))
        busy: dict[Any, tuple[Any, Key, str]] = {}
        try:
            yield from self._stream(tasks, waiting, busy, deaths)
        finally:  # not all that was begun is wanted any more
            self.free.update(actor for actor, _, _ in busy.values() if actor in self.actors)

    def _stream(
        self, tasks: Mapping[Key, Call], waiting: deque[Key], busy: dict[Any, tuple[Any, Key, str]], deaths: _Deaths
    ) -> Iterator[tuple[Key, Any]]:
        left = len(tasks)
        while left:
            while waiting and (actor := self._idle()) is not None:
                key = waiting.popleft()
                call = tasks[key]
                busy[getattr(actor, call.method).remote(*call.arguments)] = (actor, key, call.name)
            ready = ray.wait([*busy, *self.starting])[0][0]
            actor, key, name = busy.pop(ready) if ready in busy else (self.starting.pop(ready), None, START)
            try:
                result = ray.get(ready)
            except RayTaskError as error:
                if isinstance(error.cause, MemoryError | torch.OutOfMemoryError):
                    raise ValueError(f"{name}: {textwrap.shorten(str(error.cause), 300)} ({REMEDY})") from None
                raise error.cause if isinstance(error.cause, Exception) else error from None
            except RayError as error:  # the actor, its node, or what it gave is lost
                waiting.extend([] if key is None else [key])
                if actor in self.actors:  # else another of its tasks has told so
                    deaths.add(name, error)
                    self._replace(actor)
                continue
            if key is None:
                self.free[actor] = 1 + self.ahead
                continue
            self.free.update([actor] if actor in self.actors else [])
            deaths.progress()
            left -= 1
            yield key, result

    def _idle(self) -> Any | None:
        """The actor that may take the most tasks, which then may take one less; None where all are busy."""
        actor, free = max(self.free.items(), key=lambda item: item[1], default=(None, 0))
        if not free:
            return None
        self.free[actor] -= 1
        return actor

    def _replace(self, actor: Any) -> None:
        """A new actor in the place of one that is lost."""
        with suppress(RayError):
            ray.kill(actor)
        del self.free[actor]
        self.actors[self.actors.index(actor)] = new = self.make()
        self.starting[_started(new)] = new

    def run(
        self,
        tasks: Mapping[Key, Call],
        what: str,
        keep: Callable[[Key, Any], Any] = lambda key, result: result,
    ) -> dict[Key, Any]:
        """The results of all tasks by key, with a line of progress every few seconds.

        Args:
            keep: Called with each result as it is done; what it returns is kept in the result's place.
        """
        results, began, shown = {}, time.monotonic(), -10.0
        for key, result in self.stream(tasks):
            results[key] = keep(key, result)
            now = time.monotonic() - began
            if now - shown > 5 or len(results) == len(tasks):
                shown = now
                left = now / len(results) * (len(tasks) - len(results))
                print(f"{what}: {len(results)}/{len(tasks)} tasks, {now:.0f} s, about {left:.0f} s left", flush=True)
        return results


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


def _started(actor: Any) -> Any:
    """A reference that is there when the actor is."""
    return actor.__ray_ready__.remote()
