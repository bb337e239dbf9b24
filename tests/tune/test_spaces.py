"""Spaces: what words, fields and files mean, what is refused, and that a point sets what it says."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from ray_session import one_line

from pipelines.config.flows import IdentityConfig
from pipelines.config.models import INDMConfig
from pipelines.recipes import RECIPES
from tune.named import read_space
from tune.plan import as_trial
from tune.spaces import Choices, Space

INDM = as_trial(RECIPES["digits_vp_nll"](), 600, {}, ())
DINOF = as_trial(RECIPES["digits_dinof"](), 600, {}, ())
DINOF_WITH_FLOW = as_trial(RECIPES["digits_dinof"](), 600, {"model.flow": "ResFlow"}, ())


def space_of(*words: str, fields: tuple[str, ...] = (), run=INDM) -> Space:
    return read_space(words, fields, run)


def runs(space: Space, run=INDM):
    return [space.run(run, point) for point in space.grid()]


def test_a_trial_is_the_recipe_in_its_own_steps():
    assert INDM.train.steps == 600
    assert INDM.model.objective.pretrain_steps == 150  # 300 of 1200
    assert INDM.train.checkpoint_every == INDM.train.validate_every == 75
    assert as_trial(RECIPES["digits_vp_nll"](), 600, {"validate_every": "7"}, ()).train.validate_every == 7
    with pytest.raises(ValueError, match="trial-steps"):
        as_trial(RECIPES["digits_vp_nll"](), 600, {"steps": "3"}, ())


def test_pretraining_is_a_share_of_the_steps():
    found = runs(space_of("pretraining"))
    assert [run.model.objective.pretrain_steps for run in found] == [0, 150, 300, 450]
    assert all(run.train == INDM.train for run in found)


def test_weightings_are_those_of_the_objective():
    found = [(run.model.objective.mode, run.model.objective.soft_truncation) for run in runs(space_of("weighting"))]
    assert found == [("nll", 0.0), ("fid", 0.0), ("nll", 1.0), ("nll", 1.2), ("nll", 2.0)]


def test_t_m_stands_beside_the_linear_diffusion_of_the_same_network():
    linear, *others = runs(space_of("t_m", run=DINOF), DINOF)
    assert [run.model.t_m for run in others] == [i / 10 for i in range(1, 11)]
    assert type(linear.model) is INDMConfig
    assert linear.model.flow == IdentityConfig()
    assert (linear.model.backbone, linear.model.sde, linear.train) == (
        DINOF.model.backbone,
        DINOF.model.sde,
        DINOF.train,
    )


def test_dimensions_multiply():
    space = space_of("pretraining,weighting", fields=("model.t_m=0.3,0.5",), run=DINOF_WITH_FLOW)
    assert len(space.grid()) == 4 * 5 * 2
    run = space.run(DINOF_WITH_FLOW, {"pretraining": "50%", "weighting": "k=1.2", "model.t_m": "0.3"})
    objective = run.model.objective
    assert (objective.pretrain_steps, objective.soft_truncation, run.model.t_m) == (300, 1.2, 0.3)


def test_any_field_is_a_dimension():
    space = space_of(fields=("train.optimisers.flow.lr=1e-3,2e-3", "sde=VP,SubVP", "ema-ramp=true,false"))
    found = runs(space)
    assert Counter(run.train.optimisers["flow"].lr for run in found) == {1e-3: 4, 2e-3: 4}
    assert {type(run.model.sde).__name__ for run in found} == {"VP", "SubVP"}
    assert {run.train.ema_ramp for run in found} == {True, False}


@pytest.mark.parametrize(
    ("values", "low", "high"), [("log:1e-4..1e-2", 1e-4, 1e-2), ("uniform:0.1..1.5", 0.1, 1.5), ("int:3..7", 3, 7)]
)
def test_ranges_are_drawn_between_their_ends(values, low, high):
    (dimension,) = space_of(fields=(f"score.lr={values}",)).dimensions
    drawn = [float(dimension.at(i / 1000)) for i in range(1000)]
    assert min(drawn) == low
    assert (max(drawn) == high) if "int" in values else (0.99 * high < max(drawn) <= high)
    assert [float(text) for text in dimension.ends()] == [low, high]
    middle = math.sqrt(low * high) if "log" in values else (low + high) / 2
    assert float(dimension.at(0.5)) == pytest.approx(middle, rel=1e-5)
    if "int" in values:
        assert set(Counter(drawn).values()) == {200}


def test_random_points_are_functions_of_seed_and_number():
    space = space_of("weighting", fields=("score.lr=log:1e-4..1e-2",))
    points = [space.draw(i, seed=0) for i in range(200)]
    assert points == [space.draw(i, seed=0) for i in range(200)]
    assert points[0] != space.draw(0, seed=1)
    assert len({point["score.lr"] for point in points}) == 200
    assert min(Counter(point["weighting"] for point in points).values()) > 20  # of 40: 5 standard deviations are 28


def test_corners_have_both_ends_and_every_choice():
    corners = space_of("weighting", fields=("score.lr=log:1e-4..1e-2",)).corners()
    assert len(corners) == 10
    assert {point["score.lr"] for point in corners} == {"0.0001", "0.01"}


def test_files_give_spaces(tmp_path):
    python = tmp_path / "mine.py"
    python.write_text(
        "def space():\n    return {'score.lr': 'log:1e-4..1e-2', 'model.objective.mode': ['nll', 'fid']}\n"
    )
    yaml = tmp_path / "mine.yaml"
    yaml.write_text("score.lr: log:1e-4..1e-2\nmodel.objective.mode: [nll, fid]\n")
    assert space_of(f"{python}:space") == space_of(str(yaml))
    assert [d.name for d in space_of(f"weighting,{yaml}").dimensions] == [
        "weighting",
        "score.lr",
        "model.objective.mode",
    ]


def test_yaml_makes_no_objects(tmp_path):
    file = tmp_path / "evil.yaml"
    file.write_text(f"score.lr: !!python/object/apply:os.system ['touch {tmp_path}/ran']\n")
    with pytest.raises(ValueError, match="cannot be read as YAML"):
        space_of(str(file))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("words", "fields", "named"),
    [
        (("pretrainin",), (), "did you mean pretraining"),
        ((), (), "nothing to search"),
        (("t_m",), (), "has no field model.t_m"),
        (("pretraining", "pretraining"), (), "pretraining is searched twice"),
        ((), ("score.lr",), "give FIELD=VALUES"),
        ((), ("score.lr=",), "no point"),
        ((), ("score.lr=0.1,0.1",), "0.1 is given twice"),
        ((), ("score.lr=uniform:2..1",), "no number lies there"),
        ((), ("score.lr=log:0..1",), "positive ends"),
        ((), ("score.lr=log:1e-4",), "LOW..HIGH"),
        ((), ("score.lr=normal:0..1",), "none of uniform, log, int"),
        ((), ("score.lr=uniform:0..inf",), "finite ends"),
        ((), ("batch_size=int:1.5..3",), "whole numbers"),
        (("absent.yaml",), (), "absent.yaml"),
    ],
)
def test_what_is_no_space_is_named(words, fields, named):
    with pytest.raises(ValueError, match=r".") as refused:
        space_of(*words, fields=fields)
    one_line(str(refused.value), named)


@pytest.mark.parametrize(
    ("field", "named"),
    [
        ("model.tm=0.1", "unknown option --model.tm"),
        ("score.lr=abc", "'abc' does not fit (a number)"),
        ("mode=nll,likelihood", "'likelihood' does not fit (one of nll, fid)"),
        ("soft_truncation=0.5", "soft_truncation=0.5 must be at least 1"),
        ("lr=0.1", "--lr is ambiguous"),
    ],
)
def test_fields_and_values_are_those_of_the_recipe(field, named):
    space = space_of(fields=(field,))
    with pytest.raises(ValueError, match=r".") as refused:
        runs(space)
    one_line(str(refused.value), named)


def test_a_range_is_no_grid():
    with pytest.raises(ValueError, match=r"search=grid: score\.lr is a range"):
        space_of(fields=("score.lr=log:1e-4..1e-2",)).grid()
    assert space_of(fields=("score.lr=uniform:0.5..0.5",)).grid() == [{"score.lr": "0.5"}]


def test_labels_tell_choices_apart():
    (dimension,) = space_of("pretraining").dimensions
    assert isinstance(dimension, Choices)
    assert [choice.at for choice in dimension.choices] == [0, 25, 50, 75]
