"""Generated distributions on the plane with roughly unit variance per coordinate, for training in minutes.

Each is a function (n, generator) -> (n, 2) float64. Scales are constants of the distribution, never of the sample, so
that a train and a test sample have the same law. With u ~ U[0, 1), n ~ N(0, I):

    spiral           a = 3 pi sqrt(u): (a cos a, a sin a) / (3 pi / 2) + 0.03 n         E r^2 = 2
    eight_gaussians  sqrt 2 (cos k pi/4, sin k pi/4) + 0.1 n                            variance 1 + 0.01
    checkerboard     uniform on the 8 dark squares of a 4 x 4 board of side sqrt 12     variance 1 along each axis
    rings            radius k c, k = 1..4, c = sqrt(2 / 7.5), + 0.03 n                  E r^2 = 2
    moons            two half circles, sqrt 2 times those of scikit-learn, + 0.05 n
    olympic_rings    five circles of radius 1/2 in two rows, + 0.01 n
    fractal_tree     uniform on the branches of a binary tree of depth 8, + 0.005 n
    sierpinski       uniform on Sierpinski's carpet of depth 4, side sqrt(32/3)         variance 1
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

__all__ = ["TOY2D"]


def spiral(num: int, generator: np.random.Generator) -> np.ndarray:
    """One arm of three half turns, denser outside so that arc length is uniform."""
    angle = 3 * np.pi * np.sqrt(generator.random(num))
    arm = np.stack([angle * np.cos(angle), angle * np.sin(angle)], axis=1) / (1.5 * np.pi)
    return arm + 0.03 * generator.standard_normal((num, 2))


def eight_gaussians(num: int, generator: np.random.Generator) -> np.ndarray:
    """Eight Gaussians on a circle."""
    return np.sqrt(2) * _circle(generator.integers(8, size=num) * np.pi / 4) + 0.1 * generator.standard_normal((num, 2))


def checkerboard(num: int, generator: np.random.Generator) -> np.ndarray:
    """The dark squares of a board: column i, row 2 j + (i mod 2)."""
    column = generator.integers(4, size=num)
    row = 2 * generator.integers(2, size=num) + column % 2
    return (np.stack([column, row], axis=1) + generator.random((num, 2)) - 2) * np.sqrt(12) / 4


def rings(num: int, generator: np.random.Generator) -> np.ndarray:
    """Four concentric circles of equal mass."""
    radius = np.sqrt(2 / 7.5) * generator.integers(1, 5, size=num)
    circle = _circle(2 * np.pi * generator.random(num)) * radius[:, None]
    return circle + 0.03 * generator.standard_normal((num, 2))


def moons(num: int, generator: np.random.Generator) -> np.ndarray:
    """Two interleaved half circles."""
    half = _circle(np.pi * generator.random(num))
    lower = generator.integers(2, size=num)[:, None] == 1
    both = np.where(lower, np.array([1.0, 0.5]) - half, half) - np.array([0.5, 0.25])
    return np.sqrt(2) * both + 0.05 * generator.standard_normal((num, 2))


def olympic_rings(num: int, generator: np.random.Generator) -> np.ndarray:
    """Five interlocked circles."""
    centres = np.array([[-1.2, 0.3], [0.0, 0.3], [1.2, 0.3], [-0.6, -0.3], [0.6, -0.3]])
    circle = 0.5 * _circle(2 * np.pi * generator.random(num))
    return centres[generator.integers(5, size=num)] + circle + 0.01 * generator.standard_normal((num, 2))


def fractal_tree(num: int, generator: np.random.Generator) -> np.ndarray:
    """A trunk that forks eight times at +-30 degrees, each branch 0.7 times as long as its parent."""
    cos, sin = np.cos(np.pi / 6), np.sin(np.pi / 6)
    turn = 0.7 * np.array([[cos, sin], [-sin, cos]])
    start, step = np.zeros((1, 2)), np.array([[0.0, 1.0]])
    starts, steps = [start], [step]
    for _ in range(8):
        start = np.tile(start + step, (2, 1))
        step = np.concatenate([step @ turn, step @ turn.T])
        starts.append(start)
        steps.append(step)
    start, step = np.concatenate(starts), np.concatenate(steps)
    length = np.linalg.norm(step, axis=1)
    branch = generator.choice(len(step), size=num, p=length / length.sum())
    along = start[branch] + generator.random((num, 1)) * step[branch]
    return 1.3 * (along - np.array([0.0, 2.33])) + 0.005 * generator.standard_normal((num, 2))


def sierpinski(num: int, generator: np.random.Generator) -> np.ndarray:
    """A square without the middle ninth, four times over: a density of finite entropy, log((8/9)^4 32/3) nats."""
    cells = np.array([(i, j) for i in range(3) for j in range(3) if (i, j) != (1, 1)], float)
    points = generator.random((num, 2))
    for _ in range(4):
        points = (points + cells[generator.integers(8, size=num)]) / 3
    return np.sqrt(32 / 3) * (points - 0.5)


def _circle(angle: np.ndarray) -> np.ndarray:
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


TOY2D: dict[str, Callable[[int, np.random.Generator], np.ndarray]] = {
    shape.__name__: shape
    for shape in (spiral, eight_gaussians, checkerboard, rings, moons, olympic_rings, fractal_tree, sierpinski)
}
