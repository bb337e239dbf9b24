"""An evaluation keeps what it has: records on disk, a killed evaluation that goes on, and rows that travel once."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray_session import TINY_2D, main_of, one_line, train

from indm_core.likelihood import dequantise
from indm_core.sampling import Sampling
from pipelines.config.store import digest, identity
from pipelines.config.weights import Weights
from pipelines.data.spec import DataSpec
from pipelines.evaluation import kept, loans, measure
from pipelines.evaluation.evaluator import Evaluator, Work
from pipelines.evaluation.features.networks import raw
from pipelines.evaluation.features.statistics import Statistics
from pipelines.evaluation.kept import Kept
from pipelines.evaluation.measure import Keep
from pipelines.evaluation.measurement import Task
from pipelines.evaluation.measurements.distances import SampleBatch
from pipelines.evaluation.measurements.per_image import Estimator, Likelihoods, PerImage
from pipelines.evaluation.plan import Plan, Span
from pipelines.evaluation.results.document import Evaluation
from pipelines.evaluation.results.table import table
from pipelines.evaluation.settings import Settings
from pipelines.storage.journal import Journal

SETTINGS = Settings(
    images=4,
    nll_replicates=2,
    rtol=1e-1,
    atol=1e-1,
    nelbo_replicates=2,
    nelbo_draws=2,
    baselines=False,
    samples=20,
    sampling=Sampling(sampler="em", steps=2),
    chunk=2,
)
TASKS = 2 * (2 * 2 + 2 * 2 + 1) + 1
"""Of two runs: NLLs and NELBOs, replicates by chunks, and samples; and the features of the reference."""


# The file.


def test_a_journal_gives_back_what_was_written(tmp_path):
    journal = Journal(tmp_path / "some.journal")
    assert journal.read(["a"]) == {}
    assert not journal.file.exists()
    x = torch.rand(5, dtype=torch.float64)
    journal.append("a", {"": x, "part": x[:2], "none": torch.zeros(0, 3)}, 1.5)
    journal.append("b", {"k": torch.arange(3)}, 2.5)
    journal.append("a", {"": x + 1}, 3.5)
    found = journal.read(["a", "b", "c"])
    assert found.keys() == {"a", "b"}
    assert torch.equal(found["a"].tensors[""], x + 1)
    assert (found["b"].tensors["k"].dtype, found["b"].seconds) == (torch.int64, 2.5)
    assert journal.read(["b"]).keys() == {"b"}


def test_half_a_record_at_the_end_is_cut_off(tmp_path):
    """At whatever byte the writer was killed; what is written later is found."""
    journal = Journal(tmp_path / "some.journal")
    journal.append("a", {"": torch.ones(2)})
    first = journal.file.stat().st_size
    journal.append("b", {"": torch.ones(2)})
    whole = journal.file.read_bytes()
    for end in range(first, len(whole), 7):
        journal.file.write_bytes(whole[:end])
        assert journal.read(["a", "b"]).keys() == {"a"}
        assert journal.file.stat().st_size == first
        journal.append("c", {"": torch.ones(2)})
        assert journal.read(["a", "b", "c"]).keys() == {"a", "c"}


def test_a_record_with_a_flipped_bit_is_absent(tmp_path):
    journal = Journal(tmp_path / "some.journal")
    for key in "abc":
        journal.append(key, {"": torch.ones(4)})
    content = bytearray(journal.file.read_bytes())
    content[len(content) // 2] ^= 1
    journal.file.write_bytes(content)
    assert journal.read(["a", "b", "c"]).keys() in ({"a", "c"}, {"a"})  # where the head is hit, the rest is not found
    head = json.dumps({"key": "d", "bytes": 10**15, "sha256": "", "seconds": 0.0})
    journal.file.write_text(f"{head}\n", encoding="utf-8")
    assert journal.read(["d"]) == {}  # and nothing of that size is read


def test_a_journal_follows_no_link(tmp_path):
    (tmp_path / "mine").write_text("precious", encoding="utf-8")
    (tmp_path / "some.journal").symlink_to(tmp_path / "mine")
    with pytest.raises(ValueError, match="cannot be written") as caught:
        Journal(tmp_path / "some.journal").append("a", {"": torch.ones(2)})
    one_line(str(caught.value), "some.journal")
    assert (tmp_path / "mine").read_text(encoding="utf-8") == "precious"


# The evaluation.


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    """Two runs on the spiral."""
    out = tmp_path_factory.mktemp("runs")
    words = ("--backbone.width", "16", *TINY_2D[6:])
    for name in ("one", "two"):
        train("toy2d_linear", *words, "--name", name, "--train.seed", "0" if name == "one" else "1", out=out)
    return [out / "one", out / "two"]


class Killed(BaseException):
    """A kill."""


@pytest.fixture
def kill_after(monkeypatch, unchecked) -> Callable[[int], list[Task]]:
    """Evaluations in this process, which are killed when a number of tasks is done; gives the tasks that are."""

    def limit(most: int) -> list[Task]:
        done: list[Task] = []

        def carry_out(plan: Plan, tasks: Sequence[Task], keep: Keep, *where: Any) -> None:
            bench = Evaluator([], plan.extractor.make, 1, "cpu")
            bench.models = {i: (subject.build(), subject.spec) for i, subject in enumerate(plan.subjects)}
            for task in tasks:
                if len(done) == most:
                    raise Killed
                keep(task, bench.run(task, *(plan.rows(span).numpy() for span in task.needs())), 0.0)
                done.append(task)

        monkeypatch.setattr(measure, "carry_out", carry_out)
        return done

    monkeypatch.setattr(measure, "places", lambda actors, device: (1, "cpu"))
    monkeypatch.setattr(Statistics, "_read", lambda self: None)  # the features of the reference are not known
    return limit


def evaluated(runs: list[Path], settings: Settings = SETTINGS, **others: Any) -> Evaluation:
    return measure.evaluate([Weights(run=run) for run in runs], settings, runs[0].parent, **others)


def shown(document: Evaluation) -> str:
    """The table without how long it took."""
    return table(replace(document, seconds=0.0))


def test_a_killed_evaluation_goes_on_and_gives_the_same_table(runs, kill_after, capsys):
    kill_after(TASKS)
    whole = evaluated(runs)
    assert not list(runs[0].parent.glob("*/*.journal"))
    assert "going on" not in capsys.readouterr().out
    for number, done_before in ((5, 0), (TASKS - 5 - 2, 4)):
        kill_after(number)
        with pytest.raises(Killed):
            evaluated(runs)
        said = f"going on: {done_before} of {TASKS} tasks" if done_before else ""
        assert said in capsys.readouterr().out
        journal = max((run / "evaluation.journal" for run in runs), key=lambda file: file.stat().st_mtime_ns)
        os.truncate(journal, journal.stat().st_size - 3)  # killed while it wrote the last one
    done = kill_after(TASKS)
    again = evaluated(runs)
    assert f"going on: {TASKS - 4} of {TASKS} tasks were done before" in capsys.readouterr().out
    assert len(done) == 4
    assert shown(again) == shown(whole)
    assert repr(replace(again, seconds=0.0, shares=())) == repr(replace(whole, seconds=0.0, shares=()))
    assert not list(runs[0].parent.glob("*/*.journal"))


def test_what_is_kept_is_of_these_very_weights_settings_and_data(runs, kill_after, monkeypatch):
    kill_after(TASKS - 1)
    with pytest.raises(Killed):
        evaluated(runs)

    def there(runs: list[Path], settings: Settings = SETTINGS, device: str = "cpu") -> int:
        plan = Plan.of(runs, settings, runs[0].parent)
        tasks = dict.fromkeys(t for kind in measure.MEASUREMENTS for m in kind.asked(plan) for t in m.tasks())
        return len(Kept(plan, tuple(Weights(run=run) for run in runs), device).read(list(tasks))[0])

    assert there(runs) == TASKS - 1
    assert there(runs[::-1]) >= TASKS - 2  # another order of the runs changes neither of them
    assert there(runs[:1]) > 5
    assert there(runs, replace(SETTINGS, nelbo_draws=4)) == TASKS - 1 - 2 * 4
    assert there(runs, replace(SETTINGS, seed=1)) == 0
    assert there(runs, device="cuda") == 0
    monkeypatch.setattr(kept, "identity", lambda run: "another" if run.run == runs[0] else identity(run))
    assert 0 < there(runs) < TASKS / 2 + 2
    for run in runs:
        (run / "evaluation.journal").unlink()


def test_the_table_is_shown_before_pictures_are_drawn(runs, kill_after, monkeypatch):
    kill_after(TASKS)
    seen: list[Evaluation] = []

    def fails(*arguments: Any) -> None:
        assert len(seen) == 1
        assert (runs[1] / "evaluation.json").is_file()
        raise Killed

    for run in runs:
        (run / "evaluation.json").unlink(missing_ok=True)
    monkeypatch.setattr(measure, "save_levels", fails)
    with pytest.raises(Killed):
        evaluated(runs, show=seen.append)
    assert repr(Evaluation.read(runs[0] / "evaluation.json")) == repr(seen[0])
    assert not list(runs[0].parent.glob("*/*.journal"))


def test_a_run_that_cannot_be_written_to_is_refused_before_any_work(runs, monkeypatch, capsys):
    def full(*arguments: Any, dir: Any = None, **options: Any) -> Any:
        if Path(dir) == runs[1]:
            raise OSError(28, "No space left on device")
        return temporary(*arguments, dir=dir, **options)

    from pipelines.storage import outputs

    temporary = outputs.tempfile.TemporaryFile
    monkeypatch.setattr(outputs.tempfile, "TemporaryFile", full)
    for command in ("evaluate", "compare"):
        monkeypatch.setattr(
            f"pipelines.{command}.connect", lambda *_: pytest.fail("a session was started"), raising=False
        )
        assert main_of(command)([*map(str, runs), "--out", str(runs[0].parent)]) == 2
        one_line(capsys.readouterr().err, f"{runs[1]}: cannot be written (No space left on device)")


# Rows.


class Seen(Estimator):
    """What an estimator is given, the sum of each image."""

    kind = "sums"

    def __call__(self, model: Any, x: torch.Tensor, generator: torch.Generator, y: Any = None) -> torch.Tensor:
        return x.flatten(1).sum(1)


@pytest.mark.parametrize(("dtype", "levels"), [("uint8", 256), ("uint16", 4096), ("float32", 0)])
def test_rows_travel_as_they_are_stored_and_are_dequantised_to_the_same_values(dtype, levels):
    rows = (np.random.default_rng(0).random((6, 3, 4, 4)) * (levels or 1)).astype(dtype)
    bench = Evaluator([], raw, 1, "cpu")

    spec = DataSpec(name="", shape=(3, 4, 4), levels=levels, low=-1.0, high=1.0, num_classes=0)
    bench.models = {0: (torch.nn.Identity(), spec)}
    rows.flags.writeable = False
    task = Likelihoods(estimator=Seen(), model=0, images=Span(of="test", first=0, stop=6), seed=7)
    x = dequantise(torch.tensor(rows.astype("float32")), levels, -1.0, 1.0, torch.Generator().manual_seed(7))
    assert torch.equal(bench.run(task, rows), spec.in_unit(x.flatten(1).sum(1)))
    assert not bench.rows(task.images).is_floating_point() or not levels


def test_rows_are_lent_once_for_all_replicates_and_models(monkeypatch):
    """In the stored type, and given up with the last task that needs them."""
    rows = torch.arange(10 * 12, dtype=torch.uint8).reshape(10, 12)

    class Lending:
        names = ("a", "b")

        def rows(self, span: Span) -> torch.Tensor:
            return rows[span.first : span.stop]

    put: list[np.ndarray] = []
    monkeypatch.setattr(loans.ray, "put", lambda values: put.append(values) or len(put))
    spans = [Span(of="test", first=a, stop=min(a + 4, 10)) for a in range(0, 10, 4)]
    tasks = [t for model in (0, 1) for t in PerImage.of(Seen(), model, spans, 8, 0).tasks()]
    work = Work({(i,): task for i, task in enumerate(tasks)}, Lending())
    calls = [work[key] for key in work]
    assert len(calls) == 2 * 8 * 3
    assert (len(put), sum(values.nbytes for values in put)) == (3, rows.numel())
    assert calls[0].arguments[1] == calls[24].arguments[1]
    assert calls[24].name == "b, Likelihoods of test rows 0 to 3"

    for i, task in enumerate(tasks):
        assert len(work.loans.lent) == 3 - (i > 45) - (i > 46)
        work.loans.give_back(task.needs())
    assert not work.loans.lent


def test_samples_are_kept_as_they_were():
    batch = SampleBatch(
        torch.rand(3, 2), torch.zeros(3, 0), torch.ones(3, 1, 2, 2, dtype=torch.uint8), float("nan"), 2.0, 1
    )
    again = SampleBatch.unpack(batch.pack())
    assert all(torch.equal(a, b) for a, b in zip(again[:3], batch[:3], strict=True))
    assert again.shown.dtype == torch.uint8
    assert (np.isnan(again.evaluations), again.seconds, again.diverged) == (True, 2.0, 1)


def test_checkpoints_are_measured_like_runs_and_beside_them(runs, kill_after):
    """The last checkpoint's averaged weights are the finished run's, its raw ones are others."""
    kill_after(10 * TASKS)
    averaged, raw_ones = chosen = [Weights.of(f"{runs[0]}@last{ending}") for ending in ("", ":raw")]
    document = measure.evaluate(chosen, SETTINGS, runs[0].parent)
    assert list(document.runs) == ["one@6", "one@6:raw"]
    assert document.weights == {weights.name: digest(weights) for weights in chosen}
    finished = evaluated(runs[:1]).runs["one"]
    assert repr(document.runs["one@6"].results) == repr(finished.results)
    assert repr(document.runs["one@6:raw"].results) != repr(finished.results)
    for weights, folder in ((averaged, "@6"), (raw_ones, "@6-raw")):
        assert Evaluation.read(runs[0] / folder / "evaluation.json").weights == document.weights
        assert (weights / "samples.png").is_file()
    assert {file.name for file in averaged.checkpoint.iterdir()} == {"state.json", "training.safetensors"}
