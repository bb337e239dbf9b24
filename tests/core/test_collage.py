r"""Collages of Gaussian laws, whose scores are known: exact where they should be, and the stated sum elsewhere.

A stationary or random Gaussian Markov chain gives the covariance of the canvas and, by cutting, of every region. A region is
told by its number, which is its condition, so that regions of one shape may have laws of their own.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from problems import Gaussian, ids, randn, rng, scalar
from torch import Tensor

from indm_core.collage import FactorGraph, chain, collage, corners, cube_map, from_factors, grid, loop, sample_collage
from indm_core.collage.sampling import evaluations, langevin_steps_of
from indm_core.exponential import sample_deis
from indm_core.sample import power_times, sample_em
from indm_core.sde import BDM, CLD, VE, VP, SubVP

SDES = [VP(), SubVP(), VE(sigma_min=0.05, sigma_max=10.0), CLD()]
PIXELWISE = pytest.mark.parametrize("sde", SDES, ids=ids)


def markov(num: int, order: int, seed: int = 0) -> Tensor:
    """The covariance of a random Gaussian chain in which x_i depends on the `order` before it."""
    draws, L = randn(num, order + 1, seed=seed), torch.eye(num, dtype=torch.float64)
    for i in range(num):
        for j in range(1, min(order, i) + 1):
            L[i, i - j] = -0.8 * draws[i, j - 1].tanh()
    noise = torch.diag(0.3 + draws[:, order].sigmoid())
    inverse = torch.linalg.inv(L)
    return inverse @ noise @ inverse.mT


def ar1(num: int, rho: float = 0.8) -> Tensor:
    at = torch.arange(num, dtype=torch.float64)
    return rho ** (at[:, None] - at).abs()


def region_score(sde, cov: Tensor, graph: FactorGraph):
    """The exact noised score of each region by its number y; and of its own shape, for a canvas of rows and columns."""

    def score(u, t, y):
        out = torch.empty_like(u)
        for r in y.unique().tolist():
            at = graph.regions[r].index.flatten()
            law = Gaussian(sde=sde, mean=torch.zeros(len(at), dtype=torch.float64), cov=cov[at][:, at])
            rows = u[y == r]
            t_rows = t if t.ndim == 0 else t.reshape(-1)[y == r].reshape(-1, 1)
            out[y == r] = law.score(rows.reshape(len(rows), len(at), -1), t_rows).reshape(rows.shape)
        return out

    return score


def numbered(sde, cov: Tensor, graph: FactorGraph):
    return collage(region_score(sde, cov, graph), graph, torch.arange(len(graph.regions)))


def by_hand(sde, cov: Tensor, graph: FactorGraph, u: Tensor, t: Tensor) -> Tensor:
    """sum of c_r score_r, one region after the other."""
    flat = u.reshape(len(u), math.prod(graph.shape), -1)
    total = torch.zeros_like(flat)
    for region in graph.regions:
        at = region.index.flatten()
        law = Gaussian(sde=sde, mean=torch.zeros(len(at), dtype=torch.float64), cov=cov[at][:, at])
        total[:, at] += region.count * law.score(flat[:, at], t)
    return total.reshape(u.shape)


TREE = from_factors((5,), [[0, 1], [1, 2], [1, 3], [3, 4]])


def tree_cov() -> Tensor:
    """x_0 the root; edges 0-1, 1-2, 1-3, 3-4."""
    L = torch.eye(5, dtype=torch.float64)
    for child, parent, weight in ((1, 0, 0.9), (2, 1, -0.7), (3, 1, 0.8), (4, 3, 0.6)):
        L[child, parent] = -weight
    inverse = torch.linalg.inv(L)
    return inverse @ torch.diag(torch.tensor([1.0, 0.4, 0.7, 0.2, 0.5], dtype=torch.float64)) @ inverse.mT


EXACT = {
    "order 1": (chain(7, 2, 1), markov(8, 1)),
    "order 2": (chain(6, 3, 2), markov(8, 2, seed=1)),
    "order 2, pieces of 4": (chain(3, 4, 2), markov(8, 2, seed=2)),
    "more than half": (chain(5, 4, 3), markov(8, 3, seed=3)),
    "one piece": (chain(1, 8, 2), markov(8, 4, seed=4)),
    "tree": (TREE, tree_cov()),
}


@PIXELWISE
@pytest.mark.parametrize("name", EXACT)
def test_without_noise_and_cycles_the_collage_is_the_joint_score(sde, name):
    graph, cov = EXACT[name]
    cov = cov - sde.cov(scalar(0.0))[0, 0] * torch.eye(len(cov)) if isinstance(sde, VE) else cov
    u = sde.embed(randn(3, len(cov), seed=5)) + 0.1 * randn(3, len(cov), 1)
    law = Gaussian(sde=sde, mean=torch.zeros(len(cov), dtype=torch.float64), cov=cov)
    joint = law.score(u, scalar(0.0))
    assert (numbered(sde, cov, graph)(u, scalar(0.0)) - joint).abs().max() < 1e-8 * joint.abs().max()


@PIXELWISE
@pytest.mark.parametrize("t", [0.05, 0.3, 0.9])
@pytest.mark.parametrize("name", [*EXACT, "loop", "grid", "corners", "nested"])
def test_at_every_level_it_is_the_sum_of_the_pieces_scores(sde, t, name):
    others = {
        "loop": loop(4, 4, 2),
        "grid": grid(3, 3, 3, 1),
        "corners": corners(2, 2, 2),
        "nested": cube_map(2).refine(loop(4, 4, 2).of_height(2)),
    }
    graph, cov = EXACT[name] if name in EXACT else (others[name], markov(math.prod(others[name].shape), 2))
    u = randn(2, *graph.shape, len(sde.prior_cov()), seed=6)
    score, wanted = numbered(sde, cov, graph), by_hand(sde, cov, graph, u, scalar(t))
    assert (score(u, scalar(t)) - wanted).abs().max() < 1e-8 * wanted.abs().max()


@pytest.mark.parametrize("max_pieces", [1, 2, 5, 100])
def test_chunks_times_and_leading_axes_change_nothing(max_pieces):
    graph = grid(2, 3, 3, 1)
    u, t = randn(2, 3, *graph.shape, 2), torch.tensor([0.2, 0.7], dtype=torch.float64)

    called = []

    def score(u, t, y):
        called.append(len(u))
        assert u.shape[1] == 3
        each = (-1, *[1] * (u.ndim - 1))
        return u * t.reshape(each) + u.roll(1, -2) * y.reshape(each)

    y = torch.arange(len(graph.regions), dtype=torch.float64)
    found = collage(score, graph, y, max_pieces=max_pieces)(u, t.reshape(2, 1, 1, 1))
    assert max(called) <= max_pieces
    alone = [collage(score, graph, y)(u[i : i + 1], t[i]) for i in range(2)]
    assert torch.allclose(found, torch.cat(alone), atol=1e-13)


def test_the_order_of_the_factors_changes_nothing():
    sde, cov, u = VP(), markov(8, 2), randn(2, 8, 1)
    rows = [torch.arange(i, i + 3) for i in range(6)]
    found = []
    for order in ([0, 1, 2, 3, 4, 5], [3, 5, 0, 2, 1, 4]):
        graph = from_factors((8,), [rows[i] for i in order])
        found.append(numbered(sde, cov, graph)(u, scalar(0.2)))
    assert torch.allclose(*found, atol=1e-12)


def test_gradients_pass_through():
    graph, u = chain(3, 4, 2), randn(1, 8, 1).requires_grad_()
    score = collage(lambda u, t, y: -(u**3), graph)
    (grad,) = torch.autograd.grad(score(u, scalar(0.1)).sum(), u)
    assert torch.allclose(grad, -3 * u.detach() ** 2)  # each position is counted once


# --- graphs ---


def counts(graph: FactorGraph) -> dict[frozenset[int], int]:
    return {region.positions: region.count for region in graph.regions}


@pytest.mark.parametrize(("piece", "overlap"), [(2, 1), (4, 2), (5, 2), (8, 6), (7, 5)])
@pytest.mark.parametrize("num", [1, 2, 3, 6])
def test_a_chain_is_what_any_factors_give(num, piece, overlap):
    graph = chain(num, piece, overlap)
    assert graph.shape == (num * piece - (num - 1) * overlap,)
    assert counts(graph) == counts(from_factors(graph.shape, [region.index for region in graph.factors]))
    assert [region.count for region in graph.variables] == [-1] * (num - 1)


@pytest.mark.parametrize(("rows", "cols", "piece", "overlap"), [(1, 1, 3, 1), (1, 4, 3, 1), (3, 2, 4, 2), (2, 3, 5, 3)])
def test_a_grid_is_what_any_factors_give(rows, cols, piece, overlap):
    graph = grid(rows, cols, piece, overlap)
    assert counts(graph) == counts(from_factors(graph.shape, [region.index for region in graph.factors]))
    crossings = [region for region in graph.variables if region.index.shape == (overlap, overlap)]
    assert [region.count for region in crossings] == [1] * (rows - 1) * (cols - 1)


def test_a_loop_closes():
    graph = loop(4, 4, 2)
    assert graph.shape == (8,)
    assert graph.regions[3].index.tolist() == [6, 7, 0, 1]
    assert sorted(sorted(region.positions) for region in graph.variables) == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_corners_meet_in_quarters_each_in_two_pieces():
    graph = corners(2, 3, 4)
    assert graph.shape == (8, 12)
    assert len(graph.factors) == 6 + 2
    assert len(graph.variables) == 8
    assert all(region.count == -1 and region.index.shape == (2, 2) for region in graph.variables)


def points(face: int) -> Tensor:
    """Where the centre of each position of the cube's canvas lies, (6 face^2, 3): x right, y up, z ahead, the viewer at 0."""
    at = (torch.arange(face, dtype=torch.float64) + 0.5) / face * 2 - 1
    down, right = torch.meshgrid(at, at, indexing="ij")
    one = torch.ones_like(down)
    faces = {
        "L": (-one, -down, right),
        "F": (right, -down, one),
        "R": (one, -down, -right),
        "B": (-right, -down, -one),
        "U": (right, one, down),
        "D": (right, -one, -down),
    }
    return torch.cat([torch.stack(faces[name], -1) for name in "LFRBUD"], 1).reshape(-1, 3)


def test_the_loops_of_a_cube_run_around_it():
    face = 5
    graph, xyz = cube_map(face), points(5)
    assert [region.count for region in graph.regions] == [1] * 3 + [-1] * 6
    for factor in graph.factors:
        strip = xyz[factor.index]  # (face, 4 face, 3)
        step = (strip - strip.roll(1, 1)).norm(dim=-1)  # the first column beside the last: the loop closes
        assert step.max() < 2.1 / face
        assert (strip - strip.roll(1, 0))[1:].norm(dim=-1).max() < 2.1 / face
    found = from_factors(graph.shape, [region.index for region in graph.factors])
    assert counts(found) == counts(graph)


def test_a_graph_may_be_a_factor_of_a_graph():
    outer, inner = cube_map(2), loop(4, 4, 2).of_height(2)
    u = randn(2, *outer.shape, 1)

    def score(u, t, y=None):  # of any piece: not linear, and it sees its whole shape
        return -(u**3) + u.roll(1, -2) * u.roll(1, -3) - t * u.mean((-2, -3), keepdim=True)

    nested = collage({"factor": collage(score, inner), "variable": score}, outer)
    assert torch.allclose(nested(u, scalar(0.3)), collage(score, outer.refine(inner))(u, scalar(0.3)), atol=1e-12)


BAD_GRAPHS = {
    "lies outside the canvas": lambda: from_factors((4,), [[0, 1, 2], [2, 3, 4]]),
    "position \\(3,\\) of the canvas \\(4,\\) is in no factor": lambda: from_factors((4,), [[0, 1, 2]]),
    "holds position 1 twice": lambda: from_factors((4,), [[0, 1, 1], [1, 2, 3]]),
    "counted 2 times": lambda: from_factors((4,), [[0, 1, 2], [1, 2, 3]], variables=[[1]]),
    "overlap=0": lambda: chain(3, 4, 0),
    "overlap=4": lambda: chain(3, 4, 4),
    "num_factors=0": lambda: chain(0, 4, 2),
    "two pieces meet in two places; take num_factors=3": lambda: loop(2, 4, 2),
    "a piece wraps onto itself": lambda: loop(2, 8, 5),
    "overlap = piece/2 = 2": lambda: corners(2, 2, 4, 1),
    "piece=3 must be even": lambda: corners(2, 2, 3),
    "face=0": lambda: cube_map(0),
    "no rectangle": lambda: from_factors((3, 3), [[[0, 1, 2], [3, 4, 5]], [[1, 2], [4, 7], [6, 8]]]),
    "kinds=": lambda: from_factors((2,), [[0, 1]], kinds=["variable"]),
    "there are none": lambda: from_factors((2,), []),
    "the inner canvas": lambda: cube_map(2).refine(loop(4, 4, 2)),
}


@pytest.mark.parametrize("said", BAD_GRAPHS)
def test_bad_graphs_are_refused_by_name(said):
    with pytest.raises(ValueError, match=said):
        BAD_GRAPHS[said]()


def test_bad_calls_are_refused_by_name():
    graph = chain(3, 4, 2)
    with pytest.raises(ValueError, match="condition: has 4 entries for 3 factors and 2 variables"):
        collage(lambda u, t, y: u, graph, torch.zeros(4))
    with pytest.raises(ValueError, match="none for regions of kind 'variable'"):
        collage({"factor": lambda u, t, y: u}, graph)
    with pytest.raises(ValueError, match="a state of shape"):
        collage(lambda u, t, y: u, graph)(randn(2, 9, 1), scalar(0.1))
    with pytest.raises(ValueError, match="give one or the other"):
        collage(lambda u, t, y: u, graph, torch.zeros(5))(randn(2, 8, 1), scalar(0.1), torch.zeros(2))
    sde = BDM(height=8, width=8)
    with pytest.raises(ValueError, match="BDM: its noise is not independent per position"):
        sample_collage(sde, lambda u, t, y=None: u, randn(1, 1, 8, 8, 1), power_times(sde, 4, 2.0))


def test_conditions_of_factors_alone_leave_variables_without():
    graph, seen = chain(3, 4, 2), []
    collage(lambda u, t, y: seen.append((u.shape[1], y)) or u, graph, torch.tensor([3, 1, 2]))(
        randn(2, 8, 1), scalar(0.1)
    )
    assert seen[0][1].tolist() == [3, 3, 1, 1, 2, 2]
    assert seen[1] == (2, None)
    seen.clear()
    collage(lambda u, t, y: seen.append(y) or u, graph)(randn(2, 8, 1), scalar(0.1), torch.tensor([7, 8]))
    assert [y.tolist() for y in seen] == [[7, 8] * 3, [7, 8] * 2]


# --- sampling: the covariance of what a linear score samples is a linear recursion ---


def precision(score, d: int, t: Tensor) -> Tensor:
    """A of a score -A u, for K = 1."""
    return -score(torch.eye(d, dtype=torch.float64).unsqueeze(-1), t).squeeze(-1)


def recursion(sde, score, ts, step, law: Tensor) -> Tensor:
    """The covariance after the levels of `sample_collage` (predictor DEIS), K = 1, from `law`."""
    eye = torch.eye(len(law), dtype=torch.float64)
    for (t, s), steps in zip(itertools.pairwise(ts), step, strict=True):
        R_t, R_s, psi = (float(v) for v in (sde.R(t), sde.R(s), sde.psi(s, t)))
        M = psi * eye + (R_s - psi * R_t) * R_t * precision(score, len(law), t)
        law = M @ law @ M.mT
        A, var = precision(score, len(law), s), float(sde.cov(s))
        for h in steps:
            M = eye - h * var * A
            law = M @ law @ M.mT + 2 * h * var * eye
    return law


def stationary(sde, cov, graph):
    """As `numbered`, where the law of a region follows from its length: fast."""

    def score(u, t, y=None):
        d, psi = u.shape[1], float(sde.psi0(t))
        A = torch.linalg.inv(psi**2 * cov[:d, :d] + float(sde.cov(t)) * torch.eye(d))
        return -(u.squeeze(-1) @ A).unsqueeze(-1)

    return collage(score, graph)


def covariance_error(x: Tensor, wanted: Tensor) -> float:
    """The largest error of the second moments about 0, in standard errors."""
    se = ((wanted.diagonal()[:, None] * wanted.diagonal() + wanted**2) / len(x)).sqrt()
    return float(((x.mT @ x / len(x) - wanted) / se).abs().max())


@pytest.mark.parametrize(("piece", "overlap"), [(2, 1), (8, 4)])
def test_the_corrected_sampler_follows_its_recursion_to_the_chain(piece, overlap):
    sde, num = VP(), 1500
    graph = chain((64 - overlap) // (piece - overlap), piece, overlap)
    d, ts, langevin = graph.shape[0], power_times(sde, 20, 2.0), 4
    cov, score = ar1(d), stationary(sde, ar1(d), graph)
    x = sample_collage(sde, score, randn(num, d, 1), ts, generator=rng(1), final_step=0.5).squeeze(-1)
    wanted = recursion(sde, score, ts, [[0.5] * langevin] * 20, torch.eye(d, dtype=torch.float64))
    assert covariance_error(x, wanted) < 5.5  # the largest of 2080 entries
    assert float((wanted - cov).norm() / cov.norm()) < (0.37 if overlap == 1 else 0.025)  # docs/RESULTS.md
    plain = recursion(sde, score, ts, [[]] * 20, torch.eye(d, dtype=torch.float64))
    ode = sample_deis(sde, score, randn(num, d, 1, seed=2), ts, order=0).squeeze(-1)
    assert covariance_error(ode, plain) < 5.5
    assert float((plain - cov).norm() / cov.norm()) > (0.5 if overlap == 1 else 0.1)


@pytest.mark.parametrize("sde", [VP(), CLD()], ids=ids)
def test_langevin_steps_with_a_test_leave_the_law_as_it_is(sde):
    graph, t, num = chain(7, 2, 1), scalar(0.6), 10_000
    cov = ar1(8)
    score = numbered(sde, cov, graph)
    k = len(sde.prior_cov())
    eye = torch.eye(8 * k, dtype=torch.float64).reshape(8 * k, 8, k)
    law = torch.linalg.inv(-score(eye, t).reshape(8 * k, 8 * k))
    u = (torch.randn(num, 8 * k, dtype=torch.float64, generator=rng(3)) @ torch.linalg.cholesky(law).mT).reshape(
        num, 8, k
    )
    tested = langevin_steps_of(sde, score, u, t, 6, 0.5, metropolis=True, generator=rng(4)).reshape(num, -1)
    assert covariance_error(tested, law) < 4.5
    assert (tested - u.reshape(num, -1)).abs().amax(1).gt(0).double().mean() > 0.9
    plain = langevin_steps_of(sde, score, u, t, 6, 0.5, generator=rng(4)).reshape(num, -1)
    assert covariance_error(plain, law) > 10  # the bias of the step


def test_evaluations_are_those_that_are_taken():
    sde, graph = VP(), chain(3, 4, 2)
    for langevin_steps, metropolis in ((0, False), (4, False), (0, True), (3, True)):
        calls = []
        base = collage(lambda u, t, y: -u, graph)

        def score(u, t, y=None, base=base, calls=calls):
            calls.append(t)
            return base(u, t, y)

        options = {"langevin_steps": langevin_steps, "metropolis": metropolis}
        sample_collage(sde, score, randn(2, 8, 1), power_times(sde, 5, 2.0), generator=rng(), **options)
        assert len(calls) == evaluations(5, **options)


def test_the_predictor_may_be_the_reverse_sde_and_a_sample_depends_on_its_seed_alone():
    sde, graph = CLD(), chain(3, 4, 2)
    score, ts = collage(lambda u, t, y: -u, graph), power_times(CLD(), 5, 2.0)
    u = randn(3, 8, 2)
    whole = sample_collage(sde, score, u, ts, generator=[rng(i) for i in range(3)], predictor="em", metropolis=True)
    last = sample_collage(sde, score, u[2:], ts, generator=[rng(2)], predictor="em", metropolis=True)
    assert torch.allclose(whole[2:], last, atol=1e-12)
    alone = sample_collage(sde, score, u, ts, generator=rng(5), predictor="em", langevin_steps=0)
    assert torch.equal(alone, sample_em(sde, score, u, ts, generator=rng(5)))


def test_bad_options_of_the_sampler():
    sde, ts, u = VP(), power_times(VP(), 3, 2.0), randn(1, 4, 1)
    for options, said in (
        ({"step": 0.0}, "step=0"),
        ({"final_step": -1.0}, "final_step"),
        ({"langevin_steps": -1}, "langevin_steps=-1"),
    ):
        with pytest.raises(ValueError, match=said):
            sample_collage(sde, lambda u, t, y=None: -u, u, ts, **options)
