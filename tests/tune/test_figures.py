"""The figure of a sweep: of numbers, words and the linear diffusion, of one dimension and of several."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from PIL import Image

from pipelines.recipes import RECIPES
from tune.figures import draw
from tune.named import read_space
from tune.plan import as_trial
from tune.results import Figure, Outcome, Sweep
from tune.spaces import Point

RUN = as_trial(RECIPES["digits_dinof"](), 600, {"model.flow": "ResFlow"}, ())


def trial(root: Path, index: int, point: Point) -> Outcome:
    """A measured trial, or a stopped one, with a curve; its sampler has failed where its number is 2."""
    run = root / f"sweep-{index:03d}"
    run.mkdir()
    lines = [
        f'{{"step": {step}, "phase": "joint", "validation/nelbo": {4 - step}, "validation/se": 0.1}}' for step in (1, 2)
    ]
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    figures = {
        "nll": Figure(value=2.0 + index, se=0.1),
        "fd": Figure(value=math.nan if index == 2 else 1.0, se=math.nan),
    }
    state = "stopped" if index == 3 else "measured"
    return Outcome(index=index, point=dict(point), run=run.name, state=state, figures={} if index == 3 else figures)


@pytest.mark.parametrize(("words", "rows"), [("t_m", 1), ("weighting", 1), ("pretraining,weighting,t_m", 3)])
def test_every_dimension_has_a_row(tmp_path, words, rows, monkeypatch):
    space = read_space([words], [], RUN)
    points = space.grid()[:6]
    trials = tuple(trial(tmp_path, i, point) for i, point in enumerate(points))
    drawn = []
    monkeypatch.setattr("tune.figures.put", lambda file, save: (drawn.append(save.func.__self__), save(file)))
    draw(
        Sweep(name="sweep", asked={}, metric="nll", unit="bits/dim", trials=trials),
        space,
        tmp_path,
        tmp_path / "sweep.png",
    )
    with Image.open(tmp_path / "sweep.png") as picture:
        assert picture.size[0] == 1650
    panels = drawn[0].axes
    assert len(panels) == 2 * rows + 1
    names = {"pretraining": "pre-training, % of the steps", "weighting": "weighting of the score's loss", "t_m": "T_m"}
    assert [panel.get_xlabel() for panel in panels[0:-1:2]] == [names[word] for word in words.split(",")]
    curves = panels[-1].get_lines()
    assert sum(curve.get_marker() == "." for curve in curves) == len(points)
    assert sum(curve.get_marker() == "x" for curve in curves) == 1  # stopped
    if words == "t_m":
        (level,) = [line for line in panels[0].get_lines() if line.get_linestyle() == "--"]
        assert set(level.get_ydata()) == {2.0}  # the linear diffusion, trial 0
    if words == "weighting":
        assert [label.get_text() for label in panels[0].get_xticklabels()] == ["likelihood", "variance", "k=1", "k=2"]
