"""Where randomness comes from.

A generator argument is one of

    None                        torch's default generator (training code that seeds the process),
    a torch.Generator           one stream for the whole batch,
    a sequence of b generators  one stream per sample: row i of every draw comes from generator i alone, so that sample i
                                is the same for every batch size, every order and every number of workers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["Noise", "branch", "on_host", "one_stream", "rademacher_like", "rand", "rand_like", "randn_like", "seeded"]

Noise = torch.Generator | Sequence[torch.Generator] | None
GOLDEN = 0x9E3779B97F4A7C15
"""2^64 over the golden ratio, whose multiples modulo 2^64 lie far apart."""


def seeded(seeds: Sequence[int]) -> list[torch.Generator]:
    """One generator per seed, an integer in [0, 2^63) per sample.

    They draw on the CPU, wherever the samples are: a GPU would draw other numbers from the same seed.
    """
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def randn_like(u: Tensor, generator: Noise = None) -> Tensor:
    """Standard normal noise of u's shape (b, ...), dtype and device."""
    return _drawn(torch.randn, u.shape, u.dtype, u.device, generator)


def rand_like(u: Tensor, generator: Noise = None) -> Tensor:
    """Uniform noise on [0, 1) of u's shape (b, ...), dtype and device."""
    return _drawn(torch.rand, u.shape, u.dtype, u.device, generator)


def rand(num: int, like: Tensor, generator: Noise = None) -> Tensor:
    """`num` float64 uniforms on [0, 1) on the device of `like`."""
    return _drawn(torch.rand, (num,), torch.float64, like.device, generator)


def branch(generator: Noise) -> Noise:
    """New generators, each seeded by one draw from the given one.

    What is drawn from a branch does not change what the given generator draws next. Two models that are compared on the same
    draws give their flows a branch, because one flow may draw more numbers than another.
    """
    if generator is None:
        return None
    if isinstance(generator, torch.Generator):
        seed = torch.randint(2**62, (), generator=generator, device=generator.device)
        return torch.Generator(generator.device).manual_seed(int(seed))
    return [g for one in generator if isinstance(g := branch(one), torch.Generator)]


def on_host(generator: Noise) -> Noise:
    """What the host draws its own decisions from (how many terms, which window) without waiting for a device.

    Of a GPU's generator a new one of the CPU, seeded by the seed and the place that its stream has come to, which moves on;
    generators of the CPU are what they are.
    """
    if not isinstance(generator, torch.Generator) or generator.device.type != "cuda":
        return generator
    place = generator.get_offset()
    generator.set_offset(place + 4)  # in counts of the Philox stream, which come in fours
    return torch.Generator().manual_seed((generator.initial_seed() + (place + 1) * GOLDEN) % 2**63)


def one_stream(generator: Noise) -> torch.Generator | None:
    """The generator of what draws for all samples together.

    Raises:
        ValueError: a generator for each sample.
    """
    if generator is None or isinstance(generator, torch.Generator):
        return generator
    raise ValueError(f"generator: {len(generator)} generators, one per sample, but the samples are mixed; give one")


def rademacher_like(u: Tensor, generator: Noise = None) -> Tensor:
    """Independent signs of u's shape: the Hutchinson probe of least variance with independent entries."""
    return torch.where(randn_like(u, generator) < 0, -1.0, 1.0).to(u.dtype)


def _drawn(
    law: Callable[..., Tensor], shape: Sequence[int], dtype: torch.dtype, device: torch.device, generator: Noise
) -> Tensor:
    if generator is None or isinstance(generator, torch.Generator):
        return law(tuple(shape), dtype=dtype, device=device, generator=generator)
    if len(generator) != shape[0]:
        raise ValueError(f"generator: {len(generator)} generators for a batch of {shape[0]}; give one per sample")
    if not generator:
        return torch.empty(tuple(shape), dtype=dtype, device=device)
    rows = [law(tuple(shape[1:]), dtype=dtype, device=g.device, generator=g) for g in generator]
    return torch.stack(rows).to(device)
