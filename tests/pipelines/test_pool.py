"""A pool of actors, on a stand-in for Ray in which actors die where they are told to."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from ray.exceptions import RayActorError
from ray_session import one_line

from pipelines.cluster import pool as pools
from pipelines.cluster.fair import FairQueue
from pipelines.cluster.pool import Call, Pool


class Ref:
    """What a call gives, when it is asked for."""

    def __init__(self, carry_out: Any) -> None:
        self.carry_out = carry_out


class Handle:
    """An actor from outside."""

    def __init__(self, make: Any) -> None:
        self.owner = make()

    def __getattr__(self, method: str) -> Any:
        if method == "__ray_ready__":
            return SimpleNamespace(remote=lambda: Ref(lambda: None))
        return SimpleNamespace(remote=lambda *arguments: Ref(lambda: getattr(self.owner, method)(*arguments)))


@pytest.fixture(autouse=True)
def stand_in(monkeypatch) -> None:
    """Calls are carried out when they are asked for, the first one first."""

    def remote(num_cpus: float, num_gpus: float, scheduling_strategy: str) -> Any:
        return lambda owner: SimpleNamespace(remote=lambda *arguments: Handle(lambda: owner(*arguments)))

    ray = SimpleNamespace(
        cluster_resources=lambda: {"CPU": 8.0},
        remote=remote,
        wait=lambda refs: (refs[:1], refs[1:]),
        get=lambda ref: ref.carry_out(),
        kill=lambda actor: None,
    )
    monkeypatch.setattr(pools, "ray", ray)


class Squares:
    """Dies at the attempts that `dies` tells of."""

    attempts: ClassVar[Counter[int]] = Counter()

    def __init__(self, dies: Any) -> None:
        self.dies = dies

    def square(self, n: int) -> int:
        self.attempts[n] += 1
        if self.dies(n, self.attempts[n]):
            raise RayActorError(error_msg="The actor died\nunexpectedly.")
        return n * n


def squares(num: int, dies: Any, actors: int = 2) -> tuple[dict[int, int], str]:
    """The squares that come, and what is said where some do not."""
    Squares.attempts.clear()
    done: dict[int, int] = {}
    with Pool(Squares, (dies,), actors) as pool:
        try:
            for (n,), result in pool.stream({(n,): Call("square", (n,), f"square of {n}") for n in range(num)}):
                done[n] = result
        except ValueError as error:
            return done, str(error)
    return done, ""


def test_actors_may_die_as_often_as_something_is_done():
    """Every task costs an actor at its first attempt: as many deaths as tasks."""
    done, said = squares(2 * pools.MAX_DEATHS, lambda n, attempt: attempt == 1, actors=2)
    assert (done, said) == ({n: n * n for n in range(6)}, "")
    done, said = squares(40, lambda n, attempt: n % 4 == 0 and attempt < 3)
    assert (done, said) == ({n: n * n for n in range(40)}, "")
    assert sum(Squares.attempts.values()) == 60


def test_a_task_that_ends_its_actor_every_time_is_named_when_the_others_are_done():
    done, said = squares(12, lambda n, attempt: n == 5)
    assert done == {n: n * n for n in range(12) if n != 5}
    one_line(said, "square of 5: ", "actors died of it", "The actor died unexpectedly.", "--actors")
    assert Squares.attempts[5] <= pools.MAX_DEATHS + 2


@pytest.mark.parametrize("actors", [1, 3])
def test_where_all_actors_die_it_ends_soon(actors):
    done, said = squares(1000, lambda n, attempt: True, actors)
    assert not done
    one_line(said, f"{actors * pools.MAX_DEATHS + 1} actors died, the last one at square of ", "--actors")


def test_what_is_short_of_memory_is_named():
    def fails(n: int, attempt: int) -> bool:
        raise pools.RayTaskError("square", "", MemoryError("12 GiB"))

    _, said = squares(3, fails)
    one_line(said, "square of 0: 12 GiB", "smaller chunk")


def test_actors_are_given_tasks_ahead_and_stay_for_the_next_stream():
    Squares.attempts.clear()
    tasks = {(n,): Call("square", (n,), f"square of {n}") for n in range(7)}
    with Pool(Squares, (lambda n, attempt: n == 3 and attempt == 1,), 2, ahead=1) as pool:
        for _ in range(3):
            assert dict(pool.stream(tasks)) == {(n,): n * n for n in range(7)}
            next(pool.stream(tasks))  # not to its end
        assert sum(pool.free.values()) + 2 * len(pool.starting) == 4
        assert len(pool.actors) == 2


class Outstanding:
    """Results that lie in the object store because nobody has taken them yet."""

    now, most = 0, 0

    def __init__(self) -> None:
        Outstanding.now += 1
        Outstanding.most = max(Outstanding.most, Outstanding.now)

    def __del__(self) -> None:
        Outstanding.now -= 1


class Busy(Handle):
    """An actor that does a task at once, whoever is slow to take it."""

    def __getattr__(self, method: str) -> Any:
        def remote(*arguments: Any) -> Ref:
            result = None if method == "__ray_ready__" else getattr(self.owner, method)(*arguments)
            return Ref(lambda: result)

        return SimpleNamespace(remote=remote)


class Large:
    def make(self, n: int) -> Outstanding:
        return Outstanding()


@pytest.mark.parametrize(("actors", "ahead"), [(1, 0), (3, 0), (2, 1)])
def test_a_slow_consumer_slows_the_actors_down(monkeypatch, actors, ahead):
    """However many tasks there are, never more results wait than actors have places, the one that is being taken among them."""

    def remote(num_cpus: float, num_gpus: float, scheduling_strategy: str) -> Any:
        return lambda owner: SimpleNamespace(remote=lambda *arguments: Busy(lambda: owner(*arguments)))

    monkeypatch.setattr(pools.ray, "remote", remote)
    monkeypatch.setattr(pools.ray, "wait", lambda refs: (refs[-1:], refs[:-1]))  # an actor's start before any result
    Outstanding.most = taken = 0
    with Pool(Large, (), actors, ahead=ahead) as pool:
        for _, result in pool.stream({n: Call("make", (n,), f"task {n}") for n in range(40)}):
            taken += 1
            assert Outstanding.now <= actors * (1 + ahead)
            del result
    assert (taken, Outstanding.most) == (40, actors * (1 + ahead))


def test_tasks_that_are_dropped_on_the_way_are_not_waited_for():
    Squares.attempts.clear()
    queue = FairQueue({"a": range(10), "b": range(10, 20)})
    done = []
    with Pool(Squares, (lambda n, attempt: False,), 2) as pool:
        for n, _ in pool.stream({n: Call("square", (n,), str(n)) for n in range(20)}, queue):
            done.append(n)
            queue.drop(range(3, 20))
    assert sorted(n for n in done if n < 10) == [0, 1, 2]
    assert len(done) <= 5
