"""The page of the landscape analysis: the loss over a line or a plane of weights through the checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import streamlit as st

from analyze.landscape import charts, profiles
from analyze.landscape.figures import metrics_of
from analyze.landscape.shown import UNBOUNDED
from analyze.landscape.spec import Metric
from apps.chart import show_chart
from apps.context import Chosen, Context, escape
from apps.tables import show_table
from apps.views.landscape_camera import keep_cameras
from apps.views.landscape_gif import offer_animation

METRICS: dict[Metric, str] = {
    "nll": "NLL", "accuracy": "Accuracy", "ece": "ECE", "l2": "Squared L2 norm", "loss": "Loss"
}  # fmt: skip
MEAN = "mean"


def show(context: Context) -> None:
    """Surfaces and contours, or curves, with slices and calibration at a point."""
    chosen = context.results("landscape")
    if not chosen:
        st.info("None of the chosen run files holds a landscape analysis that can be read.")
        return
    with st.container(horizontal=True, vertical_alignment="bottom"):
        metric = st.segmented_control(
            "Show", list(METRICS), default="nll", required=True, format_func=METRICS.__getitem__,
            key="landscape_metric", bind="query-params",
            help="NLL in nats; ECE: expected calibration error; squared L2 norm of the weights; "
            "loss: NLL and weight decay",
        )  # fmt: skip
        number = _pass(chosen)
        surfaces = [each for each in chosen if len(each.result.y) > 1]
        percentile = _clip() if metric in UNBOUNDED and surfaces else 95
    if empty := [each.name for each in chosen if not np.isfinite(each.result.metric(metric)).any()]:
        st.info(f"No point of {escape(', '.join(empty))} has a finite {METRICS[metric]} yet.")
    curves = [each for each in chosen if len(each.result.y) == 1]
    if surfaces:
        _surfaces(surfaces, metric, percentile, number)
    if curves:
        _curves(curves, metric, number)


def _pass(chosen: Sequence[Chosen]) -> int | None:
    """Number of the Monte Carlo pass to begin with; None for their mean."""
    numbers = charts.passes_of([each.result for each in chosen])
    if not numbers:
        return None
    options = [MEAN, *map(str, numbers)]
    picked = st.selectbox(
        "MC pass", options, key="landscape_pass", bind="query-params", width=150,
        format_func=lambda name: "mean of all" if name == MEAN else name,
        help="Dropout draws a surface of its own at each pass.",
    )  # fmt: skip
    return None if picked not in options[1:] else int(picked)


def _paper(chosen: Sequence[Chosen], metric: Metric, number: int | None) -> str | None:
    """The paper figure of what the page shows, which is of the mean over passes; None if none is."""
    if number is not None or (metric != "nll" and (len(chosen) > 1 or metric not in metrics_of(chosen[0].result))):
        return None
    return "compare" if len(chosen) > 1 else "" if metric == "nll" else "metrics"


def _clip() -> float:
    return st.slider(
        "Cut above, percentile of all points", 50, 100, 95, key="landscape_clip", bind="query-params", width=280,
        help="What rises higher is cut off, and has the colour of the top class.",
    )  # fmt: skip


def _surfaces(chosen: Sequence[Chosen], metric: Metric, percentile: float, number: int | None) -> None:
    drawn = [each.drawn() for each in chosen]
    figure = charts.surfaces(drawn, metric, percentile=percentile, start=number)
    note = charts.notes(drawn, metric, percentile)
    paper = _paper(chosen, metric, number)
    selection = show_chart(figure, chosen, "landscape_surfaces", paper=paper, on_select=True, note=note)
    _take_click(selection)
    keep_cameras()
    offer_animation(chosen, metric)
    st.markdown("##### At a point")
    steps = [_step(axis) for axis in (chosen[0].result.x, chosen[0].result.y)]
    with st.container(horizontal=True, vertical_alignment="bottom"):
        x, y = (
            st.number_input(name, step=step, format="%.4g", key=f"landscape_{name}", bind="query-params", width=150)
            for name, step in zip("xy", steps, strict=True)
        )
        st.caption("Or click a point of the contours. The checkpoint is at x = 0, y = 0.", width="stretch")
    figure = profiles.slices(drawn, metric, x=x, y=y, number=number)
    show_chart(figure, chosen, "landscape_slices", paper=None, note=profiles.notes(figure, drawn))
    _calibration(chosen, x, y, number, "landscape")


def _step(axis: np.ndarray) -> float:
    """From one grid point to the next; 1 where there is only one."""
    return float(axis[1] - axis[0]) if len(axis) > 1 else 1.0


def _take_click(selection: Any) -> None:
    """Move the point to where the contours were clicked last."""
    points = getattr(selection, "points", None) or []
    clicked = [(float(point["x"]), float(point["y"])) for point in points if "x" in point and "y" in point]
    if clicked and clicked[-1] != st.session_state.get("landscape_clicked"):
        st.session_state["landscape_clicked"] = clicked[-1]
        # single precision, as the chart has them
        for name, value in zip("xy", clicked[-1], strict=True):
            st.session_state[f"landscape_{name}"] = float(f"{value:.6g}")


def _curves(chosen: Sequence[Chosen], metric: Metric, number: int | None) -> None:
    drawn = [each.drawn() for each in chosen]
    figure = profiles.curves(drawn, metric)
    paper = _paper(chosen, metric, None)  # curves show the mean, whichever pass is chosen
    show_chart(figure, chosen, "landscape_curves", paper=paper, note=profiles.notes(figure, drawn))
    x = st.number_input(
        "Calibration at x", step=_step(chosen[0].result.x), format="%.4g",
        key="landscape_curve_x", bind="query-params", width=180,
    )  # fmt: skip
    _calibration(chosen, x, 0.0, number, "landscape_curve")


def _calibration(chosen: Sequence[Chosen], x: float, y: float, number: int | None, key: str) -> None:
    """The reliability diagram at a point, and all numbers there."""
    left, right = st.columns(2)
    with left:
        if all(np.isnan(each.result.accuracy).all() for each in chosen):
            st.info("The loss is not that of classes, so there is no calibration to show.")
        else:
            figure = profiles.reliability([each.drawn() for each in chosen], x=x, y=y, number=number)
            note = "dashed: confidence is right; bars: binomial standard error; open: all or none right, so no error"
            show_chart(figure, chosen, f"{key}_reliability", paper=None, note=note)
    with right:
        st.caption(escape(_where(chosen, x, y)))
        show_table(_numbers(chosen, x, y, number), f"{key}_numbers")


def _where(chosen: Sequence[Chosen], x: float, y: float) -> str:
    """The grid point of each that is nearest."""
    found: dict[str, list[str]] = {}
    for each in chosen:
        row, column = profiles.nearest(each.result, x, y)
        told = f"x = {each.result.x[column]:.4g}" + f", y = {each.result.y[row]:.4g}" * (len(each.result.y) > 1)
        found.setdefault(told, []).append(each.name)
    if len(found) == 1:
        return f"At {next(iter(found))}:"
    return "At the nearest grid points: " + "; ".join(f"{told} ({', '.join(names)})" for told, names in found.items())


def _numbers(chosen: Sequence[Chosen], x: float, y: float, number: int | None) -> dict[str, list[Any]]:
    """All metrics at the grid point of each that is nearest."""
    columns: dict[str, list[Any]] = {name: [] for name in ("model", "quantity", "value", "standard error")}
    for each in chosen:
        row, column = profiles.nearest(each.result, x, y)
        for name, label in METRICS.items():
            error = profiles.error_over_images(each.result, name, number)
            value = float(profiles.values_of(each.result, name, number)[row, column])
            line = each.name, label, value, np.nan if error is None else float(error[row, column])
            for values, cell in zip(columns.values(), line, strict=True):
                values.append(cell)
    return columns
