"""All run files below the root, to choose from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import streamlit as st

from analyze.charting import new_chart, text
from apps.chart import show_chart
from apps.context import Context, choose, colors, escape
from apps.library import KeyNumber, Numbers, Run

if TYPE_CHECKING:
    import plotly.graph_objects as go

KEY = "runs_table"
PANELS = {"accuracy": "accuracy", "nll": "NLL / nat", "eigenvalue": "largest λ / nat", "trace": "trace / nat"}
"""Key numbers, and what charts call them."""
READ = ("accuracy", "NLL", "eigenvalue", "trace", "analyses", "model", "data", "time", "written")
"""Columns of what is in the files."""


def show(context: Context) -> None:
    """The table of run files, in step with the picker, and what can't be read."""
    numbers = Numbers([*context.chosen, *context.runs])
    broken = [run for run in context.runs if numbers.of(run) is not None and run.problem]
    bad = {run.key for run in broken}
    good = [run for run in context.runs if run.key not in bad]
    if good:
        if numbers.left:
            _filled_in(numbers)
        _table(good, context.chosen, numbers)
        drawn = at_a_glance(context.chosen, [numbers.of(run) or {} for run in context.chosen])
        if drawn is not None:
            show_chart(drawn, [], "runs_glance", note="Bars: standard errors, and the eigenvalue's residual.")
    elif not context.runs:
        st.info(
            f"There are no run files below {escape(context.root)} yet. Start one under *New run*, or with "
            "`python -m analyze --ckpt resnet_mcdo_smoothing_18`."
        )
    if broken:
        st.markdown("##### Files that can't be read")
        st.markdown("\n".join(f"- {escape(run.problem)}" for run in broken))
    numbers.go_on()


def _table(runs: Sequence[Run], chosen: Sequence[Run], numbers: Numbers) -> None:
    places = {run.key: place for place, run in enumerate(runs)}
    rows = [places[run.key] for run in chosen if run.key in places]
    # the picker is the one truth: the table shows it, and changes it when rows are ticked
    st.session_state[KEY] = {"selection": {"rows": rows, "columns": [], "cells": []}}
    number = st.column_config.NumberColumn
    st.dataframe(
        [row(run, numbers.of(run)) for run in runs],
        key=KEY,
        hide_index=True,
        placeholder="",
        height=min(38 + 35 * len(runs), 780),
        on_select=lambda: _ticked([run.key for run in runs], [run.key for run in chosen]),
        selection_mode="multi-row",
        column_config={
            "run": st.column_config.TextColumn(pinned=True),
            "accuracy": number(format="%.3f"),
            "NLL": number("NLL / nat", format="%.3f"),
            "eigenvalue": number("largest λ / nat", format="%.4g", help="Largest eigenvalue of the Hessian."),
            "trace": number("trace / nat", format="%.4g", help="Trace of the Hessian, estimated."),
            "time": number("time / min", format="%.1f", help="Spent on all analyses in the file."),
            "size": number("size / MB", format="%.2f"),
            "written": st.column_config.DatetimeColumn(format="YYYY-MM-DD HH:mm"),
        },
    )


@st.fragment(run_every=1)
def _filled_in(numbers: Numbers) -> None:
    """Say how many files are still to be read, and draw the page anew when all are."""
    if not numbers.left:
        st.rerun()
    st.caption(f"Reading the files: {numbers.left} to go.")


def row(run: Run, numbers: Mapping[str, KeyNumber] | None) -> dict[str, Any]:
    """A run file and its key numbers as the table shows them; without numbers what is known of an unread file."""
    size = run.size / 1e6
    if numbers is None:
        return {"run": run.name, **dict.fromkeys(READ), "size": size}
    value = {name: each.value for name, each in numbers.items()}
    seconds = [each.seconds for each in run.analyses.values() if each.seconds == each.seconds]
    return {
        "run": run.name,
        "accuracy": value.get("accuracy"),
        "NLL": value.get("nll"),
        "eigenvalue": value.get("eigenvalue"),
        "trace": value.get("trace"),
        "analyses": ", ".join(name if each.complete else f"{name} (partly)" for name, each in run.analyses.items())
        or "none yet",
        "model": str(run.attributes.get("model", "")),
        "data": ", ".join(data_sets(run)),
        "time": sum(seconds) / 60 if seconds else None,
        "written": written(run),
        "size": size,
    }


def written(run: Run) -> datetime | None:
    """When its last number was saved, in local time; the file may have been copied since."""
    try:
        return datetime.fromisoformat(str(run.attributes.get("modified"))).astimezone().replace(tzinfo=None)
    except (ValueError, OverflowError):
        return None if not 0 <= run.modified < 1e11 else datetime.fromtimestamp(run.modified)


def at_a_glance(runs: Sequence[Run], numbers: Sequence[Mapping[str, KeyNumber]]) -> go.Figure | None:
    """A panel for each key number, a line for each run in its colour; None if none is known.

    Args:
        runs: The chosen ones, in order.
        numbers: Of each of them.
    """
    panels = [name for name in PANELS if any(name in found for found in numbers)]
    if not panels:
        return None
    figure = new_chart(
        height=96 + 26 * len(runs), columns=len(panels), shared_yaxes=True, horizontal_spacing=0.045,
        subplot_titles=[PANELS[name] for name in panels],
    )  # fmt: skip
    for place, (run, found, color) in enumerate(zip(runs, numbers, colors(len(runs)), strict=True)):
        for column, name in enumerate(panels, start=1):
            number = found.get(name)
            if number is not None:
                figure.add_scatter(
                    x=[number.value], y=[place], error_x={"type": "data", "array": [number.error]}, mode="markers",
                    marker={"color": color, "size": 10}, name=text(run.name), showlegend=False, row=1, col=column,
                    hovertext=f"{text(run.name)}<br>{PANELS[name]}: {number.value:.4g} ± {number.error:.2g}",
                    hoverinfo="text",
                )  # fmt: skip
    figure.update_xaxes(nticks=4, zeroline=False)
    for column, name in enumerate(panels, start=1):
        figure.update_xaxes(range=_range([found[name] for found in numbers if name in found]), col=column)
    figure.update_yaxes(
        tickvals=list(range(len(runs))), ticktext=[text(run.name) for run in runs], range=[len(runs) - 0.5, -0.5],
        automargin=True, zeroline=False,
    )  # fmt: skip
    return figure


def _range(numbers: Sequence[KeyNumber]) -> list[float] | None:
    """Of an axis that shows the numbers with their errors, and never less than a tenth of their size."""
    known = [(each.value, each.error if math.isfinite(each.error) else 0.0) for each in numbers]
    ends = [value + side * error for value, error in known if math.isfinite(value) for side in (-1, 1)]
    if not ends:
        return None
    low, high = min(ends), max(ends)
    middle, half = (low + high) / 2, max(0.55 * (high - low), 0.05 * max(abs(low), abs(high)))
    return [middle - half, middle + half] if half else None


def data_sets(run: Run) -> list[str]:
    """Names of the data sets that a run is of, without splits."""
    found = [str(each.subject["data"]) for each in run.analyses.values() if each.subject.get("data")]
    return list(dict.fromkeys(name.split(":")[0] if not name.startswith("folder:") else name for name in found))


def _ticked(keys: Sequence[str], before: Sequence[str]) -> None:
    """Choose the rows that are ticked now: those from before in their order, then the new ones."""
    ticked = [keys[place] for place in st.session_state[KEY]["selection"]["rows"] if place < len(keys)]
    kept = [key for key in before if key in ticked or key not in keys]
    choose([*kept, *(key for key in ticked if key not in kept)])
