"""How the workers' memory is managed on CPUs: by glibc, told to keep what is freed.

A training step takes and frees the same buffers, some megabytes each. As it is, glibc maps large ones anew each time, and gives
the top of its heap back to the system; every page of them then comes by a fault and is filled with zeros: thousands in a step,
and a few hundredths of its time (`python -m benchmarks allocator`). With these variables, which glibc reads when a process
starts, buffers below 32 MiB (its largest threshold) come from the heap, and the heap keeps what is freed. A process holds the
most that it has needed at once. Elsewhere than on glibc they mean nothing. A variable that the user has set stays.
"""

from __future__ import annotations

import os

__all__ = ["KEEPS_MEMORY", "memory_variables"]

KEEPS_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "MALLOC_TOP_PAD_": str(64 << 20),
}


def memory_variables() -> dict[str, str]:
    """Those of `KEEPS_MEMORY` that the user has not set."""
    return {name: value for name, value in KEEPS_MEMORY.items() if name not in os.environ}
