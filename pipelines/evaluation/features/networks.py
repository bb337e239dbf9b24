r"""Feature networks: what an image or a vector is turned into before two sets are compared (`indm_core.metrics`).

A network is a value: its name, which becomes part of every metric's name, and a function. There are three:

    inception(weights)            2048 pool features and 1008 logits of the Inception-v3 network of the published FID,
    raw(num_features)             the values themselves: for vectors, where the Frechet distance is one of the data,
    classifier_features(...)      64 features of a small network trained on the data set's own labels: "digits-cnn"; in
                                  `classifier`.

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
import pickle
import textwrap
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from torch import Tensor, nn

from indm_core.shapes import Float
from pipelines.data.card import one_line

__all__ = [
    "INCEPTION_URL",
    "FeatureNetwork",
    "as_levels",
    "inception",
    "raw",
    "torchvision_operators",
]

INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)
_INCEPTION_SHA256 = "6726825d"  # how the published file's SHA-256 begins


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


def raw(num_features: int, mean: Sequence[float] = (), std: Sequence[float] = ()) -> FeatureNetwork:
    """The values of a row themselves, flattened; those of vectors less the mean of their column and over its standard
    deviation, where they are given, and of sequences likewise by channel."""

    def evaluate(x: Tensor) -> tuple[Tensor, Tensor]:
        features = x.flatten(1)
        if features.shape[1] != num_features:
            raise ValueError(f"images: {features.shape[1]} values a sample, not num_features={num_features}")
        features = features if features.is_floating_point() else features.to(torch.get_default_dtype())
        if std:
            of_each = [features.new_tensor(v).repeat_interleave(num_features // len(v)) for v in (mean, std)]
            features = (features - of_each[0]) / of_each[1]
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
        values = as_levels(images, levels).to(device)
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


def as_levels(images: Tensor, levels: int) -> Tensor:
    """Images as int32, checked to be integer levels 0..levels - 1 of shape (b, c, h, w)."""
    if images.is_floating_point() or images.ndim != 4:
        raise ValueError(
            f"images: dtype {images.dtype} and shape {tuple(images.shape)}; integer levels (b, c, h, w) are expected"
        )
    values = images.to(torch.int32)
    if values.numel() > 0 and (int(values.min()) < 0 or int(values.max()) >= levels):
        raise ValueError(f"images: values {int(values.min())}..{int(values.max())} are not all in 0..{levels - 1}")
    return values
