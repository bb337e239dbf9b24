"""What a model of vectors has to beat: a Gaussian and a mixture of Gaussians, fitted to (at most 50,000 of) the training rows.

The number of components, 1 to 32, is the one with the least Bayesian information criterion; covariances are full. The NLL is
exact, in nats per dimension, on the same test rows as the models'. Where a coordinate repeats its values (a yes or no)
no density is bounded, and a mixture collapses onto them: dequantise such a column first, as `sklearn:NAME` does.
"""

from __future__ import annotations

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

__all__ = ["baselines"]

COMPONENTS = (1, 2, 4, 8, 16, 32)


def baselines(train: np.ndarray, test: np.ndarray, seed: int = 0) -> dict[str, dict[str, float]]:
    """NLL of the fitted laws: {name: {"mean", "se_images"}}, nats/dim.

    Args:
        train, test: Rows (n, d).
        seed: Of the mixture's starts.
    """
    fitted = [_fit(train, num, seed) for num in COMPONENTS if num * (train.shape[1] + 1) < len(train)] or [
        _fit(train, 1, seed)
    ]
    best = min(fitted, key=lambda law: law.bic(train))
    laws = {"Gaussian": fitted[0], f"mixture of {best.n_components} Gaussians": best}
    found = {}
    for name, law in laws.items():
        nats = -law.score_samples(test) / test.shape[1]
        found[name] = {"mean": float(nats.mean()), "se_images": float(nats.std(ddof=1) / np.sqrt(len(nats)))}
    return found


def _fit(train: np.ndarray, num: int, seed: int) -> GaussianMixture:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a baseline that could be a little better is one
        return GaussianMixture(num, random_state=seed, n_init=2, reg_covar=1e-6).fit(train.astype(np.float64))
