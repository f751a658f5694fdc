"""What interactive charts draw of one model's surface: heights, filled contours, marks, and points to click."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from analyze.charting import DRAWING, text
from analyze.landscape.scene import RED
from analyze.landscape.shown import (
    COLORS,
    LABELS,
    UNBOUNDED,
    Limits,
    Shown,
    error_over_images,
    even_levels,
    limits,
    log_levels,
)
from analyze.landscape.spec import Metric, Result

MISSING, NOT_FINITE = "rgba(128,128,128,0.55)", "#ffe3e3"
"""Colours of cells that were not computed, and of those that are not finite."""
MARKS = ("white", "#7fffd4", RED)
"""Colours of the checkpoint, the lowest point, and points that are not finite."""
MARKED = {"unselected": {"marker": {"opacity": 1}}}
"""A click on a point of the grid fades no marks."""
FINE = 80
"""Points across, from which on contour lines are drawn through the grid as it is."""
PLANE_SYMBOLS, SPACE_SYMBOLS = ("cross", "triangle-down", "x-thin"), ("circle", "diamond", "")


def best_of(metric: Metric) -> str:
    """Which end of a metric is good."""
    return "highest" if metric == "accuracy" else "lowest"


def best_point(shown: Shown, metric: Metric) -> tuple[int, int] | None:
    """Row and column of the best finite value; None if there is none."""
    return replace(shown, value=-shown.value).lowest if best_of(metric) == "highest" else shown.lowest


class Palette(NamedTuple):
    """Limits, levels and colours that all panels share."""

    limits: Limits
    levels: np.ndarray
    """Ascending, from the lower limit to the upper one; above is an open class if the metric has no bound."""
    colors: list[str]
    """One for each class."""


def palette(metric: Metric, values: Sequence[np.ndarray], percentile: float = 95.0) -> Palette:
    """Limits and levels of the values, as the paper's figures choose them, and a colour for each class."""
    from plotly.colors import sample_colorscale

    unbounded = metric in UNBOUNDED
    shared = limits(values, percentile if unbounded else 100)
    ends = [np.array(shared[:2])]
    levels = log_levels(ends, percentile=100) if unbounded else even_levels(ends)
    classes = len(levels) - 1 + unbounded
    return Palette(shared, levels, sample_colorscale(COLORS[metric].capitalize(), list(np.linspace(0, 1, classes))))


class Panel:
    """What is drawn of one model.

    Args:
        result: A surface.
        metric: What is drawn of it.
        shared: Limits, levels and colours.
        name: Of the model, as plotly shows it.
        place: Names of the scene, of the x axis and of the y axis in the layout.
    """

    MOVING = 8
    """Traces that change from frame to frame."""

    def __init__(self, result: Result, metric: Metric, shared: Palette, name: str, place: tuple[str, str, str]):
        self.result, self.metric, self.shared, self.name = result, metric, shared, name
        self.scene = {"scene": place[0]}
        self.axes = {"xaxis": place[1].replace("axis", ""), "yaxis": place[2].replace("axis", "")}

    def traces(self, shown: Shown, number: int | None) -> list[Any]:
        """What changes from frame to frame, as it is at first.

        Args:
            shown: What a frame shows.
            number: Which pass this is; None for the mean.
        """
        pairs = zip(self._looks(), self._values(shown, number), strict=True)
        return [kind(**look, **values) for (kind, look), values in pairs]

    def changes(self, shown: Shown, number: int | None) -> list[Any]:
        """The same traces in another frame: only what is other than at first."""
        pairs = zip(self._looks(), self._values(shown, number), strict=True)
        return [
            kind(**{key: look[key] for key in ("name", "meta") if key in look}, **values)
            for (kind, look), values in pairs
        ]

    def _values(self, shown: Shown, number: int | None) -> list[dict[str, Any]]:
        finite = np.where(np.isfinite(shown.value), shown.value, np.nan).astype(np.float32)
        heights = {"x": shown.x, "y": shown.y, "z": finite}
        gaps = np.where(shown.missing, 0, np.where(shown.nonfinite, 1, np.nan)).astype(np.float32)
        line_x, line_y = contour_lines(shown.x, shown.y, finite, self.shared.levels)
        return [
            heights,
            self._marks(shown, SPACE_SYMBOLS),
            self._crosses(shown),
            heights,
            {"x": line_x, "y": line_y},
            {**heights, "z": gaps if np.isfinite(gaps).any() else None},
            {key: value for key, value in self._marks(shown, PLANE_SYMBOLS).items() if key != "z"},
            self._grid(shown, number),
        ]

    def _looks(self) -> list[tuple[Any, dict[str, Any]]]:
        import plotly.graph_objects as go

        low, high, _ = self.shared.limits
        top = high + 1e-3 * (high - low)  # the open class
        told = f"x %{{x:.4g}}, y %{{y:.4g}}<br>{LABELS[self.metric]} %{{z:.4g}}"
        error = error_over_images(self.result, self.metric) is not None
        pointed = told.replace("%{z:.4g}", "%{customdata[0]:.4g}") + " ± %{customdata[1]:.2g}" * error
        named, quiet = {"name": self.name}, {"hoverinfo": "skip", "showlegend": False, "meta": DRAWING}
        light = {"ambient": 0.72, "diffuse": 0.5, "specular": 0.06, "roughness": 0.7}
        map_ = {"zmin": low, "zmax": top, "colorscale": self._stepped(top), "zsmooth": "best"}
        gaps = {"zmin": 0, "zmax": 1, "colorscale": [[0, MISSING], [0.5, MISSING], [0.5, NOT_FINITE], [1, NOT_FINITE]]}
        line = {"color": "rgba(255,255,255,0.7)", "width": 0.6}
        unseen = {
            "marker": {"opacity": 0, "size": 6, "color": "white"},
            "selected": {"marker": {"opacity": 0.9, "size": 9}}, "unselected": {"marker": {"opacity": 0}},
        }  # fmt: skip
        surface = {
            "cmin": low, "cmax": high, "colorscale": self._continuous(), "showscale": False, "hovertemplate": told,
            "lighting": light, "lightposition": {"x": 2500, "y": -5500, "z": 8000},
        }  # fmt: skip
        hover = {"hovertemplate": "%{text}<extra></extra>", "showlegend": False, "meta": DRAWING}
        return [
            (go.Surface, {**named, **surface, **self.scene}),
            (go.Scatter3d, {**hover, "mode": "markers", "marker_size": 5, **self.scene}),
            (go.Scatter3d, {**quiet, "mode": "lines", "line": {"color": RED, "width": 4}, **self.scene}),
            (go.Heatmap, {**named, **quiet, **map_, "showscale": False, **self.axes}),
            (go.Scatter, {**quiet, "mode": "lines", "line": line, **self.axes}),
            (go.Heatmap, {**quiet, **gaps, "showscale": False, **self.axes}),
            (go.Scatter, {**quiet, **MARKED, "mode": "markers", "marker_size": 10, "cliponaxis": False, **self.axes}),
            (go.Scattergl, {**named, **hover, **unseen, "mode": "markers", "hovertemplate": pointed, **self.axes}),
        ]

    def fixed(self) -> list[Any]:
        """The projected checkpoints of a series, from the first (open) to the last."""
        import plotly.graph_objects as go

        path = self.result.trajectory
        if path is None or not len(path.x):
            return []
        fill = ["white", *["black"] * (len(path.x) - 1)]
        told = [
            f"{text(name)}<br>{distance:.3g} off the plane<br>NLL there {nll:.4g} nats"
            for name, distance, nll in zip(path.name, path.distance, path.nll, strict=True)
        ]
        return [
            go.Scatter(
                x=path.x, y=path.y, mode="lines+markers", text=told, name=f"series of {self.name}", showlegend=False,
                line={"color": "black", "width": 1.2}, hovertemplate="%{text}<extra></extra>",
                marker={"size": 7, "color": fill, "line": {"color": "black", "width": 1}}, **MARKED, **self.axes,
            )
        ]  # fmt: skip

    def _continuous(self) -> list[list[Any]]:
        """Colours of heights, such that each level has the colour of its class."""
        low, high, _ = self.shared.limits
        shares = (self.shared.levels - low) / (high - low)
        colors = self.shared.colors[: len(shares)]
        colors += self.shared.colors[-1:] * (len(shares) - len(colors))
        return [[float(share), color] for share, color in zip(np.clip(shares, 0, 1), colors, strict=True)]

    def _stepped(self, top: float) -> list[list[Any]]:
        low = self.shared.limits.low
        edges = np.clip((np.append(self.shared.levels, top) - low) / (top - low), 0, 1)
        colors = self.shared.colors + self.shared.colors[-1:] * (len(edges) - 1 - len(self.shared.colors))
        steps = zip(edges[:-1], edges[1:], colors, strict=True)
        return [[float(edge), color] for low, high, color in steps for edge in (low, high)]

    def _marked(self, shown: Shown) -> list[tuple[float, float, float, str]]:
        """The checkpoint and the best point: x, y, value, and what it is."""
        found = []
        center = [int(np.flatnonzero(axis == 0)[0]) if (axis == 0).any() else -1 for axis in (shown.y, shown.x)]
        if min(center) >= 0 and np.isfinite(shown.value[tuple(center)]):
            found.append((0.0, 0.0, float(shown.value[tuple(center)]), "this checkpoint"))
        if (best := best_point(shown, self.metric)) is not None and list(best) != center:
            row, column = best
            point = float(shown.x[column]), float(shown.y[row]), float(shown.value[best])
            found.append((*point, f"{best_of(self.metric)} point"))
        return found

    def _marks(self, shown: Shown, symbols: tuple[str, str, str]) -> dict[str, Any]:
        """Marked points, and in the plane those that are not finite."""
        rows, columns = np.nonzero(shown.nonfinite)
        high = self.shared.limits.high
        marked = self._marked(shown)
        if symbols == PLANE_SYMBOLS:
            marked += [(x, y, high, "not finite") for x, y in zip(shown.x[columns], shown.y[rows], strict=True)]
        told = [what if what == "not finite" else f"{what}: {LABELS[self.metric]} {z:.4g}" for *_, z, what in marked]
        looks = dict(
            zip(
                ("this checkpoint", f"{best_of(self.metric)} point", "not finite"),
                zip(symbols, MARKS, strict=True),
                strict=True,
            )
        )
        colors = [looks[what][1] for *_, what in marked]
        edges = {"color": [RED if color == RED else "black" for color in colors], "width": 1.2}
        x, y, z = (np.array([point[axis] for point in marked], dtype=float) for axis in range(3))
        marker = {"symbol": [looks[what][0] for *_, what in marked], "color": colors, "line": edges}
        return {"x": x, "y": y, "z": z, "text": told, "marker": marker}

    def _crosses(self, shown: Shown) -> dict[str, Any]:
        """Lines at the upper limit, since crosses of 3-D markers need a font that not all machines have."""
        rows, columns = np.nonzero(shown.nonfinite)
        low, high, _ = self.shared.limits
        arms = np.array([-1.0, 1.0, np.nan, -1.0, 1.0, np.nan])
        sizes = [0.012 * float(np.ptp(axis)) for axis in (self.result.x, self.result.y)]
        x = (shown.x[columns, None] + sizes[0] * arms).ravel()
        y = (shown.y[rows, None] + sizes[1] * arms * [1, 1, 1, -1, -1, -1]).ravel()
        return {"x": x, "y": y, "z": np.full(len(x), high - 0.004 * (high - low))}

    def _grid(self, shown: Shown, number: int | None) -> dict[str, Any]:
        """Points that can't be seen, but pointed at and clicked: value and error of each."""
        x, y = (each.ravel().astype(np.float32) for each in np.meshgrid(shown.x, shown.y))
        numbers = [shown.value]
        if (error := error_over_images(self.result, self.metric, number)) is not None:
            numbers.append(error[np.ix_(np.isin(self.result.y, shown.y), np.isin(self.result.x, shown.x))])
        told = np.stack([each.ravel() for each in numbers], axis=1).astype(np.float32)
        return {"x": x, "y": y, "customdata": told}


def contour_lines(x: np.ndarray, y: np.ndarray, value: np.ndarray, levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lines of these heights over a grid, one after the other with NaN between them; none through gaps."""
    import contourpy

    if min(value.shape) < 2 or not np.isfinite(value).any():
        return np.zeros(0, np.float32), np.zeros(0, np.float32)
    x, y, value = _finer(x, y, value.astype(np.float64))
    masked = np.ma.masked_invalid(value)
    generator = contourpy.contour_generator(x, y, masked, line_type=contourpy.LineType.SeparateCode)
    pieces = [line for level in levels[1:] for line in generator.lines(level)[0]]
    gap = np.full((1, 2), np.nan)
    points = np.concatenate([part for line in pieces for part in (line, gap)]) if pieces else gap[:0]
    return points[:, 0].astype(np.float32), points[:, 1].astype(np.float32)


def _finer(x: np.ndarray, y: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Interpolated as the map is, bilinearly, so that lines of few points end where its colours do."""
    times = -(-FINE // max(value.shape))
    for axis, line in enumerate((y, x)):
        places = np.linspace(0, len(line) - 1, times * (len(line) - 1) + 1)
        before = np.minimum(places.astype(int), len(line) - 2)
        share = (places - before).reshape((-1, 1) if axis == 0 else (1, -1))
        low, high = np.take(value, before, axis), np.take(value, before + 1, axis)
        # a gap stays one, but where its share is 0
        value = np.where(share == 0, low, np.where(share == 1, high, (1 - share) * low + share * high))
    finer = [np.interp(np.linspace(0, len(a) - 1, times * (len(a) - 1) + 1), np.arange(len(a)), a) for a in (x, y)]
    return finer[0], finer[1], value
