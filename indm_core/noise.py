"""Where randomness comes from.

A generator argument is one of

    None                        torch's default generator (training code that seeds the process),
    a torch.Generator           one stream for the whole batch,
    a sequence of b generators  one stream per sample: row i of every draw comes from generator i alone, so that sample i
                                is the same for every batch size, every order and every number of workers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Noise", "rademacher_like", "rand", "randn_like", "seeded"]

Noise = torch.Generator | Sequence[torch.Generator] | None


def seeded(seeds: Sequence[int], device: torch.device | str = "cpu") -> list[torch.Generator]:
    """One generator per seed.

    Args:
        seeds: One integer in [0, 2^63) per sample.
        device: Where the draws are made; a CPU and a GPU draw different numbers from the same seed.
    """
    return [torch.Generator(device).manual_seed(seed) for seed in seeds]


def randn_like(u: Tensor, generator: Noise = None) -> Tensor:
    """Standard normal noise of u's shape (b, ...), dtype and device."""
    if generator is None or isinstance(generator, torch.Generator):
        return torch.randn(u.shape, dtype=u.dtype, device=u.device, generator=generator)
    if len(generator) != u.shape[0]:
        raise ValueError(f"generator: {len(generator)} generators for a batch of {u.shape[0]}; give one per sample")
    rows = [torch.randn(u.shape[1:], dtype=u.dtype, device=u.device, generator=g) for g in generator]
    return torch.stack(rows)


def rand(num: int, like: Tensor, generator: Noise = None) -> Tensor:
    """`num` float64 uniforms on [0, 1) on the device of `like`."""
    if generator is None or isinstance(generator, torch.Generator):
        return torch.rand(num, dtype=torch.float64, device=like.device, generator=generator)
    rows = [torch.rand((), dtype=torch.float64, device=like.device, generator=g) for g in generator]
    return torch.stack(rows)


def rademacher_like(u: Tensor, generator: Noise = None) -> Tensor:
    """Independent signs of u's shape: the Hutchinson probe of least variance with independent entries."""
    return torch.where(randn_like(u, generator) < 0, -1.0, 1.0).to(u.dtype)
