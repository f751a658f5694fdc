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
    axis_label,
    caption,
    mean_over_frames,
    one_frame,
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

    Passes are frames: the chart plays them, or shows one of them or their mean. Limits are over all frames. What was
    not computed is grey, what is not finite has red crosses.

    Args:
        drawn: Surfaces; a curve is refused with a ValueError.
        metric: What is the height.
        percentile: Of all values, at which the picture is cut (metrics without an upper bound).
        start: Place of the pass to show first; None for the mean of all.
    """
    import plotly.graph_objects as go

    if any(len(each.result.y) == 1 for each in drawn):
        raise ValueError("a curve is no surface: give it to `curves`")
    pictures = [_pictures(each.result, metric) for each in drawn]
    shared = palette(metric, [shown.value for frames in pictures for shown in frames], percentile)
    figure, places = _panels(drawn, metric, shared)
    moving: list[int] = []
    panels = [
        Panel(each.result, metric, shared, text(each.name), place) for each, place in zip(drawn, places, strict=True)
    ]
    for panel, frames in zip(panels, pictures, strict=True):
        moving += range(len(figure.data), len(figure.data) + Panel.MOVING)
        figure.add_traces(panel.traces(_picture(frames, start), start))
        figure.add_traces(panel.fixed())
    figure.add_trace(_bar(metric, shared))
    count = max(len(frames) for frames in pictures) - 1
    if count > 0:
        longest = max((each.result for each in drawn), key=lambda result: len(result.frame))
        names = {"mean": None} | {str(number): place for place, number in enumerate(longest.frame)}
        figure.frames = [
            go.Frame(
                name=name,
                traces=moving,
                data=[
                    trace
                    for panel, frames in zip(panels, pictures, strict=True)
                    for trace in panel.changes(_picture(frames, place), place)
                ],
            )
            for name, place in names.items()
        ]
        _controls(figure, list(names), 0 if start is None else 1 + start % count)
    return figure


def _pictures(result: Result, metric: Metric) -> list[Shown]:
    """The mean over passes, then each pass; only one where there is only one."""
    shown = [mean_over_frames(result, metric)]
    if len(result.frame) > 1:
        shown += [one_frame(result, metric, place) for place in range(len(result.frame))]
    return [each.coarse() for each in shown]


def _picture(frames: Sequence[Shown], place: int | None) -> Shown:
    """The mean, or a pass; of fewer passes than others have, they start again."""
    return frames[0] if place is None or len(frames) == 1 else frames[1 + place % (len(frames) - 1)]


def notes(drawn: Sequence[Drawn[Result]], metric: Metric = "nll", percentile: float = 95.0) -> str:
    """What the marks of `surfaces` mean, what it cuts off, and what is missing."""
    shown = [mean_over_frames(each.result, metric) for each in drawn]
    frames = [picture for each in drawn for picture in _pictures(each.result, metric)]
    shared = palette(metric, [frame.value for frame in frames], percentile).limits
    highest = max((float(frame.finite.max()) for frame in frames if frame.finite.size), default=shared.high)
    sentences = ["white cross: the checkpoint"]
    if any(best_point(each, metric) not in (None, one.result.center) for each, one in zip(shown, drawn, strict=True)):
        sentences[0] += f", green triangle: the {best_of(metric)} point"
    sentences += ["the same limits, levels and colours for all"] if len(drawn) > 1 else []
    sentences += [f"cut at {shared.high:.3g}, the highest point of all is at {highest:.3g}"] if shared.clipped else []
    sentences += [_crosses(frames), *dict.fromkeys(map(_coarse, shown))]
    sentences += ["grey: not computed"] if any(each.missing.any() for each in shown) else []
    sentences += [_outside(each.result) for each in drawn]
    return caption([each.result for each in drawn], *sentences, width=100_000)


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
