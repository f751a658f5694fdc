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
    from matplotlib.lines import Line2D


def figures(result: Result, others: Sequence[Result] = ()) -> dict[str, Figure]:
    """The figures for what the result holds, by name, with `others` that hold the same in them.

    `""`: spectral density on a log axis, and the extreme eigenvalues with their residuals as whiskers;
    `"max_spectrum"`: density of the mini-batches' largest eigenvalues;
    `"blocks"`: mean and largest eigenvalue of each layer, and, of a result alone, the bits allotted to it.
    """
    drawn: dict[str, Figure] = {}
    results = [result, *others]
    if result.density is not None or result.extremes is not None:
        drawn[""] = _spectrum([each for each in results if each.density is not None or each.extremes is not None])
    if result.max_spectrum is not None:
        drawn["max_spectrum"] = _max_spectrum([each for each in results if each.max_spectrum is not None])
    if result.blocks is not None:
        drawn["blocks"] = _blocks([each for each in results if each.blocks is not None])
    return drawn


def _spectrum(results: Sequence[Result]) -> Figure:
    fig = new_figure(4.0)
    densities = any(result.density is not None for result in results)
    if densities and any(result.extremes is not None for result in results):
        top, axes = fig.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        _draw_density(top, results)
        _draw_extremes(axes, results)
    else:
        axes = fig.subplots()
        (_draw_density if densities else _draw_extremes)(axes, results)
    if len(results) > 1:
        fig.legend(handles=_models(results), loc="outside lower center", fontsize=8, frameon=False)
    axes.set_xlabel("eigenvalue of the Hessian of the loss (nats)")
    fig.suptitle(_title(results), fontsize=10)
    return fig


def _name(result: Result) -> str:
    return model_name(result) or f"{result.parameters:,} parameters"


def _title(results: Sequence[Result]) -> str:
    """What is drawn: of one network its name and images, of several the images of the first."""
    first = results[0]
    if not first.subject:
        return _name(first) if len(results) == 1 else ""
    return title(first) + _settings(first) if len(results) == 1 else _images(first)


def _images(result: Result) -> str:
    subject = result.subject or {}
    return f"{subject['images']:,} images of {subject['data']}{_settings(result)}" if subject else ""


def _settings(result: Result) -> str:
    decay, globs = (result.subject or {}).get("weight_decay"), (result.config or {}).get("parameters")
    return (f", weight decay {decay:g}" if decay else "") + (f", over {' '.join(globs)}" if globs else "")


def _color(place: int) -> str:
    return MODELS[place % len(MODELS)]


def _models(results: Sequence[Result]) -> list[Line2D]:
    """A legend's line for each network, with its images where they are not those of the first."""
    from matplotlib.lines import Line2D

    names = [_name(result) + f" ({_images(result)})" * (_images(result) != _images(results[0])) for result in results]
    return [Line2D([], [], color=_color(place), label=name) for place, name in enumerate(names)]


def _draw_density(axes: Axes, results: Sequence[Result]) -> None:
    found = [(place, result, result.density) for place, result in enumerate(results) if result.density is not None]
    # a thousandth of one eigenvalue under the kernel
    floor = min(1e-3 / (result.parameters * density.width) for _, result, density in found)
    for place, _, density in found:
        curve = np.maximum(density.density, floor)
        axes.semilogy(density.x, curve, color=_color(place), linewidth=1.2)
        axes.fill_between(density.x, floor, curve, color=_color(place), alpha=0.15, linewidth=0)
    axes.set_ylim(bottom=floor)
    axes.set_ylabel("density (1/nat)")
    if len(results) == 1:
        density = found[0][2]
        probes, steps = density.node.shape
        label = f"{probes} probe{'s' * (probes > 1)} × {steps} Lanczos steps\nkernel width {density.width:.3g}"
        if len(density.outlier):
            label += f"\n{len(density.outlier)} outliers deflated"
    else:
        label = "kernel width " + ", ".join(f"{density.width:.3g}" for *_, density in found)
    axes.text(0.985, 0.95, label, transform=axes.transAxes, ha="right", va="top", fontsize=8, color=GREY)
    _tidy(axes)


def _draw_extremes(axes: Axes, results: Sequence[Result]) -> None:
    from matplotlib.lines import Line2D

    alone, kinds, missing = len(results) == 1, {}, []
    for place, result in enumerate(results):
        if (found := result.extremes) is None:
            continue
        if not found.converged:
            missing.append(_name(result))
        for own, marker, name, values, residuals in (
            (VERMILLION, "o", "largest", found.largest, found.largest_residual),
            (GREEN, "s", "smallest", found.smallest, found.smallest_residual),
        ):
            if len(values):
                ranks = np.arange(1, len(values) + 1) + 0.24 * (place - (len(results) - 1) / 2)
                axes.errorbar(
                    values, ranks, xerr=residuals, fmt=marker, color=own if alone else _color(place), markersize=4,
                    capsize=3, linewidth=1, label=name,
                )  # fmt: skip
                kinds[name] = Line2D([], [], color=GREY, marker=marker, markersize=4, linewidth=0, label=name)
    axes.invert_yaxis()
    axes.margins(y=0.2)
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.set_ylabel("rank")
    note = "whiskers: residual" + (f"; {'' if alone else ', '.join(missing) + ' '}NOT CONVERGED" if missing else "")
    handles = {} if alone else {"handles": list(kinds.values())}
    axes.legend(**handles, title=note, fontsize=8, title_fontsize=8, frameon=False, loc="best")
    _tidy(axes)


def _max_spectrum(results: Sequence[Result]) -> Figure:
    """Kernel densities over all batches and ranks, a rug of the values, and each model's median in the legend."""
    fig = new_figure(3.6)
    axes = fig.subplots()
    logarithmic = bool((results[0].config or {}).get("log_x"))
    shown = [(_name(result), *_positive(result.max_spectrum, logarithmic)) for result in results]
    height = 0.035
    for row, (name, values, left_out) in enumerate(shown):
        color = _color(row)
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
    axes.set_xlabel(spectrum_label(results))
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


def spectrum_label(results: Sequence[Result]) -> str:
    """What the axis of mini-batches' eigenvalues shows: how many of each, and by what order where it isn't by value."""
    orders = {"magnitude" if (each.config or {}).get("which") == "magnitude" else "value" for each in results}
    by = "" if orders == {"value"} else f" by {' or '.join(sorted(orders))}"
    tops = {result.max_spectrum.largest.shape[1] for result in results if result.max_spectrum is not None}
    return f"eigenvalues of mini-batches' Hessians, top {'/'.join(map(str, sorted(tops)))}{by} of each (nats)"


def _source(result: Result) -> str:
    spectrum = result.max_spectrum
    assert spectrum is not None
    batches = f"{len(spectrum.batch)} batches of {spectrum.images.max()}"
    return f"{batches} of {spectrum.data.split(' (')[0]}{_settings(result)}"


def _blocks(results: Sequence[Result]) -> Figure:
    """By depth: mean eigenvalue with standard error, largest with residual, and of one network the bits allotted."""
    found = [result.blocks for result in results if result.blocks is not None]
    alone, quantization = len(results) == 1, results[0].quantization if len(results) == 1 else None
    panels = 2 if quantization is None else 3
    fig = new_figure(2.2 + 1.6 * panels)
    axes = fig.subplots(panels, 1, sharex=True, squeeze=False)[:, 0]
    places = {name: place for place, name in enumerate(dict.fromkeys(str(n) for each in found for n in each.block))}
    for row, blocks in enumerate(found):
        depth = np.array([places[str(name)] for name in blocks.block]) + 0.2 * (row - (len(found) - 1) / 2)
        mean, error = blocks.trace / blocks.size, blocks.trace_stderr / blocks.size
        _by_depth(axes[0], depth, mean, error, BLUE if alone else _color(row))
        _by_depth(axes[1], depth, blocks.largest, blocks.largest_residual, VERMILLION if alone else _color(row))
        missing = np.flatnonzero(~blocks.converged & ~np.isnan(blocks.largest))
        if len(missing):
            axes[1].plot(depth[missing], blocks.largest[missing], "x", color="black", label="NOT CONVERGED")
            handles = axes[1].get_legend_handles_labels()[0]
            axes[1].legend(handles=handles[-1:], fontsize=8, frameon=False)
    _scale(axes[0], np.concatenate([each.trace / each.size for each in found]), "trace / size (nats)")
    _scale(axes[1], np.concatenate([each.largest for each in found]), "largest eigenvalue (nats)")
    if quantization is not None:
        where = [places[str(layer)] for layer in quantization.layer]
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
    axes[-1].set_xticks(range(len(places)), list(places), rotation=90, fontsize=6)
    axes[-1].set_xlim(-0.7, len(places) - 0.3)
    if not alone:
        fig.legend(handles=_models(results), loc="outside lower center", fontsize=8, frameon=False)
    fig.suptitle(_title(results), fontsize=10)
    return fig


def _by_depth(axes: Axes, depth: np.ndarray, value: np.ndarray, error: np.ndarray, color: str) -> None:
    axes.errorbar(depth, value, yerr=error, fmt="o", color=color, markersize=3.5, capsize=2, linewidth=1)


def _scale(axes: Axes, value: np.ndarray, label: str) -> None:
    """An axis that is logarithmic but near zero, where there are values above it."""
    finite = value[np.isfinite(value)]
    if finite.size and finite.max() > 0:
        axes.set_yscale("symlog", linthresh=max(float(np.abs(finite).max()) * 1e-4, 1e-30))
    if finite.size and finite.min() < 0:
        axes.axhline(0, color=GREY, linewidth=0.6, zorder=0)
    axes.set_ylabel(label)


def _tidy(axes: Axes) -> None:
    plain_axes(axes)
    axes.axvline(0, color=GREY, linewidth=0.6, zorder=0)
