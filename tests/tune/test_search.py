"""The search by Ray Tune with trials that only pretend to train: what is stopped, kept, gone on with, and told."""

from __future__ import annotations

import json
import math
import os
import sys
from dataclasses import replace

import pytest
from test_plan import plan_of

from tune.options import Options
from tune.plan import Plan, points
from tune.results import Figure, Outcome

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("default")]
STEPS, RUNGS = 8, (2, 4, 6)


@pytest.fixture(scope="module")
def session():
    import ray
    from ray import cloudpickle

    from pipelines.cluster.session import connect

    kept = dict(os.environ)
    for name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
        os.environ.pop(name, None)
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    connect(1, 1.0)
    yield
    ray.shutdown()
    os.environ.clear()
    os.environ |= kept


def pretend(config: dict, plan: Plan) -> None:
    """A trial whose held-out NELBO is 10 - step/STEPS + its number, and that diverges where its number is 3."""
    from ray import tune

    from tune.results import Figure, Outcome

    index = config["index"]
    with (plan.directory / "begun.txt").open("a") as file:
        file.write(f"{index}\n")
    for step in (2, 4, 6):
        tune.report({"step": step, "held_out": 10 - step / 8 + index})
    outcome = Outcome.read(plan.directory, index)
    if outcome is None:
        state, figures = ("failed", {}) if index == 3 else ("measured", {"nll": Figure(value=5.0 + index, se=0.1)})
        outcome = Outcome(
            index=index, point=dict(config["point"]), run=plan.run_name(index), state=state, step=8, figures=figures
        )
        if index == 4 and not (plan.directory / "mended").exists():
            raise RuntimeError("out of memory")
        outcome.write(plan.directory)
    if outcome.state == "measured":
        tune.report({"step": 8, "held_out": 9.0 + index, "objective": outcome.objective(plan.options.metric)})


def begun(plan: Plan) -> list[int]:
    file = plan.directory / "begun.txt"
    found = [int(line) for line in file.read_text().splitlines()]
    file.unlink()
    return found


def test_what_gives_back_the_workers_of_a_trial_that_is_stopped_finds_its_session(session):
    """Ray Train's cleaner asks the state of its session, by RAY_ADDRESS where several are on a machine."""
    import ray

    told = ray.remote(lambda: os.environ.get("RAY_ADDRESS"))
    assert ray.get(told.remote()) == ray.get_runtime_context().gcs_address


@pytest.mark.slow
def test_a_search_keeps_what_trials_gave_and_goes_on(session, tmp_path, monkeypatch, capsys):
    """One after the other: the first is stopped by nobody, later ones are worse and end at the first rung."""
    from tune import search

    monkeypatch.setattr(search, "carry_out", pretend)
    plan = plan_of(tmp_path, "--validate-every", "2", space="weighting")
    plan.directory.mkdir()
    several = points(plan)
    assert len(several) == 5
    Outcome(
        index=1, point=dict(several[1]), run="sweep-001", state="measured", figures={"nll": Figure(value=1.0)}
    ).write(plan.directory)
    lost = search.search(plan, several, 2)
    assert sorted(begun(plan)) == [0, 2, 3, 4]  # trial 1 was done
    assert list(lost) == ["sweep-004"]
    assert "out of memory" in lost["sweep-004"]
    outcomes = [Outcome.read(plan.directory, i) for i in range(5)]
    assert [outcome and outcome.state for outcome in outcomes] == ["measured", "measured", "measured", "failed", None]
    assert "sweep-002 (weighting k=1): measured, nll 7.0000" in capsys.readouterr().out
    (plan.directory / "mended").touch()
    asha = replace(plan, options=Options(trial_steps=STEPS, scheduler="asha"))
    assert search.search(asha, several, 1) == {}
    assert begun(plan) == [0, 1, 2, 3, 4]  # a scheduler is told of those before
    assert [outcome and outcome.state for outcome in outcomes][:4] == ["measured", "measured", "measured", "failed"]
    stopped = Outcome.read(plan.directory, 4)
    assert stopped is not None
    assert (stopped.state, stopped.step, stopped.reason) == (
        "stopped",
        2,
        "by asha",
    )  # worse than the better half there
    assert "sweep-004 (weighting k=2): stopped at step 2: by asha" in capsys.readouterr().out
    assert search.search(asha, several, 1) == {}
    assert not (plan.directory / "begun.txt").exists()  # all are done


def test_points_are_taken_in_order():
    from tune.search import Searcher, Walk

    walk = Walk({0: {"a": "1"}, 2: {"a": "3"}}, None)
    assert [walk.suggest(str(i)) for i in range(3)] == [
        {"index": 0, "point": {"a": "1"}},
        {"index": 2, "point": {"a": "3"}},
        Searcher.FINISHED,
    ]


def test_optuna_is_named_where_it_is_absent(monkeypatch):
    from tune.search import check_optuna

    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ValueError, match=r"search=optuna: Optuna is not installed; .*\[tune\]"):
        check_optuna()


def test_optuna_suggests_what_was_good_and_its_points_are_kept(tmp_path):
    pytest.importorskip("optuna")
    from tune.search import Advised, known_points

    plan = plan_of(
        tmp_path, space="weighting", fields=("score.lr=log:1e-4..1e-2", "batch_size=int:8..32"), search="optuna"
    )
    plan.directory.mkdir()
    advised = Advised(plan, [])
    for number in range(40):
        index, point = advised.suggest(str(number))
        assert index == number
        plan.space.run(plan.run, point)  # it is a point
        value = (math.log10(float(point["score.lr"])) + 3) ** 2
        advised.optuna.on_trial_complete(str(number), {"objective": value})
        figures = {"nll": Figure(value=value)}
        Outcome(index=index, point=point, run="", state="measured", figures=figures).write(plan.directory)
    assert known_points(plan) == advised.points
    again = Advised(plan, known_points(plan))  # as a new command does
    found = [abs(math.log10(float(again.suggest(f"new {i}")[1]["score.lr"])) + 3) for i in range(10)]
    assert sum(found) / 10 < 0.3  # of a uniform draw 0.5
    assert again.suggest("last")[0] == 50


def test_damaged_points_are_named(tmp_path):
    from tune.search import known_points

    plan = plan_of(tmp_path, space="weighting", search="optuna")
    plan.directory.mkdir()
    assert known_points(plan) == []
    for text in ("{", json.dumps([{"other": "1"}]), "3"):
        (plan.directory / "points.json").write_text(text)
        with pytest.raises(ValueError, match=r"points\.json: no points of a sweep"):
            known_points(plan)


@pytest.mark.parametrize(
    ("row", "share", "own"), [("pc:1000", 0.3, "pc:300"), ("em:10:lam=0", 0.04, "em:1:lam=0"), ("ode", 0.5, "ode")]
)
def test_rows_of_samplers_take_a_share_of_their_steps(row, share, own):
    from tune.trial import in_share

    assert in_share(row, share) == own


def test_machines_that_do_not_see_the_same_are_refused(session, tmp_path, monkeypatch):
    import ray

    from pipelines.cluster import nodes

    (node,) = ray.nodes()
    monkeypatch.setattr(nodes.ray, "nodes", lambda: [node, node])
    nodes.check_nodes(tmp_path)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(nodes, "_read", lambda file: "")
    with pytest.raises(ValueError, match="does not see what is written there"):
        nodes.check_nodes(tmp_path)
    assert not list(tmp_path.iterdir())
