"""Random fields: their law, and that rows do not depend on how they are asked for."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.data.card import load_card
from pipelines.data.ingest import prepare
from pipelines.data.readers.field import fields, read_field
from pipelines.data.shards import read_all
from pipelines.data.source import Options


def test_their_covariance_is_the_stated_one():
    length, num = 3.0, 4000
    x = fields(num, 4, 9, length, np.random.default_rng(0))
    found = np.einsum("nij,nkl->ijkl", x, x) / num
    i, j = np.arange(4), np.arange(9)
    distance = abs(i[:, None, None, None] - i[:, None]) + abs(j[:, None, None] - j)
    truth = np.exp(-distance / length)
    assert np.abs(found - truth).max() < 5 * np.sqrt(2 / num)


def test_more_fields_begin_with_the_same():
    together = fields(7, 2, 3, 2.0, np.random.default_rng(1))
    generator = np.random.default_rng(1)
    apart = [fields(num, 2, 3, 2.0, generator) for num in (3, 4)]
    assert np.array_equal(together, np.concatenate(apart))


def test_lengths_are_classes_that_take_turns(tmp_path):
    prepare("field:0.5,6:8x8", tmp_path, Options(rows=2000, low=-4.0, high=4.0))
    card = load_card(tmp_path)
    assert (card.num_classes, card.split("test").count) == (2, 400)
    rows = read_all(tmp_path, card, "train", 2000)
    assert np.array_equal(rows["label"], np.arange(2000) % 2)
    x = (rows["x"][:, 0] + 0.5) / 8 - 4
    for label, length in enumerate((0.5, 6.0)):
        mine = x[rows["label"] == label]
        assert np.mean(mine[:, :, 1:] * mine[:, :, :-1]) == pytest.approx(np.exp(-1 / length), abs=0.03)


def test_they_are_prepared_and_read_back(tmp_path):
    prepare("field:2.5:4x6", tmp_path, Options(rows=300, low=-4.0, high=4.0))
    card = load_card(tmp_path)
    assert (card.shape, card.levels, card.split("train").count, card.split("test").count) == ((1, 4, 6), 64, 300, 60)
    x = (read_all(tmp_path, card, "train", 300)["x"] + 0.5) / 8 - 4
    assert abs(x.mean()) < 0.2
    assert x.var() == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize(
    "source",
    ["field:", "field:4", "field:0:3x4", "field:4:0x4", "field:-1:3x4", "field:4:3", "field:4,0:3x4", "field:4,:3x4"],
)
def test_a_name_that_says_no_length_or_size_is_refused(source):
    with pytest.raises(ValueError, match="field:LENGTH:HxW"):
        read_field(source, Options())
