"""The interactive charts of the Hessian analysis: the numbers of its figures, with errors and names to point at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from analyze.charting import NEUTRAL, Drawn, faded, new_chart, text
from analyze.hessian.figures import _smoothed, spectrum_label
from analyze.hessian.kernel import kernel_density
from analyze.hessian.spec import Density, Result

if TYPE_CHECKING:
    import plotly.graph_objects as go

NOT_CONVERGED = "NOT CONVERGED"
EIGENVALUE = "eigenvalue of the Hessian of the loss (nats)"


def spectrum(drawn: Sequence[Drawn[Result]], width: float = 1.0) -> go.Figure:
    """Spectral density on a log axis from the stored nodes and weights, and below it the extremes with residuals.

    Each density is cut at a thousandth of one eigenvalue under its kernel.

    Args:
        drawn: Results that hold a density, extremes, or both.
        width: Of the kernel, in units of the stored width of each.
    """
    dense = [each for each in drawn if each.result.density is not None]
    extreme = [each for each in drawn if each.result.extremes is not None]
    heights = ([0.68] if dense else []) + ([0.32] if extreme else [])
    figure = new_chart(
        160 + 220 * bool(dense) + 130 * bool(extreme), max(1, len(heights)), 1, shared_xaxes=True,
        vertical_spacing=0.05, row_heights=heights or None,
    )  # fmt: skip
    for each in dense:
        _density(figure, each, width)
    if dense:
        floor = min(_floor(each, width) for each in dense)
        highest = max(np.nanmax(trace.y) for trace in figure.data)  # the densities' alone so far
        ends = [float(np.log10(floor)), float(np.log10(highest) + 0.15)]
        figure.update_yaxes(title="density (1/nat)", type="log", range=ends, exponentformat="power", dtick=1, row=1)
    for place, each in enumerate(extreme):
        _extremes(figure, each, place, len(extreme), row=len(heights), legend=each.result.density is None)
    if extreme:
        figure.update_yaxes(title="rank", autorange="reversed", dtick=1, row=len(heights))
    figure.add_vline(0, line={"color": NEUTRAL, "width": 1})
    figure.update_xaxes(title=EIGENVALUE, row=max(1, len(heights)))
    return figure


def density_curve(density: Density, width: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """The density over a grid of its own, with a kernel of so many stored widths."""
    if width == 1:
        return density.x, density.density
    return kernel_density(density.node, density.weight, density.outlier, width=width * float(density.width))


def _floor(each: Drawn[Result], width: float) -> float:
    density = each.result.density
    assert density is not None
    return 1e-3 / (each.result.parameters * float(density.width) * width)


def _density(figure: go.Figure, each: Drawn[Result], width: float) -> None:
    import plotly.graph_objects as go

    density = each.result.density
    assert density is not None
    x, curve = density_curve(density, width)
    curve = np.where(curve >= _floor(each, width), curve, np.nan)
    name = text(each.name)
    told = f"%{{x:.4g}}: %{{y:.3g}} per nat<br>kernel width {width * float(density.width):.3g}"
    figure.add_trace(
        go.Scatter(
            x=x, y=curve, mode="lines", name=name, legendgroup=name, hovertemplate=told, showlegend=True,
            line={"color": each.color, "width": 1.8},
        ),
        row=1,
        col=1,
    )  # fmt: skip


def _extremes(figure: go.Figure, each: Drawn[Result], place: int, count: int, row: int, legend: bool) -> None:
    import plotly.graph_objects as go

    found, name = each.result.extremes, text(each.name)
    assert found is not None
    kinds = ("largest", "circle", found.largest, found.largest_residual), (
        "smallest", "square", found.smallest, found.smallest_residual,
    )  # fmt: skip
    for kind, symbol, values, residuals in kinds:
        if not len(values):
            continue
        ranks = np.arange(1, len(values) + 1) + 0.24 * (place - (count - 1) / 2)
        marks = [_mark(found.converged, symbol)] * len(values)
        told = [
            f"{kind} {rank}: {value:.4g} ± {residual:.2g} (residual)" + f"<br>{NOT_CONVERGED}" * (not found.converged)
            for rank, (value, residual) in enumerate(zip(values, residuals, strict=True), start=1)
        ]
        figure.add_trace(
            go.Scatter(
                x=values, y=ranks, error_x={"array": residuals, "thickness": 1.2, "width": 4}, mode="markers",
                name=f"{name}, {kind}", legendgroup=name, text=told, hovertemplate="%{text}",
                showlegend=legend and kind == "largest",
                marker={"color": each.color, "size": 7, "symbol": marks, "line": {"color": each.color, "width": 1.5}},
            ),
            row=row,
            col=1,
        )  # fmt: skip


def _mark(converged: Any, symbol: str) -> str:
    """A cross in an open mark for what has not converged."""
    return symbol if converged else f"{symbol}-x-open"


def traces(drawn: Sequence[Drawn[Result]], mean: bool = False) -> go.Figure:
    """The trace with its standard error, and the sample of each random vector.

    Args:
        drawn: Results that hold a trace.
        mean: The trace over the number of parameters, the mean eigenvalue, in place of it.
    """
    import plotly.graph_objects as go

    figure = new_chart(130 + 70 * len(drawn))
    for place, each in enumerate(drawn):
        found, name = each.result.trace, text(each.name)
        assert found is not None
        scale = 1 / each.result.parameters if mean else 1.0
        what = "mean eigenvalue" if mean else "trace"
        count = len(found.samples)
        told = f"{what} %{{x:.4g}} ± {found.stderr * scale:.2g}<br>standard error over {count} probes"
        if count == 1:
            told = f"{what} %{{x:.4g}}<br>of one probe, which tells no standard error"
        figure.add_trace(
            go.Scatter(
                x=found.samples * scale, y=np.full(count, place) + 0.22, mode="markers", name=f"{name}, samples",
                legendgroup=name, showlegend=False, hovertemplate="sample %{x:.4g}",
                marker={"color": each.color, "symbol": "line-ns", "size": 9, "opacity": 0.7,
                        "line": {"color": each.color, "width": 1.2}},
            )
        )  # fmt: skip
        figure.add_trace(
            go.Scatter(
                x=[found.estimate * scale], y=[place], mode="markers", name=name, legendgroup=name,
                error_x={"array": [found.stderr * scale], "thickness": 1.6, "width": 6}, hovertemplate=told,
                marker={"color": each.color, "size": 10},
            )
        )  # fmt: skip
    figure.update_xaxes(title="trace / parameters (nats)" if mean else "trace of the Hessian (nats)")
    figure.update_yaxes(range=[len(drawn) - 0.5, -0.5], visible=False)
    return figure


def max_spectrum(
    drawn: Sequence[Drawn[Result]], *, logarithmic: bool = False, which: Literal["largest", "smallest"] = "largest"
) -> go.Figure:
    """Kernel density of the mini-batches' extreme eigenvalues, and a rug of them all.

    Args:
        drawn: Results that hold a max-eigenvalue spectrum.
        logarithmic: Over a log axis, per decade; values that are not above 0 are left out, and counted.
        which: The largest (all ranks) or the smallest of each mini-batch.
    """
    figure = new_chart(400 + 14 * len(drawn), 2, 1, shared_xaxes=True, vertical_spacing=0.02, row_heights=[0.82, 0.18])
    for place, each in enumerate(drawn):
        _batches(figure, each, place, logarithmic, which)
    figure.update_yaxes(title="density per decade" if logarithmic else "density (1/nat)", rangemode="tozero", row=1)
    figure.update_yaxes(range=[len(drawn) - 0.4, -0.6], showticklabels=False, showgrid=False, zeroline=False, row=2)
    figure.update_xaxes(type="log" if logarithmic else "linear")
    label = f"{which} eigenvalues of mini-batches' Hessians (nats)"
    if which == "largest":
        label = spectrum_label([each.result for each in drawn])
    figure.update_xaxes(title=label, row=2)
    return figure


def _batches(
    figure: go.Figure, each: Drawn[Result], place: int, logarithmic: bool, which: Literal["largest", "smallest"]
) -> None:
    import plotly.graph_objects as go

    found, name = each.result.max_spectrum, text(each.name)
    assert found is not None
    values, residuals = getattr(found, which), getattr(found, f"{which}_residual")
    values, residuals = (np.reshape(array, (len(found.batch), -1)) for array in (values, residuals))
    batches = np.repeat(np.arange(len(found.batch)), values.shape[1])
    values, residuals = values.ravel(), residuals.ravel()
    there = np.isfinite(values) & ((values > 0) if logarithmic else True)
    left_out = int(np.sum(np.isfinite(values) & ~there))
    if not there.any():
        return
    x, density = _smoothed(values[there], logarithmic)
    label = f"{name} (median {np.median(values[there]):.3g}" + f", {left_out} not above 0 left out" * bool(left_out)
    figure.add_trace(
        go.Scatter(
            x=x, y=density, mode="lines", name=f"{label})", legendgroup=name, fill="tozeroy",
            fillcolor=faded(each.color, 0.12),
            line={"color": each.color, "width": 1.8}, hovertemplate="%{x:.4g}: %{y:.3g}<extra>" + name + "</extra>",
        ),
        row=1,
        col=1,
    )  # fmt: skip
    told = [
        f"batch {found.batch[number]}: {value:.4g} ± {residual:.2g} (residual)"
        + ("" if found.converged[number] else f"<br>{NOT_CONVERGED}")
        for number, value, residual in zip(batches[there], values[there], residuals[there], strict=True)
    ]
    symbols = ["line-ns" if found.converged[number] else "x-thin" for number in batches[there]]
    figure.add_trace(
        go.Scatter(
            x=values[there], y=np.full(int(there.sum()), place), mode="markers", name=f"{name}, each", text=told,
            legendgroup=name, showlegend=False, hovertemplate="%{text}<extra>" + name + "</extra>",
            marker={"symbol": symbols, "size": 9, "color": each.color, "line": {"color": each.color, "width": 1.2}},
        ),
        row=2,
        col=1,
    )  # fmt: skip


def blocks(drawn: Sequence[Drawn[Result]], *, logarithmic: bool = True) -> go.Figure:
    """By layer: trace / size with its standard error, and the largest eigenvalue with its residual.

    Args:
        drawn: Results that hold blocks.
        logarithmic: Over log axes; numbers below zero are then open marks at their absolute value.
    """
    figure = new_chart(560, 2, 1, shared_xaxes=True, vertical_spacing=0.05)
    order = _order([found.block for each in drawn if (found := each.result.blocks) is not None])
    for place, each in enumerate(drawn):
        found = each.result.blocks
        assert found is not None
        where = np.array([order[str(layer)] for layer in found.block]) + 0.2 * (place - (len(drawn) - 1) / 2)
        always = np.ones(len(found.block), bool)
        mean, error = found.trace / found.size, found.trace_stderr / found.size
        _by_layer(figure, each, 1, where, mean, error, always, "trace / size", "standard error", logarithmic)
        values, residuals = found.largest, found.largest_residual
        _by_layer(figure, each, 2, where, values, residuals, found.converged, "largest", "residual", logarithmic)
    for row, title in ((1, "trace / size (nats)"), (2, "largest eigenvalue (nats)")):
        figure.update_yaxes(title=title, row=row)
        if logarithmic:
            figure.update_yaxes(
                type="log", exponentformat="power", dtick=1 if _decades(figure, row) > 1.2 else None, row=row
            )
    figure.update_xaxes(**_layers(order))
    figure.update_xaxes(showticklabels=False, row=1)
    return figure


def _decades(figure: go.Figure, row: int) -> float:
    """How many the values of a row of panels span."""
    axis = "y" if row == 1 else f"y{row}"
    values = np.concatenate([[], *(trace.y for trace in figure.data if (trace.yaxis or "y") == axis)])
    values = values[values > 0]
    return float(np.log10(values.max() / values.min())) if values.size else 0.0


def _order(names: Sequence[np.ndarray]) -> dict[str, int]:
    return {name: place for place, name in enumerate(dict.fromkeys(str(name) for each in names for name in each))}


def _layers(order: dict[str, int]) -> dict[str, Any]:
    """An axis of layers, whose names are shown where there is room, and at the marks."""
    names = [text(name) for name in order]
    return {
        "tickvals": list(range(len(names))), "ticktext": names, "tickangle": -90, "tickfont": {"size": 10},
        "range": [-0.7, len(names) - 0.3],
    }  # fmt: skip


def _by_layer(
    figure: go.Figure, each: Drawn[Result], row: int, where: np.ndarray, value: np.ndarray, error: np.ndarray,
    converged: np.ndarray, what: str, kind: str, logarithmic: bool,
) -> None:  # fmt: skip
    import plotly.graph_objects as go

    found, name = each.result.blocks, text(each.name)
    assert found is not None
    told = [
        f"{text(layer)}<br>{what} {number:.4g} ± {spread:.2g} ({kind})" + ("" if sure else f"<br>{NOT_CONVERGED}")
        for layer, number, spread, sure in zip(found.block, value, error, converged, strict=True)
    ]
    below = (value < 0) & logarithmic
    for those, mark, label in ((~below, "", ""), (below, "-open", ", below zero (absolute value)")):
        those = those & np.isfinite(value)
        if not those.any():
            continue
        symbols = [f"circle{mark}" if sure else "circle-x-open" for sure in converged[those]]
        figure.add_trace(
            go.Scatter(
                x=where[those], y=np.abs(value[those]) if logarithmic else value[those], mode="markers",
                name=name + label, legendgroup=name, showlegend=row == 1, hovertemplate="%{text}",
                text=[told[number] for number in np.flatnonzero(those)],
                error_y={"array": error[those], "thickness": 1.2, "width": 3},
                marker={"color": each.color, "size": 7, "symbol": symbols, "line": {"color": each.color, "width": 1.5}},
            ),
            row=row,
            col=1,
        )  # fmt: skip


def bits(drawn: Sequence[Drawn[Result]]) -> go.Figure:
    """The bits per weight that a size limit leaves each layer, by each criterion of what rounding costs."""
    import plotly.graph_objects as go

    figure = new_chart(340)
    order = _order([found.layer for each in drawn if (found := each.result.quantization) is not None])
    widths: set[int] = set()
    for place, each in enumerate(drawn):
        found, name = each.result.quantization, text(each.name)
        assert found is not None
        widths |= {int(width) for width in found.bits}
        for number, (criterion, chosen) in enumerate(zip(found.criterion, found.allocation, strict=True)):
            shift = 0.16 * (2 * place + number - (2 * len(drawn) - 1) / 2)
            costs = found.omega if criterion == "omega" else found.direct
            told = [
                f"{text(layer)}: {int(width)} bits<br>cost {cost[list(found.bits).index(width)]:.3g} nats"
                for layer, width, cost in zip(found.layer, chosen, costs, strict=True)
            ]
            figure.add_trace(
                go.Scatter(
                    x=np.array([order[str(layer)] for layer in found.layer]) + shift, y=chosen, mode="markers",
                    name=f"{name}, by {text(criterion)}", text=told, hovertemplate="%{text}",
                    marker={"color": each.color, "size": 8, "symbol": ("circle", "square-open")[number % 2]},
                )
            )  # fmt: skip
    figure.update_yaxes(title="bits per weight", tickvals=sorted(widths), rangemode="tozero")
    figure.update_xaxes(**_layers(order))
    return figure
