"""All is measured at once on one pool: the same figures for any number of actors, also where an estimate stops when it is
precise enough; running figures; and features of the reference that are computed once. Actors are a stand-in for Ray's."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ray_session import TINY_2D, one_line, train

from indm_core.metrics import Moments
from indm_core.sampling import Sampling
from pipelines.cluster import pool as pools
from pipelines.config.weights import Weights
from pipelines.data.card import load_card
from pipelines.evaluation import evaluator, loans, measure, progress
from pipelines.evaluation.evaluator import Evaluator
from pipelines.evaluation.features.statistics import MANIFEST, TENSORS, Statistics
from pipelines.evaluation.loans import Loans
from pipelines.evaluation.measurement import Done, Task
from pipelines.evaluation.measurements.likelihood import NelboResult, NllResult
from pipelines.evaluation.measurements.per_image import Bound, PerImage
from pipelines.evaluation.measurements.real import Features
from pipelines.evaluation.plan import Plan, Span, subjects_of
from pipelines.evaluation.results.document import Evaluation
from pipelines.evaluation.results.estimates import Estimate
from pipelines.evaluation.results.shares import share_lines
from pipelines.evaluation.results.table import table
from pipelines.evaluation.settings import Settings

SETTINGS = Settings(
    images=8,
    nll_replicates=1,
    rtol=1e-1,
    atol=1e-1,
    nelbo_replicates=12,
    nelbo_draws=2,
    baselines=False,
    samples=20,
    sampling=Sampling(sampler="em", steps=2),
    chunk=4,
)

# When an estimate stops.


def spans(num: int, size: int) -> list[Span]:
    return [Span(of="test", first=a, stop=a + size) for a in range(0, num, size)]


def estimated(replicates: int, until_se: float, seed: int = 0) -> tuple[PerImage, dict[Task, torch.Tensor]]:
    """An estimate of 40 images in chunks of 4, and what its tasks would give: normal values."""
    part = PerImage.of(Bound(residual=True, num_draws=2), 0, spans(40, 4), replicates, 0, False, until_se)
    generator = torch.Generator().manual_seed(seed)
    return part, {task: torch.randn(4, generator=generator) for task in part.tasks()}


def test_an_estimate_stops_after_the_first_whole_replicates_that_are_precise_enough():
    part, done = estimated(30, 0.0)
    values = part.values(done)
    errors = {r: Estimate.of(values[:r]).error for r in range(4, 31)}
    limit = sorted(errors.values())[8]
    first = next(r for r, error in errors.items() if error <= limit)
    assert 4 < first < 30
    stopping = replace(part, until_se=limit)
    for more in (first, first + 1, 30):  # what is done beyond does not count
        some = {task: done[task] for tasks in part.replicates[:more] for task in tasks}
        found = stopping.precise(some)
        assert [len(found.replicates), found.values(some).shape] == [first, (first, 40)]
        assert torch.equal(found.values(some), values[:first])
        (running,) = stopping.running(some, "nelbo", "NELBO")  # it ends where the estimate does
        exact = Estimate.of(values[:first])
        assert (running.value, running.se, running.count) == (exact.mean, exact.se, first * 40)
    lacking = {task: outcome for task, outcome in done.items() if task is not part.replicates[first - 1][3]}
    assert stopping.precise(lacking) == stopping  # not known yet
    took = stopping.took(done)
    assert (took.replicates, took.most_replicates, took.draws, took.images) == (first, 30, 2, 40)
    assert f"{first} of 30 replicates ({2 * first} draws) were enough for a standard error of" in str(took)
    never = replace(part, until_se=min(errors.values()) / 2)
    assert never.precise(done) == never
    one_line(str(never.took(done)), "30 of 30 replicates", "not precise enough; allow more replicates")


def test_one_replicate_stops_after_some_of_the_images():
    part, done = estimated(1, 0.0)
    values = part.values(done)
    for c in (4, 8):
        error = Estimate.of(values[:, : 4 * c]).error
        found = replace(part, until_se=error).precise(done)
        assert found.num_images == min(n for n in (16, 32) if Estimate.of(values[:, :n]).error <= error)
    assert "16 of 40 images (2 draws) were enough" in str(replace(part, until_se=10.0).took(done))
    assert replace(part, until_se=1e-9).precise(done).num_images == 40


def test_the_mean_of_what_stops_has_no_bias_beyond_its_error():
    """Of 300 estimates whose true mean is 0, stopped at random lengths; normal, so that mean and error are independent."""
    means, lengths, generator = [], Counter[int](), torch.Generator().manual_seed(0)
    part = PerImage.of(Bound(residual=True, num_draws=2), 0, spans(4, 4), 20, 0, False, 0.13)
    for _ in range(300):
        done: Done = {task: torch.randn(4, generator=generator) for task in part.tasks()}
        found = part.precise(done)
        means.append(float(found.values(done).mean()))
        lengths[len(found.replicates)] += 1
    assert len(lengths) > 8
    each = torch.tensor(means, dtype=torch.float64)
    assert abs(float(each.mean())) < 5 * float(each.std()) / 300**0.5


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"until_se": -1.0}, ("until_se=-1.0 must be finite and not negative", "0 takes all")),
        ({"until_se": 0.1, "nelbo_replicates": 4}, ("nelbo_replicates=4", "--nelbo-replicates 5 or more, or 1")),
        ({"nll_until_se": 0.1, "nll_replicates": 2}, ("nll_replicates=2", "first looked at after 4 replicates")),
    ],
)
def test_what_could_never_stop_is_refused(options, parts):
    with pytest.raises(ValueError, match=r"until_se|replicates") as caught:
        Settings(**options)
    one_line(str(caught.value), *parts)
    assert Settings(until_se=0.1, nll_until_se=0.2).stops_nll == 0.2
    assert Settings(until_se=0.1, nll_until_se=0.2).stops_nelbo == 0.1


# The whole, by actors.


class Box:
    """What lies in the object store."""

    def __init__(self, value: Any) -> None:
        self.value = value


class Ref:
    """What a call gives, when it is asked for."""

    def __init__(self, get: Callable[[], Any]) -> None:
        self.get = get


class Actor:
    """An evaluator from outside, which does a task when its result is asked for."""

    def __init__(self, *arguments: Any) -> None:
        self.owner = Evaluator(*arguments)

    def __getattr__(self, method: str) -> Any:
        def remote(*given: Any) -> Any:
            whole = [each.value if isinstance(each, Box) else each for each in given]
            return Ref(lambda: method == "__ray_ready__" or getattr(self.owner, method)(*whole))

        return SimpleNamespace(remote=remote)


@pytest.fixture
def actors(monkeypatch, unchecked) -> Counter[type]:
    """Actors in this process, whose tasks end in an order drawn by chance; how often a task of each class was done."""
    chance, done = random.Random(0), Counter[type]()

    def wait(refs: list[Any]) -> tuple[list[Any], list[Any]]:
        return [refs[chance.randrange(len(refs))]], []

    def timed(self: Evaluator, task: Task, *rows: Any) -> Any:
        done[type(task)] += 1
        return run(self, task, *rows)

    run = Evaluator.timed
    monkeypatch.setattr(Evaluator, "timed", timed)
    here = SimpleNamespace(
        cluster_resources=lambda: {"CPU": 8.0},
        remote=lambda num_cpus, num_gpus, scheduling_strategy: lambda owner: SimpleNamespace(remote=Actor),
        wait=wait,
        get=lambda ref: ref.value if isinstance(ref, Box) else ref.get(),
        put=Box,
        kill=lambda actor: None,
    )
    for module in (pools, measure, loans, evaluator):
        monkeypatch.setattr(module, "ray", here)
    monkeypatch.setattr(measure, "save_levels", lambda *arguments: None)
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    monkeypatch.setattr(progress, "LONGEST_SHARE", 1e9)
    return done


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run on points."""
    out = tmp_path_factory.mktemp("runs")
    train("toy2d_linear", "--backbone.width", "16", *TINY_2D[6:], out=out)
    return out / "toy2d_linear"


def evaluated(run: Path, settings: Settings) -> Evaluation:
    return measure.evaluate([Weights(run=run)], settings, run.parent)


def test_figures_are_the_same_for_any_number_of_actors_and_stop_at_the_same_place(run, actors, capsys):
    all_of_it = evaluated(run, replace(SETTINGS, actors=1))
    whole, drawn = all_of_it.runs[run.name].of(NelboResult), sum(actors.values())
    settings = replace(SETTINGS, nelbo_until_se=1.2 * whole.after.se)
    capsys.readouterr()
    found, shown, spent = [], [], []
    for num in (1, 3):
        actors.clear()
        found.append(evaluated(run, replace(settings, actors=num)))
        shown.append(capsys.readouterr().out)
        spent.append(sum(actors.values()))
    results = [repr(replace(each.runs[run.name], parameters=0)) for each in found]
    assert len(set(results)) == 1
    took = found[0].runs[run.name].of(NelboResult).took[0]
    assert 4 <= took.replicates < 12
    assert took.se <= took.until_se
    assert spent[0] < drawn - 1  # one actor does nothing beyond
    assert f"NELBO: {took.replicates} of 12 replicates ({2 * took.replicates} draws) were enough" in table(found[0])
    assert "x1; NELBO: 2 draws, until its error is" in table(found[0])
    assert found[0].runs[run.name].of(NllResult).took == ()
    assert found[0].runs[run.name].of(NllResult) == all_of_it.runs[run.name].of(NllResult)
    lines = [line for line in shown[0].splitlines() if line.startswith("evaluating: ")]
    assert len(lines) == spent[0]
    for part in (f"{spent[0]}/{spent[0]} tasks", f"{run.name}: NLL ", "NELBO ", "FD ", "(20 samples)", "(8 images)"):
        assert part in lines[-1]
    of_all = {share.kind: share.tasks for share in found[0].shares}
    assert of_all == {"NLL": 2, "NELBO": spent[0] - 3, "samples": 1}
    assert "time of actors: " in share_lines(found[0].shares, 1.0)
    assert repr(Evaluation.read(run / "evaluation.json").shares) == repr(all_of_it.shares)


def test_where_images_may_be_left_out_they_come_in_an_order_of_the_seed(run):
    def rows(settings: Settings) -> torch.Tensor:
        return Plan(
            names=(run.name,), subjects=tuple(subjects_of([Weights(run=run)])), settings=settings, root=run.parent
        ).test

    in_file = rows(SETTINGS)
    one, other = (rows(replace(SETTINGS, until_se=0.1, seed=seed)) for seed in (0, 1))
    assert not torch.equal(one, in_file)
    assert not torch.equal(one, other)
    assert torch.equal(one.sort(0).values, in_file.sort(0).values)
    assert torch.equal(rows(replace(SETTINGS, nelbo_until_se=0.1)), in_file)


# The reference.


def test_a_second_evaluation_does_not_compute_the_features_of_the_reference(run, actors, capsys):
    for place in (run.parent / "features").glob("reference-*"):
        (place / TENSORS).unlink()
    settings = replace(SETTINGS, nelbo_replicates=1)
    first = evaluated(run, settings)
    assert "damaged" in capsys.readouterr().out
    assert actors[Features] == 1
    second = evaluated(run, settings)
    assert actors[Features] == 1
    assert repr(first.runs) == repr(second.runs)
    assert repr(first.runs) == repr(evaluated(run, replace(settings, seed=0)).runs)


def test_kept_features_are_those_that_were_put_and_damage_is_told(run, tmp_path, capsys):
    card = load_card(next((run.parent / "data").glob("*/")))
    of = {"extractor": "abc", "rows": 50, "seed": 0}
    features = torch.randn(50, 3)
    put = Statistics(tmp_path, card, **of).put(features)
    again = Statistics(tmp_path, card, **of).found
    assert torch.equal(again.features, features)
    assert torch.equal(again.moments.mean, put.moments.mean)
    torch.testing.assert_close(again.moments.cov, Moments().update(features).cov, rtol=1e-12, atol=1e-15)
    for other in ({"extractor": "abd"}, {"rows": 51}, {"seed": 1}):
        assert Statistics(tmp_path, card, **(of | other)).found is None
    assert Statistics(tmp_path, replace(card, splits={"train": card.splits["test"]}), **of).found is None
    (home,) = tmp_path.iterdir()
    content = bytearray((home / TENSORS).read_bytes())
    content[-5] ^= 1
    (home / TENSORS).write_bytes(content)
    capsys.readouterr()
    assert Statistics(tmp_path, card, **of).found is None
    one_line(capsys.readouterr().out.rstrip("\n"), str(home), "damaged", "SHA-256", "are computed again")
    Statistics(tmp_path, card, **of).put(features)
    assert torch.equal(Statistics(tmp_path, card, **of).found.features, features)
    (home / MANIFEST).write_text("{", encoding="utf-8")
    assert Statistics(tmp_path, card, **of).found is None


# Rows.


def test_rows_that_no_task_at_work_needs_are_bounded(monkeypatch):
    """Ten spans of 4 x 100 bytes, each needed by two replicates, one task at work and 1,000 bytes spare."""
    rows = torch.zeros(40, 100, dtype=torch.uint8)
    monkeypatch.setattr(loans, "ray", SimpleNamespace(put=Box))
    monkeypatch.setattr(loans, "SPARE_BYTES", 1000)
    each = spans(40, 4)
    lent = Loans(SimpleNamespace(rows=lambda span: rows[span.first : span.stop]), Counter(dict.fromkeys(each, 2)))
    for span in (*each, *each):
        lent.lend((span,))
        assert len(lent.lent) <= 1 + 2
        lent.give_back((span,))
        assert len(lent.lent) <= 2
    assert not lent.lent


def test_rows_leave_with_their_tasks_whether_these_begin_again_or_are_dropped(monkeypatch):
    rows = torch.zeros(8, 100, dtype=torch.uint8)
    monkeypatch.setattr(loans, "ray", SimpleNamespace(put=Box))
    first, second = spans(8, 4)
    lent = Loans(SimpleNamespace(rows=lambda span: rows[span.first : span.stop]), Counter({first: 1, second: 2}))
    lent.lend((first,))
    lent.give_back((first,), done=False)  # its actor was lost
    assert lent.lend((first,))
    assert (lent.at_work[first], lent.left[first]) == (1, 1)
    lent.give_back((first,))
    assert first not in lent.lent
    lent.lend((second,))
    lent.forget((second,))  # the other one that needs it is dropped
    assert second in lent.lent
    lent.give_back((second,))
    assert not lent.lent


def test_a_series_gets_a_figure_when_there_is_more_of_it(run, actors, monkeypatch):
    """Steps are images, samples and so on; nothing is added where nothing came."""
    added: list[tuple[str, int]] = []

    class Noting:
        def add(self, figures: dict[str, float], step: int) -> None:
            added.append((next(iter(figures)), step))

    monkeypatch.setattr(measure, "streaming", lambda runs, root: nullcontext([Noting()]))
    evaluated(run, replace(SETTINGS, nelbo_replicates=2, samples=0))
    assert len(set(added)) == len(added)
    of = {name: [step for other, step in added if other == name] for name in ("nll", "nelbo")}
    assert of["nll"] == [4, 8]
    assert of["nelbo"][-1] == 16
