"""DiffCollage: content of any size and topology from models of its pieces.

baselines   what collages are compared with: tiles, shifted tiles, resampling, outpainting
graph       factor graphs and counting numbers; `build` makes chains, loops, grids, cubes and any others
score       the score of a canvas: one batched evaluation for each shape of piece
cube        pictures of a canvas on the six faces of a cube
conditions  labels with guidance, and what is known of the canvas: pixels, means of blocks, greys
statistics  what canvases are measured by: random pieces, seams, correlations at a distance
sampling    the sampler that ends in the joint law: a predictor and Langevin steps at each level
"""

from __future__ import annotations

from indm_core.collage.baselines import sample_outpainted, sample_resampled, sample_shifted, tiles
from indm_core.collage.build import chain, corners, cube_map, from_factors, grid, loop
from indm_core.collage.conditions import BlockMeans, Grey, Observation, Pixels, guided, reconstruction, replacement
from indm_core.collage.graph import FactorGraph, Region
from indm_core.collage.sampling import sample_collage
from indm_core.collage.score import Collage, Evaluate, Pieces, collage
from indm_core.collage.statistics import (
    Joints,
    LagCorrelations,
    Neighbours,
    Ratio,
    joints,
    jump_ratio,
    jumps,
    lag_correlations,
    pieces_at,
    random_pieces,
    real_jumps,
)

__all__ = [
    "BlockMeans",
    "Collage",
    "Evaluate",
    "FactorGraph",
    "Grey",
    "Joints",
    "LagCorrelations",
    "Neighbours",
    "Observation",
    "Pieces",
    "Pixels",
    "Ratio",
    "Region",
    "chain",
    "collage",
    "corners",
    "cube_map",
    "from_factors",
    "grid",
    "guided",
    "joints",
    "jump_ratio",
    "jumps",
    "lag_correlations",
    "loop",
    "pieces_at",
    "random_pieces",
    "real_jumps",
    "reconstruction",
    "replacement",
    "sample_collage",
    "sample_outpainted",
    "sample_resampled",
    "sample_shifted",
    "tiles",
]
