"""The figures of the robustness analysis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from analyze.drawing import GREY, MODELS, in_order, model_name, new_figure, plain_axes
from analyze.robustness.corruption_errors import mean_accuracies, whole_kinds
from analyze.robustness.spec import FrequencyNoise, HeatMap, Result, attacked_band, noise_name, other_options

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def figures(result: Result, others: Sequence[Result] = ()) -> dict[str, Figure]:
    """The figures for what the result holds, by name, with `others` that hold the same in them.

    `""`: accuracy over the band of the noise, a line for each strength, and the strength at half accuracy; of several
    networks, at the strength that tells the bands apart best. `"heat_map"`: error over the Fourier plane, and of two
    networks the difference. `"attacks"`: accuracy over the bound. `"corruptions"`: accuracy for each kind.
    """
    drawn: dict[str, Figure] = {}
    if result.frequency_noise is not None:
        drawn[""] = _noise(_alike("frequency_noise", result, others))
    if result.heat_map is not None:
        drawn["heat_map"] = _heat_maps(_alike("heat_map", result, others))
    if result.adversarial is not None and len(result.adversarial.epsilon):
        drawn["attacks"] = _attacks(_alike("adversarial", result, others))
    if result.corruptions is not None and len(result.corruptions.corruption):
        severities = result.corruptions.severity
        alike = _alike("corruptions", result, others)
        drawn["corruptions"] = _corruptions(
            [each for each in alike if np.array_equal(severities, each.corruptions.severity)]  # type: ignore[union-attr]
        )
    return drawn


def _alike(part: str, result: Result, others: Sequence[Result]) -> list[Result]:
    """The result, and the others that hold the part with the same options."""
    held = [other for other in others if getattr(other, part) is not None]
    return [result, *(other for other in held if not other_options(part, result.config, other.config))]


def _name(result: Result, place: int = 0) -> str:
    return model_name(result) or f"model {place + 1}"


def _heading(results: Sequence[Result], images: int | None = None) -> str:
    """Which images, and of a network alone which network; `images` where the part used only some of them."""
    subject = results[0].subject or {}
    if not subject:
        return ""
    count = subject["images"] if images is None else images
    name = f"{_name(results[0])}: " if len(results) == 1 else ""
    return f"{name}{count:,} images of {subject['data']}"


def _noise(results: Sequence[Result]) -> Figure:
    fig = new_figure(5.4)
    top, bottom = fig.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    if len(results) == 1:
        _accuracy_by_strength(top, results[0])
    else:
        _accuracy_by_model(top, results)
    for place, result in enumerate(results):
        _sigma_half(bottom, result, MODELS[place % len(MODELS)], (place - (len(results) - 1) / 2) * 0.006)
    first, sigma = _noise_of(results[0]), np.unique(np.concatenate([_noise_of(result).sigma for result in results]))
    bottom.set_yscale("log")
    bottom.set_ylim(sigma[0] / 1.6, sigma[-1] * 1.6)
    bottom.set_yticks(sigma, [f"{value:g}" for value in sigma])
    bottom.minorticks_off()
    bottom.set_ylabel("sigma at half accuracy")
    bottom.set_xlabel("frequency of the noise (π rad/px)")
    bottom.set_xlim(-0.02, max(1.0, float(first.band_high.max())) + 0.02)
    bottom.grid(axis="y", linewidth=0.3)
    if any((_noise_of(result).sigma_half_side != 0).any() for result in results):
        note = "arrows: beyond the strengths tried"
        bottom.text(0.985, 0.04, note, transform=bottom.transAxes, ha="right", va="bottom", fontsize=7, color=GREY)
    for axes in (top, bottom):
        plain_axes(axes)
    fig.suptitle(_heading(results), fontsize=10)
    return fig


def _noise_of(result: Result) -> FrequencyNoise:
    assert result.frequency_noise is not None
    return result.frequency_noise


def _accuracy_by_strength(axes: Axes, result: Result) -> None:
    noise = _noise_of(result)
    for color, sigma, accuracy, error in zip(
        in_order(len(noise.sigma)), noise.sigma, noise.accuracy, noise.accuracy_stderr, strict=True
    ):
        _curve(axes, noise, accuracy, error, color, f"{sigma:g}")
    _clean_lines(axes, [result], [GREY])
    axes.legend(fontsize=8, title=f"sigma{noise_name(result.config)}", title_fontsize=8, frameon=False, ncols=2)


def _accuracy_by_model(axes: Axes, results: Sequence[Result]) -> None:
    """At the strength, of those that all have, where the first network's bands differ most."""
    shared = set.intersection(*(set(_noise_of(result).sigma.tolist()) for result in results))
    first = _noise_of(results[0])
    spread = [
        np.nanmax(accuracy) - np.nanmin(accuracy) if sigma in shared and not np.isnan(accuracy).all() else -1.0
        for sigma, accuracy in zip(first.sigma, first.accuracy, strict=True)
    ]
    chosen = first.sigma[int(np.argmax(spread))]
    colors = [MODELS[place % len(MODELS)] for place in range(len(results))]
    for place, (color, result) in enumerate(zip(colors, results, strict=True)):
        noise = _noise_of(result)
        for strength in np.flatnonzero(noise.sigma == chosen):
            _curve(axes, noise, noise.accuracy[strength], noise.accuracy_stderr[strength], color, _name(result, place))
    _clean_lines(axes, results, colors)
    kind = f"sigma {chosen:g}{noise_name(results[0].config)}"
    axes.legend(fontsize=8, title=kind, title_fontsize=8, frameon=False, loc="best")


def _curve(axes: Axes, noise: FrequencyNoise, value: np.ndarray, error: np.ndarray, color: object, label: str) -> None:
    axes.errorbar(
        (noise.band_low + noise.band_high) / 2, value, yerr=error, fmt="o-", color=color, markersize=3.5, linewidth=1.2,
        capsize=2, label=label,
    )  # fmt: skip


def _clean_lines(axes: Axes, results: Sequence[Result], colors: Sequence[str]) -> None:
    for result, color in zip(results, colors, strict=True):
        if result.clean is not None:
            axes.axhline(result.clean.accuracy, color=color, linewidth=0.8, linestyle="--", zorder=0)
            axes.axhline(1 / result.clean.classes, color=GREY, linewidth=0.8, linestyle=":", zorder=0)
    axes.set_ylim(0, 1.02)
    axes.set_ylabel("accuracy")
    axes.text(1.0, 1.01, "dashed: without noise; dotted: chance", transform=axes.transAxes, ha="right", va="bottom",
              fontsize=7, color=GREY)  # fmt: skip


def _sigma_half(axes: Axes, result: Result, color: str, shift: float) -> None:
    noise = _noise_of(result)
    centre = (noise.band_low + noise.band_high) / 2 + shift
    axes.errorbar(
        centre, noise.sigma_half, yerr=np.nan_to_num(noise.sigma_half_stderr), fmt="o-", color=color, markersize=3.5,
        linewidth=1.2, capsize=2,
    )  # fmt: skip
    for side, factor, marker in ((-1, 1 / 1.25, "v"), (1, 1.25, "^")):
        bands, last = beyond(noise, side)
        axes.plot(centre[bands], last * factor, marker, color=color, markersize=5)


def beyond(noise: FrequencyNoise, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Bands whose strength at half accuracy is below (-1) or above (1) those tried, and the last one tried in each."""
    tried = ~np.isnan(noise.accuracy)
    bands = np.flatnonzero((noise.sigma_half_side == side) & tried.any(axis=0))
    return bands, np.array([noise.sigma[tried[:, band]][0 if side < 0 else -1] for band in bands])


def _heat_maps(results: Sequence[Result]) -> Figure:
    maps = [result.heat_map for result in results if result.heat_map is not None]
    panels = _heat_map_panels(results, maps)
    fig = new_figure(3.1, max(6.4, 3.3 * len(panels)))
    row = fig.subplots(1, len(panels), squeeze=False)[0]
    for axes, (label, found, values, palette, low, high) in zip(row, panels, strict=True):
        grid = (_cell_edges(found.frequency_x), _cell_edges(found.frequency_y))
        mesh = axes.pcolormesh(*grid, values, cmap=palette, vmin=low, vmax=high, rasterized=True)
        axes.set_aspect("equal")
        axes.set_title(label, fontsize=9)
        axes.set_xlabel("horizontal frequency (π rad/px)")
        fig.colorbar(mesh, ax=axes, shrink=0.8)
    row[0].set_ylabel("vertical frequency (π rad/px)")
    first = maps[0]
    what = f"waves with a root mean square of {first.sigma:g}"
    fig.suptitle(", ".join(filter(None, [_heading(results, first.images), what])), fontsize=10)
    return fig


def _heat_map_panels(
    results: Sequence[Result], maps: Sequence[HeatMap]
) -> list[tuple[str, HeatMap, np.ndarray, str, float, float]]:
    """(label, map, values, palette, its limits) of each panel."""
    if len(maps) == 1:
        found = maps[0]
        return [
            (f"error (clean: {found.clean_error:.3f})", found, found.error, "inferno", 0.0, 1.0),
            ("flip rate", found, found.flip_rate, "inferno", 0.0, 1.0),
        ]
    panels = [
        (f"{_name(result, place)}\nerror (clean: {found.clean_error:.3f})", found, found.error, "inferno", 0.0, 1.0)
        for place, (result, found) in enumerate(zip(results, maps, strict=True))
    ]
    first, second = maps[:2]
    if len(maps) == 2 and first.error.shape == second.error.shape:
        change = second.error - first.error
        most = float(np.nanmax(np.abs(change), initial=0.05))
        panels.append(("difference of the errors\n(second - first)", first, change, "RdBu_r", -most, most))
    return panels


def _cell_edges(frequency: np.ndarray) -> np.ndarray:
    """Half-way between frequencies."""
    step = frequency[1] - frequency[0] if len(frequency) > 1 else 1.0
    return np.append(frequency - step / 2, frequency[-1] + step / 2)


def _attacks(results: Sequence[Result]) -> Figure:
    first = results[0].adversarial
    assert first is not None
    norms = list(dict.fromkeys(map(str, first.norm)))
    fig = new_figure(3.4)
    row = fig.subplots(1, len(norms), sharey=True, squeeze=False)[0]
    for axes, norm in zip(row, norms, strict=True):
        for place, result in enumerate(results):
            name = f", {_name(result, place)}" if len(results) > 1 else ""
            _attack_curves(axes, result, norm, MODELS[place % len(MODELS)], name)
        axes.set_xlabel({"linf": "bound on a pixel's change (1/255)", "l2": "bound on the Euclidean norm"}[norm])
        axes.set_ylim(0, 1.02)
        plain_axes(axes)
    row[0].set_ylabel("accuracy")
    row[-1].legend(fontsize=8, frameon=False)
    fig.suptitle(_heading(results, first.images) + attacked_band(results[0].config), fontsize=10)
    return fig


def _attack_curves(axes: Axes, result: Result, norm: str, color: str, name: str) -> None:
    found = result.adversarial
    assert found is not None
    for attack, style in (("pgd", "-"), ("fgsm", "--")):
        rows = np.flatnonzero((found.norm == norm) & (found.attack == attack))
        if not len(rows):
            continue
        rows = rows[np.argsort(found.epsilon[rows])]
        epsilon = np.append(0.0, found.epsilon[rows]) * (255 if norm == "linf" else 1)
        accuracy = np.append(found.clean_accuracy, found.accuracy[rows])
        error = np.append(found.clean_accuracy_stderr, found.accuracy_stderr[rows])
        axes.errorbar(
            epsilon, accuracy, yerr=error, fmt=f"o{style}", color=color, markersize=3.5, linewidth=1.2, capsize=2,
            label=f"{attack}{name}",
        )  # fmt: skip


def _corruptions(results: Sequence[Result]) -> Figure:
    """Of one network, a dot for each severity; of several, each one's mean over severities."""
    first = results[0].corruptions
    assert first is not None
    kinds = [str(name) for name in first.corruption]
    fig = new_figure(1.4 + 0.27 * len(kinds))
    axes = fig.subplots()
    if len(results) == 1:
        colors = in_order(len(first.severity))
        for color, severity, accuracy in zip(colors, first.severity, first.accuracy.T, strict=True):
            axes.plot(accuracy, np.arange(len(kinds)), "o", color=color, markersize=5, label=str(severity))
        axes.axvline(first.clean_accuracy, color=GREY, linewidth=0.8, linestyle="--", zorder=0)
        fig.legend(fontsize=8, title="severity", title_fontsize=8, frameon=False, loc="outside right center")
    else:
        for place, result in enumerate(results):
            _mean_over_severities(axes, result, kinds, place, len(results))
        title = "mean over severities"
        fig.legend(fontsize=8, title=title, title_fontsize=8, frameon=False, loc="outside lower center", ncols=3)
    axes.set_yticks(np.arange(len(kinds)), [name.replace("_", " ") for name in kinds], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("accuracy (dashed: not corrupted)")
    axes.grid(axis="y", linewidth=0.3)
    plain_axes(axes)
    fig.suptitle(_heading(results, first.images), fontsize=10)
    return fig


def _mean_over_severities(axes: Axes, result: Result, kinds: Sequence[str], place: int, count: int) -> None:
    found, color = result.corruptions, MODELS[place % len(MODELS)]
    assert found is not None
    names = [str(found.corruption[row]) for row in whole_kinds(found)]
    means = dict(zip(names, mean_accuracies(found)[1:], strict=True))
    rows = [kind for kind in kinds if kind in means]
    where = np.array([kinds.index(kind) for kind in rows]) + (place - (count - 1) / 2) * 0.6 / count
    error = np.array([means[kind].error for kind in rows], dtype=np.float64)
    axes.errorbar(
        [means[kind].value for kind in rows], where, xerr=error, fmt="o", color=color, markersize=4, linewidth=1.2,
        capsize=2, label=_name(result, place),
    )  # fmt: skip
    axes.axvline(found.clean_accuracy, color=color, linewidth=0.8, linestyle="--", zorder=0)
