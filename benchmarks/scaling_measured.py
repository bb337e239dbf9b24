"""What of scaling.py's constants this machine has, and its model of two processes against two processes.

    python benchmarks/scaling_measured.py

Printed: parameters, operations and floating-point operations of the recipes' score networks, counted on PyTorch's meta device;
floating-point operations a second of one thread; seconds and bytes a second of an all-reduce between two processes (gloo,
loopback); a step of two processes, measured and as the model has it; what a core decodes, by processor time; what one process
saves; what a task of Ray Data takes. Times are of this machine with whatever else it does.
"""

from __future__ import annotations

import io
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pyarrow
import torch
from PIL import Image
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.scaling import MACHINE, Machine, Plan, Workload, predict
from pipelines.config.networks import UNetConfig
from pipelines.data.card import Card
from pipelines.data.shards import ShardWriter, read_groups
from pipelines.data.spec import DataSpec
from pipelines.recipes import find
from pipelines.storage import checkpoint

NETWORKS = {"cifar10_linear_vp": 32, "celeba64_vp_nll": 64, "celebahq256_ve": 256}
SMALL, SIDE, BATCH = UNetConfig(nf=32, num_res_blocks=1, dropout=0.0), 32, 8
"""What two processes train here."""


class Operations(TorchDispatchMode):
    """Counts the operations that are started while it is entered; views take no kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.counted: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view:
            self.counted[str(func)] += 1
        return func(*args, **(kwargs or {}))


def counted(network: nn.Module, side: int) -> tuple[int, float, int]:
    """Parameters, floating-point operations of an image's forward pass, and operations of a forward and a backward pass, of a
    network on the meta device."""
    x, t = torch.zeros(1, 3, side, side, device="meta"), torch.ones(1, device="meta")
    with Operations() as operations, FlopCounterMode(display=False) as flops:
        out = network(x, t)
        forward = flops.get_total_flops()
        out.sum().backward()
    return sum(p.numel() for p in network.parameters()), float(forward), operations.counted.total()


def backbone(recipe: str, side: int) -> nn.Module:
    """A recipe's score network, without content."""
    spec = DataSpec(name="", shape=(3, side, side), levels=256, low=-1.0, high=1.0, num_classes=0)
    with torch.device("meta"):
        return find(recipe)().model.build(spec).networks()["score"].backbone  # pyright: ignore[reportReturnType]


def median(act: Callable[[], object], repeats: int = 7, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds."""
    act()
    taken = []
    for _ in range(repeats):
        began = clock()
        act()
        taken.append(clock() - began)
    return statistics.median(taken)


def stepping(network: nn.Module) -> Callable[[], object]:
    """A forward and a backward pass of `BATCH` images."""
    x, t = torch.randn(BATCH, 3, SIDE, SIDE), torch.rand(BATCH)

    def act() -> None:
        network.zero_grad()
        network(x, t).square().mean().backward()

    return act


def process(rank: int, place: str, size: int, line: Connection) -> None:
    """One of two: sums of a number and of all gradients, then steps; says how many seconds each takes."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    torch.distributed.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=2)
    small, all_of_them = torch.zeros(1), torch.zeros(size)
    line.send(median(lambda: torch.distributed.all_reduce(small), 50))
    line.send(median(lambda: torch.distributed.all_reduce(all_of_them), 7))
    network = SMALL.build((3, SIDE, SIDE), None)
    line.send(median(stepping(network)))
    line.send(median(stepping(nn.parallel.DistributedDataParallel(network))))
    torch.distributed.destroy_process_group()


def two_processes(size: int) -> list[float]:
    """The slower one's seconds: of a small sum, of one of `size` floats, of a step beside another, of a step with it."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as place:
        lines, began = [], []
        for rank in range(2):
            here, there = context.Pipe()
            began.append(context.Process(target=process, args=(rank, f"{place}/store", size, there)))
            began[-1].start()
            lines.append(here)
        said = [[line.recv() for _ in range(4)] for line in lines]
        for one in began:
            one.join()
    return [max(pair) for pair in zip(*said, strict=True)]


def decoded(place: Path) -> tuple[float, float]:
    """Bytes a second of row groups, and images a second of JPEGs of 256 x 256, decoded by one core."""
    draws = np.random.default_rng(0)
    smooth = (
        draws.normal(size=(4096, 3, 8, 8)).repeat(4, axis=2).repeat(4, axis=3) * 40
        + draws.normal(size=(4096, 3, 32, 32)) * 8
    )
    rows = (smooth + 128).clip(0, 255).astype(np.uint8)
    card = Card(name="smooth", source="benchmark", kind="image", shape=(3, 32, 32), levels=256, group_rows=170)
    with ShardWriter(place, card, "train", 4096) as writer:
        writer.add(rows, np.zeros(len(rows)))
        split = writer.close()
    card = Card(**vars(card) | {"splits": {"train": split}})
    groups = list(range(len(rows) // 170))
    pyarrow.set_cpu_count(1)
    seconds = median(lambda: read_groups(place, card, "train", groups), 5, time.process_time)
    big = Image.fromarray(rows[0].transpose(1, 2, 0)).resize((256, 256), Image.Resampling.BICUBIC)
    big.save(kept := io.BytesIO(), "JPEG", quality=90)
    return len(groups) * 170 * 3072 / seconds, 1 / median(
        lambda: np.asarray(Image.open(io.BytesIO(kept.getvalue()))), 20
    )


def task_seconds() -> float:
    """Of a task of Ray Data that does nothing, in the stream of one worker."""
    import ray

    from pipelines.cluster.session import connect

    print(f"Ray Data in {connect(1, 1.0)}", flush=True)
    ray.data.DataContext.get_current().enable_progress_bars = False

    def run() -> None:
        rows = ray.data.from_items([{"id": i} for i in range(64)], override_num_blocks=64)
        for _ in rows.map_batches(lambda batch: batch, batch_size=1, num_cpus=0.5).iter_batches(batch_size=None):
            pass

    return median(run, 3) / 64


def main() -> int:
    """Prints what it finds."""
    torch.set_num_threads(1)
    for recipe, side in NETWORKS.items():
        parameters, forward, operations = counted(backbone(recipe, side), side)
        print(
            f"{recipe}: {parameters:,} parameters, {4 * parameters / 1e6:.0f} MB of gradients, {forward / 1e9:.2f} GFLOP of a "
            f"forward pass, {operations:,} operations of a step"
        )
    with torch.device("meta"):
        parameters, forward, operations = counted(SMALL.build((3, SIDE, SIDE), None), SIDE)
    latency, large, alone, together = two_processes(parameters)
    speed, bandwidth, megabytes = 3 * forward * BATCH / alone, 4 * parameters / large, 4 * parameters / 1e6
    print(f"one thread beside another: {speed / 1e9:.1f} GFLOP/s ({1e3 * alone:.0f} ms of {BATCH} images)")
    print(
        f"all-reduce of two processes: {1e6 * latency:.0f} us of 4 bytes, {bandwidth / 1e6:.0f} MB/s of {megabytes:.0f} MB"
    )
    small = Workload(
        name="", parameters=parameters, forward=forward, operations=0, rows=1, row_bytes=1, stored=1.0, batch=BATCH
    )
    here = Machine(peak=speed, use=1.0, inside=bandwidth, near=latency / 2, hidden=0.0)
    step = predict(small, here, Plan(gpus=2, batch=2 * BATCH))
    model = step.compute + step.sum
    print(f"step of two: {1e3 * together:.0f} ms, by the model {1e3 * model:.0f} ms ({together / model:.2f} of it)")
    with tempfile.TemporaryDirectory() as place:
        bytes_of_rows, jpegs = decoded(Path(place))
        print(
            f"a core decodes {bytes_of_rows / 1e6:.0f} MB/s of row groups, or {jpegs:.0f} JPEGs of 256 x 256 a second"
        )
        state = {"x": torch.randn(64 << 20)}
        written = median(
            lambda: checkpoint.write(Path(place, "step-00000001"), state, {"step": 1, "skipped": 0, "averaged": 0}), 3
        )
        print(f"a process saves {4 * (64 << 20) / written / 1e6:.0f} MB/s ({MACHINE.save / 1e6:.0f} assumed)")
    print(f"a task of Ray Data: {task_seconds() * 1e3:.1f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
