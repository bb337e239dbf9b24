"""Samplers of a target that are made of normalizing flows: the baselines VI-NF, SNF and AFT."""

from __future__ import annotations

from indm_core.pis.flows.aft import AnnealedFlowTransport
from indm_core.pis.flows.snf import StochasticNormalizingFlow
from indm_core.pis.flows.variational import VariationalFlow
from indm_core.pis.flows.vectors import couplings, residual

__all__ = ["AnnealedFlowTransport", "StochasticNormalizingFlow", "VariationalFlow", "couplings", "residual"]
