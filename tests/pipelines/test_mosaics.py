"""Mosaics follow their rule exactly, pieces determine the whole, and the statistics of the rule know their own noise."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from indm_core.collage.build import chain, grid
from indm_core.collage.graph import FactorGraph
from pipelines.data.mosaic_rule import LawStatistics, rule_statistics
from pipelines.data.mosaics import STEP, classes_of_mosaics, mosaics, step_law


def drawn(num: int, rows: int, cols: int, num_classes: int, seed: int = 0) -> np.ndarray:
    return classes_of_mosaics(num, rows, cols, num_classes, np.random.default_rng(seed))


def enumerated(rows: int, cols: int, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """All walks: their fields (m, R, C), some of which may be equal, and their probabilities (m,)."""
    fields, p = [], []
    for first, *steps in itertools.product(range(num_classes), *[(0, 1)] * (rows + cols - 2)):
        a = np.cumsum([first, *steps[: rows - 1]])
        b = np.cumsum([0, *steps[rows - 1 :]])
        fields.append((a[:, None] + b[None, :]) % num_classes)
        p.append(math.prod(STEP if step else 1 - STEP for step in steps) / num_classes)
    return np.array(fields), np.array(p)


def numbered(cells: np.ndarray, num_classes: int) -> np.ndarray:
    """Fields (m, cells) as whole numbers of base K."""
    return cells @ num_classes ** np.arange(cells.shape[1])


@pytest.mark.parametrize("lag", [0, 1, 2, 7])
@pytest.mark.parametrize("num_classes", [2, 3, 10])
def test_the_law_of_a_lag_is_binomial_modulo_the_classes(lag, num_classes):
    expected = np.zeros(num_classes)
    for ups in range(lag + 1):
        expected[ups % num_classes] += math.comb(lag, ups) * STEP**ups * (1 - STEP) ** (lag - ups)
    np.testing.assert_allclose(step_law(lag, num_classes), expected, atol=1e-15)


def test_classes_are_uniform_and_steps_follow_their_law():
    num, num_classes = 20_000, 5
    c = drawn(num, 3, 9, num_classes)
    pairs = [(c[:, 0, 0], c[:, 0, lag], step_law(lag, num_classes)) for lag in (1, 2, 4, 8)]
    pairs += [(c[:, 0, 3], c[:, lag, 3], step_law(lag, num_classes)) for lag in (1, 2)]
    pairs += [(0, c[:, i, j], np.full(num_classes, 0.2)) for i, j in ((0, 0), (2, 8), (1, 4))]
    for first, later, law in pairs:
        shares = np.bincount((later - first) % num_classes, minlength=num_classes) / num
        assert (np.abs(shares - law) <= 5 * np.sqrt(law * (1 - law) / num)).all()


def test_all_blocks_close():
    c = drawn(100, 6, 7, 4)
    assert ((c[:, :-1, :-1] + c[:, 1:, 1:] - c[:, :-1, 1:] - c[:, 1:, :-1]) % 4 == 0).all()


def test_steps_are_independent():
    """Of each other, near and far, down and across, and of the first cell."""
    num, num_classes = 20_000, 7
    c = drawn(num, 4, 5, num_classes)
    steps = np.concatenate([np.diff(c[:, 0]) % num_classes, np.diff(c[:, :, 0]) % num_classes], axis=1)
    columns = np.column_stack([steps, c[:, 0, 0] == 0, c[:, 0, 0] == 3])
    correlation = np.corrcoef(columns.T)
    others = ~np.eye(len(correlation), dtype=bool)
    others[-1, -2] = others[-2, -1] = False  # one first cell has one class
    assert np.abs(correlation[others]).max() < 5 / np.sqrt(num)


def test_fields_do_not_depend_on_how_many_are_drawn_at_a_time():
    images = np.arange(40, dtype=np.uint8).reshape(40, 1, 1, 1)
    labels = np.arange(40) % 4
    of_classes, of_images = np.random.default_rng(0), np.random.default_rng(1)
    parts = [classes_of_mosaics(num, 2, 3, 4, of_classes) for num in (1, 4, 6)]
    np.testing.assert_array_equal(np.concatenate(parts), drawn(11, 2, 3, 4))
    x = np.concatenate([mosaics(images, labels, part, of_images) for part in parts])
    np.testing.assert_array_equal(x, mosaics(images, labels, np.concatenate(parts), np.random.default_rng(1)))


@pytest.mark.parametrize(
    ("graph", "num_classes"),
    [
        (chain(2, 2, 1).of_height(1), 3),
        (chain(2, 3, 2).of_height(1), 3),
        (grid(1, 2, 2, 1), 3),
        (grid(2, 2, 2, 1), 3),
        (grid(2, 1, 3, 2), 2),
        (grid(3, 2, 2, 1), 2),
    ],
    ids=["1x3", "1x4-overlap-2", "2x3", "3x3", "4x3-overlap-2", "4x3"],
)
def test_pieces_determine_the_whole(graph: FactorGraph, num_classes: int):
    """The product of the regions' marginals to their counting numbers is the joint law, on each of the K^(RC) fields."""
    rows, cols = graph.shape
    fields, p = enumerated(rows, cols, num_classes)
    cells = fields.reshape(len(fields), -1)
    every = np.arange(num_classes ** (rows * cols))[:, None] // num_classes ** np.arange(rows * cols) % num_classes
    joint = np.bincount(numbered(cells, num_classes), p, num_classes ** (rows * cols))
    product, possible = np.ones(len(every)), np.ones(len(every), bool)
    for region in graph.regions:
        index = region.index.flatten().numpy()
        marginal = np.bincount(numbered(cells[:, index], num_classes), p, num_classes ** len(index))
        q = marginal[numbered(every[:, index], num_classes)]
        possible &= q > 0
        product[possible] *= q[possible] ** region.count
    assert np.isclose(joint.sum(), 1)
    np.testing.assert_allclose(np.where(possible, product, 0), joint, rtol=1e-12, atol=0)


def test_cells_are_images_of_their_classes():
    """Each image of a class is equally likely, and a cell is a whole image at its place."""
    images = np.random.default_rng(0).integers(0, 256, (12, 2, 3, 4)).astype(np.uint8)
    labels = np.array([0, 1, 2, 2, 1, 0, 2, 2, 1, 2, 2, 2])
    c = drawn(3000, 2, 3, 3)
    x = mosaics(images, labels, c, np.random.default_rng(2))
    assert (x.shape, x.dtype) == ((3000, 2, 6, 12), np.uint8)
    cells = x.reshape(3000, 2, 2, 3, 3, 4).transpose(0, 2, 4, 1, 3, 5)
    which = (cells[:, :, :, None] == images).all(axis=(-3, -2, -1))
    assert (which.sum(axis=-1) == 1).all()
    image = which.argmax(axis=-1)
    np.testing.assert_array_equal(labels[image], c)
    counts = np.bincount(labels)
    for index, label in enumerate(labels):
        num, share = (c == label).sum(), 1 / counts[label]
        assert abs((image == index).sum() - num * share) < 5 * np.sqrt(num * share * (1 - share))


@pytest.mark.parametrize(("rows", "cols", "num_classes"), [(1, 6, 3), (2, 5, 4), (3, 3, 2), (4, 2, 5)])
def test_the_noise_of_the_statistics_is_exact(rows, cols, num_classes):
    """The variance of one mosaic's shares over all fields with their probabilities."""
    fields, p = enumerated(rows, cols, num_classes)
    each = [rule_statistics(field[None], num_classes) for field in fields]
    laws = [[*(lag.law for lag in found.lags), found.classes] for found in each]
    for of_field in zip(*laws, strict=True):
        shares, law = np.array([law.observed for law in of_field]), of_field[0]
        mean = p @ shares
        np.testing.assert_allclose(mean, law.truth, atol=1e-14)
        np.testing.assert_allclose(law.noise, np.sqrt(p @ (shares - mean) ** 2), atol=1e-7)


def test_true_mosaics_obey_the_rule():
    num_classes = 10
    found = rule_statistics(drawn(3000, 6, 12, num_classes), num_classes)
    assert [(lag.axis, lag.lag) for lag in found.lags] == [
        *(("row", k) for k in (1, 2, 4, 8)),
        *(("column", k) for k in (1, 2, 4)),
    ]
    assert (found.allowed.value, found.allowed.error, found.allowed.num) == (1, 0, 6 * 11 + 5 * 12)
    assert (found.closed.value, found.closed.error, found.closed.num) == (1, 0, 55)
    for law in [*(lag.law for lag in found.lags), found.classes]:
        assert (np.abs(np.subtract(law.observed, law.truth)) <= 5 * np.array(law.noise)).all()
    assert 0 <= math.log(num_classes) - found.classes.entropy < 1e-4


def test_the_expected_distance_is_the_mean_distance_of_true_mosaics():
    c = drawn(200 * 300, 1, 6, 3).reshape(200, 300, 1, 6)
    each = [[lag.law for lag in rule_statistics(part, 3).lags] for part in c]
    for of_lag in zip(*each, strict=True):
        distances = np.array([law.distance for law in of_lag])
        assert abs(distances.mean() - of_lag[0].expected_distance) < 5 * distances.std() / np.sqrt(len(distances))


def test_independent_classes_are_told_from_the_rule():
    """At the distance of the uniform law, within 5 standard errors over the mosaics."""
    num_classes = 10
    c = np.random.default_rng(0).integers(0, num_classes, (2000, 5, 9))
    found = rule_statistics(c, num_classes)
    for lag in found.lags:
        far = np.abs(1 / num_classes - step_law(lag.lag, num_classes)).sum() / 2
        assert abs(lag.law.distance - far) < 5 * lag.law.error
        assert lag.law.distance > 10 * lag.law.expected_distance or far < 0.2
    assert abs(found.allowed.value - 2 / num_classes) < 5 * found.allowed.error
    assert abs(found.closed.value - 1 / num_classes) < 5 * found.closed.error


def test_entropy_and_distance_in_closed_form():
    law = LawStatistics(observed=(0.5, 0.5, 0.0, 0.0), truth=(0.25,) * 4, noise=(0.1,) * 4, error=0.0)
    assert law.entropy == pytest.approx(math.log(2))
    assert law.distance == pytest.approx(0.5)
    assert law.expected_distance == pytest.approx(0.2 * math.sqrt(2 / math.pi))


def test_what_is_not_there_is_nan():
    found = rule_statistics(np.array([[[1]], [[2]]]), 3)
    assert found.lags == ()
    assert (found.allowed.num, found.closed.num) == (0, 0)
    assert math.isnan(found.closed.value)
    assert math.isnan(found.allowed.error)
    assert math.isnan(rule_statistics(np.array([[[1, 2]]]), 3).lags[0].law.error)


def test_bad_arguments_are_named():
    generator = np.random.default_rng(0)
    with pytest.raises(ValueError, match="lag=-1"):
        step_law(-1, 3)
    with pytest.raises(ValueError, match="cols=0"):
        classes_of_mosaics(1, 1, 0, 3, generator)
    with pytest.raises(ValueError, match="none of the 2 is of class 1"):
        mosaics(np.zeros((2, 1, 1, 1), np.uint8), np.array([0, 2]), np.array([[[0, 1]]]), generator)
    with pytest.raises(ValueError, match="none of the 2 is of class 5"):
        mosaics(np.zeros((2, 1, 1, 1), np.uint8), np.array([0, 2]), np.array([[[0, 5]]]), generator)
    for wrong in (np.zeros((2, 3), int), np.zeros((0, 1, 2), int), np.zeros((1, 1, 2))):
        with pytest.raises(ValueError, match="whole numbers"):
            rule_statistics(wrong, 3)
    with pytest.raises(ValueError, match="0 to 2"):
        rule_statistics(np.array([[[0, 3]]]), 3)
