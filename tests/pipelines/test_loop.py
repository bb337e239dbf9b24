"""Training in one process: deterministic, resumable to the bit after a kill, and needing little that is installed."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray_session import ROOT, SCHEDULE, TINY, TINY_2D, command, environment, later_wins, one_line, train
from safetensors.torch import load_file
from torch import nn

from indm_core.model import Losses, Trainable
from indm_core.noise import Noise, randn_like
from indm_core.training import AdamW
from pipelines.config import load
from pipelines.config.run import Train
from pipelines.config.store import read_run
from pipelines.config.terminal.cli import override, split_arguments
from pipelines.data.cache import ensure
from pipelines.data.card import load_card
from pipelines.data.spec import DataSpec
from pipelines.recipes import RECIPES
from pipelines.runs.job import Job, Training, finished, read_metrics
from pipelines.runs.record import Record, Unit
from pipelines.storage import checkpoint
from pipelines.training import jobs as module
from pipelines.training import loop, stream
from pipelines.training.dataset import run_job
from pipelines.training.session import Session, Work
from pipelines.training.stream import Rows, RowStream, local_rows
from pipelines.training.watch import halt
from pipelines.training.watch.divergence import DivergedError
from pipelines.training.watch.halt import Halted
from pipelines.training.watch.progress import line


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model.safetensors")


def assert_same_run(run: Path, other: Path) -> None:
    """Equal averaged weights, equal last checkpoints and equal figures, to the bit."""
    mine, theirs = weights(run), weights(other)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    (mine, numbers), (theirs, other_numbers) = (checkpoint.read(checkpoint.latest(path)) for path in (run, other))
    assert numbers | {"config": None} == other_numbers | {"config": None}  # how often they draw may differ
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    assert figures(run) == figures(other)


def figures(run: Path) -> list[Record]:
    """The records without what a clock gave."""
    return [replace(record, images_per_s=0, data_wait=0, step_s=0, eta_s=0) for record in read_metrics(run)]


def tiny_job(root: Path, *words: str, recipe: str = "toy2d_spiral") -> Job:
    _, given = split_arguments(later_wins([recipe, *TINY_2D, *words])[1:])
    run = override(RECIPES[recipe](), given)
    data = ensure(run.data.source, root / "data", run.data.options)
    return Job(run=run, spec=DataSpec.of(load_card(data)), directory=root / recipe, data=data)


def session(publish: Callable[[Training, Record], None] = lambda training, record: None) -> Session:
    return Session(
        rank=0,
        world=1,
        device=torch.device("cpu"),
        average=lambda vector: vector,
        agree=lambda value: value,
        stopping=lambda training, step: False,
        wrap=lambda model: model,
        begins=lambda training, model: None,
        publish=publish,
        checkpointed=lambda training, place, record: None,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run of 40 steps on digits with dropout, and its options."""
    out = tmp_path_factory.mktemp("whole")
    words = [*TINY[: -len(SCHEDULE)], "--dropout", "0.1", "--pretrain-steps", "15", "--steps", "40", "--log-every", "5"]
    words += ["--checkpoint-every", "10", "--keep", "1"]
    train("digits_vp_nll", *words, out=out)
    return out / "digits_vp_nll", words


def test_a_run_leaves_what_it_promises(whole):
    run, _ = whole
    config, spec = read_run(run / "config.json")
    assert (config.recipe, spec.name, spec.num_classes) == ("digits_vp_nll", "digits", 10)
    assert config.train.order == "streams"
    records = read_metrics(run)
    assert [record.step for record in records] == list(range(5, 41, 5))
    assert [record.phase for record in records] == ["pretraining"] * 3 + ["joint"] * 5
    for record in records:
        assert record.unit == "bits/dim"
        assert record.skipped == 0
        assert record.images_per_s > 0
        assert 0 <= record.data_wait <= 1
        assert record.eta_s >= 0
        assert record.gradient_norms["score"] > 0
    assert records[-1].eta_s == 0
    assert records[-1].gradient_norms["flow"] > 0
    assert (run / "pretrained" / "state.json").is_file()
    load(run)


def test_the_loss_terms_sum_to_the_bound(whole):
    """NELBO in bits/dim of the levels = denoising + prior - log_det + the bits of the dequantisation's scale."""
    run, _ = whole
    _, spec = read_run(run / "config.json")
    scale = np.log2(spec.levels / (spec.high - spec.low))
    for record in read_metrics(run):
        parts = record.terms["denoising"] + record.terms["prior"] - record.terms["log_det"]
        assert record.terms["nelbo"] == pytest.approx(parts + scale, abs=1e-4)


def test_a_run_is_deterministic(whole, tmp_path):
    run, words = whole
    train("digits_vp_nll", *words, out=tmp_path)
    assert_same_run(run, tmp_path / "digits_vp_nll")


def test_another_seed_is_another_run(tmp_path):
    first, second = (tiny_job(tmp_path / seed, "--train.seed", seed) for seed in "01")
    run_job(first, local_rows, session())
    run_job(second, local_rows, session())
    assert figures(first.directory)[0].terms != figures(second.directory)[0].terms


@pytest.mark.parametrize("step", [pytest.param(10, marks=pytest.mark.slow), 20])
def test_a_killed_run_goes_on_to_the_same_end(whole, step, tmp_path):
    run, words = whole
    killed = tmp_path / "digits_vp_nll"
    arguments = ["digits_vp_nll", *words, "--local", "--threads", "1", "--out", str(tmp_path)]
    process = subprocess.Popen(command("train", *arguments), env=environment(), stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not (killed / "checkpoints" / f"step-{step:08d}" / "state.json").is_file():
            assert process.poll() is None, "it ended before it was killed"
            assert time.monotonic() < deadline
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (killed / "model.safetensors").exists()
    train("digits_vp_nll", *words, out=tmp_path)
    assert_same_run(run, killed)
    assert not list(killed.rglob("*.partial"))


class Stop(Exception):
    """Ends a run where a test wants it to."""


def stop_at(step: int) -> Callable[[Training, Record], None]:
    def publish(training: Training, record: Record) -> None:
        if record.step == step:
            raise Stop

    return publish


@pytest.mark.parametrize("stop", range(1, 7))
def test_a_run_stopped_at_any_step_goes_on_with_the_rows_that_it_would_have_seen(stop, tmp_path):
    seen: list[np.ndarray] = []

    def rows(job: Job, first_row: int) -> Iterator[Rows]:
        del seen[first_row // job.run.train.batch_size :]
        for chunk in local_rows(job, first_row):
            seen.append(chunk["row"])
            yield chunk

    job = tiny_job(tmp_path / "whole")
    run_job(job, rows, session())
    expected = list(seen)
    seen.clear()
    again = tiny_job(tmp_path / "again")
    with pytest.raises(Stop):
        run_job(again, rows, session(stop_at(stop)))
    run_job(again, rows, session())
    assert len(expected) == 6
    assert all(np.array_equal(mine, theirs) for mine, theirs in zip(seen, expected, strict=True))
    assert_same_run(job.directory, again.directory)


def test_a_kill_between_the_last_checkpoint_and_the_weights(tmp_path):
    job = tiny_job(tmp_path)
    run_job(job, local_rows, session())
    before = (job.directory / "model.safetensors").read_bytes()
    (job.directory / "model.safetensors").unlink()
    assert not finished(job.training)
    run_job(job, local_rows, session())
    assert (job.directory / "model.safetensors").read_bytes() == before


def test_a_kill_while_the_pre_training_is_set_aside(tmp_path, monkeypatch):
    """The milestone is there, or the step before it is taken again."""
    job = tiny_job(tmp_path)
    written: list[str] = []

    def write(directory: Path, *contents: Any) -> None:
        if len(written) == 2:  # of: the second step's, then two at the third, where the pre-training ends
            raise Stop
        written.append(directory.name)
        real(directory, *contents)

    real = checkpoint.write
    monkeypatch.setattr(checkpoint, "write", write)
    with pytest.raises(Stop):
        run_job(job, local_rows, session())
    monkeypatch.undo()
    run_job(job, local_rows, session())
    assert checkpoint.read(job.directory / "pretrained")[1]["step"] == 3


def test_an_incomplete_checkpoint_is_none(tmp_path):
    job = tiny_job(tmp_path)
    with pytest.raises(Stop):
        run_job(job, local_rows, session(stop_at(5)))
    assert checkpoint.latest(job.directory).name == "step-00000004"
    (job.directory / "checkpoints" / "step-00000004" / "state.json").unlink()
    assert checkpoint.latest(job.directory).name == "step-00000003"
    run_job(job, local_rows, session())
    other = tiny_job(tmp_path / "other")
    run_job(other, local_rows, session())
    assert_same_run(job.directory, other.directory)


@pytest.mark.parametrize("keep", [1, 3])
def test_the_best_checkpoints_and_the_last_two_are_kept(keep, tmp_path):
    job = tiny_job(tmp_path, "--steps", "14", "--checkpoint-every", "1", "--keep", str(keep))
    run_job(job, local_rows, session())
    nelbo = {record.step: record.terms["nelbo"] for record in read_metrics(job.directory)}
    expected = {*sorted(nelbo, key=nelbo.__getitem__)[:keep], 13, 14}
    kept = checkpoint.checkpoints(job.directory)
    assert {int(path.name.removeprefix("step-")) for path in kept} == expected
    for path in kept:
        assert checkpoint.read(path)[1]["nelbo"] == nelbo[checkpoint.read(path)[1]["step"]]
    assert (job.directory / "pretrained").is_dir()  # whatever its figure


def test_the_baseline_goes_on_from_the_pre_training(tmp_path, capsys):
    """Its steps after the switch are those of a run that is never switched: same weights, moments, rows and noise."""
    words = [*TINY[: -len(SCHEDULE)], "--steps", "30", "--log-every", "1"]
    train("digits_vp_nll", *words, "--pretrain-steps", "24", "--baseline", "digits_linear_nll", out=tmp_path)
    train("digits_vp_nll", *words, "--pretrain-steps", "30", out=tmp_path / "on")
    joint, linear = (read_metrics(tmp_path / name) for name in ("digits_vp_nll", "digits_linear_nll"))
    assert [record.step for record in linear] == list(range(25, 31))
    on = {record.step: record.terms["nelbo"] for record in read_metrics(tmp_path / "on" / "digits_vp_nll")}
    for record in linear:
        assert record.terms["nelbo"] == pytest.approx(on[record.step], abs=1e-4)
    last = next(record for record in joint if record.step == 24)
    assert linear[0].terms["nelbo"] == pytest.approx(last.terms["nelbo"], abs=1.5)
    assert set(load(tmp_path / "digits_linear_nll").networks()) == {"score"}
    said = capsys.readouterr().out
    assert "digits_linear_nll" in said
    assert "digits_vp_nll: all of steps=30 train the score alone, since pretrain_steps=30" in said


def test_the_baseline_shares_what_is_overridden_of_what_the_recipes_share():
    run = override(RECIPES["digits_vp_nll"](), {"nf": "8", "model.sde": "SubVP", "beta_max": "12", "blocks": "2"})
    other = module._baseline("digits_linear_nll", run)
    own = RECIPES["digits_linear_nll"]()
    assert other.model == replace(own.model, sde=run.model.sde, backbone=run.model.backbone)
    assert (other.data, other.train, other.recipe) == (run.data, run.train, own.recipe)


def test_a_run_starts_from_another_one(tmp_path):
    words = [*TINY[: -len(SCHEDULE)], "--steps", "8", "--log-every", "1"]
    train("digits_vp_nll", *words, "--pretrain-steps", "4", out=tmp_path)
    start = str(tmp_path / "digits_vp_nll" / "pretrained")
    train("digits_vp_nll", *words, "--pretrain-steps", "4", "--name", "b", "--start-from", start, out=tmp_path)
    first, second = (figures(tmp_path / name) for name in ("digits_vp_nll", "b"))
    assert [record.step for record in second] == [5, 6, 7, 8]
    assert second[0].terms["nelbo"] == pytest.approx(first[4].terms["nelbo"], abs=1e-4)


REFUSALS = {
    "another recipe": (["toy2d_moons", *TINY_2D], ["holds a run of recipe toy2d_spiral, not toy2d_moons", "--name"]),
    "another option": (["toy2d_spiral", *TINY_2D, "--ema-decay", "0.5"], ["train.ema_decay=0.995, not 0.5", "--name"]),
    "another network": (["toy2d_spiral", *TINY_2D, "--depth", "4"], ["model.backbone.depth=3, not 4", "remove"]),
    "another form": (["toy2d_spiral", *TINY_2D, "--sde", "SubVP"], ["model.sde=VP, not SubVP"]),
    "other data": (["toy2d_spiral", *TINY_2D, "--low", "-2"], ["data.options.low=-1.0, not -2.0"]),
}


@pytest.fixture(scope="module")
def spiral(tmp_path_factory):
    out = tmp_path_factory.mktemp("spiral")
    train("toy2d_spiral", *TINY_2D, "--name", "r", out=out)
    return out


@pytest.mark.parametrize("case", REFUSALS)
def test_a_directory_of_another_run_is_refused_and_left_alone(case, spiral, capsys):
    words, parts = REFUSALS[case]
    before = {file: file.read_bytes() for file in (spiral / "r").rglob("*") if file.is_file()}
    train(*later_wins(words), "--name", "r", out=spiral, status=2)
    one_line(capsys.readouterr().err, "error: ", str(spiral / "r"), *parts)
    assert before == {file: file.read_bytes() for file in (spiral / "r").rglob("*") if file.is_file()}


def test_a_complete_run_says_so(spiral, capsys):
    train("toy2d_spiral", *TINY_2D, "--name", "r", out=spiral)
    shown = capsys.readouterr().out
    one_line(shown.splitlines()[0], "r: complete, 6 steps", str(spiral / "r"))


def test_more_steps_go_on_and_how_often_it_logs_may_change(spiral, tmp_path, capsys):
    longer = later_wins(["toy2d_spiral", *TINY_2D, "--steps", "9", "--log-every", "3"])
    train(*longer, "--name", "r", out=spiral)
    train(*longer, "--name", "r", out=tmp_path)
    mine, theirs = weights(spiral / "r"), weights(tmp_path / "r")
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_weights_of_a_shorter_run_are_not_taken_for_the_end(tmp_path):
    job = tiny_job(tmp_path)
    run_job(job, local_rows, session())
    longer = replace(job, run=replace(job.run, train=replace(job.run.train, steps=8)))
    old = (job.directory / "model.safetensors").read_bytes()
    run_job(longer, local_rows, session())
    new = (job.directory / "model.safetensors").read_bytes()
    (job.directory / "model.safetensors").write_bytes(old)
    os.utime(job.directory / "model.safetensors", (1e9, 1e9))  # as if killed before the last weights were written
    assert not finished(longer.training)
    run_job(longer, local_rows, session())
    assert (job.directory / "model.safetensors").read_bytes() == new != old


def test_accumulation_leads_to_a_close_result(tmp_path):
    """Two micro-batches draw other noise: the mean bounds agree within 5 standard errors, and the rows are the same."""
    means, errors = [], []
    for accumulate in ("1", "2"):
        words = ["--steps", "80", "--batch-size", "64", "--accumulate", accumulate, "--log-every", "1"]
        job = tiny_job(tmp_path / accumulate, *words, "--checkpoint-every", "1000", "--pretrain-steps", "80")
        run_job(job, local_rows, session())
        values = np.array([record.terms["nelbo"] for record in read_metrics(job.directory)])[40:]
        means.append(values.mean())
        errors.append(values.std(ddof=1) / np.sqrt(len(values)))
    assert means[0] != means[1]
    assert abs(means[0] - means[1]) < 5 * np.hypot(*errors)


def test_bf16_autocast_trains(tmp_path, monkeypatch, capsys):
    """Where the processor has no instructions for it, in float32, which is said once."""
    for name, there in (("fp32", True), ("bf16", True), ("without", False)):
        monkeypatch.setattr(loop, "computes_in_bfloat16", lambda device, there=there: there)
        precision = "fp32" if name == "fp32" else "bf16"
        train(*later_wins(["digits_vp_nll", *TINY, "--precision", precision, "--name", name]), out=tmp_path)
        said = capsys.readouterr()
        assert (said.out + said.err).count("no instructions for it") == (not there)
    exact, rounded = ([r.terms["nelbo"] for r in read_metrics(tmp_path / name)] for name in ("fp32", "bf16"))
    assert exact == [r.terms["nelbo"] for r in read_metrics(tmp_path / "without")]
    assert exact[0] == rounded[0]  # the networks start at zero
    for one, other in zip(exact[1:], rounded[1:], strict=True):
        assert one != other
        assert other == pytest.approx(one, rel=0.05)
    assert all(tensor.dtype == torch.float32 for tensor in weights(tmp_path / "bf16").values())


def test_what_cannot_be_compiled_trains_as_it_is_and_says_so_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loop, "cannot_compile", lambda device: "no compiler")
    for name, words in (("plain", []), ("asked", ["--compile", "true"])):
        train(*later_wins(["digits_vp_nll", *TINY, *words, "--name", name]), out=tmp_path)
        said = capsys.readouterr()
        assert (said.out + said.err).count("nothing is compiled for this cpu (no compiler)") == (name == "asked")
    one, other = ([r.terms["nelbo"] for r in read_metrics(tmp_path / name)] for name in ("plain", "asked"))
    assert one == other


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_training_has_the_losses_of_a_plain_one(tmp_path, capsys):
    for name, words in (("plain", []), ("compiled", ["--compile", "true"])):
        train(*later_wins(["digits_vp_nll", *TINY, *words, "--name", name]), out=tmp_path)
    if "nothing is compiled" in (said := capsys.readouterr()).out + said.err:
        pytest.skip("no compiler")
    one, other = ([r.terms["nelbo"] for r in read_metrics(tmp_path / name)] for name in ("plain", "compiled"))
    assert other == pytest.approx(one, rel=1e-5)


def test_data_without_labels(tmp_path):
    file = tmp_path / "vectors.npy"
    np.save(file, np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32))
    job_words = [word for word in TINY_2D if word not in ("--rows", "200")]
    train("toy2d_moons", *job_words, "--source", str(file), out=tmp_path)
    _, spec = read_run(tmp_path / "toy2d_moons" / "config.json")
    assert (spec.shape, spec.levels, spec.num_classes) == ((3,), 0, 0)
    assert read_metrics(tmp_path / "toy2d_moons")[-1].unit == "nats/dim"


def test_pictures_are_drawn_when_due_and_change_nothing(tmp_path):
    plain = later_wins(["digits_vp_nll", *TINY])
    drawn = later_wins(["digits_vp_nll", *TINY, "--sample-every", "2", "--steps", "5"])
    plain = later_wins([*plain, "--steps", "5"])
    train(*plain, out=tmp_path / "plain")
    train(*drawn, out=tmp_path / "drawn")
    pictures = sorted(path.name for path in (tmp_path / "drawn" / "digits_vp_nll" / "samples").iterdir())
    assert pictures == ["step-00000002.png", "step-00000004.png"]
    assert_same_run(tmp_path / "plain" / "digits_vp_nll", tmp_path / "drawn" / "digits_vp_nll")


def spoiled(first: int, last: int) -> RowStream:
    """The rows of a run, not a number from step `first` to `last`."""

    def rows(job: Job, first_row: int) -> Iterator[Rows]:
        for step, chunk in enumerate(local_rows(job, first_row), start=first_row // job.run.train.batch_size + 1):
            yield chunk | {"x": chunk["x"] * np.float32(np.nan if first <= step <= last else 1)}

    return rows


def test_a_step_that_is_not_finite_is_skipped_and_counted(tmp_path):
    job = tiny_job(tmp_path, "--steps", "20")
    run_job(job, spoiled(5, 13), session())
    records = {record.step: record for record in read_metrics(job.directory)}
    assert records[4].skipped == 0
    assert "nelbo" not in records[5].terms
    assert records[13].skipped == records[20].skipped == 9
    assert np.isfinite(records[14].terms["nelbo"])
    assert all(tensor.isfinite().all() for tensor in weights(job.directory).values())


def test_ten_in_a_row_stop_the_run_and_keep_the_last_good_checkpoint(tmp_path):
    job = tiny_job(tmp_path, "--steps", "40")
    with pytest.raises(DivergedError, match=r"10 steps in a row \(steps 7 to 16\); lower --score.lr"):
        run_job(job, spoiled(8, 40), session())
    assert checkpoint.latest(job.directory).name == "step-00000006"
    tensors, numbers = checkpoint.read(checkpoint.latest(job.directory))
    assert numbers["skipped"] == 0
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    run_job(job, local_rows, session())  # the data are mended: the same command goes on
    other = tiny_job(tmp_path / "other", "--steps", "40")
    run_job(other, local_rows, session())
    assert_same_run(job.directory, other.directory)


@pytest.mark.parametrize("task_rows", [16, 100, 32_768])
def test_local_rows_are_the_order_of_the_run(task_rows, tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "TASK_ROWS", task_rows)
    job = tiny_job(tmp_path, "--steps", "30")
    whole = list(local_rows(job, 0))
    assert [len(chunk["x"]) for chunk in whole] == [16] * 30
    epoch = np.concatenate([chunk["row"] for chunk in whole[:12]])  # 200 rows: 12 batches an epoch
    assert len(set(epoch.tolist())) == 12 * 16
    for step in (1, 12, 17, 29, 30):
        rest = list(local_rows(job, step * 16))
        assert len(rest) == 30 - step
        for mine, theirs in zip(rest, whole[step:], strict=True):
            assert all(np.array_equal(mine[name], theirs[name]) for name in ("x", "label", "row"))
    with pytest.raises(ValueError, match="first_row=8: not a multiple of batch_size=16"):
        local_rows(job, 8)


def train_without(blocked: list[str], *words: str) -> subprocess.CompletedProcess[str]:
    """Trains in a fresh interpreter in which some packages cannot be imported."""
    block = f"import sys; sys.modules.update(dict.fromkeys({blocked!r}))"  # None in sys.modules: ModuleNotFoundError
    program = f"{block}; import runpy; runpy.run_module('pipelines.train', run_name='__main__')"
    return subprocess.run(
        [sys.executable, "-c", program, *words],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_local_training_needs_neither_ray_nor_mlflow(tmp_path):
    words = later_wins(["digits_vp_nll", *TINY, "--sample-every", "3", "--local", "--out", str(tmp_path)])
    done = train_without(["ray", "mlflow"], *words)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "digits_vp_nll" / "samples" / "step-00000006.png").is_file()


def test_local_training_needs_torch_numpy_pyarrow_and_safetensors_only(tmp_path):
    blocked = ["ray", "mlflow", "sklearn", "matplotlib", "PIL", "torch_fidelity", "torchvision", "scipy"]
    blocked += ["jaxtyping", "beartype"]
    words = later_wins(["toy2d_spiral", *TINY_2D, "--sample-every", "3", "--local", "--out", str(tmp_path)])
    done = train_without(blocked, *words)
    assert done.returncode == 0, done.stderr
    assert "no sample pictures, matplotlib is not installed" in done.stdout
    load(tmp_path / "toy2d_spiral")
    done = train_without(blocked, *words)  # and the run is recognised again
    assert done.returncode == 0, done.stderr
    assert "complete, 6 steps" in done.stdout


def test_ray_is_named_where_it_is_missing(tmp_path):
    done = train_without(["ray", "mlflow"], *later_wins(["toy2d_spiral", *TINY_2D, "--out", str(tmp_path)]))
    assert done.returncode == 2
    one_line(done.stderr, "error: ", "ray", "--local")


BRIDGE = ["digits_bridge", *TINY, "--partner", "digits"]


def test_a_bridge_trains_on_pairs_and_goes_on_after_a_stop(tmp_path):
    words = later_wins([*BRIDGE, "--pretrain-steps", "2"])
    train(*words, out=tmp_path / "a")
    records = read_metrics(tmp_path / "a" / "digits_bridge")
    assert ["partner" in record.terms for record in records] == [False] * 2 + [True] * 4
    last = records[-1].terms
    assert last["partner"] == pytest.approx(last["prior"] + np.log2(17 / 2), abs=0.5)  # near the identity
    train(*later_wins([*words, "--steps", "4"]), out=tmp_path / "b")
    train(*words, out=tmp_path / "b")
    mine, theirs = (weights(tmp_path / name / "digits_bridge") for name in "ab")
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_the_two_orders_of_a_bridge_differ(tmp_path):
    job = replace(tiny_job(tmp_path), partner=tiny_job(tmp_path).data)
    first, second = next(local_rows(job, 0)), next(local_rows(job.of_partner(), 0))
    assert (first["row"] != second["row"]).any()


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["digits_bridge"], ["digits_bridge: its model needs a second data set", "--partner"]),
        (["digits_vp_nll", "--partner", "digits"], ["digits_vp_nll: its model takes one data set"]),
        (["digits_bridge", "--partner", "toy2d:rings"], ["partner=toy2d:rings", "shape is (2,)", "(1, 8, 8)"]),
        (["digits_bridge", "--partner", "/nowhere"], ["/nowhere", "no such file"]),
    ],
)
def test_pairs_that_do_not_fit_are_refused(words, parts, tmp_path, capsys):
    train(*words, out=tmp_path, status=2)
    one_line(capsys.readouterr().err, "error: ", *parts)


TARGET = torch.tensor([3.0, -2.0])


class OwnDraws(Trainable):
    """N(mu, I) fitted to N(m, I) by draws of its own: x = mu + eps, and log q(x) - log p(x) is an unbiased draw of their KL."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Linear(1, 2, bias=False)

    def forward(self, x: int, y: torch.Tensor | None = None, generator: Noise = None) -> Losses:
        eps = randn_like(self.mean.weight.new_zeros(x, 2), generator)
        kl = 0.5 * ((self.mean(eps.new_ones(x, 1)) + eps - TARGET).square() - eps.square()).sum(1)
        return Losses(kl, {"kl": kl.detach()})

    def networks(self) -> dict[str, nn.Module]:
        return {"mean": self.mean}

    def evaluations(self) -> dict[str, int]:
        return {"mean": 1}

    def phase(self, step: int) -> str:
        return "fit"

    def begin_phase(self, phase: str) -> None:
        pass


def own_draws(directory: Path) -> Work[OwnDraws]:
    """Trained without a data set: a batch is a number of draws."""
    settings = {"mean": AdamW(lr=0.1, weight_decay=0.0)}
    schedule = {"steps": 90, "log_every": 5, "checkpoint_every": 15, "sample_every": 45}
    train = Train(**schedule, batch_size=64, accumulate=2, optimisers=settings, ema_decay=0.9)
    return Work(
        training=Training(recipe="own-draws", directory=directory, train=train),
        build=OwnDraws,
        batches=lambda step: itertools.repeat(lambda generator: [(32, None)] * 2),
        unit=Unit("nats", lambda term, nats: float(nats)),
        write_config=lambda: (directory / "config.json").write_text("{}"),
        draw=lambda model, file: file.write_text(f"{model.mean.weight.T}"),
    )


def test_what_has_no_data_set_trains_by_the_same_loop(tmp_path):
    """It learns, logs, draws, and after a stop between two checkpoints goes on to the same end, bit for bit."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    loop.run(own_draws(whole), session())
    with pytest.raises(Stop):
        loop.run(own_draws(stopped), session(stop_at(50)))
    assert checkpoint.latest(stopped).name == "step-00000045"
    loop.run(own_draws(stopped), session())
    assert_same_run(whole, stopped)
    records = read_metrics(whole)
    assert [record.step for record in records] == list(range(5, 91, 5))
    assert {(record.unit, *record.terms, *record.gradient_norms) for record in records} == {("nats", "kl", "mean")}
    assert f"kl {records[0].terms['kl']:.3f} nats  " in line(own_draws(whole).training, records[0])
    mean = weights(whole)["mean.weight"].squeeze(1)
    assert (mean - TARGET).square().sum() < 0.01 * TARGET.square().sum()
    assert sorted(path.name for path in (whole / "samples").iterdir()) == ["step-00000045.png", "step-00000090.png"]
    assert [path.name for path in checkpoint.checkpoints(whole)] == ["step-00000075", "step-00000090"]  # the newest


def test_a_flow_is_trained_alone_against_a_fixed_score(tmp_path):
    words = later_wins(["toy2d_spiral", *TINY_2D, "--steps", "12"])
    train(*words, out=tmp_path)
    start = tmp_path / "toy2d_spiral" / "checkpoints" / "step-00000012"
    alone = later_wins(
        [*words, "--train.frozen", "score", "--start-from", str(start), "--steps", "20", "--name", "alone"]
    )
    train(*later_wins([*alone, "--steps", "16"]), out=tmp_path)
    train(*alone, out=tmp_path)
    train(*later_wins([*alone, "--name", "whole"]), out=tmp_path)
    assert_same_run(tmp_path / "alone", tmp_path / "whole")
    given, found = checkpoint.read(start)[0], weights(tmp_path / "alone")
    averages = {key.removeprefix("ema."): value for key, value in given.items() if key.startswith("ema.")}
    assert found.keys() == averages.keys()
    assert {key.split(".")[0] for key in found if not torch.equal(found[key], averages[key])} == {"flow"}
    assert {*read_metrics(tmp_path / "alone")[-1].gradient_norms} == {"flow"}


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--frozen", "scor"], ["frozen", "no network 'scor'", "score, flow"]),
        (["--frozen", "score,flow"], ["frozen", "score, flow are all the networks"]),
        (["--frozen", "score"], ["frozen", "the phase 'pretraining' trains no network but score"]),
        (["--frozen", "flow", "--baseline", "toy2d_rings"], ["frozen=flow", "a baseline trains all its networks"]),
    ],
)
def test_what_cannot_be_frozen_is_refused(words, parts, tmp_path, capsys):
    train(*later_wins(["toy2d_spiral", *TINY_2D, *words]), out=tmp_path, status=2)
    one_line(capsys.readouterr().err, "error: ", *parts)


def test_the_first_rows_do_not_wait_for_the_length_of_the_run(tmp_path, monkeypatch):
    """A run of 10^12 steps gives the rows of a short one; making all its tasks first would never end."""
    monkeypatch.setattr(stream, "TASK_ROWS", 50)
    short, long = (tiny_job(tmp_path, "--steps", steps) for steps in ("40", "1000000000000"))
    for step in (0, 17):
        expected = list(local_rows(short, step * 16))
        assert len(expected) == 40 - step
        for mine, theirs in zip(local_rows(long, step * 16), expected, strict=False):
            assert np.array_equal(mine["row"], theirs["row"])
    (far,) = itertools.islice(local_rows(long, 999_999_999_990 * 16), 1)  # nor for its position
    assert len(far["row"]) == 16


@pytest.mark.parametrize("step", [0, 1, 5])
def test_a_run_that_is_left_between_two_checkpoints_goes_on_to_the_same_end(step, tmp_path, monkeypatch):
    """Before its first step it leaves nothing, later a checkpoint and the figures of that very step."""
    monkeypatch.setattr(halt, "ASK_SECONDS", 0.0)
    words = ("--checkpoint-every", "1000", "--log-every", "4")
    whole, left = (tiny_job(tmp_path / name, *words) for name in ("whole", "left"))
    run_job(whole, local_rows, session())
    asked = itertools.count()
    with pytest.raises(Halted):
        run_job(left, local_rows, replace(session(), stopping=lambda training, at: next(asked) >= step))
    kept = checkpoint.checkpoints(left.directory)
    assert [path.name for path in kept][-1:] == ([f"step-{step:08d}"] if step else [])
    assert [record.step for record in read_metrics(left.directory)][-1:] == ([step] if step else [])
    run_job(left, local_rows, session())
    mine, theirs = weights(whole.directory), weights(left.directory)
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)
