"""An analysis without a page of its own: its figures as printed, and its table."""

from __future__ import annotations

import streamlit as st

from apps.chart import figure_names, show_pictures
from apps.context import Context, escape


def show(context: Context, analysis: str) -> None:
    """The figures of an analysis, of all chosen runs that hold it, and their numbers."""
    chosen = context.results(analysis)
    if not chosen:
        return
    for name in figure_names([each.result for each in chosen]):
        show_pictures(chosen, f"{analysis}_{name or 'figure'}", paper=name)
    for tab, each in zip(st.tabs([escape(each.name) for each in chosen]), chosen, strict=True):
        rows = [
            {"quantity": row.quantity, "value": float(row.value), "±": row.error, "remark": row.remark}
            for row in each.result.rows()
        ]
        number = st.column_config.NumberColumn(format="%.5g")
        tab.dataframe(rows, hide_index=True, column_config={"value": number, "±": number}, placeholder="")
