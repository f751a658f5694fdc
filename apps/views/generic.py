"""An analysis without a page of its own: its figures as printed, and its table."""

from __future__ import annotations

import math

import streamlit as st

from apps.chart import figure_names, show_pictures
from apps.context import Context, escape
from apps.tables import show_table


def show(context: Context, analysis: str) -> None:
    """The figures of an analysis, of all chosen runs that hold it, and their numbers."""
    chosen = context.results(analysis)
    if not chosen:
        return
    for name in figure_names([each.result for each in chosen]):
        show_pictures(chosen, f"{analysis}_{name or 'figure'}", paper=name)
    for tab, each in zip(st.tabs([escape(each.name) for each in chosen]), chosen, strict=True):
        rows = list(each.result.rows())
        columns = {
            "quantity": [row.quantity for row in rows],
            "value": [float(row.value) for row in rows],
            "±": [math.nan if row.error is None else float(row.error) for row in rows],
            "remark": [row.remark for row in rows],
        }
        with tab:
            show_table(columns, f"{analysis}_{each.run.key}")
