"""Which bins of a map's Fourier transform the numbers of the Fourier analysis come from. NumPy only."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from analyze.fourier.spec import HIGH
from analyze.frequencies import Rings, edges, half_plane_weight, ring_index


class Diagonal(NamedTuple):
    """The half diagonal of an `rfft2`, from the origin outward."""

    rows: np.ndarray
    columns: np.ndarray
    frequency: np.ndarray
    """In units of pi, the mean of both axes'."""


def diagonal(height: int, width: int) -> Diagonal:
    r"""Bins with (nearly) the same frequency along both axes, as many as the shorter axis of n pixels has.

    .. math:: \omega_k / \pi = 2 k / n, \quad k = 0 \dots \lfloor n / 2 \rfloor

    Along the longer axis, the nearest bins that it has.
    """
    shorter = min(height, width)
    bins = np.arange(shorter // 2 + 1)
    rows, columns = (np.minimum((2 * bins * n + shorter) // (2 * shorter), n // 2) for n in (height, width))
    return Diagonal(rows, columns, rows / height + columns / width)


def shorter_axis(height: int, width: int) -> np.ndarray:
    """Frequency of the half diagonal's bins along the shorter axis, in units of pi: ends at 0.8 or above from 4 up."""
    shorter = min(height, width)
    return 2 * np.arange(shorter // 2 + 1) / shorter


def interpolation(frequency: np.ndarray, at: float = HIGH) -> np.ndarray:
    """Weights (bins,) of the values at ascending frequencies that give the one between by linear interpolation.

    NaN where the last frequency lies below.
    """
    if frequency[-1] < at:
        return np.full(len(frequency), np.nan)
    return np.array([np.interp(at, frequency, unit) for unit in np.eye(len(frequency))])


def ring_matrix(height: int, width: int, rings: Rings) -> np.ndarray:
    """(height * (width // 2 + 1), rings) how many bins of the plane each bin of an `rfft2` stands for in each ring.

    The origin is ring 0, the bands of `edges` follow.
    """
    index = ring_index(height, width, rings, half=True) + 1
    weight = np.broadcast_to(half_plane_weight(width), index.shape)
    return np.where(index.reshape(-1, 1) == np.arange(len(edges(rings))), weight.reshape(-1, 1), 0).astype(np.float64)


def whole_plane(half: np.ndarray, width: int) -> np.ndarray:
    """(height, width) of an even function of frequency, both axes ascending, from its `rfft2` half."""
    height = len(half)
    columns = np.arange(width)
    mirrored = columns > width // 2
    rows = np.where(mirrored, -np.arange(height)[:, None], np.arange(height)[:, None]) % height
    return np.fft.fftshift(half[rows, np.where(mirrored, width - columns, columns)])
