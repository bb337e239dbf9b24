"""Training a path integral sampler: what the loop is given of it, and what is found out before its first step.

A batch is a number of particles. Each rank draws its share by the noise of (seed, step, rank), so that a run that is gone on
with, by as many workers, draws what it would have drawn. The gradients that the ranks average are those of all particles
together, since they have as many each; of the loss log-variance because its mean is that of all ranks (`indm_core.pis`).

At every `validate_every` steps the averaged control draws `PATHS` paths, the same noise every time. With the log weights log w,

    nelbo = -mean log w, at least -log Z in the mean;    log_z = log mean w;    ess = (sum w)^2 / (n sum w^2).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import repeat
from pathlib import Path

import torch
from torch import Tensor

from indm_core.pis import PathIntegralSampler, Target, ess, log_z, log_z_bound, resampled
from pipelines.config.codec import from_json, to_json
from pipelines.config.history import Command
from pipelines.config.pis import PISRun, read_pis_run
from pipelines.config.provenance import difference
from pipelines.config.store import CONFIG
from pipelines.runs.job import PISJob
from pipelines.runs.mirror import bring_back
from pipelines.runs.record import HeldOut, Unit
from pipelines.storage.outputs import check_name
from pipelines.training.jobs import check_shares, start_of, state_of
from pipelines.training.launch import Workers
from pipelines.training.session import Batch, Session, Work
from pipelines.training.target_check import check_target

__all__ = ["job_for", "work_on_density"]

PATHS, SEED = 1000, 0
"""That the control is measured and drawn by."""
SUSPECT = "give --clip (of the target's gradient), or a smaller --variance, or look where log_prob is nan or infinite"


def job_for(run: PISRun, launch: Workers, root: Path, start_from: str = "") -> PISJob:
    """The run in its directory, checked before any work is spent.

    Args:
        start_from: The run or checkpoint whose control it starts from; '' for none.

    Raises:
        ValueError: a target that cannot be trained on, particles that the workers cannot share, or a directory of another run.
    """
    run = replace(run, target=run.target.settled())
    check_shares(run.train, launch)
    least = run.train.batch_size // (launch.workers * run.train.accumulate)
    if least < 2:
        raise ValueError(
            f"batch_size={run.train.batch_size}: a worker has {least} particle, and a variance is of two at least; give more"
        )
    name = launch.name or run.recipe
    check_name(name)
    directory = root / name
    bring_back(directory, launch.mirror)
    start = start_of(start_from, root, run.train.steps)
    job = PISJob(run=run, directory=directory, start_from=start, command=Command.of_this_process())
    _refuse_another_run(job)
    check_target(run)
    return job


def work_on_density(job: PISJob, session: Session) -> Work[PathIntegralSampler]:
    """What the loop is given of a job."""
    train = job.run.train
    target = job.run.target.build()
    share = train.batch_size // session.world // train.accumulate
    micro_batches: Sequence[tuple[int, None]] = [(share, None)] * train.accumulate

    def batches(step: int) -> Iterator[Batch]:
        return repeat(lambda generator: micro_batches)

    return Work(
        training=job.training,
        build=partial(job.run.build, target),
        batches=batches,
        unit=Unit("nats", lambda term, nats: float(nats)),
        write_config=job.write_config,
        draw=partial(_draw, target, session.device),
        validate=partial(_measured, target, session.device) if train.validate_every and session.rank == 0 else None,
        made_of={"sampler": to_json(job.run)},
        suspect=SUSPECT,
    )


def _paths(target: Target, device: torch.device, sampler: PathIntegralSampler) -> tuple[Tensor, Tensor]:
    """PATHS paths to the target: x and log w."""
    return sampler.sample(target, PATHS, generator=torch.Generator(device).manual_seed(SEED))


def _measured(target: Target, device: torch.device, sampler: PathIntegralSampler) -> HeldOut:
    _, log_w = _paths(target, device, sampler)
    bound, (value, se) = log_z_bound(log_w), log_z(log_w)
    return HeldOut(nelbo=-bound.value, se=bound.se, others={"log_z": value, "log_z_se": se, "ess": ess(log_w)})


def _draw(target: Target, device: torch.device, sampler: PathIntegralSampler, file: Path) -> None:
    from pipelines.runs.pictures import save_weighted  # what draws may not be installed

    x, log_w = _paths(target, device, sampler)
    generator = torch.Generator(device).manual_seed(SEED + 1)
    exact = target.sample(PATHS, generator).cpu() if target.exact else None
    save_weighted(x[resampled(log_w, len(x), generator)].cpu(), log_w.cpu(), exact, file)


def _refuse_another_run(job: PISJob) -> None:
    """A directory that holds another run is neither overwritten nor gone on with.

    Raises:
        ValueError: it does; what differs.
    """
    remedy = f"give another --name, or remove {job.directory}"
    state = state_of(job.directory, job.run.train.steps)
    if not (job.directory / CONFIG).is_file():
        return
    there = read_pis_run(job.directory / CONFIG)
    if changed := difference(there, job.run):
        raise ValueError(
            f"{job.directory} holds a run with {changed}; give the options that it was begun with, or {remedy}"
        )
    made = state.content.get("sampler") if state else None
    if state and made and (changed := difference(from_json(PISRun, made, str(state.file)), job.run)):
        raise ValueError(
            f"{job.directory / CONFIG} has changed: {state.file} is of a run with {changed}; put it back, or {remedy}"
        )
