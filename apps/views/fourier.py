"""The page of the Fourier analysis: which spatial frequencies each layer keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import streamlit as st

from analyze.chart_parts import highest
from analyze.fourier import charts
from apps.chart import show_chart
from apps.context import Chosen, Context, escape
from apps.layers import pick_layers, say_what_has_no_noise
from apps.tables import show_table

if TYPE_CHECKING:
    import plotly.graph_objects as go


def show(context: Context) -> None:
    """Spectra of the layers, what becomes of them over depth, and the numbers of the layers that are shown."""
    chosen = context.results("fourier")
    if not chosen:
        st.info("None of the chosen run files holds a Fourier analysis that can be read.")
        return
    layers = pick_layers(chosen, "fourier_layers")
    planes = list(dict.fromkeys(name for each in chosen for name in each.result.spectra))
    titles = ["Amplitude", "Power", "Over depth", *["Frequency plane"] * bool(planes), "Numbers"]
    tabs = dict(zip(titles, st.tabs(titles, key="fourier_part", on_change="rerun", bind="query-params"), strict=True))
    if tabs["Amplitude"].open:
        with tabs["Amplitude"]:
            _amplitude(chosen, layers)
    if tabs["Power"].open:
        with tabs["Power"]:
            _power(chosen, layers)
    if tabs["Over depth"].open:
        with tabs["Over depth"]:
            _over_depth(chosen, layers)
    if planes and tabs["Frequency plane"].open:
        with tabs["Frequency plane"]:
            _plane(chosen, planes)
    if tabs["Numbers"].open:
        with tabs["Numbers"]:
            show_table(charts.layer_table([each.drawn() for each in chosen], layers), "fourier_table")


def _amplitude(chosen: Sequence[Chosen], layers: list[str] | None) -> None:
    value = st.segmented_control(
        "Amplitude", list(charts.AMPLITUDES), default="relative_log_amplitude", required=True,
        format_func=_without_unit, key="fourier_amplitude", bind="query-params",
        help="relative: less that at frequency 0",
    )  # fmt: skip
    figure = charts.amplitude_spectra([each.drawn() for each in chosen], value, layers)
    paper = "" if value == "relative_log_amplitude" else None
    show_chart(figure, chosen, "fourier_amplitudes", paper=paper, note=_about_lines(figure))


def _power(chosen: Sequence[Chosen], layers: list[str] | None) -> None:
    with st.container(horizontal=True, vertical_alignment="bottom"):
        value = st.segmented_control(
            "Power of", list(charts.POWERS), default="power", required=True, key="fourier_power", bind="query-params",
            format_func={"power": "data and noise", "model_noise_power": "Monte Carlo noise"}.__getitem__,
            help="in rings of frequencies around the origin, which is left out",
        )  # fmt: skip
        log = st.toggle("Logarithmic frequency", key="fourier_log_frequency", bind="query-params")
    held = _with_noise(chosen) if value == "model_noise_power" else chosen
    if held := _comparable(held):
        figure = charts.power_spectra([each.drawn() for each in held], value, log_frequency=log, layers=layers)
        paper = "noise" if value == "model_noise_power" else None
        show_chart(figure, held, "fourier_powers", paper=paper, note=_about_lines(figure))


def _over_depth(chosen: Sequence[Chosen], layers: list[str] | None) -> None:
    value = st.selectbox(
        "Quantity", list(charts.DEPTHS), format_func=charts.DEPTHS.__getitem__, key="fourier_depth", bind="query-params"
    )
    if value in ("noise", "noise_share"):
        chosen = _with_noise(chosen)
    if value in charts.RINGED:
        chosen = _comparable(chosen)
    if chosen:
        figure = charts.over_depth([each.drawn() for each in chosen], value, layers)
        paper = {"high_frequency_amplitude": "", "noise_share": "noise"}.get(value)
        show_chart(figure, chosen, "fourier_over_depth", paper=paper)


def _with_noise(chosen: Sequence[Chosen]) -> list[Chosen]:
    """Those with Monte Carlo noise besides that of the mean; the page names the others."""
    say_what_has_no_noise(chosen, "model_noise_power", "Monte Carlo noise")
    return [each for each in chosen if highest(each.result.model_noise_power[:, 1:]) > 0]


def _comparable(chosen: Sequence[Chosen]) -> list[Chosen]:
    """Those with the first one's kind of rings; the page names the others."""
    if not chosen:
        return []
    kept, sentences = charts.comparable([each.drawn() for each in chosen])
    for sentence in sentences:
        st.info(escape(sentence))
    return [each for each in chosen if any(each.result is one.result for one in kept)]


def _about_lines(figure: go.Figure) -> str:
    return f"A line for each layer. Zoom is linked. {charts.below_axis(figure)}"


def _plane(chosen: Sequence[Chosen], names: list[str]) -> None:
    layer = st.selectbox("Layer", names, key="fourier_plane", bind="query-params")
    figure = charts.planes([each.drawn() for each in chosen], layer)
    held = [each for each in chosen if layer in each.result.spectra]
    if figure is not None:
        paper = "spectra" if len(held) == 1 else None  # the command draws those of the first network alone
        show_chart(figure, held, "fourier_planes", paper=paper, note="Less the amplitude at the origin.")


def _without_unit(value: str) -> str:
    return charts.AMPLITUDES[value].removesuffix(" (nats)")
