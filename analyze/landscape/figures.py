"""The figures of the landscape analysis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from analyze.drawing import BLUE, GREY, MODELS, VERMILLION, images_of, model_name, new_figure, plain_axes
from analyze.landscape.contours import INFINITE, MISSING, draw_bar, draw_contours
from analyze.landscape.scene import RED, Scene
from analyze.landscape.shown import (
    COLORS,
    LABELS,
    Limits,
    Shown,
    axis_label,
    caption,
    error_over_images,
    even_levels,
    heading,
    levels_of,
    limits,
    log_levels,
    mean_over_frames,
    span_of,
    spread_over_frames,
)
from analyze.landscape.spec import DONE, NOT_FINITE, Metric, Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def figures(result: Result, others: Sequence[Result] = ()) -> dict[str, Figure]:
    """The figures of a landscape, by name.

    Of a surface, `""`: filled contours, with the spread over frames where there are several; `"surface"`: in 3-D;
    `"metrics"`: NLL, accuracy, ECE and the norm of the weights. Of a curve, `""`: NLL with its standard error,
    accuracy, and the barrier where it leads to another checkpoint; `"metrics"` as above. With `others`, `"compare"`:
    all of them with the same levels, limits and camera; those of another kind are left out.
    """
    curve = _is_curve(result)
    alike = [result, *(other for other in others if _is_curve(other) == curve)]
    drawn = {"": _curves([result]) if curve else _contours(result)}
    if not curve:
        drawn["surface"] = _surfaces([result])
    drawn["metrics"] = _metrics(result)
    if len(alike) > 1:
        drawn["compare"] = _curves(alike) if curve else _compared(alike)
    return drawn


def _is_curve(result: Result) -> bool:
    return len(result.y) == 1


# Contours


def _contours(result: Result) -> Figure:
    several = len(result.frame) > 1
    fig = new_figure(4.9, 9.2 if several else 5.4)
    panels = fig.subplots(1, 2 if several else 1, squeeze=False, sharey=True)[0]
    shown = mean_over_frames(result, "nll")
    levels = log_levels([shown.value])
    draw_bar(fig, draw_contours(panels[0], shown, levels, "nll", extend="max"), panels[0], LABELS["nll"])
    _mark(panels[0], result, shown)
    _trajectory(panels[0], result)
    if several:
        spread = spread_over_frames(result, "nll")
        drawn = draw_contours(panels[1], spread, even_levels([spread.value]), "spread")
        draw_bar(fig, drawn, panels[1], "NLL (nats), standard deviation over MC passes")
    for axes in panels:
        axes.set_xlabel(axis_label(result, "x"), fontsize=9)
        axes.tick_params(labelsize=8)
        axes.locator_params(axis="x", nbins=5)  # labels of more would touch
    panels[0].set_ylabel(axis_label(result, "y"), fontsize=9)
    fig.suptitle(heading(result), fontsize=10)
    notes = _top_class(shown, levels), _coarse(shown), _outside(result)
    _small_print(fig, panels[:1], caption([result], *notes, width=120 if several else 80))
    return fig


def _mark(axes: Axes, result: Result, shown: Shown) -> None:
    """The checkpoint itself, and the lowest point of the grid."""
    style: dict[str, Any] = {"linestyle": "none", "markeredgecolor": "black", "zorder": 5, "clip_on": False}
    inside = shown.x[0] <= 0 <= shown.x[-1] and shown.y[0] <= 0 <= shown.y[-1]
    if inside:
        at = result.center
        known = f": {shown.value[at]:.3g}" if at and np.isfinite(shown.value[at]) else ""
        axes.plot(0, 0, "P", color="white", markersize=8, label=f"this checkpoint{known}", **style)
    if (lowest := shown.lowest) is not None and lowest != result.center:
        row, column = lowest
        label = f"lowest point: {shown.value[lowest]:.3g}"
        axes.plot(shown.x[column], shown.y[row], "v", color="#7fffd4", markersize=7, label=label, **style)


def _trajectory(axes: Axes, result: Result) -> None:
    """The projected checkpoints of the series, from the first (open) to the last (filled)."""
    if (path := result.trajectory) is None or not len(path.x):
        return
    label = f"series of {len(path.x)} checkpoints"
    axes.plot(path.x, path.y, "-o", color="black", markersize=3, linewidth=1, zorder=4, label=label)
    axes.plot(path.x[0], path.y[0], "o", color="white", markeredgecolor="black", markersize=5, zorder=4.1)


def _outside(result: Result) -> str:
    if (path := result.trajectory) is None or not len(path.x):
        return ""
    off = np.sum((path.x < result.x[0]) | (path.x > result.x[-1]) | (path.y < result.y[0]) | (path.y > result.y[-1]))
    far = f"checkpoints of the series lie up to {np.nanmax(path.distance):.3g} off the plane"
    return far + (f", {off} of {len(path.x)} outside this picture" if off else "")


def _small_print(fig: Figure, panels: Sequence[Axes], text: str) -> None:
    """The caption at the bottom, and under it what the marks mean."""
    handles = [handle for axes in panels for handle in axes.get_legend_handles_labels()[0]]
    if not handles:
        fig.supxlabel(text, fontsize=8, color=GREY)
        return
    legend = fig.legend(
        handles=handles, loc="outside lower center", ncols=2 if len(handles) in (2, 4) else 3, fontsize=8,
        frameon=False, title=text, title_fontsize=8,
    )  # fmt: skip
    legend.get_title().set(color=GREY, multialignment="center")


def _top_class(shown: Shown, levels: np.ndarray) -> str:
    above = int(np.sum(shown.finite > levels[-1]))
    highest = f", the highest has {shown.finite.max():.3g}" if above else ""
    return f"levels are logarithmic above the lowest point; {above:,} points in the open top class{highest}"


def _coarse(shown: Shown) -> str:
    (rows, columns), (all_rows, all_columns) = shown.coarse().shape, shown.shape
    if (rows, columns) == (all_rows, all_columns):
        return ""
    return f"preview of {columns} x {rows} points, of {all_columns} x {all_rows}"


# Surfaces


def _surfaces(results: Sequence[Result]) -> Figure:
    fig = new_figure(4.9, 6.0)
    shown = [mean_over_frames(result, "nll") for result in results]
    shared = limits([each.value for each in shown])
    axes = fig.add_subplot(projection="3d")
    draw_surface(axes, shown[0], shared, "nll")
    _surface_bar(fig, axes, shared, "nll")
    fig.suptitle(heading(results[0]), fontsize=10)
    notes = _clipped(shown, shared), _crosses(shown), _coarse(shown[0])
    fig.supxlabel(caption(results, *notes, width=80), fontsize=8, color=GREY)
    return fig


def draw_surface(axes: Any, shown: Shown, shared: Limits, metric: str) -> Scene:
    """One surface, with the ends of its axes named on the floor."""
    coarse = shown.coarse()
    scene = Scene(axes, coarse.x, coarse.y, shared, COLORS[metric])
    scene.draw(coarse)
    x, y, low = coarse.x, coarse.y, shared.low
    for x_at, y_at, text in (
        (x[0], y[0] - 0.12 * np.ptp(y), f"{x[0]:g}"),
        (x.mean(), y[0] - 0.15 * np.ptp(y), "x"),
        (x[-1], y[0] - 0.12 * np.ptp(y), f"{x[-1]:g}"),
        (x[-1] + 0.10 * np.ptp(x), y[0], f"{y[0]:g}"),
        (x[-1] + 0.13 * np.ptp(x), y.mean(), "y"),
        (x[-1] + 0.10 * np.ptp(x), y[-1], f"{y[-1]:g}"),
    ):
        axes.text(x_at, y_at, low, text, fontsize=8, color=GREY, ha="center", va="center", in_layout=False)
    return scene


def _surface_bar(fig: Figure, axes: Any, shared: Limits, metric: str) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    colors = ScalarMappable(Normalize(shared.low, shared.high), COLORS[metric])
    bar = fig.colorbar(
        colors, ax=axes, shrink=0.62, aspect=18, extend="max" if shared.clipped else "neither", label=LABELS[metric],
        pad=0.03,
    )  # fmt: skip
    bar.ax.tick_params(labelsize=8)
    bar.ax.yaxis.label.set_fontsize(9)


def _clipped(shown: Sequence[Shown], shared: Limits) -> str:
    above = sum(int(np.sum(each.finite > shared.high)) for each in shown)
    if not above:
        return ""
    highest = max(float(each.finite.max()) for each in shown if each.finite.size)
    return f"cut at {shared.high:.3g} nats; {above:,} points are above, the highest at {highest:.3g}"


def _crosses(shown: Sequence[Shown]) -> str:
    return "red crosses: not finite" if any(each.nonfinite.any() for each in shown) else ""


# Comparison


def _compared(results: Sequence[Result]) -> Figure:
    """Contours above, surfaces below, of all models, in the same levels and limits."""
    shown = [mean_over_frames(result, "nll") for result in results]
    levels, shared = log_levels([each.value for each in shown]), limits([each.value for each in shown])
    count = len(results)
    fig = new_figure(6.0, max(6.4, 2.9 * count + 0.9))
    grid = fig.add_gridspec(2, count, height_ratios=(1, 1.05))
    flat: list[Any] = []
    solid: list[Any] = []
    for column, (result, each) in enumerate(zip(results, shown, strict=True)):
        axes = fig.add_subplot(grid[0, column])
        flat.append(axes)
        drawn = draw_contours(axes, each, levels, "nll", extend="max")
        _mark(axes, result, each)
        axes.set_title(_named(result, results, column), fontsize=9)
        at = result.center
        if at and np.isfinite(each.value[at]):
            axes.set_xlabel(f"x; NLL {each.value[at]:.3g} at the checkpoint", fontsize=8)
        else:
            axes.set_xlabel("x", fontsize=8)
        axes.tick_params(labelsize=8, labelleft=column == 0)
        axes.set_box_aspect(1)
        solid.append(fig.add_subplot(grid[1, column], projection="3d"))
        draw_surface(solid[-1], each, shared, "nll")
    flat[0].set_ylabel("y", fontsize=8)
    draw_bar(fig, drawn, flat, LABELS["nll"])
    _surface_bar(fig, solid, shared, "nll")
    parts = ["NLL around the checkpoints", *filter(None, [_images(results)])]
    spans = {span_of(result) for result in results}
    fig.suptitle(", ".join([*parts, *(spans if len(spans) == 1 else [])]), fontsize=10)
    notes = "the same levels, limits and camera for all", _clipped(shown, shared), _crosses(shown)
    fig.supxlabel(caption(results, *notes, width=45 * max(count, 2)), fontsize=8, color=GREY)
    return fig


def _images(results: Sequence[Result]) -> str:
    """Which images all of them are of; "" if they differ, or are not known."""
    found = {images_of(result) for result in results}
    return found.pop() if len(found) == 1 else ""


def _named(result: Result, results: Sequence[Result], place: int) -> str:
    """The model's name, with its images where not all are of the same ones."""
    name = model_name(result) or f"model {place + 1}"
    return name if _images(results) or not images_of(result) else f"{name}\n{images_of(result)}"


# Curves


def _curves(results: Sequence[Result]) -> Figure:
    """NLL with its standard error over x, and accuracy on an axis of its own."""
    fig = new_figure(4.4)
    axes = fig.subplots()
    right = axes.twinx()
    single = len(results) == 1
    for number, result in enumerate(results):
        color = BLUE if single else MODELS[number % len(MODELS)]
        name = "NLL" if single else _named(result, results, number)
        _curve(axes, right, result, color, VERMILLION if single else color, name)
    axes.set_xlabel(axis_label(results[0], "x") if single else "x")
    axes.set_ylabel(LABELS["nll"], color=BLUE if single else "black")
    right.set_ylabel("accuracy" if single else "accuracy (dashed)", color=VERMILLION if single else "black")
    right.spines["top"].set_visible(False)
    right.yaxis.set_major_formatter(_percent())
    plain_axes(axes)
    fig.suptitle(heading(results[0]) if single else _images(results), fontsize=10)
    band = "band: standard error over images"
    passes = "thin lines: single MC passes" if single and len(results[0].frame) > 1 else ""
    _small_print(fig, (axes, right), caption(results, band, passes, width=90))
    return fig


def _percent() -> Any:
    from matplotlib.ticker import PercentFormatter

    return PercentFormatter(1.0)  # as many decimals as the axis needs


def _curve(axes: Axes, right: Axes, result: Result, color: str, accuracy_color: str, name: str) -> None:
    shown, accuracy = mean_over_frames(result, "nll"), mean_over_frames(result, "accuracy")
    x, nll = shown.x, np.where(np.isfinite(shown.value[0]), shown.value[0], np.nan)
    if (error := error_over_images(result, "nll")) is not None:
        axes.fill_between(x, nll - error[0], nll + error[0], color=color, alpha=0.2, linewidth=0)
    if len(result.frame) > 1 and color == BLUE:
        done = np.isin(result.status, (DONE, NOT_FINITE)) & np.isfinite(result.nll)
        each = np.where(done, result.nll, np.nan)[:, 0]
        axes.plot(x, each.T, color=color, linewidth=0.4, alpha=0.5)
    axes.plot(x, nll, "-o", color=color, markersize=2.5, linewidth=1.4, label=name)
    right.plot(
        x, accuracy.value[0], "--", color=accuracy_color, linewidth=1,
        label="accuracy" if color != accuracy_color else None,
    )  # fmt: skip
    for points, hatch, edge, label in (
        (shown.missing[0], MISSING, "0.7", "not computed"),
        (shown.nonfinite[0], INFINITE, RED, "not finite"),
    ):
        for low, high in _stretches(x, points):
            axes.axvspan(low, high, facecolor="none", edgecolor=edge, hatch=hatch, linewidth=0, zorder=0, label=label)
            label = "_"
    if np.isfinite(result.barrier):
        _barrier(axes, result, x, nll, color)


def _stretches(x: np.ndarray, points: np.ndarray) -> list[tuple[float, float]]:
    """From halfway before to halfway after each run of such points."""
    edges = np.concatenate([x[:1], (x[1:] + x[:-1]) / 2, x[-1:]])
    steps = np.diff(np.concatenate([[0], points.astype(int), [0]]))
    begins, ends = np.flatnonzero(steps == 1), np.flatnonzero(steps == -1)
    return [(float(edges[begin]), float(edges[end])) for begin, end in zip(begins, ends, strict=True)]


def _barrier(axes: Axes, result: Result, x: np.ndarray, nll: np.ndarray, color: str) -> None:
    """The straight line between both networks, and the largest height above it."""
    first, last = int(np.abs(x).argmin()), int(np.abs(x - 1).argmin())
    at = result.barrier_x
    straight = (1 - at) * nll[first] + at * nll[last]
    axes.plot([0, 1], [nll[first], nll[last]], ":", color=GREY, linewidth=1)
    axes.annotate("", (at, straight + result.barrier), (at, straight), arrowprops={"arrowstyle": "<->", "color": color})
    axes.plot([], [], ":", color=GREY, label=f"barrier {result.barrier:.3g} nats at x = {at:.3g}")


# All metrics


def metrics_of(result: Result) -> list[Metric]:
    """What the figure `metrics` shows."""
    norm: Metric = "loss" if result.weight_decay > 0 else "l2"
    names: tuple[Metric, ...] = ("nll", "accuracy", "ece", norm)
    return [name for name in names if mean_over_frames(result, name).finite.size] or ["nll"]


def _metrics(result: Result) -> Figure:
    """NLL, accuracy, ECE and the norm of the weights; where there is nothing finite of one, that one is left out."""
    names = metrics_of(result)
    shown = {name: mean_over_frames(result, name) for name in names}
    fig = new_figure(1.4 + 2.9 * -(-len(names) // 2), 8.2 if len(names) > 1 else 5.0)
    panels = fig.subplots(-(-len(names) // 2), min(2, len(names)), squeeze=False, sharex=True)
    for axes, name in zip(panels.flat, names, strict=False):
        if _is_curve(result):
            axes.plot(shown[name].x, shown[name].value[0], "-o", color=BLUE, markersize=2.5, linewidth=1.2)
            axes.set_ylabel(LABELS[name], fontsize=9)
            plain_axes(axes)
        else:
            levels, extend = levels_of(name, [shown[name].value])
            drawn = draw_contours(axes, shown[name], levels, name, extend=extend)
            draw_bar(fig, drawn, axes, LABELS[name])
        axes.tick_params(labelsize=8)
    for axes in list(panels.flat)[len(names) :]:
        axes.set_visible(False)
    for axes in panels[-1]:
        axes.set_xlabel("x" if not _is_curve(result) else axis_label(result, "x"), fontsize=9)
    if not _is_curve(result):
        for axes in panels[:, 0]:
            axes.set_ylabel("y", fontsize=9)
    fig.suptitle(heading(result), fontsize=10)
    fig.supxlabel(caption([result], width=100), fontsize=8, color=GREY)
    return fig
