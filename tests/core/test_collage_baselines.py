"""What collages are compared with, on a stationary Gaussian chain whose pieces' scores are known."""

from __future__ import annotations

import pytest
import torch
from problems import ids, randn, rng
from torch import Tensor

from indm_core.collage import chain, collage, grid, reconstruction, replacement, tiles
from indm_core.collage.baselines import sample_outpainted, sample_resampled, sample_shifted
from indm_core.exponential import sample_deis
from indm_core.sample import power_times, sample_em
from indm_core.sde import BDM, CLD, VP


def lag(x: Tensor, k: int) -> float:
    return float((x[:, k:] * x[:, : x.shape[1] - k]).mean())


def piece_score(sde, rho: float = 0.8):
    """The exact score of any number of neighbours in a stationary chain."""

    def score(u, t, y=None):
        d, k = u.shape[-2:]
        t = t if t.ndim == 0 else t.flatten()[0]
        at = torch.arange(d, dtype=torch.float64)
        p, noise = sde.psi0(t)[..., :1].reshape(k, 1), sde.cov(t).reshape(k, k)
        cov = torch.kron(rho ** (at[:, None] - at).abs(), p @ p.mT) + torch.kron(
            torch.eye(d, dtype=torch.float64), noise
        )
        return -torch.linalg.solve(cov, u.reshape(-1, d * k).mT).mT.reshape(u.shape)

    return score


def test_tiles_cut_the_canvas_once():
    for shift in range(4):
        graph = tiles(10, 4, shift)
        assert [region.count for region in graph.regions] == [1] * len(graph.regions)
        assert torch.cat([region.index for region in graph.regions]).tolist() == list(range(10))
        assert max(len(region.index) for region in graph.regions) == 4
    with pytest.raises(ValueError, match="shift=4"):
        tiles(10, 4, 4)


def ddim(sde, score, u, ts, generator):
    return sample_deis(sde, score, u, ts, order=0)


@pytest.mark.parametrize("sde", [VP(), CLD()], ids=ids)
def test_independent_tiles_are_independent_and_right_inside(sde):
    u = sde.sample_prior(randn(4000, 8, len(sde.prior_cov())), rng(1))
    x = sde.project(sample_deis(sde, collage(piece_score(sde), tiles(8, 4)), u, power_times(sde, 100, 2.0), order=1))
    cov = x.mT @ x / len(x)
    assert cov[:4, 4:].abs().max() < 5 / len(x) ** 0.5
    assert abs(cov[0, 1] - 0.8) < 0.1


@pytest.mark.parametrize("sde", [VP(), CLD()], ids=ids)
def test_shifted_tiles_join_what_independent_ones_do_not(sde):
    u, ts = sde.sample_prior(randn(3000, 12, len(sde.prior_cov())), rng(1)), power_times(sde, 60, 2.0)
    x = sde.project(sample_shifted(sde, piece_score(sde), u, ts, piece=4, generator=rng(2)))
    cov = x.mT @ x / len(x)
    assert min(float(cov[i, i + 1]) for i in range(11)) > 0.2  # at no place a cut


def test_resampling_is_the_ode_once_and_brings_pieces_nearer_with_more():
    sde, graph, d = VP(), chain(11, 2, 1), 12
    score, ts, u = collage(piece_score(sde), graph), power_times(sde, 40, 2.0), randn(3000, d, 1)
    once = sample_resampled(sde, score, u, ts, repeats=1)
    assert torch.equal(once, sample_deis(sde, score, u, ts, order=0))
    more = sample_resampled(sde, score, u, ts, repeats=6, generator=rng(3)).squeeze(-1)
    assert lag(once.squeeze(-1), 3) < lag(more, 3) < 0.8**3 + 0.05


@pytest.mark.parametrize("guide", [replacement, reconstruction])
@pytest.mark.parametrize("sde", [VP(), CLD()], ids=ids)
def test_outpainting_joins_each_piece_to_those_before(sde, guide):
    def em(sde, score, u, ts, generator):
        return sample_em(sde, score, u, ts, generator=generator)

    graph, num = chain(4, 4, 2), 1500
    u = sde.sample_prior(randn(num, graph.shape[0], len(sde.prior_cov())), rng(1))
    calls = []

    def score(u, t, y=None):
        calls.append(len(u))
        return piece_score(sde)(u, t, y)

    options = {"graph": graph, "guide": guide, "sampler": em, "generator": rng(2)}
    x = sde.project(sample_outpainted(sde, score, u, power_times(sde, 50, 2.0), **options))
    assert len(calls) == 4 * 50  # one run for each piece, one after the other
    cov = x.mT @ x / num
    assert min(float(cov[i, i + 1]) for i in range(graph.shape[0] - 1)) > 0.3
    assert x.isfinite().all()


def test_outpainting_of_a_grid_and_what_is_refused():
    sde, graph = VP(), grid(2, 2, 3, 1)
    u = randn(2, 1, *graph.shape, 1)

    def score(u, t, y=None):
        return -u

    x = sample_outpainted(
        sde, score, u, power_times(sde, 5, 2.0), graph=graph, guide=replacement, sampler=ddim, generator=rng()
    )
    assert x.shape == u.shape
    with pytest.raises(ValueError, match="shares no position"):
        sample_outpainted(
            sde, score, u[:, 0, 0], power_times(sde, 5, 2.0), graph=tiles(5, 2), guide=replacement, sampler=ddim
        )
    bdm = BDM(height=8, width=8)
    with pytest.raises(ValueError, match="not independent per position"):
        sample_resampled(bdm, score, randn(1, 1, 8, 8, 1), power_times(bdm, 3, 2.0))
