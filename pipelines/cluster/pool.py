"""A pool of Ray actors that share out named tasks, with progress."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

__all__ = ["Pool", "places"]


def places(actors: int) -> tuple[int, str]:
    """How many actors, and the device of each: one per GPU where the cluster has any, else one for every two logical CPUs.

    Args:
        actors: A number that was asked for; 0 for the rule above.

    Raises:
        ValueError: more actors than GPUs, where there are any.
    """
    there = ray.cluster_resources()
    gpus = int(there.get("GPU", 0))
    if gpus and actors > gpus:
        raise ValueError(f"actors={actors}: the cluster has {gpus} GPUs and an actor takes one; take at most {gpus}")
    return actors or gpus or max(1, int(there.get("CPU", 1) // 2)), "cuda" if gpus else "cpu"


Key = tuple[Any, ...]
MAX_DEATHS = 3


class Pool:
    """Actors of one class; a context manager that ends them.

    Args:
        owner: The class of the actors.
        arguments: Of its constructor.
        num_actors: How many.
        cpus: Logical CPUs of each.
        gpus: GPUs of each.
    """

    def __init__(
        self, owner: type, arguments: tuple[Any, ...], num_actors: int, cpus: float = 1.0, gpus: float = 0.0
    ) -> None:
        for kind, each in (("CPU", cpus), ("GPU", gpus)):
            there = ray.cluster_resources().get(kind, 0.0)
            if num_actors * each > there:
                raise ValueError(
                    f"actors={num_actors} need {num_actors * each:g} {kind}s, the cluster has {there:g}: take fewer"
                )
        remote = ray.remote(num_cpus=cpus, num_gpus=gpus)(owner)
        self.make = lambda: remote.remote(*arguments)
        self.actors = [self.make() for _ in range(num_actors)]

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for actor in self.actors:
            ray.kill(actor)  # pyright: ignore[reportArgumentType]

    def stream(self, tasks: Mapping[Key, tuple[str, tuple[Any, ...]]]) -> Iterator[tuple[Key, Any]]:
        """Carries out tasks {key: (method, arguments)} and gives (key, result) as each is done.

        An actor that dies is replaced and its task repeated, up to `MAX_DEATHS` deaths in all.

        Raises:
            What a task raised; ValueError where actors keep dying.
        """
        deaths = 0
        waiting, busy, idle = list(tasks)[::-1], {}, list(self.actors)
        while waiting or busy:
            while waiting and idle:
                key, actor = waiting.pop(), idle.pop()
                method, arguments = tasks[key]
                busy[getattr(actor, method).remote(*arguments)] = (key, actor)
            done, _ = ray.wait(list(busy))
            key, actor = busy.pop(done[0])
            try:
                result = ray.get(done[0])
            except RayActorError as error:
                deaths += 1
                if deaths > MAX_DEATHS:
                    raise ValueError(f"{deaths} actors died, the last with: {str(error).splitlines()[0]}") from None
                self.actors.remove(actor)
                self.actors.append(self.make())
                idle.append(self.actors[-1])
                waiting.append(key)
                continue
            except RayTaskError as error:
                raise error.cause if isinstance(error.cause, Exception) else error from None
            idle.append(actor)
            yield key, result

    def run(
        self,
        tasks: Mapping[Key, tuple[str, tuple[Any, ...]]],
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
