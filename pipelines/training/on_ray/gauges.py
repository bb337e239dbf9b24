"""What a training shows to whoever scrapes the cluster: the project's gauges, through Ray's metrics, in Prometheus' format.

Each worker sets its own, with the labels `run`, the run's name, and `rank`. Ray puts `ray_` before their names:

    ray_indm_step                     optimiser steps taken
    ray_indm_images_per_s             of this worker: its share of the batch; summed over ranks, the speed of the run
    ray_indm_data_wait                share of the time that steps waited for their batch, in [0, 1]
    ray_indm_step_seconds             of an optimiser step, without that wait
    ray_indm_loss                     by `term`, in the unit of the run's records
    ray_indm_gradient_norm            by `network`, before clipping
    ray_indm_skipped_steps            since the run began
    ray_indm_restarts                 how often the workers have begun again under this command
    ray_indm_held_out_nelbo           of the averaged weights; of rank 0 alone, at the steps at which it is measured
"""

from __future__ import annotations

from ray.util.metrics import Gauge

from pipelines.runs.record import Record

__all__ = ["Gauges"]

LABELS = ("run", "rank")


class Gauges:
    """The gauges of a worker.

    Args:
        rank, world: Of the worker.
        restarts: How often the workers have begun again.
    """

    def __init__(self, rank: int, world: int, restarts: int) -> None:
        self.rank, self.world, self.restarts = rank, world, restarts
        self._plain = {
            name: Gauge(f"indm_{name}", description=meaning, tag_keys=LABELS)
            for name, meaning in {
                "step": "Optimiser steps taken.",
                "images_per_s": "Rows that this worker trains on, per second.",
                "data_wait": "Share of the time that steps waited for their batch.",
                "step_seconds": "Seconds of an optimiser step, without that wait.",
                "skipped_steps": "Steps skipped since the run began.",
                "restarts": "How often the workers have begun again.",
                "held_out_nelbo": "NELBO of the averaged weights on held-out rows.",
            }.items()
        }
        self._loss = Gauge("indm_loss", description="Mean loss terms.", tag_keys=(*LABELS, "term"))
        self._norm = Gauge("indm_gradient_norm", description="Before clipping.", tag_keys=(*LABELS, "network"))

    def show(self, run: str, record: Record) -> None:
        """Sets the gauges to what a record says."""
        labels = {"run": run, "rank": str(self.rank)}
        values = {"step": float(record.step), "restarts": float(self.restarts)}
        if record.trained:
            values |= {
                "images_per_s": record.images_per_s / self.world,
                "data_wait": record.data_wait,
                "step_seconds": record.step_s,
                "skipped_steps": float(record.skipped),
            }
        if record.held_out:
            values["held_out_nelbo"] = record.held_out.nelbo
        for name, value in values.items():
            self._plain[name].set(value, labels)
        for term, value in record.terms.items():
            self._loss.set(value, {**labels, "term": term})
        for network, norm in record.gradient_norms.items():
            self._norm.set(norm, {**labels, "network": network})
