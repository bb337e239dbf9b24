"""The plan of a sweep: its points, what is refused before a trial begins, and pre-training that trials share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ray_session import TINY, later_wins, one_line
from safetensors.torch import load_file

from pipelines.config.store import WEIGHTS
from pipelines.config.terminal.cli import split_arguments
from pipelines.recipes import RECIPES
from pipelines.storage.signals import Stop
from pipelines.training.launch import Launch
from pipelines.training.local import train_local
from tune.named import read_space
from tune.options import Options
from tune.plan import Plan, as_trial, check, points
from tune.results import Figure, Outcome, Sweep, best_of, table
from tune.sharing import shared

STEPS = 8


def plan_of(
    root: Path, *words: str, fields: tuple[str, ...] = (), recipe: str = "digits_vp_nll", steps: int = STEPS, **options
) -> Plan:
    _, given = split_arguments(later_wins([recipe, *TINY, *words])[1:])
    given = {name: text for name, text in given.items() if name not in ("steps", "pretrain_steps")}
    if recipe == "digits_dinof":
        given = {name: text for name, text in given.items() if not name.startswith(("blocks", "flow"))}
    run = as_trial(RECIPES[recipe](), steps, given, ())
    names = options.pop("space", "pretraining")
    space = read_space([names] if names else [], fields, run)
    return Plan(name="sweep", run=run, space=space, options=Options(trial_steps=steps, **options), root=root)


def test_a_grid_has_all_points_in_order(tmp_path):
    plan = plan_of(tmp_path, space="pretraining,weighting")
    found = points(plan)
    assert len(found) == 20
    assert found[:2] == [
        {"pretraining": "0%", "weighting": "likelihood"},
        {"pretraining": "0%", "weighting": "variance"},
    ]


def test_points_of_one_training_are_one_trial(tmp_path):
    """The linear diffusion has no pre-training."""
    run = as_trial(RECIPES["digits_dinof"](), STEPS, {"model.flow": "ResFlow"}, ())
    space = read_space(["pretraining,t_m"], [], run)
    plan = Plan(name="sweep", run=run, space=space, options=Options(), root=tmp_path)
    found = points(plan)
    assert len(found) == 4 * 10 + 1
    assert [point for point in found if point["t_m"] == "linear"] == [{"pretraining": "0%", "t_m": "linear"}]


def test_more_random_points_begin_with_the_same(tmp_path):
    fields = ("score.lr=log:1e-4..1e-2",)
    few, many = (points(plan_of(tmp_path, space="", fields=fields, search="random", num_trials=n)) for n in (3, 7))
    assert (len(few), len(many)) == (3, 7)
    assert many[:3] == few
    finite = points(plan_of(tmp_path, space="weighting", search="random", num_trials=50))
    assert sorted(point["weighting"] for point in finite) == ["k=1", "k=1.2", "k=2", "likelihood", "variance"]


@pytest.mark.parametrize(
    ("space", "fields", "recipe", "options", "named"),
    [
        (
            "",
            ("batch_size=16,100000",),
            "digits_vp_nll",
            {},
            ("batch_size 100000", "larger than the 1438 training rows"),
        ),
        ("", ("batch_size=16,15",), "digits_vp_nll", {"workers": 2}, ("batch_size 15", "not divisible by workers=2")),
        (
            "",
            ("actnorm_init=identity,data",),
            "digits_vp_nll",
            {},
            ("actnorm_init data", "does not begin at the identity"),
        ),
        ("pretraining", (), "digits_dinof", {}, ("pretraining 25%", "pretrain_steps=2", "no flow of the data")),
        ("", ("smallest_window=3",), "digits_vp_nll", {}, ("smallest_window",)),
        ("weighting", (), "digits_vp_nll", {"scheduler": "asha"}, ("scheduler=asha", "validate_every=0")),
    ],
)
def test_a_trial_that_is_refused_is_named_before_any_begins(tmp_path, space, fields, recipe, options, named):
    plan = plan_of(tmp_path, space=space, fields=fields, recipe=recipe, **options)
    with pytest.raises(ValueError, match=r".") as refused:
        check(plan, points(plan))
    one_line(str(refused.value), *named)
    assert not list(tmp_path.glob("sweep*"))


def test_another_sweep_is_not_gone_on_with(tmp_path):
    plan = plan_of(tmp_path)
    assert check(plan, points(plan)) == "bits/dim"
    plan.directory.mkdir()
    Sweep(name="sweep", asked=plan.asked(), metric="nll", unit="").write(plan.directory)
    check(plan, points(plan))
    check(replace(plan, options=Options(trial_steps=STEPS, metric="fd", concurrent=3)), points(plan))
    for other in (plan_of(tmp_path, "--flow.lr", "0.5"), plan_of(tmp_path, space="weighting")):
        with pytest.raises(ValueError, match=r"holds a sweep with another (recipe|space)"):
            check(other, points(other))


def test_a_run_is_no_sweep(tmp_path):
    plan = plan_of(tmp_path)
    plan.directory.mkdir()
    (plan.directory / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="holds a run"):
        check(plan, points(plan))


def test_what_is_shared_is_trained_in_stages_to_the_longest(tmp_path):
    plan = plan_of(tmp_path)
    jobs = {i: plan.job(i, point) for i, point in enumerate(points(plan))}
    stages, starts = shared(jobs, "sweep")
    assert [(stage.run.train.steps, stage.directory.name) for stage in stages] == [
        (2, "sweep-pretrained-2"),
        (4, "sweep-pretrained-4"),
        (6, "sweep-pretrained-6"),
    ]
    assert [stage.start_from for stage in stages] == [None, starts[1], starts[2]]
    assert sorted(starts) == [1, 2, 3]
    assert starts[3] == tmp_path / "sweep-pretrained-6" / "checkpoints" / "step-00000006"


@pytest.mark.parametrize(
    ("space", "fields", "groups"),
    [
        ("pretraining,weighting", (), 5),  # the score's loss is another
        ("pretraining", ("flow.lr=1e-3,2e-3",), 1),  # the flow rests
        ("pretraining", ("score.lr=1e-3,2e-3",), 2),
        ("", ("flow.lr=1e-3,2e-3",), 1),
        ("weighting", (), 0),
        ("", ("pretrain_steps=0,2",), 0),
    ],
)
def test_trials_share_what_their_pretraining_depends_on(tmp_path, space, fields, groups):
    plan = plan_of(tmp_path, space=space, fields=fields)
    jobs = {i: plan.job(i, point) for i, point in enumerate(points(plan))}
    stages, starts = shared(jobs, "sweep")
    assert len({stage.directory for stage in stages}) == len(stages)
    assert sum(stage.start_from is None for stage in stages) == groups
    for index, start in starts.items():
        assert int(start.name.removeprefix("step-")) == jobs[index].run.model.objective.pretrain_steps


def test_rates_that_decay_are_not_shared(tmp_path):
    plan = plan_of(tmp_path, "--score.decay", "cosine")
    assert shared({i: plan.job(i, point) for i, point in enumerate(points(plan))}, "sweep") == ([], {})


def test_a_trial_from_shared_steps_is_the_trial_on_its_own_bit_for_bit(tmp_path):
    plan = plan_of(tmp_path)
    jobs = {i: plan.job(i, point) for i, point in enumerate(points(plan))}
    stages, starts = shared(jobs, "sweep")
    branched = replace(jobs[2], start_from=starts[2], directory=tmp_path / "branched")
    train_local([*stages[:2], branched, jobs[2]], Launch(local=True, threads=1), Stop(""))
    own, other = (load_file(run / WEIGHTS) for run in (jobs[2].directory, tmp_path / "branched"))
    assert own.keys() == other.keys()
    assert all(torch.equal(own[name], other[name]) for name in own)
    flow = load_file(stages[1].directory / WEIGHTS)
    assert any(not torch.equal(own[name], flow[name]) for name in own if name.startswith("flow."))  # steps were taken


def outcome(index: int, nll: float, **changed) -> Outcome:
    figures = {"nll": Figure(value=nll, se=0.1), "fd": Figure(value=10 - nll, se=0.5)}
    said = Outcome(
        index=index,
        point={"pretraining": f"{index}%"},
        run=f"sweep-{index:03d}",
        state="measured",
        step=8,
        figures=figures,
    )
    return replace(said, **changed)


def test_outcomes_survive_their_file_and_the_best_is_found(tmp_path):
    several = [outcome(0, 3.0), outcome(1, 2.0), outcome(2, float("nan")), outcome(3, 1.0, state="stopped", figures={})]
    for each in several:
        each.write(tmp_path)
        read = Outcome.read(tmp_path, each.index)
        assert read is not None
        assert repr(read) == repr(each)  # nan is not itself
    assert Outcome.read(tmp_path, 4) is None
    best = {metric: best_of(several, metric) for metric in ("nll", "fd", "nelbo")}
    assert (best["nll"], best["fd"], best["nelbo"]) == (several[1], several[0], None)
    sweep = Sweep(name="sweep", asked={}, metric="nll", unit="bits/dim", trials=tuple(several), best="sweep-001")
    lines = table(sweep).splitlines()
    assert "nll bits/dim" in lines[0]
    assert [line.split()[0] for line in lines[1:]] == ["sweep-000", "sweep-001", "sweep-002", "sweep-003"]
    assert "2.000 +- 0.100" in lines[2]
    assert "sweep-001 *" in lines[2]
    assert "(stopped)" in lines[4]
