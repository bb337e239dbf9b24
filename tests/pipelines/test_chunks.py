"""Pieces in chunks: all of them, each once, and as much work for every actor."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from indm_core.collage import FactorGraph, Pieces, chain, collage, grid
from pipelines.evaluation.collages.chunks import chunks_of, most_pieces


def score(u: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
    return u


def asked_of(graph: FactorGraph, lead: tuple[int, ...], num: int) -> list[Pieces]:
    """What a collage asks for on `num` canvases whose values are all different."""
    asked: list[Pieces] = []

    def evaluate(batches):
        asked.extend(batches)
        return [pieces.u for pieces in batches]

    shape = (num, *lead, *graph.shape, 1)
    u = torch.arange(torch.Size(shape).numel(), dtype=torch.float64).reshape(shape)
    collage(score, graph, evaluate=evaluate)(u, torch.tensor(0.5, dtype=torch.float64))
    return asked


@pytest.mark.parametrize("actors", [1, 2, 3, 8])
@pytest.mark.parametrize(
    ("graph", "lead", "num"),
    [
        (chain(64, 84, 28), (1, 28), 1),
        (chain(64, 28, 14), (1, 28), 4),
        (chain(3, 8, 4), (1, 8), 1),
        (grid(6, 7, 12, 4), (3,), 2),
    ],
    ids=["long", "several", "short", "grid"],
)
def test_chunks_hold_all_pieces_once_in_even_shares(graph, lead, num, actors):
    asked = asked_of(graph, lead, num)
    chunks = chunks_of(asked, actors)
    for i, pieces in enumerate(asked):
        own = sorted((chunk for chunk in chunks if chunk.batch == i), key=lambda chunk: chunk.first)
        assert torch.equal(torch.cat([chunk.pieces.u for chunk in own]), pieces.u)
        assert [chunk.first for chunk in own] == [
            0,
            *torch.tensor([len(c.pieces.u) for c in own]).cumsum(0)[:-1].tolist(),
        ]
        assert max(len(chunk.pieces.u) for chunk in own) <= most_pieces(pieces.u.shape[1:], "cpu")
    work = [0] * actors
    for chunk in chunks:  # to whoever is done first
        work[work.index(min(work))] += chunk.pieces.u.numel()
    one_each = sum(pieces.u[0].numel() for pieces in asked)
    assert max(work) <= sum(work) / actors * 1.07 + one_each
