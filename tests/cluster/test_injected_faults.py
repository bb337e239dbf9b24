"""The project's commands under faults at random moments: they go on, lose an interval at most, and end as undisturbed ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import fault_clusters, faults
from benchmarks.fault_table import Asked

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Asked:
    """Two faults of a kind; the undisturbed run beside them is trained once."""
    return Asked(times=2, seed=1, out=Path(tmp_path_factory.mktemp("faults")))


@pytest.mark.parametrize("kind", ["worker", "driver", "hang", "write", "damage"])
def test_a_training_through_faults_ends_with_the_weights_of_an_undisturbed_one(kind, asked):
    row = faults.KINDS[kind](asked)
    assert len(row.costs) == row.injected == 2
    assert all(0 <= cost.lost <= row.interval for cost in row.costs)
    assert " is that of the undisturbed run" in row.equal, row.line()


def test_workers_leave_a_machine_that_is_drained_and_lose_no_step(asked):
    row = fault_clusters.drain(asked)
    assert [cost.lost for cost in row.costs] == [0, 0]


def test_a_training_goes_on_when_a_machine_is_lost_and_another_one_joins(asked):
    row = fault_clusters.node(asked)
    assert len(row.costs) == 2
    assert all(0 <= cost.lost <= row.interval for cost in row.costs)


def test_an_evaluation_that_lost_actors_has_the_figures_of_one_that_did_not(asked):
    assert "figures are those of the undisturbed evaluation" in faults.actor(asked).equal


def test_a_sweep_whose_trials_were_lost_measures_them_all_when_it_is_given_again(asked):
    row = faults.trial(asked)
    assert len(row.costs) == 2
    assert row.equal == "all trials are measured"
