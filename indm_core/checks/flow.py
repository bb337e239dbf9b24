r"""The identities of a flow z = h(x), with log_det = log|det dz/dx|.

They are checked on a copy in float64 where the flow allows it, twice: as it is given, and as training would leave it, after one
pass in training mode (where a start from the data happens) with every parameter moved. So a flow that begins at the identity,
where a wrong log-det is 0 like the right one, is seen away from it.

The Jacobian J is that of automatic differentiation. A log_det that the generator does not change is compared with log|det J|,
an estimate by its mean over passes. Its gradient, which training follows, is compared with central differences of log|det J|
along a direction of the parameters. Where a flow says that it is size-free, inverse and log_det are checked at twice the width.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from indm_core.checks.claims import equal, finite, holds, like, seeded, unbiased, verify
from indm_core.flow import Flow
from indm_core.noise import Noise

__all__ = ["FLOW", "GIVEN", "Bijection", "check_flow", "copies", "limited", "move"]

Module = TypeVar("Module", bound=nn.Module)
GIVEN, MOVED = "as given", "with its parameters moved"
MOST_DIMS = 256
NUM_PASSES, NUM_REPEATS = 40, 4
"""Of an estimated log_det: independent passes, and repetitions of each row in a pass."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Bijection:
    """A map with its log-det and its inverse, three events x and three z.

    Args:
        module: Whose parameters the map has, in evaluation mode.
        tolerance: Of the inverse, relative to max(1, |x|).
    """

    module: nn.Module
    forward: Callable[[Tensor, Noise], tuple[Tensor, Tensor]]
    inverse: Callable[[Tensor], Tensor]
    x: Tensor
    z: Tensor
    tolerance: float

    @property
    def precision(self) -> float:
        """Of what is computed twice in another order."""
        return 1e-10 if self.x.dtype == torch.float64 else 1e-3

    @property
    def is_exact(self) -> bool:
        """Whether log_det is the same whatever is drawn."""
        with torch.no_grad():
            first, second = (self.forward(self.x, seeded(seed))[1] for seed in (1, 2))
        return bool(torch.isclose(first, second, rtol=0.1 * self.precision, atol=0.1 * self.precision).all())


def _log_abs_det(case: Bijection) -> Tensor:
    """log|det J| of each row."""
    x = case.x.clone().requires_grad_()
    z = case.forward(x, seeded(0))[0]
    holds(z.requires_grad, "z carries no gradient, though it is asked for with gradients on")
    d = x[0].numel()
    directions = torch.eye(d, dtype=x.dtype).reshape(d, 1, *x.shape[1:]).expand(d, *x.shape)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of operations that are batched one by one
            (rows,) = torch.autograd.grad(z, x, directions, is_grads_batched=True, retain_graph=True)
    except RuntimeError:  # operations that cannot be batched at all
        rows = torch.stack([torch.autograd.grad(z, x, v, retain_graph=True)[0] for v in directions])
    return torch.linalg.slogdet(rows.flatten(2).transpose(0, 1)).logabsdet


def _gives_z_and_log_det(case: Bijection) -> None:
    x = case.x.clone()
    z, log_det = case.forward(x, seeded(0))
    like(z, x, of="z")
    like(log_det, x.flatten(1)[:, 0], of="log_det")
    finite(z, of="z")
    finite(log_det, of="log_det")
    like(case.inverse(case.z), case.z, of="inverse")
    equal(x, case.x, of="x, which forward writes to")


@torch.no_grad()
def _keeps_rows_apart(case: Bijection) -> None:
    z, log_det = case.forward(case.x, seeded(0))
    x, exact = case.inverse(case.z), case.is_exact
    for i in range(len(z)):
        z_i, log_det_i = case.forward(case.x[i : i + 1], seeded(0))
        equal(z_i, z[i : i + 1], case.precision * (1 + z_i.abs()), of=f"z of row {i} alone")
        if exact:
            equal(log_det_i, log_det[i : i + 1], case.precision * (1 + log_det_i.abs()), of=f"log_det of row {i} alone")
        x_i = case.inverse(case.z[i : i + 1])
        equal(x_i, x[i : i + 1], case.tolerance * x_i.abs().clamp(min=1), of=f"inverse of row {i} alone")


@torch.no_grad()
def _inverts_forward(case: Bijection) -> None:
    limit = case.tolerance * case.x.abs().clamp(min=1)
    equal(case.inverse(case.forward(case.x, seeded(0))[0]), case.x, limit)


@torch.no_grad()
def _inverts_inverse(case: Bijection) -> None:
    limit = case.tolerance * case.z.abs().clamp(min=1)
    equal(case.forward(case.inverse(case.z), seeded(0))[0], case.z, limit)


def _has_the_log_det(case: Bijection) -> None:
    expected = _log_abs_det(case)
    limit = case.precision * (1 + expected.abs())
    if case.is_exact:
        equal(case.forward(case.x, seeded(0))[1], expected, limit)
    else:
        unbiased(_passes(case), expected, limit, of="mean over passes")


def _has_the_log_det_in_training(case: Bijection) -> None:
    case.module.train()
    case.forward(case.x, seeded(0))  # what follows the weights by a step a pass has followed them
    _has_the_log_det(case)
    case.module.eval()


@torch.no_grad()
def _passes(case: Bijection) -> Tensor:
    """Means over the repetitions of a row, which share what a pass draws, (passes, b)."""
    x, generator = case.x.repeat(NUM_REPEATS, *[1] * (case.x.ndim - 1)), seeded(7)
    draws = [case.forward(x, generator)[1] for _ in range(NUM_PASSES)]
    return torch.stack(draws).unflatten(1, (NUM_REPEATS, -1)).mean(1)


def _follows_the_generator(case: Bijection) -> None:
    first, again = (case.forward(case.x, seeded(3))[1] for _ in range(2))
    equal(again, first, 0.1 * case.precision * (1 + first.abs().detach()), of="log_det of the same seed")
    rows = case.forward(case.x, [seeded(seed) for seed in range(len(case.x))])[1]
    like(rows, first, of="log_det with a generator for each row")


def _has_the_gradient(case: Bijection) -> None:
    """Of the mean over rows, along one direction; in float64 only, where differences resolve it."""
    parameters = [p for p in case.module.parameters() if p.requires_grad]
    if case.x.dtype != torch.float64 or not parameters:
        return
    steps, generator = _directions(parameters), seeded(8)
    slopes = [_slope(case, case.x, parameters, steps, generator) for _ in range(2)]
    if abs(slopes[0] - slopes[1]) > 1e-9:
        x = case.x.repeat(NUM_REPEATS, *[1] * (case.x.ndim - 1))
        slopes = [_slope(case, x, parameters, steps, generator) for _ in range(NUM_PASSES)]
    found = torch.tensor(slopes, dtype=torch.float64)
    differences = torch.stack([_difference(case, parameters, steps, h) for h in (1e-3, 1e-5, 1e-7)])
    expected = differences[(differences - found.mean()).abs().argmin()]
    unbiased(found, expected, 1e-4 * (1 + expected.abs()), of="along a random direction")


def _difference(case: Bijection, parameters: Sequence[Tensor], steps: list[Tensor], h: float) -> Tensor:
    """The slope of the mean of log|det J|: a kink of the networks spoils it at one h, rounding or an iteration at another."""
    ends = []
    for sign in (1, -2, 1):
        torch._foreach_add_([p.detach() for p in parameters], steps, alpha=sign * h)
        ends.append(_log_abs_det(case).mean())
    return (ends[0] - ends[1]) / (2 * h)


def _slope(case: Bijection, x: Tensor, parameters: Sequence[Tensor], steps: list[Tensor], generator: Noise) -> float:
    """The derivative of a pass's mean log_det along `steps`."""
    log_det = case.forward(x, generator)[1].mean()
    if not log_det.requires_grad:
        return 0.0
    found = torch.autograd.grad(log_det, parameters, allow_unused=True)
    return sum(float((g * step).sum()) for g, step in zip(found, steps, strict=True) if g is not None)


FLOW = {
    "z is like x and log_det (b,), finite": _gives_z_and_log_det,
    "a row is the same alone and in a batch": _keeps_rows_apart,
    "inverse(forward(x)) = x": _inverts_forward,
    "forward(inverse(z)) = z": _inverts_inverse,
    "log_det is a function of the generator, one or one for each row": _follows_the_generator,
    "log_det = log|det dz/dx|": _has_the_log_det,
    "the gradient of log_det is that of log|det dz/dx|": _has_the_gradient,
    "log_det = log|det dz/dx| in training mode": _has_the_log_det_in_training,
}


LARGER = {
    name: FLOW[name]
    for name in (
        "z is like x and log_det (b,), finite",
        "inverse(forward(x)) = x",
        "forward(inverse(z)) = z",
        "log_det = log|det dz/dx|",
    )
}
"""What is asked of a size-free flow on events of another size."""


def check_flow(flow: Flow, shape: tuple[int, ...], *, tolerance: float = 1e-4) -> None:
    """The identities of a flow (`FLOW`): inverse, log-det and its gradient, independence of rows; and, where it says that it is
    size-free, inverse and log-det on events twice as wide (`LARGER`).

    The flow itself is left as it is: its parameters, gradients, buffers and mode.

    Args:
        flow: An instance small enough for its Jacobian.
        shape: Event of x, of at most 256 dimensions.
        tolerance: Of the inverse, relative to max(1, |x|); 1e-9 for a closed form.

    Raises:
        AssertionError: an identity does not hold. The message names it, its largest error, where and what should be there.
        ValueError: a shape of more dimensions.
    """
    shape = limited(shape)
    for setting, copied, dtype in copies(flow, shape, lambda flow, x: flow(x, seeded(0))[0]):
        name = f"{type(flow).__name__} {setting}"
        verify(name, FLOW, _case(copied, shape, dtype, tolerance))
        if flow.size_free and len(shape) > 1:
            wider = (*shape[:-1], 2 * shape[-1])
            verify(f"{name}, on events {wider}", LARGER, _case(copied, wider, dtype, tolerance))


def _case(flow: Flow, shape: tuple[int, ...], dtype: torch.dtype, tolerance: float) -> Bijection:
    x, z = torch.randn(2, 3, *shape, generator=seeded(5), dtype=torch.float64).to(dtype)
    return Bijection(module=flow, forward=flow, inverse=flow.inverse, x=x, z=z, tolerance=tolerance)


def limited(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Raises: ValueError: an event whose Jacobian is too large."""
    if math.prod(shape) > MOST_DIMS:
        raise ValueError(
            f"shape={tuple(shape)}: a Jacobian of {math.prod(shape):,} rows; build the same class for at most {MOST_DIMS} "
            "dimensions and check that"
        )
    return tuple(shape)


def copies(
    module: Module, shape: tuple[int, ...], run: Callable[[Module, Tensor], Tensor]
) -> Iterator[tuple[str, Module, torch.dtype]]:
    """Copies on the CPU in evaluation mode, as given and as after training, and the dtype that they work in.

    Args:
        run: A forward pass whose value should have the dtype of x.
    """
    x = torch.randn(16, *shape, generator=seeded(6), dtype=torch.float64)
    dtype = torch.float64 if _keeps(copy.deepcopy(module).cpu().double(), x, run) else torch.float32
    given = copy.deepcopy(module).cpu().to(dtype).eval()
    moved = copy.deepcopy(given).train()
    yield GIVEN, given, dtype
    verify(type(module).__name__, {"forward in training mode": lambda moved: run(moved, x.to(dtype, copy=True))}, moved)
    move(moved.parameters())
    yield MOVED, moved.eval(), dtype


def _keeps(module: Module, x: Tensor, run: Callable[[Module, Tensor], Tensor]) -> bool:
    """Whether a module computes in the dtype of x."""
    try:
        with torch.random.fork_rng(devices=[]):
            return run(module.eval(), x.clone()).dtype == x.dtype
    except Exception:
        return False


@torch.no_grad()
def move(tensors: Iterable[Tensor]) -> None:
    """Adds noise, a tenth of the size of weights that keep a signal's variance."""
    tensors = list(tensors)
    for tensor, direction in zip(tensors, _directions(tensors), strict=True):
        tensor += 0.1 * direction


def _directions(tensors: Sequence[Tensor]) -> list[Tensor]:
    """A random direction for each tensor, of norm ~ 1 per output."""
    generator = seeded(9)
    fan_in = [tensor[0].numel() if tensor.ndim > 1 and len(tensor) else 1 for tensor in tensors]
    noise = [torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor) for tensor in tensors]
    return [v / math.sqrt(max(n, 1)) for v, n in zip(noise, fan_in, strict=True)]
