"""Whether workers stand still, what a restart has lost, and the moments and costs that benchmarks/faults.py is made of."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from benchmarks.goodput import KINDS, schedule
from benchmarks.injection import Seen, cost_of, moments
from pipelines.training.launch import Launch
from pipelines.training.watch.course import BEGIN_SECONDS, FACTOR, Course


def begun(stall_seconds: float, *steps: tuple[float, int]) -> Course:
    """A course on which steps were told, of (time, step), after a beginning at 0."""
    course = Course(stall_seconds)
    course.begin(0.0)
    for now, step in steps:
        course.tell("r", step, now)
    return course


def test_workers_stand_still_after_the_seconds_that_they_are_given():
    course = begun(10.0, (50.0, 0), (51.0, 1), (52.0, 2))
    assert course.still(62.0) == 0.0
    assert course.still(62.1) == pytest.approx(10.1)


def test_slow_steps_are_judged_by_their_own_pace():
    """A validation of 30 s allows ten times as much, whoever asks for less."""
    course = begun(10.0, (0.0, 0), (1.0, 1), (31.0, 2), (32.0, 3))
    assert course.still(32.0 + 30.0 * FACTOR) == 0.0
    assert course.still(33.0 + 30.0 * FACTOR) > 0.0


def test_what_comes_before_a_first_step_is_no_pace_and_has_time_of_its_own():
    course = begun(10.0, (5.0, 0))
    assert course.still(5.0 + BEGIN_SECONDS) == 0.0
    assert course.still(6.0 + BEGIN_SECONDS) > 0.0
    course.tell("r", 1, 100.0)
    assert course.longest == 0.0
    assert course.still(111.0) > 0.0
    course.begin(112.0)
    assert course.still(130.0) == 0.0


def test_nobody_stands_still_where_it_is_not_asked_for_or_nobody_has_begun():
    assert begun(0.0, (0.0, 0), (1.0, 1)).still(1e9) == 0.0
    assert Course(10.0).still(1e9) == 0.0
    with pytest.raises(ValueError, match="stall_seconds"):
        Launch(stall_seconds=-1.0)


def test_a_loss_is_over_when_a_step_beyond_the_last_one_is_told():
    course = begun(10.0, (1.0, 0), (8.0, 47))
    course.begin(20.0)
    assert course.tell("r", 40, 25.0) == []
    assert course.tell("r", 47, 30.0) == []
    (loss,) = course.tell("r", 49, 31.5)
    assert (loss.step, loss.resumed, loss.steps, loss.seconds) == (47, 40, 7, 23.5)
    assert loss.line() == "r: after a restart at step 40 steps 41 to 47 were taken again (7 steps, 24 s)"
    assert course.tell("r", 50, 32.0) == []


def test_two_restarts_one_after_the_other_have_a_loss_each():
    course = begun(10.0, (1.0, 0), (8.0, 47))
    course.begin(20.0)
    course.tell("r", 40, 25.0)
    course.tell("r", 44, 26.0)
    course.begin(40.0)
    course.begin(50.0)  # this group ended before it told anything
    assert course.tell("r", 40, 55.0) == []
    (later,) = course.tell("r", 45, 56.0)
    assert (later.step, later.steps, later.seconds) == (44, 4, 30.0)
    (earlier,) = course.tell("r", 48, 57.0)
    assert (earlier.step, earlier.steps, earlier.seconds) == (47, 7, 49.0)


def test_workers_that_moved_with_a_checkpoint_lost_no_step():
    course = begun(10.0, (1.0, 0), (8.0, 47))
    course.begin(20.0)
    course.tell("r", 47, 25.0)
    (loss,) = course.tell("r", 48, 26.0)
    assert (loss.steps, loss.seconds) == (0, 18.0)
    assert "no step was lost" in loss.line()


def test_a_restart_between_two_runs_lost_no_step():
    course = begun(10.0, (1.0, 0), (8.0, 60))
    course.begin(20.0)
    (loss,) = course.tell("next", 0, 25.0)
    assert (loss.run, loss.steps) == ("r", 0)


@pytest.mark.parametrize("times", [1, 10, 100])
def test_moments_follow_from_a_seed_and_come_one_after_the_other(times):
    drawn = moments(times, 40 * (times + 1), seed=3)
    assert drawn == moments(times, 40 * (times + 1), seed=3)
    assert drawn != moments(times, 40 * (times + 1), seed=4)
    steps = [moment.step for moment in drawn]
    assert all(later - sooner >= 15 for sooner, later in zip([-7, *steps], [*steps, 40 * (times + 1)], strict=True))
    assert all(0 <= moment.later < 1 and 0 <= moment.draw < 1 for moment in drawn)


def test_the_cost_of_a_fault_is_read_off_what_was_seen():
    seen = [Seen(1.0, 46), Seen(2.0, 47), Seen(9.0, 40), Seen(9.5, 41), Seen(10.0, 47), Seen(11.0, 48)]
    cost = cost_of(2.5, 47, seen)
    assert cost is not None
    assert (cost.step, cost.lost, cost.seconds) == (47, 7, 8.5)
    assert cost_of(2.5, 47, seen[:-1]) is None
    moved = cost_of(2.5, 47, [Seen(2.0, 47), Seen(9.0, 48)])
    assert moved is not None
    assert moved.lost == 0
    assert not math.isnan(moved.seconds)


def test_a_schedule_of_faults_follows_from_its_seed_and_has_the_mean_gap():
    drawn = schedule(1e5, 100.0, seed=1)
    assert drawn == schedule(1e5, 100.0, seed=1)
    assert drawn != schedule(1e5, 100.0, seed=2)
    assert abs(len(drawn) - 1000) < 5 * math.sqrt(1000)  # a Poisson number
    assert all(sooner.seconds < later.seconds < 1e5 for sooner, later in pairwise(drawn))
    for kind in KINDS:
        share = sum(fault.kind == kind for fault in drawn) / len(drawn)
        assert abs(share - 1 / 3) < 5 * math.sqrt(2 / 9 / len(drawn))


def test_workers_that_come_late_do_not_stand_still():
    """A machine is lost, and another one comes after an hour: its first worker has joined, and the group has not begun."""
    course = begun(60.0, (1.0, 0), (2.0, 47))
    assert course.still(3602.0) == 3600.0
    course.gather(3602.0)
    assert course.still(3602.5) == 0.0
    assert course.still(3602.0 + 119.0) == 0.0, "before its first step a group has two minutes"
    assert course.still(3602.0 + 121.0) == 121.0
    course.begin(3610.0)
    course.tell("r", 40, 3611.0)
    (loss,) = course.tell("r", 48, 3620.0)
    assert (loss.steps, loss.seconds) == (7, 3618.0), "what the wait cost is told"
