"""What a sampler takes beside the network: milliseconds of one thread an evaluation, with a network that takes none.

    python benchmarks/samplers_overhead.py

Ours and the schedulers of diffusers, where installed, in turn: medians of processor time over repetitions of 20 evaluations of
8 states of 64 coordinates, float32. A scheduler's preparation (`set_timesteps`) is not counted, as ours is kept for a grid.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from benchmarks.samplers import OURS
from indm_core.exponential import sample_deis
from indm_core.sde import BDM, CLD, VP, LinearSDE
from indm_core.times import power_times

EVALUATIONS = 20
STATES = {"VP": (8, 64, 1), "CLD": (8, 64, 2), "BDM": (8, 1, 8, 8, 1)}
ROWS = (
    ("VP", "DDIM"),
    ("VP", "eps, t, 3 (the default)"),
    ("VP", "data, t, 3, PEC"),
    *((name, "data, t, 1, PEC") for name in STATES),
)
SIGMA_MIN = {"final_sigmas_type": "sigma_min"}
PEERS = {
    "DDIM": ("DDIMScheduler", {}),
    "DEIS 3": ("DEISMultistepScheduler", {"solver_order": 3}),
    "DPM-Solver++ 2M": ("DPMSolverMultistepScheduler", {"solver_order": 2, **SIGMA_MIN}),
    "UniPC 2": ("UniPCMultistepScheduler", {"solver_order": 2, **SIGMA_MIN}),
}


def ours(sde: LinearSDE, u: Tensor, label: str) -> Callable[[], Tensor]:
    ts = power_times(sde, EVALUATIONS, 2.0)
    return lambda: sample_deis(sde, lambda u, t, y=None: -u, u, ts, **OURS[label])


def peer(u: Tensor, kind: str, options: dict) -> Callable[[], Tensor]:
    import diffusers

    def prepared():
        scheduler = getattr(diffusers, kind)(num_train_timesteps=1000, **options)
        scheduler.set_timesteps(EVALUATIONS)
        return scheduler

    ready = [prepared() for _ in range(64)]  # one keeps the values of its run

    def run() -> Tensor:
        scheduler, x = ready.pop(), u
        for t in scheduler.timesteps:
            x = scheduler.step(-x, t, x).prev_sample
        return x

    return run


def main(repetitions: int) -> None:
    sdes = {"VP": VP(), "CLD": CLD(), "BDM": BDM(height=8, width=8)}
    states = {name: torch.randn(shape, generator=torch.Generator().manual_seed(0)) for name, shape in STATES.items()}
    runs = {f"{name}, {label}": ours(sdes[name], states[name], label) for name, label in ROWS}
    if find_spec("diffusers"):
        runs |= {f"diffusers, {label}": peer(states["VP"].squeeze(-1), *given) for label, given in PEERS.items()}
    taken: dict[str, list[float]] = {label: [] for label in runs}
    for run in runs.values():
        run()
    for _ in range(repetitions):
        for label, run in runs.items():
            began = time.process_time()
            run()
            taken[label].append(1e3 * (time.process_time() - began) / EVALUATIONS)
    print("| sampler | ms an evaluation |\n|---|---|")
    for label, found in taken.items():
        print(f"| {label} | {statistics.median(found):.3f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=25)
    torch.set_num_threads(1)
    main(min(60, parser.parse_args().repetitions))
