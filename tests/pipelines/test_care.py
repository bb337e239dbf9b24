"""What the driver does for workers that stand still or have to leave, without a cluster."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture
def group(monkeypatch):
    """Two workers on two machines, what was done to them, and the care that is taken of them."""
    from pipelines.training.on_ray import care
    from pipelines.training.on_ray.notices import Member, Notices

    found = SimpleNamespace(killed=[], draining={}, dead=set(), notices=Notices(10.0))
    for rank, node in enumerate(("here", "there")):
        found.notices.join(rank, 2, Member.of(f"worker {rank}", node))
    handle: Any = SimpleNamespace(
        state=SimpleNamespace(remote=found.notices.state),
        ask_to_leave=SimpleNamespace(remote=found.notices.ask_to_leave),
    )
    monkeypatch.setattr(care, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(care.ray, "get", lambda value, timeout=None: value)
    monkeypatch.setattr(care.ray, "kill", found.killed.append)
    monkeypatch.setattr(care, "_alive", lambda member: member.worker not in found.dead)
    monkeypatch.setattr(care, "_draining", lambda: found.draining)
    found.care = care.Care(handle)
    return found


def stand_still(group: SimpleNamespace, seconds: float = 30.0) -> None:
    """The group has taken a step, and none since."""
    course = group.notices.course
    group.notices.begin()
    began = course.when - seconds - 1.0
    course.gather(began)
    course.begin(began)
    course.tell("r", 40, began)
    course.tell("r", 41, began + 1.0)


def elsewhere(group: SimpleNamespace) -> None:
    """Another group begins, on machines that stay, and takes a step."""
    from pipelines.training.on_ray.notices import Member

    for rank, node in enumerate(("here", "new")):
        group.notices.join(rank, 2, Member.of(f"worker {rank}", node))
    group.notices.begin()
    group.notices.stopping("r", 1)


def test_workers_that_stand_still_are_ended(group, capsys):
    stand_still(group, seconds=9.0)
    group.care.look()
    assert group.killed == []
    stand_still(group)
    group.dead = {"worker 1"}
    group.care.look()
    assert group.killed == ["worker 0"]
    assert capsys.readouterr().out.startswith(
        "r: no step for 30 s after step 41; the workers are ended, and begin again"
    )


def test_the_next_job_is_given_time_to_begin(group):
    stand_still(group)
    group.notices.turn()
    group.care.look()
    assert group.killed == []


def test_workers_that_have_ended_already_are_waited_for(group, capsys):
    """Ray starts them again when there is room, which may take hours."""
    stand_still(group)
    group.dead = {"worker 0", "worker 1"}
    group.care.look()
    assert group.killed == []
    assert capsys.readouterr().out == ""


def test_workers_leave_a_machine_of_theirs_once(group, capsys):
    group.notices.begin()
    assert not group.notices.stopping("r", 0)
    group.draining = {"elsewhere": 30.0}
    group.care.look()
    assert not group.notices.stopping("r", 1)
    group.draining |= {"there": 30.0}
    group.care.look()
    assert group.notices.stopping("r", 2)
    assert group.notices.moves()
    assert "is to leave the cluster in 30 s" in capsys.readouterr().out
    elsewhere(group)
    group.care.look()
    assert not group.notices.stopping("r", 2)
    assert "is to leave" not in capsys.readouterr().out


def test_a_notice_while_workers_begin_is_heard_by_them(group):
    group.notices.begin()
    group.draining = {"there": 30.0}
    group.care.look()
    assert not group.notices.stopping("r", 1)  # all have joined: what is known of their machines is right from here on
    group.care.look()
    assert group.notices.stopping("r", 2)


def test_workers_leave_a_machine_that_they_are_put_on_again_only_so_often(group):
    group.draining = {"there": 30.0}
    left = []
    for _ in range(4):
        group.notices.begin()
        group.notices.stopping("r", 1)
        group.care.look()
        left.append(group.notices.stopping("r", 2))
    assert left == [True, True, False, False]


def test_a_command_that_is_to_stop_does_not_move(group):
    group.notices.begin()
    group.notices.ask_to_leave()
    group.notices.ask_to_stop()
    assert not group.notices.moves()


def test_a_smaller_group_forgets_the_workers_beyond_it(group):
    from pipelines.training.on_ray.notices import Member

    group.notices.join(0, 1, Member.of("worker 2", "here"))
    assert [member.worker for member in group.notices.state().members] == ["worker 2"]


def test_what_workers_say_and_what_a_restart_lost_is_said_once(group, capsys):
    stand_still(group)
    group.notices.begin()
    group.notices.say("step-00000040: damaged")
    group.notices.stopping("r", 30)
    group.notices.stopping("r", 42)
    group.care.look()
    group.care.look(last=True)
    said, loss = capsys.readouterr().out.splitlines()
    assert said == "step-00000040: damaged"
    assert loss.startswith("r: after a restart at step 30 steps 31 to 41 were taken again (11 steps, ")
