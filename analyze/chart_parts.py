"""Parts that interactive charts are made of: colours in order, lines with errors, and panels with linked axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from analyze.charting import NEUTRAL, new_chart, text
from analyze.layered import measured

if TYPE_CHECKING:
    import plotly.graph_objects as go

ORDER = ("#4169e1", "#8f5bd6", "#d1479b", "#ee7340", "#dfa21c")
"""From first to last: colours of lines that have an order, such as layers, readable on light and dark ground."""

_MOST_COLUMNS = 4


def in_order(count: int) -> list[str]:
    """Colours for `count` lines that have an order."""
    from plotly.colors import sample_colorscale

    return list(sample_colorscale(list(ORDER), np.linspace(0, 1, count).tolist())) if count else []


def finite(values: np.ndarray) -> np.ndarray:
    """The values, with NaN for those that no axis can show."""
    return np.where(np.isfinite(values), values, np.nan)


def highest(values: np.ndarray) -> float:
    """The largest finite value that is above 0; 0 if there is none."""
    return float(np.max(values, where=np.isfinite(values), initial=0.0))


def line(
    x: np.ndarray,
    y: np.ndarray,
    errors: np.ndarray,
    name: str,
    color: str,
    where: str,
    named: Sequence[str] | None = None,
) -> Any:
    """A line with a marker and an error bar at each point, whose hover tells where it is, value and error.

    Args:
        x: (points,)
        y: (points,)
        errors: (points,) NaN where there is none.
        name: For the legend; any text.
        color: Of all of it.
        where: What the hover tells of a point before its value, as a plotly template.
        named: (points,) names of the points, `%{text}` in `where`; any text.
    """
    import plotly.graph_objects as go

    return go.Scatter(
        x=x,
        y=finite(y),
        error_y={"type": "data", "array": errors, "thickness": 1.2, "width": 3},
        text=None if named is None else [text(each) for each in named],
        customdata=[measured(value, error) for value, error in zip(y, errors, strict=True)],
        name=text(name),
        legendgroup=text(name),
        mode="lines+markers",
        line={"color": color, "width": 1.6},
        marker={"color": color, "size": 6},
        hovertemplate=f"{where}: <b>%{{customdata}}</b>",
    )


def bars(names: Sequence[str], values: np.ndarray, errors: np.ndarray, name: str, color: str) -> Any:
    """A bar with its error for each name.

    Args:
        names: (bars,) any text.
        values: (bars,)
        errors: (bars,) NaN where there is none.
        name: For the legend; any text.
        color: Of all of them.
    """
    import plotly.graph_objects as go

    return go.Bar(
        x=[text(each) for each in names],
        y=finite(values),
        error_y={"type": "data", "array": errors, "thickness": 1.2, "width": 3, "color": NEUTRAL},
        customdata=[measured(value, error) for value, error in zip(values, errors, strict=True)],
        name=text(name),
        marker={"color": color, "opacity": 0.85},
        hovertemplate="%{x}: <b>%{customdata}</b>",
    )


def side_by_side(names: Sequence[str], height: int) -> tuple[go.Figure, list[tuple[int, int]]]:
    """A panel for each name with linked axes, up to four in a row, and the row and column of each.

    Args:
        names: Above the panels; any text.
        height: In pixels, if they fit into one row.
    """
    columns = min(_MOST_COLUMNS, len(names))
    rows = -(-len(names) // columns)
    cells = [(place // columns + 1, place % columns + 1) for place in range(len(names))]
    figure = new_chart(
        height if rows == 1 else 320 * rows,
        rows,
        columns,
        shared_xaxes="all",
        shared_yaxes="all",
        horizontal_spacing=0.03,
        vertical_spacing=0.2 / rows,
        specs=[
            [{} if (row, column) in cells else None for column in range(1, columns + 1)] for row in range(1, rows + 1)
        ],
        subplot_titles=[text(name) for name in names],
    )
    figure.update_annotations(font_size=14)
    figure.update_layout(margin_t=50)
    for row, column in cells[-columns:]:
        figure.update_xaxes(showticklabels=True, row=row, col=column)
    return figure, cells


def legend_above_panels(figure: go.Figure) -> None:
    """Make room for a legend above the panels' names."""
    figure.update_layout(legend_y=1 + 36 / figure.layout.height, margin_t=80)


def label_panels(figure: go.Figure, x: str, y: str) -> None:
    """Axis titles for linked panels, where they have ticks: below them, and beside the first column."""
    figure.update_xaxes(title_text=x, selector=lambda axis: axis.showticklabels is not False)
    figure.update_yaxes(title_text=y, selector=lambda axis: axis.showticklabels is not False)
