"""The gauges of a worker: what each is set to, and under which labels."""

from __future__ import annotations

import pytest

from pipelines.runs.record import HeldOut, Record

pytest.importorskip("ray")

RECORD = Record(
    step=40,
    terms={"nelbo": 7.5, "prior": 2.0},
    unit="bits/dim",
    images_per_s=60.0,
    data_wait=0.25,
    step_s=0.5,
    skipped=3,
    gradient_norms={"score": 4.0},
    held_out=HeldOut(nelbo=5.0, se=0.5),
)


def test_a_worker_shows_its_share_and_the_run_s_losses(monkeypatch):
    from pipelines.training.on_ray import gauges

    shown = {}

    class Gauge:
        def __init__(self, name, description, tag_keys):
            self.name, self.keys = name, set(tag_keys)

        def set(self, value, labels):
            assert labels.keys() == self.keys
            shown[self.name, *(v for k, v in labels.items() if k not in ("run", "rank"))] = value
            assert (labels["run"], labels["rank"]) == ("digits", "1")

    monkeypatch.setattr(gauges, "Gauge", Gauge)
    worker = gauges.Gauges(rank=1, world=4, restarts=2)
    worker.show("digits", RECORD)
    assert shown == {
        ("indm_step",): 40,
        ("indm_restarts",): 2,
        ("indm_images_per_s",): 15.0,
        ("indm_data_wait",): 0.25,
        ("indm_step_seconds",): 0.5,
        ("indm_skipped_steps",): 3,
        ("indm_held_out_nelbo",): 5.0,
        ("indm_loss", "nelbo"): 7.5,
        ("indm_loss", "prior"): 2.0,
        ("indm_gradient_norm", "score"): 4.0,
    }
    shown.clear()
    worker.show("digits", Record(step=0, held_out=RECORD.held_out))  # before the first step there is no speed to show
    assert shown.keys() == {("indm_step",), ("indm_restarts",), ("indm_held_out_nelbo",)}
