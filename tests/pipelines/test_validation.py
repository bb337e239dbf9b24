"""The validation curve: what it measures, that it changes nothing, and that the best checkpoints are kept by it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ray_session import TINY_2D, later_wins, one_line, train
from safetensors.torch import load_file

from indm_core.likelihood import dequantise, nelbo
from indm_core.training import step_seed
from pipelines.config import load
from pipelines.config.provenance import difference
from pipelines.config.run import Train
from pipelines.config.store import read_run
from pipelines.data.cache import ensure
from pipelines.data.card import load_card
from pipelines.data.shards import read_all
from pipelines.recipes import RECIPES
from pipelines.runs.job import Job, Training, read_metrics
from pipelines.runs.record import HeldOut, Record
from pipelines.storage import checkpoint
from pipelines.training.leave import what_next
from pipelines.training.watch import validation
from pipelines.training.watch.progress import line


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same run with a validation curve and without one."""
    out = tmp_path_factory.mktemp("validation")
    for every in ("2", "0"):
        words = later_wins(["toy2d_spiral", *TINY_2D, "--log-every", "3", "--validate-every", every, "--name", every])
        train(*words, out=out)
    return out / "2", out / "0"


def test_a_curve_changes_no_bit_of_a_run(runs):
    with_curve, without = runs
    for file in ("model.safetensors", "checkpoints/step-00000006/training.safetensors"):
        mine, theirs = (load_file(run / file) for run in runs)
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    assert [(r.step, r.held_out is not None) for r in read_metrics(with_curve)] == [
        (0, True),
        (2, True),
        (3, False),
        (4, True),
        (6, True),
    ]
    assert all(record.held_out is None for record in read_metrics(without))
    assert "validation" not in (without / "metrics.jsonl").read_text()


def test_a_point_is_the_bound_of_the_averaged_model_on_the_test_rows(runs):
    run, _ = runs
    config, spec = read_run(run / "config.json")
    data = ensure(config.data.source, run.parent / "data", config.data.options)
    k = torch.from_numpy(read_all(data, load_card(data), "test")["x"])
    assert len(k) <= validation.BATCH  # one batch
    x = dequantise(k, spec.levels, spec.low, spec.high)
    generator = torch.Generator().manual_seed(step_seed(validation.SEED, 0, 0))
    values = spec.in_unit(nelbo(load(run), x, num_draws=validation.DRAWS, generator=generator).double())
    last = read_metrics(run)[-1].held_out
    assert last == HeldOut(nelbo=float(values.mean()), se=float(values.std() / math.sqrt(len(values))))


def test_checkpoints_say_both_figures(runs):
    run, other = runs
    records = {record.step: record for record in read_metrics(run)}
    for place in checkpoint.checkpoints(run):
        content = checkpoint.read_state(place).content
        held_out = records[content["step"]].held_out
        assert (content["validation_nelbo"], content["validation_se"]) == (held_out.nelbo, held_out.se)
        assert content["nelbo"] == records[content["step"]].terms["nelbo"]
        assert checkpoint.held_out(place) == held_out.nelbo
    assert all(checkpoint.held_out(place) == math.inf for place in checkpoint.checkpoints(other))


def test_the_best_by_held_out_rows_are_kept(tmp_path):
    def write(step: int, nelbo: float, **held_out: float) -> None:
        place = tmp_path / "checkpoints" / f"step-{step:08d}"
        numbers = {"step": step, "skipped": 0, "averaged": 1, "nelbo": nelbo}
        checkpoint.write(place, {"a": torch.zeros(1)}, numbers | held_out)

    def kept(keep: int) -> list[int]:
        checkpoint.prune(tmp_path, keep)
        return [checkpoint.step_of(place) for place in checkpoint.checkpoints(tmp_path)]

    for step, (training, held_out) in enumerate(
        ((1.0, 5.0), (2.0, 3.0), (0.5, None), (4.0, 4.0), (3.0, 9.0), (9, 9)), 1
    ):
        write(step, training, **({} if held_out is None else {"validation_nelbo": held_out}))
    assert kept(2) == [2, 4, 5, 6]  # 3 is the best on training rows
    for step in (7, 8, 9):
        write(step, 10.0 - step)
    assert kept(1) == [2, 8, 9]


def test_a_record_with_a_point_is_read_as_it_was_written():
    point = HeldOut(nelbo=2.5, se=0.125)
    record = Record(step=5, phase="joint", terms={"nelbo": 3.0}, unit="bits/dim", images_per_s=7.0, held_out=point)
    assert Record.from_json(record.to_json()) == record
    assert json.loads(record.to_json())["validation/nelbo"] == 2.5
    first = Record(step=0, phase="joint", unit="bits/dim", held_out=point)
    assert Record.from_json(first.to_json()) == first
    assert first.figures() == {"validation/nelbo": 2.5, "validation/se": 0.125}  # no speed: nothing was trained
    old = Record.from_json('{"step": 3, "phase": "joint", "unit": "bits/dim", "nelbo": 3.0, "images_per_s": 2.0}')
    assert (old.held_out, old.terms) == (None, {"nelbo": 3.0})
    training = Training(recipe="r", directory=Path("/runs/r"), train=Train(steps=10))
    assert "held out 2.500 +- 0.125 bits/dim" in line(training, record)
    assert line(training, first).split() == ["r", "joint", "0/10", "held", "out", "2.500", "+-", "0.125", "bits/dim"]


def test_data_without_held_out_rows_have_no_curve(runs, tmp_path, monkeypatch, capsys):
    def without(directory):
        card = load_card(directory)
        return replace(card, splits={"train": card.splits["train"]})

    monkeypatch.setattr(validation, "load_card", without)
    train(*later_wins(["toy2d_spiral", *TINY_2D, "--validate-every", "2"]), out=tmp_path)
    assert "no held-out rows" in capsys.readouterr().out
    assert all(record.held_out is None for record in read_metrics(tmp_path / "toy2d_spiral"))


def test_rows_are_taken_from_the_whole_split(runs, monkeypatch):
    run, _ = runs
    config, spec = read_run(run / "config.json")
    data = ensure(config.data.source, run.parent / "data", config.data.options)
    monkeypatch.setattr(validation, "ROWS", {1: 8})
    monkeypatch.setattr(validation, "BLOCKS", 4)
    measure = validation.held_out_rows(Job(run=config, spec=spec, directory=run, data=data), torch.device("cpu"))
    rows = torch.from_numpy(read_all(data, load_card(data), "test")["x"])
    starts = [0, (len(rows) - 2) // 3, 2 * (len(rows) - 2) // 3, len(rows) - 2]
    assert torch.equal(measure.args[1], torch.cat([rows[start : start + 2] for start in starts]).float())


def test_a_run_that_decays_keeps_its_number_of_steps(tmp_path, capsys):
    words = ["toy2d_linear", "--backbone.width", "16", "--batch-size", "16", "--rows", "200", "--sample-every", "0"]
    words += ["--validate-every", "0", "--steps", "4", "--optimisers.score.decay", "cosine"]
    train(*words, out=tmp_path)
    longer = later_wins([*words, "--steps", "6"])
    train(*longer, out=tmp_path, status=2)
    one_line(capsys.readouterr().err, "error: ", "train.steps=4, not 6")
    plain = RECIPES["toy2d_linear"]()
    assert difference(plain, replace(plain, train=replace(plain.train, steps=9))) == ""


@pytest.mark.parametrize(("last", "said"), [(1.4, False), (1.8, True), (math.nan, False)])
def test_a_run_that_was_better_before_its_end_is_told(last, said, tmp_path):
    points = [(0, 7.0), (500, 1.3), (1000, last)]
    records = [Record(step=step, unit="nats/dim", held_out=HeldOut(nelbo=v, se=0.2)) for step, v in points]
    (tmp_path / "metrics.jsonl").write_text("".join(record.to_json() + "\n" for record in records))
    lines = what_next([tmp_path]).splitlines()
    assert len(lines) == 2 + said
    if said:
        one_line(lines[0], "1.300 +- 0.200 nats/dim at step 500", "1.800 at the end", f"{tmp_path}@best")
