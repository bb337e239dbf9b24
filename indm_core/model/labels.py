r"""Labels: what a conditional score is told of a sample, and how it also learns to do without.

A label y of K classes is an integer in 0 .. K - 1 for each sample, -1 for none; or weights (b, K + 1) over "none" and the
classes, in this order, between which one can interpolate: a class is a row with a single one. A network adds the weighted mean
of its vectors of the classes to its embedding of the time; that of "none" is zero, so that a sample without a label, a batch
without labels and a network without classes are one thing.

In training each label is replaced by none with probability p. One network then holds s(u, y) and s(u), which guidance needs.

References:
    Ho, Salimans 2022, "Classifier-free diffusion guidance", Algorithm 1. Zhang 2023 (thesis), Figures 4.6 and 4.8.
"""

from __future__ import annotations

import torch
from torch import Tensor

from indm_core.noise import Noise, rand

__all__ = ["dropped", "labels_of", "null_of"]


def null_of(y: Tensor) -> Tensor:
    """No label, in the form of y: -1, or the weights (K + 1,) of none."""
    if not y.is_floating_point():
        return y.new_full((), -1)
    none = y.new_zeros(y.shape[-1])
    none[0] = 1
    return none


def dropped(y: Tensor, p: float, generator: Noise = None) -> Tensor:
    """The labels, each replaced by none with probability p; p = 0 draws nothing.

    Args:
        y: (b,), or weights (b, K + 1).
        p: In [0, 1].
    """
    if not p:
        return y
    none = (rand(len(y), y, generator) < p).reshape(-1, *[1] * (y.ndim - 1))
    return torch.where(none, null_of(y), y)


def labels_of(label: int | Tensor, num: int, num_classes: int) -> Tensor:
    """The labels of `num` samples: one for all, one for each, or weights (num, K + 1).

    Args:
        num_classes: K of the model; 0: it was trained without labels.

    Raises:
        ValueError: a model without labels, a class that it does not have, or another shape.
    """
    if not num_classes:
        shown = label if isinstance(label, int) else tuple(label.shape)
        raise ValueError(
            f"label={shown}: the model was trained without labels; leave the label out, or train with them"
        )
    y = torch.as_tensor(label)
    if y.is_floating_point():
        if y.shape != (num, num_classes + 1):
            raise ValueError(
                f"label has the shape {tuple(y.shape)}: weights over none and {num_classes} classes are "
                f"({num}, {num_classes + 1})"
            )
        return y
    if y.ndim and y.shape != (num,):
        raise ValueError(f"label has the shape {tuple(y.shape)}: give one class, or one for each of {num} samples")
    wrong = y[(y < -1) | (y >= num_classes)].flatten()
    if len(wrong):
        raise ValueError(
            f"label={int(wrong[0])}: the model was trained on the classes 0 to {num_classes - 1}; take one of them, "
            "or -1 for none"
        )
    return y.long().expand(num)
