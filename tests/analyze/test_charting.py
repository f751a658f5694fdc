"""The numbers of a chart as a table."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from analyze.charting import DRAWING, long_table, new_chart


def test_table_has_every_number_once_with_errors_and_axes():
    figure = new_chart(columns=2, shared_yaxes=True)
    figure.add_scatter(
        x=[1, 2], y=[3, 4], error_y={"array": [0.1, 0.2]}, text=["a<br>b", "&lt;c"], name="<i>", row=1, col=1
    )
    figure.add_scatter(x=[5], y=[6], error_x={"array": [0.5]}, name="n", row=1, col=2)
    figure.add_scatter(x=[0], y=[0], meta=DRAWING)
    figure.update_layout(xaxis_title="left", xaxis2_title="right", yaxis_title="both")
    header, *rows = long_table(figure)
    assert [dict(zip(header, row, strict=True)) for row in rows] == [
        {"series": "<i>", "frame": "", "text": "a b", "x axis": "left", "x": 1, "x_error": "", "y axis": "both",
         "y": 3, "y_error": 0.1, "z": ""},
        {"series": "<i>", "frame": "", "text": "<c", "x axis": "left", "x": 2, "x_error": "", "y axis": "both",
         "y": 4, "y_error": 0.2, "z": ""},
        {"series": "n", "frame": "", "text": "", "x axis": "right", "x": 5, "x_error": 0.5, "y axis": "both",
         "y": 6, "y_error": "", "z": ""},
    ]  # fmt: skip


def test_frames_are_in_it_once_each_under_their_names():
    grid = np.arange(6.0).reshape(2, 3)
    figure = go.Figure(
        [go.Scatter(x=[0], y=[1], name="still"), go.Heatmap(z=grid, x=[1, 2, 3], y=[7, 8], name="net")],
        frames=[go.Frame(name=name, traces=[1], data=[go.Heatmap(z=grid + step)]) for step, name in enumerate("ab")],
    )
    _, still, *cells = long_table(figure)
    assert still[0] == "still" and still[1] == ""
    assert [cell[1] for cell in cells] == ["a"] * 6 + ["b"] * 6 and {cell[0] for cell in cells} == {"net"}
    assert [cell[-1] for cell in cells] == [*grid.ravel(), *(grid + 1).ravel()]
