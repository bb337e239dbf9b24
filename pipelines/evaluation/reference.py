"""What models are compared with: test rows, training rows, and the features that both are seen in."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipelines.data.card import Card
from pipelines.data.order import permutation
from pipelines.data.shards import read_all, read_split
from pipelines.evaluation.features import FeatureNetwork, cached_classifier, classifier_features, inception, raw
from pipelines.evaluation.settings import Settings

__all__ = ["feature_key", "feature_maker", "num_images", "reference_rows", "test_rows"]


def num_images(card: Card, settings: Settings) -> int:
    count = card.split("test").count
    return min(settings.images or count, count)


def test_rows(data: Path, card: Card, settings: Settings) -> Tensor:
    return torch.from_numpy(read_all(data, card, "test", num_images(card, settings))["x"].astype("float32"))


def reference_rows(data: Path, card: Card, seed: int) -> Tensor:
    """At most 50,000 training rows, drawn without regard to their order (folders are sorted by class)."""
    count = card.split("train").count
    kept = np.sort(permutation(seed, 0, 0, count)[:50_000])
    chunks = (chunk["x"][np.isin(chunk["row"], kept)] for chunk in read_split(data, card, "train"))
    return torch.from_numpy(np.concatenate(list(chunks)))


def feature_key(make_features: Callable[[], FeatureNetwork]) -> str:
    """A hash of what a feature network is made of: its function and arguments, weights included."""
    sha = hashlib.sha256()
    assert isinstance(make_features, partial)
    sha.update(make_features.func.__name__.encode())
    for argument in make_features.args:
        if isinstance(argument, torch.nn.Module):
            for name, tensor in argument.state_dict().items():
                sha.update(name.encode() + tensor.contiguous().numpy().tobytes())
        else:
            sha.update(repr(argument).encode())
    return sha.hexdigest()[:16]


def feature_maker(
    card: Card, data: Path, root: Path, inception_weights: str = "", needed: bool = True
) -> tuple[str, Callable[[], FeatureNetwork]]:
    """The feature network's name and what builds it in an actor; a classifier is trained here if need be."""
    if inception_weights:
        weights = Path(inception_weights).expanduser().resolve()
        name = inception(weights, levels=card.levels).name  # a bad file is refused here, not in an actor
        return name, partial(inception, weights, levels=card.levels)
    if card.num_classes < 2 and card.num_dims > 1024 and needed:
        raise ValueError(
            f"{card.name} has no labels to train a feature network with and {card.num_dims} raw values are too many: "
            "give --inception-weights FILE, or --samples 0"
        )
    if card.kind == "vector" or card.num_classes < 2 or not needed:
        return "raw", partial(raw, card.num_dims)

    def training_split() -> tuple[Tensor, Tensor]:
        rows = read_all(data, card, "train", 60_000)
        return torch.from_numpy(rows["x"]), torch.from_numpy(rows["label"])

    network = cached_classifier(root / "features", card, training_split)
    return f"{card.name}-cnn", partial(classifier_features, network, card.name)
