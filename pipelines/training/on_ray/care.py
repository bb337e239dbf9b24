"""What the driver does for its workers while they train.

- Workers that stand still (`watch.course`) are ended, so that Ray starts the group again from the last checkpoint. With one
  worker nothing else would notice: no collective waits for it, and Ray asks whether the process answers, not whether it steps.
- Workers on a machine that is to leave the cluster (`ray drain-node`, a spot machine's notice) write a checkpoint after the
  step that they are in, and begin again on the machines that stay: no step is lost.
- What a restart has lost is said when it is made up for, and what the workers have to say.
"""

from __future__ import annotations

import time
from collections import defaultdict
from contextlib import suppress
from typing import Any

import ray
from ray._private.state import state as gcs
from ray.exceptions import GetTimeoutError, RayError

from pipelines.training.on_ray.notices import Member, State

__all__ = ["Care"]

LOOK_SECONDS, ANSWER_SECONDS = 1.0, 5.0
MOST_LEAVES = 2
"""So many groups leave a machine that is to go: Ray begins none there, except one that began when the notice came."""


class Care:
    """Looks after the workers that tell an actor `Notices` of their steps.

    Args:
        notices: Handle of the actor.
    """

    def __init__(self, notices: Any) -> None:
        self.notices = notices
        self.looked, self.left = 0.0, defaultdict[str, set[int]](set)

    def look(self, *, last: bool = False) -> None:
        """Called again and again while workers train; does something every `LOOK_SECONDS`.

        Args:
            last: They have ended, and what is left is said.
        """
        if not last and time.monotonic() - self.looked < LOOK_SECONDS:
            return
        with suppress(RayError, GetTimeoutError):  # where the cluster itself does not answer, the training says so
            state: State = ray.get(self.notices.state.remote(), timeout=ANSWER_SECONDS)
            for line in state.lines:
                print(line, flush=True)
            if not last:
                self._end_those_that_stand_still(state)
                self._have_leave_those_that_must(state)
        self.looked = time.monotonic()

    def _end_those_that_stand_still(self, state: State) -> None:
        if not state.still or not (alive := [member for member in state.members if _alive(member)]):
            return
        print(
            f"{state.run or 'training'}: no step for {state.still:.0f} s after step {state.step}; the workers are ended, and "
            "begin again from the last checkpoint (--stall-seconds)",
            flush=True,
        )
        for member in alive:
            ray.kill(member.worker)

    def _have_leave_those_that_must(self, state: State) -> None:
        going = _draining()
        nodes = {member.node for member in state.members} & going.keys()
        nodes = {node for node in nodes if state.group not in self.left[node] and len(self.left[node]) < MOST_LEAVES}
        if not state.group or not nodes:  # a group that begins hears it when it takes steps
            return
        for node in nodes:
            self.left[node].add(state.group)
        seconds = min(going[node] for node in nodes)
        soon = f" in {seconds:.0f} s" if seconds < float("inf") else ""
        print(
            f"{state.run or 'training'}: a machine of the workers is to leave the cluster{soon}; they write a checkpoint and "
            "begin again on those that stay",
            flush=True,
        )
        ray.get(self.notices.ask_to_leave.remote(), timeout=ANSWER_SECONDS)


def _alive(member: Member) -> bool:
    """Whether a worker's process is there, be it stopped: of one that has ended Ray knows at once."""
    asked = member.worker.__ray_ready__.remote()
    if not ray.wait([asked], timeout=1.0)[0]:
        return True
    try:
        ray.get(asked)
    except RayError:
        return False
    return True


def _draining() -> dict[str, float]:
    """The machines that are to leave the cluster, by id, with the seconds that they are still there.

    Ray Train has a public call for it, `get_preemption_info`, which is an exchange between all workers; this asks the cluster
    from the driver, as Ray Train's own watcher does.
    """
    now = time.time()
    found: dict[str, int] = gcs.get_draining_nodes()
    return {node: deadline / 1e3 - now if deadline else float("inf") for node, deadline in found.items()}
