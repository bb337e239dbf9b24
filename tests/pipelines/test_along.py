"""Checkpoints measured beside their training: the figures, when they are taken, which checkpoints stay, what is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ray_session import TINY_2D, main_of, one_line, train

from pipelines.config.codec import from_json, to_json
from pipelines.config.provenance import difference
from pipelines.config.run import Train
from pipelines.config.weights import Weights
from pipelines.evaluation.evaluator import Evaluator
from pipelines.evaluation.measurements.distances import Distances
from pipelines.evaluation.measurements.likelihood import Likelihood, Nelbo
from pipelines.evaluation.plan import Plan
from pipelines.evaluation.sampling.rows import parse_row
from pipelines.evaluation.settings import BRIEF_SETTINGS
from pipelines.recipes import RECIPES
from pipelines.runs import pictures
from pipelines.runs.job import Training
from pipelines.runs.overview import checkpoint_lines, checkpoints_of
from pipelines.runs.record import HeldOut, Record
from pipelines.storage import checkpoint
from pipelines.storage.along import Figure, Measured, add_measured, read_measured
from pipelines.training.along import TOLERANCE, due, measure_due
from pipelines.training.launch import Along
from pipelines.training.watch.progress import measured_line

ALONG = Along(images=8, samples=20, sampler="em:4")
WORDS = (
    *TINY_2D,
    *("--measure-every", "2", "--keep", "1", "--keep-by", "fd"),
    *("--along.images", "8", "--along.samples", "20", "--along.sampler", "em:4"),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run of six steps, of which the checkpoints of steps 2, 4 and 6 were measured in its process."""
    out = tmp_path_factory.mktemp("along")
    train("toy2d_spiral", *WORDS, out=out)
    return out / "toy2d_spiral"


def write(run: Path, step: int, fd: float | None = None, **numbers: float) -> Path:
    """A checkpoint of a step, and what was measured of it."""
    place = run / "checkpoints" / f"step-{step:08d}"
    said = {"step": step, "skipped": 0, "averaged": 1, "nelbo": float(step)}
    checkpoint.write(place, {"a": torch.full((1,), float(step))}, said | numbers)
    if fd is not None:
        add_measured(run, measured(step, checkpoint.digest_of(place), fd))
    return place


def measured(step: int, digest: str, fd: float) -> Measured:
    return Measured(step=step, checkpoint=digest, figures={"fd": Figure(value=fd, se=0.5)}, samples=20)


def steps(run: Path) -> list[int]:
    return [checkpoint.step_of(place) for place in checkpoint.checkpoints(run)]


def test_figures_are_those_of_the_measurements(run):
    """As the actors of an evaluation take them of the same checkpoint."""
    sampling = parse_row(ALONG.sampler).sampling
    settings = replace(BRIEF_SETTINGS, images=8, samples=20, sampling=sampling, rtol=TOLERANCE, atol=TOLERANCE)
    records = {record.step: record for record in read_measured(run)}
    assert list(records) == [2, 4, 6]
    for step in (4, 6):
        if step not in checkpoint.kept(run):
            continue
        plan = Plan.of([Weights(run=run, step=step)], settings, run.parent)
        bench = Evaluator([], plan.extractor.make, 1, "cpu")
        bench.models = {0: (plan.subjects[0].build(), plan.subjects[0].spec)}
        found = []
        for measurement in (Likelihood(plan, 0), Nelbo(plan, 0), Distances(plan, 0)):
            tasks = list(measurement.tasks())
            needs = [[plan.rows(span).numpy() for span in task.needs()] for task in tasks]
            found.append(measurement.reduce({t: bench.run(t, *rows) for t, rows in zip(tasks, needs, strict=True)}))
        nll, nelbo, distances = found
        frechet = distances.distances.frechet
        mine = records[step].figures
        assert mine["nll"] == Figure(value=nll.after.mean, se=nll.after.error)
        assert mine["nelbo"] == Figure(value=nelbo.after.mean, se=nelbo.after.error)
        assert mine["fd"] == Figure(value=frechet.value, se=frechet.se)
        assert (records[step].unit, records[step].images, records[step].samples) == ("nats/dim", 8, 20)


def test_what_is_measured_is_measured_once_and_what_is_missing_by_the_same_command(run, capsys):
    before = (run / "along.jsonl").read_bytes()
    training = Training(recipe="r", directory=run, train=Train(steps=6, checkpoint_every=2, measure_every=2, keep=1))
    assert due(training) == []
    lines = before.decode().splitlines(keepends=True)
    (run / "along.jsonl").write_text("".join(lines[:-1]))  # as a kill in the last measurement leaves it
    train("toy2d_spiral", *WORDS, out=run.parent)
    said = [line for line in capsys.readouterr().out.splitlines() if "  measured  " in line]
    assert len(said) == 1
    one_line(said[0], "6/6", "nll ", "nats/dim", "fd ", "(n = 20)")
    again = [replace(record, seconds=0) for record in read_measured(run)]
    (run / "along.jsonl").write_bytes(before)
    assert again == [replace(record, seconds=0) for record in read_measured(run)]


def test_the_best_is_the_lowest_in_what_is_kept_by(run):
    figures = {record.step: record.figures["fd"].value for record in read_measured(run)}
    best = min(figures, key=lambda step: (figures[step], -step))
    assert Weights.named(f"{run}@best").step == best
    assert best in steps(run)
    table = checkpoint_lines(checkpoints_of(run))
    assert "fd" in table[0].split()
    (line,) = [line for line in table if "best" in line]
    assert f"@{best} " in line
    assert f"{figures[best]:.3f} +- " in line


def test_neither_the_best_nor_what_has_yet_to_be_measured_is_removed(tmp_path):
    def prune() -> list[int]:
        checkpoint.prune(tmp_path, 1, "fd", lambda step: step % 20 == 0)
        return steps(tmp_path)

    for step, fd in ((10, None), (20, 7.0), (30, None), (40, None), (50, None), (60, 3.0), (70, None), (80, 9.0)):
        write(tmp_path, step, fd)
    write(tmp_path, 90)
    assert prune() == [40, 60, 80, 90]  # waits, best, last two
    place = tmp_path / "checkpoints" / "step-00000040"
    add_measured(tmp_path, measured(40, checkpoint.digest_of(place), 2.0))
    write(tmp_path, 95)
    assert prune() == [40, 90, 95]  # 40 is the best now


def test_a_record_is_of_its_weights_alone(tmp_path):
    """A training that takes a step again with other weights has them measured again."""
    write(tmp_path, 2, 1.0)
    write(tmp_path, 4, 2.0)
    training = Training(recipe="r", directory=tmp_path, train=Train(steps=9, checkpoint_every=2, measure_every=2))
    assert due(training) == []
    place = tmp_path / "checkpoints" / "step-00000002"
    checkpoint.write(place, {"a": torch.zeros(1)}, {"step": 2, "skipped": 0, "averaged": 1})
    assert due(training) == [place]
    assert checkpoint.figures_by(tmp_path, "fd") == {2: math.inf, 4: 2.0}
    asked: list[int] = []

    def measure(run: Path, step: int) -> Measured:
        asked.append(step)
        return measured(step, checkpoint.digest_of(place), 5.0)

    measure_due(training, measure)
    measure_due(training, measure)
    assert asked == [2]
    assert [record.figures["fd"].value for record in read_measured(tmp_path)] == [5.0, 2.0]


def test_what_could_not_be_had_is_measured_too_and_is_never_the_best(tmp_path):
    write(tmp_path, 2, math.nan)
    write(tmp_path, 4, 8.0)
    (first, _) = read_measured(tmp_path)
    assert (first.figures, first.metrics()) == ({}, {})
    assert checkpoint.unmeasured(tmp_path, lambda step: True) == []
    assert checkpoint.figures_by(tmp_path, "fd") == {2: math.inf, 4: 8.0}
    train = Training(recipe="r", directory=tmp_path, train=Train(steps=9))
    assert "no figure could be had" in measured_line(train, first)
    with (tmp_path / "along.jsonl").open("a") as file:  # a damaged line costs itself alone
        file.write('{"step": 6, "checkp\n[]\n')
    assert [record.step for record in read_measured(tmp_path)] == [2, 4]


def test_a_checkpoint_that_cannot_be_measured_ends_no_training_and_is_not_kept_for_ever(tmp_path, capsys):
    train = Train(steps=40, checkpoint_every=10, measure_every=10, keep=1, keep_by="fd")
    training = Training(recipe="r", directory=tmp_path, train=train)
    for step in (10, 20, 30, 40):
        write(tmp_path, step)

    def measure(run: Path, step: int) -> Measured:
        if step < 40:
            raise RuntimeError("no memory")
        return measured(step, checkpoint.digest_of(checkpoint.checkpoints(run)[-1]), 3.0)

    measure_due(training, measure)
    assert capsys.readouterr().out.splitlines()[0] == f"{tmp_path.name}: step 10 has no figures: no memory"
    assert due(training) == []
    assert steps(tmp_path) == [30, 40], "the newest two, of which one is the best"
    assert [sorted(record.metrics()) for record in read_measured(tmp_path)] == [[], [], [], ["along/fd", "along/fd_se"]]


def test_fields_that_are_not_used_are_not_written():
    assert not {"keep_by", "measure_every"} & to_json(Train()).keys()
    used = Train(keep_by="nll", measure_every=500)
    assert from_json(Train, to_json(used)) == used
    recipe = RECIPES["toy2d_spiral"]()
    assert difference(recipe, replace(recipe, train=replace(recipe.train, measure_every=1000, keep_by="fd"))) == ""
    assert [step for step in range(1, 1101) if Train(steps=1100, measure_every=500).measures(step)] == [500, 1000, 1100]
    assert not any(Train(steps=1000).measures(step) for step in range(1001))


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--keep-by", "fd"), ("keep_by=fd", "--measure-every 2")),
        (("--measure-every", "3"), ("measure_every=3", "every 2 steps", "--checkpoint-every 3")),
        (("--along.images", "3"), ("along: no checkpoint is measured", "--measure-every 2")),
        (("--measure-every", "2", "--along.samples", "0", "--keep-by", "fd"), ("keep_by=fd", "--along.samples")),
        (("--measure-every", "2", "--along.sampler", "xx"), ("measure_every=2", "'xx'")),
        (("--measure-every", "2", "--along.sampler", "em:3:start=data"), ("start",)),
        (("--measure-every", "2", "--along.samples", "2"), ("samples=2",)),
    ],
)
def test_what_cannot_be_measured_is_refused_before_the_first_step(words, named, tmp_path, capsys):
    train("toy2d_spiral", *TINY_2D, *words, out=tmp_path, status=2)
    one_line(capsys.readouterr().err, "error: ", *named)
    assert not (tmp_path / "toy2d_spiral" / "checkpoints").exists()


def test_a_sweep_measures_at_the_end_of_trials(tmp_path, capsys):
    words = ["weighting", "--recipe", "digits_vp_nll", "--measure-every", "75", "--out", str(tmp_path)]
    assert main_of("sweep")(words) == 2
    one_line(capsys.readouterr().err, "measure_every=75", "leave it out")


def test_a_best_that_has_yet_to_be_measured_is_told(run, tmp_path):
    (tmp_path / "config.json").write_text((run / "config.json").read_text())
    write(tmp_path, 2)
    with pytest.raises(ValueError, match=r"@best: no checkpoint of it has its fd measured yet"):
        Weights.named(f"{tmp_path}@best")


def test_the_picture_has_a_panel_for_likelihoods_and_one_for_distances(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(pictures, "put", lambda file, save: drawn.append(save.func.__self__))
    records = [
        Record(step=s, terms={"nelbo": 3.0}, unit="bits/dim", held_out=HeldOut(nelbo=2.0, se=0.1)) for s in (1, 2)
    ]
    figures = {"nll": Figure(value=2.0, se=0.1), "fd": Figure(value=9.0, se=1.0)}
    along = [Measured(step=step, checkpoint="x", figures=figures) for step in (1, 2)]
    for several, panels in ({}, 1), ({"r": along}, 3), ({"r": []}, 1):
        pictures.learning_curve({"r": records}, "bits/dim", tmp_path / "x.png", several)
        assert len(drawn[-1].axes) == panels
    (distances,) = drawn[1].axes[2].containers
    assert distances.lines[0].get_ydata().tolist() == [9.0, 9.0]
    assert drawn[1].axes[2].get_ylabel() == "Frechet distance"


def test_words_of_the_help_are_those_that_are_taken(capsys):
    assert main_of("train")(["toy2d_spiral", "--help"]) == 0
    said = capsys.readouterr().out
    for option in ("--measure-every", "--keep-by", "--along.images", "--along.sampler"):
        assert option in said
