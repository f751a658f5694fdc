"""Filled contours of a metric, and what they can't be drawn of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from analyze.landscape.scene import RED
from analyze.landscape.shown import COLORS, Extend, Shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.contour import QuadContourSet
    from matplotlib.figure import Figure

MISSING, INFINITE = "////", "xxxx"
"""Hatches of points that are not there, and of points that are not finite."""


def draw_contours(
    axes: Axes, shown: Shown, levels: np.ndarray, metric: str, *, extend: Extend = "neither"
) -> QuadContourSet:
    """Filled contours with thin lines between them; what is missing is hatched, what is not finite cross-hatched.

    Args:
        axes: Where; its limits become the range of the grid.
        shown: The values, (Y, X): row 0 at the bottom.
        levels: Ascending; each class has a colour of its own.
        metric: Which decides the colour map; `spread` too.
        extend: `max` for an open class above the last level.
    """
    import matplotlib
    from matplotlib.colors import BoundaryNorm

    colors = matplotlib.colormaps[COLORS.get(metric, "Blues")]
    norm = BoundaryNorm(levels, colors.N, extend=extend)
    coarse = shown.coarse()
    value = np.ma.masked_invalid(coarse.value)
    if min(value.shape) > 1 and value.count() > 0:
        contours = axes.contourf(
            coarse.x, coarse.y, value, levels=levels, cmap=colors, norm=norm, extend=extend, zorder=2
        )
        axes.contour(coarse.x, coarse.y, value, levels=levels, colors="white", linewidths=0.4, alpha=0.7, zorder=3)
    else:
        contours = axes.contourf(np.full((2, 2), levels[0]), levels=levels, cmap=colors, norm=norm, extend=extend)
        contours.set_visible(False)
    axes.set(xlim=(shown.x[0], shown.x[-1]), ylim=(shown.y[0], shown.y[-1]))
    _hatch(axes, shown, coarse)
    return contours


def _hatch(axes: Axes, shown: Shown, coarse: Shown) -> None:
    """Under the contours: the whole picture as missing where anything is, cells with a non-finite corner as such."""
    from matplotlib.collections import PolyCollection
    from matplotlib.patches import Rectangle

    gaps = coarse.missing.any() or coarse.x[[0, -1]].tolist() != shown.x[[0, -1]].tolist()
    if gaps or coarse.y[[0, -1]].tolist() != shown.y[[0, -1]].tolist():
        corner, width, height = (shown.x[0], shown.y[0]), np.ptp(shown.x), np.ptp(shown.y)
        axes.add_patch(
            Rectangle(
                corner, width, height, facecolor="white", edgecolor="0.6", hatch=MISSING, linewidth=0, zorder=1,
                label="not computed",
            )
        )  # fmt: skip
    if coarse.nonfinite.any():
        corners = np.stack(np.meshgrid(coarse.x, coarse.y), axis=-1)
        cells = np.stack([corners[:-1, :-1], corners[:-1, 1:], corners[1:, 1:], corners[1:, :-1]], axis=2)
        touched = _any_corner(coarse.nonfinite) & ~_any_corner(coarse.missing)
        axes.add_collection(
            PolyCollection(
                cells[touched], facecolors="#ffe3e3", edgecolors=RED, hatch=INFINITE, linewidths=0, zorder=1.5,
                label="not finite",
            ),
            autolim=False,
        )  # fmt: skip
        rows, columns = np.nonzero(coarse.nonfinite)
        axes.plot(coarse.x[columns], coarse.y[rows], "x", color=RED, markersize=4, zorder=4, clip_on=False)


def _any_corner(points: np.ndarray) -> np.ndarray:
    return points[:-1, :-1] | points[:-1, 1:] | points[1:, 1:] | points[1:, :-1]


def draw_bar(fig: Figure, drawn: QuadContourSet, axes: Any, label: str) -> None:
    """A colour bar whose ticks are the levels; the open class says what it begins at."""
    bar = fig.colorbar(drawn, ax=axes, label=label, spacing="uniform", extendfrac=0.09, pad=0.02)
    levels = np.asarray(drawn.levels)
    bar.set_ticks(levels.tolist(), labels=_told(levels))
    bar.ax.tick_params(labelsize=8, length=2)
    bar.ax.minorticks_off()
    bar.ax.yaxis.label.set_fontsize(9)
    if drawn.extend == "max":
        bar.ax.text(
            0.5, 1.02, f"> {_told(levels)[-1]}", transform=bar.ax.transAxes, ha="center", va="bottom", fontsize=8,
            color="black",
        ).set_y(1.11)  # fmt: skip


def _told(levels: np.ndarray) -> list[str]:
    """As many digits as it takes to tell neighbours apart, three at least."""
    for digits in range(3, 9):
        told = [f"{level:.{digits}g}" for level in levels]
        if len(set(told)) == len(told):
            break
    return told
