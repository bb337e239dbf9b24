"""Residual flows: memory against the number of series terms, evaluations that an inverse takes, time per training step.

    python benchmarks/residual_flow.py

(a) Peak memory of a training step, forward and backward, with n = 2 and n = 20 terms of the log-det's series: the bytes of all
    tensors that are alive at once, counted operation by operation, so that the figure is the same on every run. Parameters
    are not counted.
(b) Evaluations of g that Anderson's acceleration and the fixed point take for each sample, |dx| <= 1e-6, on blocks whose
    Lipschitz constant training has driven up to its bound, and on a rotation, the worst case of both.
(c) Seconds per training step under the Poisson and the geometric law of the number of terms: both with 2 random terms in the
    mean, and the geometric law with a continuation probability above 0.98^2 (32 in the mean).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.memory import LiveBytes
from indm_core.errors import ConvergenceError
from indm_core.flow import ResFlow, Roulette, Sine
from indm_core.flow.anderson import invert_block
from indm_core.flow.lipschitz import Constraint
from indm_core.flow.resflow import ResidualBlock

__all__ = ["BLOCKS", "evaluations", "lipschitz", "peak_bytes", "rotation", "trained"]

BLOCKS: dict[str, tuple[int, Constraint, float]] = {
    "stretching, spectral": (4, "spectral", 1.0),
    "stretching, infinity": (8, "infinity", 1.0),
    "squeezing, spectral": (8, "spectral", -1.0),
    "squeezing, infinity": (8, "infinity", -1.0),
}
"""Dimensions, constraint, and whether training drives log_det up (1) or down (-1)."""


def training_step(flow: ResFlow, x: Tensor) -> None:
    """Forward and backward of the negative log-likelihood."""
    z, log_det = flow(x)
    (0.5 * z.square().flatten(1).sum(1) - log_det).mean().backward()


def peak_bytes(num_terms: int, *, width: int = 64, num_images: int = 8) -> int:
    """The most bytes alive at once in a training step with `num_terms` terms of the series."""
    torch.manual_seed(0)
    roulette = Roulette(law="poisson", parameter=1e-12, exact=num_terms)  # no random terms
    flow = ResFlow((3, 8, 8), blocks=(2, 2), width=width, roulette=roulette).train()
    with LiveBytes() as count:
        training_step(flow, torch.randn(num_images, 3, 8, 8))
    return count.peak


def trained(num_dims: int, constraint: Constraint, direction: float) -> tuple[ResidualBlock, Tensor]:
    """A block that training drives to its Lipschitz bound by stretching (1) or squeezing (-1) narrow data; 32 such data."""
    torch.manual_seed(0)
    flow = ResFlow((num_dims,), blocks=(1,), width=32, constraint=constraint, exact_train=num_dims).train()
    optimiser = torch.optim.Adam(flow.parameters(), lr=2e-2)
    for _ in range(150):
        _, log_det = flow(0.02 * torch.randn(16, num_dims))
        optimiser.zero_grad()
        (-direction * log_det).mean().backward()
        optimiser.step()
    (block,) = flow.eval().scales[0]  # pyright: ignore[reportGeneralTypeIssues]
    return block, 0.02 * torch.randn(32, num_dims)


def rotation(num_dims: int = 64) -> tuple[ResidualBlock, Tensor]:
    """A block whose Jacobian is 0.98 times a random orthogonal matrix about 0: a large constant that no Krylov space sees."""
    torch.manual_seed(0)
    options = {"width": 1, "kernels": (1,), "coefficient": 0.98, "constraint": "spectral", "activation": Sine}
    block = ResidualBlock((num_dims,), **options).eval()
    with torch.no_grad():
        block.layers[0].weight.copy_(2 * torch.linalg.qr(torch.randn(num_dims, num_dims)).Q)  # pyright: ignore
    return block, 0.02 * torch.randn(32, num_dims)


def lipschitz(block: ResidualBlock, x: Tensor, constraint: Constraint) -> float:
    """The largest norm of g's Jacobian over the points x, in the constraint's norm."""
    g = block.bound(x.dtype)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda point: g(point[None])[0]))
    return float(torch.linalg.matrix_norm(jacobian(x), 2 if constraint == "spectral" else float("inf")).detach().max())


def evaluations(block: ResidualBlock, x: Tensor, *, window: int) -> tuple[float, float]:
    """Evaluations of g per sample that inverting x + g(x) takes (at most 2000), and the largest error of x."""
    g, num_rows = block.bound(x.dtype), 0

    def counted(rows: Tensor) -> Tensor:
        nonlocal num_rows
        num_rows += len(rows)
        return g(rows)

    with torch.no_grad():
        found = invert_block(counted, x + g(x), tolerance=1e-6, max_iterations=2000, window=window)
    return num_rows / len(x), float((found - x).abs().max())


def seconds(step: Callable[[], None], *, num_steps: int = 15) -> list[float]:
    """Seconds of each of some calls, after one that is not counted."""
    taken = []
    for _ in range(num_steps + 1):
        start = time.perf_counter()
        step()
        taken.append(time.perf_counter() - start)
    return taken[1:]


def main() -> None:
    torch.set_num_threads(1)
    few, many = peak_bytes(2), peak_bytes(20)
    print(
        f"(a) peak memory: {few / 2**20:.2f} MiB with 2 terms, {many / 2**20:.2f} MiB with 20, ratio {many / few:.3f}"
    )

    print("(b) evaluations of g per sample, |dx| <= 1e-6")
    print("    block                      dtype    Lip(g)  fixed point  Anderson")
    cases: list[tuple[str, ResidualBlock, Tensor, Constraint]] = [
        *((f"{name}, {settings[0]}-D", *trained(*settings), settings[1]) for name, settings in BLOCKS.items()),
        ("rotation, 64-D", *rotation(), "spectral"),
    ]
    for name, block, x, constraint in cases:
        for dtype in (torch.float32, torch.float64):
            norm, counts = lipschitz(block, x.to(dtype), constraint), []
            for window in (0, 5):
                try:
                    counts.append(f"{evaluations(block, x.to(dtype), window=window)[0]:.1f}")
                except ConvergenceError:
                    counts.append("never")
            print(f"    {name:26s} {str(dtype)[6:]:8s} {norm:.3f} {counts[0]:>12s} {counts[1]:>9s}")

    print("(c) training steps, 16 images of 8x8x3, 8 blocks of width 64, 2 exact terms, then")
    print("    law        parameter  median s  slowest s")
    x = torch.randn(16, 3, 8, 8)
    for roulette in (Roulette(), Roulette(law="geometric", parameter=0.67), Roulette(law="geometric", parameter=0.97)):
        torch.manual_seed(0)
        flow = ResFlow((3, 8, 8), blocks=(4, 4), width=64, roulette=roulette).train()
        taken = seconds(lambda flow=flow: training_step(flow, x))
        print(f"    {roulette.law:10s} {roulette.parameter:9g} {statistics.median(taken):9.3f} {max(taken):10.3f}")


if __name__ == "__main__":
    main()
