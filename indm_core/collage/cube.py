r"""Pictures of the sphere on a cube's six faces: each position's direction, the unfolded cube, and the whole sphere at once.

From the inside of the cube x points to the right, y up and z ahead, and a face is the square with side 2 at distance 1 from the
centre. With a = 2 (column + 1/2)/s - 1 to the right and b = 1 - 2 (row + 1/2)/s upwards, s the side of a face in pixels, the
direction of a pixel is

    F (a, b, 1)     R (1, b, -a)     B (-a, b, -1)     L (-1, b, a)     U (a, 1, -b)     D (a, -1, b)

up to its length: U joins F's upper edge with its lower one and D joins F's lower edge with its upper one, as `cube_map` has it.
A direction at longitude phi (0 ahead, positive to the right) and latitude theta is (cos theta sin phi, sin theta, cos theta cos
phi).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from indm_core.shapes import Float, Shaped

__all__ = ["directions", "equirectangular", "sphere", "unfolded"]


def directions(face: int) -> Float[Tensor, "h w 3"]:
    """The unit vectors of a cube's canvas, (face, 6 face, 3), float64.

    Args:
        face: s, the side of a face.
    """
    at = 2 * (torch.arange(face, dtype=torch.float64) + 0.5) / face - 1
    b, a = torch.meshgrid(-at, at, indexing="ij")
    one = torch.ones_like(a)
    faces = [(-one, b, a), (a, b, one), (one, b, -a), (-a, b, -one), (a, one, -b), (a, -one, b)]  # LFRBUD
    vectors = torch.cat([torch.stack(xyz, -1) for xyz in faces], 1)
    return vectors / vectors.norm(dim=-1, keepdim=True)


def sphere(height: int, width: int) -> Float[Tensor, "h w 3"]:
    """The unit vectors of a picture of all longitudes and latitudes: ahead in the middle, up at the top; float64."""
    phi = (2 * (torch.arange(width, dtype=torch.float64) + 0.5) / width - 1) * math.pi
    theta = (0.5 - (torch.arange(height, dtype=torch.float64) + 0.5) / height) * math.pi
    theta, phi = torch.meshgrid(theta, phi, indexing="ij")
    return torch.stack([theta.cos() * phi.sin(), theta.sin(), theta.cos() * phi.cos()], -1)


def equirectangular(canvas: Shaped[Tensor, "*lead h w"], height: int) -> Shaped[Tensor, "*lead h2 w2"]:
    """The sphere at height x 2 height directions, each from the pixel of the face that it meets.

    Args:
        canvas: On `cube_map(face)`, (..., face, 6 face).
    """
    face = canvas.shape[-2]
    x, y, z = sphere(height, 2 * height).unbind(-1)
    size = torch.stack([x, y, z]).abs().amax(0)
    met = torch.stack([-x, z, x, -z, y, -y]).argmax(0)  # LFRBUD
    a = torch.stack([z, x, -z, -x, x, x]).gather(0, met[None])[0] / size
    b = torch.stack([y, y, y, y, -z, z]).gather(0, met[None])[0] / size
    row, column = (((1 + at) / 2 * face).long().clamp(0, face - 1) for at in (-b, a))
    return canvas[..., row, met * face + column]


def unfolded(canvas: Shaped[Tensor, "*lead h w"], blank: float = 0.0) -> Shaped[Tensor, "*lead h2 w2"]:
    """The faces as a cross: L F R B in a row, U above F, D below it, (..., 3 face, 4 face).

    Args:
        canvas: On `cube_map(face)`, (..., face, 6 face).
        blank: What the rest is filled with.
    """
    face = canvas.shape[-2]
    cross = canvas.new_full((*canvas.shape[:-2], 3 * face, 4 * face), blank)
    cross[..., face : 2 * face, :] = canvas[..., : 4 * face]
    for top, first in ((0, 4), (2 * face, 5)):
        cross[..., top : top + face, face : 2 * face] = canvas[..., first * face : (first + 1) * face]
    return cross
