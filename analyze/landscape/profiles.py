"""The interactive charts along lines and at points: curves, slices of surfaces, and calibration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from analyze.charting import DRAWING, NEUTRAL, Drawn, faded, new_chart, text
from analyze.landscape.scene import RED
from analyze.landscape.shown import (
    LABELS,
    axes_told,
    axis_label,
    caption,
    error_over_images,
    mean_over_frames,
    one_pass,
    place_of,
)
from analyze.landscape.spec import BINS, DONE, NOT_FINITE, Metric, Result

if TYPE_CHECKING:
    import plotly.graph_objects as go

THIN = 0.7
"""Width of the lines of single passes, in pixels."""


def values_of(result: Result, metric: Metric, number: int | None = None) -> np.ndarray:
    """(Y, X) a metric in the pass of this number, or where there is none its mean over passes; NaN where missing."""
    return one_pass(result, metric, number).value


def nearest(result: Result, x: float, y: float) -> tuple[int, int]:
    """Row and column of the grid point that is nearest to these coordinates."""
    return int(np.abs(result.y - y).argmin()), int(np.abs(result.x - x).argmin())


# Curves and slices


def curves(drawn: Sequence[Drawn[Result]], metric: Metric = "nll") -> go.Figure:
    """A metric along x with its standard error over images as a band, accuracy below, single passes as thin lines.

    Between two checkpoints, NLL has the straight line between them and the barrier above it.
    """
    names: list[Metric] = [metric] if metric == "accuracy" else [metric, "accuracy"]
    figure = new_chart(320 + 160 * (len(names) - 1), len(names), 1, shared_xaxes=True, vertical_spacing=0.06,
                       row_heights=[0.66, 0.34] if len(names) > 1 else None)  # fmt: skip
    for row, name in enumerate(names, start=1):
        for each in drawn:
            result = each.result
            if len(result.frame) > 1 and row == 1:
                _passes(figure, each, name, row)
            value, error = values_of(result, name)[0], error_over_images(result, name)
            _line(figure, each, result.x, value, None if error is None else error[0], name, (row, 1))
            _crosses(figure, result.x, value, mean_over_frames(result, name).nonfinite[0], (row, 1))
            if name == "nll":
                _barrier(figure, each, value)
        figure.update_yaxes(title=LABELS[name], row=row)
    labels = {axis_label(each.result, "x") for each in drawn}
    figure.update_xaxes(title=text(labels.pop() if len(labels) == 1 else "x"), row=len(names))
    return figure


def slices(
    drawn: Sequence[Drawn[Result]], metric: Metric = "nll", *, x: float = 0.0, y: float = 0.0, number: int | None = None
) -> go.Figure:
    """The row and the column of each surface through the grid point nearest to (x, y), with errors over images.

    Args:
        drawn: Surfaces.
        metric: What is drawn.
        x: Where the column is taken.
        y: Where the row is taken.
        number: Of a pass; None for the mean of all, which also stands in where a model lacks it.
    """
    figure = new_chart(340, 1, 2, shared_yaxes=True, horizontal_spacing=0.03)
    for each in drawn:
        result = each.result
        row, column = nearest(result, x, y)
        value, error = values_of(result, metric, number), error_over_images(result, metric, number)
        for panel, (axis, line) in enumerate(((result.x, np.s_[row, :]), (result.y, np.s_[:, column])), start=1):
            along = None if error is None else error[line]
            _line(figure, each, axis, value[line], along, metric, (1, panel))
            _crosses(figure, axis, value[line], one_pass(result, metric, number).nonfinite[line], (1, panel))
    points = [nearest(each.result, x, y) for each in drawn]
    at_x = sorted({float(each.result.x[column]) for each, (_, column) in zip(drawn, points, strict=True)})
    at_y = sorted({float(each.result.y[row]) for each, (row, _) in zip(drawn, points, strict=True)})
    for panel, (here, marks), (there, across) in ((1, ("x", at_x), ("y", at_y)), (2, ("y", at_y), ("x", at_x))):
        cut = " or ".join(f"{at:.4g}" for at in across) + ", the nearest of each grid" * (len(across) > 1)
        figure.update_xaxes(title=f"{here}, at {there} = {cut}", col=panel)
        for at in marks:
            figure.add_vline(at, line={"color": NEUTRAL, "width": 1, "dash": "dot"}, col=panel)
    figure.update_yaxes(title=LABELS[metric], col=1)
    return figure


def notes(figure: go.Figure, drawn: Sequence[Drawn[Result]]) -> str:
    """What bands, thin lines and crosses of `curves` and `slices` mean, and what is missing."""
    sentences = ["band: standard error over images"] if any(trace.fill for trace in figure.data) else []
    sentences += ["thin lines: single MC passes"] if any(trace.line.width == THIN for trace in figure.data) else []
    sentences += ["red crosses: not finite"] if any(trace.mode == "markers" for trace in figure.data) else []
    return caption([each.result for each in drawn], *sentences, axes_told(drawn), width=100_000)


def _line(
    figure: go.Figure, each: Drawn[Result], x: np.ndarray, value: np.ndarray, error: np.ndarray | None, metric: Metric,
    panel: tuple[int, int],
) -> None:  # fmt: skip
    """A line whose errors are a band, and in the hover."""
    import plotly.graph_objects as go

    value = np.where(np.isfinite(value), value, np.nan)
    name, where = text(each.name), {"row": panel[0], "col": panel[1]}
    told = f"%{{x:.4g}}: {LABELS[metric]} %{{y:.4g}}"
    errors: dict[str, Any] = {}
    if error is not None:
        for first, last in _stretches(np.isfinite(value) & np.isfinite(error)):
            at, middle, half = x[first:last], value[first:last], error[first:last]
            band = go.Scatter(
                x=np.r_[at, at[::-1]], y=np.r_[middle + half, (middle - half)[::-1]], fill="toself", mode="lines",
                line={"width": 0}, fillcolor=faded(each.color, 0.2), hoverinfo="skip", showlegend=False,
                legendgroup=name, meta=DRAWING,
            )  # fmt: skip
            figure.add_trace(band, **where)
        told += " ± %{customdata:.2g}"
        # the band shows them; the bars that tables read them from are not drawn
        errors = {"customdata": error, "error_y": {"array": error, "visible": False}}
    figure.add_trace(
        go.Scatter(
            x=x, y=value, mode="lines+markers", name=name, legendgroup=name, showlegend=panel == (1, 1),
            line={"color": each.color, "width": 2}, marker={"size": 4}, hovertemplate=told, **errors,
        ),
        **where,
    )  # fmt: skip


def _stretches(there: np.ndarray) -> list[tuple[int, int]]:
    """First and one past the last of each run of true values."""
    steps = np.diff(np.concatenate([[0], there.astype(int), [0]]))
    return list(zip(np.flatnonzero(steps == 1).tolist(), np.flatnonzero(steps == -1).tolist(), strict=True))


def _passes(figure: go.Figure, each: Drawn[Result], metric: Metric, row: int) -> None:
    import plotly.graph_objects as go

    result, name = each.result, text(each.name)
    for number in result.frame:
        value = values_of(result, metric, number)[0]
        thin = go.Scatter(
            x=result.x, y=np.where(np.isfinite(value), value, np.nan), mode="lines", showlegend=False,
            name=f"{name}, pass {number}", legendgroup=name, opacity=0.5, line={"color": each.color, "width": THIN},
            hoverinfo="skip",
        )  # fmt: skip
        figure.add_trace(thin, row=row, col=1)


def _crosses(figure: go.Figure, x: np.ndarray, value: np.ndarray, infinite: np.ndarray, panel: tuple[int, int]) -> None:
    """Red crosses on top of the panel where something was computed and is not finite."""
    import plotly.graph_objects as go

    if not infinite.any():
        return
    finite = value[np.isfinite(value)]
    height = np.full(int(infinite.sum()), finite.max() if finite.size else 0.0)
    cross = {"symbol": "x-thin", "size": 8, "line": {"color": RED, "width": 2}}
    figure.add_trace(
        go.Scatter(
            x=x[infinite], y=height, mode="markers", marker=cross, showlegend=False, cliponaxis=False, meta=DRAWING,
            hovertemplate="%{x:.4g}: not finite<extra></extra>",
        ),
        row=panel[0],
        col=panel[1],
    )  # fmt: skip


def _barrier(figure: go.Figure, each: Drawn[Result], value: np.ndarray) -> None:
    """The straight line between both checkpoints, and the largest height above it."""
    import plotly.graph_objects as go

    result = each.result
    if not np.isfinite(result.barrier):
        return
    ends = [float(value[int(np.abs(result.x - at).argmin())]) for at in (0, 1)]
    at = result.barrier_x
    straight = (1 - at) * ends[0] + at * ends[1]
    told = f"{text(each.name)}: barrier {result.barrier:.3g} nats at x = {at:.3g}"
    line = {"color": each.color, "width": 1.2, "dash": "dot"}
    for x, y in (([0, 1], ends), ([at, at], [straight, straight + result.barrier])):
        figure.add_trace(
            go.Scatter(
                x=x, y=y, mode="lines", line=line, name=told, legendgroup=told, showlegend=x[0] != x[1],
                hovertemplate=told + "<extra></extra>", meta=DRAWING,
            ),
            row=1,
            col=1,
        )  # fmt: skip


# Calibration


def reliability(
    drawn: Sequence[Drawn[Result]], *, x: float = 0.0, y: float = 0.0, number: int | None = None
) -> go.Figure:
    r"""Accuracy over confidence in 15 bins at the grid point nearest to (x, y), and the images in each bin below.

    On the diagonal, confidence is right (Guo et al. 2017). Errors are binomial, :math:`\sqrt{p (1 - p) / n}` with the n
    images of a bin; a bin of which all or none are right has none, and an open circle. Of several passes, bins hold the
    images of all of them, n is their mean over passes, and the ECE in the legend is the mean of the passes' own.
    """
    import plotly.graph_objects as go

    figure = new_chart(380, 2, 1, shared_xaxes=True, row_heights=[0.75, 0.25], vertical_spacing=0.04)
    diagonal = {"color": NEUTRAL, "width": 1, "dash": "dash"}
    figure.add_trace(
        go.Scatter(x=[0, 1], y=[0, 1], mode="lines", line=diagonal, hoverinfo="skip", showlegend=False, meta=DRAWING),
        row=1,
        col=1,
    )
    width = 0.8 / BINS / max(1, len(drawn))
    for beside, each in enumerate(drawn):
        row, column = nearest(each.result, x, y)
        bins = bins_at(each.result, row, column, number)
        ece = values_of(each.result, "ece", number)[row, column]
        several = len(each.result.frame) > 1 and place_of(each.result, number) is None
        told = f"ECE {ece:.3g}" + ", mean of passes" * several if np.isfinite(ece) else "no confidences here"
        name, group = f"{text(each.name)}: {told}", text(each.name)
        figure.add_trace(
            go.Scatter(
                x=bins.confidence, y=bins.accuracy, error_y={"array": bins.error, "thickness": 1, "width": 3},
                name=name, legendgroup=group, mode="lines+markers", line={"color": each.color, "width": 1.5},
                customdata=bins.images,
                marker={"size": 6, "symbol": np.where(np.isnan(bins.error), "circle-open", "circle")},
                hovertemplate="confidence %{x:.3f}<br>accuracy %{y:.3f}<br>%{customdata:,.4g} images",
            ),
            row=1,
            col=1,
        )  # fmt: skip
        figure.add_trace(
            go.Bar(
                x=bins.center, y=bins.images, marker={"color": each.color, "opacity": 0.6}, name=f"images of {group}",
                legendgroup=group, showlegend=False, hovertemplate="%{y:,.4g} images",
                width=width, offset=(beside - len(drawn) / 2) * width,  # beside those of the other models
            ),
            row=2,
            col=1,
        )  # fmt: skip
    figure.update_yaxes(title="accuracy", range=[-0.02, 1.02], row=1)
    figure.update_yaxes(title="images", row=2)
    figure.update_xaxes(type="linear", range=[0, 1.01])
    figure.update_xaxes(title="confidence", row=2)
    return figure


class Bins(NamedTuple):
    """(bins,) of confidence, of those that have images."""

    center: np.ndarray
    """The middle of each."""
    confidence: np.ndarray
    """Mean over its images."""
    accuracy: np.ndarray
    """Share classified right."""
    error: np.ndarray
    """Binomial standard error of the accuracy; NaN where all or none are right, which tells nothing of it."""
    images: np.ndarray
    """How many; of several passes their mean."""


def bins_at(result: Result, row: int, column: int, number: int | None = None) -> Bins:
    """The bins at a grid point, in a pass or over those that are done."""
    done = np.isin(result.status[:, row, column], (DONE, NOT_FINITE))
    if (place := place_of(result, number)) is not None:
        done &= np.arange(len(done)) == place
    passes = max(1, int(done.sum()))
    count, confidence, correct = (
        np.nansum(sums[done, row, column], axis=0)
        for sums in (result.bin_count, result.bin_confidence, result.bin_correct)
    )
    held = count > 0
    count, confidence, correct = count[held], confidence[held], correct[held]
    accuracy, images = correct / count, count / passes
    error = np.sqrt(accuracy * (1 - accuracy) / images)
    center = (np.flatnonzero(held) + 0.5) / len(held)
    return Bins(center, confidence / count, accuracy, np.where(error > 0, error, np.nan), images)
