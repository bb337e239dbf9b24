"""A pool of Ray actors that share out named tasks, with progress."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any

import ray
from ray.exceptions import RayTaskError

__all__ = ["Pool"]

Key = tuple[Any, ...]


class Pool:
    """Actors of one class; a context manager that ends them.

    Args:
        owner: The class of the actors.
        arguments: Of its constructor.
        num_actors: How many.
        cpus: Logical CPUs of each.
    """

    def __init__(self, owner: type, arguments: tuple[Any, ...], num_actors: int, cpus: float = 1.0) -> None:
        remote = ray.remote(num_cpus=cpus, max_restarts=3, max_task_retries=3)(owner)
        self.actors = [remote.remote(*arguments) for _ in range(num_actors)]

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for actor in self.actors:
            ray.kill(actor)  # pyright: ignore[reportArgumentType]

    def stream(self, tasks: Mapping[Key, tuple[str, tuple[Any, ...]]]) -> Iterator[tuple[Key, Any]]:
        """Carries out tasks {key: (method, arguments)} and gives (key, result) as each is done.

        An actor that dies is restarted and its task repeated.

        Raises:
            What a task raised.
        """
        waiting, busy, idle = list(tasks)[::-1], {}, list(self.actors)
        while waiting or busy:
            while waiting and idle:
                key, actor = waiting.pop(), idle.pop()
                method, arguments = tasks[key]
                busy[getattr(actor, method).remote(*arguments)] = (key, actor)
            done, _ = ray.wait(list(busy))
            key, actor = busy.pop(done[0])
            idle.append(actor)
            try:
                result = ray.get(done[0])
            except RayTaskError as error:
                raise error.cause if isinstance(error.cause, Exception) else error from None
            yield key, result

    def run(self, tasks: Mapping[Key, tuple[str, tuple[Any, ...]]], what: str) -> dict[Key, Any]:
        """The results of all tasks by key, with a line of progress every few seconds."""
        results, began, shown = {}, time.monotonic(), -10.0
        for key, result in self.stream(tasks):
            results[key] = result
            now = time.monotonic() - began
            if now - shown > 5 or len(results) == len(tasks):
                shown = now
                left = now / len(results) * (len(tasks) - len(results))
                print(f"{what}: {len(results)}/{len(tasks)} tasks, {now:.0f} s, about {left:.0f} s left", flush=True)
        return results
