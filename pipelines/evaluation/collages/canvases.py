"""The canvases of a run: made of its model, and refused before any work where it has none."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from indm_core.collage import Evaluate, FactorGraph, tiles
from indm_core.draw import Canvas, canvas
from indm_core.model import GenerativeModel
from indm_core.sample import Score
from indm_core.sampling import Sampling
from pipelines.data.spec import DataSpec
from pipelines.evaluation.collages.chunks import most_pieces
from pipelines.evaluation.collages.layout import Layout
from pipelines.storage.messages import listed

__all__ = ["borders_of", "canvas_of", "check_canvases", "remark_of", "unseen_regions"]


def canvas_of(
    model: GenerativeModel,
    layout: Layout,
    *,
    condition: Tensor | None = None,
    guidance: float = 0.0,
    score: Score | None = None,
    evaluate: Evaluate | None = None,
) -> Canvas:
    """The canvas of a layout, of pieces as the model was trained on.

    Args:
        condition, guidance, score, evaluate: As of `canvas`.

    Raises:
        ValueError: a model that has none, or a layout that its pieces do not fit.
    """
    graph = layout.graph(tuple(model.shape), model.window_step)
    device = next(model.parameters(), torch.zeros(())).device
    return canvas(
        model,
        graph,
        join=layout.join,
        condition=condition,
        guidance=guidance,
        score=score,
        evaluate=evaluate,
        max_pieces=most_pieces(model.shape, device.type),
    )


@torch.no_grad()
def check_canvases(name: str, model: GenerativeModel, spec: DataSpec, layout: Layout, sampling: Sampling) -> Canvas:
    """Refuses canvases that cannot be drawn or measured; it takes an evaluation of the score and one decode.

    Args:
        name: Of the run.

    Returns:
        The canvas, without conditions.

    Raises:
        ValueError: no linear diffusion or one whose noise is not independent per position, a flow of one size, a network that
            takes pieces alone, a layout that does not fit, standardised columns, or a sampler that does not go with the model.
    """
    try:
        if spec.std and len(spec.shape) == 1:
            raise ValueError(
                f"{spec.name}: its columns are standardised one by one, so that none can stand beside another; train on "
                "images or sequences, or on vectors as they are (--standardise false)"
            )
        made = canvas_of(model, layout)
        made.check(sampling)
        return made
    except ValueError as error:
        of = f"collage={layout.collage}"
        raise ValueError(f"{of} of {name}: {str(error).removeprefix(f'{of}: ')}") from None


def borders_of(layout: Layout, graph: FactorGraph, width: int) -> FactorGraph:
    """The graph whose factors make the joints of a canvas: of independent tiles these, else its own.

    Args:
        graph: Of the layout.
        width: Of a piece.
    """
    return tiles(graph.shape[0], width) if layout.join == "tiles" else graph


def remark_of(layout: Layout, unseen: Sequence[tuple[int, ...]]) -> str:
    """What is said of regions that a model's score was not trained on."""
    shapes = listed((" x ".join(map(str, shape)) for shape in unseen), 4)
    if layout.join == "collage":
        return (
            f"remark: the score was not trained on separators of {shapes}, which a collage subtracts; train with "
            "--smallest-window, or take the overlap that it was trained on"
        )
    other = "" if layout.join == "shifted" else ", or take a number of pieces whose canvas is a multiple of a piece"
    return f"remark: the score was not trained on tiles of {shapes}; train with --smallest-window{other}"


def unseen_regions(model: GenerativeModel, layout: Layout) -> tuple[tuple[int, ...], ...]:
    """The shapes, without channels, of separators or of tiles that are less than a piece, as far as the model's score was not
    trained on them (`Objective.smallest_window`)."""
    graph = layout.graph(tuple(model.shape), model.window_step)
    sides = tuple(model.shape[1:] or model.shape)
    whole = sides[: len(sides) - len(graph.shape)]
    found = [
        shape for shape in dict.fromkeys((*whole, *cut) for cut in _cuts(layout, graph, sides[-1])) if shape != sides
    ]
    smallest, step = model.smallest_window, model.window_step

    def seen(shape: tuple[int, ...]) -> bool:
        return bool(smallest) and all(
            side >= m and (side - m) % step == 0 for side, m in zip(shape, smallest, strict=True)
        )

    return tuple(shape for shape in found if not seen(shape))


def _cuts(layout: Layout, graph: FactorGraph, piece: int) -> list[tuple[int, ...]]:
    """The shapes, along the axes that are cut, of what is scored beside whole pieces."""
    if layout.join == "collage":
        return [tuple(region.index.shape) for region in graph.variables]
    length = graph.shape[-1]
    if layout.join == "tiles":
        return [(length % piece,)] * (length % piece > 0)
    if layout.join == "shifted":
        ends = {end for shift in range(piece) for end in (shift, (length - shift) % piece) if end}
        return [(width,) for width in sorted(ends)]
    return []
