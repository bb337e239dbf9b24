r"""Blocks: coefficients (*t, K, K) that act on states (b, *event, K), and the quadrature of their integrals.

A coefficient couples the K numbers of one position and broadcasts over the event: every operation here is block by block.
Blocks of two are inverted, and their roots taken, in closed form,

    A^-1 = adj(A)/det A,        A^{1/2} = (A + sqrt(det A) I)/sqrt(tr A + 2 sqrt(det A)),

because a factorisation waits for the GPU that it runs on. What is constant is sent to a device once (`constant`): a step of a
sampler then sends nothing, and may be a part of a CUDA graph.

References:
    Higham 2008, "Functions of matrices", section 6.2 (the root of a 2 x 2 matrix).
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
    "constant",
    "event_sum",
    "gauss_legendre",
    "gauss_legendre_like",
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
    # by columns: a matmul would be autocast to bf16, and a sum along so short an axis takes six times as long
    first, *others = (A[..., k] * u[..., k : k + 1] for k in range(A.shape[-1]))
    return sum(others, first)


def inverse(A: Float[Tensor, "*t k k"]) -> Float[Tensor, "*t k k"]:
    """A^-1; of a singular block of one or two, numbers that are not finite."""
    if A.shape[-1] == 1:
        return A.reciprocal()
    if A.shape[-1] > 2:
        return torch.linalg.inv(A)
    a, b, c, d = _entries(A)
    return _block(d, -b, -c, a) / (a * d - b * c)[..., None, None]


def log_abs_det(A: Float[Tensor, "*t k k"]) -> Float[Tensor, "*t"]:
    """log |det A| of each block."""
    return A[..., 0, 0].abs().log() if A.shape[-1] == 1 else torch.linalg.slogdet(A).logabsdet


def sqrt_psd(A: Float[Tensor, "*t k k"]) -> Float[Tensor, "*t k k"]:
    """The symmetric square root of a positive semi-definite A, which may be singular."""
    if A.shape[-1] == 1:
        return A.sqrt()
    if A.shape[-1] > 2:
        values, vectors = torch.linalg.eigh(A)
        return (vectors * values.clamp(min=0).sqrt().unsqueeze(-2)) @ vectors.mT
    a, b, c, d = _entries(A)
    det = (a * d - b * c).clamp(min=0).sqrt()
    trace = (a + d + 2 * det).clamp(min=torch.finfo(A.dtype).tiny).sqrt()  # of the zero matrix the root is 0
    return _block(a + det, b, c, d + det) / trace[..., None, None]


def _entries(A: Float[Tensor, "*t 2 2"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Row by row."""
    return A[..., 0, 0], A[..., 0, 1], A[..., 1, 0], A[..., 1, 1]


def _block(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Float[Tensor, "*t 2 2"]:
    """Of the entries, row by row."""
    return torch.stack([torch.stack([a, b], -1), torch.stack([c, d], -1)], -2)


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


def gauss_legendre_like(t: Tensor, num_nodes: int = NODES) -> tuple[Tensor, Tensor]:
    """`gauss_legendre` in t's dtype, on its device."""
    return _nodes(num_nodes, t.dtype, t.device)


def constant(rows: tuple[tuple[float, ...], ...], like: Tensor) -> Float[Tensor, "m n"]:
    """A matrix of numbers in the dtype of `like`, on its device."""
    return _matrix(rows, like.dtype, like.device)


@lru_cache(maxsize=64)
def _nodes(num_nodes: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    x, w = (torch.as_tensor(v, device="cpu").to(device=device, dtype=dtype) for v in gauss_legendre(num_nodes))
    return x, w


@lru_cache(maxsize=64)
def _matrix(rows: tuple[tuple[float, ...], ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64, device="cpu").to(device=device, dtype=dtype)
