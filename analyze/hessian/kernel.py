"""From the nodes and weights of a quadrature to a density curve. NumPy only, to draw stored runs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

# A Gaussian holds all but 1e-15 of its mass within this many widths.
_MARGIN = 8
# Values that agree to this share of the largest are one in float32.
_SAME = 1e-6


def kernel_density(
    nodes: np.ndarray,
    weights: np.ndarray,
    outliers: np.ndarray | Sequence[float] = (),
    *,
    x: np.ndarray | None = None,
    width: float | None = None,
    points: int = 1024,
) -> tuple[np.ndarray, np.ndarray]:
    r"""Spectral density: the quadrature of each probe blurred by a Gaussian kernel, and averaged over probes.

    $$\phi(x) = \frac{1}{\sqrt{2 \pi} \sigma} \left( \frac{1}{P} \sum_{p,i} w_{pi} e^{-(x - \theta_{pi})^2 /
      2 \sigma^2} + w_o \sum_o e^{-(x - \lambda_o)^2 / 2 \sigma^2} \right)$$

    (Ghorbani, Krishnan & Xiao, "An Investigation into Neural Net Optimization via Hessian Eigenvalue
    Density", 2019), where deflated outliers share what the weights leave of 1, in equal parts $w_o$. The curve of
    c H is that of H, stretched by c.

    The default grid has a spacing of at most a third of the width, and leaves out what is further than 8 widths from
    all nodes and outliers, where the density is below 1e-14 of its peaks: so the curve integrates to 1 by the
    trapezoidal rule.

    Args:
        nodes: (probe, step) in units of the eigenvalues; those of weight 0 are ignored.
        weights: (probe, step), 0 or more, summing to at most 1 for each probe.
        outliers: (outlier,) deflated eigenvalues.
        x: (point,) where to evaluate; by default as said above.
        width: sigma, in units of the eigenvalues; by default `default_width(nodes, weights, outliers)`.
        points: the default grid's spacing is no wider than its range over this.

    Returns:
        x (point,), ascending, and the density there (point,), in inverse units of the eigenvalues.

    Raises:
        ValueError: shapes that differ, a negative weight, or a width that isn't positive or is lost in the rounding
            of the values.
    """
    nodes, weights, outliers = _checked(nodes, weights, outliers)
    width = default_width(nodes, weights, outliers) if width is None else width
    if not 0 < width < math.inf:
        raise ValueError(f"width={width}; expected a positive number, in units of the eigenvalues.")
    counted = weights > 0
    left = 1 - weights.sum(axis=1).mean()
    centers = np.r_[nodes[counted], outliers]
    masses = np.r_[weights[counted] / len(weights), np.full(len(outliers), left / max(1, len(outliers)))]
    x = _grid(centers, width, points) if x is None else np.asarray(x, dtype=np.float64)
    density = np.zeros_like(x)
    for center, mass in zip(centers, masses, strict=True):
        density += mass * np.exp(-0.5 * ((x - center) / width) ** 2)
    return x, density / (width * math.sqrt(2 * math.pi))


def default_width(nodes: np.ndarray, weights: np.ndarray, outliers: np.ndarray | Sequence[float] = ()) -> float:
    r"""Kernel width in units of the eigenvalues: what the quadrature can resolve.

    $$\sigma = (\max \theta - \min \theta) / m$$

    with m the number of steps, over the nodes of positive weight: m nodes a range apart have a mean spacing of
    sigma, and of up to $\pi \sigma / 2$ in the middle. Deflated outliers don't count: they make spikes of that
    width instead of blurring the bulk. Only, sigma is never below 1e-6 of the largest magnitude, which is the rounding
    of float32. Where all nodes agree to that, it is 1 % of the largest magnitude, and 1 if all is zero.

    Args:
        nodes: (probe, step).
        weights: (probe, step).
        outliers: (outlier,) deflated eigenvalues; where no node has weight, their range counts.
    """
    nodes, weights, outliers = _checked(nodes, weights, outliers)
    counted = nodes[weights > 0] if (weights > 0).any() else outliers
    spread, magnitude = np.ptp(counted), np.abs(counted).max()
    if magnitude == 0:
        magnitude = np.abs(outliers).max(initial=0.0)
    if magnitude == 0:
        return 1.0
    width = 0.01 * magnitude if spread <= _SAME * magnitude else spread / nodes.shape[1]
    return float(max(width, _SAME * np.abs(outliers).max(initial=0.0)))


def _checked(
    nodes: np.ndarray, weights: np.ndarray, outliers: np.ndarray | Sequence[float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    nodes, weights, outliers = (np.asarray(a, dtype=np.float64) for a in (nodes, weights, outliers))
    if nodes.ndim != 2 or nodes.shape != weights.shape or outliers.ndim != 1:
        raise ValueError(
            f"nodes {nodes.shape}, weights {weights.shape}, outliers {outliers.shape}; expected (probe, step) twice "
            "and (outlier,)."
        )
    if not (weights >= 0).all() or not ((weights > 0).any() or len(outliers)):
        raise ValueError("Expected weights of 0 or more, and some above 0.")
    return nodes, weights, outliers


def _grid(centers: np.ndarray, width: float, points: int) -> np.ndarray:
    """Those points of one regular lattice that are near a centre."""
    low, high = centers.min() - _MARGIN * width, centers.max() + _MARGIN * width
    if width < 1e-12 * max(abs(low), abs(high)):
        raise ValueError(f"width={width} is lost in the rounding of values up to {max(abs(low), abs(high)):g}.")
    steps = max(points - 1, math.ceil(3 * (high - low) / width))
    spacing = (high - low) / steps
    # a point on the margin may fall to either side by rounding
    first = np.ceil((centers - _MARGIN * width - low) / spacing - 1e-3).astype(np.int64)
    last = np.floor((centers + _MARGIN * width - low) / spacing + 1e-3).astype(np.int64)
    near = np.unique(np.concatenate([np.arange(a, b + 1) for a, b in zip(first, last, strict=True)]))
    return low + spacing * near
