"""What canvases are measured by, on stationary Gaussian strips whose jumps and correlations are known."""

from __future__ import annotations

import math

import pytest
import torch
from problems import rng
from torch import Tensor

from indm_core.collage import (
    chain,
    corners,
    cube_map,
    grid,
    joints,
    jump_ratio,
    jumps,
    lag_correlations,
    loop,
    pieces_at,
    random_pieces,
    real_jumps,
    tiles,
)
from indm_core.noise import seeded

RHO = 0.8


def strips(num: int, *lead: int, width: int, seed: int = 0) -> Tensor:
    """Stationary AR(1) along the last axis: neighbours differ by 2 (1 - rho) on average, and correlate rho^l at lag l."""
    noise = torch.randn(num, *lead, width, generator=rng(seed), dtype=torch.float64)
    x = [noise[..., 0]]
    for j in range(1, width):
        x.append(RHO * x[-1] + math.sqrt(1 - RHO**2) * noise[..., j])
    return torch.stack(x, -1)


def test_the_crops_of_a_canvas_are_equally_frequent_and_its_own():
    x = torch.arange(12.0).expand(3000, 1, 2, 12)
    crops = random_pieces(x, (4,), 2, rng(0))
    assert crops.shape == (3000, 1, 2, 4)
    begins = crops[:, 0, 0, 0].long()
    assert torch.equal(crops - crops[..., :1], torch.arange(4.0).expand_as(crops))
    counts = begins.bincount(minlength=9).double()
    assert counts[1::2].sum() == 0
    assert (counts[::2] - 600).abs().max() < 5 * (3000 * 0.2 * 0.8) ** 0.5
    few = random_pieces(x[5:9], (4,), 2, seeded(range(5, 9)))
    assert torch.equal(few, random_pieces(x[:20], (4,), 2, seeded(range(20)))[5:9])
    with pytest.raises(ValueError, match="larger than the canvas"):
        random_pieces(x, (13,))


def test_a_crop_of_a_grid_is_a_block():
    x = torch.arange(60.0).reshape(1, 6, 10).expand(50, -1, -1)
    for crop in random_pieces(x, (2, 3), 1, rng(1)):
        assert torch.equal(crop, crop[0, 0] + torch.tensor([[0.0, 1, 2], [10, 11, 12]]))


def test_pieces_are_what_the_factors_index():
    x = torch.randn(3, 2, 6, 10, generator=rng(0))
    at = pieces_at(x, grid(2, 4, 4, 2))
    assert torch.equal(at[5], x[..., 2:6, 2:6])
    around = pieces_at(x, loop(5, 4, 2))
    assert torch.equal(around[-1], x[..., [8, 9, 0, 1]])
    assert around[0].shape == (3, 2, 6, 4)


def test_joints_are_where_factors_begin_and_end():
    found = joints(chain(3, 6, 2))  # factors 0-5, 4-9, 8-13
    assert found.seam.second.tolist() == [4, 6, 8, 10]
    assert sorted([*found.seam.second.tolist(), *found.inside.second.tolist()]) == list(range(1, 14))
    assert not len(found.closing.first)
    closed = joints(loop(4, 6, 2))  # of 16 positions
    assert (closed.closing.first.tolist(), closed.closing.second.tolist()) == ([0], [15])
    assert closed.seam.second.tolist() == [2, 4, 6, 8, 10, 12, 14]
    cut = joints(chain(3, 6, 2), borders=tiles(14, 6))
    assert cut.seam.second.tolist() == [6, 12]
    assert not len(joints(chain(1, 6, 2)).seam.first)


def test_joints_of_a_grid_lie_on_both_axes():
    """Each row of 7 has 2 joints, as has each column of 7."""
    found = joints(grid(2, 2, 4, 1))
    assert len(found.seam.first) == 2 * 2 * 7
    assert len(found.inside.first) == 2 * 6 * 7 - 2 * 2 * 7
    assert torch.allclose(found.seam.share, torch.full((2, 1), 0.5).double())


def test_pieces_that_meet_at_corners_leave_gaps_that_are_no_neighbours():
    found = joints(corners(2, 2, 4))
    assert len(found.seam.first) + len(found.inside.first) == 2 * 8 * 7 - 2 * 4


def test_the_faces_of_a_cube_meet_at_seams():
    """Nine of the twelve edges are inside a loop; three of them lie side by side on the canvas. A face is inside two loops."""
    face = 3
    found = joints(cube_map(face))
    assert len(found.seam.first) == 3 * face
    assert len(found.closing.first) == 6 * face
    assert len(found.inside.first) == 6 * 2 * face * (face - 1)
    assert torch.allclose(found.inside.share.sum(), torch.tensor(1.0).double())


def test_phases_are_those_of_the_pieces():
    """With a step of 2 every joint lies between cells, and half of what is inside does not."""
    found = joints(chain(3, 6, 2), step=2)
    assert found.seam.share.tolist() == [[1.0, 0.0]]
    assert found.inside.share[0, 0] == pytest.approx(2 / 9)
    cells = strips(500, 3, width=6).repeat_interleave(2, -1)[..., :12]
    real = real_jumps(cells, 1, 2)
    assert real[:, 0, 1].abs().max() == 0
    assert torch.allclose(real[:, 0, 0], real_jumps(cells[..., ::2], 1)[:, 0, 0])
    assert real_jumps(cells[..., :2], 1, 2)[:, 0, 0].isnan().all()


@pytest.mark.parametrize("step", [1, 3])
@pytest.mark.parametrize("graph", [chain(4, 9, 3), grid(2, 3, 9, 3)], ids=["chain", "grid"])
def test_exact_data_have_no_seam(graph, step):
    """Canvases that are cut out of the data's own law give 1, on rows that are independent at random heights as well."""
    height = graph.shape[0] if len(graph.shape) == 2 else 5
    x = strips(400, height, width=graph.shape[-1])
    real = strips(500, 9 if len(graph.shape) == 2 else 5, width=9, seed=1)
    found = joints(graph, step)
    for kind in (found.seam, found.inside):
        ratio = jump_ratio(jumps(x, graph, kind), real_jumps(real, len(graph.shape), step), kind)
        assert abs(ratio.value - 1) < 5 * ratio.standard_error
        assert ratio.standard_error < 0.05


def test_jumps_are_those_of_the_law():
    """2 (1 - rho) along a strip; 2 where independent pieces are glued, which is a seam of 1 / (1 - rho)."""
    graph = chain(3, 8, 1)
    num, mean = 4000, 2 * (1 - RHO)
    x = torch.cat([strips(num, width=8, seed=s) for s in range(3)], -1)[..., :22]
    found = joints(graph, borders=tiles(22, 8))
    inside = jumps(x, graph, found.inside)
    assert abs(inside.mean() - mean) < 5 * inside.std() / num**0.5
    ratio = jump_ratio(jumps(x, graph, found.seam), real_jumps(strips(num, width=8, seed=9), 1), found.seam)
    assert abs(ratio.value - 1 / (1 - RHO)) < 5 * ratio.standard_error


def test_the_error_of_a_ratio_is_its_spread():
    graph = chain(2, 6, 2)
    kind = joints(graph).seam
    found = []
    for seed in range(200):
        of_data = real_jumps(strips(60, width=6, seed=1000 + seed), 1)
        found.append(jump_ratio(jumps(strips(40, width=10, seed=seed), graph, kind), of_data, kind))
    spread = torch.tensor([ratio.value for ratio in found]).std()
    error = torch.tensor([ratio.standard_error for ratio in found]).mean()
    assert 0.75 < float(error / spread) < 1.25


def test_the_ends_of_an_open_strip_do_not_close():
    """A strip of m (p - o) positions put on a loop: its ends are independent, but for rho^(length - 1)."""
    graph = loop(4, 8, 4)
    kind = joints(graph).closing
    ratio = jump_ratio(jumps(strips(2000, width=16), graph, kind), real_jumps(strips(2000, width=8, seed=1), 1), kind)
    assert abs(ratio.value - (1 - RHO**15) / (1 - RHO)) < 5 * ratio.standard_error


def test_where_there_is_nothing_to_compare_there_is_no_ratio():
    graph, x = chain(2, 4, 2), strips(5, width=6)
    found = joints(graph)
    assert math.isnan(jump_ratio(jumps(x, graph, found.closing), real_jumps(x[..., :4], 1), found.closing).value)
    assert math.isnan(jump_ratio(jumps(x, graph, found.seam), real_jumps(torch.zeros(3, 4), 1), found.seam).value)
    with pytest.raises(ValueError, match="1 canvases"):
        jump_ratio(jumps(x[:1], graph, found.seam), real_jumps(x[..., :4], 1), found.seam)


def test_correlations_are_those_of_the_law_whatever_all_canvases_share():
    """rho^l of the means of independent rows, beside a mean that depends on the position; the error is the spread."""
    x = 2 * strips(2000, 3, width=12) + torch.arange(12).square()
    found = lag_correlations(x, (1, 2, 5, 11))
    exact = RHO ** torch.tensor([1.0, 2, 5, 11], dtype=torch.float64)
    assert ((found.values - exact).abs() < 5 * found.standard_errors).all()
    assert torch.allclose(lag_correlations(x.mean(1), (1, 2, 5, 11)).values, found.values)
    assert torch.allclose(lag_correlations(x.mT, (1, 2, 5, 11), axis=-2).values, found.values)
    many = torch.stack([lag_correlations(strips(50, width=12, seed=s), (2, 8)).values for s in range(200)])
    errors = torch.stack([lag_correlations(strips(50, width=12, seed=s), (2, 8)).standard_errors for s in range(200)])
    assert ((errors.mean(0) / many.std(0) - 1).abs() < 0.25).all()


def test_pieces_that_know_nothing_of_each_other_are_uncorrelated():
    x = torch.cat([strips(2000, width=6, seed=s) for s in range(2)], -1)
    (value,), (error,) = (lag_correlations(x, (6,)).values, lag_correlations(x, (6,)).standard_errors)
    assert abs(value) < 5 * error
    with pytest.raises(ValueError, match="12 does not lie in 1"):
        lag_correlations(x, (3, 12))
