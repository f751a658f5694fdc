"""The interactive charts of corrupted pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from analyze.chart_parts import bars, line
from analyze.charting import Drawn, new_chart
from analyze.robustness.charts import columns, part_about, value_axis, with_errors
from analyze.robustness.corruption_errors import whole_kinds
from analyze.robustness.spec import Corruptions, Result
from analyze.robustness.tables import group_stderr
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

_GROUPED = {"accuracy": "group_correct", "nll": "group_nll", "flip_rate": "group_flips"}
"""Sums over each group of images, where they are kept."""


def corruptions(drawn: Sequence[Drawn[Result]], value: str = "accuracy", severity: int | None = None) -> go.Figure:
    """One of `CORRUPTED` for each kind of corruption as bars with standard errors; the models side by side.

    Args:
        drawn: Comparable results with corruptions.
        value: Which quantity.
        severity: How strong; None for the mean over the severities that all of them have.
    """
    figure = new_chart(460)
    levels = shared_severities(drawn) if severity is None else [severity]
    for each in drawn:
        names, values, errors = corrupted_values(_corrupted(each), value, levels)
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
    figure.update_yaxes(title_text=CORRUPTED[value] + (f",<br>{_mean_of(levels)}" if severity is None else ""))
    return figure


def corrupted_values(found: Corruptions, value: str, levels: Sequence[int]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Kinds computed at each of these severities, the mean of one of `CORRUPTED` over them, and its standard error.

    The error is that of the severity if there is one, else over groups of images (NaN of what has no groups).
    """
    found = at_severities(found, levels)
    rows = whole_kinds(found)
    whole, stderr = with_errors(found, value)
    sums = getattr(found, _GROUPED.get(value, ""), None)
    if len(found.severity) == 1:
        errors = stderr[rows, 0]
    elif sums is None:
        errors = np.full(len(rows), np.nan)
    else:
        errors = np.array([group_stderr(sums[row].mean(axis=0), found.group_images) for row in rows])
    values = whole[rows].mean(axis=1) if len(rows) else np.zeros(0)
    return [str(found.corruption[row]) for row in rows], values, errors


def at_severities(found: Corruptions, levels: Sequence[int]) -> Corruptions:
    """The same at those of these severities that it has."""
    kept = np.isin(found.severity, levels)
    cut: dict[str, Any] = {}
    for field in fields(found):
        dims = field.metadata["array"].dims
        if "severity" in dims:
            cut[field.name] = np.compress(kept, getattr(found, field.name), axis=dims.index("severity"))
    return replace(found, **cut)


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


def shared_severities(drawn: Sequence[Drawn[Result]]) -> list[int]:
    """Severities that all results have, ascending."""
    return [level for level in severities(drawn) if all(level in _corrupted(each).severity for each in drawn)]


def _mean_of(levels: Sequence[int]) -> str:
    return f"mean of severities {', '.join(map(str, levels))}" if levels else "no severity in common"


def corruption_table(drawn: Sequence[Drawn[Result]], value: str = "accuracy") -> dict[str, list[Any]]:
    """One of `CORRUPTED` as columns by heading, a row for each model and kind.

    With the mean over the severities that all have, and of all models but the first their corruption errors there
    (Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR
    2019) relative to it.
    """
    levels, shared, rows = severities(drawn), shared_severities(drawn), []
    for each in drawn:
        found = _corrupted(each)
        means = {name: (mean, error) for name, mean, error in zip(*corrupted_values(found, value, shared), strict=True)}
        relative = _relative(drawn[0], each, shared)
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
        _mean_of(shared),
        "± mean",
        error,
        f"± {error}",
    ]
    return columns(headings if len(drawn) > 1 else headings[:-2], rows)


def about(drawn: Sequence[Drawn[Result]]) -> str:
    """Of what the pictures are, in a sentence."""
    sources = ", ".join(dict.fromkeys(str(_corrupted(each).source) for each in drawn))
    return f"{part_about(drawn, 'corruptions')} Pictures: {sources}."


def _relative(reference: Drawn[Result], each: Drawn[Result], levels: Sequence[int]) -> dict[str, tuple[float, float]]:
    """Corruption error of each kind and its standard error; empty for the reference, or where nothing is in common."""
    if each is reference:
        return {}
    paired = each.result.pairing() == reference.result.pairing()
    try:
        ours, theirs = (at_severities(_corrupted(one), levels) for one in (each, reference))
        errors = ours.relative_to(theirs, paired=paired)
    except InputError:
        return {}
    return {
        str(kind): (float(value), float(error))
        for kind, value, error in zip(errors.corruption, errors.error, errors.error_stderr, strict=True)
    }


def _corrupted(each: Drawn[Result]) -> Corruptions:
    assert each.result.corruptions is not None
    return each.result.corruptions
