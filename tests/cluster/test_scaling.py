"""The model of benchmarks/scaling.py in its limits, and that what it counts is what the recipes have."""

from __future__ import annotations

import math
from dataclasses import asdict, replace

import pytest

from benchmarks.scaling import (
    MACHINE,
    WORKLOADS,
    Machine,
    Plan,
    efficiency,
    mended,
    predict,
    rate,
    reading,
    reduction,
    ring,
    table,
)

WHAT = pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.name)
IDEAL = Machine(
    near=0.0, far=0.0, inside=math.inf, between=math.inf, jitter=0.0, decode=math.inf, storage=math.inf, mtbf=math.inf
)
"""Between whose GPUs everything is free; a GPU has still to do what one alone does."""


@WHAT
def test_one_gpu_waits_for_nobody(workload):
    step = predict(workload, MACHINE, Plan(gpus=1, batch=workload.batch))
    assert (step.sum, step.wait, step.asking) == (0, 0, 0)
    assert step.compute == pytest.approx(3 * workload.forward * workload.batch / (MACHINE.peak * MACHINE.use))
    assert efficiency(workload, MACHINE, Plan(gpus=1, batch=workload.batch)) == 1


@WHAT
@pytest.mark.parametrize("gpus", [8, 64, 512])
def test_what_grows_with_free_exchange_is_linear(workload, gpus):
    plan = Plan(gpus=gpus, batch=workload.batch * gpus)
    assert efficiency(workload, IDEAL, plan) == pytest.approx(1, rel=1e-12)
    assert efficiency(workload, MACHINE, plan) < 1


@WHAT
def test_the_parts_are_the_whole_and_the_limit_is_one_of_them(workload):
    plan = Plan(gpus=512, batch=512 * workload.batch)
    step = predict(workload, MACHINE, plan)
    assert step.seconds == pytest.approx(sum(asdict(step).values()))
    assert asdict(step)[step.limit] == max(value for name, value in asdict(step).items() if name != "compute")
    assert rate(workload, MACHINE, plan) == plan.batch / step.seconds


def test_a_ring_sends_the_gradients_twice_at_most():
    assert ring(1, 1e9, 1e9, 1.0) == 0
    assert ring(2, 1e9, 1e9, 0.0) == 1
    assert ring(10**6, 1e9, 1e9, 0.0) == pytest.approx(2, rel=2e-6)
    assert ring(4, 0.0, 1e9, 1e-3) == pytest.approx(6e-3)


def test_within_machines_first_is_quicker_where_the_way_between_them_is_long():
    plan = Plan(gpus=512, batch=512)
    flat, first = (reduction(MACHINE, replace(plan, hierarchical=value), 1e3) for value in (False, True))
    assert first < flat / 5  # 63 steps between machines in place of 511
    one = Plan(gpus=8, batch=8)
    assert reduction(MACHINE, one, 1e9) == reduction(MACHINE, replace(one, hierarchical=True), 1e9)


def test_the_batch_of_a_recipe_ends_the_growth():
    (workload, *_) = WORKLOADS
    with pytest.raises(ValueError, match="batch=128: not a multiple of gpus=512"):
        predict(workload, MACHINE, Plan(gpus=512, batch=128))
    shares = [efficiency(workload, MACHINE, Plan(gpus=n, batch=128)) for n in (1, 2, 4, 8, 64)]
    assert shares == sorted(shares, reverse=True)
    small = predict(workload, MACHINE, Plan(gpus=64, batch=128))
    assert small.limit == "launches"  # two images a GPU
    assert small.compute + small.launches == pytest.approx(workload.operations * MACHINE.launch)


def test_more_workers_than_streams_read_the_same_rows_again():
    *_, workload = WORKLOADS  # larger than what a machine keeps
    plan = Plan(gpus=512, batch=512 * workload.batch)
    assert reading(workload, MACHINE, plan) == pytest.approx(8 * reading(workload, MACHINE, replace(plan, streams=512)))
    assert reading(workload, MACHINE, replace(plan, copied=True)) < reading(workload, MACHINE, plan) / 10
    assert efficiency(workload, MACHINE, mended(plan)) > 5 * efficiency(workload, MACHINE, plan)


def test_a_set_that_a_machine_keeps_is_not_asked_of_the_storage():
    (workload, *_) = WORKLOADS
    plan = Plan(gpus=64, batch=64 * workload.batch)
    slow = replace(MACHINE, storage=1.0)
    assert reading(workload, slow, plan) == reading(workload, MACHINE, plan)
    assert reading(workload, replace(slow, cache=0.0), plan) == pytest.approx(
        plan.batch * workload.row_bytes * workload.stored
    )


def test_the_table_has_a_row_for_each_plan():
    rows = [line for line in table().splitlines() if line.startswith(("| 1 ", "| 8 ", "| 64 ", "| 512 "))]
    assert len(rows) == 8 + 8 + 7
    assert all(row.count("|") == 14 for row in rows)


@pytest.mark.slow
def test_the_networks_are_those_of_the_recipes():
    from benchmarks.scaling_measured import NETWORKS, backbone, counted
    from pipelines.recipes import find

    for workload, (recipe, side) in zip(WORKLOADS, NETWORKS.items(), strict=True):
        parameters, forward, operations = counted(backbone(recipe, side), side)
        assert workload.parameters == parameters
        assert workload.forward == pytest.approx(forward, rel=1e-3)
        assert workload.operations == operations
        run = find(recipe)()
        assert workload.batch == run.train.batch_size
        assert workload.save_every == run.train.checkpoint_every
