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

The last three have no score of the whole canvas: their last state is the sample, without Tweedie's mean.

References: Zhang 2023 (thesis), chapter 4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, final, get_args

import torch
from torch import Tensor

from indm_core.collage.baselines import sample_outpainted, sample_shifted, tiles
from indm_core.collage.conditions import Observation, reconstruction, replacement
from indm_core.collage.graph import FactorGraph, Region
from indm_core.collage.sampling import check_pixelwise
from indm_core.collage.score import Evaluate, collage
from indm_core.draw.samples import Drawn, check_sampling, draw_by
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
        join: How these are joined.
        score: Of the whole canvas; where pieces are joined step by step or one after the other, of a piece.
        shape: Of the canvas, as data: the axes of a piece that the graph does not cut, then the graph's.
        num_classes: Of labels that a whole canvas may be given; 0 where its regions have their own, or the model knows none.
        guidance: With which its regions are led to their own labels.
        max_pieces: The most pieces that are evaluated together.
        each_its_own: Whether the score is told something of each canvas of a batch, which must then stay together.
    """

    model: GenerativeModel
    graph: FactorGraph
    join: Join
    score: Score
    shape: tuple[int, ...]
    num_classes: int
    guidance: float = 0.0
    max_pieces: int = 4096
    each_its_own: bool = False

    @property
    def of_pieces(self) -> bool:
        """Whether the score is that of a piece, and the canvas joined step by step or one piece after the other."""
        return self.join in ("shifted", "replacement", "reconstruction")

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
        """Raises: ValueError: x of another shape than the canvas."""
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"x: has shape {tuple(x.shape)}, the canvas is (b, {', '.join(map(str, self.shape))})")
        return self.model.encode(x, generator)

    def decode(self, u: Tensor) -> Tensor:
        return self.model.decode(u)

    def times(self, num_steps: int, low: float) -> Tensor:
        """Equally spaced."""
        return uniform_times(self.sde, num_steps, low=low, high=self.t_start)

    def parameters(self) -> Iterator[Tensor]:
        return self.model.parameters()

    def given(self, guide: Guide, observation: Observation, x: Tensor) -> Canvas:
        """The canvas of which something is known: what `observation` sees of the data x (b, *shape), or (1, *shape) for all.

        It is seen in the latent. A flow mixes a position with others near it, so that along the border of what is known it is
        known up to what x says beyond.

        Raises:
            ValueError: x of another shape, or pieces that are joined in a way that knows no whole canvas.
        """
        if self.of_pieces:
            raise ValueError(f"join={self.join}: it has no score of the whole canvas; take the collage, tiles or naive")
        u, _ = self.encode(x)
        observed = observation.measure(self.sde.project(u)).detach()
        each_its_own = self.each_its_own or len(x) > 1
        return replace(self, score=guide(self.score, self.sde, observation, observed), each_its_own=each_its_own)

    def check(self, sampling: Sampling) -> None:
        """Refuses a sampler that this canvas cannot be drawn by.

        Raises:
            ValueError: one that the model does not allow, that takes canvases out of their batch, or that is not used.
        """
        if sampling.sampler == "auto" or sampling.grid == "fitted":
            raise ValueError(
                f"sampler={sampling}: auto and fitted grids are of a model's own samples; canvases take collage"
            )
        check_sampling(self, sampling)
        ddim = sampling.sampler == "deis" and sampling.order == 0 and sampling.lam <= 0 and not sampling.churn
        if self.join == "shifted" and not ddim:
            raise ValueError(f"sampler={sampling}: join=shifted takes steps of DDIM; give deis with order=0")
        if sampling.sampler == "ode" and (self.each_its_own or self.join in ("replacement", "reconstruction")):
            raise ValueError(
                "sampler=ode: it takes canvases out of their batch as they are done, and here each knows something of its own; "
                "take deis, em or collage"
            )

    def through(self, sampler: Sampler) -> Sampler:
        """A sampler of this canvas, made of one of scores."""
        if not self.of_pieces:
            return sampler

        def joined(sde: LinearSDE, score: Score, u: Tensor, ts: Tensor, generator: Noise, *labels: Tensor) -> Tensor:
            if self.join == "shifted":
                # equal for all canvases, which thus know nothing of each other
                shifts = torch.Generator().manual_seed(0)
                y, piece = next(iter(labels), None), self.model.shape[-1]
                options = {"piece": piece, "y": y, "max_pieces": self.max_pieces, "generator": shifts}
                return sample_shifted(sde, score, u, ts, **options)
            guide: Guide = replacement if self.join == "replacement" else reconstruction
            options = {"graph": self.graph, "guide": guide, "sampler": sampler, "generator": generator}
            return sample_outpainted(sde, lambda u, t, y=None: score(u, t, *labels), u, ts, **options)

        return joined


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
    shape = (*lead, *graph.shape)
    _try_flow(model, shape)
    piece = whole = model.score if score is None else score
    cut = tiles(_length(graph, join), model.shape[-1]) if join in ("tiles", "shifted") else graph
    if join == "naive":
        _try(model, piece, shape, "the canvas")
    else:
        _try_each_shape(model, cut, piece, lead)
    if join in ("collage", "tiles"):
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
    options = {"num_classes": num_classes, "guidance": guidance, "max_pieces": max_pieces}
    return Canvas(model, graph, join, whole, shape, **options)


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

    Raises:
        ValueError: a sampler that the canvas cannot be drawn by, a label beside those of its regions, or what `draw` refuses.
    """
    canvas.check(sampling)
    if label is not None and canvas.model.num_classes and not canvas.num_classes:
        raise ValueError("label: this canvas has a condition for each region; give one or the other")
    overlapping = _most_covered(canvas.graph)
    sampling = sampling.led(canvas.guidance, overlapping)
    if canvas.of_pieces:
        sampling = replace(sampling, denoise=False)
    options = {"start": start, "label": label, "guidance": guidance, "strength": strength}
    drawn = draw_by(canvas, seeds, sampling, **options, through=canvas.through, num_overlapping=overlapping)
    return Drawn(drawn.x, (2 if canvas.guidance else 1) * drawn.evaluations)


def _most_covered(graph: FactorGraph) -> int:
    """The most factors that cover a position."""
    return int(torch.cat([factor.index.flatten() for factor in graph.factors]).bincount().max())


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


def _try_each_shape(model: GenerativeModel, graph: FactorGraph, score: Score, lead: tuple[int, ...]) -> None:
    """Scores one region of each shape, so that what a network cannot take is said before any work."""
    first: dict[tuple[int, ...], Region] = {}
    for region in graph.regions:
        first.setdefault(tuple(region.index.shape), region)
    for shape, region in first.items():
        _try(model, score, (*lead, *shape), region.name)


@torch.no_grad()
def _try(model: GenerativeModel, score: Score, shape: tuple[int, ...], name: str) -> None:
    like = next(model.parameters(), torch.zeros(()))
    u = _linear(model).embed(like.new_zeros(1, *shape))
    t = torch.tensor(model.t_start, dtype=torch.float64, device=like.device)
    try:
        why = "" if score(u, t).shape == u.shape else "it gives another shape"
    except (ValueError, RuntimeError) as error:
        why = str(error)
    if why:
        raise ValueError(
            f"{name}: the network cannot score a region of shape {shape} ({why}); take a network of any size, as the U-Net is, "
            "or another overlap"
        )


@torch.no_grad()
def _try_flow(model: GenerativeModel, shape: tuple[int, ...]) -> None:
    """Decodes one canvas: a flow of any size may ask for sides that can be halved."""
    like = next(model.parameters(), torch.zeros(()))
    try:
        found = tuple(model.decode(_linear(model).embed(like.new_zeros(1, *shape))).shape[1:])
        why = "" if found == shape else f"it gives {found}"
    except (ValueError, RuntimeError) as error:
        why = str(error)
    if why:
        raise ValueError(
            f"its flow takes no canvas of shape {shape} ({why}); give another number of pieces, or another overlap"
        )
