"""DiffFlow: memory of the stochastic adjoint, and what progressive training saves.

    python benchmarks/diffflow.py

(a) Peak memory of a training step at N = 30 with two U-Nets for MNIST, by the adjoint and by plain automatic differentiation:
    the bytes of all tensors that are alive at once, parameters not counted.
(b) Rings: training at N = 30 from the start for a fixed number of seconds, and progressively (N = 5, 10, 20, 30) for as
    long. The loss is the bound at N = 30 on the same 5,000 held-out points and noise, of the averaged weights. Printed: the
    time after which progressive training reaches the last loss of the fixed one, as a share of its time. Seconds are of
    processor time on one thread, which other work on the machine does not lengthen.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
from torch import Tensor

from benchmarks.memory import LiveBytes
from indm_core.model import DiffFlow
from indm_core.nn import MLP, UNet
from indm_core.training import AdamW, Trainer
from pipelines.data.readers.toy2d import TOY2D

__all__ = ["curve", "peak_bytes"]


def peak_bytes(*, adjoint: bool, num_steps: int = 30, num_images: int = 2, nf: int = 32) -> int:
    """The most bytes alive at once in a training step on images of MNIST's size."""
    torch.manual_seed(0)
    shape = (1, 28, 28)
    drift, score = (
        UNet(
            shape,
            time_feature=lambda t: 999 * t,
            nf=nf,
            ch_mult=(1, 2, 2),
            num_res_blocks=2,
            attention=(14,),
            dropout=0.0,
        )
        for _ in range(2)
    )
    model = DiffFlow(drift, score, shape=shape, schedule=((0, num_steps),), adjoint=adjoint)
    with LiveBytes() as count:
        model(torch.randn(num_images, *shape)).objective.mean().backward()
    return count.peak


def curve(stages: list[int], seconds: float, *, batch: int = 1000, every: float = 5.0) -> list[tuple[float, float]]:
    """(seconds of training, bound at N = 30 in nats/dim) of a run on rings; N moves on after equal shares of the first half."""
    torch.manual_seed(0)
    drift, score = (MLP(2, time_feature=lambda t: 999 * t, width=64, depth=2) for _ in range(2))
    model = DiffFlow(drift, score, shape=(2,), g=0.2, t_max=0.05, schedule=((0, stages[-1]),))
    trainer = Trainer(model, {name: AdamW(lr=1e-3) for name in ("drift", "score")}, ema_decay=0.99)
    points = torch.from_numpy(TOY2D["rings"](200_000, np.random.default_rng(0)).astype(np.float32))
    held, train, spent, shown = points[:5000], points[5000:], 0.0, 0.0
    found, generator = [(0.0, _bound(trainer, held))], torch.Generator().manual_seed(0)
    while spent < seconds:
        began = time.process_time()
        share = spent / (0.5 * seconds)
        model.schedule = ((0, stages[min(len(stages) - 1, int(share * (len(stages) - 1)))]),)
        x = train[torch.randint(len(train), (batch,), generator=generator)]
        trainer.step([(x, None)], generator)
        spent += time.process_time() - began
        if spent - shown >= every:
            shown = spent
            found.append((spent, _bound(trainer, held)))
    return found


@torch.no_grad()
def _bound(trainer: Trainer, x: Tensor) -> float:
    model = trainer.averaged.eval()
    assert isinstance(model, DiffFlow)
    model.num_steps = 30
    return float(model(x, generator=torch.Generator().manual_seed(1)).terms["nelbo"].mean()) / 2


def main() -> None:
    memory = {adjoint: peak_bytes(adjoint=adjoint) / 2**20 for adjoint in (True, False)}
    print(f"peak memory at N = 30: adjoint {memory[True]:.0f} MiB, automatic differentiation {memory[False]:.0f} MiB")
    print(f"ratio {memory[True] / memory[False]:.3f}")
    seconds = 180.0
    torch.set_num_threads(1)
    fixed, progressive = curve([30], seconds), curve([5, 10, 20, 30], seconds)
    target = fixed[-1][1]
    print(f"fixed N = 30: {target:.4f} nats/dim after {fixed[-1][0]:.0f} s")
    reached = next((spent for spent, bound in progressive if bound <= target), float("nan"))
    print(
        f"progressive: {progressive[-1][1]:.4f} after {progressive[-1][0]:.0f} s; at {target:.4f} after {reached:.0f} s"
    )
    print(f"ratio {reached / fixed[-1][0]:.2f}")


if __name__ == "__main__":
    main()
