"""The interactive charts of surfaces: heights in 3-D and filled contours, and the Monte Carlo passes as frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from analyze.charting import DRAWING, NEUTRAL, Drawn, new_chart, text
from analyze.landscape.contours import _told
from analyze.landscape.figures import _coarse, _crosses, _outside
from analyze.landscape.panel import Palette, Panel, best_of, best_point, palette
from analyze.landscape.scene import AZIMUTH, ELEVATION, HEIGHT
from analyze.landscape.shown import (
    LABELS,
    Shown,
    axes_told,
    axis_label,
    caption,
    mean_over_frames,
    one_pass,
)
from analyze.landscape.spec import Metric, Result

if TYPE_CHECKING:
    import plotly.graph_objects as go

LINES = "#9aa0ab"
"""Of the box; told from light and dark backgrounds."""
ACROSS = 4
"""Models beside each other; further ones go below."""
DISTANCES = (2.0, 2.15, 2.9)
"""Of the camera, with one, two and three models side by side, so that no corner is cut off."""
ROUNDS, PAUSE = 20, 500
"""How often all passes are played, and milliseconds for each."""


def surfaces(
    drawn: Sequence[Drawn[Result]], metric: Metric = "nll", *, percentile: float = 95.0, start: int | None = None
) -> go.Figure:
    """Each model's surface in 3-D and its filled contours, with the same limits, levels and colours for all.

    Passes are frames, by their numbers: the chart plays them, or shows one of them or their mean, which also stands
    in where a model lacks a pass. Limits are over all frames. What was not computed is grey, what is not finite has
    red crosses.

    Args:
        drawn: Surfaces; a curve is refused with a ValueError.
        metric: What is the height.
        percentile: Of all values, at which the picture is cut (metrics without an upper bound).
        start: Number of the pass to show first; None for the mean of all.
    """
    import plotly.graph_objects as go

    if any(len(each.result.y) == 1 for each in drawn):
        raise ValueError("a curve is no surface: give it to `curves`")
    pictures = [_pictures(each.result, metric) for each in drawn]
    shared = palette(metric, [shown.value for frames in pictures for shown in frames.values()], percentile)
    figure, places = _panels(drawn, metric, shared)
    moving: list[int] = []
    panels = [
        Panel(each.result, metric, shared, text(each.name), place) for each, place in zip(drawn, places, strict=True)
    ]
    for panel, frames in zip(panels, pictures, strict=True):
        moving += range(len(figure.data), len(figure.data) + Panel.MOVING)
        figure.add_traces(panel.traces(frames.get(start, frames[None]), start))
        figure.add_traces(panel.fixed())
    figure.add_trace(_bar(metric, shared))
    if numbers := passes_of([each.result for each in drawn]):
        names = {"mean": None} | {str(number): number for number in numbers}
        figure.frames = [
            go.Frame(
                name=name,
                traces=moving,
                data=[
                    trace
                    for panel, frames in zip(panels, pictures, strict=True)
                    for trace in panel.changes(frames.get(number, frames[None]), number)
                ],
            )
            for name, number in names.items()
        ]
        _controls(figure, list(names), list(names.values()).index(start) if start in numbers else 0)
    return figure


def passes_of(results: Sequence[Result]) -> list[int]:
    """Numbers of the passes that any of them has; none where each has only one."""
    return sorted({int(number) for result in results if len(result.frame) > 1 for number in result.frame})


def _pictures(result: Result, metric: Metric) -> dict[int | None, Shown]:
    """The mean over passes under None, then each pass under its number; only one where there is only one."""
    return {number: one_pass(result, metric, number).coarse() for number in (None, *passes_of([result]))}


def notes(drawn: Sequence[Drawn[Result]], metric: Metric = "nll", percentile: float = 95.0) -> str:
    """What the marks of `surfaces` mean, what it cuts off, and what is missing."""
    pictures = [_pictures(each.result, metric) for each in drawn]
    frames = [picture for each in pictures for picture in each.values()]
    shared = palette(metric, [frame.value for frame in frames], percentile).limits
    highest = max((float(frame.finite.max()) for frame in frames if frame.finite.size), default=shared.high)
    sentences = ["white cross (in 3-D a circle): the checkpoint"]
    if any(_best_elsewhere(frame, metric) for frame in frames):
        sentences[0] += f", green triangle (in 3-D a diamond): the {best_of(metric)} point"
    sentences += ["the same limits, levels and colours for all"] if len(drawn) > 1 else []
    sentences += [f"cut at {shared.high:.3g}, the highest point of all is at {highest:.3g}"] if shared.clipped else []
    sentences += [_crosses(frames), *dict.fromkeys(_coarse(mean_over_frames(each.result, metric)) for each in drawn)]
    sentences += ["grey: not computed"] if any(each.missing.any() for each in frames) else []
    sentences += [axes_told(drawn), *_lacking(drawn)]
    sentences += [_outside(each.result) for each in drawn]
    return caption([each.result for each in drawn], *sentences, width=100_000)


def _best_elsewhere(shown: Shown, metric: Metric) -> bool:
    """Whether the best point has a mark of its own."""
    best = best_point(shown, metric)
    return best is not None and (shown.y[best[0]], shown.x[best[1]]) != (0, 0)


def _lacking(drawn: Sequence[Drawn[Result]]) -> list[str]:
    """Whose mean stands in for passes that others have."""
    numbers = passes_of([each.result for each in drawn])
    sentences = []
    for each in drawn:
        own = each.result.frame.tolist()
        if each.result.stochastic and set(numbers) - set(own):
            many = len(own) > 2 and own == list(range(own[0], own[-1] + 1))
            told = f"{own[0]} to {own[-1]}" if many else ", ".join(map(str, own))
            sentences.append(f"{each.name} has pass{'es' * (len(own) > 1)} {told} alone: its mean stands in for others")
    return sentences


def _panels(
    drawn: Sequence[Drawn[Result]], metric: Metric, shared: Palette
) -> tuple[go.Figure, list[tuple[str, str, str]]]:
    """Empty panels, one model alone side by side, several one above the other, and where each model is drawn."""
    count = len(drawn)
    columns = 2 if count == 1 else min(count, ACROSS)
    blocks = 1 if count == 1 else -(-count // columns)
    rows: list[list[Any]] = []
    for block in range(blocks):
        held = [block * columns + column < count for column in range(columns)]
        solid, flat = ([{"type": kind} if each else None for each in held] for kind in ("scene", "xy"))
        rows += [[{"type": "scene"}, {"type": "xy"}]] if count == 1 else [solid, flat]
    names = [text(each.name) for each in drawn]
    titles = None
    if count > 1:
        padded = names + [""] * (blocks * columns - count)
        titles = [
            title
            for block in range(blocks)
            for title in padded[block * columns : (block + 1) * columns] + [""] * columns
        ]
        titles = [
            title
            for title, spec in zip(titles, [spec for row in rows for spec in row], strict=True)
            if spec is not None
        ]
    height = 480 if count == 1 else 640 * blocks + 60
    figure = new_chart(
        height, len(rows), columns, specs=rows, subplot_titles=titles, horizontal_spacing=0.06,
        vertical_spacing=0.04 if blocks == 1 else 0.06, row_heights=None if count == 1 else [0.56, 0.44] * blocks,
    )  # fmt: skip
    if count > 1:
        figure.update_layout(margin_t=56)  # the toolbar lies above the names
    places = []
    for number, each in enumerate(drawn):
        row, column = 1 + 2 * (number // columns), 1 + number % columns
        solid, flat = ((1, 1), (1, 2)) if count == 1 else ((row, column), (row + 1, column))
        scene = figure.get_subplot(*solid)
        scene.update(_scene(each.result, metric, shared, min(count, columns)))
        axes = figure.get_subplot(*flat)
        _flat(axes, each.result, alone=count == 1, first=count == 1 or column == 1)
        places.append((scene.plotly_name, axes.xaxis.plotly_name, axes.yaxis.plotly_name))
    return figure, places


def _scene(result: Result, metric: Metric, shared: Palette, beside: int) -> dict[str, Any]:
    """A light box and the paper figures' camera, which the user may turn; farther away in narrower panels."""
    elevation, azimuth = np.deg2rad(ELEVATION), np.deg2rad(AZIMUTH)
    across = np.cos(elevation)
    distance = DISTANCES[min(beside, len(DISTANCES)) - 1]
    eye = distance * np.array([across * np.cos(azimuth), across * np.sin(azimuth), np.sin(elevation)])
    axis = {
        "showbackground": False, "gridcolor": LINES, "linecolor": LINES, "zeroline": False, "showspikes": False,
        "nticks": 5, "tickfont": {"size": 10},
    }  # fmt: skip
    low, high, _ = shared.limits
    # in narrow panels they would be cut off; the colour bar says the same
    heights = {"title": LABELS[metric] if beside == 1 else "", "showticklabels": beside < 3}
    return {
        "xaxis": {**axis, "title": "x", "range": _ends(result.x)},
        "yaxis": {**axis, "title": "y", "range": _ends(result.y)},
        "zaxis": {**axis, **heights, "range": [low, high]},
        "aspectmode": "manual",
        "aspectratio": {"x": 1, "y": 1, "z": HEIGHT},
        "camera": {"eye": dict(zip("xyz", eye.tolist(), strict=True)), "center": {"x": 0, "y": 0, "z": -0.12}},
    }


def _flat(axes: Any, result: Result, alone: bool, first: bool) -> None:
    shared = {"showgrid": False, "zeroline": False, "ticks": "outside", "constrain": "domain"}
    axes.xaxis.update(**shared, range=_ends(result.x), title=text(axis_label(result, "x")) if alone else "x")
    axes.yaxis.update(**shared, range=_ends(result.y), title=text(axis_label(result, "y")) if alone else "y" * first)
    if np.ptp(result.x) == np.ptp(result.y):
        axes.yaxis.update(scaleanchor=axes.xaxis.plotly_name.replace("axis", ""))
    for axis in (axes.xaxis, axes.yaxis):
        axis.title.update(font_size=12, standoff=6)


def _ends(axis: np.ndarray) -> list[float]:
    return [float(axis[0]), float(axis[-1])]


def _bar(metric: Metric, shared: Palette) -> Any:
    """The colours of all panels, with the levels between them."""
    import plotly.graph_objects as go

    count, levels = len(shared.colors), _told(shared.levels)
    steps = [[edge / count, color] for place, color in enumerate(shared.colors) for edge in (place, place + 1)]
    bar = {
        "title": {"text": LABELS[metric], "side": "right"}, "tickvals": list(range(len(levels))), "ticktext": levels,
        "thickness": 14, "outlinewidth": 0, "ticks": "outside", "ticklen": 3, "len": 0.9,
    }  # fmt: skip
    return go.Scatter(
        x=[None], y=[None], mode="markers", showlegend=False, hoverinfo="skip", meta=DRAWING,
        marker={"color": [0], "cmin": 0, "cmax": count, "colorscale": steps, "showscale": True, "colorbar": bar},
    )  # fmt: skip


def _controls(figure: go.Figure, names: Sequence[str], active: int) -> None:
    """Play and pause, and a slider over the mean and all passes."""

    def show(frames: Sequence[str | None], duration: int) -> dict[str, Any]:
        mode = {"mode": "immediate", "fromcurrent": False, "transition": {"duration": 0}}
        return {"method": "animate", "args": [frames, {**mode, "frame": {"duration": duration, "redraw": True}}]}

    muted = {"color": NEUTRAL, "size": 12}
    figure.update_layout(
        updatemenus=[
            {
                "type": "buttons", "direction": "left", "showactive": False, "x": 0, "xanchor": "left", "y": 0,
                "yanchor": "top", "pad": {"t": 58, "r": 10}, "font": muted, "bgcolor": "rgba(128,128,128,0.12)",
                "bordercolor": "rgba(128,128,128,0.4)",
                "buttons": [
                    {"label": "▶ play", **show([*names[1:]] * ROUNDS, PAUSE)},
                    {"label": "❚❚ pause", **show([None], 0)},
                ],
            }
        ],
        sliders=[
            {
                "active": active, "x": 0, "len": 1, "y": 0, "pad": {"l": 170, "t": 50}, "font": muted, "ticklen": 4,
                "currentvalue": {"prefix": "MC pass: ", "font": muted}, "bordercolor": "rgba(128,128,128,0.4)",
                "bgcolor": "rgba(128,128,128,0.25)", "activebgcolor": NEUTRAL,
                "steps": [{"label": name, **show([name], 0)} for name in names],
            }
        ],
    )  # fmt: skip
