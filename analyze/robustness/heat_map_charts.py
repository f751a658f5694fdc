"""The interactive charts of the Fourier heat map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from analyze.chart_parts import finite, highest, label_panels, side_by_side
from analyze.charting import Drawn, text
from analyze.robustness.charts import part_about
from analyze.robustness.spec import HeatMap, Result

if TYPE_CHECKING:
    import plotly.graph_objects as go

WAVES = {"error": "error rate", "flip_rate": "flip rate", "logit_change": "change of the logits (nats)"}
"""What `heat_maps` and `heat_map_difference` show."""


def heat_maps(drawn: Sequence[Drawn[Result]], value: str = "error") -> go.Figure:
    """One of `WAVES` over the Fourier plane: a panel for each model, with one scale for all.

    Args:
        drawn: Comparable results with heat maps.
        value: Which quantity.
    """
    figure, cells = side_by_side([each.name for each in drawn], 470 if len(drawn) < 3 else 380)
    for each, (row, column) in zip(drawn, cells, strict=True):
        found = _waves(each)
        values, errors = getattr(found, value), getattr(found, f"{value}_stderr", None)
        figure.add_trace(_heat_map(found, values, each.name, errors), row=row, col=column)
    most = max(highest(getattr(_waves(each), value)) for each in drawn)
    top = most if value == "logit_change" else 1.0
    _plane_axes(figure)
    figure.update_layout(coloraxis={"colorscale": _inferno(), "cmin": 0.0, "cmax": top, "colorbar": _bar(WAVES[value])})
    return figure


def heat_map_difference(first: Drawn[Result], second: Drawn[Result], value: str = "error") -> go.Figure | None:
    """How much larger one of `WAVES` is of the second model than of the first; None if their planes differ."""
    a, b = _waves(first), _waves(second)
    axes = ("frequency_y", "frequency_x")
    if not all(np.array_equal(getattr(a, name), getattr(b, name)) for name in axes):
        return None
    change = getattr(b, value) - getattr(a, value)
    most = max(0.05, highest(np.abs(change)))
    name = f"{second.name} − {first.name}"
    figure, _ = side_by_side([name], 470)
    figure.add_trace(_heat_map(a, change, name))
    _plane_axes(figure)
    figure.update_layout(
        coloraxis={"colorscale": "RdBu_r", "cmin": -most, "cmax": most, "colorbar": _bar(f"{WAVES[value]},<br>change")}
    )
    return figure


def about(drawn: Sequence[Drawn[Result]]) -> str:
    """Of what the heat maps are, in a sentence."""
    first = _waves(drawn[0])
    clean = ", ".join(f"{each.name} {_waves(each).clean_error:.3f}" for each in drawn)
    return f"{part_about(drawn, 'heat_map')} Waves with a root mean square of {first.sigma:g}. Error without: {clean}."


def _inferno() -> list[str]:
    """The palette of the printed figure; Streamlit takes its first colour, #000004, for one of its own to replace."""
    from plotly.colors import sequential

    return ["rgb(0, 0, 4)", *sequential.Inferno[1:]]


def _waves(each: Drawn[Result]) -> HeatMap:
    assert each.result.heat_map is not None
    return each.result.heat_map


def _heat_map(found: HeatMap, values: np.ndarray, name: str, errors: np.ndarray | None = None) -> Any:
    import plotly.graph_objects as go

    return go.Heatmap(
        x=found.frequency_x,
        y=found.frequency_y,
        z=finite(values),
        customdata=errors,
        name=text(name),
        coloraxis="coloraxis",
        hovertemplate="(%{y:.3g}π, %{x:.3g}π): <b>%{z:.3f}</b>" + ("" if errors is None else " ± %{customdata:.3f}"),
    )


def _plane_axes(figure: go.Figure) -> None:
    figure.update_xaxes(constrain="domain")
    figure.update_yaxes(constrain="domain", constraintoward="top", scaleanchor="x")  # under their titles
    label_panels(figure, "horizontal (π rad/px)", "vertical (π rad/px)")


def _bar(title: str) -> dict[str, Any]:
    return {"title": {"text": title}, "thickness": 14}
