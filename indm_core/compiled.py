"""Compilation of a network block by block.

A network of many equal blocks is compiled a block at a time: each kind of block once for each shape, in place of one program as
long as the network. The blocks say so by their class (`Repeated`). What a block computes does not change beyond rounding, and
dropout draws what it would have drawn.

It pays where a device waits for its instructions or for memory, as GPUs do between convolutions; on a processor, whose time is
in the convolutions themselves, it hardly does (docs/PERFORMANCE.md).
"""

from __future__ import annotations

import warnings

import torch
from torch import nn

__all__ = ["Repeated", "cannot_compile", "compile_blocks"]

NUM_SHAPES = 256
"""Programs of one kind of block; beyond so many PyTorch would leave the rest uncompiled."""


class Repeated(nn.Module):
    """A block that a network has many of; its `forward` is first order in gradients, as compiled programs are."""


def compile_blocks(network: nn.Module, backend: str = "inductor") -> int:
    """Compiles the blocks of a network in place, each when it is first called; the number of blocks.

    Args:
        network: Anything; what has no `Repeated` block stays as it is.
        backend: Of torch.compile.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, NUM_SHAPES)
    torch._dynamo.config.suppress_errors = True  # a block that does not compile runs as it is
    options = {"fallback_random": True} if backend == "inductor" else None
    blocks = [block for block in network.modules() if isinstance(block, Repeated)]
    for block in blocks:
        block.compile(backend=backend, options=options, dynamic=False)
    return len(blocks)


def cannot_compile(device: torch.device) -> str:
    """Why a device cannot be compiled for, in a line; '' where it can. Takes seconds: it compiles and runs a sum."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of parts of the compiler about others
            torch.compile(_sum, dynamic=False)(torch.zeros(8, device=device, requires_grad=True)).backward()
    except Exception as error:  # compilers fail in their own ways
        return str(error).strip().partition("\n")[0] or type(error).__name__
    return ""


def _sum(x: torch.Tensor) -> torch.Tensor:
    return (x.sin() + 1.0).sum()
