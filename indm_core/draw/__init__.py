"""What takes a model: samples (`samples`), grids of times that are fitted to it (`fitted`), the paths of data and samples
through it (`paths`), and canvases that are made of its pieces (`canvas`)."""

from __future__ import annotations

from indm_core.draw.canvas import Canvas, Join, canvas, draw_canvases
from indm_core.draw.fitted import FittedSampling, fit_times
from indm_core.draw.paths import forward_path, generative_path, translate_backward, translate_forward
from indm_core.draw.samples import Drawable, Drawn, check_sampling, draw, draw_by, start_times, times_of
from indm_core.sample import Sampler

__all__ = [
    "Canvas",
    "Drawable",
    "Drawn",
    "FittedSampling",
    "Join",
    "Sampler",
    "canvas",
    "check_sampling",
    "draw",
    "draw_by",
    "draw_canvases",
    "fit_times",
    "forward_path",
    "generative_path",
    "start_times",
    "times_of",
    "translate_backward",
    "translate_forward",
]
