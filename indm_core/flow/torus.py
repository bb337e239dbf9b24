r"""The norm of a convolution on images of every size.

With W_d the (num_out x num_in) matrix of the kernel's offset d in {-r, ..., r}^2, the map y_p = sum_d W_d x_{p+d} on all of Z^2
has the spectral norm

    |W| = sup_w |K(w)|_2,    K(w) = sum_d W_d e^{i w.d},    w in [0, 2 pi)^2 (a torus),

by Parseval's identity. With zero padding an image is continued by 0, convolved on Z^2 and cut to its size again. The last two
only leave things out, so that at every size the norm is at most |W|, and it tends to |W| as the sides grow.

**From a grid.** For unit vectors u, v and an angle a the function f(w) = Re(e^{ia} u^* K(w) v) is along each axis a real
trigonometric polynomial of degree r, and |W| is its maximum over w, u, v and a. Such an f of maximum |f| = M along an axis has
f'^2 + r^2 f^2 <= r^2 M^2 (Bernstein and Szego). So from its peak it falls no faster than M cos(r h), h the distance, and of N
equally spaced points one is no further than h = pi / N. With u, v and a held, and one axis after the other,

    max over the grid |K|  <=  |W|  <=  max over the grid |K| / cos(pi r / N)^2,

which for N = 32 r is too large by 1 % at most. An axis along which the kernel is one point (a sequence has one) needs one
frequency, and no factor.

The right-hand side is a norm of W too: the maximum of <W, P> over linear forms P, one for each frequency of the grid and each u
and v. The P that attains it is its gradient.

References:
    Sedghi, Gupta, Long 2019, "The singular values of convolutional layers" (the circular case); Pfister, Bresler 2018,
    "Bounding multivariate trigonometric polynomials" (maxima from grids).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as functional
from torch import Tensor

__all__ = ["steepest_form"]

POINTS = 32
"""N / r."""


@torch.no_grad()
def steepest_form(weight: Tensor) -> Tensor:
    """P, like W: <W, P> bounds the norm of the convolution by W at every size, and P is that bound's gradient.

    It takes an eigenvalue problem at each of 544 frequencies (r = 1), whose side is the smaller one of num_out and num_in: fast
    where one side of a wide layer has few channels.

    Args:
        weight: (num_out, num_in, k, k) of images or (num_out, num_in, k) of sequences, k = 2 r + 1.
    """
    W = weight.double().reshape(*weight.shape[:2], *[1] * (4 - weight.ndim), *weight.shape[2:])
    num_out, num_in, *sides = W.shape
    W = W if num_in <= num_out else W.transpose(0, 1)  # K and its transpose have the same norm
    W = torch.nan_to_num(W / W.abs().amax().clamp(min=1e-300))  # no square overflows; weights may be no numbers
    radii = [side // 2 for side in sides]
    w = _frequencies(radii, W)
    gram = _gram(W, w)
    best = torch.linalg.eigvalsh(gram)[:, -1].argmax().reshape(1)
    v = torch.linalg.eigh(gram.index_select(0, best)[0]).eigenvectors[:, -1]
    wave = _waves(w.index_select(0, best), radii)[0]
    u = W.flatten(2).to(wave.dtype) @ wave @ v
    u = u / u.norm().clamp(min=1e-300)
    P = torch.einsum("o,i,d->oid", u.conj(), v, wave).real
    P = P / math.prod(math.cos(math.pi / POINTS) if radius else 1.0 for radius in radii)
    P = P if num_in <= num_out else P.transpose(0, 1)
    return P.reshape(weight.shape).to(weight.dtype)


def _frequencies(radii: list[int], like: Tensor) -> Tensor:
    """The grid, (num, 2), without the half that is minus the other: there K is conjugate."""
    rows, columns = (POINTS * radius or 1 for radius in radii)
    grid = torch.cartesian_prod(
        torch.arange(rows, device=like.device, dtype=like.dtype) / rows,
        torch.arange(columns // 2 + 1, device=like.device, dtype=like.dtype) / columns,
    )
    return 2 * math.pi * grid


def _waves(w: Tensor, radii: list[int]) -> Tensor:
    """e^{i w.d} for the offsets d up to the radii, (num, offsets)."""
    axes = [torch.arange(-radius, radius + 1, device=w.device, dtype=w.dtype) for radius in radii]
    angle = w @ torch.cartesian_prod(*axes).mT
    return torch.complex(angle.cos(), angle.sin())


def _gram(W: Tensor, w: Tensor) -> Tensor:
    """K^* K, (num, i, i), from the autocorrelation C_e = sum_d W_d^T W_{d+e}: sum_e C_e e^{i w.e}."""
    kernel, reach = W.transpose(0, 1), [side - 1 for side in W.shape[2:]]
    C = functional.conv2d(kernel, kernel, padding=reach).transpose(0, 1)  # (i, j, *e)
    waves = _waves(w, reach)
    return (waves @ C.flatten(2).permute(2, 0, 1).flatten(1).to(waves.dtype)).unflatten(1, C.shape[:2])
