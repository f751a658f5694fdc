"""Charts over the depth of networks, models overlaid: for the screen what `by_depth` draws for paper."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from analyze.by_depth import places
from analyze.chart_parts import finite
from analyze.charting import NEUTRAL, Drawn, new_chart, text
from analyze.layered import LayeredResult, measured

if TYPE_CHECKING:
    import plotly.graph_objects as go

SYMBOLS = {"smoothing": "square-open", "attention": "triangle-up-open"}
"""Markers of kinds of layers; the others are full circles."""

_MOST_LABELS = 60


class Panel(NamedTuple):
    """One quantity over depth."""

    label: str
    """Of the axis, with the unit."""
    values: Sequence[np.ndarray]
    """(layer,) for each result."""
    errors: Sequence[np.ndarray | None]
    """Their standard errors; None where there are none."""
    log: bool = False
    """Logarithmic axis: without values that are not above 0."""


def chosen_layers(result: LayeredResult, layers: Collection[str] | None) -> np.ndarray:
    """Positions of those of the result's layers that are named; of all for None."""
    names = [str(name) for name in result.layer]
    return np.array([place for place, name in enumerate(names) if layers is None or name in layers], dtype=int)


def by_depth(
    drawn: Sequence[Drawn[LayeredResult]], panels: Sequence[Panel], layers: Collection[str] | None = None
) -> go.Figure:
    """A panel for each quantity, above each other, with a line of standard errors for each result.

    Spans that lead to a smoothing layer are shaded, and dashed lines stand before layers that subsample (both of the
    first result that has smoothing layers, if any).

    Args:
        drawn: The results.
        panels: What to show of them.
        layers: Names of the layers to show; None for all.
    """
    results = [each.result for each in drawn]
    chosen = [chosen_layers(result, layers) for result in results]
    where, names = _places(results, chosen)
    figure = new_chart(420 if len(panels) == 1 else 560, len(panels), 1, shared_xaxes=True, vertical_spacing=0.05)
    for row, panel in enumerate(panels, start=1):
        for number, (each, places_of, shown) in enumerate(zip(drawn, where, chosen, strict=True)):
            values, error = panel.values[number], panel.errors[number]
            figure.add_trace(_line(each, places_of, shown, values, error, panel.log, first=row == 1), row=row, col=1)
        axis = {"type": "log", "exponentformat": "power"} if panel.log else {"type": "linear"}
        figure.update_yaxes(title_text=panel.label, uirevision=f"{panel.label} {panel.log}", row=row, col=1, **axis)
    _mark(figure, results, where, chosen, len(panels))
    _name_layers(figure, names, len(panels))
    figure.update_layout(hovermode="x")
    return figure


def _places(results: Sequence[LayeredResult], chosen: Sequence[np.ndarray]) -> tuple[list[np.ndarray], list[str]]:
    """Where the chosen layers stand, without gaps for the others, and the names there (none on a relative axis)."""
    where, names = places(results)
    where = [place[shown] for place, shown in zip(where, chosen, strict=True)]
    if not names:
        return where, []
    kept = np.unique(np.concatenate(where)).astype(int)
    return [np.searchsorted(kept, place).astype(float) for place in where], [names[place] for place in kept]


def _line(
    each: Drawn[LayeredResult],
    where: np.ndarray,
    shown: np.ndarray,
    values: np.ndarray,
    errors: np.ndarray | None,
    log: bool,
    first: bool,
) -> Any:
    import plotly.graph_objects as go

    result = each.result
    errors = np.full(len(values), np.nan) if errors is None else errors
    kinds = [str(result.kind[place]) for place in shown]
    about = [
        [text(kind), result.sizes[place], measured(values[place], errors[place])]
        for kind, place in zip(kinds, shown, strict=True)
    ]
    return go.Scatter(
        x=where,
        y=np.where(values[shown] > 0, values[shown], np.nan) if log else finite(values[shown]),
        error_y={"type": "data", "array": errors[shown], "thickness": 1.2, "width": 3},
        text=[text(result.layer[place]) for place in shown],
        customdata=about,
        name=text(each.name),
        legendgroup=text(each.name),
        showlegend=first,
        mode="lines+markers",
        line={"color": each.color, "width": 1.6},
        marker={"color": each.color, "size": 8, "symbol": [SYMBOLS.get(kind, "circle") for kind in kinds]},
        hovertemplate="%{text} (%{customdata[0]}, %{customdata[1]}): <b>%{customdata[2]}</b>",
    )


def _mark(
    figure: go.Figure,
    results: Sequence[LayeredResult],
    where: Sequence[np.ndarray],
    chosen: Sequence[np.ndarray],
    rows: int,
) -> None:
    number = next((number for number, result in enumerate(results) if result.steps), 0)
    result, at = results[number], dict(zip(chosen[number].tolist(), where[number].tolist(), strict=True))
    spans = [(at[before], at[after]) for before, after in result.steps if before in at and after in at]
    order = list(at)
    lines = [
        (at[before] + at[after]) / 2
        for before, after in zip(order, order[1:], strict=False)
        if result.subsampling[before + 1 : after + 1].any()
    ]
    for row in range(1, rows + 1):
        for count, (left, right) in enumerate(spans):
            look = {"fillcolor": NEUTRAL, "opacity": 0.2, "line_width": 0, "layer": "below"}
            named = _in_legend("smoothing", row == 1 and count == 0)
            figure.add_vrect(x0=left, x1=right, row=row, col=1, **look, **named)
        for count, place in enumerate(lines):
            look = {"line": {"color": NEUTRAL, "width": 1, "dash": "dash"}, "layer": "below"}
            named = _in_legend("subsampling", row == 1 and count == 0)
            figure.add_vline(x=place, row=row, col=1, **look, **named)


def _in_legend(name: str, shown: bool) -> dict[str, Any]:
    return {"name": name, "legendgroup": name, "showlegend": shown}


def _name_layers(figure: go.Figure, names: Sequence[str], rows: int) -> None:
    if not names:
        figure.update_xaxes(uirevision="relative")
        figure.update_xaxes(title_text="relative depth", row=rows, col=1)
        return
    step = -(-len(names) // _MOST_LABELS)
    figure.update_xaxes(
        tickmode="array",
        tickvals=list(range(0, len(names), step)),
        ticktext=[text(name) for name in names[::step]],
        range=[-0.5, len(names) - 0.5],
        uirevision="\n".join(names),
        zeroline=False,
    )
    figure.update_xaxes(tickangle=-45, row=rows, col=1)
