"""Logistic regressions of tables: scikit-learn's breast cancer, or any table of numbers with a column of 0 and 1.

Each feature is standardised by all of its rows to mean 0 and standard deviation 1 (that of the rows, over m and not m - 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from indm_core.pis.targets import LogisticRegression
from pipelines.data.readers.csv_table import read_rows
from pipelines.data.readers.text_form import Written
from pipelines.storage.messages import nearest

__all__ = ["breast_cancer", "logistic"]


def breast_cancer() -> LogisticRegression:
    """scikit-learn's 569 tumours of 30 features, 1 where benign; 31 dimensions."""
    from sklearn.datasets import load_breast_cancer

    x, y = map(np.asarray, load_breast_cancer(return_X_y=True))
    return _regression("breast_cancer", [str(index) for index in range(x.shape[1])], x, y)


def logistic(file: Path, label: str, written: Written | None = None) -> LogisticRegression:
    """The logistic regression of a .csv file.

    Args:
        file: A table of numbers, with a header that names the columns; without one they are called 0, 1, ...
        label: The column of labels, 0 or 1; all others are features.
        written: How the table is written; None: with commas, 1.5.

    Raises:
        ValueError: a file that cannot be read, no such column, no feature, other labels, or a feature that is constant.
    """
    names, rows = read_rows(Path(file), written)
    if label not in names:
        raise ValueError(f"label={label!r}: {file} has no such column; {nearest(label, names)}")
    if len(names) < 2:
        raise ValueError(f"{file}: {label} is the only column; a regression has features")
    at = names.index(label)
    y = rows[:, at]
    if not np.isin(y, (0, 1)).all():
        raise ValueError(f"label={label!r}: {file} has {y[~np.isin(y, (0, 1))][0]:g} in it; labels are 0 or 1")
    return _regression(str(file), [*names[:at], *names[at + 1 :]], np.delete(rows, at, axis=1), y)


def _regression(source: str, names: Sequence[str], x: np.ndarray, y: np.ndarray) -> LogisticRegression:
    constant = x.min(axis=0) == x.max(axis=0)
    if constant.any():
        name = names[int(constant.argmax())]
        raise ValueError(f"{source}: the column {name} is constant; remove it, since the intercept is one")
    with np.errstate(over="ignore", invalid="ignore"):
        x = (x - x.mean(axis=0)) / x.std(axis=0)
    if not (np.isfinite(x).all() and x.any(axis=0).all()):
        name = names[int((~np.isfinite(x).all(axis=0) | ~x.any(axis=0)).argmax())]
        raise ValueError(
            f"{source}: the column {name} has no standard deviation in float64; scale its numbers, or remove it"
        )
    return LogisticRegression(torch.from_numpy(x), torch.from_numpy(np.asarray(y, np.int64)))
