"""What a page is made from: runs on the same data, and test rows of these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipelines.config.store import check_data
from pipelines.config.weights import Weights
from pipelines.data.cache import ensure
from pipelines.data.card import Card, load_card
from pipelines.data.shards import read_all
from pipelines.data.spec import DataSpec
from pipelines.reporting.tables import Run
from pipelines.storage.outputs import output_root

__all__ = ["TestRows", "read_runs", "test_rows"]


@dataclass(frozen=True, eq=False)
class TestRows:
    """Test rows as they are stored, (n, *shape) float32: levels or vectors; and the card of their data set."""

    card: Card
    rows: Tensor

    def seen(self, num: int) -> Tensor:
        """The first of them as a model sees them: dequantised with a fixed seed, or standardised."""
        return DataSpec.of(self.card).to_model(self.rows[:num], torch.Generator().manual_seed(0))


def read_runs(chosen: Sequence[Weights]) -> list[Run]:
    """The runs of some weights, which must be on the same data.

    Raises:
        ValueError: a directory that holds no run, or runs on other data.
    """
    runs = [Run.read(weights) for weights in chosen]
    for run in runs[1:]:
        if run.spec != runs[0].spec or run.config.data.source != runs[0].config.data.source:
            names = f"{run.spec.name} and {runs[0].spec.name}"
            raise ValueError(f"{run.weights} and {chosen[0]} are on other data ({names}): report them apart")
    return runs


def test_rows(run: Run, num: int) -> TestRows:
    """At most so many test rows of a run's data.

    Raises:
        ValueError: the data are gone, or are not those that it was trained on.
    """
    place = ensure(run.config.data.source, output_root(None) / "data", run.config.data.options)
    card = load_card(place)
    check_data(run.weights, card)
    return TestRows(card, torch.from_numpy(read_all(place, card, "test", num)["x"].astype("float32")))
