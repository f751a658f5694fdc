"""Figures over the depth of networks: their layers in order, smoothing and subsampling marked, models overlaid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from analyze.drawing import GREY, MODELS, images_of, model_name, plain_axes, title
from analyze.layered import LayeredResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes


MARKERS = {"smoothing": ("s", "white"), "attention": ("^", "white")}
"""Marker and its face for kinds of layers; the others are full circles."""


def heading(results: Sequence[LayeredResult]) -> str:
    """Of one network its name and images, of several the images of the first; "" if not known."""
    return title(results[0]) if len(results) == 1 else images_of(results[0])


def _label(result: LayeredResult, first: LayeredResult) -> str:
    """The network's name, with its images where they are not the first one's."""
    images = images_of(result)
    return model_name(result) + (f" ({images})" if images != images_of(first) else "")


def places(results: Sequence[LayeredResult]) -> tuple[list[np.ndarray], list[str]]:
    """Where each result's layers stand on a common axis, and the names there.

    Where one has all layers of the others, in the same order, they stand where it has them; else the axis is the
    relative depth, without names.
    """
    most = max(results, key=lambda result: len(result.layer))
    names = [str(name) for name in most.layer]
    at = {name: place for place, name in enumerate(names)}
    found = [np.array([at.get(str(name), -1) for name in result.layer]) for result in results]
    if all((place >= 0).all() and (np.diff(place) > 0).all() for place in found):
        return [place.astype(float) for place in found], names
    return [result.depth for result in results], []


def draw_by_depth(
    axes: Axes,
    results: Sequence[LayeredResult],
    values: Sequence[np.ndarray],
    errors: Sequence[np.ndarray | None],
    quantity: str,
) -> None:
    """One line for each result, with its standard errors and a marker for each layer.

    Spans that lead to a smoothing layer are shaded, and dashed lines stand before layers that subsample (both of the
    first result that has any).
    """
    where, names = places(results)
    for place, result, value, error, color in zip(where, results, values, errors, _colors(len(results)), strict=True):
        label = _label(result, results[0]) or None
        axes.errorbar(place, value, yerr=error, color=color, linewidth=1.2, capsize=2, label=label)
        for kind in sorted(set(result.kind.tolist())):
            marker, face = MARKERS.get(kind, ("o", None))
            here = result.kind == kind
            axes.plot(place[here], value[here], marker, color=color, markersize=4.5, markerfacecolor=face or color)
    _mark(axes, where, results)
    axes.set_ylabel(quantity)
    if names:
        axes.set_xticks(range(len(names)), names, rotation=60, ha="right", rotation_mode="anchor", fontsize=7)
    else:
        axes.set_xlabel("relative depth")
    plain_axes(axes)


def _colors(count: int) -> list[str]:
    return [MODELS[row % len(MODELS)] for row in range(count)]


def _mark(axes: Axes, where: Sequence[np.ndarray], results: Sequence[LayeredResult]) -> None:
    smooth = next((row for row, result in enumerate(results) if result.steps), 0)
    for before, after in results[smooth].steps:
        axes.axvspan(where[smooth][before], where[smooth][after], color=GREY, alpha=0.13, linewidth=0)
    place = where[smooth]
    for layer in np.flatnonzero(results[smooth].subsampling):
        if layer > 0:
            axes.axvline((place[layer - 1] + place[layer]) / 2, color=GREY, linewidth=0.8, linestyle="--")


def legend_of_marks(axes: Axes, results: Sequence[LayeredResult]) -> None:
    """Models by colour where there are several, and what the marks mean, below the axes' title."""
    from matplotlib.lines import Line2D

    handles, labels = axes.get_legend_handles_labels()
    if len(results) == 1:
        handles, labels = [], []
    if any(result.subsampling[1:].any() for result in results):
        handles.append(Line2D([], [], color=GREY, linewidth=0.8, linestyle="--"))
        labels.append("subsampling")
    for kind in sorted(MARKERS.keys() & {str(kind) for result in results for kind in result.kind}):
        marker, face = MARKERS[kind]
        handles.append(Line2D([], [], color=GREY, marker=marker, markersize=4.5, markerfacecolor=face, linewidth=0))
        labels.append(kind)
    if handles:
        axes.legend(
            handles,
            labels,
            fontsize=8,
            frameon=False,
            ncols=2 + len(results) // 2,
            loc="lower left",
            bbox_to_anchor=(0, 1.0),
        )
