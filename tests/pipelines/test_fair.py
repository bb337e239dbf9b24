"""Kinds of tasks share actors' time fairly: a queue without actors, whose tasks take what a table says."""

from __future__ import annotations

import heapq
from collections.abc import Mapping

import pytest

from pipelines.cluster.fair import FairQueue

Table = Mapping[str, tuple[int, float]]
"""By kind, how many tasks and what each takes."""


def carried_out(kinds: Table, actors: int) -> tuple[list[tuple[float, str, float]], float]:
    """(when it began, kind, seconds) of each task in its order, and when the last one ended."""
    queue = FairQueue({kind: [(kind, i) for i in range(num)] for kind, (num, _) in kinds.items()}, actors)
    begun, free, at_work = [], [0.0] * actors, []
    while len(queue):
        if free and (key := queue.take()) is not None:
            now, seconds = heapq.heappop(free), kinds[key[0]][1]
            begun.append((now, key[0], seconds))
            heapq.heappush(at_work, (now + seconds, key))
            continue
        end, key = heapq.heappop(at_work)
        queue.done(key)
        queue.took(key, kinds[key[0]][1])
        free = sorted([*(max(t, end) for t in free), end])
    return begun, max(when + seconds for when, _, seconds in begun)


@pytest.mark.parametrize("actors", [1, 2, 5])
def test_kinds_get_equal_shares_while_all_have_work(actors):
    """Tasks of 10, 1 and 0.1 seconds: as long as all have some, each has had a third of the time, to a task of each actor."""
    kinds = {"long": (40, 10.0), "middle": (400, 1.0), "short": (4000, 0.1)}
    begun, _ = carried_out(kinds, actors)
    used, first_end = dict.fromkeys(kinds, 0.0), 0.6 * sum(num * each for num, each in kinds.values()) / actors
    for when, kind, seconds in begun:
        used[kind] += seconds
        if 20 * actors < sum(used.values()) and when < first_end:
            assert max(used.values()) - min(used.values()) <= 10.0 * (actors + 1)
    assert first_end > 100


def test_a_kind_of_little_work_is_done_early():
    begun, end = carried_out({"likelihoods": (100, 10.0), "features": (3, 0.5), "samples": (20, 2.0)}, 2)
    last = {kind: max(when for when, other, _ in begun if other == kind) for kind in ("features", "samples")}
    assert last["features"] < 20
    assert last["samples"] < 60 < end / 5


@pytest.mark.parametrize(
    "kinds", [{"long": (9, 10.0), "short": (90, 1.0)}, {"a": (5, 7.0), "b": (9, 3.0), "c": (30, 1.0)}]
)
@pytest.mark.parametrize("actors", [2, 3])
def test_the_longest_are_not_begun_last(kinds, actors):
    """So the end is at most one of the shortest tasks, of which there are enough, behind a perfect division of the work."""
    begun, end = carried_out(kinds, actors)
    perfect = sum(num * each for num, each in kinds.values()) / actors
    assert end <= perfect + 1.0 + 1e-9
    assert begun[-1][2] == 1.0


def test_what_is_left_is_told_from_what_tasks_took_so_far():
    queue = FairQueue({"a": range(4), "b": range(10, 13)}, 2)
    assert queue.seconds_left() == 0.0
    queue.done(key := queue.take())
    queue.took(key, 6.0)
    assert queue.seconds_left() == (3 * 6.0 + 3 * 6.0) / 2  # of b nothing is known yet
    while (key := queue.take()) != 10:
        pass
    queue.done(10)
    queue.took(10, 1.0)
    assert queue.seconds_left() == (3 * 6.0 + 2 * 1.0) / 2


def test_a_lost_task_is_repeated_behind_all_others_and_a_dropped_one_is_not_waited_for():
    queue = FairQueue({"a": ["a0", "a1", "a2"], "b": ["b0", "b1"]}, 2)
    assert (queue.take(), queue.take()) == ("a0", "b0")
    queue.back("a0")
    queue.done("b0")
    queue.drop(["a2", "b0"])
    assert len(queue) == 3
    assert [queue.take() for _ in range(4)] == ["a1", "b1", "a0", None]
    queue.drop(["b1"])
    queue.back("b1")
    assert queue.take() is None
    for key in ("a1", "a0"):
        queue.done(key)
    assert len(queue) == 0
    assert queue.seconds_left() == 0.0
