"""Residual flows: memory against the number of series terms, evaluations that an inverse takes, time per training step.

    python benchmarks/residual_flow.py

(a) Peak memory of a training step, forward and backward, with n = 2 and n = 20 terms of the log-det's series: the bytes of all
    tensors that are alive at once, counted operation by operation, so that the figure is the same on every run. Parameters
    are not counted.
(b) Evaluations of g that Anderson's acceleration and the fixed point take for each sample, |dx| <= 1e-6, on blocks whose
    Lipschitz constant training has driven up to its bound, and on a rotation, the worst case of both.
(c) The product of the true norms of a block's layers (SVD of their matrices), the largest that training reaches and the one
    in evaluation, and how far the training's loss and evaluation's are apart on the same weights.
(d) The log-det that evaluation estimates, and 20 terms with a Poisson(2) tail, less the exact one, on the blocks of (b).
(e) Seconds per training step under the Poisson and the geometric law of the number of terms: both with 2 random terms in the
    mean, and the geometric law with a continuation probability above 0.98^2 (32 in the mean).
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.memory import LiveBytes
from indm_core.errors import ConvergenceError
from indm_core.flow import LipSwish, ResFlow, Roulette, Sine
from indm_core.flow.anderson import invert_block
from indm_core.flow.lipschitz import Constraint
from indm_core.flow.residual_block import ResidualBlock

__all__ = [
    "BLOCKS",
    "evaluated_log_det",
    "evaluations",
    "lipschitz",
    "norms_in_training",
    "peak_bytes",
    "rotation",
    "trained",
]

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


def norms_in_training(event: tuple[int, ...], lr: float, *, num_steps: int = 60) -> tuple[float, float, float]:
    """Of two LipSwish blocks that Adam trains: the largest product of true norms in training, the one in evaluation at
    the end, and the largest difference of 1/2 |z|^2 between the two modes on the same weights, bits/dim."""
    torch.manual_seed(0)
    flow = ResFlow(event, blocks=(2,), width=16, activation=LipSwish)
    optimiser = torch.optim.Adam(flow.parameters(), lr=lr)
    x, products, apart = 0.5 * torch.randn(256, *event), [], []
    for step in range(num_steps):
        z, log_det = flow.train()(x[torch.randint(256, (32,))])
        optimiser.zero_grad()
        (0.5 * z.square().flatten(1).sum(1) - log_det).mean().backward()
        optimiser.step()
        if step % 5 == 0:
            products.append(largest_product(flow, event))
            with torch.no_grad():
                energies = [
                    0.5 * flow.train(mode)(x[:32])[0].square().sum() / 32 / math.log(2) for mode in (True, False)
                ]
            apart.append(abs(float(energies[0] - energies[1])) / math.prod(event))
    return max(products), largest_product(flow.eval(), event), max(apart)


def largest_product(flow: ResFlow, event: tuple[int, ...]) -> float:
    """The largest product of the spectral norms of a block's layers, as matrices."""
    products = []
    for block in flow.scales[0]:  # pyright: ignore[reportGeneralTypeIssues]
        product = 1.0
        for layer in block.layers:
            weight = layer.bounded_weight().detach()
            basis = torch.eye(math.prod((weight.shape[1], *event[1:]))).reshape(-1, weight.shape[1], *event[1:])
            matrix = (layer(basis, weight) - layer(torch.zeros_like(basis[:1]), weight)).flatten(1)
            matrix = (matrix if len(matrix) < matrix.shape[1] else matrix.mT).double()
            gram = matrix @ matrix.mT
            product *= math.sqrt(float(torch.linalg.eigvalsh(gram)[-1].detach()))
        products.append(product)
    return max(products)


def evaluated_log_det(
    num_dims: int, constraint: Constraint, direction: float, roulette: Roulette | None = None
) -> tuple[float, float, float]:
    """The mean over 200 probes of a trained block's log-det at one point in evaluation, its standard error, and the exact one.

    Args:
        num_dims, constraint, direction: Of `trained`.
        roulette: A law without a stop, in place of evaluation's.
    """
    block, x = trained(num_dims, constraint, direction)
    flow = ResFlow((num_dims,), blocks=(1,), width=32, constraint=constraint, exact_eval=0).eval()
    flow.scales[0] = nn.ModuleList([block])
    if roulette is not None:
        flow.eval_roulette, flow.stop = roulette, None
    point, generators = x[:1].expand(200, num_dims), [torch.Generator().manual_seed(seed) for seed in range(200)]
    with torch.no_grad():
        _, values = flow(point, generators)
        flow.exact_eval = num_dims
        _, exact = flow(x[:1])
    return float(values.mean()), float(values.std()) / math.sqrt(200), float(exact)


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

    print("(c) product of true norms, bound 0.98: in training, in evaluation; the two modes apart, bits/dim")
    for event, lr in (((16,), 2e-3), ((2,), 2e-3), ((1, 8, 8), 2e-3), ((3, 6, 6), 5e-3)):
        training, evaluation, apart = norms_in_training(event, lr)
        print(f"    {event!s:10s} LipSwish, lr {lr:g}: {training:.4f} {evaluation:.6f} {apart:.5f}")

    print("(d) log-det less the exact one, nats: evaluation, 20 terms and Poisson(2)")
    for name, settings in BLOCKS.items():
        found = [evaluated_log_det(*settings, roulette=law) for law in (None, Roulette(exact=20))]
        shown = ", ".join(f"{value - exact:+.3f} +- {se:.3f}" for value, se, exact in found)
        print(f"    {name:26s} {shown}  (exact {found[0][2]:.3f})")

    print("(e) training steps, 16 images of 8x8x3, 8 blocks of width 64, 2 exact terms, then")
    print("    law        parameter  median s  slowest s")
    x = torch.randn(16, 3, 8, 8)
    for roulette in (Roulette(), Roulette(law="geometric", parameter=0.67), Roulette(law="geometric", parameter=0.97)):
        torch.manual_seed(0)
        flow = ResFlow((3, 8, 8), blocks=(4, 4), width=64, roulette=roulette).train()
        taken = seconds(lambda flow=flow: training_step(flow, x))
        print(f"    {roulette.law:10s} {roulette.parameter:9g} {statistics.median(taken):9.3f} {max(taken):10.3f}")


if __name__ == "__main__":
    main()
