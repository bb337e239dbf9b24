"""Where a process computes: `--device auto`, cpu, cuda, or cuda:1, the second GPU of the machine."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["check_device", "check_device_of_workers", "device_of"]


def check_device(word: str) -> None:
    """Refuses what is no device.

    Raises:
        ValueError: it is none.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", word):
        raise ValueError(f"device={word!r} is none of auto, cpu, cuda, cuda:0, cuda:1, ...")


def check_device_of_workers(word: str) -> None:
    """Refuses what is no device, and a GPU by its number where Ray gives the processes theirs.

    Raises:
        ValueError: it is none, or has a number.
    """
    check_device(word)
    if ":" in word:
        number = word.partition(":")[2]
        raise ValueError(
            f"device={word}: Ray gives each of its processes a GPU; give --device cuda, and CUDA_VISIBLE_DEVICES={number} in "
            "front of the command for this one"
        )


def device_of(word: str) -> torch.device:
    """The device that a word stands for; auto is the first GPU, else the CPU.

    Raises:
        ValueError: it is not there.
    """
    import torch

    num = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if word == "auto":
        return torch.device("cuda" if num else "cpu")
    device = torch.device(word)
    if device.type == "cuda" and (device.index or 0) >= num:
        there = f"torch sees {num} here, cuda:0 to cuda:{num - 1}" if num else "torch sees no GPU on this machine"
        raise ValueError(f"device={word}: {there}; give --device {'cuda:0' if num else 'cpu'}")
    return device
