"""A training that diverges ends with status 1 and one line, keeps its last good checkpoint, and leaves no weights."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ray_session import TINY_2D, later_wins, one_line, train
from test_loop import session, tiny_job

from indm_core.training import AdamW, StepReport
from pipelines.config.run import Train
from pipelines.runs.job import read_metrics
from pipelines.runs.record import HeldOut, Unit
from pipelines.storage import checkpoint
from pipelines.training import loop
from pipelines.training.dataset import run_job
from pipelines.training.stream import local_rows
from pipelines.training.watch.divergence import ERRORS, WINDOW, DivergedError, Watch, left_behind, risen

UNIT = Unit("nats/dim", lambda name, nats: float(nats) / 2)
GOOD, ABOVE = 1.9, 9.0


def step(nelbo: float, error: float = 0.1) -> StepReport:
    """A step with a bound and its standard error; nan: a skipped one."""
    terms, variances = {"nelbo": torch.tensor(nelbo)}, {"nelbo": torch.tensor(error**2)}
    return StepReport(terms, {}, math.isnan(nelbo), variances)


def watched(first: float, *bounds: float, error: float = 0.1) -> Watch:
    watch = Watch((), False, session())
    for nelbo in (first, *bounds):
        watch.add(step(nelbo, error))
    return watch


def test_more_than_half_of_the_last_steps_were_skipped() -> None:
    skipped, half = [math.nan, 2.0], WINDOW // 2
    assert watched(2.0, *skipped * half).skipping() == ""
    said = watched(2.0, *skipped * half, math.nan, math.nan).skipping()
    assert said.startswith(f"{half + 1} of the last {WINDOW} steps were skipped")
    assert watched(2.0, *[math.nan] * (WINDOW - 2)).skipping() == ""  # there are too few
    assert watched(2.0, *[math.nan] * half, *[2.0] * half).skipping() == ""


@pytest.mark.parametrize(
    ("bounds", "diverged"),
    [
        ([ABOVE] * WINDOW, True),
        ([ABOVE, GOOD] * (WINDOW // 2), False),
        ([ABOVE, GOOD] * (WINDOW // 2 - 1) + [ABOVE, ABOVE], True),
        ([ABOVE, math.nan, GOOD] * (WINDOW // 3) + [ABOVE], True),
        ([2.0 + 0.99 * ERRORS * 0.1] * WINDOW, False),
        ([2.0 + 1.01 * ERRORS * 0.1] * WINDOW, True),
        ([ABOVE] * WINDOW + [GOOD] * WINDOW, False),
        ([GOOD] * WINDOW + [ABOVE] * WINDOW, True),
        ([ABOVE] * (WINDOW - 2), False),
        ([1e30] * WINDOW, True),
    ],
)
def test_a_bound_above_its_first_value(bounds: list[float], diverged: bool) -> None:
    said = watched(2.0, *bounds).rising(UNIT)
    assert bool(said) == diverged
    if diverged:
        one_line(said, f"of the last {WINDOW} steps", "above that of the first, 1.000 nats/dim")


def test_noise_is_no_divergence() -> None:
    """Steps that learn nothing, of heavy-tailed noise: 200 trainings."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        rows = torch.randn(WINDOW + 1, 16, generator=generator).exp()
        watch = Watch((), False, session())
        for row in rows:
            watch.add(step(float(row.mean()), float(row.std() / 4)))
        assert watch.rising(UNIT) == ""


def test_what_is_not_known_is_not_judged() -> None:
    """A run of an earlier version that goes on, one row a step, and a model without a bound."""
    watch = Watch((), True, session())
    for _ in range(WINDOW):
        watch.add(step(1e9))
    assert watch.rising(UNIT) == watch.skipping() == ""
    assert watched(2.0, *[1e9] * WINDOW, error=math.nan).rising(UNIT) == ""
    watch = Watch((), False, session())
    for _ in range(WINDOW):
        watch.add(StepReport({"kl": torch.tensor(1.0)}, {}, skipped=False))
    assert watch.rising(UNIT) == watch.skipping() == ""


def test_a_training_that_goes_on_knows_its_first_step() -> None:
    watch = Watch((2.0, 2.5), True, session())
    for _ in range(WINDOW):
        watch.add(step(3.0))
    assert "above that of the first, 1.000" in watch.rising(UNIT)


@pytest.mark.parametrize(
    ("last", "diverged"),
    [
        (HeldOut(nelbo=1.0, se=0.4), False),
        (HeldOut(nelbo=4.4, se=0.4), False),  # 5 sqrt(0.3^2 + 0.4^2) = 2.5 above 2
        (HeldOut(nelbo=4.6, se=0.4), True),
        (HeldOut(nelbo=4.4, se=0.3), True),
        (HeldOut(nelbo=math.inf, se=math.nan), True),
        (HeldOut(nelbo=math.nan, se=math.nan), True),
    ],
)
def test_held_out_rows_say_it_by_their_errors(last: HeldOut, diverged: bool) -> None:
    said = risen(HeldOut(nelbo=2.0, se=0.3), last, "nats/dim")
    assert bool(said) == diverged
    if diverged:
        nan = ("held-out rows is nan",)
        above = ("held-out rows", "above that of the first step, 2.000", "5 standard errors")
        one_line(said, *(nan if math.isnan(last.nelbo) else above))


def saved(run: Path, place: str, at: int, nelbo: float) -> None:
    numbers = {"step": at, "skipped": 0, "averaged": 1, "nelbo": nelbo}
    checkpoint.write(run / place, {"x": torch.zeros(1)}, numbers)


@pytest.mark.parametrize(
    ("first", "good"), [(2.0, "checkpoints/step-00000020"), (1.0, "pretrained"), (0.5, ""), (math.nan, "last")]
)
def test_what_a_diverged_training_leaves(tmp_path: Path, first: float, good: str) -> None:
    """The newest checkpoint that is not above the first step, and those before it."""
    saved(tmp_path, "pretrained", 10, 0.9)
    places = {
        f"checkpoints/step-{at:08d}": (at, nelbo) for at, nelbo in ((10, 1.5), (20, 1.9), (30, 7.0), (40, math.inf))
    }
    for place, (at, nelbo) in places.items():
        saved(tmp_path, place, at, nelbo)
    good = list(places)[-1] if good == "last" else good
    train = Train(optimisers={"score": AdamW(lr=100.0), "flow": AdamW(lr=0.5)}, frozen=("flow",))
    said = left_behind(tmp_path, train, 55, "why", first, "look at the data")
    kept = f"the last good checkpoint is {tmp_path / good}" if good else "no good checkpoint"
    one_line(said, "has diverged at step 55: why", "lower --score.lr (100) or the clip", "another --name", kept)
    assert "flow" not in said
    last = {"": 0, "pretrained": 10}.get(good) if good in ("", "pretrained") else places[good][0]
    assert last is not None
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == [
        f"step-{a:08d}" for a in (10, 20, 30, 40) if a <= last
    ]
    assert (tmp_path / "pretrained").is_dir() == bool(good)


LONG = (
    "toy2d_linear",
    "--backbone.width",
    "16",
    "--batch-size",
    "16",
    "--rows",
    "200",
    "--sample-every",
    "0",
    "--steps",
    "130",
)
LONG += ("--log-every", "10", "--checkpoint-every", "20")


def spoil(monkeypatch: pytest.MonkeyPatch, after: int, factor: float) -> None:
    """From a step on the trainer reports bounds that are so many times as large, as of weights that have left all bounds."""
    plain = loop.Trainer.step

    def wild(trainer: loop.Trainer, *arguments: object) -> StepReport:
        report = plain(trainer, *arguments)  # pyright: ignore[reportArgumentType]
        if trainer.step_count <= after:
            return report
        return replace(report, terms={name: factor * term.abs() for name, term in report.terms.items()})

    monkeypatch.setattr(loop.Trainer, "step", wild)


def test_a_training_that_diverges_ends_with_status_1_and_its_last_good_checkpoint(
    tmp_path, monkeypatch, capsys
) -> None:
    with monkeypatch.context() as patch:
        spoil(patch, 40, 100.0)
        train(*LONG, "--score.lr", "0.01", "--validate-every", "0", "--name", "wild", out=tmp_path, status=1)
    run = tmp_path / "wild"
    good = run / "checkpoints" / "step-00000040"
    one_line(capsys.readouterr().err, "error: wild has diverged at step 130", "--score.lr (0.01)", str(good))
    assert not (run / "model.safetensors").exists()
    assert checkpoint.latest(run) == good
    assert read_metrics(run)[-1].step == 130


def test_held_out_rows_judge_a_training_of_fewer_steps(tmp_path, monkeypatch, capsys) -> None:
    """In place of the steps, which say nothing wrong of it."""

    def rising(work: object, trainer: loop.Trainer) -> HeldOut:
        return HeldOut(nelbo=2.0 + trainer.step_count / 10, se=1.0)

    words = later_wins([*LONG, "--steps", "80", "--validate-every", "20"])
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_held_out", rising)
        train(*words, out=tmp_path, status=1)
    said = (
        "has diverged at step 80: the NELBO on held-out rows, 10.000 nats/dim, is above that of the first step, 2.000"
    )
    one_line(capsys.readouterr().err, said, "--score.lr")
    assert not (tmp_path / "toy2d_linear" / "model.safetensors").exists()
    train(*words, "--name", "sound", out=tmp_path)


def test_held_out_rows_acquit_a_training_of_bad_steps(tmp_path, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        spoil(patch, 40, 100.0)
        train(*LONG, out=tmp_path)
    assert (tmp_path / "toy2d_linear" / "model.safetensors").is_file()


def test_a_sound_training_is_as_before(tmp_path) -> None:
    train(*LONG, out=tmp_path)
    assert (tmp_path / "toy2d_linear" / "model.safetensors").is_file()
    _, numbers = checkpoint.read(tmp_path / "toy2d_linear" / "checkpoints" / "step-00000130")
    first, most = numbers["nelbo_at_first_step"]
    assert math.isfinite(first)
    assert most > first


def test_most_steps_skipped_ends_a_training_before_its_last_step(tmp_path) -> None:
    """Nine of ten steps have no finite gradient: ten in a row there never are."""
    job = tiny_job(tmp_path, "--steps", "130")

    def rows(job, first_row):
        for number, chunk in enumerate(local_rows(job, first_row)):
            yield chunk | {"x": chunk["x"] * (1.0 if number % 10 == 0 else math.nan)}

    with pytest.raises(DivergedError, match=r"diverged at step 100: 90 of the last 100 steps were skipped"):
        run_job(job, rows, session())
    assert not (job.directory / "model.safetensors").exists()


def test_a_short_training_at_a_wild_rate(tmp_path, capsys) -> None:
    words = later_wins(["toy2d_spiral", *TINY_2D, "--score.lr", "100", "--steps", "40"])
    train(*words, out=tmp_path, status=1)
    one_line(capsys.readouterr().err, "error: toy2d_spiral has diverged at step", "--score.lr (100)", "another --name")
    assert not (tmp_path / "toy2d_spiral" / "model.safetensors").exists()
