"""What the interactive charts of all analyses share: their look, and their numbers as a table.

Plotly is loaded only to draw.

`analyze/<name>/figures.py` draws for paper with matplotlib, `analyze/<name>/charts.py` for the screen with plotly.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import numpy as np

from analyze.results import AnalysisResult

if TYPE_CHECKING:
    import plotly.graph_objects as go

ResultType = TypeVar("ResultType", bound=AnalysisResult)

DRAWING = "drawing"
"""`meta` of traces without numbers of their own, such as bands, marks and a colour bar: not in tables."""
NEUTRAL = "#808495"
"""Colour of what belongs to no model; told from light and dark backgrounds."""


class Drawn(NamedTuple, Generic[ResultType]):
    """A result as charts show it."""

    result: ResultType
    name: str
    """Of its model, for legends; any text."""
    color: str
    """The model's own, on all charts."""


def text(name: object) -> str:
    """A name as plotly shows it: as it is, never as markup."""
    return html.escape(str(name), quote=False)


def new_chart(height: int = 420, rows: int = 1, columns: int = 1, **subplots: Any) -> go.Figure:
    """An empty chart without background, whose zoom and camera survive new data.

    Args:
        height: In pixels.
        rows: Of panels.
        columns: Of panels.
        subplots: Further arguments of `plotly.subplots.make_subplots`.
    """
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=rows, cols=columns, **subplots)
    figure.update_layout(
        height=height,
        margin={"l": 10, "r": 10, "t": 30, "b": 10},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        uirevision="constant",
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": "#999999", "activecolor": "#666666"},
        hoverlabel={"namelength": -1},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
    )
    return figure


def faded(color: str, opacity: float) -> str:
    """#rrggbb, seen through."""
    return f"rgba({','.join(str(int(color[place : place + 2], 16)) for place in (1, 3, 5))},{opacity})"


def long_table(figure: go.Figure) -> list[list[Any]]:
    """All numbers that a chart shows, one row each under a header, with what its axes say.

    Grids of z have a row for each cell; frames that a chart plays follow each other, named in the column `frame`.
    """
    rows: list[list[Any]] = [["series", "frame", "text", "x axis", "x", "x_error", "y axis", "y", "y_error", "z"]]
    moving = {place for frame in figure.frames or () for place in frame.traces or ()}
    for place, trace in enumerate(figure.data):
        if place not in moving:  # of these the first picture is one of the frames
            rows += _rows(figure, trace, "")
    for frame in figure.frames or ():
        for place, trace in zip(frame.traces or range(len(frame.data)), frame.data, strict=True):
            rows += _rows(figure, trace, str(frame.name), figure.data[place])
    return rows


def _rows(figure: go.Figure, trace: Any, frame: str, drawn: Any = None) -> list[list[Any]]:
    """Of a trace, or of what a frame changes of the trace that is drawn."""
    if trace.meta == DRAWING:
        return []
    name = _plain(trace.name or (drawn and drawn.name) or trace.type)
    across, upwards = (_axis_title(figure, drawn or trace, axis) for axis in "xy")
    z, x, y = (None if (values := getattr(trace, axis, None)) is None else np.asarray(values) for axis in "zxy")
    if z is not None and z.ndim == 2:
        columns = np.arange(z.shape[1]) if x is None else x
        lines = np.arange(z.shape[0]) if y is None else y
        return [
            [name, frame, "", across, columns[column], "", upwards, lines[row], "", z[row, column]]
            for row in range(z.shape[0])
            for column in range(z.shape[1])
        ]
    if x is None or y is None:
        return []
    count = min(len(x), len(y))
    told = _column(trace, "text", count)
    before, after = (_errors(trace, axis, count) for axis in ("error_x", "error_y"))
    depth = z if z is not None else [""] * count
    return [
        [name, frame, told[at], across, x[at], before[at], upwards, y[at], after[at], depth[at]] for at in range(count)
    ]


def _axis_title(figure: go.Figure, trace: Any, axis: str) -> str:
    """What the axis of a trace in the plane is, or the axis that it is linked with; else nothing."""
    short = getattr(trace, f"{axis}axis", None) or axis
    while short:
        found = figure.layout[f"{short[0]}axis{short[1:]}"]
        if found.title.text:
            return _plain(found.title.text)
        short = found.matches if found.matches != short else None
    return ""


def _plain(markup: str) -> str:
    return html.unescape(str(markup).replace("<br>", " "))


def _column(trace: Any, name: str, count: int) -> Sequence[Any]:
    values = getattr(trace, name, None)
    if values is None or isinstance(values, str) or len(values) < count:
        return [""] * count
    return [_plain(value) for value in values]


def _errors(trace: Any, axis: str, count: int) -> Sequence[Any]:
    values = getattr(getattr(trace, axis, None), "array", None)
    return [""] * count if values is None or len(values) < count else list(values)
