r"""Canvases: samples of any size and topology from a model of their pieces.

A canvas has the latent u of all its positions, whose score is the collage of the model's (`indm_core.collage`), and the prior
of that many positions at t_start. The model's flow maps the whole canvas to its latent, and h^-1 runs once, at the end: it has
to be the same invertible map at every size (`Flow.size_free`). With h = identity the latent is the canvas itself.

A canvas is drawn by every sampler (`draw_canvases`); `Sampling(sampler="collage")` is the one that ends in the law that the
graph stands for. There is no likelihood: at t > 0 the collage is not the score of a diffusion's marginals.

Beside the collage stand the other ways to join pieces (`Join`), which it is compared with:

    collage          the collage's score
    tiles            pieces side by side, independent of each other
    naive            the piece's score of the whole canvas, as if it were a piece
    shifted          tiles that are moved at random at every step, by steps of DDIM
    replacement      one piece after the other, what is known of it as noised points
    reconstruction   the same, with the gradient of how well E[x | u] agrees with what is known

References: Zhang 2023 (thesis), chapter 4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, final, get_args

import torch
from torch import Tensor

from indm_core.collage.baselines import sample_outpainted, sample_shifted, tiles
from indm_core.collage.conditions import Observation, reconstruction, replacement
from indm_core.collage.graph import FactorGraph, Region
from indm_core.collage.sampling import check_pixelwise
from indm_core.collage.score import Evaluate, collage
from indm_core.draw.samples import Drawn, draw_by
from indm_core.model.base import GenerativeModel
from indm_core.model.labels import labels_of, null_of
from indm_core.noise import Noise
from indm_core.sample import Sampler, Score
from indm_core.sampling import Sampling
from indm_core.sde import LinearSDE
from indm_core.times import uniform_times

__all__ = ["Canvas", "Join", "canvas", "draw_canvases"]

Join = Literal["collage", "tiles", "naive", "shifted", "replacement", "reconstruction"]

Guide = Callable[[Score, LinearSDE, Observation, Tensor], Score]
"""`replacement` or `reconstruction`."""


@final
@dataclass(frozen=True, eq=False)
class Canvas:
    """What is drawn on a graph with a model of its pieces; made by `canvas`.

    Args:
        model: Of a piece.
        graph: How the canvas is made of pieces.
        score: Of the whole canvas; where pieces are joined step by step or one after the other, of a piece.
        shape: Of the canvas, as data: the axes of a piece that the graph does not cut, then the graph's.
        num_classes: Of labels that a whole canvas may be given; 0 where its regions have their own, or the model knows none.
        through: Makes of a sampler of scores one of this canvas.
    """

    model: GenerativeModel
    graph: FactorGraph
    score: Score
    shape: tuple[int, ...]
    num_classes: int
    through: Callable[[Sampler], Sampler]

    @property
    def sde(self) -> LinearSDE:
        return _linear(self.model)

    @property
    def t_start(self) -> float:
        return self.model.t_start

    def state_like(self, num: int, like: Tensor) -> Tensor:
        """Zeros of the shape of `num` states, in the dtype and on the device of `like`."""
        return self.sde.embed(like.new_zeros(num, *self.shape))

    def sample_start(self, like: Tensor, generator: Noise = None, temperature: float = 1.0) -> Tensor:
        return temperature * self.sde.sample_prior(like, generator)

    def encode(self, x: Tensor, generator: Noise = None) -> tuple[Tensor, Tensor]:
        return self.model.encode(x, generator)

    def decode(self, u: Tensor) -> Tensor:
        return self.model.decode(u)

    def times(self, num_steps: int, low: float) -> Tensor:
        """Equally spaced."""
        return uniform_times(self.sde, num_steps, low=low, high=self.t_start)

    def parameters(self) -> Iterator[Tensor]:
        return self.model.parameters()

    def given(self, guide: Guide, observation: Observation, x: Tensor, generator: Noise = None) -> Canvas:
        """The canvas of which something is known: what `observation` sees of the data x (b, *shape), or (1, *shape) for all.

        It is seen in the latent. A flow mixes a position with others near it, so that along the border of what is known it is
        known up to what x says beyond.
        """
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"x: has shape {tuple(x.shape)}, the canvas is (b, {', '.join(map(str, self.shape))})")
        u, _ = self.encode(x, generator)
        observed = observation.measure(self.sde.project(u)).detach()
        return replace(self, score=guide(self.score, self.sde, observation, observed))


def canvas(
    model: GenerativeModel,
    graph: FactorGraph,
    *,
    join: Join = "collage",
    condition: Tensor | None = None,
    guidance: float = 0.0,
    score: Score | None = None,
    evaluate: Evaluate | None = None,
    max_pieces: int = 4096,
) -> Canvas:
    """The canvas of a graph whose factors are pieces as the model was trained on.

    Args:
        model: Of a piece; its diffusion is linear, with noise independent per position.
        graph: Its factors have the model's shape, or its last axes.
        join: How pieces are joined; all but the collage are what it is compared with. Tiles, and shifted ones, are of chains.
        condition: Of a collage: labels (-1: none) or weights over none and the classes, one for each factor, or for each
            region, the factors' first. Variables without have none.
        guidance: w of s(u, y) + w (s(u, y) - s(u, none)), of the regions that have a condition.
        score: What scores pieces in place of the model's own score, for instance on several machines.
        evaluate: Of a collage, what evaluates all its pieces at once in place of one shape after the other.
        max_pieces: The most pieces that are evaluated together.

    Raises:
        ValueError: a model without a collage, factors of another shape, a condition that the model does not know, or a region
            that the network cannot take; the message names the region.
    """
    check_pixelwise(_linear(model))
    model.check_any_size()
    if join not in get_args(Join):
        raise ValueError(f"join={join!r} is none of {', '.join(get_args(Join))}")
    lead = model.shape[: len(model.shape) - len(graph.shape)]
    _check_pieces(model, graph, lead)
    piece = model.score if score is None else score
    whole, through = piece, partial(_joined, join, graph)
    if join in ("collage", "tiles"):
        cut = graph if join == "collage" else tiles(_length(graph, join), model.shape[-1])
        _try_each_shape(model, cut, piece, lead)
        options = {"guidance": guidance, "max_pieces": max_pieces, "evaluate": evaluate}
        if condition is not None:
            condition = labels_of(condition, len(condition), model.num_classes)
            options["null"] = null_of(condition)
        whole = collage(piece, cut, condition, **options)
    elif condition is not None or guidance:
        raise ValueError(
            f"condition, guidance: join={join} takes none for each piece; give a label for the whole canvas"
        )
    num_classes = 0 if condition is not None else model.num_classes
    return Canvas(model, graph, whole, (*lead, *graph.shape), num_classes, through)


def draw_canvases(
    canvas: Canvas,
    seeds: Sequence[int],
    sampling: Sampling,
    label: int | Tensor | None = None,
    guidance: float = 0.0,
    *,
    start: Tensor | None = None,
    strength: float = 1.0,
) -> Drawn:
    """One canvas per seed: it depends on its seed alone. Where its score is that of a piece, evaluations are of pieces.

    Args:
        label, guidance: For whole canvases, see `draw`.
        start, strength: Canvases that are noised and drawn again, see `draw_by`.
    """
    options = {"start": start, "label": label, "guidance": guidance, "strength": strength}
    return draw_by(canvas, seeds, sampling, **options, through=canvas.through)


def _joined(join: Join, graph: FactorGraph, sampler: Sampler) -> Sampler:
    """A sampler of a canvas whose score is that of a piece; of a collage the sampler itself."""
    if join in ("collage", "tiles", "naive"):
        return sampler
    piece = graph.factors[0].index.shape[-1]
    guide: Guide = replacement if join == "replacement" else reconstruction

    def joined(sde: LinearSDE, score: Score, u: Tensor, ts: Tensor, generator: Noise, *labels: Tensor) -> Tensor:
        def of_pieces(u: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
            return score(u, t, *(label.repeat(len(u) // len(label), *[1] * (label.ndim - 1)) for label in labels))

        if join == "shifted":
            _length(graph, join)
            shifts = torch.Generator().manual_seed(0)  # equal for all canvases, which thus know nothing of each other
            return sample_shifted(sde, of_pieces, u, ts, piece=piece, generator=shifts)
        options = {"graph": graph, "guide": guide, "sampler": sampler, "generator": generator}
        return sample_outpainted(sde, of_pieces, u, ts, **options)

    return joined


def _length(graph: FactorGraph, join: str) -> int:
    """Of a canvas that is cut along its last axis alone."""
    if len(graph.shape) != 1:
        raise ValueError(f"join={join}: it is of chains, and this graph cuts {len(graph.shape)} axes; take a chain")
    return graph.shape[0]


def _check_pieces(model: GenerativeModel, graph: FactorGraph, lead: tuple[int, ...]) -> None:
    for factor in graph.factors:
        if (*lead, *factor.index.shape) != tuple(model.shape):
            raise ValueError(
                f"{factor.name}: a piece of shape {(*lead, *factor.index.shape)}, and the model was trained on pieces of "
                f"{tuple(model.shape)}; cut the canvas into such"
            )


def _linear(model: GenerativeModel) -> LinearSDE:
    linear = model.sde.linear
    if linear is None:
        raise ValueError(
            f"{type(model).__name__}: its drift is learned, and noised pieces are then no pieces of a noised canvas; take an "
            "INDM or a linear diffusion"
        )
    return linear


@torch.no_grad()
def _try_each_shape(model: GenerativeModel, graph: FactorGraph, score: Score, lead: tuple[int, ...]) -> None:
    """Scores one region of each shape, so that what a network cannot take is said before any work."""
    first: dict[tuple[int, ...], Region] = {}
    for region in graph.regions:
        first.setdefault(tuple(region.index.shape), region)
    like = next(model.parameters(), torch.zeros(()))
    for shape, region in first.items():
        u = _linear(model).embed(like.new_zeros(1, *lead, *shape))
        t = torch.tensor(model.t_start, dtype=torch.float64, device=like.device)
        try:
            taken = score(u, t).shape == u.shape
            why = "" if taken else "it gives another shape"
        except (ValueError, RuntimeError) as error:
            taken, why = False, str(error)
        if not taken:
            raise ValueError(
                f"{region.name}: the network cannot score a region of shape {(*lead, *shape)} ({why}); take a network of any "
                "size, as the U-Net is, or another overlap"
            )
