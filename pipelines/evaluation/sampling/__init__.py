"""Samples as a configuration asks for them: as data are (`shown`), of a run (`run`), compared (`rows`, `compare`), carried
over a bridge (`translate`).

One word for each thing: a `Sampling` is a sampler with its options, a `Row` a sampling in a table, `draw_by` draws,
`Drawn` is what it draws.
"""

from __future__ import annotations

from indm_core.draw import Drawn, draw_by, times_of
from indm_core.sampling import sampler_of
from pipelines.evaluation.sampling.shown import Shown, shown

__all__ = ["Drawn", "Shown", "draw_by", "sampler_of", "shown", "times_of"]
