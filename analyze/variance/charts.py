"""The interactive charts of the variance analysis."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np

from analyze.charting import Drawn
from analyze.depth_charts import Panel, by_depth, chosen_layers
from analyze.layered import ratio
from analyze.variance.spec import VALUES, Result

if TYPE_CHECKING:
    import plotly.graph_objects as go

LABELS = {
    "model_variance": "model variance",
    "data_variance": "data variance",
    "model_std": "model standard deviation",
    "data_std": "data standard deviation",
}
"""Each of `VALUES` in words."""


def measured_values(result: Result, value: str, to_layer_before: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """One of `VALUES` of each layer and its standard error, (layer,) each.

    Args:
        result: What was measured.
        value: Which.
        to_layer_before: As a multiple of the layer's before; NaN for the first layer.
    """
    if not to_layer_before:
        return getattr(result, value), getattr(result, f"{value}_stderr")
    totals = result.sums.total[:, :, VALUES.index(value)]
    found = [ratio(totals[:, place - 1], totals[:, place]) for place in range(1, len(result.layer))]
    values, errors = np.array([(np.nan, np.nan), *found]).T
    return values, errors


def variances(
    drawn: Sequence[Drawn[Result]],
    values: Sequence[str] = ("model_variance", "data_variance"),
    *,
    to_layer_before: bool = False,
    log: bool = True,
    layers: Collection[str] | None = None,
) -> go.Figure:
    """Each value over depth in a panel of its own, with standard errors.

    Args:
        drawn: The results.
        values: Names of `VALUES`.
        to_layer_before: Show each as a multiple of the layer's before.
        log: Logarithmic axes, without the zeros of deterministic networks.
        layers: Names of the layers to show; None for all.
    """
    panels = []
    for value in values:
        found = [measured_values(each.result, value, to_layer_before) for each in drawn]
        label = f"{LABELS[value]},<br>times the layer's before" if to_layer_before else LABELS[value]
        panels.append(Panel(label, [each for each, _ in found], [error for _, error in found], log))
    return by_depth(drawn, panels, layers)


def layer_table(drawn: Sequence[Drawn[Result]], layers: Collection[str] | None = None) -> dict[str, list[object]]:
    """All values of the chosen layers as columns by heading, a row for each model and layer."""
    rows = []
    for each in drawn:
        result = each.result
        for place in chosen_layers(result, layers):
            row: dict[str, object] = {"model": each.name, "layer": str(result.layer[place])}
            row |= {"kind": str(result.kind[place]), "size": result.sizes[place]}
            for name in VALUES:
                row[LABELS[name]] = float(getattr(result, name)[place])
                row[f"± {LABELS[name]}"] = float(getattr(result, f"{name}_stderr")[place])
            rows.append(row)
    return {heading: [row[heading] for row in rows] for heading in (rows[0] if rows else {})}
