"""The interactive charts of corrupted pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from analyze.chart_parts import bars, line
from analyze.charting import Drawn, new_chart
from analyze.robustness.charts import columns, part_about, value_axis, with_errors
from analyze.robustness.corruption_errors import mean_accuracies, whole_kinds
from analyze.robustness.spec import Corruptions, Result
from data_cache.errors import InputError

if TYPE_CHECKING:
    import plotly.graph_objects as go

CORRUPTED = {
    "accuracy": "accuracy",
    "nll": "negative log-likelihood (nats)",
    "ece": "expected calibration error",
    "flip_rate": "flip rate",
    "kl": "KL divergence from clean (nats)",
    "rms": "RMS of the change of pixels",
}
"""What `corruptions` and `over_severities` show."""


def corruptions(drawn: Sequence[Drawn[Result]], value: str = "accuracy", severity: int | None = None) -> go.Figure:
    """One of `CORRUPTED` for each kind of corruption as bars with standard errors; the models side by side.

    Args:
        drawn: Comparable results with corruptions.
        value: Which quantity.
        severity: How strong; None for the mean over the severities of kinds that were computed at each.
    """
    figure = new_chart(460)
    for each in drawn:
        names, values, errors = corrupted_values(each.result, value, severity)
        figure.add_trace(bars([name.replace("_", " ") for name in names], values, errors, each.name, each.color))
        clean = getattr(each.result.corruptions, f"clean_{value}", None)
        if clean is not None:
            figure.add_hline(
                y=clean, line={"color": each.color, "width": 1, "dash": "dash"}, name="not corrupted",
                showlegend=each is drawn[0], legendgroup="clean",
            )  # fmt: skip
    figure.update_layout(barmode="group", bargap=0.25)
    figure.update_xaxes(type="category", tickangle=-45)
    value_axis(figure, value)
    figure.update_yaxes(title_text=CORRUPTED[value])
    return figure


def corrupted_values(result: Result, value: str, severity: int | None) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Kinds of corruption, one of `CORRUPTED` of each, and its standard error (NaN where it isn't known).

    Args:
        result: With corruptions.
        value: Which quantity.
        severity: How strong; None for the mean over the severities of kinds that were computed at each.
    """
    found = result.corruptions
    assert found is not None
    if severity is None:
        rows = whole_kinds(found)
        values, errors = getattr(found, value)[rows].mean(axis=1), np.full(len(rows), np.nan)
        if value == "accuracy" and len(rows):
            errors = np.array([mean.error for mean in mean_accuracies(found)[1:]], dtype=np.float64)
    else:
        (columns,) = np.nonzero(found.severity == severity)
        whole, stderr = with_errors(found, value)
        rows = np.flatnonzero(~np.isnan(whole[:, columns]).all(axis=1)) if len(columns) else np.zeros(0, dtype=int)
        values, errors = (each[rows, columns[0]] if len(rows) else np.zeros(0) for each in (whole, stderr))
    return [str(found.corruption[row]) for row in rows], values, errors


def over_severities(drawn: Sequence[Drawn[Result]], kind: str, value: str = "accuracy") -> go.Figure:
    """One of `CORRUPTED` over the severity of one kind of corruption, with standard errors; the models overlaid."""
    figure = new_chart(380)
    for each in drawn:
        found = each.result.corruptions
        assert found is not None
        values, errors = with_errors(found, value)
        for row in np.flatnonzero(found.corruption == kind):
            curve = line(found.severity, values[row], errors[row], each.name, each.color, "severity %{x}")
            figure.add_trace(curve)
    figure.update_xaxes(title_text="severity", dtick=1)
    value_axis(figure, value)
    figure.update_yaxes(title_text=CORRUPTED[value])
    return figure


def severities(drawn: Sequence[Drawn[Result]]) -> list[int]:
    """All severities that any result has, ascending."""
    return sorted({int(severity) for each in drawn for severity in _corrupted(each).severity})


def corruption_table(drawn: Sequence[Drawn[Result]], value: str = "accuracy") -> dict[str, list[Any]]:
    """One of `CORRUPTED` as columns by heading, a row for each model and kind.

    With the mean over severities, and of all models but the first their corruption errors (Hendrycks & Dietterich,
    "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR 2019) relative to it.
    """
    levels, rows = severities(drawn), []
    for each in drawn:
        found = _corrupted(each)
        means = {
            name: (mean, error) for name, mean, error in zip(*corrupted_values(each.result, value, None), strict=True)
        }
        relative = _relative(drawn[0], each)
        for row, kind in enumerate(map(str, found.corruption)):
            measured = {
                int(level): float(told) for level, told in zip(found.severity, getattr(found, value)[row], strict=True)
            }
            rows.append(
                [each.name, kind.replace("_", " "), *(measured.get(level, np.nan) for level in levels)]
                + [*means.get(kind, (np.nan, np.nan)), *relative.get(kind, (np.nan, np.nan))]
            )
    error = f"corruption error (% of {drawn[0].name}'s)"
    headings = [
        "model",
        "corruption",
        *(f"severity {level}" for level in levels),
        "mean",
        "± mean",
        error,
        f"± {error}",
    ]
    return columns(headings if len(drawn) > 1 else headings[:-2], rows)


def about(drawn: Sequence[Drawn[Result]]) -> str:
    """Of what the pictures are, in a sentence."""
    sources = ", ".join(dict.fromkeys(str(_corrupted(each).source) for each in drawn))
    return f"{part_about(drawn, 'corruptions')} Pictures: {sources}."


def _relative(reference: Drawn[Result], each: Drawn[Result]) -> dict[str, tuple[float, float]]:
    """Corruption error of each kind and its standard error; empty for the reference, or where nothing is in common."""
    if each is reference:
        return {}
    paired = each.result.pairing() == reference.result.pairing()
    try:
        errors = _corrupted(each).relative_to(_corrupted(reference), paired=paired)
    except InputError:
        return {}
    return {
        str(kind): (float(value), float(error))
        for kind, value, error in zip(errors.corruption, errors.error, errors.error_stderr, strict=True)
    }


def _corrupted(each: Drawn[Result]) -> Corruptions:
    assert each.result.corruptions is not None
    return each.result.corruptions
