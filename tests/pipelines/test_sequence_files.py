"""Whole numbers that are to be sequences are refused with what helps: their levels, or floats."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.data.readers.arrays import read_numpy
from pipelines.data.source import Options


def test_integers_that_are_no_levels_are_to_be_saved_as_floats(tmp_path):
    file = tmp_path / "sound.npy"
    np.save(file, np.zeros((4, 2, 13), np.int16))
    with pytest.raises(
        ValueError, match="int16 does not say .*; give --levels; or save sequences of other numbers as floats"
    ):
        read_numpy(str(file), Options(as_sequences=True))
    with pytest.raises(ValueError, match="give --levels$"):
        read_numpy(str(file), Options())
