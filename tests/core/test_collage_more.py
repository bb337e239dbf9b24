"""Collages on graphs and inputs of other kinds: against sums of precisions, against plain twins, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise, product
from typing import Any

import pytest
import torch
from problems import randn
from torch import Tensor

from indm_core.collage import (
    BlockMeans,
    FactorGraph,
    Grey,
    Pixels,
    Region,
    chain,
    collage,
    corners,
    cube_map,
    from_factors,
    grid,
    loop,
    reconstruction,
    replacement,
    sample_shifted,
)
from indm_core.collage.build import _separators
from indm_core.noise import seeded
from indm_core.ranges import check_count
from indm_core.sample import power_times
from indm_core.sampling import Sampling, sampler_of
from indm_core.sde import BDM, CLD, VP

F64 = torch.float64
HALF = torch.tensor(0.5, dtype=F64)


def plain_separators(factors: list[frozenset[int]], near: dict[int, set[int]]) -> set[frozenset[int]]:
    """The twin of `_separators`: overlaps of all pairs, in parts, until there is no new one."""
    sets, before = set(factors), 0
    while len(sets) > before:
        before = len(sets)
        sets |= {part for a, b in product(sets, sets) for part in parts(a & b, near)}
    return sets - set(factors)


def parts(positions: frozenset[int], near: dict[int, set[int]]) -> list[frozenset[int]]:
    found: list[frozenset[int]] = []
    for position in positions:
        joined = [part for part in found if part & near.get(position, set())]
        found = [part for part in found if part not in joined] + [frozenset({position}).union(*joined)]
    return found


def beside(factors: list[Tensor]) -> dict[int, set[int]]:
    near: dict[int, set[int]] = {}
    for index in factors:
        for axis in range(index.ndim):
            for line in index.movedim(axis, -1).reshape(-1, index.shape[axis]).tolist():
                for a, b in pairwise(line):
                    near.setdefault(a, set()).add(b)
                    near.setdefault(b, set()).add(a)
    return near


GRAPHS = {
    "grid": grid(3, 4, 5, 3),
    "corners": corners(2, 3, 4),
    "chain": chain(6, 5, 4),
    "loop": loop(7, 4, 3),
    "two parts": from_factors((6,), [[0, 1, 2, 3], [3, 4, 5, 0]]),
    "star": from_factors((7,), [[0, 1, 2], [0, 1, 3], [4, 0, 1], [0, 1, 5], [5, 6]]),
}


@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
def test_separators_are_those_of_the_plain_twin(graph):
    factors = list(graph.factors)
    found = [frozenset(index.flatten().tolist()) for index in _separators(factors)]
    assert len(found) == len(set(found))
    assert set(found) == plain_separators(
        [factor.positions for factor in factors], beside([factor.index for factor in factors])
    )


def test_a_separator_that_four_factors_share_has_count_minus_three():
    assert {(v.positions, v.count) for v in GRAPHS["star"].variables} == {(frozenset({0, 1}), -3), (frozenset({5}), -1)}
    assert {(v.positions, v.count) for v in GRAPHS["two parts"].variables} == {
        (frozenset({0}), -1),
        (frozenset({3}), -1),
    }


def precision(graph: FactorGraph, cov: Tensor) -> Tensor:
    """sum of c_r cov_r^-1, placed."""
    total = torch.zeros_like(cov)
    for region in graph.regions:
        i = region.index.flatten()
        total[i[:, None], i] += region.count * torch.linalg.inv(cov[i[:, None], i])
    return total


def test_gaussian_trees_and_high_orders_are_exact():
    generator = torch.Generator().manual_seed(0)
    for order, graph in ((3, chain(3, 6, 5)), (3, chain(3, 7, 3)), (2, chain(3, 8, 3).refine(chain(3, 4, 2)))):
        n = graph.shape[0]
        root = torch.randn(n, n, dtype=F64, generator=generator).tril(-1).triu(-order) * 0.4 + torch.eye(n, dtype=F64)
        exact = root @ root.T
        torch.testing.assert_close(precision(graph, torch.linalg.inv(exact)), exact, atol=1e-8, rtol=0)


@pytest.mark.parametrize("face", [1, 2])
def test_small_cubes_count_every_face_once(face):
    cube = cube_map(face)
    assert [(tuple(v.index.shape), v.count) for v in cube.variables] == [((face, face), -1)] * 6
    assert cube.refine(loop(4, 2 * face, face).of_height(face)).shape == (face, 6 * face)


def test_labels_per_canvas_meet_times_per_sample_in_chunks_on_blocks_of_two():
    def score(u: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        assert y is not None
        return u * (10 * y.to(u) + t.to(u).reshape(-1)).reshape(-1, *[1] * (u.ndim - 1))

    u, y = torch.randn(3, 2, 4, 10, 2), torch.tensor([1, 2, 3])  # channels and a height before the chain
    t = torch.tensor([0.1, 0.2, 0.3], dtype=F64).reshape(3, 1, 1, 1)
    for most in (1, 4, 4096):
        got = collage(score, chain(4, 4, 2), max_pieces=most)(u, t, y)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, u * torch.tensor([10.1, 20.2, 30.3]).reshape(3, 1, 1, 1, 1))


def test_one_picture_for_all_is_observed_with_and_without_its_batch():
    u = torch.randn(2, 3, 4, 4, 1, dtype=F64)
    for observation in (Grey(3), BlockMeans(2), Pixels(torch.eye(4, dtype=torch.bool))):
        y = observation.measure(torch.randn(1, 3, 4, 4, dtype=F64))
        for guide in (replacement, reconstruction):
            one, bare, each = (guide(minus, VP(), observation, seen)(u, HALF) for seen in (y, y[0], torch.cat([y, y])))
            assert torch.equal(one, bare)
            assert torch.equal(one, each)


def minus(u: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
    return -u


LINE = torch.zeros(2, 10, 1, dtype=F64)
IMAGE = torch.zeros(2, 3, 4, 4, 1, dtype=F64)
ON_LINE = collage(minus, chain(3, 4, 1))

REFUSED: dict[str, Callable[[], object]] = {
    "num_factors=True": lambda: chain(True, 4, 1),
    "rows=0": lambda: grid(0, 2, 4, 1),
    "face=True": lambda: cube_map(True),
    "height=0": lambda: chain(3, 4, 1).of_height(0),
    "piece=0 ": lambda: sample_shifted(VP(), minus, LINE, torch.tensor([1.0, 0.5], dtype=F64), piece=0),
    "factor 0: its positions are torch.float32": lambda: from_factors((4,), [torch.tensor([0.0, 1.5, 2.0]), [2, 3]]),
    "factor 0: its positions are torch.bool": lambda: from_factors((2,), [torch.tensor([False, True])]),
    "variable 0: its positions are torch.float32": lambda: from_factors(
        (4,), [[0, 1, 2], [2, 3]], variables=[torch.tensor([2.2])]
    ),
    "factor 1: holds no position": lambda: from_factors((4,), [[0, 1, 2, 3], []]),
    "factor 0: .* are no positions": lambda: from_factors((4,), [[[0, 1], [2]], [2, 3]]),
    "factor 0: lies inside factor 1": lambda: from_factors((3,), [[0, 1, 2], [2, 1, 0]]),
    "factor 1: lies inside factor 0": lambda: from_factors((4,), [[0, 1, 2, 3], [1, 2]], kinds=["a", "b"]),
    "variable 0: is no part of a factor": lambda: from_factors((4,), [[0, 1]], variables=[[2, 3]]),
    "each once": lambda: from_factors((4,), [[0, 1, 2], [2, 3]], variables=[[2], [2]]),
    "r: index=.* int64": lambda: FactorGraph(
        (2,), (Region(torch.tensor([0, 1], dtype=torch.int32), 1, "factor", "r"),)
    ),
    "condition=": lambda: collage(minus, chain(3, 4, 1), torch.tensor(1)),
    r"t: has shape \(3, 1\) for 2": lambda: ON_LINE(LINE, torch.ones(3, 1)),
    r"y: has shape \(3,\) for 2": lambda: ON_LINE(LINE, HALF, torch.zeros(3)),
    r"y: has shape \(\) for 2": lambda: ON_LINE(LINE, HALF, torch.tensor(3)),
    "num_channels=2": lambda: reconstruction(minus, VP(), Grey(2), torch.zeros(1, 4, 4))(IMAGE, HALF),
    r"observed: has shape \(2, 3, 1, 2\)": lambda: reconstruction(minus, VP(), BlockMeans(2), torch.zeros(2, 3, 1, 2))(
        IMAGE, HALF
    ),
    r"observed: has shape \(2, 3, 4, 4\)": lambda: replacement(minus, VP(), Grey(3), IMAGE[..., 0])(IMAGE, HALF),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_refused_is_named(message):
    with pytest.raises(ValueError, match=message):
        REFUSED[message]()


@pytest.mark.parametrize("value", [0, -1, 2.5, True, math.nan])
def test_a_count_is_an_integer_of_at_least_one(value):
    with pytest.raises(ValueError, match=r"num=.* integer of at least 1"):
        check_count(num=value)
    check_count(num=1)


@pytest.mark.parametrize("guide", [replacement, reconstruction])
def test_what_is_known_needs_noise_that_is_independent_per_position(guide):
    with pytest.raises(ValueError, match="not independent per position"):
        guide(minus, BDM(height=4, width=4), Pixels(torch.ones(4, 4, dtype=torch.bool)), torch.zeros(4, 4))


def test_no_canvas_has_no_score():
    assert ON_LINE(LINE[:0], HALF).shape == (0, 10, 1)
    assert collage(minus, chain(3, 4, 1))(torch.zeros(1, 10, 2), CLD().t_max * HALF).shape == (1, 10, 2)


SIGNS = torch.tensor([-1.0, 1.0], dtype=F64)
STAY, SPREAD = 0.9, torch.tensor([[1.0, 0.5], [0.5, 1.0]], dtype=F64) * 0.35**2


def mixture_log_prob(u: Tensor, t: Tensor) -> Tensor:
    """log density (n,) of one or two neighbours (n, d) of a chain of two modes, noised to t by VP."""
    d, (p, var) = u.shape[1], (float(c(t)) for c in (VP().psi0, VP().cov))
    means = torch.cartesian_prod(*[SIGNS] * d).reshape(-1, d)
    weights = torch.where(means[:, 0] == means[:, -1], STAY / d, (1 - STAY) / d) if d == 2 else torch.full((2,), 0.5)
    law = torch.distributions.MultivariateNormal(p * means, p**2 * SPREAD[:d, :d] + var * torch.eye(d, dtype=F64))
    return torch.logsumexp(weights.to(F64).log() + law.log_prob(u.unsqueeze(1)), 1)


def mixture_score(u: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
    with torch.enable_grad():
        at = u.detach().requires_grad_()
        return torch.autograd.grad(mixture_log_prob(at[..., 0], t).sum(), at)[0]


@pytest.mark.parametrize("time", [0.0, 0.2, 0.7])
def test_a_chain_of_mixtures_has_the_score_of_its_pairs_over_singles(time):
    """grad log of prod p_t(x_i, x_i+1) / prod p_t(x_i), at t = 0 the joint law of a Markov chain that is not Gaussian."""
    t, u = torch.tensor(time, dtype=F64), torch.randn(5, 7, 1, dtype=F64, generator=torch.Generator().manual_seed(0))
    at = u[..., 0].clone().requires_grad_()
    log_q = sum(mixture_log_prob(at[:, i : i + 2], t) for i in range(6))
    log_q = log_q - sum(mixture_log_prob(at[:, i : i + 1], t) for i in range(1, 6))
    (wanted,) = torch.autograd.grad(log_q.sum(), at)
    assert torch.allclose(collage(mixture_score, chain(6, 2, 1))(u, t)[..., 0], wanted, atol=1e-10)


def test_langevin_steps_keep_modes_together_where_the_ode_does_not():
    """Neighbours have one sign with probability .897 (the pair's own law): the ODE falls short of it."""
    score, num = collage(mixture_score, chain(9, 2, 1)), 150
    same = {}
    for sampler, steps in (("deis", 25), ("collage", 25)):
        sampling = Sampling(
            sampler=sampler, steps=steps, **({"order": 0} if sampler == "deis" else {"langevin_steps": 9})
        )
        generator = seeded(range(num))
        u = VP().sample_prior(torch.zeros(num, 10, 1, dtype=F64), generator)
        x = sampler_of(sampling)(VP(), score, u, power_times(VP(), steps, 2.0), generator)[..., 0]
        same[sampler] = float((x[:, 1:] * x[:, :-1] > 0).double().mean())
    assert same["deis"] < 0.83
    assert same["collage"] == pytest.approx(0.897, abs=0.05)


@pytest.mark.parametrize("t", [HALF, torch.tensor([0.2, 0.7], dtype=F64).reshape(2, 1)])
def test_all_evaluations_are_handed_over_at_once(t):
    """Each shape is one batch; whoever evaluates them gives the score that the collage gives by itself, guided or not."""
    graph, asked = chain(4, 5, 2), []

    def score(u: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return u.cumsum(-2) * (t.unsqueeze(-1) if t.ndim else t) + (
            0 if y is None else y.to(u).reshape(-1, *[1] * (u.ndim - 1))
        )

    def evaluate(batches):
        asked.append([tuple(pieces.u.shape) for pieces in batches])
        return [torch.cat([part.score(part.u, part.t, part.y) for part in pieces.split(3)]) for pieces in batches]

    y, u = torch.tensor([0, 3, -1, 2]), randn(2, *graph.shape, 1)
    cases: list[tuple[dict[str, Any], int]] = [({}, 1), ({"guidance": 1.5, "null": torch.tensor(-1)}, 2)]
    for options, num in cases:
        plain = collage(score, graph, y, **options)(u, t)
        assert torch.allclose(plain, collage(score, graph, y, **options, evaluate=evaluate)(u, t))
        assert asked.pop() == [(4 * 2 * num, 5, 1), (3 * 2, 2, 1)]  # separators have no label, and are not led
    with pytest.raises(ValueError, match=r"guidance=1: it leads away from none; give .* null"):
        collage(score, graph, y, guidance=1.0)
