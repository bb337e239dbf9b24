r"""Feature networks: what an image or a vector is turned into before two sets are compared (`indm_core.metrics`).

A network is a value: its name, which becomes part of every metric's name, and a function. There are three:

    inception(weights)            2048 pool features and 1008 logits of the Inception-v3 network of the published FID,
    classifier_features(...)      64 features of a small network trained on the data set's own labels: "digits-cnn",
    raw(num_features)             the values themselves: for vectors, where the Frechet distance is one of the data.

Distances in the features of different networks are different quantities: only equal names are comparable, and none but
"inception-v3" is comparable with a paper's FID. A network is built where it is used (once per actor), not sent there.

References:
    Szegedy et al. 2016, "Rethinking the Inception architecture for computer vision" (the network).
    Obukhov et al. 2020, torch-fidelity (the weights, converted from TensorFlow, and the interpolation to 299x299).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import io
import json
import pickle
import re
import tempfile
import textwrap
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from indm_core.shapes import Float, Int
from pipelines.data.card import Card, one_line

__all__ = [
    "INCEPTION_URL",
    "FeatureNetwork",
    "SmallClassifier",
    "cached_classifier",
    "classifier",
    "classifier_features",
    "inception",
    "raw",
    "torchvision_operators",
]

INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)
_INCEPTION_SHA256 = "6726825d"  # how the published file's SHA-256 begins

# Part of a cached classifier's key: raise it when the architecture or its training changes.
_CLASSIFIER_VERSION = 1


@final
@dataclass(frozen=True, kw_only=True)
class FeatureNetwork:
    """A function from a batch to features, and its name.

    Args:
        name: What the metric is called after, e.g. "digits-cnn".
        num_features: d.
        num_classes: Classes that its logits tell apart; 0: it has none, and there is no Inception Score.
        evaluate: Batch -> (features (b, d), logits (b, num_classes)), both from one forward pass.
    """

    name: str
    num_features: int
    num_classes: int
    evaluate: Callable[[Tensor], tuple[Tensor, Tensor]]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Float[Tensor, "b d"]:
        """Features of a batch: of integer levels (b, c, h, w), or for `raw` of anything (b, ...)."""
        return self.evaluate(images)[0]

    @torch.no_grad()
    def with_logits(self, images: Tensor) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b k"]]:
        """Features and logits of a batch. Raises: ValueError if the network has no logits."""
        if self.num_classes == 0:
            raise ValueError(f"network={self.name!r}: it has no classes, so there are no logits")
        return self.evaluate(images)


def raw(num_features: int) -> FeatureNetwork:
    """The values of a vector or image themselves, flattened."""

    def evaluate(x: Tensor) -> tuple[Tensor, Tensor]:
        features = x.flatten(1)
        if features.shape[1] != num_features:
            raise ValueError(f"images: {features.shape[1]} values a sample, not num_features={num_features}")
        features = features if features.is_floating_point() else features.to(torch.get_default_dtype())
        return features, features[:, :0]

    return FeatureNetwork(name="raw", num_features=num_features, num_classes=0, evaluate=evaluate)


def inception(weights: Path | None, *, levels: int = 256, device: torch.device | str = "cpu") -> FeatureNetwork:
    """Inception-v3 as in the published FID and Inception Score; grey images are repeated to three channels.

    torch-fidelity would unpickle the file without restrictions, so it is read here, tensors only, and torch-fidelity
    gets a copy of the tensors in memory. A file other than the published one is called "inception-v3-" and the first
    eight digits of its SHA-256, because distances under it are not FIDs.

    Args:
        weights: A copy of the file at `INCEPTION_URL`; nothing is downloaded.
        levels: Levels of a pixel; values are stretched to 0..255 and rounded if it is not 256.
        device: Where the network runs.

    Raises: ValueError, in one line, if there is no file or it does not hold these weights.
    """
    hint = f"download {INCEPTION_URL} and pass --inception-weights FILE"
    if weights is None:
        raise ValueError(f"weights=None: the weights of Inception-v3 are needed; {hint}")
    try:
        content = weights.read_bytes()
    except OSError as error:
        raise ValueError(f"weights={str(weights)!r}: {error.strerror}; {hint}") from None
    extractor = _inception_extractor(str(weights), content, hint).to(device)
    digest = hashlib.sha256(content).hexdigest()
    name = "inception-v3" if digest.startswith(_INCEPTION_SHA256) else f"inception-v3-{digest[:8]}"

    def evaluate(images: Tensor) -> tuple[Tensor, Tensor]:
        values = _as_levels(images, levels).to(device)
        if values.shape[1] not in (1, 3):
            raise ValueError(f"images: {values.shape[1]} channels; Inception-v3 takes 3, or 1 that is repeated")
        if levels != 256:
            values = (values * (255 / (levels - 1))).round()
        return extractor(values.to(torch.uint8).expand(-1, 3, -1, -1))

    return FeatureNetwork(name=name, num_features=2048, num_classes=1008, evaluate=evaluate)


def _inception_extractor(source: str, content: bytes, hint: str) -> nn.Module:
    """torch-fidelity's network with the tensors in `content`, a file that need not be trusted."""
    try:
        with warnings.catch_warnings(action="ignore"):  # torch remarks on pickles that it then refuses
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise ValueError(f"weights={source!r}: no file of tensors only ({type(error).__name__}); {hint}") from None
    torchvision_operators()
    from torch_fidelity.utils import create_feature_extractor

    trusted = io.BytesIO()
    torch.save(state, trusted)
    trusted.seek(0)
    try:
        return create_feature_extractor(
            "inception-v3-compat",
            ["2048", "logits_unbiased"],
            cuda=False,
            verbose=False,
            feature_extractor_weights_path=trusted,
        )
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = textwrap.shorten(one_line(error), 120)
        raise ValueError(f"weights={source!r}: not the weights of Inception-v3 ({reason}); {hint}") from None


@functools.cache
def torchvision_operators() -> tuple[torch.library.Library, ...]:
    """Make `import torchvision`, hence torch-fidelity, possible beside a torch without CUDA.

    torchvision's wheel describes two operators of its compiled library at import, which is an error where the library
    cannot be loaded. Only their schemas are declared, and only where torchvision's own are absent; nothing here calls
    them. The cache keeps the declaration alive for the life of the process.
    """
    spec = importlib.util.find_spec("torchvision")
    for folder in spec.submodule_search_locations or () if spec else ():
        for library in Path(folder).glob("_C*"):
            with contextlib.suppress(OSError):
                torch.ops.load_library(str(library))
    missing = [name for name in ("nms", "qnms") if not hasattr(torch.ops.torchvision, name)]
    if not missing:
        return ()
    declared = torch.library.Library("torchvision", "FRAGMENT")
    for name in missing:
        declared.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return (declared,)


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
        x = _as_levels(images, self.levels).to(weight) * (2 / (self.levels - 1)) - 1
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
    both use the first one's.

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
        "version": _CLASSIFIER_VERSION,
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


def _write(home: Path, network: SmallClassifier, described: dict) -> None:
    home.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home.parent, prefix=".partial-") as partial:
        made = Path(partial) / home.name
        made.mkdir()
        save_file(network.state_dict(), made / "classifier.safetensors")
        (made / "classifier.json").write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
        try:
            made.rename(home)
        except OSError:
            if not home.is_dir():
                raise


def _read(home: Path, card: Card, described: dict) -> SmallClassifier:
    network = _on_meta(card.shape, levels=card.levels, num_classes=card.num_classes)
    try:
        if json.loads((home / "classifier.json").read_text(encoding="utf-8")) != described:
            raise ValueError("classifier.json describes another one")
        network.load_state_dict(load_file(home / "classifier.safetensors"))
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = textwrap.shorten(one_line(error), 120)
        raise ValueError(f"{home}: not a readable classifier ({reason}); delete it and it is trained again") from None
    return network.requires_grad_(False).eval()


def _on_meta(shape: tuple[int, ...], *, levels: int, num_classes: int) -> SmallClassifier:
    """A classifier with memory but without values, so that torch's own generator is not drawn from."""
    with torch.device("meta"):
        network = SmallClassifier(shape, levels=levels, num_classes=num_classes)
    return network.to_empty(device="cpu")


def _as_levels(images: Tensor, levels: int) -> Tensor:
    """Images as int32, checked to be integer levels 0..levels - 1 of shape (b, c, h, w)."""
    if images.is_floating_point() or images.ndim != 4:
        raise ValueError(
            f"images: dtype {images.dtype} and shape {tuple(images.shape)}; integer levels (b, c, h, w) are expected"
        )
    values = images.to(torch.int32)
    if values.numel() > 0 and (int(values.min()) < 0 or int(values.max()) >= levels):
        raise ValueError(f"images: values {int(values.min())}..{int(values.max())} are not all in 0..{levels - 1}")
    return values
