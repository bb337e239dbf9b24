"""Sets that need no file: their rows are the ones of their source, or drawn from the law that their name stands for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sources import assert_normal, prepared, refused, stored

from pipelines.data.ingest import prepare
from pipelines.data.readers.toy2d import TOY2D
from pipelines.data.source import Options


def test_digits_are_split_and_keep_their_levels(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    card = prepare("digits", tmp_path)
    assert (card.shape, card.levels, card.num_classes, card.kind) == ((1, 8, 8), 17, 10, "image")
    train, test = stored(tmp_path), stored(tmp_path, "test")
    assert (len(train[0]), len(test[0])) == (1438, 359)
    both = np.concatenate([train[0], test[0]]).reshape(-1, 64), np.concatenate([train[1], test[1]])
    found = np.column_stack(both)
    x, label = load_digits(return_X_y=True)
    expected = np.column_stack([x, label]).astype(int)
    np.testing.assert_array_equal(found[np.lexsort(found.T)], expected[np.lexsort(expected.T)])
    assert train[0].max() == 16


@pytest.mark.parametrize("shape", TOY2D)
def test_generated_sets_have_roughly_unit_variance(tmp_path: Path, shape: str) -> None:
    card = prepare(f"toy2d:{shape}", tmp_path, Options(rows=5000))
    assert (card.kind, card.shape, card.levels, card.num_classes) == ("vector", (2,), 0, 0)
    (train, label), (test, _) = stored(tmp_path), stored(tmp_path, "test")
    assert (len(train), len(test)) == (5000, 1000)
    assert (label == -1).all()
    assert 0.5 < train.var(axis=0).mean() < 1.3
    assert np.abs(train.mean(axis=0)).max() < 0.5
    assert not set(map(tuple, test.tolist())) & set(map(tuple, train.tolist()))
    spread = train.std(axis=0)
    assert (np.abs(train.mean(axis=0) - test.mean(axis=0)) < 5 * spread * np.sqrt(1 / 5000 + 1 / 1000)).all()


def test_generated_laws_have_their_closed_form_moments() -> None:
    """E |x|^2 = 2 (and the noise) where the docstring says so, within five standard errors."""
    for shape, noise in (
        ("spiral", 0.03),
        ("eight_gaussians", 0.1),
        ("checkerboard", 0),
        ("rings", 0.03),
        ("sierpinski", 0),
    ):
        square = (TOY2D[shape](100_000, np.random.default_rng(1)) ** 2).sum(axis=1)
        assert abs(square.mean() - 2 - 2 * noise**2) < 5 * square.std() / np.sqrt(len(square)), shape


def test_checkerboard_fills_exactly_the_dark_squares() -> None:
    x = TOY2D["checkerboard"](10_000, np.random.default_rng(0)) * 4 / np.sqrt(12) + 2
    cells = np.floor(x).astype(int)
    assert ((cells.sum(axis=1)) % 2 == 0).all()
    assert len(np.unique(cells, axis=0)) == 8


def test_unknown_generated_set(tmp_path: Path) -> None:
    refused("toy2d:sprial", tmp_path, "toy2d:sprial", "toy2d:spiral")


@pytest.mark.parametrize(("name", "shape"), [("wine", (178, 13)), ("iris", (150, 4)), ("diabetes", (442, 10))])
def test_bundled_tables_are_standardised_by_their_training_rows(tmp_path, name, shape):
    parts = prepared(tmp_path, f"sklearn:{name}")
    assert len(parts["train"]) + len(parts["test"]) == shape[0]
    assert len(parts["test"]) == round(0.2 * shape[0])
    assert parts["train"].shape[1] == shape[1]
    assert_normal(parts["train"])


def test_bundled_tables_have_no_atoms(tmp_path):
    """diabetes holds sex as two values: dequantised it is a density again."""
    x = prepared(tmp_path, "sklearn:diabetes")["train"]
    assert all(len(np.unique(column)) == len(column) for column in x.T)
