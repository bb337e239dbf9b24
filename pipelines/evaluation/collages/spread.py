"""The scores of a canvas's pieces by several actors, each of which holds the model.

In each step of a sampler the pieces of all shapes go out together in chunks, a few for each actor, so that what a chunk needs
is on its way while the one before is worked on, and no actor waits for the others between shapes. The gradients of the scores,
which `reconstruction` asks for, go the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, cast

import numpy as np
import ray
import torch
from torch import Tensor

from indm_core.collage import Pieces
from pipelines.cluster.pool import Call, Pool, places
from pipelines.cluster.session import connect
from pipelines.evaluation.collages.chunks import chunks_of
from pipelines.evaluation.plan import Subject

__all__ = ["Scorer", "Spread"]


class Scorer:
    """An actor that holds a model and scores pieces of it."""

    def __init__(self, subject: Subject, device: str) -> None:
        torch.set_num_threads(1)
        self.model = subject.build().requires_grad_(False).to(device)
        self.device = device

    @torch.no_grad()
    def score(self, u: np.ndarray, t: np.ndarray, y: np.ndarray | None) -> np.ndarray:
        """grad log p_t(u), like u."""
        return self.model.score(self._tensor(u), self._tensor(t), self._label(y)).cpu().numpy()

    def pull_back(self, u: np.ndarray, t: np.ndarray, y: np.ndarray | None, v: np.ndarray) -> np.ndarray:
        """v^T d score/du, like u."""
        at = self._tensor(u).requires_grad_()
        score = self.model.score(at, self._tensor(t), self._label(y))
        (grad,) = torch.autograd.grad(score, at, self._tensor(v))
        return grad.cpu().numpy()

    def _tensor(self, array: np.ndarray) -> Tensor:
        """A copy: what comes from the object store must not be written to."""
        return torch.tensor(array, device=self.device)

    def _label(self, y: np.ndarray | None) -> Tensor | None:
        return None if y is None else self._tensor(y)


class Spread:
    """A score by actors; a context manager that ends them. Called with one batch of pieces, or all of a step (`evaluate`).

    Args:
        subject: The model.
        actors: How many; each has one thread, and a GPU where the cluster has any.
        device: auto, cpu or cuda.

    Raises:
        ValueError: more actors than CPUs or GPUs.
    """

    def __init__(self, subject: Subject, actors: int, device: str = "auto") -> None:
        connect(actors, 1.0)
        self.num_actors, self.device = places(actors, device)
        options = {"gpus": float(self.device == "cuda"), "ahead": 1}
        self.pool = Pool(Scorer, (ray.put(subject), self.device), self.num_actors, **options)

    def __enter__(self) -> Spread:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.pool.__exit__(kind, error, tb)

    def __call__(self, u: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return self.evaluate([Pieces(self, u, t, y)])[0]

    def evaluate(self, asked: Sequence[Pieces]) -> Sequence[Tensor]:
        """The scores of all pieces; they have gradients."""
        fixed = [pieces._replace(u=pieces.u.detach()) for pieces in asked]
        return cast(Sequence[Tensor], _Spread.apply(self, fixed, *(pieces.u for pieces in asked)))

    def gather(self, method: str, asked: Sequence[Pieces], others: Sequence[tuple[Tensor, ...]]) -> list[Tensor]:
        """What a method of the actors gives for all pieces.

        Args:
            others: Further arguments of the method, for each batch of pieces tensors as long as it is.
        """
        tasks: dict[tuple[int, int], Call] = {}
        for chunk in chunks_of(asked, self.num_actors, self.device):
            given = [array[chunk.first : chunk.first + len(chunk.pieces.u)] for array in others[chunk.batch]]
            arrays = (chunk.pieces.u, chunk.pieces.t, chunk.pieces.y, *given)
            name = f"{len(chunk.pieces.u)} pieces of shape {tuple(chunk.pieces.u.shape[1:-1])}"
            arguments = tuple(None if a is None else a.cpu().numpy() for a in arrays)
            tasks[chunk.batch, chunk.first] = Call(method, arguments, name)
        done = dict(self.pool.stream(tasks))
        in_order = [np.concatenate([done[key] for key in sorted(done) if key[0] == i]) for i in range(len(asked))]
        return [torch.from_numpy(found).to(pieces.u) for found, pieces in zip(in_order, asked, strict=True)]


class _Spread(torch.autograd.Function):
    """The scores of all pieces with their gradients."""

    @staticmethod
    def forward(ctx: Any, spread: Spread, asked: Sequence[Pieces], *us: Tensor) -> tuple[Tensor, ...]:
        ctx.spread, ctx.asked = spread, asked
        return tuple(spread.gather("score", asked, [()] * len(asked)))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return None, None, *ctx.spread.gather("pull_back", ctx.asked, [(grad,) for grad in grads])
