"""Points and tables that densities are made of."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from problems import randn, rng

from indm_core.pis.targets import LGCP, score
from pipelines.config.terminal.cli import override
from pipelines.densities.points import Window, pines, points
from pipelines.densities.tables import breast_cancer, logistic
from pipelines.recipes.densities import find_density


def test_the_pines_fill_a_grid():
    found = pines()
    assert found.shape == (126, 2)
    assert found[0].tolist() == [0.3006125, 0.89297642]
    target = LGCP(found)
    assert (target.dim, float(target.counts.sum())) == (1600, 126)
    assert score(target, 4 + 0.1 * torch.randn(2, 1600, generator=rng())).isfinite().all()


def test_points_are_scaled_by_their_window(tmp_path: Path) -> None:
    file = tmp_path / "points.csv"
    file.write_text("x,y\n10,-1\n15,0\n20,4\n")
    window = Window(left=10, bottom=-1, width=20, height=5)
    assert points(file, window).tolist() == [[0.0, 0.0], [0.25, 0.2], [0.5, 1.0]]
    with pytest.raises(
        ValueError, match=r"\[10.0, -1.0\] is outside the window \[0, 1\] x \[0, 1\]; .* \[10, 20\] x \[-1, 4\]"
    ):
        points(file)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("n,x,y\n1,0.1,0.2\n", "3 columns"),
        ("x,y\n0.1,a\n", "line 2 column y"),
        ("x,y\n", "no rows"),
    ],
)
def test_what_are_no_points_is_refused(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "points.csv"
    file.write_text(text)
    with pytest.raises(ValueError, match=said):
        points(file)
    with pytest.raises(ValueError, match=r"absent\.csv"):
        points(tmp_path / "absent.csv")
    with pytest.raises(ValueError, match="width=0"):
        Window(width=0.0)


def test_breast_cancer_is_standardised():
    target = breast_cancer()
    assert target.dim == 31
    assert target.features.shape == (569, 30)
    torch.testing.assert_close(target.features.mean(0), torch.zeros(30, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(target.features.std(0, correction=0), torch.ones(30, dtype=torch.float64))
    assert int((target.signs > 0).sum()) == 357  # benign
    assert score(target, randn(3, 31)).isfinite().all()


def test_a_table_is_a_regression_on_its_other_columns(tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    file.write_text("a,label,b\n1,0,5\n3,1,7\n5,1,3\n")
    target = logistic(file, "label")
    assert target.dim == 3
    torch.testing.assert_close(target.features[:, 0] * 8**0.5 / 3**0.5, torch.tensor([-2.0, 0, 2]).double())
    torch.testing.assert_close(target.features[:, 1] * 8**0.5 / 3**0.5, torch.tensor([0.0, 2, -2]).double())
    assert target.signs.tolist() == [-1, 1, 1]


@pytest.mark.parametrize(
    ("text", "label", "said"),
    [
        ("a,label\n1,0\n2,1\n", "labl", "no such column; did you mean label"),
        ("label\n0\n1\n", "label", "only column"),
        ("a,label\n1,0\n2,2\n", "label", "has 2 in it"),
        ("a,label\n1,0\n1,1\n", "label", "column a is constant"),
    ],
)
def test_what_is_no_regression_is_refused(tmp_path: Path, text: str, label: str, said: str) -> None:
    file = tmp_path / "table.csv"
    file.write_text(text)
    with pytest.raises(ValueError, match=said):
        logistic(file, label)


def test_a_table_is_read_as_its_options_say(tmp_path: Path) -> None:
    (tmp_path / "plain.csv").write_text("a,label\n1.5,0\n2,1\n0.5,0\n")
    (tmp_path / "other.csv").write_text("a;label\n1,5;0\n2;1\n0,5;0\n")
    (tmp_path / "tabs.tsv").write_text("a\tlabel\n1.5\t0\n2\t1\n0.5\t0\n")
    run = override(find_density("logistic")(), {"target.file": str(tmp_path / "plain.csv")})
    given = {"target.file": str(tmp_path / "other.csv"), "separator": "semicolon", "decimal": "comma"}
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    for other in (override(run, given), override(run, {"target.file": str(tmp_path / "tabs.tsv")})):
        assert torch.equal(other.target.build().log_prob(x), run.target.build().log_prob(x))


def test_a_column_whose_deviation_overflows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("a,label\n1e308,0\n-1e308,1\n0.5,0\n")
    with pytest.raises(ValueError, match="the column a has no standard deviation"):
        logistic(tmp_path / "table.csv", "label")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"none\.csv: no such file; mend the name"):
        logistic(tmp_path / "none.csv", "label")
