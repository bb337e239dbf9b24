"""Four models of equal size on the plane, trained for the same time: samples and NLL (Figure 3.5 of the DiffFlow thesis).

    python benchmarks/toy2d_models.py [--seconds 240] [--sets rings,checkerboard] [--out runs]

Each model has about 90,000 parameters and trains, on one thread, for as many steps as fit into the seconds. Steps are timed
beforehand, in short trainings on the first set and in processor time, which other work on the machine does not lengthen.
DiffFlow takes N = 5, 10, 20, 30 for 10, 20, 30 and 40 % of the time, INDM pre-trains for half of it; the learning rate of each
is the better of 1e-3 and 3e-3 in short trainings on rings. NLL: nats/dim of 2,000 test points by the ODE with exact
divergence, with its standard error over points. Runs are kept in OUT/NAME-MODEL, and go on where they were killed (their
seconds are then those since). Written: OUT/toy2d_models.png and .json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from functools import cache
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch import Tensor

from indm_core.likelihood import nll
from indm_core.model import Objective
from indm_core.sampling import Sampling
from indm_core.training import AdamW
from pipelines.config import load
from pipelines.config.flows import GlowConfig, IdentityConfig, ResFlowConfig
from pipelines.config.models import DiffFlowConfig, DiNofConfig, INDMConfig, ModelConfig
from pipelines.config.networks import MLPConfig
from pipelines.config.run import Data, RunConfig, Train
from pipelines.config.store import read_run
from pipelines.data.card import load_card
from pipelines.data.shards import read_all
from pipelines.evaluation.sampling import draw_by
from pipelines.runs.pictures import figure_of
from pipelines.storage.signals import Stop
from pipelines.training.jobs import jobs_for
from pipelines.training.launch import Launch
from pipelines.training.local import train_local

SETS = ("rings", "olympic_rings", "fractal_tree", "sierpinski", "checkerboard")
BACKBONE = MLPConfig(width=64, depth=3)
HALF = MLPConfig(width=66, depth=2, time="scaled")
MODELS: dict[str, ModelConfig] = {
    "DiffFlow": DiffFlowConfig(drift=HALF, score=HALF, g=0.2, t_max=0.05),
    "linear": INDMConfig(flow=IdentityConfig(), backbone=MLPConfig(width=80, depth=3)),
    "INDM": INDMConfig(flow=ResFlowConfig(blocks=(7,), width=64, constraint="spectral"), backbone=BACKBONE),
    "DiNof": DiNofConfig(
        prior=GlowConfig(levels=1, depth=8, hidden=60), backbone=BACKBONE, t_m=0.6, objective=Objective(mode="nll")
    ),
}
STAGES, SHARES = (5, 10, 20, 30), (0.1, 0.2, 0.3, 0.4)
PRETRAINING = 0.5
RATES = {"DiffFlow": 3e-3, "linear": 1e-3, "INDM": 1e-3, "DiNof": 3e-3}


@cache
def seconds_per_step(name: str, model: ModelConfig, source: str, batch: int) -> float:
    """Of a training step, all that the loop does beside it included."""

    def spent(steps: int) -> float:
        run, launch = configured(name, source, model, steps, batch), Launch(name="timing", local=True, evaluate=False)
        with TemporaryDirectory() as directory:
            jobs, began = jobs_for(run, launch, Path(directory)), time.process_time()
            train_local(jobs, Launch(), Stop(""))
            return time.process_time() - began

    first = spent(60)
    more = min(2000, max(40, round(600 / first)))  # about ten seconds
    return (spent(60 + more) - first) / more


def fitted(name: str, source: str, seconds: float, batch: int) -> tuple[ModelConfig, int]:
    """The model with its schedule, and the steps that the time allows."""
    model = MODELS[name]

    def within(part: ModelConfig, share: float) -> int:
        return int(share * seconds / seconds_per_step(name, part, source, batch))

    if isinstance(model, DiffFlowConfig):
        steps = [within(replace(model, num_steps=(num,)), share) for num, share in zip(STAGES, SHARES, strict=True)]
        return replace(model, num_steps=STAGES, change_at=tuple(accumulate(steps[:-1]))), sum(steps)
    if isinstance(model, INDMConfig) and not isinstance(model.flow, IdentityConfig):
        pretrained = within(replace(model, objective=Objective(pretrain_steps=1_000_000)), PRETRAINING)
        model = replace(model, objective=Objective(pretrain_steps=pretrained))
        return model, pretrained + within(MODELS[name], 1 - PRETRAINING)
    return model, within(model, 1.0)


def configured(name: str, source: str, model: ModelConfig, steps: int, batch: int) -> RunConfig:
    train = Train(
        steps=steps,
        batch_size=batch,
        optimisers={network: AdamW(lr=RATES[name]) for network in ("score", "flow", "prior", "drift")},
        ema_decay=0.995,
        log_every=max(1, steps // 10),
        checkpoint_every=max(1, steps // 4),
        sample_every=0,
    )
    return RunConfig(recipe=f"plane_{name}", data=Data(source=source), model=model, train=train)


def trained(data: str, name: str, root: Path, seconds: float, batch: int, timed_on: str) -> Path:
    """The directory of a model's run, trained unless it is."""
    directory = root / f"{data}-{name}"
    if not (directory / "seconds.json").is_file():
        if (directory / "config.json").is_file():  # a killed run is gone on with, not timed again
            run, _ = read_run(directory / "config.json")
        else:
            run = configured(name, f"toy2d:{data}", *fitted(name, f"toy2d:{timed_on}", seconds, batch), batch)
        began = time.monotonic(), time.process_time()
        train_local(jobs_for(run, Launch(name=directory.name, local=True, evaluate=False), root), Launch(), Stop(""))
        spent = {
            "wall": time.monotonic() - began[0],
            "processor": time.process_time() - began[1],
            "steps": run.train.steps,
        }
        (directory / "seconds.json").write_text(json.dumps(spent) + "\n")
    return directory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=240.0, help="of training, per model and set")
    parser.add_argument("--batch", type=int, default=500)
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--out", default="runs")
    given = parser.parse_args()
    torch.set_num_threads(1)
    root, sets = Path(given.out).resolve(), given.sets.split(",")
    root.mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[str, dict[str, float]]] = {}
    drawn: dict[str, list[Tensor]] = {}
    for data in sets:
        for name in MODELS:
            directory = trained(data, name, root, given.seconds, given.batch, sets[0])
            model = load(directory)
            card = load_card(root / "data" / f"toy2d-{data}")
            test = torch.from_numpy(read_all(root / "data" / f"toy2d-{data}", card, "test", 2000)["x"])
            nats = nll(model, test, exact_divergence=True, generator=torch.Generator().manual_seed(0)) / 2
            sampling = Sampling(sampler="em", steps=30, grid="trained") if name == "DiffFlow" else Sampling()
            drawn[data] = [*drawn.get(data, [test]), draw_by(model, range(5000), sampling).x]
            found.setdefault(data, {})[name] = {
                "parameters": sum(p.numel() for p in model.parameters()),
                "nll": float(nats.mean()),
                "se": float(nats.std() / len(nats) ** 0.5),
                **json.loads((directory / "seconds.json").read_text(encoding="utf-8")),
            }
            print(data, name, json.dumps(found[data][name]), flush=True)
    (root / "toy2d_models.json").write_text(json.dumps(found, indent=1) + "\n")
    _draw(found, drawn, root / "toy2d_models.png")


def _draw(found: dict[str, dict[str, dict[str, float]]], drawn: dict[str, list[Tensor]], file: Path) -> None:
    figure = figure_of(2.4 * (1 + len(MODELS)), 2.5 * len(found))
    grid = figure.subplots(len(found), 1 + len(MODELS), squeeze=False)
    for row, (data, clouds) in zip(grid, drawn.items(), strict=True):
        limit = 1.1 * float(clouds[0].abs().max())
        for axes, name, points in zip(row, ("data", *MODELS), clouds, strict=True):
            axes.scatter(points[:, 0], points[:, 1], s=0.5, linewidths=0)
            axes.set_xlim(-limit, limit)
            axes.set_ylim(-limit, limit)
            axes.set_xticks([])
            axes.set_yticks([])
            figures = found[data].get(name)
            axes.set_title(f"{name}  {figures['nll']:.3f} nats/dim" if figures else data, fontsize=9)
    figure.savefig(file, dpi=130, bbox_inches="tight")


if __name__ == "__main__":
    main()
