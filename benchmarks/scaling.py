r"""What training would take on 1 to 512 GPUs, on paper: a table and a figure of a model of a step, and of what limits it first.

    python benchmarks/scaling.py [--out DIR]     the table of docs/SCALING.md; DIR/scaling.png
    python benchmarks/scaling_measured.py        what of it can be measured on this machine, and the model against two processes

Nothing here was measured on GPUs. With n GPUs, a global batch B, P parameters and F operations of a forward pass of an image,

    compute    3 F B/n / (R m)               R the peak, m the share of it that a network like this gets
    launches   max(0, N a - compute)         N operations of a step, each of which takes the processor a to start
    sum        max(0, ring(n) - o (compute + launches)), ring(n) = 2 (n-1)/n G/w + 2 (n-1) l, or within machines first;
                                             G = 4 P bytes (2 P in bfloat16), o the part of the time that hides it
    update     40 P / M                      AdamW and the average: ten passes over the weights at memory bandwidth M
    wait       (compute + launches) c sqrt(2 ln n)    the slowest of n, whose times have a relative deviation c
    overhead   seed, copies, Python beside the launches
    asking     2 ceil(log2 n) l / 0.25 s     whether to stop: a small sum every quarter of a second, as a share of the time
    reading    max(0, B / rate - the rest)   rate the smaller of what the readers decode and what the storage delivers of a set
                                             that no machine can keep; beyond 64 workers n/64 of them read each stream of rows
    saving     16 P / s every K steps        one rank writes weights, average and two moments while the others wait
    failing    n (restart + half of K steps) / MTBF, as a share of the time

in seconds. Efficiency is images a second over n times those of one GPU.

References:
    Thakur, Rabenseifner, Gropp 2005 (rings and trees); Llama Team 2024, "The Llama 3 herd of models", section 3.3.4 (419
    failures of 16,384 H100s in 54 days); NVIDIA, data sheet of the H100 SXM (peaks and bandwidths).
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipelines.runs.pictures import figure_of

__all__ = ["Machine", "Plan", "Step", "Workload", "efficiency", "predict", "rate", "reduction", "ring"]

STREAMS = 64
"""Of the rows of a run (pipelines/data/order.py)."""
ASK_SECONDS = 0.25
"""Between two questions whether to stop (pipelines/training/watch/halt.py)."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What is trained.

    Args:
        name: As the table calls it.
        parameters: P.
        forward: F, floating-point operations of one image's forward pass, a product and a sum counted as two.
        operations: N, of a forward and a backward pass.
        rows: Of the data set.
        row_bytes: Of an image as it is decoded.
        stored: Bytes of its row group, compressed, over those of the decoded one.
        batch: B of the recipe.
        save_every: K, steps between checkpoints.
    """

    name: str
    parameters: int
    forward: float
    operations: int
    rows: int
    row_bytes: int
    stored: float
    batch: int
    save_every: int = 5000


@dataclass(frozen=True, kw_only=True)
class Machine:
    """GPUs, what is between them and what feeds them; assumed, but for `decode`.

    Args:
        peak: R, FLOP/s.
        use: m.
        launch: a, seconds.
        memory: M, bytes/s.
        per_node: GPUs of a machine.
        inside: w within a machine, bytes/s and direction.
        between: w between two machines, all of their network cards together.
        near, far: l, within a machine and between two.
        hidden: o.
        jitter: c.
        overhead: Seconds of a step.
        decode: Decoded bytes/s of a core that reads row groups.
        cores: That read, for each GPU.
        storage: Bytes/s that the shared storage delivers to all.
        cache: Bytes of files that a machine keeps in memory; a set that fits is asked of the storage once.
        save: s, bytes/s of one process that writes, SHA-256 included.
        restart: Seconds from a failure to the next step.
        mtbf: Seconds between two failures of a GPU or of what is around it.
    """

    peak: float = 989e12
    use: float = 0.3
    launch: float = 6e-6
    memory: float = 3.35e12
    per_node: int = 8
    inside: float = 300e9
    between: float = 50e9
    near: float = 5e-6
    far: float = 15e-6
    hidden: float = 0.7
    jitter: float = 0.02
    overhead: float = 1e-3
    decode: float = 0.4e9
    cores: float = 4.0
    storage: float = 5e9
    cache: float = 200e9
    save: float = 0.3e9
    restart: float = 120.0
    mtbf: float = 50_000 * 3600.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How it is trained.

    Args:
        gpus: n.
        batch: B, over all GPUs.
        gradient: Bytes that a parameter's gradient has on the wire.
        hierarchical: Whether gradients are summed within machines first.
        sharded: Whether each GPU updates an n-th of the weights and saves it.
        streams: Of the rows.
        copied: Whether each machine has a copy of the data on a disk of its own.
    """

    gpus: int
    batch: int
    gradient: int = 4
    hierarchical: bool = False
    sharded: bool = False
    streams: int = STREAMS
    copied: bool = False


@dataclass(frozen=True, kw_only=True)
class Step:
    """Seconds of a step, by what they go to."""

    compute: float
    launches: float
    sum: float
    update: float
    wait: float
    overhead: float
    asking: float
    reading: float
    saving: float
    failing: float

    @property
    def seconds(self) -> float:
        return math.fsum(asdict(self).values())

    @property
    def limit(self) -> str:
        """What takes most beside the computation."""
        parts = asdict(self)
        del parts["compute"]
        return max(parts, key=parts.__getitem__)


def ring(num: int, size: float, bandwidth: float, latency: float) -> float:
    """Seconds of an all-reduce of `size` bytes by a ring of `num`: a reduce-scatter and an all-gather."""
    return 2 * (num - 1) / num * size / bandwidth + 2 * (num - 1) * latency


def reduction(machine: Machine, plan: Plan, size: float) -> float:
    """Seconds of summing `size` bytes over all GPUs, if nothing hides them."""
    inside, nodes = min(plan.gpus, machine.per_node), math.ceil(plan.gpus / machine.per_node)
    if nodes == 1:
        return ring(plan.gpus, size, machine.inside, machine.near)
    if not plan.hierarchical:
        return ring(plan.gpus, size, min(machine.inside, machine.between), machine.far)
    return ring(inside, size, machine.inside, machine.near) + ring(nodes, size, machine.between, machine.far)


def reading(workload: Workload, machine: Machine, plan: Plan) -> float:
    """Seconds until the rows of a step are decoded."""
    again = max(1.0, plan.gpus / plan.streams)  # beyond one worker a stream, several read the same row groups
    decoded = workload.row_bytes * plan.batch * again
    own = plan.copied or workload.rows * workload.row_bytes * workload.stored <= machine.cache
    fetched = 0.0 if own else decoded * workload.stored / machine.storage
    return max(decoded / (machine.decode * machine.cores * plan.gpus), fetched)


def predict(workload: Workload, machine: Machine, plan: Plan) -> Step:
    """A step.

    Raises:
        ValueError: the GPUs cannot share the batch.
    """
    if plan.gpus < 1 or plan.batch % plan.gpus:
        raise ValueError(f"batch={plan.batch}: not a multiple of gpus={plan.gpus}")
    n, images = plan.gpus, plan.batch / plan.gpus
    compute = 3 * workload.forward * images / (machine.peak * machine.use)
    busy = max(compute, workload.operations * machine.launch)
    exchanged = reduction(machine, plan, plan.gradient * workload.parameters)
    shards, state = n if plan.sharded else 1, 16 * workload.parameters
    one = Step(
        compute=compute,
        launches=busy - compute,
        sum=max(0.0, exchanged - machine.hidden * busy),
        update=40 * workload.parameters / machine.memory / shards,
        wait=busy * machine.jitter * math.sqrt(2 * math.log(n)),
        overhead=machine.overhead,
        asking=0.0,
        reading=0.0,
        saving=max(state / machine.save / shards, state / machine.storage) / workload.save_every,
        failing=0.0,
    )
    one = replace(one, reading=max(0.0, reading(workload, machine, plan) - one.seconds))
    asking = 2 * math.ceil(math.log2(n)) * (machine.far if n > machine.per_node else machine.near) / ASK_SECONDS
    lost = n * (machine.restart + workload.save_every / 2 * one.seconds) / machine.mtbf
    return replace(one, asking=asking * one.seconds, failing=lost * one.seconds)


def rate(workload: Workload, machine: Machine, plan: Plan) -> float:
    """Images a second."""
    return plan.batch / predict(workload, machine, plan).seconds


def efficiency(workload: Workload, machine: Machine, plan: Plan) -> float:
    """Images a second over n times those of one GPU that has the recipe's batch alone."""
    alone = rate(workload, machine, Plan(gpus=1, batch=workload.batch))
    return rate(workload, machine, plan) / (plan.gpus * alone)


MACHINE = Machine()
WORKLOADS = (
    Workload(
        name="CIFAR-10, DDPM++",
        parameters=61_804_419,
        forward=21.69e9,
        operations=2251,
        rows=50_000,
        row_bytes=3 * 32 * 32,
        stored=0.99,
        batch=128,
    ),
    Workload(
        name="CelebA-64, DDPM++",
        parameters=61_804_419,
        forward=83.72e9,
        operations=2251,
        rows=162_770,
        row_bytes=3 * 64 * 64,
        stored=0.95,
        batch=128,
    ),
    Workload(
        name="ImageNet-256, NCSN++",
        parameters=67_745_027,
        forward=534.2e9,
        operations=2230,
        rows=1_281_167,
        row_bytes=3 * 256 * 256,
        stored=0.95,
        batch=8,
    ),
)
"""The score networks of cifar10_linear_vp, celeba64_vp_nll and celebahq256_ve with their recipes' batches, counted by
scaling_measured.py. ImageNet has no recipe here; the network of CelebA-HQ at that size stands for one."""
GPUS = (1, 8, 64, 512)


def plans(workload: Workload) -> list[tuple[str, Plan]]:
    """What the table shows: the recipe's batch on more GPUs, as far as it goes; a batch that grows with them; and the latter
    with what the page proposes."""
    fixed = [("same batch", Plan(gpus=n, batch=workload.batch)) for n in GPUS if workload.batch % n == 0]
    grown = [Plan(gpus=n, batch=workload.batch * n) for n in GPUS[1:]]
    return fixed + [("batch x n", plan) for plan in grown] + [("mended", mended(plan)) for plan in grown[1:]]


def mended(plan: Plan) -> Plan:
    """The same with what docs/SCALING.md proposes."""
    return replace(plan, gradient=2, hierarchical=True, sharded=True, streams=1024, copied=True)


def table() -> str:
    """The table of docs/SCALING.md."""
    head = "| GPUs | batch | | step ms | compute | launches | sum | wait | reading | others | images/s | efficiency | most |"
    lines = []
    for workload in WORKLOADS:
        lines += [f"\n{workload.name}", "", head, f"|{'---|' * 13}"]
        for what, plan in plans(workload):
            step = predict(workload, MACHINE, plan)
            others = step.update + step.overhead + step.asking + step.saving + step.failing
            parts = (step.seconds, step.compute, step.launches, step.sum, step.wait, step.reading, others)
            shown = " | ".join(f"{1e3 * part:.1f}" for part in parts)
            images, share = rate(workload, MACHINE, plan), efficiency(workload, MACHINE, plan)
            lines.append(
                f"| {plan.gpus} | {plan.batch:,} | {what} | {shown} | {images:,.0f} | {share:.2f} | {step.limit} |"
            )
    return "\n".join(lines)


def draw(file: Path) -> None:
    """Efficiency against the number of GPUs."""
    figure = figure_of(11.0, 3.4)
    axes = figure.subplots(1, len(WORKLOADS), sharey=True)
    for axis, workload in zip(axes, WORKLOADS, strict=True):
        counts = [1 << k for k in range(10)]
        fixed = [n for n in counts if workload.batch % n == 0]
        lines = {
            "the recipe's batch": [Plan(gpus=n, batch=workload.batch) for n in fixed],
            "batch x n": [Plan(gpus=n, batch=workload.batch * n) for n in counts],
            "the same, mended": [mended(Plan(gpus=n, batch=workload.batch * n)) for n in counts],
        }
        for (label, several), style in zip(lines.items(), ("--", "-", ":"), strict=True):
            shares = [efficiency(workload, MACHINE, plan) for plan in several]
            axis.plot([plan.gpus for plan in several], shares, style, marker=".", label=label)
        axis.set(title=workload.name, xlabel="GPUs", ylim=(0, 1.05))
        axis.set_xscale("log", base=2)
    axes[0].set_ylabel("efficiency (a model)")
    axes[-1].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(file, dpi=110)


def main() -> int:
    """Prints the table and draws the figure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs"))
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    print(table())
    draw(out / "scaling.png")
    print(f"\n{out / 'scaling.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
