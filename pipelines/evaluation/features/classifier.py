"""A small classifier of a data set's own labels, whose activations are features to compare samples in.

Where no published network fits (8x8 digits, grey letters), a network that tells the data's classes apart sees what
matters in them. It is trained once for a data set and kept: evaluations share it, as distances in two networks are
different quantities.
"""

from __future__ import annotations

import hashlib
import json
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from indm_core.shapes import Float, Int
from pipelines.config.provenance import say_unverified
from pipelines.data.card import Card, one_line
from pipelines.evaluation.features.networks import FeatureNetwork, as_levels
from pipelines.storage.files import new_directory, write_tensors
from pipelines.storage.manifest import read_manifest, write_manifest

__all__ = ["SmallClassifier", "cached_classifier", "classifier", "classifier_features"]

# Part of a cached classifier's key: raise it when the architecture or its training changes.
VERSION = 1
TENSORS, MANIFEST = "classifier.safetensors", "classifier.json"


@final
class SmallClassifier(nn.Module):
    """Three convolutions, a 2x2 average pool and two linear layers, for small images of any size and channels.

    Args:
        shape: (c, h, w) of an image.
        levels: L; pixels 0..L - 1 are mapped to [-1, 1].
        num_classes: Number of labels.
        num_features: Width of the layer before the logits, whose activations are the features.
    """

    def __init__(self, shape: tuple[int, ...], *, levels: int, num_classes: int, num_features: int = 64) -> None:
        super().__init__()
        channels, height, width = shape
        self.levels, self.num_classes, self.num_features = levels, num_classes, num_features
        stride = 2 if min(height, width) > 16 else 1
        self.body = nn.Sequential(
            nn.Conv2d(channels, 32, 3, stride=stride, padding=1),
            nn.SiLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(64, 64, 3, padding=1),
            nn.SiLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(4 * 64, num_features),
            nn.SiLU(),
        )
        self.head = nn.Linear(num_features, num_classes)

    def forward(self, images: Tensor) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b k"]]:
        """Integer levels (b, c, h, w) -> features (b, num_features) and logits (b, num_classes)."""
        weight = self.head.weight
        x = as_levels(images, self.levels).to(weight) * (2 / (self.levels - 1)) - 1
        features = self.body(x)
        return features, self.head(features)


def classifier(
    images: Tensor,
    labels: Int[Tensor, " n"],
    *,
    levels: int,
    num_classes: int,
    seed: int = 0,
    num_epochs: int = 20,
    max_steps: int = 1200,
    batch_size: int = 64,
    lr: float = 3e-3,
) -> SmallClassifier:
    """Train a `SmallClassifier` on a training split; the seed decides everything, torch's own generator is left alone.

    Adam with a one-cycle rate. Equal seeds give equal bits on one machine with one number of threads; elsewhere the
    last bits of a convolution differ, which is why evaluations share a cached one.

    Args:
        images: Integer levels (n, c, h, w).
        labels: In 0..num_classes - 1.
        levels: L.
        num_epochs, max_steps: The fewer steps of the two. One core: 4 seconds for digits, half a minute for MNIST.

    Raises: ValueError for labels out of range or of another number than the images.
    """
    num_samples = len(images)
    if num_samples == 0 or len(labels) != num_samples:
        raise ValueError(f"labels: {len(labels)} for {num_samples} images; one per image is needed, and an image")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise ValueError(f"labels: values {low}..{high}, but num_classes={num_classes} allows 0..{num_classes - 1}")
    generator = torch.Generator().manual_seed(seed)
    network = _on_meta(tuple(images.shape[1:]), levels=levels, num_classes=num_classes)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            nn.init.kaiming_normal_(parameter, nonlinearity="relu", generator=generator)
        else:
            nn.init.zeros_(parameter)

    batch_size = min(batch_size, num_samples)
    steps_per_epoch = num_samples // batch_size
    num_steps = min(num_epochs * steps_per_epoch, max_steps)
    optimizer = torch.optim.Adam(network.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=num_steps)
    order = torch.empty(0, dtype=torch.int64)
    for step in range(num_steps):
        k = step % steps_per_epoch
        if k == 0:
            order = torch.randperm(num_samples, generator=generator)
        rows = order[k * batch_size : (k + 1) * batch_size]
        loss = F.cross_entropy(network(images[rows])[1], labels[rows].long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.requires_grad_(False).eval()


def classifier_features(
    network: SmallClassifier, dataset: str, *, device: torch.device | str = "cpu"
) -> FeatureNetwork:
    """The features of a classifier trained on `dataset`, named "<dataset>-cnn"."""
    network = network.to(device)
    return FeatureNetwork(
        name=f"{dataset}-cnn",
        num_features=network.num_features,
        num_classes=network.num_classes,
        evaluate=lambda images: network(images.to(device)),
    )


def cached_classifier(
    directory: Path, card: Card, load: Callable[[], tuple[Tensor, Tensor]], *, seed: int = 0
) -> SmallClassifier:
    """The classifier of a data set: read from `directory`, or trained and written there.

    It lies in a directory of its own (classifier.safetensors, classifier.json), whose name holds a hash of what decides
    it: the SHA-256 of the training shards, shape, levels and classes, the seed, and the version of this code. The
    directory appears by one rename: a killed run leaves nothing that looks like a classifier, and of two runs that race
    both use the first one's. What is read is compared with its SHA-256.

    Args:
        directory: Where classifiers are kept; made if absent.
        card: The data set's card; it must have labels.
        load: Returns the training split, images (n, c, h, w) and labels (n,); called only if there is nothing to read.
        seed: Of the training.

    Raises: ValueError if the data set has no labels or what is there cannot be read.
    """
    if card.kind != "image" or card.num_classes < 2:
        raise ValueError(
            f"card: data set {card.name!r} has kind={card.kind!r}, num_classes={card.num_classes}; a classifier needs "
            f"images of at least 2 classes (else use Inception-v3 or raw features)"
        )
    described = {
        "version": VERSION,
        "shape": list(card.shape),
        "levels": card.levels,
        "num_classes": card.num_classes,
        "seed": seed,
        "train": [shard.sha256 for shard in card.split("train").shards],
    }
    key = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
    home = directory / f"{re.sub(r'[^A-Za-z0-9_-]', '_', card.name)}-cnn-{key[:16]}"
    if not home.is_dir():
        images, labels = load()
        network = classifier(images, labels, levels=card.levels, num_classes=card.num_classes, seed=seed)
        _write(home, network, described)
    return _read(home, card, described)


def _write(home: Path, network: SmallClassifier, described: dict[str, Any]) -> None:
    with new_directory(home, keep=home.is_dir) as made:
        digest = write_tensors(made / TENSORS, network.state_dict())
        write_manifest(made / MANIFEST, described, {TENSORS: digest})


def _read(home: Path, card: Card, described: dict[str, Any]) -> SmallClassifier:
    network = _on_meta(card.shape, levels=card.levels, num_classes=card.num_classes)
    try:
        manifest = read_manifest(home / MANIFEST)
        if manifest.content != described:
            raise ValueError(f"{MANIFEST} describes another one")
        manifest.verify()
        network.load_state_dict(load_file(home / TENSORS))
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = textwrap.shorten(one_line(error).replace(f"{home}/", ""), 120)
        raise ValueError(f"{home}: not a readable classifier ({reason}); delete it and it is trained again") from None
    if not manifest.checked:
        say_unverified(home)
    return network.requires_grad_(False).eval()


def _on_meta(shape: tuple[int, ...], *, levels: int, num_classes: int) -> SmallClassifier:
    """A classifier with memory but without values, so that torch's own generator is not drawn from."""
    with torch.device("meta"):
        network = SmallClassifier(shape, levels=levels, num_classes=num_classes)
    return network.to_empty(device="cpu")
