"""True spatial frequencies of Fourier bins, and bands of them, for maps of any size. NumPy only.

Frequencies are in units of pi radians for each pixel: 1 is the Nyquist frequency, a period of two pixels.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

Rings = Literal["square", "radial"]
"""How far a bin is from the origin: `square`, max(|wy|, |wx|), up to 1; `radial`, sqrt(wy^2 + wx^2), up to sqrt(2)."""


def signed(n: int) -> np.ndarray:
    r"""Frequency of each bin of an FFT over n pixels, (n,) in units of pi and in the order of the FFT.

    .. math:: \omega_k / \pi = 2 k / n, \qquad -n/2 < k \le n/2

    So the Nyquist frequency of an even n is +1, and an odd n has none.
    """
    return 2 * _signed_bins(n) / n


def magnitude(height: int, width: int, rings: Rings = "radial", half: bool = False) -> np.ndarray:
    """Distance of each bin of a 2D FFT from the origin, (height, width) in units of pi.

    Args:
        height: Rows of the map.
        width: Columns of the map.
        rings: `radial` or `square`.
        half: Only the columns that `rfft2` gives, (height, width // 2 + 1).
    """
    # one rounding of exact integers: a frequency on a band's edge, k / bands, equals it bit for bit at every size
    rows = np.abs(_signed_bins(height))[:, None] * width
    columns = np.abs(_signed_bins(width))[None, : width // 2 + 1 if half else width] * height
    if rings == "square":
        return 2 * np.maximum(rows, columns) / (height * width)
    return 2 * np.sqrt(rows**2 + columns**2) / (height * width)


def edges(rings: Rings = "square", bands: int = 10) -> np.ndarray:
    """Edges of bands of width 1 / bands, in units of pi: 0 to 1 for `square`, on beyond sqrt(2) for `radial`.

    A band holds its lower edge and not its upper one, but the last square one holds 1 too. (count + 1,)
    """
    count = bands if rings == "square" else int(np.sqrt(2) * bands) + 1
    return np.arange(count + 1) / bands


def ring_index(height: int, width: int, rings: Rings = "radial", bands: int = 10, half: bool = False) -> np.ndarray:
    """Which band of `edges(rings, bands)` each bin lies in, from 0; -1 for the origin. Shapes as in `magnitude`."""
    limits = edges(rings, bands)
    far = magnitude(height, width, rings, half)
    index = np.minimum(np.searchsorted(limits, far, side="right") - 1, len(limits) - 2)
    index[0, 0] = -1
    return index


def band_mask(
    height: int, width: int, low: float, high: float, rings: Rings = "square", half: bool = False
) -> np.ndarray:
    """Whether low <= |w| < high for each bin; the origin, too, where low is 0. Shapes as in `magnitude`.

    A `high` of 1 takes in |w| = 1, where `square` frequencies end. It depends on |w| alone, so it keeps a real image
    real, and of an `rfft2` it selects just what it selects of the whole plane.
    """
    far = magnitude(height, width, rings, half)
    return (low <= far) & ((far < high) | ((far == high) & (rings == "square") & (high == 1)))


def half_plane_weight(width: int) -> np.ndarray:
    """How many bins of the whole plane each column of an `rfft2` stands for, (width // 2 + 1,): 1 or 2.

    Columns 0 and, for an even width, width / 2 are their own mirror images.
    """
    weight = np.full(width // 2 + 1, 2)
    weight[0] = 1
    if width % 2 == 0:
        weight[-1] = 1
    return weight


def _signed_bins(n: int) -> np.ndarray:
    bins = np.arange(n, dtype=np.int64)
    return np.where(bins > n // 2, bins - n, bins)
