r"""The inverse of a residual block: x + g(x) = z solved for x, each sample by itself.

With y = z - g(x) and f = y - x, the fixed point x <- y shrinks the error by Lip(g). Anderson's acceleration (type II) also uses
the last m differences dF of f and dY of y (columns),

    x <- y - dY gamma,     gamma = argmin |f - dF gamma|,

and is exact for an affine g of at most m distinct eigenvalues. With dF = Q U, Q orthonormal, and dY = S U the same
combinations of the differences of y,

    dY gamma = S Q^T f,

so that a new difference costs one step of Gram-Schmidt, and no system is solved. Q loses none of its orthogonality in float32,
for a difference that the others span up to rounding is left out.

A step of the fixed point costs nothing beside g, an accelerated one as much as a small g does. So the first steps are plain.
Their differences span the same Krylov space as those of accelerated steps would, so that nothing is lost: with
rate = |f|/|f_last|, a sample that needs more plain steps than acceleration is worth, |dx| rate^worth > tolerance, is
accelerated from there on, and its first directions are the differences of the last three plain points. That is looked at
after 2, 4, 8, ... steps, at least `worth`.

Acceleration has no guarantee of its own, so a sample whose |f| has found no new minimum for m evaluations returns to its best
x and takes 2, 4, 8, ... plain steps, twice as many each time.

References:
    Behrmann et al. 2019, "Invertible residual networks", Algorithm 1 (the fixed point); Walker and Ni 2011, "Anderson
    acceleration for fixed-point iterations", Eq. 2.3 and section 4 (QR); Fang and Saad 2009 (type II).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import final

import torch
from torch import Tensor

from indm_core.errors import ConvergenceError

__all__ = ["invert_block"]

Map = Callable[[Tensor], Tensor]


@torch.no_grad()
def invert_block(
    g: Map,
    z: Tensor,
    *,
    tolerance: float,
    max_iterations: int,
    window: int = 5,
    worth: int = 2,
    g_double: Map | None = None,
) -> Tensor:
    """Solves x + g(x) = z by the fixed point x <- z - g(x), accelerated where it pays, each sample by itself.

    Args:
        g: A contraction of (k, *event) for every k up to z's b: samples that have arrived leave the batch.
        z: (b, *event).
        tolerance: Bound on the change |dx| of a plain step, the maximum over dimensions of |dx| / max(1, |x|).
        max_iterations: Evaluations of g.
        window: Differences m that are used, at most the event's dimensions; 0 is the fixed point.
        worth: Plain steps, at least 2, that a sample takes in any case and has to be away from its arrival to be accelerated:
            more where g costs little.
        g_double: g in float64, for the samples whose |dx| the rounding of z's dtype keeps above the tolerance (outliers).

    Returns:
        x, (b, *event).

    Raises:
        ConvergenceError: some |dx| is still above the tolerance after `max_iterations`.
    """
    if not len(z):
        return z
    solver = _Solver(g, z, tolerance, max_iterations, min(window, z[0].numel()), worth)
    solver.plain(_Rows(torch.arange(len(z), device=z.device), z.flatten(1)))
    stalled = solver.stalled
    if not stalled:
        return solver.found.reshape(z.shape)
    if g_double is not None and z.dtype != torch.float64:
        rows = torch.cat([last.rows.index for last in stalled])
        solver.found[rows] = (
            invert_block(
                g_double,
                z[rows].double(),
                tolerance=tolerance,
                max_iterations=max_iterations,
                window=window,
                worth=worth,
            )
            .flatten(1)
            .to(z.dtype)
        )
        return solver.found.reshape(z.shape)
    change = max(float(last.change.amax()) for last in stalled)
    f = max(float(last.f.abs().amax()) for last in stalled)
    raise ConvergenceError(
        f"inverse of a residual block: |dx| = {change:.2e} and |x + g(x) - z| = {f:.2e} after {max_iterations} iterations, "
        f"tolerance={tolerance:g}, for {sum(len(last.f) for last in stalled)} of {len(z)} samples; is the Lipschitz "
        "constant below 1 and the latent finite? A larger max_iterations or tolerance, or double=True, may help"
    )


@dataclass(frozen=True)
class _Rows:
    """Samples under way: their places in the batch (b,) and right-hand sides (b, n)."""

    index: Tensor
    z: Tensor

    def of(self, index: Tensor) -> _Rows:
        return _Rows(self.index.index_select(0, index), self.z.index_select(0, index))


@dataclass(frozen=True)
class _Evaluation:
    """g at x: y = z - g(x), f = y - x, (b, n), and the change |dx|, (b,)."""

    rows: _Rows
    y: Tensor
    f: Tensor
    change: Tensor

    def of(self, index: Tensor) -> _Evaluation:
        y, f, change = (part.index_select(0, index) for part in (self.y, self.f, self.change))
        return _Evaluation(self.rows.of(index), y, f, change)

    def point(self) -> Tensor:
        """f beside y, (b, 2 n)."""
        return torch.cat([self.f, self.y], 1)


@final
class _Solver:
    """Both iterations of a block. The arguments are those of `invert_block`."""

    def __init__(self, g: Map, z: Tensor, tolerance: float, max_iterations: int, window: int, worth: int) -> None:
        self.g, self.event, self.found = g, z.shape[1:], z.flatten(1).clone()
        self.tolerance, self.max_iterations, self.window, self.worth = tolerance, max_iterations, window, worth
        self.stalled: list[_Evaluation] = []

    def evaluate(self, rows: _Rows, x: Tensor) -> tuple[_Evaluation, Tensor | None]:
        """At all rows, and the indices of those that have not arrived; None: none has."""
        y = rows.z - self.g(x.reshape(-1, *self.event)).flatten(1)
        f = y - x
        now = _Evaluation(rows, y, f, (f.abs() / y.abs().clamp(min=1)).amax(1))
        arrived = now.change <= self.tolerance
        if not arrived.any():
            return now, None
        self.found[rows.index] = y
        return now, (~arrived).nonzero().squeeze(1)

    def plain(self, rows: _Rows) -> None:
        """The fixed point from x = z, until all have arrived or are accelerated."""
        trail = [rows.z]  # the last iterates, the present one first; three of them where they may be asked for
        for step in range(self.max_iterations):
            now, left = self.evaluate(rows, trail[0])
            if left is not None:
                if not len(left):
                    return
                now, trail = now.of(left), [x.index_select(0, left) for x in trail]
            if self.window and step >= self.worth and step & (step - 1) == 0:
                near, far = self._near_and_far(now, trail)
                if len(far):
                    self.accelerated(now.of(far), [x.index_select(0, far) for x in trail], step + 1)
                    if not len(near):
                        return
                    now, trail = now.of(near), [x.index_select(0, near) for x in trail]
            rows, trail = now.rows, [now.y, *trail[: 2 if self.window and step + 3 > self.worth else 0]]
        self.stalled.append(now)

    def _near_and_far(self, now: _Evaluation, trail: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The indices of the samples that arrive within `worth` more plain steps, and of the others."""
        rate = now.f.norm(dim=1) / (trail[0] - trail[1]).norm(dim=1)
        near = now.change * rate**self.worth <= self.tolerance
        return near.nonzero().squeeze(1), (~near).nonzero().squeeze(1)

    def accelerated(self, now: _Evaluation, trail: list[Tensor], steps: int) -> None:
        """Anderson's steps from three plain ones, after `steps` evaluations."""
        x, x_1, x_2 = trail
        points = [torch.cat([x_1 - x_2, x_1], 1), torch.cat([x - x_1, x], 1), now.point()]
        acceleration = _Acceleration(points, self.window)
        for _ in range(steps, self.max_iterations):
            now, left = self.evaluate(now.rows, acceleration.x)
            if left is not None:
                if not len(left):
                    return
                now = now.of(left)
                acceleration.keep(left)
            acceleration.advance(now.point())
        self.stalled.append(now)


@final
class _Acceleration:
    """Anderson's steps.

    Args:
        points: f beside y of the last plain steps, (b, 2 n) each.
        window: m.

    Attributes:
        x: The next iterate, (b, n).
        basis: Q beside S, (b, m, 2 n); 0 where there are no differences.
        last, best: The last point, and that of least |f|.
        least: |f| of the best, (b,).
        age: Evaluations since the best; below 0, minus the plain steps that are still to be taken, (b,).
        failures: Returns to the best point, (b,).
    """

    def __init__(self, points: list[Tensor], window: int) -> None:
        self.last = self.best = points[-1]
        b, n = len(self.last), self.last.shape[1] // 2
        self.n, self.window, self.place = n, window, 0
        self.basis = self.last.new_zeros(b, window, 2 * n)
        self.least = self.last[:, :n].norm(dim=1)
        self.age = torch.zeros(b, dtype=torch.int64, device=self.last.device)
        self.failures, self.sound = self.age, True  # sound: no sample has failed so far
        for before, after in pairwise(points):
            self._learn(after - before)
        self.x = self._next()

    def keep(self, index: Tensor) -> None:
        """Leaves out the samples that have arrived."""
        same = self.best is self.last
        self.basis, self.last = self.basis.index_select(0, index), self.last.index_select(0, index)
        self.best = self.last if same else self.best.index_select(0, index)
        self.least, self.age, self.failures = self.least[index], self.age[index], self.failures[index]

    def advance(self, point: Tensor) -> None:
        """The next x, after the point at the present one."""
        self._learn(point - self.last)
        self.last = point
        size = point[:, : self.n].norm(dim=1)
        better = size < self.least
        if self.sound and better.all():
            self.best, self.least = point, size
            self.age = torch.zeros_like(self.age)
        else:
            self._look_back(point, size, better)
        self.x = self._next()

    def _look_back(self, point: Tensor, size: Tensor, better: Tensor) -> None:
        """Returns to the best point where the search has failed."""
        self.best, self.least = torch.where(better[:, None], point, self.best), torch.where(better, size, self.least)
        age = torch.where(better & (self.age >= 0), 0, self.age + 1)
        failed = age >= self.window
        self.failures = self.failures + failed
        self.age = torch.where(failed, -(2**self.failures), age)
        self.basis.masked_fill_(failed[:, None, None], 0)
        self.last, self.sound = torch.where(failed[:, None], self.best, point), self.sound and not failed.any()

    def _next(self) -> Tensor:
        """y - S Q^T f, or y in the rows that take a plain step."""
        y = self.last[:, self.n :]
        return y - self._correction() if self.sound else y - self._correction().masked_fill(self.age[:, None] < 0, 0)

    def _correction(self) -> Tensor:
        """S Q^T f."""
        c = self.basis[:, :, : self.n] @ self.last[:, : self.n, None]
        return (c.mT @ self.basis[:, :, self.n :]).squeeze(1)

    def _learn(self, difference: Tensor) -> None:
        """Takes a difference in the place of the oldest: one step of Gram-Schmidt."""
        n = self.n
        df = difference[:, :n]
        c = self.basis[:, :, :n] @ df[..., None]
        c[:, self.place] = 0
        rest = torch.baddbmm(difference[:, None], c.mT, self.basis, alpha=-1).squeeze(1)
        norm = rest[:, :n].norm(dim=1)
        apart = norm > torch.finfo(norm.dtype).eps ** 0.5 * df.norm(dim=1)
        self.basis[:, self.place] = rest * torch.where(apart, norm.reciprocal(), 0)[:, None]
        self.place = (self.place + 1) % self.window
