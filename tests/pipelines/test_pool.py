"""A pool of actors, on a stand-in for Ray in which actors die where they are told to."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from ray.exceptions import RayActorError
from ray_session import one_line

from pipelines.cluster import pool as pools
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
