"""What an evaluation needs of its data, found out before any work is done for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pipelines.data.card import Card
from pipelines.data.shards import read_labels
from pipelines.evaluation.features.reference import check_features, has_classifier
from pipelines.evaluation.settings import Settings

__all__ = ["attainable", "check_needs"]


def check_needs(data: Path, card: Card, settings: Settings, partner: Card | None = None) -> None:
    """Refuses what an evaluation would stumble over at its end.

    Args:
        data, card: The prepared data set.
        settings: What is measured.
        partner: The second data set of a bridge.

    Raises:
        ValueError: no test split, or samples that cannot be compared with the data.
    """
    for each in filter(None, (card, partner)):
        if "test" not in each.splits:
            raise ValueError(
                f"{each.name} has no test split to measure on; prepare one, or train with --evaluate false and without "
                "--measure-every"
            )
    if settings.compares:
        check_features(card, settings.inception_weights)
        if not settings.inception_weights and has_classifier(card):
            _check_labels(data, card)


def _check_labels(data: Path, card: Card) -> None:
    """A classifier whose features samples are compared in needs a label for every row."""
    labels = read_labels(data, card, "train")
    wrong = ((labels < 0) | (labels >= card.num_classes)).nonzero()[0]
    if len(wrong):
        raise ValueError(
            f"{card.name}: {len(wrong):,} of {len(labels):,} training rows have no label in 0..{card.num_classes - 1} "
            f"(the first is row {wrong[0]}), and the features of samples are learned from labels: "
            "give --inception-weights FILE or --samples 0"
        )


def attainable(data: Path, card: Card, settings: Settings, partner: Card | None = None) -> Settings:
    """The settings, without the distances of samples where the data do not allow them; what is left out is said.

    Raises:
        ValueError: no test split, without which nothing can be measured.
    """
    try:
        check_needs(data, card, settings, partner)
    except ValueError as error:
        less = replace(settings, samples=0)
        check_needs(data, card, less, partner)
        print(f"no distances of samples: {error}", flush=True)
        return less
    return settings
