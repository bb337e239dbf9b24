"""Train a recipe: `python pipelines/train.py [RECIPE] [--option value ...]`.

Without a recipe this is the main job: an INDM on scikit-learn's digits and the linear diffusion that it generalises, from the
same pre-training and for as many steps, both measured and drawn. The same command again goes on where a killed run stopped.
`--local` runs the same steps in this process, without Ray and MLflow.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

if __package__ in (None, ""):  # started as a script: find the packages beside this folder, not the modules inside it
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import json
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, is_dataclass, replace
from typing import Any

import torch

from indm_core.errors import ConvergenceError
from indm_core.training import NonFiniteLossError
from pipelines import checkpoint
from pipelines.cli import describe, nearest, options, override, split_arguments, with_values
from pipelines.config import RunConfig, read_run
from pipelines.loop import Job, Session, finished, run_job
from pipelines.models import BridgeConfig, DataSpec
from pipelines.outputs import RULE, only_one, output_root
from pipelines.prepare import embedded, ensure
from pipelines.progress import Ticker, show
from pipelines.recipes import BASELINES, DEFAULT, RECIPES
from pipelines.shards import Card, load_card
from pipelines.stream import local_rows

__all__ = ["Launch", "jobs_for", "main", "train_local", "train_on_ray"]

MAY_CHANGE = {"train.steps", "train.log_every", "train.checkpoint_every", "train.sample_every", "train.keep"}
REFUSAL_SECONDS = 10.0
FLAGS = ("help", "local", "evaluate", "traceback", "flip", "dense", "ema_ramp")
REFUSED = (ValueError, ConvergenceError, NonFiniteLossError)
"""What a worker does not try again."""
FAULTS = (*REFUSED, OSError)
"""What is told in one line."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """Where and how a run is carried out; nothing here changes its numbers but for the noise of the ranks.

    Args:
        name: Directory of the run under the output directory; the recipe's name where it is empty.
        out: Output directory; else $INDM_RUNS, else runs/ in the clone.
        local: Train in this process, without Ray and MLflow.
        workers: Ray Train workers; the batch is divided among them.
        min_workers: Fewer workers to go on with when machines leave, and to grow from; 0 keeps the number fixed.
        cpus_per_worker: Logical CPUs of a worker.
        threads: Threads of a worker; 0 shares the machine's cores among its workers.
        gpu: auto, true or false: whether workers get a GPU each.
        max_failures: Restarts from the last checkpoint after a worker is lost.
        baseline: A second recipe trained after the first from its pre-training, in the same workers, for comparison.
        start_from: A checkpoint directory (RUN/pretrained, RUN/checkpoints/step-...) whose networks start the run.
        evaluate: Measure the trained models briefly and print the table.
        network_interface: GLOO_SOCKET_IFNAME of the workers, where host names do not resolve.
        traceback: Show where an error came from.
    """

    name: str = ""
    out: str = ""
    local: bool = False
    workers: int = 1
    min_workers: int = 0
    cpus_per_worker: float = 1.0
    threads: int = 0
    gpu: str = "auto"
    max_failures: int = 3
    baseline: str = ""
    start_from: str = ""
    evaluate: bool = True
    network_interface: str = ""
    traceback: bool = False

    def __post_init__(self) -> None:
        if self.workers < 1 or not 0 <= self.min_workers <= self.workers:
            raise ValueError(
                f"workers={self.workers} must be at least 1, min_workers={self.min_workers} at most workers"
            )
        if self.cpus_per_worker <= 0 or self.threads < 0 or self.max_failures < 0:
            raise ValueError("cpus_per_worker must be positive, threads and max_failures not negative")
        if self.gpu not in ("auto", "true", "false"):
            raise ValueError(f"gpu={self.gpu!r} is none of auto, true, false")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    words, given = [], {}
    try:
        words, given = split_arguments(sys.argv[1:] if argv is None else argv, FLAGS)
        if given.pop("help", None) or "-h" in words:
            print(help_text(words))
            return 0
        return _run(words, given)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    except FAULTS as error:
        if given.get("traceback"):
            traceback.print_exc()
        print(f"error: {_one_line(error)}", file=sys.stderr)
        return 2


def _one_line(error: Exception) -> str:
    """What is said of an error; what the system refused can be mended, and the run goes on."""
    said = " ".join(str(error).split())
    return f"{said}; mend that and give the same command again" if isinstance(error, OSError) else said


def help_text(words: Sequence[str]) -> str:
    """What the command takes; the options are those of the named recipe."""
    name = next((word for word in words if word in RECIPES), DEFAULT)
    recipes = "\n".join(f"  {n:<24} {(r.__doc__ or '').split(chr(10))[0]}" for n, r in RECIPES.items())
    return (
        f"{__doc__}\nRecipes:\n{recipes}\n\nLaunch options:\n{describe(Launch())}\n\n"
        f"Options of {name} (any unambiguous ending of a name will do, --steps for --train.steps):\n"
        f"{describe(RECIPES[name]())}\n\n{RULE}."
    )


def _run(words: list[str], given: dict[str, str]) -> int:
    if len(words) > 1:
        raise ValueError(f"one recipe at a time, got {' '.join(words)}; options need --")
    recipe = words[0] if words else DEFAULT
    if recipe not in RECIPES:
        raise ValueError(f"unknown recipe {recipe!r}: {nearest(recipe, list(RECIPES))}")
    ours = {option.path for option in options(Launch())}
    launch = override(Launch(), {k: v for k, v in given.items() if k in ours})
    if not words and "baseline" not in given:
        launch = replace(launch, baseline=BASELINES[DEFAULT])
    run = override(RECIPES[recipe](), {k: v for k, v in given.items() if k not in ours}, sorted(ours))
    root = output_root(launch.out)
    jobs = jobs_for(run, launch, root)
    with ExitStack() as locks:
        for job in jobs:
            locks.enter_context(only_one(job.directory))
        if launch.local:
            train_local(jobs, launch)
            return 0
        try:
            from pipelines.conclude import conclude  # Ray and MLflow from here on
        except ModuleNotFoundError as error:
            raise ValueError(f"{error.name} is not installed; install it, or train in this process: --local") from error
        train_on_ray(jobs, launch, root)
        conclude(jobs, launch.evaluate, root)
    return 0


def jobs_for(run: RunConfig, launch: Launch, root: Path) -> list[Job]:
    """The run, and the baseline that follows it, on prepared data, checked before any work is spent.

    Raises:
        ValueError: data that cannot be had, a batch that the workers cannot share, or a directory of another run.
    """
    train = run.train
    for workers in range(launch.min_workers or launch.workers, launch.workers + 1):
        if train.batch_size % (workers * train.accumulate):
            raise ValueError(
                f"batch_size={train.batch_size} is not divisible by workers={workers} x accumulate={train.accumulate}; "
                "change one of them"
            )
    run.model.check_steps(train.steps)
    if not run.data.source:
        raise ValueError(f"{run.recipe} needs data: give --source PATH (any format that pipelines/prepare.py reads)")
    data = ensure(run.data.source, root / "data", run.data.options)
    run = replace(run, data=replace(run.data, source=_absolute(run.data.source), partner=_absolute(run.data.partner)))
    card = load_card(data)
    spec = DataSpec.of(card)
    rows = card.split("train").count
    if train.batch_size > rows:
        raise ValueError(f"batch_size={train.batch_size} is larger than the {rows} training rows of {card.name}")
    if launch.evaluate and not launch.local and "test" not in card.splits:
        raise ValueError(f"{card.name} has no test split to measure on; prepare one, or give --evaluate false")
    if len(card.shape) != 3 and run.data.flip:
        raise ValueError(f"flip=True: {card.name} has vectors of shape {card.shape}, only images can be flipped")
    partner = _partner(run, card, root)
    start = _start(launch.start_from, train.steps)
    directory = root / (launch.name or run.recipe)
    jobs = [Job(run=run, spec=spec, directory=directory, data=data, partner=partner, start_from=start)]
    shared = run.model.shared_steps
    if launch.baseline and shared >= train.steps:
        raise ValueError(
            f"pretrain_steps={shared} leaves no steps of steps={train.steps} to compare with the baseline; "
            "give more --steps, or fewer --pretrain-steps"
        )
    if launch.baseline:
        if launch.baseline not in RECIPES:
            raise ValueError(f"unknown baseline {launch.baseline!r}: {nearest(launch.baseline, list(RECIPES))}")
        other = _baseline(launch.baseline, run)
        after = directory / "pretrained" if shared else start
        beside = root / (f"{launch.name}-{other.recipe}" if launch.name else other.recipe)
        jobs.append(Job(run=other, spec=spec, directory=beside, data=data, start_from=after))
    for job in jobs:
        _refuse_another_run(job)
    return jobs


def _absolute(source: str) -> str:
    """A source as it is found from anywhere: evaluation may be started elsewhere."""
    return source if not source or embedded(source) else str(Path(source).expanduser().resolve())


def _partner(run: RunConfig, card: Card, root: Path) -> Path | None:
    """The prepared second data set of a bridge, which must look like the first."""
    wanted = isinstance(run.model, BridgeConfig)
    if wanted != bool(run.data.partner):
        need = "needs a second data set: give --partner PATH" if wanted else "takes one data set, leave --partner away"
        raise ValueError(f"{run.recipe}: its model {need}")
    if not wanted:
        return None
    partner = ensure(run.data.partner, root / "data", run.data.options)
    other = load_card(partner)
    for name in ("shape", "levels", "low", "high"):
        mine, theirs = getattr(card, name), getattr(other, name)
        if mine != theirs:
            raise ValueError(f"partner={run.data.partner}: its {name} is {theirs}, that of {card.name} is {mine}")
    rows = other.split("train").count
    if run.train.batch_size > rows:
        raise ValueError(f"batch_size={run.train.batch_size} is larger than the {rows} training rows of {other.name}")
    return partner


def _start(given: str, steps: int) -> Path | None:
    """The checkpoint that a run starts from."""
    if not given:
        return None
    start = Path(given).expanduser().resolve()
    try:
        step = int(json.loads((start / "state.json").read_text(encoding="utf-8"))["step"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(
            f"start_from={start}: no checkpoint there; give RUN/pretrained or RUN/checkpoints/step-..."
        ) from None
    if step >= steps:
        raise ValueError(f"start_from={start} is at step {step}, and its steps count: give --steps above {step}")
    return start


def _baseline(name: str, run: RunConfig) -> RunConfig:
    """A baseline with the run's data and training; what the two recipes have in common stays so after the overrides."""
    other = replace(RECIPES[name](), data=run.data, train=run.train)
    theirs, before = ({o.path: _form(o.value) for o in options(c)} for c in (other, RECIPES[run.recipe]()))
    common = {path for path in theirs.keys() & before.keys() if theirs[path] == before[path]}
    forms = {o.path: o.value for o in options(run) if is_dataclass(o.value) and _form(o.value) != before.get(o.path)}
    other = with_values(other, {path: value for path, value in forms.items() if path in common})
    values = {o.path: o.value for o in options(run) if not is_dataclass(o.value)}
    return with_values(other, {path: values[path] for path in common & values.keys() if path != "recipe"})


def _refuse_another_run(job: Job) -> None:
    """A directory that holds a run with other options is not overwritten."""
    file = job.directory / "config.json"
    if job.directory.exists() and not job.directory.is_dir():
        raise ValueError(f"{job.directory} is a file where the run's directory would be; give another --name")
    if not file.is_file():
        return
    there, spec = read_run(file)
    remedy = f"give another --name, or remove {job.directory}"
    if there.recipe != job.run.recipe:
        raise ValueError(f"{job.directory} holds a run of recipe {there.recipe}, not {job.run.recipe}; {remedy}")
    old, new = ({o.path: _form(o.value) for o in options(run)} for run in (there, job.run))
    newest = checkpoint.latest(job.directory)
    if newest and int(newest.name.removeprefix("step-")) > job.run.train.steps:
        raise ValueError(f"{newest} is beyond steps={job.run.train.steps}; give more --steps, or {remedy}")
    changed = [p for p in sorted(old.keys() | new.keys()) if p not in MAY_CHANGE and old.get(p) != new.get(p)]
    if changed:
        p = changed[0]
        raise ValueError(f"{job.directory} holds a run with {p}={old.get(p)}, not {new.get(p)}; {remedy}")
    if spec != job.spec:
        raise ValueError(f"{job.directory} was trained on other data ({spec.name} {spec.shape}); {remedy}")


def _form(value: Any) -> Any:
    """A configuration's class; its fields are options of their own."""
    return type(value).__name__ if is_dataclass(value) else value


def train_local(jobs: Sequence[Job], launch: Launch) -> None:
    """Trains in this process: the same loop with one rank."""
    if launch.workers > 1:
        raise ValueError(f"workers={launch.workers}: --local is one process; leave --local away for several")
    if launch.threads:
        torch.set_num_threads(launch.threads)
    use_gpu = torch.cuda.is_available() and launch.gpu != "false"
    if launch.gpu == "true" and not use_gpu:
        raise ValueError("gpu=true: torch sees no GPU on this machine")
    session = Session(
        rank=0,
        world=1,
        device=torch.device("cuda" if use_gpu else "cpu"),
        rows=local_rows,
        average=lambda vector: vector,
        agree=lambda value: value,
        wrap=lambda model: model,
        publish=lambda job, record: show(job, record),
        publish_picture=lambda job, file: None,
        checkpointed=lambda job, place, record: None,
    )
    for job in jobs:
        if finished(job):
            print(f"{job.directory.name}: complete, {job.run.train.steps} steps in {job.directory}")
        run_job(_drawable(job), session)


def _drawable(job: Job) -> Job:
    """The job, without sample pictures where what draws them is not installed."""
    if job.run.train.sample_every:
        try:
            import pipelines.pictures  # noqa: F401
        except ModuleNotFoundError as error:
            print(f"{job.directory.name}: no sample pictures, {error.name} is not installed")
            return replace(job, run=replace(job.run, train=replace(job.run.train, sample_every=0)))
    return job


def train_on_ray(jobs: Sequence[Job], launch: Launch, root: Path) -> None:
    """Trains the jobs one after the other in one group of Ray Train workers.

    Raises:
        ValueError: what a worker refused, or more workers than the cluster can give.
    """
    from pipelines import tracking
    from pipelines.cluster import check_resources, connect
    from pipelines.data import READ_CPUS

    if all(finished(job) for job in jobs):
        for job in jobs:
            print(f"{job.directory.name}: complete, {job.run.train.steps} steps in {job.directory}")
        return
    for job in jobs:
        job.directory.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(1) as aside:
        opened = aside.submit(lambda: [tracking.open_run(job, root) for job in jobs])
        print(f"starting {connect(launch.workers, launch.cpus_per_worker)} ...", flush=True)
        opened.result()
    import ray

    use_gpu = launch.gpu == "true" or (launch.gpu == "auto" and ray.cluster_resources().get("GPU", 0) >= launch.workers)
    check_resources(launch.min_workers or launch.workers, launch.cpus_per_worker, READ_CPUS, use_gpu)
    with Ticker(jobs):
        _fit(jobs, launch, root, use_gpu)


def _fit(jobs: Sequence[Job], launch: Launch, root: Path, use_gpu: bool) -> None:
    import ray
    from ray.train import FailureConfig, ScalingConfig
    from ray.train import RunConfig as RayRunConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    from pipelines import tracking
    from pipelines.cluster import Refusals

    refusals = ray.remote(num_cpus=0)(Refusals).remote()
    variables = tracking.environment(root)
    if launch.network_interface:
        variables["GLOO_SOCKET_IFNAME"] = launch.network_interface
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"jobs": list(jobs), "threads": launch.threads, "refusals": refusals},
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=(launch.min_workers, launch.workers) if launch.min_workers else launch.workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": launch.cpus_per_worker} | ({"GPU": 1} if use_gpu else {}),
        ),
        run_config=RayRunConfig(
            name=f"{jobs[0].directory.name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}",
            storage_path=str(root / "ray"),
            failure_config=FailureConfig(max_failures=launch.max_failures),
            worker_runtime_env={"env_vars": variables},
        ),
    )
    try:
        refused = trainer.fit().return_value or {}
    except TrainingFailedError as error:
        raise ValueError(f"training stopped: {_cause(error)}; the same command goes on") from error
    if refused and launch.traceback:
        print(refused["trace"], file=sys.stderr)
    if refused:
        raise ValueError(refused["reason"])


def _cause(error: BaseException) -> str:
    """The innermost line of a failed worker's error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Died)\w*: ", line)]
    return (named or lines or [type(error).__name__])[-1]


def train_worker(config: dict[str, Any]) -> dict[str, str]:
    """What every Ray Train worker runs; a refusal comes back as {reason, trace}, so that it is not tried again."""
    import ray.train
    import ray.train.torch
    from ray.train.collective import broadcast_from_rank_zero

    from pipelines import tracking
    from pipelines.data import ray_rows

    refusals, context = config["refusals"], ray.train.get_context()
    if refused := ray.get(refusals.all.remote()):  # by one of the workers before this one
        return refused[0]
    rank, world = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(config["threads"] or max(1, (os.cpu_count() or 1) // context.get_local_world_size()))
    device = ray.train.torch.get_device()
    with tracking.OpenLogs(os.environ["MLFLOW_TRACKING_URI"]) as logs:
        session = Session(
            rank=rank,
            world=world,
            device=device,
            rows=lambda job, first_row: ray_rows(job, first_row, rank, world),
            average=lambda vector: _average(vector, world),
            agree=broadcast_from_rank_zero,
            wrap=lambda model: _wrapped(model, device, world),
            publish=lambda job, record: logs.write(job, lambda log: log.record(record, record["step"])),
            publish_picture=lambda job, file: logs.write(job, lambda log: log.artifact(file, "samples")),
            checkpointed=lambda job, place, record: ray.train.report({"run": job.directory.name, **record}),
        )
        try:
            for job in config["jobs"]:
                run_job(job, session)
        except REFUSED as error:
            return _refused(refusals, world, error)
    return {}


def _refused(refusals: Any, world: int, error: Exception) -> dict[str, str]:
    """A refusal that all workers share; one of this worker alone, for which the others wait, ends their group instead.

    The group is started again, finds what was refused, and returns it.
    """
    import ray

    refusal = {"reason": _one_line(error), "trace": "".join(traceback.format_exception(error))}
    ray.get(refusals.add.remote(refusal))
    deadline = time.monotonic() + REFUSAL_SECONDS
    while time.monotonic() < deadline:
        if len(ray.get(refusals.all.remote())) >= world:
            return refusal
        time.sleep(0.2)
    raise error


def _wrapped(model: torch.nn.Module, device: torch.device, world: int) -> torch.nn.Module:
    if world == 1:
        return model
    return torch.nn.parallel.DistributedDataParallel(
        model,
        device_ids=[device] if device.type == "cuda" else None,
        broadcast_buffers=False,
        gradient_as_bucket_view=True,
    )


def _average(vector: torch.Tensor, world: int) -> torch.Tensor:
    if world > 1:
        torch.distributed.all_reduce(vector)
    return vector / world


if __name__ == "__main__":
    from pipelines.train import main as importable_main  # workers find this module by name

    sys.exit(importable_main())
