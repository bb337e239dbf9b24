r"""The inverse of a residual block: x + g(x) = z solved for x, each sample by itself.

With f(x) = z - g(x) - x: the fixed point x <- x + f shrinks the error by Lip(g). Anderson's acceleration (type II)
also uses the last m differences dX, dF of x and f (columns),

    x <- x + f - (dX + dF) gamma,     gamma = argmin |f - dF gamma|,

and is exact for an affine g of at most m distinct eigenvalues. It has no guarantee of its own, so a sample whose |f| has found
no new minimum for m evaluations returns to its best x and takes 2, 4, 8, ... plain steps, twice as many each time.

References:
    Behrmann et al. 2019, "Invertible residual networks", Algorithm 1 (the fixed point); Walker and Ni 2011, "Anderson
    acceleration for fixed-point iterations", Eq. 2.3; Fang and Saad 2009 (type II, normal equations of differences).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import final

import torch
from torch import Tensor

from indm_core.errors import ConvergenceError

__all__ = ["invert_block"]


@torch.no_grad()
def invert_block(
    g: Callable[[Tensor], Tensor],
    z: Tensor,
    *,
    tolerance: float,
    max_iterations: int,
    window: int = 5,
    g_double: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Solves x + g(x) = z by Anderson's acceleration of x <- z - g(x), each sample by itself.

    Args:
        g: A contraction of (k, *event) for every k up to z's b: samples that have arrived leave the batch.
        z: (b, *event).
        tolerance: Bound on the change |dx| of a plain step, the maximum over dimensions of |dx| / max(1, |x|).
        max_iterations: Evaluations of g.
        window: Differences m that are used, at most the event's dimensions; 0 is the fixed point.
        g_double: g in float64, for the samples whose |dx| the rounding of z's dtype keeps above the tolerance (outliers).

    Returns:
        x, (b, *event).

    Raises:
        ConvergenceError: some |dx| is still above the tolerance after `max_iterations`.
    """
    if not len(z):
        return z
    x, event = z.clone(), z.shape[1:]
    search = _Search.begin(z.flatten(1), min(window, event.numel()))
    change = f = z.new_full((1,), math.inf)
    for step in range(max_iterations):
        x_new = search.z - g(search.x.reshape(-1, *event)).flatten(1)
        f = x_new - search.x
        change = (f.abs() / x_new.abs().clamp(min=1)).amax(1)
        done = change <= tolerance
        if done.any():
            x[search.row[done]] = x_new[done].reshape(-1, *event)
            if done.all():
                return x
            f, search = f[~done], search.select(~done)
        search.advance(f, step)
    if g_double is not None and z.dtype != torch.float64:
        left = search.z.double().reshape(-1, *event)
        found = invert_block(g_double, left, tolerance=tolerance, max_iterations=max_iterations, window=window)
        x[search.row] = found.to(x.dtype)
        return x
    raise ConvergenceError(
        f"inverse of a residual block: |dx| = {float(change.amax()):.2e} and |x + g(x) - z| = {float(f.abs().amax()):.2e} "
        f"after {max_iterations} iterations, tolerance={tolerance:g}, for {len(f)} of {len(z)} samples; is the Lipschitz "
        "constant below 1 and the latent finite? A larger max_iterations or tolerance, or double=True, may help"
    )


@final
@dataclass
class _Search:
    """Anderson's iteration: a row for each of the b samples that have not arrived, n dimensions, m differences.

    Args:
        row: Place in the batch, (b,).
        z, x: Right-hand side and iterate, (b, n).
        x_last, f_last: The iterate before and its f, (b, n).
        x_best, f_best: The iterate of least |f|, (b, n).
        dX, dF: Last differences of x and f, (b, m, n); 0 where there are none yet.
        age: Evaluations since the best; below 0, minus the plain steps that are still to be taken, (b,).
        failures: Returns to the best iterate, (b,).
    """

    row: Tensor
    z: Tensor
    x: Tensor
    x_last: Tensor
    f_last: Tensor
    x_best: Tensor
    f_best: Tensor
    dX: Tensor
    dF: Tensor
    age: Tensor
    failures: Tensor

    @classmethod
    def begin(cls, z: Tensor, window: int) -> _Search:
        (b, n), row = z.shape, torch.arange(len(z), device=z.device)
        unknown, none, zero = torch.full_like(z, math.inf), z.new_zeros(b, window, n), torch.zeros_like(row)
        return cls(row, z, z, z, unknown, z, unknown, none, none.clone(), zero, zero)

    def select(self, mask: Tensor) -> _Search:
        return _Search(*(getattr(self, field.name)[mask] for field in fields(self)))

    def advance(self, f: Tensor, step: int) -> None:
        """The next x, from f at the present one."""
        m = self.dF.shape[1]
        if m == 0:
            self.x = self.x + f
            return
        if step:
            self.dX[:, step % m], self.dF[:, step % m] = self.x - self.x_last, f - self.f_last
        better = f.norm(dim=1) < self.f_best.norm(dim=1)
        self.x_best = torch.where(better[:, None], self.x, self.x_best)
        self.f_best = torch.where(better[:, None], f, self.f_best)
        self.age = torch.where(better & (self.age >= 0), 0, self.age + 1)
        failed = self.age >= m
        self.failures = self.failures + failed
        self.age = torch.where(failed, -(2**self.failures), self.age)
        self.dX.masked_fill_(failed[:, None, None], 0)
        self.dF.masked_fill_(failed[:, None, None], 0)
        self.x_last = torch.where(failed[:, None], self.x_best, self.x)
        self.f_last = torch.where(failed[:, None], self.f_best, f)
        gamma = _least_squares(self.dF, self.f_last).where(self.age[:, None] >= 0, 0).to(f.dtype)
        self.x = self.x_last + self.f_last - ((self.dX + self.dF) * gamma[..., None]).sum(1)


def _least_squares(dF: Tensor, f: Tensor) -> Tensor:
    """gamma (b, m) that minimises |f - dF gamma| per sample: normal equations of unit columns in float64, slightly damped."""
    norm = dF.double().norm(dim=2, keepdim=True).clamp(min=1e-300)
    columns = dF / norm
    gram = columns @ columns.mT + 1e-10 * torch.eye(dF.shape[1], dtype=norm.dtype, device=dF.device)
    gamma, _ = torch.linalg.solve_ex(gram, columns @ f.double()[..., None])
    return (gamma / norm).squeeze(-1)
