"""Sequences that cannot be are refused with what helps: whole numbers with levels or floats, one position with vectors."""

from __future__ import annotations

import numpy as np
import pytest

from indm_core.sde import VP
from pipelines.config.networks import UNetConfig
from pipelines.data.readers.arrays import read_numpy
from pipelines.data.source import Options


def test_integers_that_are_no_levels_are_to_be_saved_as_floats(tmp_path):
    file = tmp_path / "sound.npy"
    np.save(file, np.zeros((4, 2, 13), np.int16))
    with pytest.raises(
        ValueError, match=r"int16 does not say .*; give --levels; or save sequences of other numbers as floats"
    ):
        read_numpy(str(file), Options(as_sequences=True))
    with pytest.raises(ValueError, match=r"give --levels$"):
        read_numpy(str(file), Options())


@pytest.mark.parametrize("shape", [(2, 1), (1, 1), (1, 8, 1)])
def test_rows_of_one_position_are_for_the_recipe_of_vectors(shape):
    with pytest.raises(ValueError, match=r"a side of one position.*the recipe vectors"):
        UNetConfig(nf=8, ch_mult=(1,), num_res_blocks=1, attention=()).build(shape, VP())
