"""Checks of one's own classes: the identities that this package's own SDEs, flows, scores and models are tested on.

    check_sde(sde)                  psi, Sigma and R solve their equations, and what is derived from them follows
    check_flow(flow, shape)         inverse, log-det and its gradient
    check_score(score, sde, shape)  a function of state and time, row by row
    check_model(model)              encoding, score, the law at t_start, training, checkpoints

Each returns None, or raises an `AssertionError` of one line that names the identity, its largest error, where it is and what
should be there. They draw from generators of their own and leave what they check as it is.
"""

from __future__ import annotations

from indm_core.checks.flow import check_flow
from indm_core.checks.model import check_model
from indm_core.checks.score import check_score
from indm_core.checks.sde import check_sde

__all__ = ["check_flow", "check_model", "check_score", "check_sde"]
