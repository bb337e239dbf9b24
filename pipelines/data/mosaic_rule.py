"""How well fields of classes obey the rule of `mosaics`: `rule_statistics`.

Of n fields c of R x C cells, such as a classifier finds in sampled canvases, with p_k the law of a step of lag k (`step_law`):

    f_d      share of the pairs of cells at lag k, along a row or a column, whose difference is d mod K; mean over n mosaics
    TV       1/2 sum_d |f_d - p_k(d)| in [0, 1], the distance from the rule

Pairs of one mosaic are not independent. Under the rule all rows of a mosaic have the same differences, so that with N = C - k
starting columns the share in one mosaic has the variance

    v_d = 1/N^2 sum_{|m| < k, N} (N - |m|) (sum_e p_{k-m}(e) p_m(d - e)^2 - p_k(d)^2),

since intervals of k steps that start m < k apart share k - m steps, and others none. f_d has the standard error sqrt(v_d / n),
and TV the mean 1/2 sum_d sqrt(2 v_d / (pi n)) for n that is not small. This is the noise that true mosaics show. For the
frequencies of the classes themselves, uniform under the rule, v is 1/(RC)^2 times the sum of the covariances
1/K P(c = c') - 1/K^2 of pairs of cells, where cells that lie x rows and y columns apart are equal with probability
p_{x+y}(0) if the lower one is to the right, and sum_e p_x(e) p_y(e) if it is to the left.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipelines.data.mosaics import step_law

__all__ = ["LAGS", "LagStatistics", "LawStatistics", "RuleStatistics", "Share", "rule_statistics"]

LAGS = (1, 2, 4, 8)
"""Cells apart."""


@dataclass(frozen=True, kw_only=True)
class LawStatistics:
    """An empirical law on 0, ..., K - 1 beside the true one.

    Args:
        observed: (K,) shares, which sum to 1.
        truth: (K,) probabilities.
        noise: (K,) standard errors of `observed` under the truth.
        error: The standard error of `distance`, over the mosaics, about its own mean (not the truth); nan for one mosaic.
    """

    observed: tuple[float, ...]
    truth: tuple[float, ...]
    noise: tuple[float, ...]
    error: float

    @property
    def distance(self) -> float:
        """The total variation between the two, in [0, 1]."""
        return sum(abs(f - p) for f, p in zip(self.observed, self.truth, strict=True)) / 2

    @property
    def expected_distance(self) -> float:
        """The mean of `distance` under the truth, from sampling alone; many mosaics."""
        return math.sqrt(2 / math.pi) * sum(self.noise) / 2

    @property
    def entropy(self) -> float:
        """Of `observed`, nats, at most log K."""
        return -sum(f * math.log(f) for f in self.observed if f > 0)


@dataclass(frozen=True, kw_only=True)
class LagStatistics:
    """Differences of classes at a lag.

    Args:
        axis: Whether the two cells lie in one row or in one column.
        lag: Cells apart.
        law: Of the later class minus the earlier, mod K.
    """

    axis: Literal["row", "column"]
    lag: int
    law: LawStatistics


@dataclass(frozen=True, kw_only=True)
class Share:
    """A share of pairs or blocks, in [0, 1].

    Args:
        num: How many of them a mosaic has.
        value: The mean over mosaics; nan where num is 0.
        error: Its standard error over mosaics; nan for one mosaic or where num is 0.
    """

    num: int
    value: float
    error: float


@dataclass(frozen=True, kw_only=True)
class RuleStatistics:
    """How well fields of classes obey the rule.

    Args:
        num: Mosaics.
        lags: Along rows and along columns, those of LAGS that fit.
        allowed: Of neighbours in a row or column, those whose difference is 0 or 1; 1 under the rule, 2/K for independent
            uniform classes.
        closed: Of the blocks of 2 x 2 cells, those with c00 + c11 = c01 + c10 mod K; 1 under the rule, 1/K for such classes.
        classes: The frequencies of the classes, uniform under the rule.
    """

    num: int
    lags: tuple[LagStatistics, ...]
    allowed: Share
    closed: Share
    classes: LawStatistics


def rule_statistics(classes: np.ndarray, num_classes: int) -> RuleStatistics:
    """The statistics of n fields.

    Args:
        classes: (n, R, C), whole numbers 0, ..., K - 1.
        num_classes: K.

    Raises:
        ValueError: another shape, no mosaic, or a class that is none.
    """
    if classes.ndim != 3 or 0 in classes.shape or classes.dtype.kind not in "iu":
        raise ValueError(
            f"classes: {classes.dtype} of shape {classes.shape}; they are whole numbers (mosaics, rows, cols)"
        )
    if classes.min() < 0 or classes.max() >= num_classes:
        raise ValueError(f"classes: {classes.min()} to {classes.max()}; they are 0 to {num_classes - 1}")
    c = classes.astype(np.int64)
    num, rows, cols = c.shape
    across, down = _differences(c, 1, num_classes), _differences(c.swapaxes(1, 2), 1, num_classes)
    allowed = np.concatenate([across.reshape(num, -1), down.reshape(num, -1)], axis=1) <= 1
    closed = (c[:, :-1, :-1] + c[:, 1:, 1:] - c[:, :-1, 1:] - c[:, 1:, :-1]) % num_classes == 0
    uniform = np.full(num_classes, 1 / num_classes)
    return RuleStatistics(
        num=num,
        lags=(*_lags(c, "row", num_classes), *_lags(c.swapaxes(1, 2), "column", num_classes)),
        allowed=_share(allowed),
        closed=_share(closed.reshape(num, -1)),
        classes=_law(c.reshape(num, -1), uniform, np.full(num_classes, _variance_of_classes(rows, cols, num_classes))),
    )


def _differences(c: np.ndarray, lag: int, num_classes: int) -> np.ndarray:
    """Along the last axis, mod K."""
    return (c[..., lag:] - c[..., : max(c.shape[-1] - lag, 0)]) % num_classes


def _lags(c: np.ndarray, axis: Literal["row", "column"], num_classes: int) -> list[LagStatistics]:
    """Those that fit along the last axis."""
    found = []
    for lag in LAGS:
        starts = c.shape[-1] - lag
        if starts >= 1:
            differences = _differences(c, lag, num_classes).reshape(len(c), -1)
            law = _law(differences, step_law(lag, num_classes), _variance_of_steps(lag, starts, num_classes))
            found.append(LagStatistics(axis=axis, lag=lag, law=law))
    return found


def _law(values: np.ndarray, truth: np.ndarray, variance: np.ndarray) -> LawStatistics:
    """Of values (n, pairs), where a mosaic's shares have a variance (K,) under the truth."""
    shares = np.stack([(values == d).mean(axis=1) for d in range(len(truth))], axis=1)
    observed = shares.mean(axis=0)
    slope = np.sign(observed - truth) / 2  # of the distance in the shares
    return LawStatistics(
        observed=tuple(observed.tolist()),
        truth=tuple(truth.tolist()),
        noise=tuple(np.sqrt(variance / len(values)).tolist()),
        error=_error(shares @ slope),
    )


def _share(flags: np.ndarray) -> Share:
    """Of flags (n, pairs)."""
    if not flags.size:
        return Share(num=0, value=math.nan, error=math.nan)
    of_mosaic = flags.mean(axis=1)
    return Share(num=flags.shape[1], value=float(of_mosaic.mean()), error=_error(of_mosaic))


def _error(of_mosaic: np.ndarray) -> float:
    """The standard error of a mean over mosaics."""
    return float(of_mosaic.std(ddof=1) / math.sqrt(len(of_mosaic))) if len(of_mosaic) > 1 else math.nan


def _variance_of_steps(lag: int, starts: int, num_classes: int) -> np.ndarray:
    """v_d of the share of differences d at a lag in one mosaic with so many starting cells along the axis, (K,)."""
    law = step_law(lag, num_classes)
    total = starts * (law - law**2)
    for m in range(1, min(lag, starts)):
        both = _convolved(step_law(lag - m, num_classes), step_law(m, num_classes) ** 2)
        total += 2 * (starts - m) * (both - law**2)
    return np.maximum(total, 0) / starts**2


def _convolved(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """sum_e p(e) q(d - e mod K), (K,)."""
    d = np.arange(len(p))
    return p @ q[(d[None, :] - d[:, None]) % len(p)]


def _variance_of_classes(rows: int, cols: int, num_classes: int) -> float:
    """v of a class's share of the cells of one mosaic."""
    laws = [step_law(lag, num_classes) for lag in range(rows + cols - 1)]
    total = 0.0
    for x in range(rows):
        for y in range(cols):
            right, left = laws[x + y][0], laws[x] @ laws[y]
            both = [right] if x == y == 0 else [right] * 2 if 0 in (x, y) else [right, right, left, left]
            total += (rows - x) * (cols - y) * (sum(both) - len(both) / num_classes)
    return max(total, 0) / num_classes / (rows * cols) ** 2
