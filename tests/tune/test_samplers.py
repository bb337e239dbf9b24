"""Sweeps over samplers: rows of points, what is refused, outcomes that are kept, and, slow, one with real samples."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from ray_session import ROOT, TINY_2D, environment, main_of, one_line, run_script, train

from indm_core.sampling import Sampling
from pipelines.config.weights import Weights
from pipelines.evaluation.features.reference import Reference
from pipelines.evaluation.measurements.distances import Compared, DistancesResult, KernelResult
from pipelines.evaluation.results.estimates import FrechetResult
from pipelines.evaluation.sampling.comparison import Comparison, RowResult
from pipelines.evaluation.sampling.rows import Row, parse_row, row_at
from pipelines.storage.signals import Stop
from tune.points import points
from tune.results import Outcome, Sweep
from tune.sampling.options import SamplerOptions
from tune.sampling.plan import SamplerPlan, check, space_of

REFERENCE = Reference(data="d", size=3, features="f")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """An output directory with a run and its checkpoints."""
    root = tmp_path_factory.mktemp("samplers")
    train("toy2d_spiral", *TINY_2D, out=root)
    return root


def plan_of(
    root: Path, *fields: str, runs: Sequence[str] = ("toy2d_spiral",), name: str = "sweep", **options
) -> SamplerPlan:
    several = tuple(Weights.named(run, root) for run in runs)
    wanted = SamplerOptions(**{"row": "pc:4", "num_samples": 20, **options})
    return SamplerPlan(name=name, runs=several, space=space_of([], fields, several), options=wanted, root=root)


def test_a_point_takes_the_place_of_options_of_its_row():
    row = row_at("pc:100:snr=0.1", {"snr": "0.2", "temperature": "0.9"})
    assert row.sampling == Sampling(sampler="pc", steps=100, snr=0.2, temperature=0.9)
    assert parse_row(row.text) == row
    assert row_at("deis:100", {"nfe": "10"}).sampling == Sampling(sampler="deis", nfe=10)
    assert row_at("deis:nfe=5", {"steps": "7", "sampler": "em"}).sampling == Sampling(sampler="em", steps=7)
    begun = row_at("em:10", {"start": "data", "strength": "0.5", "stop": "1e-3", "denoise": "false"})
    assert (begun.start, begun.strength, begun.sampling.stop, begun.sampling.denoise) == ("data", 0.5, 1e-3, False)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        (("snr=0.1,-1",), ("snr -1", "must be positive")),
        (("snrr=0.1",), ("unknown option --snrr", "snr")),
        (("lam=0,1",), ("lam 0", "sampler=pc does not read it")),
        (("strength=0.5,1",), ("strength 0.5", "give start=data")),
        (("strength=0,1", "start=data"), ("must lie in (0, 1]",)),
        (("method=rho-AB", "sampler=deis", "grid=trained,log-rho", "stop=2"), ("stop=2",)),
    ],
)
def test_a_point_that_is_refused_is_named_before_any_is_drawn(root, fields, named):
    plan = plan_of(root, *fields)
    with pytest.raises(ValueError, match=r".") as refused:
        check(plan, points(plan, plan.trial))
    one_line(str(refused.value), *named)
    assert not plan.directory.exists()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("sampler",), "of which run"),
        (("sampler", "absent", "--space", "snr=0.1"), "absent"),
        (("sampler", "toy2d_spiral"), "nothing to search"),
        (("sampler", "toy2d_spiral", "--space", "snr=log:1e-4..1e-2", "--row", "pc:3"), "snr is a range"),
        (("sampler", "toy2d_spiral", "--space", "snr=0.1", "--num-trials", "3"), "a grid has all its points"),
        (("sampler", "toy2d_spiral", "--space", "snr=0.1", "--name", "toy2d_spiral", "--row", "pc:3"), "holds a run"),
        (("sampler", "toy2d_spiral", "--space", "snr=0.1", "--row", "xx"), "xx"),
        (("sampler", "toy2d_spiral", "--space", "snr=0.1", "--num-samples", "2"), "num_samples=2"),
    ],
)
def test_what_cannot_be_is_refused_at_once(root, words, named, capsys):
    assert main_of("sweep")([*words, "--out", str(root)]) == 2
    one_line(capsys.readouterr().err, "error: ", named)


def test_runs_are_a_dimension_and_equal_rows_one_trial(root):
    plan = plan_of(root, "steps=4,4.0", "start=prior,data", runs=("toy2d_spiral", "toy2d_spiral@2"))
    found = points(plan, plan.trial)
    assert [point["run"] for point in found] == ["toy2d_spiral"] * 4 + ["toy2d_spiral@2"] * 4
    assert plan.run_of(found[-1]).step == 2
    check(plan, found)
    drawn = points(plan_of(root, "snr=uniform:0.05..0.3", search="random", num_trials=3), lambda point: point["snr"])
    assert len({point["snr"] for point in drawn}) == 3


def faked(drawn: list[str]):
    """In place of drawing: the distance is (snr - 0.2)^2, and nan where the temperature is 2."""

    def rows(runs, rows, wanted, root):
        results = {}
        for row in rows("", None):
            drawn.append(row.text)
            value = math.nan if row.sampling.temperature == 2 else (row.sampling.snr - 0.2) ** 2
            frechet = FrechetResult(value=value, se=0.01, n=20)
            kernel = KernelResult(value=-value, se=0.1, n=20)
            result = DistancesResult(
                distances=Compared(frechet=frechet, kernel=kernel),
                reference=REFERENCE,
                sampling=row.sampling,
                evaluations=8.0,
            )
            results[Drawing(row)] = RowResult(row=row.text, seconds=1.0, result=result)
        return Results(results)

    return rows


class Drawing:
    def __init__(self, row: Row) -> None:
        self.row = row


class Results:
    def __init__(self, results: dict[Drawing, RowResult]) -> None:
        self.results = results


@pytest.fixture
def drawn(monkeypatch) -> list[str]:
    """The rows that were drawn; without Ray and MLflow."""
    from tune.sampling import conduct

    said: list[str] = []
    monkeypatch.setattr(conduct, "measured_rows", faked(said))
    monkeypatch.setattr(conduct, "connect", lambda workers, cpus: "this process")
    for name in ("check_nodes", "open_group", "close_group", "log_members"):
        monkeypatch.setattr(conduct, name, lambda *given: "")
    return said


def test_outcomes_are_kept_and_the_same_sweep_goes_on(root, drawn, capsys):
    from tune.sampling.conduct import conduct

    plan = plan_of(root, "snr=0.1,0.2", "temperature=1,2", name="grid")
    first = Outcome(index=0, point=points(plan, plan.trial)[0], run="grid-000", state="failed")
    first.write(plan.directory)
    assert conduct(plan, Stop("")) == 0
    assert len(drawn) == 3
    found = Sweep.read(plan.directory)
    assert found is not None
    assert [outcome.state for outcome in found.trials] == ["failed", "failed", "measured", "failed"]
    assert found.best == "grid-002"
    assert found.trials[2].figures["evaluations"].value == 8.0
    said = capsys.readouterr().out
    assert "1 done before" in said
    assert "pc:steps=4,snr=0.2,temperature=1 of toy2d_spiral" in said
    assert (plan.directory / "sweep.png").is_file()
    head = next(line for line in said.splitlines() if line.startswith("trial"))
    assert head.split() == ["trial", "snr", "temperature", "fd", "kernel", "evaluations", "s"]
    assert conduct(replace(plan, options=replace(plan.options, metric="kernel")), Stop("")) == 0
    assert len(drawn) == 3
    other = replace(plan, options=replace(plan.options, num_samples=30))
    with pytest.raises(ValueError, match="holds a sweep with another num_samples"):
        conduct(other, Stop(""))


def test_a_trial_that_fails_is_an_outcome_and_the_others_are_measured(root, drawn, monkeypatch):
    from tune.sampling import conduct

    whole = conduct.measured_rows

    def failing(runs, rows, wanted, place):
        if any("snr=0.2" in row.text for row in rows("", None)):
            raise ValueError("row pc:snr=0.2: the ODE needs more than 10000 evaluations")
        return whole(runs, rows, wanted, place)

    monkeypatch.setattr(conduct, "measured_rows", failing)
    plan = plan_of(root, "snr=0.1,0.2,0.3", name="one-fails")
    assert conduct.conduct(plan, Stop("")) == 0
    found = Sweep.read(plan.directory)
    assert found is not None
    assert found.trials[1].state == "failed"
    assert "more than 10000 evaluations" in found.trials[1].reason
    assert len(drawn) == 2, "the others are measured"


@pytest.mark.filterwarnings("default")
def test_optuna_suggests_and_learns(root, drawn, capsys):
    from tune.sampling.conduct import conduct

    plan = plan_of(root, "snr=uniform:0.05..0.5", name="advised", search="optuna", num_trials=3)
    assert conduct(plan, Stop("")) == 0
    assert len(drawn) == 3
    more = replace(plan, options=replace(plan.options, num_trials=5))
    assert conduct(more, Stop("")) == 0
    assert len(drawn) == 5
    found = Sweep.read(plan.directory)
    assert found is not None
    distances = {outcome.run: outcome.figures["fd"].value for outcome in found.trials}
    assert len(distances) == 5
    assert found.best == min(distances, key=distances.__getitem__)


@pytest.mark.slow
@pytest.mark.ray
def test_samples_are_those_of_compare(root):
    """The same rows have the same distances, and what one command has drawn the other does not draw again."""
    drawing = ["--out", str(root), "--num-samples", "20", "--actors", "1"]
    space = ["--row", "pc:4", "--space", "snr=0.1,0.2", "--space", "start=prior,data", "--name", "s"]
    words = [sys.executable, str(ROOT / "tune" / "sweep.py"), "sampler", "toy2d_spiral", *space, *drawing]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found = Sweep.read(root / "s")
    assert found is not None
    compared = run_script("compare", "toy2d_spiral", "--rows", "pc:steps=4,snr=0.2,start=prior", *drawing, timeout=600)
    assert "1 of 1 pieces are there already" in compared.stdout, compared.stderr
    (row,) = Comparison.read(root / "toy2d_spiral" / "compare.json").runs["toy2d_spiral"]
    assert row.result.distances.frechet.value == found.trials[2].figures["fd"].value
