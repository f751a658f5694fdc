"""Nine points of growing radius, to tell how large a span shows the basin."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from analyze.landscape.spec import Prescan

GOLDEN_ANGLE = np.pi * (3 - np.sqrt(5))


def places(span: float, *, one_dimensional: bool) -> np.ndarray:
    """(9, 2) points: the checkpoint, then radii (largest of |x| and |y|) from span / 64 to 2 span, each twice the last.

    They turn by the golden angle from one to the next; those of a line change sides.
    """
    radius = np.concatenate([[0.0], span * 2.0 ** np.arange(-6, 2)])
    angle = np.arange(9) * (np.pi if one_dimensional else GOLDEN_ANGLE)
    turn = np.stack([np.cos(angle), np.zeros(9) if one_dimensional else np.sin(angle)], axis=1)
    return radius[:, None] * turn / np.abs(turn).max(axis=1, keepdims=True)


def prescan(
    nll: Callable[[float, float], float], span: float, guessing: float, *, one_dimensional: bool = False
) -> Prescan:
    """The span at whose rim the loss reaches that of guessing, from nine points.

    Args:
        nll: Mean NLL at (x, y).
        span: Around which to look.
        guessing: NLL of a guess, log of the number of classes; NaN if there are no classes. Where it is no more than
            twice the NLL at the checkpoint, that counts.
        one_dimensional: Whether there is x alone.
    """
    points = places(span, one_dimensional=one_dimensional)
    found = np.array([nll(float(x), float(y)) for x, y in points])
    target = float(np.fmax(guessing, 2 * found[0]))
    radius = np.abs(points).max(axis=1)
    return Prescan(points[:, 0], points[:, 1], radius, found, target, _reaches(radius, found, target))


def _reaches(radius: np.ndarray, nll: np.ndarray, target: float) -> float:
    """Where a rising loss first gets to the target, between two radii by the logarithm of the radius."""
    beyond = np.flatnonzero(~(nll[1:] < target)) + 1
    if not len(beyond) or np.isnan(target):
        return np.nan
    end = beyond[0]
    if end == 1 or not np.isfinite(nll[end]):
        return float(radius[end])
    share = (target - nll[end - 1]) / (nll[end] - nll[end - 1])
    return float(radius[end - 1] * (radius[end] / radius[end - 1]) ** share)
