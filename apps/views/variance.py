"""The page of the variance analysis: where randomness enters the feature maps, and where it leaves."""

from __future__ import annotations

import streamlit as st

from analyze.chart_parts import highest
from analyze.variance import charts
from apps.chart import show_chart
from apps.context import Chosen, Context
from apps.layers import pick_layers, say_what_has_no_noise
from apps.tables import show_table

SOURCES = {"both": ("model", "data"), "model": ("model",), "data": ("data",)}
SPREADS = {"variance": "variance", "standard deviation": "std"}


def show(context: Context) -> None:
    """Variances over depth, and the numbers of the layers that are shown."""
    chosen = context.results("variance")
    if not chosen:
        st.info("None of the chosen run files holds a variance analysis that can be read.")
        return
    with st.container(horizontal=True, vertical_alignment="bottom"):
        source = st.segmented_control(
            "Variance of", list(SOURCES), default="both", required=True, key="variance_source", bind="query-params",
            help="model: over Monte Carlo passes; data: over positions in the map",
        )  # fmt: skip
        spread = st.segmented_control(
            "As", list(SPREADS), default="variance", required=True, key="variance_spread", bind="query-params"
        )
        ratio = st.toggle(
            "Ratio to the layer before", key="variance_ratio", bind="query-params",
            help="what each layer does to it; below 1: it takes some away",
        )  # fmt: skip
        log = st.toggle("Logarithmic", value=True, key="variance_log", bind="query-params")
    layers = pick_layers(chosen, "variance_layers")
    drawn = [each.drawn() for each in chosen]
    values = [f"{each}_{SPREADS[spread]}" for each in SOURCES[source]]
    shown = [value for value in values if _has_any(chosen, value)]
    if shown:
        figure = charts.variances(drawn, shown, to_layer_before=ratio, log=log, layers=layers)
        paper = "" if spread == "variance" and not ratio else None
        show_chart(figure, chosen, "variance_by_depth", paper=paper)
    if source != "data":
        say_what_has_no_noise(chosen, "model_variance", "model variance")
    with st.expander("Numbers", icon=":material/table:"):
        show_table(charts.layer_table(drawn, layers), "variance_table")


def _has_any(chosen: list[Chosen], value: str) -> bool:
    return any(highest(getattr(each.result, value)) > 0 for each in chosen)
