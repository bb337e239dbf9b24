"""Everything that needs a GPU, in one run of under eight minutes.

    PYTHONPATH=. python benchmarks/gpu.py [--out gpu.jsonl] [--minutes 8] [--batch 128]
    PYTHONPATH=. python benchmarks/gpu.py --rehearse        every part at a tiny size on the CPU

It takes torch and this repository, nothing else. A row is written to FILE, and printed, as soon as it is measured, so that a
run that is cut off loses nothing; a part that fails is a row that says so, and the others go on. Parts, the dearest last:

    roofline    GEMM and convolution in float32, TF32 and bf16; bytes a second of a copy
    unet        the score network of cifar10_vp_nll alone, forward and backward: images/s, MFU, memory
    step        the whole training step of cifar10_vp_nll in its joint phase (score and ResFlow): the same
    sampling    images/s by 10 and 20 evaluations, eagerly and as one CUDA graph; the flow's inverse
    syncs       how often a training step and a sampling wait for the device
    compiled    unet and step with the U-Net's blocks compiled

MFU = F / (T P): F the floating-point operations of convolutions and matrix products, counted operation by operation; T the
median seconds; P the card's peak for the precision: by its data sheet, where the card is known, and the rate of GEMM measured
here. float32 has TF32 switched off everywhere; TF32 has it on; bf16 is autocast; "channels_last" is the layout of the U-Net's
weights and inputs.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch import Tensor, nn

from benchmarks.card import BF16, BF16_LAST, FLOAT32, TF32, TINY, Bench, Precision, Size, counted
from benchmarks.peak import convolution, gemm
from indm_core.compiled import compile_blocks
from indm_core.exponential import sample_deis
from indm_core.model import INDM
from indm_core.optimiser import AdamW
from indm_core.sample import power_times
from indm_core.training import Trainer


def roofline(bench: Bench) -> None:
    """What the card gives: GEMM, convolution, copy."""
    size, on = bench.size, str(bench.device)
    for precision in (FLOAT32, TF32, BF16):
        dtype = torch.bfloat16 if precision.autocast else torch.float32
        with precision.held():
            product = gemm(dtype, size.gemm, on)
            bench.measured[precision.name] = product.flops / bench.seconds(product.act)
            bench.tell(f"GEMM {size.gemm}, {precision.name}", bench.measured[precision.name] / 1e12, "TFLOP/s")
            for last in (False, True):
                kernel = convolution(
                    dtype,
                    channels=size.conv_channels,
                    side=size.side // 2,
                    batch=size.batch,
                    channels_last=last,
                    device=on,
                )
                layout = "channels_last" if last else "contiguous"
                rate = kernel.flops / bench.seconds(kernel.act) / 1e12
                bench.tell(f"convolution 3x3, {precision.name}, {layout}", rate, "TFLOP/s")
    here = torch.zeros(size.copy_bytes, dtype=torch.uint8, device=bench.device)
    there = torch.empty_like(here)
    moved = 2 * size.copy_bytes / bench.seconds(lambda: there.copy_(here))
    bench.tell("copy, read and write", moved / 1e9, "GB/s")


def stepping(network: nn.Module, x: Tensor, precision: Precision) -> Callable[[], object]:
    """A forward and a backward pass of a backbone."""
    t = torch.rand(len(x), device=x.device)

    def act() -> None:
        network.zero_grad(set_to_none=True)
        with precision.held():
            with precision.forward(x.device):
                loss = network(x, t).square().mean()
            loss.backward()

    return act


def unet(bench: Bench, compiled: str = "") -> None:
    """The score network alone."""
    size = bench.size
    for precision in (BF16_LAST,) if compiled else (FLOAT32, TF32, BF16, BF16_LAST):
        if bench.late():
            return
        network = size.model().score_model.backbone.to(bench.device).train()
        x = torch.randn(size.batch, 3, size.side, size.side, device=bench.device)
        if precision.channels_last:
            network = network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
            x = x.to(memory_format=torch.channels_last)
        flops = counted(stepping(network, x, FLOAT32))
        if compiled:
            compile_blocks(network, compiled)
        bench.rated(
            f"U-Net{', compiled' if compiled else ''}", precision, stepping(network, x, precision), len(x), flops
        )


def step(bench: Bench, compiled: str = "") -> None:
    """The training step: forward, backward, clip, AdamW and the average."""
    size = bench.size
    x = 2 * torch.rand(size.batch, 3, size.side, size.side, device=bench.device) - 1
    for precision in (BF16,) if compiled else (FLOAT32, TF32, BF16):
        if bench.late():
            return
        trainer, generator = trainer_of(bench, precision), torch.Generator(bench.device)
        if compiled:
            compile_blocks(trainer.model, compiled)

        def act(trainer: Trainer[INDM] = trainer, generator: torch.Generator = generator) -> None:
            generator.manual_seed(0)  # the same number of terms of the flow's series in every step
            trainer.step([(x, None)], generator)

        bench.flops_of_step = bench.flops_of_step or counted(act)
        with precision.held():
            label = f"training step{', compiled' if compiled else ''}"
            bench.rated(label, precision, act, len(x), bench.flops_of_step)


def trainer_of(bench: Bench, precision: Precision) -> Trainer[INDM]:
    """Of the model; autocast, where the precision asks for it, is of the forward pass alone."""
    model = bench.size.model().to(bench.device)
    return Trainer(model, {"score": AdamW(), "flow": AdamW()}, autocast=lambda: precision.forward(bench.device))


@torch.no_grad()
def sampling(bench: Bench) -> None:
    """Samples a second: the latent by 10 and 20 evaluations, then the flow's inverse."""
    size, model = bench.size, bench.size.model().to(bench.device).eval()
    u = torch.randn(size.batch, 3, size.side, size.side, 1, device=bench.device)
    for precision in (TF32, BF16):
        with precision.held(), precision.forward(bench.device):
            for nfe in (10, 20):
                act = partial(sample_deis, model.sde, model.score, u, power_times(model.sde, nfe, 2.0))
                seconds = bench.seconds(act, 3)
                bench.tell(
                    f"{nfe} evaluations, {precision.name}", len(u) / seconds, "images/s", f"{1e3 * seconds:.1f} ms"
                )
                if bench.device.type == "cuda":
                    replay, same = captured(act)
                    seconds = bench.seconds(replay, 3)
                    remark = f"{1e3 * seconds:.1f} ms; apart from the eager one by {same:.1e}"
                    bench.tell(f"{nfe} evaluations, {precision.name}, one graph", len(u) / seconds, "images/s", remark)
    seconds = bench.seconds(lambda: model.decode(u), 3)
    bench.tell("the flow's inverse", len(u) / seconds, "images/s", f"{1e3 * seconds:.1f} ms")


def captured(act: Callable[[], Tensor]) -> tuple[Callable[[], object], float]:
    """A sampling as one CUDA graph: what replays it, and how far its result is from the eager one's, relative."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # what is allocated and looked up once must be so before the capture
        for _ in range(2):
            expected = act()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = act()
    graph.replay()
    return graph.replay, float((found - expected).norm() / expected.norm())


def syncs(bench: Bench) -> None:
    """Waits of the host for the device, once all is warm."""
    size, generator = bench.size, torch.Generator(bench.device)
    trainer = trainer_of(bench, TF32)
    x = 2 * torch.rand(size.batch, 3, size.side, size.side, device=bench.device) - 1
    bench.tell("a training step", waits(bench, lambda: trainer.step([(x, None)], generator)), "waits")
    model = trainer.model.eval()
    u = torch.randn(size.batch, 3, size.side, size.side, 1, device=bench.device)
    for nfe in (10, 20):
        ts = power_times(model.sde, nfe, 2.0)
        found = waits(bench, partial(sample_deis, model.sde, model.score, u, ts))
        bench.tell(f"a sampling of {nfe} evaluations", found, "waits")


def waits(bench: Bench, act: Callable[[], object]) -> int:
    """How often an act waits, after one that does not count; on the CPU, which cannot tell, -1."""
    act()
    if bench.device.type != "cuda":
        act()
        return -1
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            act()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    for each in told:
        print(f"    {each.filename.rpartition('/')[2]}:{each.lineno} {str(each.message).partition('.')[0]}")
    return len(told)


def compiled(bench: Bench) -> None:
    """The U-Net's blocks compiled."""
    backend = "inductor" if bench.device.type == "cuda" else "eager"
    unet(bench, backend)
    step(bench, backend)


PARTS: list[Callable[[Bench], None]] = [roofline, unet, step, sampling, syncs, compiled]


def run(bench: Bench) -> int:
    """All parts for which there is time; the number of those that failed."""
    failed = 0
    for part in PARTS:
        bench.part = part.__name__
        while not bench.late():
            try:
                part(bench)
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
                bench.tell("out of memory", bench.size.batch, "images", "begun again with half of them")
                bench.size, bench.flops_of_step = replace(bench.size, batch=bench.size.batch // 2), 0.0
                continue
            except Exception as error:
                failed += 1
                traceback.print_exc()
                bench.tell("failed", 0, "", f"{type(error).__name__}: {error}"[:300])
            break
        bench.tell("took", time.monotonic() - bench.began, "s", "since the beginning")
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="gpu.jsonl", metavar="FILE")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rehearse", action="store_true", help="every part at a tiny size on the CPU")
    given = parser.parse_args()
    if not given.rehearse and not torch.cuda.is_available():
        print("error: there is no GPU here; --rehearse runs every part at a tiny size on the CPU", file=sys.stderr)
        return 2
    device = torch.device("cpu" if given.rehearse else "cuda")
    bench = Bench(device, TINY if given.rehearse else Size(batch=given.batch), Path(given.out), given.minutes)
    bench.part = "machine"
    bench.tell(bench.card, torch.cuda.device_count(), "GPUs", f"torch {torch.__version__}, CUDA {torch.version.cuda}")
    return 1 if run(bench) else 0


if __name__ == "__main__":
    sys.exit(main())
