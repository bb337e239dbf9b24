r"""Collages in the latent of an INDM: is the flow invertible on a canvas larger than in training, and does it map pieces alike?

    python pipelines/train.py strips_indm --local
    python benchmarks/latent_collage.py RUN [NUM]

NUM canvases of 12 pieces (200 pixels, 8.3 times as wide as in training) are drawn in the latent z by the corrected sampler:
the largest |h(h^-1(z)) - z|; the largest Lipschitz constant of a block's g at these canvases, by power iterations on its
Jacobian, beside the bound; and h^-1 of a piece of z alone beside that piece of h^-1(z), by the distance from the piece's border
(a flow reaches a few pixels per block, so that they agree inside).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from indm_core.collage import chain
from indm_core.draw import canvas, draw_canvases
from indm_core.flow import ResFlow
from indm_core.model.diffusion import Diffusion
from indm_core.sampling import Sampling
from pipelines.config.store import load
from pipelines.config.weights import Weights


def lipschitz(g: Callable[[Tensor], Tensor], x: Tensor, rounds: int = 30) -> float:
    """The largest singular value of dg/dx over the samples of x."""
    v = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    size = torch.zeros(len(x))
    for _ in range(rounds):
        v = v / v.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
        _, pushed = torch.autograd.functional.jvp(g, x, v)
        _, v = torch.autograd.functional.vjp(g, x, pushed)
        size = v.flatten(1).norm(dim=1).sqrt()
    return float(size.max())


def main() -> int:
    """Prints the three."""
    if len(sys.argv) < 2:
        print(__doc__)
        return 2
    model, num = load(Weights.named(sys.argv[1])), int(sys.argv[2]) if len(sys.argv) > 2 else 16
    assert isinstance(model, Diffusion)
    piece, overlap = model.shape[-1], 8
    graph = chain(12, piece, overlap)
    x = draw_canvases(canvas(model, graph), range(num), Sampling(sampler="collage", steps=20)).x
    with torch.no_grad():
        z = model.flow(x)[0]
        back = model.flow(model.flow.inverse(z))[0]
    print(f"{num} canvases {tuple(x.shape[1:])}: |h(h^-1(z)) - z| <= {float((back - z).abs().max()):.1e}", flush=True)
    state = x
    for flow in model.flow.modules():
        if isinstance(flow, ResFlow):
            worst = []
            for scale in flow.scales:
                for block in scale.children():
                    g = block.bound(torch.float32)  # pyright: ignore[reportCallIssue]
                    worst.append(lipschitz(lambda v, g=g: g(v), state[:4]))
                    state = (state + g(state)).detach()
            print(f"Lipschitz constants of the blocks on the canvas: {', '.join(f'{size:.3f}' for size in worst)}")
    starts = range(0, x.shape[-1] - piece + 1, piece - overlap)
    with torch.no_grad():
        alone = torch.stack([model.flow.inverse(z[..., a : a + piece]) for a in starts])
    together = torch.stack([x[..., a : a + piece] for a in starts])
    off = (alone - together).square().mean((0, 1, 2, 3)).sqrt()
    inner = torch.minimum(torch.arange(piece), piece - 1 - torch.arange(piece))
    by_depth = [float(off[inner == depth].square().mean().sqrt()) for depth in range(piece // 2)]
    print(
        f"a piece decoded alone and in the canvas, RMS of x by distance from its border: "
        f"{', '.join(f'{d:.1e}' for d in by_depth)}"
    )
    print(f"(the data's own standard deviation: {float(x.std()):.2f})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
