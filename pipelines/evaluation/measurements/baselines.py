"""What a model of vectors has to beat: a Gaussian and a mixture of Gaussians, fitted to (at most 50,000 of) the
training rows.

The number of components, 1 to 32, is the one with the least Bayesian information criterion; covariances are full. The
NLL is exact, in nats per dimension, on the same test rows as the models'. Where a coordinate repeats its values (a yes
or no) no density is bounded, and a mixture collapses onto them: dequantise such a column first, as `sklearn:NAME` does.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, final

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from pipelines.data.spec import DataSpec
from pipelines.evaluation.measurement import Done, Measurement, Result, Task
from pipelines.evaluation.plan import Plan
from pipelines.evaluation.results.estimates import Estimate, with_error

__all__ = ["BaselineResult", "Baselines", "BaselinesResult", "baselines"]

COMPONENTS = (1, 2, 4, 8, 16, 32)


@final
@dataclass(frozen=True, kw_only=True)
class BaselineResult:
    """A fitted law and its NLL, nats/dim; the error is the one over test rows, as there is no estimator's."""

    name: str
    nll: Estimate


@final
@dataclass(frozen=True, kw_only=True)
class BaselinesResult(Result):
    """The fitted laws."""

    laws: tuple[BaselineResult, ...]

    def lines(self) -> list[str]:
        return [
            f"{law.name}: NLL {with_error(law.nll.mean, law.nll.se_images, '+.4f', '.4f')} nats/dim (over test rows)"
            for law in self.laws
        ]

    def metrics(self) -> dict[str, float]:
        return {}


@final
class Baselines(Measurement[BaselinesResult]):
    """Fitted in this process when the tasks of the others are done: seconds."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    @classmethod
    def asked(cls, plan: Plan) -> Sequence[Self]:
        return [cls(plan)] if plan.card.kind == "vector" and plan.settings.baselines else []

    def tasks(self) -> list[Task[object]]:
        return []

    def reduce(self, done: Done) -> BaselinesResult:
        spec = DataSpec.of(self.plan.card)
        train, test = (spec.to_model(rows).numpy() for rows in (self.plan.train, self.plan.test))
        jacobian = float(spec.in_unit(torch.zeros(())))
        return BaselinesResult(laws=baselines(train, test, self.plan.settings.seed, jacobian))


def baselines(train: np.ndarray, test: np.ndarray, seed: int = 0, jacobian: float = 0.0) -> tuple[BaselineResult, ...]:
    """The NLL of the fitted laws.

    Args:
        train, test: Rows (n, d), as models see them.
        seed: Of the mixture's starts.
        jacobian: What makes of their NLL that of the data, nats/dim.
    """
    fitted = [_fit(train, num, seed) for num in COMPONENTS if num * (train.shape[1] + 1) < len(train)] or [
        _fit(train, 1, seed)
    ]
    best = min(fitted, key=lambda law: law.bic(train))
    laws = {"Gaussian": fitted[0], f"mixture of {best.n_components} Gaussians": best}
    found = []
    for name, law in laws.items():
        nats = -law.score_samples(test) / test.shape[1]
        over = float(nats.std(ddof=1) / np.sqrt(len(nats)))
        found.append(BaselineResult(name=name, nll=Estimate(mean=float(nats.mean()) + jacobian, se_images=over)))
    return tuple(found)


def _fit(train: np.ndarray, num: int, seed: int) -> GaussianMixture:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a baseline that could be a little better is one
        return GaussianMixture(num, random_state=seed, n_init=2, reg_covar=1e-6).fit(train.astype(np.float64))
