r"""Is a network as good on separators as on pieces? Denoising loss per dimension by size of window, beside the optimum.

    python pipelines/train.py field_linear --local
    python benchmarks/separators.py RUN [NUM]

The data are Gaussian fields x of known covariance C, so that with u = p x + r eps the least possible loss is known,

    E|eps_hat - eps|^2 / d  >=  tr(I - r^2 (p^2 C + r^2 I)^{-1}) / d,

C of the window, with the variance of levels and of their dequantisation, (1/8)^2 / 12 each, on its diagonal (rounding is not
quite Gaussian, which matters at small t only). NUM test images, windows at random places among those that training draws.
"""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from indm_core.model import GenerativeModel
from indm_core.sde import LinearSDE
from pipelines.config.store import configuration, load
from pipelines.config.weights import Weights
from pipelines.evaluation.plan import Plan
from pipelines.evaluation.settings import Settings
from pipelines.storage.outputs import output_root

TIMES = (0.003, 0.01, 0.03, 0.1, 0.3, 0.6)


def covariance(height: int, width: int, length: float, width_of_level: float) -> Tensor:
    """C of a window, float64."""
    rows, cols = (
        torch.exp(-(torch.arange(n)[:, None] - torch.arange(n)).abs().double() / length) for n in (height, width)
    )
    return torch.kron(rows, cols) + 2 * width_of_level**2 / 12 * torch.eye(height * width, dtype=torch.float64)


def optimum(sde: LinearSDE, C: Tensor, t: Tensor) -> float:
    p_square, r_square = sde.psi0(t).squeeze() ** 2, sde.cov(t).squeeze()
    eye = torch.eye(len(C), dtype=torch.float64)
    return 1 - float(r_square * torch.linalg.inv(p_square * C + r_square * eye).trace() / len(C))


def error(model: GenerativeModel, sde: LinearSDE, u_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """|eps_hat - eps|^2 / d of each, (b,)."""
    d = sde.eps_from_score(model.score(sde.perturb(u_0, t, eps), t), t) - eps
    return d.square().flatten(1).mean(1)


@torch.no_grad()
def main() -> int:
    """Prints the loss over the optimum, less 1, for each size of window and time."""
    if len(sys.argv) < 2:
        print(__doc__)
        return 2
    run, num = Weights.named(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1000
    (config, spec), model = configuration(run), load(run)
    name, _, size = config.data.source.rpartition(":")
    if not name.startswith("field:"):
        raise SystemExit(f"{run}: its data are {config.data.source}; the optimum is known of random fields")
    sde = model.sde.linear
    assert sde is not None
    generator = torch.Generator().manual_seed(0)
    x = spec.to_model(Plan.of([run], Settings(images=num), output_root(None)).test, generator)
    height, width = map(int, size.split("x"))
    step, smallest = model.window_step, model.smallest_window or (height, width)
    print(f"{'window':>8}" + "".join(f"   t = {t:<9g}" for t in TIMES) + " loss over the optimum, less 1 (optimum)")
    for h, w in product(range(smallest[0], height + 1, step), range(smallest[1], width + 1, step)):
        C, cells = covariance(h, w, float(name.split(":")[1]), (spec.high - spec.low) / spec.levels), []
        for t in torch.tensor(TIMES, dtype=torch.float64):
            places = [
                step * int(torch.randint((n - m) // step + 1, (), generator=generator))
                for n, m in ((height, h), (width, w))
            ]
            u_0 = sde.embed(x[..., places[0] : places[0] + h, places[1] : places[1] + w])
            eps, best = torch.randn(u_0.shape, generator=generator), optimum(sde, C, t)
            loss = torch.cat([error(model, sde, *part, t) for part in zip(u_0.split(250), eps.split(250), strict=True)])
            cells.append(f"{float(loss.mean()) / best - 1:+.3f} ({best:.3f})")
        print(f"{h:>4} x {w:<3}" + "".join(f"{cell:>17}" for cell in cells), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
