r"""The largest singular value of linear maps of one shape, found together.

A convolution of stride 1 with zero padding is seen from its narrow side, input or output, on which it has fewer dimensions.
With v there, of s channels, and K = W on the input's side, K_d = W_{-d}^T (the transpose) on the output's,

    (K v)_p = sum_d K_d v_{p+d} = K U,      U = U(v) the patches, (s k^n, positions): column p holds all v_{p+d}, 0 outside,
    A v     = K^T K v = U^*(G U(v)),        G = K^T K,      U^* the adjoint of U: it adds patches up where they came from.

G has a side of s k^n only, 27 for images of three channels: the wide side, of hundreds, does not come up any more. That is
exact at the border too, for U has the positions inside the image and no others. A matrix is the convolution at one position.

**Search.** V are approximate singular vectors and a vector that never changes. The block Krylov space span{V, A V, ..., A^p V}
gets an orthonormal basis Q, one power after the other, each made orthogonal to all before (twice, for rounding) and left out
where nothing of it is new; A Q comes with it, and the eigenvalues of Q^T A Q are the Ritz values, none of them above |W|^2.
Where the side has no more dimensions than the space would have, the space is all of it.

**Gradient.** |W| = <W, P> with P = unit(K v) U(v)^T for the unit vector v of the largest singular value; P is the gradient.

References:
    Musco and Musco 2015, "Randomized block Krylov methods for stronger and faster approximate singular value decomposition",
    Algorithm 2; Golub and Underwood 1977, "The block Lanczos method for computing eigenvalues" (with all of the basis kept).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple, final

import torch
import torch.nn.functional as functional
from torch import Tensor

__all__ = ["Found", "Maps"]


class Found(NamedTuple):
    """Of each of m maps.

    Args:
        vectors: The k leading singular vectors, (m, k, *side); rows of 0 where the side has fewer dimensions.
        rest: |A v - theta^2 v| / theta^2 of the first, (m,).
    """

    vectors: Tensor
    rest: Tensor


@final
class Maps:
    """m linear maps of one shape, each seen from its narrow side.

    Args:
        kernels: K, (m, l, s, *window) with odd sides of the window; of matrices (m, l, s).
        side: Event of the narrow side, (s, *sides); of matrices (s,).
    """

    def __init__(self, kernels: Tensor, side: Sequence[int]) -> None:
        self.side, self.window = tuple(side), tuple(kernels.shape[3:])
        K = kernels.flatten(2)
        self.K = K / K.abs().amax((1, 2), keepdim=True).clamp(min=torch.finfo(K.dtype).tiny)  # no square overflows
        wide, patch = self.K.shape[1:]
        self.factors = (self.K.mT @ self.K,) if self.window and patch < 2 * wide else (self.K, self.K.mT)

    def search(self, vectors: Tensor, fresh: Tensor, num_powers: int) -> Found:
        """The leading singular vectors in the Krylov space of those so far, (m, k, *side), and of `fresh`, (m, 1, *side)."""
        V = torch.cat([vectors, fresh], dim=1).flatten(2)
        num_dims = V.shape[2]
        if num_dims <= V.shape[1] * (num_powers + 1):
            Q = torch.eye(num_dims, dtype=V.dtype, device=V.device).expand(len(V), -1, -1)
            mapped = self.square(Q)
        else:
            Q, mapped = self._krylov(V, num_powers)
        values, weights = torch.linalg.eigh(torch.nan_to_num(Q @ mapped.mT).double())  # of weights that are no numbers
        leading = weights[..., -vectors.shape[1] :].flip(2).mT.to(Q.dtype)
        found = torch.zeros_like(V[:, : vectors.shape[1]])
        found[:, : leading.shape[1]] = leading @ Q
        square = values[:, -1:].clamp(min=1e-24).to(Q.dtype)
        rest = (leading[:, :1] @ mapped)[:, 0] - square * found[:, 0]
        return Found(found.reshape(vectors.shape), rest.norm(dim=1) / square[:, 0])

    def square(self, v: Tensor) -> Tensor:
        """A v of n vectors for each map, (m, n, dims)."""
        U = self._patches(v)
        for factor in self.factors:
            U = factor.unsqueeze(1) @ U
        return self._put_back(U)

    def steepest(self, v: Tensor) -> Tensor:
        """P, like the kernels, for one unit vector of each map (m, *side)."""
        U = self._patches(v.flatten(1).unsqueeze(1))[:, 0]
        left = self.K @ U
        scale = left.flatten(1).norm(dim=1).clamp(min=1e-12)
        P = (left @ U.mT) / scale.reshape(-1, 1, 1)
        return P.unflatten(2, (self.side[0], *self.window))

    def _krylov(self, V: Tensor, num_powers: int) -> tuple[Tensor, Tensor]:
        """Q (m, n, dims) and A Q."""
        Q = torch.linalg.qr(V.mT).Q.mT
        basis, mapped = Q, self.square(Q)
        power = mapped
        for _ in range(num_powers):
            for _ in range(2):
                power = torch.linalg.qr((power - (power @ basis.mT) @ basis).mT).Q.mT
            left = (power @ basis.mT).norm(dim=2, keepdim=True)  # of rounding alone, where a power has added nothing
            power = torch.where(left > torch.finfo(power.dtype).eps ** 0.5, 0, power)
            basis, power = torch.cat([basis, power], dim=1), self.square(power)
            mapped = torch.cat([mapped, power], dim=1)
        return basis, mapped

    def _patches(self, v: Tensor) -> Tensor:
        """U(v) of (m, n, dims): (m, n, s k^n, positions); of matrices (m, 1, s, n), the vectors in the place of positions."""
        if not self.window:
            return v.mT.unsqueeze(1)
        x = functional.pad(v.unflatten(2, self.side), [r for k in reversed(self.window) for r in (k // 2, k // 2)])
        for axis, k in enumerate(self.window, start=3):
            x = x.unfold(axis, k, 1)
        axes = len(self.window)
        order = (*range(3), *range(3 + axes, 3 + 2 * axes), *range(3, 3 + axes))  # (m, n, s, *window, *sides)
        return x.permute(order).flatten(3 + axes).flatten(2, 2 + axes)

    def _put_back(self, U: Tensor) -> Tensor:
        """U^* of patches, (m, n, dims)."""
        if not self.window:
            return U.squeeze(1).mT
        sides = self.side[1:]
        U = U.unflatten(3, sides).unflatten(2, (self.side[0], *self.window))
        v = U.new_zeros(*U.shape[:3], *[n + k - 1 for n, k in zip(sides, self.window, strict=True)])
        for offset in product(*map(range, self.window)):
            inside = (..., *(slice(d, d + n) for d, n in zip(offset, sides, strict=True)))
            v[inside] += U[(slice(None), slice(None), slice(None), *offset)]
        whole = (..., *(slice(k // 2, k // 2 + n) for k, n in zip(self.window, sides, strict=True)))
        return v[whole].flatten(2)
