"""Closed curves: wavy outlines as arrays of points, and arrays of points as paths to draw."""

from __future__ import annotations

import numpy as np
import skia
from numpy.typing import NDArray

Contours = NDArray[np.float64]
"""Shape (curves, points, 2), um."""


def waves(
    rng: np.random.Generator, curves: int, points: int, first: int, last: int, strength: float
) -> NDArray[np.float64]:
    """Returns relative radii, shape (curves, points): 1 plus harmonics ``first`` to ``last`` that fade with order.

    Args:
        rng: source of amplitudes and phases.
        curves: how many outlines.
        points: samples along each.
        first: lowest harmonic (2 keeps the centre where it is).
        last: highest harmonic.
        strength: amplitude of the lowest harmonic at most.
    """
    orders = np.arange(first, last + 1)
    amplitudes = rng.uniform(0, strength, (curves, len(orders))) * (first / orders)
    phases = rng.uniform(0, 2 * np.pi, (curves, len(orders)))
    angles = np.arange(points) * (2 * np.pi / points)
    cosines = np.cos(orders[None, :, None] * angles[None, None, :] + phases[:, :, None])
    return 1 + np.einsum("co,cop->cp", amplitudes, cosines)


def ellipses(
    centres: NDArray[np.float64],
    radii: NDArray[np.float64],
    angles: NDArray[np.float64],
    wave: NDArray[np.float64],
) -> Contours:
    """Returns wavy ellipses.

    Args:
        centres: (curves, 2) in um.
        radii: (curves, 2), along and across, um.
        angles: (curves,), direction of the first radius.
        wave: (curves, points) relative radii, from ``waves``.
    """
    along = np.arange(wave.shape[1]) * (2 * np.pi / wave.shape[1])
    x = radii[:, :1] * wave * np.cos(along)
    y = radii[:, 1:] * wave * np.sin(along)
    cosine, sine = np.cos(angles)[:, None], np.sin(angles)[:, None]
    return np.stack([centres[:, :1] + cosine * x - sine * y, centres[:, 1:] + sine * x + cosine * y], axis=-1)


def smooth_path(contours: Contours) -> skia.Path:
    """Returns one path of closed curves that round the corners of the given polygons (quadratic B-splines)."""
    path = skia.Path()
    points = contours.shape[1]
    corner_x, corner_y = (contours[:, :, axis].ravel().tolist() for axis in (0, 1))
    middles = (contours + np.roll(contours, -1, axis=1)) / 2
    joint_x, joint_y = (middles[:, :, axis].ravel().tolist() for axis in (0, 1))
    for first in range(0, len(corner_x), points):
        path.moveTo(joint_x[first + points - 1], joint_y[first + points - 1])
        for at in range(first, first + points):
            path.quadTo(corner_x[at], corner_y[at], joint_x[at], joint_y[at])
        path.close()
    return path
