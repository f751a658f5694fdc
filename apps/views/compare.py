"""Two or more runs side by side: numbers, and differences with their standard errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import streamlit as st

from analyze import analyses
from apps.chart import show_chart
from apps.context import Context, escape
from data_cache import InputError

MARKED = (
    "\\* and a filled point: more than two standard errors, or for few samples as many as Student's t asks for at the "
    "same 95.45 %; of rows without a true difference, one in 22 gets a star by chance."
)


def show(context: Context) -> None:
    """Differences of one analysis to the first chosen run that holds it, as chart and as table."""
    held = {name: sum(name in run.analyses for run in context.chosen) for name in analyses()}
    names = [name for name, count in held.items() if count > 1]
    if not names:
        st.info("Choose two or more run files that share an analysis.")
        return
    analysis = st.segmented_control(
        "Analysis", names, default=names[0], required=True, format_func=str.capitalize, key="compare_analysis",
        bind="query-params", label_visibility="collapsed",
    )  # fmt: skip
    chosen = context.results(analysis)
    if len(chosen) < 2:
        st.info("Fewer than two of the chosen run files can be read.")
        return
    # scipy's distributions take a while to load: only here
    from analyze.compare import remarks
    from apps import differences

    try:
        comparison = differences.side_by_side(analysis, tuple(each.run for each in chosen))
    except InputError as error:
        st.error(escape(error))
        return
    _says(comparison.stored[0].name, context.images(analysis), remarks(comparison))
    headings = differences.by_heading(comparison.lines)
    if not headings:
        st.info("They have no quantity in common.")
        return
    heading = _heading(analysis, list(headings))
    in_margins = _in_margins(heading)
    held = differences.drawable(headings[heading], in_margins)
    if lines := held[: differences.MOST]:
        show_chart(
            differences.chart(comparison, lines, [each.color for each in chosen], in_margins=in_margins, of=heading),
            chosen,
            f"compare_{analysis}",
            paper=None,
            note=differences.left_out(headings[heading], held),
        )
    else:
        st.info(differences.why_no_chart(headings[heading]))
    rows, columns = differences.table(comparison, headings[heading], heading)
    config: dict[str, Any] = {
        key: st.column_config.TextColumn(label)
        if key.startswith("star")
        else st.column_config.NumberColumn(label, format="%.4g")
        for key, label in columns.items()
    }
    config["quantity"] = st.column_config.TextColumn(pinned=True)
    st.dataframe(rows, hide_index=True, column_config=config, placeholder="")
    st.caption(MARKED)


def _says(first: str, images: str, remarks: Sequence[str]) -> None:
    lines = [f"{images} Differences are to {first}, the first that is chosen.", *(f"{remark}." for remark in remarks)]
    st.caption("  \n".join(map(escape, lines)))


def _heading(analysis: str, headings: Sequence[str]) -> str:
    """Which numbers: the most telling ones unless the reader chooses."""
    if len(headings) == 1:
        return headings[0]
    return st.selectbox(
        "Numbers", headings, format_func=lambda name: name or "single numbers", key=f"compare_{analysis}_numbers",
        bind="query-params", width=420,
    )  # fmt: skip


def _in_margins(heading: str) -> bool:
    """Whether the chart's axis is in margins; always where the numbers have no unit in common."""
    if not heading:
        return True
    return st.toggle("In units of what chance explains", key="compare_margins", bind="query-params")
