"""What is measured of trained models beside likelihoods and distances.

indm             Table 2 and Figures 1, 2, 4, 6 and 7 of the INDM paper: the induced SDE, smoothness, geometry
integration      where the error of a fast sampler comes from: figures of DEIS and gDDIM
pis              Theorems 3 and 4 of the path integral sampler, of controls whose error is known
sampling_error   prior, discretisation and score error apart: Theorem 4 of the INDM paper
"""

from __future__ import annotations

from indm_core.diagnostics.indm import (
    DiscretisationError,
    InducedSDE,
    MeanAndError,
    SquaredNorms,
    along_times,
    discretisation_error,
    hessian_norm,
    induced_norm_ratio,
    induced_sde,
    mean_and_error,
    path_cosine,
    score_rate,
    squared_norms,
)

__all__ = [
    "DiscretisationError",
    "InducedSDE",
    "MeanAndError",
    "SquaredNorms",
    "along_times",
    "discretisation_error",
    "hessian_norm",
    "induced_norm_ratio",
    "induced_sde",
    "mean_and_error",
    "path_cosine",
    "score_rate",
    "squared_norms",
]
