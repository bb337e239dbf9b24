r"""Blocks: coefficients (*t, K, K) that act on states (b, *event, K), and the quadrature of their integrals.

A coefficient couples the K numbers of one position and broadcasts over the event: every operation here is block by block.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from indm_core.shapes import Float

__all__ = [
    "apply",
    "event_sum",
    "gauss_legendre",
    "gaussian_log_prob",
    "instant",
    "inverse",
    "log_abs_det",
    "over_event",
    "sqrt_psd",
]

NODES = 40


def apply(A: Float[Tensor, "*t j k"], u: Float[Tensor, "b *event k"]) -> Float[Tensor, "b *event j"]:
    """A u, block by block: the only place where coefficients meet a state, and where they are cast to its dtype."""
    if A.shape[-1] != u.shape[-1]:
        raise ValueError(f"u: its blocks have size {u.shape[-1]} but the coefficient's have {A.shape[-1]}")
    A = A.to(u)
    return A[..., 0] * u if A.shape[-1] == 1 else (A * u.unsqueeze(-2)).sum(-1)  # a matmul would be autocast to bf16


def inverse(A: Float[Tensor, "*t k k"]) -> Float[Tensor, "*t k k"]:
    """A^-1."""
    return A.reciprocal() if A.shape[-1] == 1 else torch.linalg.inv(A)


def log_abs_det(A: Float[Tensor, "*t k k"]) -> Float[Tensor, "*t"]:
    """log |det A| of each block."""
    return A[..., 0, 0].abs().log() if A.shape[-1] == 1 else torch.linalg.slogdet(A).logabsdet


def sqrt_psd(A: Float[Tensor, "*t k k"]) -> Float[Tensor, "*t k k"]:
    """The symmetric square root of a positive semi-definite A, which may be singular."""
    if A.shape[-1] == 1:
        return A.sqrt()
    values, vectors = torch.linalg.eigh(A)
    return (vectors * values.clamp(min=0).sqrt().unsqueeze(-2)) @ vectors.mT


def instant(t: float | Tensor, like: Tensor) -> Tensor:
    """A time as a 0-d float64 tensor on the device of `like`. A number is written there by a kernel; `torch.tensor` would copy
    it from the host, which waits until a GPU has done all that was asked of it before."""
    if isinstance(t, Tensor):
        return t.to(device=like.device, dtype=torch.float64)
    return torch.full((), t, dtype=torch.float64, device=like.device)


def over_event(t: Float[Tensor, " n"]) -> Float[Tensor, "n 1 1"]:
    """Times (n,) in a shape that coefficients broadcast over an *e of at most two axes."""
    return t.reshape(-1, 1, 1)


def event_sum(value: Float[Tensor, "*t"], u: Float[Tensor, "b *event k"]) -> Float[Tensor, " b"]:
    """Sum of a per-position value, shape broadcast(t, *e), over the event of u."""
    return value.expand(u.shape[:-1]).flatten(1).sum(1)


def gaussian_log_prob(u: Float[Tensor, "b *event k"], cov: Float[Tensor, "*t k k"]) -> Float[Tensor, " b"]:
    """log N(u; 0, cov), nats."""
    quadratic = (u * apply(inverse(cov), u)).flatten(1).sum(1)
    log_norm = u.shape[-1] * math.log(2 * math.pi) + log_abs_det(cov)
    return -0.5 * (quadratic + event_sum(log_norm, u).to(u.dtype))


@lru_cache
def gauss_legendre(num_nodes: int = NODES) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre nodes and weights on [0, 1]."""
    x, w = np.polynomial.legendre.leggauss(num_nodes)
    return (x + 1) / 2, w / 2
