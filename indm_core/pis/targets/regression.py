r"""Bayesian logistic regression: the posterior of the weights of a classifier.

    x = (w_1, ..., w_p, b),    mu^(x) = N(x; 0, I) prod_j sigma(s_j (a_j . w + b)),

rows a_j of features, labels s_j = 2 y_j - 1 of +-1, d = p + 1: weights and an intercept, all N(0, 1) a priori, so that Z is the
probability of the labels. The features are taken as they are given; the benchmarks standardise them.

References:
    Blessing et al. 2024, "Beyond ELBOs: a large-scale evaluation of variational methods for sampling". Its published code
    leaves the prior out for breast cancer, so that Z is another there.
"""

from __future__ import annotations

import math
from typing import final

from torch import Tensor
from torch.nn import functional as F

from indm_core.pis.targets.base import Target
from indm_core.shapes import Float

__all__ = ["LogisticRegression"]


@final
class LogisticRegression(Target):
    """The posterior of a logistic regression.

    Args:
        x: Features a, (m, p).
        y: Labels, (m,), each 0 or 1.

    Raises:
        ValueError: other shapes, features that are not finite, or other labels.
    """

    features: Tensor
    signs: Tensor

    def __init__(self, x: Tensor, y: Tensor) -> None:
        super().__init__()
        if x.ndim != 2 or not x.numel() or not x.is_floating_point() or not x.isfinite().all():
            raise ValueError(f"x of the shape {tuple(x.shape)}, {x.dtype}: give finite floating-point features (m, p)")
        if y.shape != x.shape[:1]:
            raise ValueError(f"y of the shape {tuple(y.shape)}: give {len(x)} labels, one for each row of x")
        if not ((y == 0) | (y == 1)).all():
            raise ValueError(f"y={float(y[(y != 0) & (y != 1)][0]):g}: each label is 0 or 1")
        self.dim = x.shape[1] + 1
        self.keep(features=x, signs=2 * y.to(x) - 1)

    def log_prob(self, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        log_odds = x[:, :-1] @ self.features.to(x).mT + x[:, -1:]
        log_prior = -0.5 * (x.square().sum(1) + self.dim * math.log(2 * math.pi))
        return log_prior + F.logsigmoid(self.signs.to(x) * log_odds).sum(1)
