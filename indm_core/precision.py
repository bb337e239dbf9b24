"""Which devices compute in bfloat16.

A product in bfloat16 (8 bits of mantissa, the exponents of float32) takes half the memory of one in float32, and a device with
instructions for it does more of them in a second: CUDA devices of compute capability 8.0 on, processors with avx512_bf16 or
amx_bf16, those of Arm with bf16. Elsewhere it goes through float32, which is slower than float32 itself.
"""

from __future__ import annotations

import torch

__all__ = ["computes_in_bfloat16"]


def computes_in_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for products in bfloat16."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return any(there for name, there in torch.cpu.get_capabilities().items() if name.endswith("bf16"))
    return True  # not known; autocast itself refuses a device that it does not know
