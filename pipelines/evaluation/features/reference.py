"""What models are compared with: rows of the data, and the features that both are seen in."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipelines.data.card import Card
from pipelines.data.order import permutation
from pipelines.data.shards import read_all, read_split
from pipelines.evaluation.features.classifier import cached_classifier, classifier_features
from pipelines.evaluation.features.networks import INCEPTION_URL, FeatureNetwork, inception, raw
from pipelines.storage.paths import local_path

__all__ = [
    "MOST_ROWS",
    "Extractor",
    "Reference",
    "check_features",
    "extractor_of",
    "feature_key",
    "has_classifier",
    "reference_rows",
    "split_rows",
]

MOST_ROWS = 50_000
"""Of the training split, in a reference."""
MOST_RAW = 1024
"""Values of an image that are compared as they are."""


@dataclass(frozen=True, eq=False)
class Extractor:
    """A feature network's name and what builds it in an actor."""

    name: str
    make: Callable[[], FeatureNetwork]

    @property
    def key(self) -> str:
        return feature_key(self.make)


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What a distance is from, without which it cannot be had again.

    Args:
        data: The data set.
        split: Of which the rows are.
        size: Number of rows, at most 50,000 drawn by the seed of the evaluation.
        features: Name of the network that rows and samples are seen by.
        key: A hash of that network, weights included; '' where an earlier version did not say.
    """

    data: str
    split: str = "train"
    size: int
    features: str
    key: str = ""

    @staticmethod
    def of(card: Card, size: int, extractor: Extractor) -> Reference:
        return Reference(data=card.name, size=size, features=extractor.name, key=extractor.key)

    def __str__(self) -> str:
        key = f" ({self.key})" if self.key else ""
        return f"{self.size:,} rows of {self.data}, split {self.split}, features {self.features}{key}"


def split_rows(data: Path, card: Card, split: str, most: int = 0) -> Tensor:
    """The first rows of a split in the stored type; 0 takes all.

    Raises:
        ValueError: no such split.
    """
    count = card.split(split).count
    return torch.from_numpy(read_all(data, card, split, min(most or count, count))["x"])


def reference_rows(data: Path, card: Card, seed: int) -> Tensor:
    """At most 50,000 training rows in the stored type, drawn without regard to their order (folders are sorted by class)."""
    count = card.split("train").count
    kept = np.sort(permutation(seed, 0, 0, count)[:MOST_ROWS])
    chunks = (chunk["x"][np.isin(chunk["row"], kept)] for chunk in read_split(data, card, "train"))
    return torch.from_numpy(np.concatenate(list(chunks)))


def feature_key(make: Callable[[], FeatureNetwork]) -> str:
    """A hash of what a feature network is made of: its function and arguments, weights included."""
    sha = hashlib.sha256()
    assert isinstance(make, partial)
    sha.update(make.func.__name__.encode())
    for argument in (*make.args, *(pair for pair in sorted(make.keywords.items()))):
        if isinstance(argument, torch.nn.Module):
            for name, tensor in argument.state_dict().items():
                sha.update(name.encode() + tensor.contiguous().numpy().tobytes())
        elif isinstance(argument, Path):  # a file is what it holds, wherever it lies
            sha.update(argument.read_bytes())
        else:
            sha.update(repr(argument).encode())
    return sha.hexdigest()[:16]


def has_classifier(card: Card) -> bool:
    """Whether a classifier of the data's own labels gives their features, where Inception's weights are not given."""
    return card.kind == "image" and card.num_classes >= 2


def check_features(card: Card, inception_weights: str = "", most_raw: int = MOST_RAW) -> None:
    """Refuses data for which there are no features; costs nothing.

    Raises:
        ValueError: data that Inception does not take, weights that are not there, or images of too many values without labels.
    """
    if inception_weights:
        if card.kind != "image" or card.shape[0] not in (1, 3):
            raise ValueError(
                f"inception_weights={inception_weights}: {card.name} has rows of shape {card.shape}, and Inception takes "
                "images of 1 or 3 channels; leave the option out"
            )
        if not Path(inception_weights).expanduser().is_file():
            raise ValueError(f"inception_weights={inception_weights}: no such file; download {INCEPTION_URL}")
    elif not has_classifier(card) and card.num_dims > most_raw:
        remedy = "give --inception-weights FILE (evaluate.py also takes --samples 0)"
        raise ValueError(
            f"{card.name} has no labels to train a feature network with and {card.num_dims} raw values are too many: {remedy}"
            if card.kind == "image"
            else f"{card.name} has rows of {card.num_dims} values, and a Frechet distance takes at most {most_raw}: give "
            "--samples 0"
        )


def extractor_of(
    card: Card, data: Path, root: Path, inception_weights: str = "", most_raw: int = MOST_RAW
) -> Extractor:
    """The features that a data set's samples are compared in: Inception's where its weights are given, those of a classifier of
    the data's labels, which is trained here if need be, or the values themselves.

    Args:
        most_raw: Values of an image that are compared as they are.

    Raises:
        ValueError: no readable weights, or an image of more values without labels.
    """
    check_features(card, inception_weights, most_raw)
    if inception_weights:
        weights = local_path(inception_weights, "--inception-weights").resolve()
        name = inception(weights, levels=card.levels).name  # a bad file is refused here, not in an actor
        return Extractor(name, partial(inception, weights, levels=card.levels))
    if not has_classifier(card):
        return Extractor("standardised" if card.std else "raw", partial(raw, card.num_dims, card.mean, card.std))

    def training_split() -> tuple[Tensor, Tensor]:
        rows = read_all(data, card, "train", 60_000)
        return torch.from_numpy(rows["x"]), torch.from_numpy(rows["label"])

    network = cached_classifier(root / "features", card, training_split)
    return Extractor(f"{card.name}-cnn", partial(classifier_features, network, card.name))
