"""The figures of the Fourier analysis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from analyze.by_depth import draw_by_depth, heading, legend_of_marks
from analyze.drawing import GREY, in_order, model_name, new_figure, plain_axes, title
from analyze.fourier.spec import HALF, HIGH, Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def figures(result: Result, others: Sequence[Result] = ()) -> dict[str, Figure]:
    """The figures for what the result holds, by name, those of `others` beside them.

    `""`: relative log amplitude over frequency, a line for each layer, and at high frequency over depth;
    `"noise"`: noise power by ring, a line for each layer, and the share of it at high frequency over depth, where there
    is any; `"spectra"`: the frequency plane of each layer that was asked for.
    """
    results = [result, *others]
    drawn = {"": _amplitudes(results)}
    noisy = [each for each in results if (each.model_noise_power > 0).any()]
    if noisy:
        drawn["noise"] = _noise(noisy)
    if result.spectra:
        drawn["spectra"] = _planes(result)
    return drawn


def _amplitudes(results: Sequence[Result]) -> Figure:
    fig, tops, bottom = _panels(results)
    for axes, result in zip(tops, results, strict=True):
        for layer, color in enumerate(in_order(len(result.layer))):
            axes.plot(result.frequency[layer], result.relative_log_amplitude[layer], color=color, linewidth=1.1)
        axes.set_xlim(0, 1)
        _scale(axes, len(result.layer), model_name(result) if len(results) > 1 else "", "frequency on both axes")
    tops[0].set_ylabel("relative log amplitude (nats)")
    # a box blur leaves exactly nothing at the Nyquist frequency: that is no reason to shrink all the rest
    below = np.concatenate([each.relative_log_amplitude[each.frequency < 1] for each in results])
    lowest = float(np.min(below, where=np.isfinite(below), initial=0.0))
    highest = float(np.max(below, where=np.isfinite(below), initial=0.0))
    if lowest < highest:
        tops[0].set_ylim(lowest - 0.1 * (highest - lowest), highest + 0.05 * (highest - lowest))
    values = [each.high_frequency_amplitude for each in results]
    errors = [each.high_frequency_amplitude_stderr for each in results]
    draw_by_depth(bottom, results, values, errors, f"relative, at {HIGH:g}π")
    legend_of_marks(bottom, results)
    return fig


def _noise(results: Sequence[Result]) -> Figure:
    fig, tops, bottom = _panels(results)
    for axes, result in zip(tops, results, strict=True):
        for layer, color in enumerate(in_order(len(result.layer))):
            power = result.model_noise_power[layer, 1:]
            there = power > 0
            axes.semilogy(
                result.radial_frequency[1:][there], power[there], ".-", color=color, linewidth=1.1, markersize=4
            )
        axes.set_xlim(0, float(result.radial_frequency[-1]) + 0.05)
        _scale(axes, len(result.layer), model_name(result) if len(results) > 1 else "", f"{result.rings} frequency")
    tops[0].set_ylabel("noise power in a ring")
    # where a box blur leaves nothing, there is the noise of rounding
    highest = max(float(np.nanmax(each.model_noise_power[:, 1:])) for each in results)
    tops[0].set_ylim(highest * 1e-5, highest * 2)
    shares = [each.high_share(each.model_noise_power) for each in results]
    draw_by_depth(bottom, results, shares, [None] * len(results), f"share of it from {HALF:g}π up,\nwithout origin")
    bottom.set_ylim(0, 1.05)
    legend_of_marks(bottom, results)
    return fig


def _panels(results: Sequence[Result]) -> tuple[Figure, list[Axes], Axes]:
    """A panel for each result on top, with a common scale, and one below."""
    fig = new_figure(6.4, max(6.4, 3.2 * len(results)))
    grid: Any = fig.add_gridspec(2, len(results), height_ratios=(3, 2))
    tops: list[Axes] = []
    for column in range(len(results)):
        tops.append(fig.add_subplot(grid[0, column], sharey=tops[0] if tops else None))
        tops[-1].tick_params(labelleft=column == 0)
    bottom = fig.add_subplot(grid[1, :])
    fig.suptitle(heading(results), fontsize=10)
    return fig, tops, bottom


def _scale(axes: Axes, count: int, name: str, frequency: str) -> None:
    """Frequencies below, and the colours of the layers from first to last as a bar above."""
    axes.set_xlabel(f"{frequency} (π)")
    plain_axes(axes)
    inset = axes.inset_axes((0.0, 1.04, 1.0, 0.03))
    inset.imshow(np.array(in_order(count))[None], aspect="auto")
    inset.set_xticks([])
    inset.set_yticks([])
    inset.spines[:].set_visible(False)
    inset.set_title(f"{name + ': ' if name else ''}first to last layer", fontsize=8, color=GREY, pad=3)


def _planes(result: Result) -> Figure:
    """Mean log amplitude less that at the origin, with a colour scale for each layer."""
    names = [str(name) for name in result.layer if str(name) in result.spectra]
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    fig = new_figure(0.6 + 2.3 * rows, max(4.0, 2.6 * columns))
    panels = fig.subplots(rows, columns, squeeze=False).ravel()
    for axes, name in zip(panels, names, strict=False):
        plane = result.spectra[name]
        plane = plane - plane[plane.shape[0] // 2, plane.shape[1] // 2]
        inside = plane[tuple(slice(1 - size % 2, None) for size in plane.shape)]  # a blur leaves nothing at -1
        extent = _extent(plane.shape)
        lowest = float(np.nanmin(inside)) if np.isfinite(inside).any() else None
        image = axes.imshow(plane, cmap="viridis", origin="lower", extent=extent, vmin=lowest)
        axes.set_title(name, fontsize=8)
        axes.tick_params(labelsize=7)
        axes.set(xticks=[-1, 0, 1], yticks=[-1, 0, 1], xlim=extent[:2], ylim=extent[2:])
        fig.colorbar(image, ax=axes, shrink=0.8).ax.tick_params(labelsize=7)
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    fig.supxlabel("frequency (π)", fontsize=8)
    fig.supylabel("frequency (π)", fontsize=8)
    fig.suptitle(f"relative log amplitude (nats), {title(result)}", fontsize=9)
    return fig


def _extent(shape: tuple[int, ...]) -> tuple[float, float, float, float]:
    """Edges of the pixels, each of which stands for one frequency: left, right, bottom, top."""
    height, width = ((-(n // 2) * 2 / n - 1 / n, ((n - 1) // 2) * 2 / n + 1 / n) for n in shape)
    return (*width, *height)
