"""Classes of pieces and separators: one for each piece, or a map of the canvas."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from indm_core.collage import FactorGraph
from indm_core.model import GenerativeModel
from pipelines.config.weights import Weights
from pipelines.evaluation.collages.conditions import Conditions
from pipelines.evaluation.collages.pictures import array, is_array, levels

__all__ = ["condition_of"]

NONE = 255
"""The grey level of a picture that stands for no class."""
MOST = np.float64(2**31)
"""Beyond which no number is a class of any model."""


def condition_of(
    run: Weights, model: GenerativeModel, conditions: Conditions, graph: FactorGraph, guidance: float = 0.0
) -> Tensor | None:
    """What the regions of a canvas are told.

    Args:
        guidance: With which they are led there.

    Returns:
        A class for each factor, (num_factors,), -1 for none; of a map, weights over none and the classes for each region,
        (num_regions, 1 + num_classes): the share of each among its positions. None where nothing is told.

    Raises:
        ValueError: another number of labels than pieces, a map that cannot be read or has another size, a class that the model
            does not have, or a model without any; guidance to none.
    """
    if not conditions.labelled:
        return None
    given = conditions.factor_labels
    of = f"class_map={conditions.class_map}" if conditions.class_map else f"factor_labels={','.join(map(str, given))}"
    if given and len(given) != len(graph.factors):
        raise ValueError(
            f"{of}: {len(given)} labels for {len(graph.factors)} pieces; give one for each, -1 for none, or another "
            "--num-factors"
        )
    if not model.num_classes:
        raise ValueError(
            f"{of}: {run} was trained without labels; leave them out, or train a run with --conditional true"
        )
    classes = np.array(given) if given else _map(of, conditions.class_map)
    wrong = classes[(classes < -1) | (classes >= model.num_classes)]
    if len(wrong):
        raise ValueError(
            f"{of}: {wrong.flat[0]} is no class, the model was trained on 0 to {model.num_classes - 1}; take those, or -1 for "
            "none"
        )
    if guidance and (classes < 0).all():
        raise ValueError(
            f"guidance={guidance:g}: it leads nowhere, because {of} holds no class; give one, or no guidance"
        )
    if given:
        return torch.from_numpy(classes)
    lead = model.shape[1 : len(model.shape) - len(graph.shape)]
    sides = (*lead, *graph.shape)
    shares = torch.nn.functional.one_hot(torch.from_numpy(_enlarged(of, classes, sides)) + 1, 1 + model.num_classes)
    flat = shares.float().reshape(math.prod(lead), math.prod(graph.shape), -1).mean(0)
    return torch.stack([flat[region.index.flatten()].mean(0) for region in graph.regions])


def _map(of: str, word: str) -> np.ndarray:
    """The classes of a map, int64, -1 for none."""
    if not is_array(word):
        grey = levels("class_map", word).astype(np.int64)
        return np.where(grey == NONE, -1, grey)
    found = array("class_map", word)
    if not np.isfinite(found).all() or (found != np.round(found)).any():
        raise ValueError(f"{of}: holds what is no class; give whole numbers, -1 for none")
    beyond = found[(found < -MOST) | (found > MOST)]  # in int64 they would be other numbers, of uint64 even -1
    if len(beyond):
        raise ValueError(f"{of}: {beyond[0]} is no class; give whole numbers, -1 for none")
    return found.astype(np.int64)


def _enlarged(of: str, classes: np.ndarray, sides: tuple[int, ...]) -> np.ndarray:
    """The map with a class for each position of the canvas."""
    if classes.ndim != len(sides) or any(
        not have or want % have for have, want in zip(classes.shape, sides, strict=True)
    ):
        have, want = ("x".join(map(str, shape)) or "a number" for shape in (classes.shape, sides))
        raise ValueError(
            f"{of}: its size is {have}, and the canvas is {want}; give one of that size, or of a divisor of it"
        )
    for axis, want in enumerate(sides):
        classes = classes.repeat(want // classes.shape[axis], axis)
    return classes
