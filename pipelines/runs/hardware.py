"""What a run was trained on: RUN/hardware.json, a list with an entry for each time that it began or went on elsewhere."""

from __future__ import annotations

import json
import os
import platform
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.config.codec import from_json
from pipelines.storage.files import write_text
from pipelines.storage.reading import read_json

if TYPE_CHECKING:
    import torch

__all__ = ["Hardware", "keep_hardware", "read_hardware"]

FILE = "hardware.json"


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """A machine that trains, and the versions that it trains with.

    Args:
        step: After which it began.
        device: Name of the GPU; '' where the CPU computes.
        processes, threads: Over all machines, and of PyTorch in each.
        processor, cores: Of the machine of the first process.
        system, python, torch: Versions.
    """

    step: int = 0
    device: str = ""
    processes: int = 1
    threads: int = 1
    processor: str
    cores: int
    system: str
    python: str
    torch: str

    @staticmethod
    def here(device: torch.device, processes: int = 1, step: int = 0) -> Hardware:
        """Of this process."""
        import torch  # not with the module: files are read without it

        return Hardware(
            step=step,
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else "",
            processes=processes,
            threads=torch.get_num_threads(),
            processor=_processor(),
            cores=os.cpu_count() or 1,
            system=platform.platform(),
            python=platform.python_version(),
            torch=torch.__version__,
        )

    def __str__(self) -> str:
        on = f"{self.device}, " if self.device else ""
        several = f"{self.processes} processes, " if self.processes > 1 else ""
        threads = "" if self.device else f" ({self.threads} thread{'s' if self.threads > 1 else ''} used)"
        return f"{several}{on}{self.cores} cores of {self.processor}{threads}"


def keep_hardware(directory: Path, hardware: Hardware) -> None:
    """Notes what a run trains on from here on, unless the last entry says the same; later entries than its step are dropped."""
    there = [entry for entry in read_hardware(directory) if entry.step < hardware.step]
    if not there or replace(there[-1], step=hardware.step) != hardware:
        there.append(hardware)
    write_text(directory / FILE, json.dumps([asdict(entry) for entry in there], indent=1) + "\n")


def read_hardware(directory: Path) -> list[Hardware]:
    """The entries of a run, the first one first; none of a run of an earlier version, or where the file is of another shape."""
    with suppress(OSError, ValueError, TypeError):
        return [from_json(Hardware, entry, FILE) for entry in read_json(directory / FILE)]
    return []


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
