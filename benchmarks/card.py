"""What `gpu.py` measures on, and what takes its rows: precisions, sizes, and the bench."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from indm_core.flow import ResFlow
from indm_core.model import INDM
from indm_core.nn import UNet
from indm_core.sde import VP

__all__ = ["BF16", "BF16_LAST", "FLOAT32", "TF32", "TINY", "Bench", "Precision", "Size", "counted"]


@dataclass(frozen=True, kw_only=True)
class Precision:
    """In which numbers matrix products and convolutions are taken.

    Args:
        name: As in the rows.
        tf32: Whether float32 operands may be rounded to TF32.
        autocast: Whether the forward pass is autocast to bf16.
        channels_last: Layout of a U-Net that is measured alone.
    """

    name: str
    tf32: bool = False
    autocast: bool = False
    channels_last: bool = False

    @contextmanager
    def held(self) -> Iterator[None]:
        """The block in which float32 is rounded as it says, forward and backward."""
        settings = torch.backends.cuda.matmul, torch.backends.cudnn.conv  # pyright: ignore[reportAttributeAccessIssue]
        before = [setting.fp32_precision for setting in settings]
        for setting in settings:
            setting.fp32_precision = "tf32" if self.tf32 else "ieee"
        try:
            yield
        finally:
            for setting, value in zip(settings, before, strict=True):
                setting.fp32_precision = value

    def forward(self, device: torch.device) -> torch.autocast:
        """The context of a forward pass."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.autocast)


FLOAT32 = Precision(name="float32")
TF32 = Precision(name="tf32", tf32=True)
BF16 = Precision(name="bf16", tf32=True, autocast=True)
BF16_LAST = Precision(name="bf16, channels_last", tf32=True, autocast=True, channels_last=True)
PEAKS = {
    "H200": {"float32": 67e12, "tf32": 494e12, "bf16": 989e12},
    "H100 PCIe": {"float32": 51e12, "tf32": 378e12, "bf16": 756e12},
    "H100": {"float32": 67e12, "tf32": 494e12, "bf16": 989e12},
    "A100": {"float32": 19.5e12, "tf32": 156e12, "bf16": 312e12},
}
"""Floating-point operations a second by the data sheets, without sparsity; the first name that the card's contains counts."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large everything is.

    Args:
        gemm, conv_channels, copy_bytes: Of the roofline.
        side, nf, ch_mult, num_res_blocks: Of images and U-Net.
        blocks, width: Of the flow.
        batch: Of a step and of a sampling.
        repeats: That count.
    """

    gemm: int = 8192
    conv_channels: int = 256
    copy_bytes: int = 1 << 30
    side: int = 32
    nf: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 2, 2)
    num_res_blocks: int = 4
    blocks: tuple[int, ...] = (16, 16)
    width: int = 512
    batch: int = 128
    repeats: int = 7

    def model(self) -> INDM:
        """That of cifar10_vp_nll in its joint phase, a little away from the start, where the flow is the identity."""
        shape, sde = (3, self.side, self.side), VP()
        torch.manual_seed(0)
        backbone = UNet(
            shape,
            time_feature=lambda t: 999 * t,
            nf=self.nf,
            ch_mult=self.ch_mult,
            num_res_blocks=self.num_res_blocks,
            attention=(self.side // 2,),
        )
        flow = ResFlow(shape, blocks=self.blocks, width=self.width, constraint="infinity")
        model = INDM(flow, backbone, sde, shape=shape)
        with torch.no_grad():
            for weights in model.parameters():
                weights += 0.01 * torch.randn_like(weights)
        return model


TINY = Size(
    gemm=64,
    conv_channels=8,
    copy_bytes=1 << 16,
    side=8,
    nf=8,
    ch_mult=(1, 2),
    num_res_blocks=1,
    blocks=(1, 1),
    width=8,
    batch=2,
    repeats=2,
)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A row."""

    part: str
    what: str
    value: float
    unit: str
    remark: str = ""


class Bench:
    """Where it runs, how large, and what takes the rows.

    Args:
        device, size: Of everything.
        file: Takes a line of JSON for each row.
        minutes: After which nothing more is begun.
    """

    def __init__(self, device: torch.device, size: Size, file: Path, minutes: float) -> None:
        self.device, self.size, self.file = device, size, file
        self.began, self.minutes = time.monotonic(), minutes
        self.card = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU, a rehearsal"
        self.measured: dict[str, float] = {}
        """Rates of GEMM by precision, of the roofline."""
        self.flops_of_step = 0.0
        self.part = ""

    def tell(self, what: str, value: float, unit: str, remark: str = "") -> None:
        """Writes and prints a row."""
        row = Reading(part=self.part, what=what, value=value, unit=unit, remark=remark)
        with self.file.open("a") as lines:
            lines.write(json.dumps(asdict(row)) + "\n")
        print(f"{row.part:<10} {row.what:<52} {row.value:>12.5g} {row.unit:<14} {row.remark}", flush=True)

    def late(self) -> bool:
        """Whether the time is over; a row says so."""
        over = time.monotonic() - self.began > 60 * self.minutes
        if over:
            self.tell("left out", 0, "", f"{self.minutes:g} minutes are over")
        return over

    def seconds(self, act: Callable[[], object], repeats: int | None = None) -> float:
        """The median, after two that do not count."""
        taken = []
        for repeat in range(2 + (repeats or self.size.repeats)):
            self.wait()
            began = time.perf_counter()
            act()
            self.wait()
            if repeat > 1:
                taken.append(time.perf_counter() - began)
        return statistics.median(taken)

    def wait(self) -> None:
        """Until the device has done all that it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def rated(self, what: str, precision: Precision, act: Callable[[], object], images: int, flops: float) -> None:
        """Rows of something that takes images: images/s, MFU, memory."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        seconds = self.seconds(act)
        label, kind = f"{what}, {precision.name}", precision.name.partition(",")[0]
        self.tell(label, images / seconds, "images/s", f"{1e3 * seconds:.1f} ms")
        sheet = next((peaks for name, peaks in PEAKS.items() if name in self.card), {})
        shares = {"of the data sheet": sheet, "of GEMM here": self.measured}
        for share, peaks in shares.items():
            if kind in peaks:
                self.tell(label, 100 * flops / seconds / peaks[kind], "% MFU", share)
        if self.device.type == "cuda":
            self.tell(label, torch.cuda.max_memory_allocated(self.device) / 2**30, "GiB", "largest")


def counted(act: Callable[[], object]) -> float:
    """Floating-point operations of convolutions and matrix products, backward passes included."""
    with FlopCounterMode(display=False) as flops:
        act()
    return float(flops.get_total_flops())
