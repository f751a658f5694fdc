"""The figures of the Hessian analysis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from analyze.drawing import BLUE, GREEN, GREY, MODELS, VERMILLION, model_name, new_figure, plain_axes, title
from analyze.hessian.spec import MaxSpectrum, Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def figures(result: Result, others: Sequence[Result] = ()) -> dict[str, Figure]:
    """The figures for what the result holds, by name.

    `""`: spectral density on a log axis, and the extreme eigenvalues with their residuals as whiskers;
    `"max_spectrum"`: density of the mini-batches' largest eigenvalues, with those of `others` that hold some;
    `"blocks"`: mean and largest eigenvalue of each layer, and the bits allotted to it.
    """
    drawn: dict[str, Figure] = {}
    if result.density is not None or result.extremes is not None:
        drawn[""] = _spectrum(result)
    if result.max_spectrum is not None:
        drawn["max_spectrum"] = _max_spectrum([result, *(other for other in others if other.max_spectrum is not None)])
    if result.blocks is not None:
        drawn["blocks"] = _blocks(result)
    return drawn


def _spectrum(result: Result) -> Figure:
    fig = new_figure(4.0)
    if result.density is None:
        axes = fig.subplots()
        _draw_extremes(axes, result)
    elif result.extremes is None:
        axes = fig.subplots()
        _draw_density(axes, result)
    else:
        top, axes = fig.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        _draw_density(top, result)
        _draw_extremes(axes, result)
    axes.set_xlabel("eigenvalue of the Hessian of the loss (nats)")
    fig.suptitle(_title(result), fontsize=10)
    return fig


def _name(result: Result) -> str:
    return model_name(result) or f"{result.parameters:,} parameters"


def _title(result: Result) -> str:
    return title(result) + _settings(result) if result.subject else _name(result)


def _settings(result: Result) -> str:
    decay, globs = (result.subject or {}).get("weight_decay"), (result.config or {}).get("parameters")
    return (f", weight decay {decay:g}" if decay else "") + (f", over {' '.join(globs)}" if globs else "")


def _draw_density(axes: Axes, result: Result) -> None:
    density = result.density
    assert density is not None
    floor = 1e-3 / (result.parameters * density.width)  # a thousandth of one eigenvalue under the kernel
    axes.semilogy(density.x, np.maximum(density.density, floor), color=BLUE, linewidth=1.2)
    axes.fill_between(density.x, floor, np.maximum(density.density, floor), color=BLUE, alpha=0.15, linewidth=0)
    axes.set_ylim(bottom=floor)
    axes.set_ylabel("density (1/nat)")
    probes, steps = density.node.shape
    label = f"{probes} probe{'s' * (probes > 1)} × {steps} Lanczos steps\nkernel width {density.width:.3g}"
    if len(density.outlier):
        label += f"\n{len(density.outlier)} outliers deflated"
    axes.text(0.985, 0.95, label, transform=axes.transAxes, ha="right", va="top", fontsize=8, color=GREY)
    _tidy(axes)


def _draw_extremes(axes: Axes, result: Result) -> None:
    found = result.extremes
    assert found is not None
    for color, marker, name, values, residuals in (
        (VERMILLION, "o", "largest", found.largest, found.largest_residual),
        (GREEN, "s", "smallest", found.smallest, found.smallest_residual),
    ):
        if len(values):
            axes.errorbar(
                values,
                np.arange(1, len(values) + 1),
                xerr=residuals,
                fmt=marker,
                color=color,
                markersize=4,
                capsize=3,
                linewidth=1,
                label=name,
            )
    axes.invert_yaxis()
    axes.margins(y=0.2)
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.set_ylabel("rank")
    note = "whiskers: residual" if found.converged else "whiskers: residual; NOT CONVERGED"
    axes.legend(title=note, fontsize=8, title_fontsize=8, frameon=False, loc="best")
    _tidy(axes)


def _max_spectrum(results: Sequence[Result]) -> Figure:
    """Kernel densities over all batches and ranks, a rug of the values, and each model's median in the legend."""
    fig = new_figure(3.6)
    axes = fig.subplots()
    logarithmic = bool((results[0].config or {}).get("log_x"))
    shown = [(_name(result), *_positive(result.max_spectrum, logarithmic)) for result in results]
    height = 0.035
    for row, (name, values, left_out) in enumerate(shown):
        color = MODELS[row % len(MODELS)]
        if len(values):
            label = f"{name} (median {np.median(values):.3g})" + (f", {left_out} not above 0 left out" * (left_out > 0))
            if (source := _source(results[row])) != _source(results[0]):
                label += f"\n{source}"
            x, density = _smoothed(values, logarithmic)
            axes.plot(x, density, color=color, linewidth=1.4, label=label)
            axes.fill_between(x, 0, density, color=color, alpha=0.12, linewidth=0)
            bottom = -height * (row + 1)
            axes.vlines(
                values, bottom, bottom + 0.8 * height, color=color, linewidth=0.6, alpha=0.7,
                transform=axes.get_xaxis_transform(), clip_on=False,
            )  # fmt: skip
    axes.set_ylim(0, axes.get_ylim()[1] * (1 + 0.1 * len(shown)))  # room for the legend
    axes.tick_params(axis="x", pad=4 + 9 * len(shown))
    if logarithmic:
        axes.set_xscale("log")
    axes.set_xlabel(_spectrum_label(results))
    axes.set_ylabel("density per decade" if logarithmic else "density (1/nat)")
    notes = [
        f"{name}: {np.sum(~spectrum.converged)} of {len(spectrum.batch)} batches NOT CONVERGED"
        for (name, *_), spectrum in zip(shown, (r.max_spectrum for r in results), strict=True)
        if spectrum is not None and not spectrum.converged.all()
    ]
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, frameon=False, title="\n".join(notes) or None, title_fontsize=8)
    fig.suptitle(f"max-eigenvalue spectrum: {_source(results[0])}", fontsize=10)
    plain_axes(axes)
    return fig


def _positive(spectrum: MaxSpectrum | None, only_positive: bool) -> tuple[np.ndarray, int]:
    assert spectrum is not None
    values = spectrum.largest.ravel()
    kept = values[values > 0] if only_positive else values
    return kept, len(values) - len(kept)


def _smoothed(values: np.ndarray, logarithmic: bool) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian kernel density (Silverman's width, robust against outliers), over log10 of the values where told."""
    points = np.log10(values) if logarithmic else values
    low, high = np.percentile(points, [25, 75])
    spread = min(filter(None, (float(points.std()), float(high - low) / 1.349)), default=0.0)
    width = 0.9 * spread * len(points) ** -0.2 or max(0.05 * float(np.abs(points).max()), 1e-3)
    x = np.linspace(points.min() - 3 * width, points.max() + 3 * width, 800)
    density = np.exp(-0.5 * ((x[:, None] - points) / width) ** 2).mean(axis=1) / (width * np.sqrt(2 * np.pi))
    return (10.0**x if logarithmic else x), density


def _spectrum_label(results: Sequence[Result]) -> str:
    magnitude = any((result.config or {}).get("which") == "magnitude" for result in results)
    tops = {result.max_spectrum.largest.shape[1] for result in results if result.max_spectrum is not None}
    top = f"top {'/'.join(map(str, sorted(tops)))}" + (" by magnitude" if magnitude else "")
    return f"eigenvalues of mini-batches' Hessians, {top} of each (nats)"


def _source(result: Result) -> str:
    spectrum = result.max_spectrum
    assert spectrum is not None
    batches = f"{len(spectrum.batch)} batches of {spectrum.images.max()}"
    return f"{batches} of {spectrum.data.split(' (')[0]}{_settings(result)}"


def _blocks(result: Result) -> Figure:
    """By depth: mean eigenvalue with standard error, largest with residual, and bits where they were allotted."""
    blocks, quantization = result.blocks, result.quantization
    assert blocks is not None
    panels = 2 if quantization is None else 3
    fig = new_figure(2.2 + 1.6 * panels)
    axes = fig.subplots(panels, 1, sharex=True, squeeze=False)[:, 0]
    depth = np.arange(len(blocks.block))
    mean, error = blocks.trace / blocks.size, blocks.trace_stderr / blocks.size
    _by_depth(axes[0], depth, mean, error, "trace / size (nats)", BLUE)
    _by_depth(axes[1], depth, blocks.largest, blocks.largest_residual, "largest eigenvalue (nats)", VERMILLION)
    missing = np.flatnonzero(~blocks.converged & ~np.isnan(blocks.largest))
    if len(missing):
        axes[1].plot(depth[missing], blocks.largest[missing], "x", color="black", label="NOT CONVERGED")
        axes[1].legend(fontsize=8, frameon=False)
    if quantization is not None:
        where = [int(np.flatnonzero(blocks.block == layer)[0]) for layer in quantization.layer]
        for offset, color, marker, criterion, chosen in zip(
            (-0.12, 0.12), (GREEN, GREY), ("o", "s"), quantization.criterion, quantization.allocation, strict=False
        ):
            axes[2].plot(np.array(where) + offset, chosen, marker, color=color, markersize=4, label=str(criterion))
        axes[2].set_yticks(quantization.bits)
        axes[2].set_ylabel("bits")
        heading = f"least cost at {quantization.mean_bits:g} bits on average, by"
        axes[2].legend(fontsize=8, title=heading, title_fontsize=8, frameon=False, ncols=2, loc="best")
    for panel in axes:
        plain_axes(panel)
        panel.grid(axis="x", linewidth=0.3)
    axes[-1].set_xticks(depth, [str(name) for name in blocks.block], rotation=90, fontsize=6)
    axes[-1].set_xlim(-0.7, len(depth) - 0.3)
    fig.suptitle(_title(result), fontsize=10)
    return fig


def _by_depth(axes: Axes, depth: np.ndarray, value: np.ndarray, error: np.ndarray, label: str, color: str) -> None:
    axes.errorbar(depth, value, yerr=error, fmt="o", color=color, markersize=3.5, capsize=2, linewidth=1)
    finite = value[np.isfinite(value)]
    if finite.size and finite.max() > 0:
        axes.set_yscale("symlog", linthresh=max(float(np.abs(finite).max()) * 1e-4, 1e-30))
    if finite.size and finite.min() < 0:
        axes.axhline(0, color=GREY, linewidth=0.6, zorder=0)
    axes.set_ylabel(label)


def _tidy(axes: Axes) -> None:
    plain_axes(axes)
    axes.axvline(0, color=GREY, linewidth=0.6, zorder=0)
