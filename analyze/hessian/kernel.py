"""From the nodes and weights of a quadrature to a density curve. NumPy only, to draw stored runs."""

from __future__ import annotations

import math

import numpy as np

# A Gaussian holds all but 2e-9 of its mass within this many widths.
_MARGIN = 6
_MAX_POINTS = 1_000_000
# Nodes that agree to this relative precision are one eigenvalue in float32.
_SAME = 1e-6


def kernel_density(
    nodes: np.ndarray,
    weights: np.ndarray,
    x: np.ndarray | None = None,
    width: float | None = None,
    points: int = 1024,
) -> tuple[np.ndarray, np.ndarray]:
    r"""Spectral density: the quadrature of each probe blurred by a Gaussian kernel, and averaged over probes.

    $$\phi(x) = \frac{1}{P \sqrt{2 \pi} \sigma} \sum_{p,i} w_{pi} e^{-(x - \theta_{pi})^2 / 2 \sigma^2}$$

    (Ghorbani, Krishnan & Xiao, "An Investigation into Neural Net Optimization via Hessian Eigenvalue
    Density", 2019). The default grid reaches 6 widths beyond the nodes with a spacing of at most a third of
    the width, so the curve integrates to 1 by the trapezoidal rule. The curve of c H is that of H, stretched
    by c.

    Args:
        nodes: (probe, step) in units of the eigenvalues; those of weight 0 are ignored.
        weights: (probe, step), 0 or more, summing to 1 for each probe.
        x: (point,) where to evaluate; by default as said above.
        width: sigma, in units of the eigenvalues; by default `default_width(nodes, weights)`.
        points: the least number of points of the default grid.

    Returns:
        x (point,) and the density there (point,), in inverse units of the eigenvalues.

    Raises:
        ValueError: shapes that differ, a negative weight, a width that isn't positive, or one so small
            against the range that the grid would need over a million points.
    """
    nodes, weights = _checked(nodes, weights)
    width = default_width(nodes, weights) if width is None else width
    if not 0 < width < math.inf:
        raise ValueError(f"width={width}; expected a positive number, in units of the eigenvalues.")
    probes = len(nodes)
    counted = weights > 0
    nodes, weights = nodes[counted], weights[counted]
    x = _grid(nodes.min(), nodes.max(), width, points) if x is None else np.asarray(x, dtype=np.float64)
    density = np.zeros_like(x)
    for node, weight in zip(nodes, weights, strict=True):
        density += weight * np.exp(-0.5 * ((x - node) / width) ** 2)
    return x, density / (probes * width * math.sqrt(2 * math.pi))


def default_width(nodes: np.ndarray, weights: np.ndarray, low: float = -math.inf, high: float = math.inf) -> float:
    r"""Kernel width in units of the eigenvalues: what the quadrature can resolve.

    $$\sigma = (\max \theta - \min \theta) / m$$

    with m the number of steps, over the nodes of positive weight strictly between low and high: m nodes a range
    apart have a mean spacing of sigma, and of up to $\pi \sigma / 2$ in the middle. Outliers outside make
    spikes of that width instead of blurring the bulk. Where all nodes agree to 1e-6, sigma is 1 % of their
    magnitude, and 1 if they are zero.

    Args:
        nodes: (probe, step).
        weights: (probe, step).
        low: Nodes from here down are outliers; all count where none lie between.
        high: Nodes from here up are outliers.
    """
    nodes, weights = _checked(nodes, weights)
    counted = nodes[weights > 0]
    inner = counted[(counted > low) & (counted < high)]
    counted = inner if inner.size else counted
    spread, magnitude = counted.max() - counted.min(), np.abs(counted).max()
    if magnitude == 0:
        return 1.0
    if spread <= _SAME * magnitude:
        return float(0.01 * magnitude)
    return float(spread / nodes.shape[1])


def _checked(nodes: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    nodes, weights = np.asarray(nodes, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    if nodes.ndim != 2 or nodes.shape != weights.shape:
        raise ValueError(f"nodes {nodes.shape} and weights {weights.shape}; expected both (probe, step).")
    if not (weights >= 0).all() or not (weights > 0).any():
        raise ValueError("Expected weights of 0 or more, and some above 0.")
    return nodes, weights


def _grid(low: float, high: float, width: float, points: int) -> np.ndarray:
    low, high = low - _MARGIN * width, high + _MARGIN * width
    needed = math.ceil(3 * (high - low) / width) + 1
    if needed > _MAX_POINTS:
        raise ValueError(
            f"width={width} is so small against the range {low} to {high} that {needed:,} points would be "
            "needed; give a larger width, or x."
        )
    return np.linspace(low, high, max(points, needed))
