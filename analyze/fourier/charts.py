"""The interactive charts of the Fourier analysis."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from analyze.chart_parts import ORDER, finite, highest, in_order, label_panels, legend_above_panels, side_by_side
from analyze.charting import Drawn, text
from analyze.depth_charts import Panel, by_depth, chosen_layers
from analyze.fourier.spec import HALF, HIGH, Result
from analyze.layered import measured, ratio

if TYPE_CHECKING:
    import plotly.graph_objects as go

AMPLITUDES = {
    "relative_log_amplitude": "relative log amplitude (nats)",
    "log_amplitude": "log amplitude (nats)",
}
"""What `amplitude_spectra` shows."""

POWERS = {"power": "power in a ring", "model_noise_power": "noise power in a ring"}
"""What `power_spectra` shows."""

DEPTHS = {
    "high_frequency_amplitude": f"relative log amplitude at {HIGH:g}π (nats)",
    "power_share": f"share of power from {HALF:g}π up",
    "noise_share": f"share of noise power from {HALF:g}π up",
    "power": "power without the origin",
    "noise": "noise power without the origin",
    "dead_share": "share of channels that are zero",
}
"""What `over_depth` shows."""

RINGED = ("power_share", "noise_share")
"""Those of `DEPTHS` that depend on how frequencies share rings."""

_MOST_IN_LEGEND = 8
_ROUNDING = 1e-12
"""Share of a layer's largest power that may be what rounding left in float32."""


class _Curve(NamedTuple):
    """One layer's spectrum."""

    x: np.ndarray
    """Frequencies; NaN beyond the last."""
    y: np.ndarray
    errors: np.ndarray
    more: Sequence[str] = ()
    """What else to tell of each point."""


def comparable(drawn: Sequence[Drawn[Result]]) -> tuple[list[Drawn[Result]], list[str]]:
    """The results with the first one's kind of rings, and a sentence for each of the others."""
    first = drawn[0]
    kept = [each for each in drawn if each.result.rings == first.result.rings]
    others = [each for each in drawn if each.result.rings != first.result.rings]
    return kept, [
        f"{each.name} is not shown here: its rings are {each.result.rings}, {first.name}'s {first.result.rings}."
        for each in others
    ]


def below_axis(figure: go.Figure) -> str:
    """How many points lie below the axis of y, as a sentence; "" for none."""
    bottom, log = figure.layout.yaxis.range, figure.layout.yaxis.type == "log"
    if bottom is None:
        return ""
    lowest = 10.0 ** bottom[0] if log else bottom[0]
    count = sum(int((np.asarray(trace.y, dtype=np.float64) < lowest).sum()) for trace in figure.data)
    return f"{count} point{'s lie' if count > 1 else ' lies'} below the axis." if count else ""


def amplitude_spectra(
    drawn: Sequence[Drawn[Result]], value: str = "relative_log_amplitude", layers: Collection[str] | None = None
) -> go.Figure:
    """Amplitude over frequency along the half diagonal: a panel for each model, a line for each layer.

    Args:
        drawn: The results.
        value: One of `AMPLITUDES`.
        layers: Names of the layers to show; None for all.
    """
    curves = [
        [
            _Curve(each.result.frequency[place], getattr(each.result, value)[place], _stderr(each.result, value)[place])
            for place in chosen_layers(each.result, layers)
        ]
        for each in drawn
    ]
    figure = _spectra(drawn, curves, layers, "frequency on both axes (π)", AMPLITUDES[value])
    figure.update_xaxes(rangemode="tozero")
    # a box blur leaves exactly nothing at the Nyquist frequency: that is no reason to shrink all the rest
    found = [y[(x < 1) & np.isfinite(y)] for panel in curves for x, y, *_ in panel]
    inside = np.concatenate(found) if found else np.zeros(0)
    if len(inside) and inside.min() < inside.max():
        spread = inside.max() - inside.min()
        figure.update_yaxes(range=[inside.min() - 0.1 * spread, inside.max() + 0.05 * spread])
    return figure


def power_spectra(
    drawn: Sequence[Drawn[Result]],
    value: str = "power",
    *,
    log_frequency: bool = False,
    layers: Collection[str] | None = None,
) -> go.Figure:
    """Power of each ring but the origin, on a logarithmic axis: a panel for each model, a line for each layer.

    Args:
        drawn: Comparable results.
        value: One of `POWERS`.
        log_frequency: Frequency on a logarithmic axis, too.
        layers: Names of the layers to show; None for all.
    """
    curves = []
    for each in drawn:
        result, power = each.result, getattr(each.result, value)
        panel = []
        for place in chosen_layers(result, layers):
            bins = [f"<br>{count} frequencies" for count in result.ring_bins[place, 1:]]
            there = np.where(power[place, 1:] > 0, power[place, 1:], np.nan)
            panel.append(_Curve(result.radial_frequency[1:], there, _stderr(result, value)[place, 1:], bins))
        curves.append(panel)
    figure = _spectra(drawn, curves, layers, f"{drawn[0].result.rings} frequency (π)", POWERS[value])
    figure.update_yaxes(type="log", exponentformat="power", dtick=1)
    scale: dict[str, Any] = {"rangemode": "tozero"}
    if log_frequency:
        scale = {"type": "log", "tickvals": [0.05, 0.1, 0.2, 0.5, 1]}
    figure.update_xaxes(uirevision=str(log_frequency), **scale)
    # where a box blur leaves nothing, there is what rounding left
    powers = [y[y > _ROUNDING * highest(y)] for panel in curves for _, y, *_ in panel]
    found = np.concatenate(powers) if powers else np.zeros(0)
    if len(found):
        figure.update_yaxes(range=[np.log10(found.min() / 1.5), np.log10(found.max() * 1.5)])
    return figure


def over_depth(
    drawn: Sequence[Drawn[Result]], value: str = "high_frequency_amplitude", layers: Collection[str] | None = None
) -> go.Figure:
    """One of `DEPTHS` over depth, with standard errors where it has any; the models overlaid.

    Args:
        drawn: The results; comparable ones for `RINGED`.
        value: Which quantity.
        layers: Names of the layers to show; None for all.
    """
    found = [depth_values(each.result, value) for each in drawn]
    log = value in ("power", "noise")
    panel = Panel(DEPTHS[value], [values for values, _ in found], [errors for _, errors in found], log)
    return by_depth(drawn, [panel], layers)


def depth_values(result: Result, value: str) -> tuple[np.ndarray, np.ndarray | None]:
    """One of `DEPTHS` of each layer and its standard error, (layer,) each; None for one without."""
    if value == "high_frequency_amplitude":
        return result.high_frequency_amplitude, result.high_frequency_amplitude_stderr
    if value == "dead_share":
        return result.dead_share, result.sums.dead.stderr[:, 0]
    power, sums = {
        "power": (result.power, result.sums.power),
        "noise": (result.model_noise_power, result.sums.noise),
    }[value.removesuffix("_share")]
    if not value.endswith("_share"):
        return result.total(power) - power[:, 0], None
    rings = result.ring_bins > 0
    rings[:, 0] = False
    high = rings & (result.ring_low >= HALF)
    whole, part = (np.where(there, sums.total, 0.0).sum(axis=-1) for there in (rings, high))
    shares = [ratio(whole[:, place], part[:, place]) for place in range(len(result.layer))]
    values, errors = np.array(shares).T
    return values, errors


def layer_table(drawn: Sequence[Drawn[Result]], layers: Collection[str] | None = None) -> dict[str, list[object]]:
    """All `DEPTHS` of the chosen layers as columns by heading, a row for each model and layer."""
    rows = []
    for each in drawn:
        result = each.result
        found = {label: depth_values(result, value) for value, label in DEPTHS.items()}
        for place in chosen_layers(result, layers):
            row: dict[str, object] = {
                "model": each.name,
                "layer": str(result.layer[place]),
                "kind": str(result.kind[place]),
            }
            row |= {"size": result.sizes[place], "rings": result.rings}
            for label, (values, errors) in found.items():
                row[label] = float(values[place])
                if errors is not None:
                    row[f"± {label}"] = float(errors[place])
            rows.append(row)
    return {heading: [row[heading] for row in rows] for heading in (rows[0] if rows else {})}


def planes(drawn: Sequence[Drawn[Result]], layer: str) -> go.Figure | None:
    """Log amplitude of a layer over the frequency plane, less that at the origin; None if no result holds it.

    A panel for each model, with one scale for all.
    """
    import plotly.graph_objects as go

    held = [each for each in drawn if layer in each.result.spectra]
    if not held:
        return None
    figure, cells = side_by_side([each.name for each in held], 400)
    lowest = []
    for each, (row, column) in zip(held, cells, strict=True):
        plane = each.result.spectra[layer]
        plane = plane - plane[plane.shape[0] // 2, plane.shape[1] // 2]
        inside = plane[tuple(slice(1 - size % 2, None) for size in plane.shape)]  # a blur leaves nothing at -1
        lowest += [float(np.nanmin(inside))] if np.isfinite(inside).any() else []
        y, x = ((np.arange(size) - size // 2) * 2 / size for size in plane.shape)
        figure.add_trace(
            go.Heatmap(
                x=x,
                y=y,
                z=finite(plane),
                name=text(each.name),
                coloraxis="coloraxis",
                hovertemplate="(%{y:.3g}π, %{x:.3g}π): <b>%{z:.3f}</b> nats<extra>%{fullData.name}</extra>",
            ),
            row=row,
            col=column,
        )
    figure.update_layout(
        coloraxis={
            "colorscale": "Viridis",
            "cmin": min(lowest, default=None),
            "cmax": None if not lowest else max(highest(trace.z) for trace in figure.data),
            "colorbar": {"title": {"text": "relative log<br>amplitude (nats)"}, "thickness": 14},
        }
    )
    figure.update_xaxes(constrain="domain", uirevision=layer)
    figure.update_yaxes(constrain="domain", constraintoward="top", scaleanchor="x", uirevision=layer)
    label_panels(figure, "horizontal (π)", "vertical (π)")
    return figure


def _stderr(result: Result, value: str) -> np.ndarray:
    return getattr(result, f"{value}_stderr")


def _spectra(
    drawn: Sequence[Drawn[Result]],
    curves: Sequence[Sequence[_Curve]],
    layers: Collection[str] | None,
    x_label: str,
    label: str,
) -> go.Figure:
    """Curves of the chosen layers: a few told apart by the legend, many coloured by depth."""
    figure, cells = side_by_side([each.name for each in drawn], 460)
    chosen = [chosen_layers(each.result, layers) for each in drawn]
    shown = zip(drawn, chosen, strict=True)
    names = list(dict.fromkeys(str(each.result.layer[place]) for each, found in shown for place in found))
    few = len(names) <= _MOST_IN_LEGEND
    told: set[str] = set()
    for each, (row, column), found, panel in zip(drawn, cells, chosen, curves, strict=True):
        colors = in_order(len(each.result.layer))
        for place, curve in zip(found.tolist(), panel, strict=True):
            name = str(each.result.layer[place])
            trace = _spectrum(each, place, curve)
            if few:
                color = in_order(len(names))[names.index(name)]
                trace.update(line_color=color, marker_color=color, showlegend=name not in told, legendgroup=trace.name)
                trace.error_y.visible = True
                told.add(name)
            else:
                depth = place / max(1, len(each.result.layer) - 1)
                trace.update(line_color=colors[place], showlegend=False)
                trace.marker.update(color=[depth] * len(trace.x), coloraxis="coloraxis")
            figure.add_trace(trace, row=row, col=column)
    figure.update_yaxes(uirevision=label)
    label_panels(figure, x_label, label)
    if few:
        legend_above_panels(figure)
    else:
        bar = {"title": {"text": "layer"}, "tickvals": [0, 1], "ticktext": ["first", "last"], "thickness": 14}
        figure.update_layout(coloraxis={"colorscale": list(ORDER), "cmin": 0, "cmax": 1, "colorbar": bar})
    return figure


def _spectrum(each: Drawn[Result], place: int, curve: _Curve) -> Any:
    import plotly.graph_objects as go

    result, there = each.result, np.isfinite(curve.x)
    x, y, errors = curve.x[there], curve.y[there], curve.errors[there]
    more = np.array(curve.more or [""] * len(there))[there]
    told = [f"{measured(value, error)}{extra}" for value, error, extra in zip(y, errors, more, strict=True)]
    return go.Scatter(
        x=x,
        y=finite(y),
        error_y={"type": "data", "array": errors, "visible": False, "thickness": 1, "width": 2},
        name=text(result.layer[place]),
        text=[text(each.name)] * len(x),
        customdata=told,
        mode="lines+markers",
        connectgaps=True,
        line={"width": 1.4},
        marker={"size": 4},
        hovertemplate=f"%{{fullData.name}}, {result.sizes[place]}<br>at %{{x:.3g}}π: <b>%{{customdata}}</b>"
        "<extra></extra>",
    )
