"""Samples as a configuration asks for them: drawn (`draw`), of a run (`run`), compared (`rows`, `compare`), carried
over a bridge (`translate`).

One word for each thing: a `Sampling` is a sampler with its options, a `Row` a sampling in a table, `draw_by` draws,
`Drawn` is what it draws.
"""

from __future__ import annotations

from pipelines.evaluation.sampling.draw import Drawn, Shown, check, draw_by, sampler_of, shown, times_of

__all__ = ["Drawn", "Shown", "check", "draw_by", "sampler_of", "shown", "times_of"]
