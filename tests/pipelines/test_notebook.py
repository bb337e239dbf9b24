"""The notebook of docs/: its cells run from the top to the end, in the order in which they stand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_notebook_runs(monkeypatch, capsys):
    """It is JSON: the cells of code are executed in one namespace, without a kernel."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    document = json.loads((ROOT / "docs" / "library.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in document["cells"] if cell["cell_type"] == "code"]
    assert len(cells) > 5
    backend = pytest.importorskip("matplotlib").rcParams._get("backend")
    pyplot = pytest.importorskip("matplotlib.pyplot")
    space: dict[str, object] = {}
    try:
        pyplot.switch_backend("agg")
        for i, cell in enumerate(cells):
            exec(compile(cell, f"cell {i}", "exec"), space)
        assert [len(pyplot.figure(number).axes) for number in pyplot.get_fignums()] == [3]
    finally:
        pyplot.close("all")
        pyplot.rcParams["backend"] = backend
    said = capsys.readouterr().out
    for word in ("sampler='dies' is none of ode, em, pc, deis", "NLL", "NELBO", "gap", "+-"):
        assert word in said
    assert abs(float(space["nll"].mean())) < 5
