"""What the machine can do: GEMM and convolution, float32 and bf16, one thread.

    python -m benchmarks peak                  GFLOP/s, as rows: each beside the same in float32 and contiguous
    from benchmarks.peak import peak           what other figures divide by

The product of two matrices n x n takes 2 n^3 floating-point operations; a convolution of b images with c channels in and out, a
kernel of side k and h x w positions takes 2 b h w k^2 c^2. The rate of the fastest repeat is what the machine can do: all that
disturbs a repeat makes it slower.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch.nn.functional import conv2d

from benchmarks.figure import Absent, Row, in_turn

__all__ = ["Kernel", "convolution", "gemm", "peak"]


@dataclass(frozen=True)
class Kernel:
    """An operation of a known number of floating-point operations."""

    act: Callable[[], object]
    flops: float

    def rate(self, repeats: int = 7) -> float:
        """The fastest repeat's floating-point operations a second, after one that does not count."""
        self.act()
        taken = []
        for _ in range(repeats):
            began = time.perf_counter()
            self.act()
            taken.append(time.perf_counter() - began)
        return self.flops / min(taken)


def gemm(dtype: torch.dtype = torch.float32, n: int = 1024, device: str = "cpu") -> Kernel:
    """The product of two n x n matrices."""
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    return Kernel(lambda: a @ b, 2.0 * n**3)


def convolution(
    dtype: torch.dtype = torch.float32,
    *,
    channels: int = 128,
    side: int = 32,
    batch: int = 16,
    kernel: int = 3,
    channels_last: bool = False,
    device: str = "cpu",
) -> Kernel:
    """A convolution that keeps sides and channels: that of the middle of a U-Net."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(batch, channels, side, side, device=device).to(dtype, memory_format=layout)
    weight = torch.randn(channels, channels, kernel, kernel, device=device).to(dtype, memory_format=layout)

    @torch.no_grad()
    def act() -> torch.Tensor:
        return conv2d(x, weight, padding=kernel // 2)

    return Kernel(act, 2.0 * batch * side**2 * kernel**2 * channels**2)


def peak(quick: bool = False) -> float:
    """The larger rate of float32's GEMM and convolution, in floating-point operations a second."""
    size = 256 if quick else 1024
    return max(gemm(n=size).rate(), convolution(batch=2 if quick else 16).rate())


def figure(quick: bool) -> Iterator[Row | Absent]:
    """GEMM and convolution of this machine, GFLOP/s of one thread: bf16 and channels_last beside float32, contiguous."""
    n, batch = (256, 2) if quick else (1024, 16)
    plain = {"GEMM": gemm(n=n), "convolution 3x3": convolution(batch=batch)}
    others = {
        "GEMM": {"bf16": gemm(torch.bfloat16, n)},
        "convolution 3x3": {
            "float32, channels_last": convolution(batch=batch, channels_last=True),
            "bf16": convolution(torch.bfloat16, batch=batch),
            "bf16, channels_last": convolution(torch.bfloat16, batch=batch, channels_last=True),
        },
    }
    for name, variants in others.items():
        for variant, kernel in variants.items():
            pairs = in_turn(kernel.act, plain[name].act, num_pairs=7, clock=time.perf_counter)
            row = pairs.row(f"{name}, {variant}", "float32")
            ours, theirs = (kernel.flops / 1e9 / min(times) for times in (pairs.ours, pairs.theirs))
            yield Row(**{**vars(row), "unit": "GFLOP/s", "ours": ours, "theirs": theirs})
