"""Pictures of a cube's canvas: directions, the unfolded cross and the whole sphere, against the graph's own loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from indm_core.collage import cube_map
from indm_core.collage.cube import directions, equirectangular, sphere, unfolded

FACE = 16


def smooth(vectors: Tensor) -> Tensor:
    """A function on the sphere without symmetry; its slope is below 3."""
    x, y, z = vectors.unbind(-1)
    return x + 0.5 * y * z + 0.3 * (2 * x - y + 0.5 * z).sin()


def steps(vectors: Tensor, axis: int) -> Tensor:
    """The angles between neighbours along an axis."""
    size = vectors.shape[axis] - 1
    return (vectors.narrow(axis, 0, size) * vectors.narrow(axis, 1, size)).sum(-1).clamp(-1, 1).acos()


@pytest.mark.parametrize("loop", cube_map(FACE).factors, ids=lambda region: region.name)
def test_neighbours_in_a_loop_are_neighbours_on_the_sphere(loop):
    """Also over the edges of faces, and from the loop's last column to its first."""
    vectors = directions(FACE).reshape(-1, 3)[loop.index]
    around = torch.cat([vectors, vectors[:, :1]], 1)
    assert float(max(steps(around, 0).max(), steps(around, 1).max())) < 2.1 / FACE
    assert float(min(steps(around, 0).min(), steps(around, 1).min())) > 0.4 / FACE


def test_edges_that_meet_in_the_cross_meet_on_the_sphere():
    cross = torch.stack([unfolded(xyz, math.nan) for xyz in directions(FACE).unbind(-1)], -1)
    assert cross.shape == (3 * FACE, 4 * FACE, 3)
    for axis in (0, 1):
        angles = steps(cross, axis)
        assert float(angles[angles.isfinite()].max()) < 2.1 / FACE
    assert int(cross.isfinite().all(-1).sum()) == 6 * FACE**2
    assert torch.equal(cross[FACE // 2, 3 * FACE // 2] > 0.9, torch.tensor([False, True, False]))  # up, above F


def test_the_sphere_shows_every_face_at_its_place():
    faces = torch.arange(6.0).repeat_interleave(FACE).expand(FACE, -1)
    shown = equirectangular(faces, 90)
    assert shown.shape == (90, 180)
    at = {"L": (45, 45), "F": (45, 90), "R": (45, 135), "B": (45, 0), "U": (0, 90), "D": (89, 90)}
    assert {name: "LFRBUD"[int(shown[place])] for name, place in at.items()} == {name: name for name in at}


def test_a_function_on_the_sphere_is_the_same_on_both_pictures():
    canvas, height = smooth(directions(64)), 96
    shown = equirectangular(canvas[None], height)[0]
    assert float((shown - smooth(sphere(height, 2 * height))).abs().max()) < 3 * 1.5 / 64
    jumps = torch.cat([shown, shown[:, :1]], 1).diff(dim=1).abs().max()
    assert float(jumps) < 3 * (3.2 / 64 + math.pi / height)
