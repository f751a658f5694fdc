"""The page of the robustness analysis: how networks bear noise, waves, attacks and corruptions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import streamlit as st

from analyze.robustness import attack_charts, charts, corruption_charts, heat_map_charts
from apps.chart import show_chart
from apps.context import Chosen, Context, escape
from apps.tables import show_table

MANNERS = ("over bands", "over strengths", "all strengths")


def show(context: Context) -> None:
    """A tab for each part that the chosen runs hold."""
    chosen = context.results("robustness")
    held = {
        title: (part, draw)
        for title, (part, draw) in PARTS.items()
        if any(getattr(each.result, part) is not None for each in chosen)
    }
    if not held:
        st.info("None of the chosen run files holds a robustness analysis with any part that can be shown yet.")
        return
    tabs = st.tabs(list(held), key="robustness_part", on_change="rerun", bind="query-params")
    for tab, (part, draw) in zip(tabs, held.values(), strict=True):
        if tab.open:
            with tab:
                kept, sentences = charts.comparable(part, [each.drawn() for each in chosen])
                for sentence in sentences:
                    st.info(escape(sentence))
                names = [each.name for each in kept]
                draw([each for each in chosen if each.name in names])


def _frequency_noise(chosen: Sequence[Chosen]) -> None:
    drawn = [each.drawn() for each in chosen]
    with st.container(horizontal=True, vertical_alignment="top"):
        value = _value(charts.NOISE, "robustness_noise_value")
        manner = st.segmented_control(
            "Show", MANNERS, default=MANNERS[0], required=True,
            key="robustness_manner", bind="query-params",
        )  # fmt: skip
        sigma, band = None, ""
        if manner == "over bands":
            strengths = charts.strengths(drawn)
            sigma = st.select_slider(
                "Strength of the noise (sigma)", strengths, value=charts.telling_strength(drawn),
                format_func=lambda each: f"{each:g}", key="robustness_sigma", bind="query-params", width=340,
                help="root mean square of the noise, in pixels scaled to [0, 1]",
            )  # fmt: skip
        elif manner == "over strengths":
            names = charts.band_names(drawn)
            band = st.select_slider(
                "Band (π rad/px)", names, format_func=lambda name: name.removesuffix(" pi"), key="robustness_band",
                bind="query-params", width=340,
            )  # fmt: skip
    if band:
        figure = charts.over_strengths(drawn, band, value)
    else:
        figure = charts.over_bands(drawn, value, sigma)
    dashed = "Dashed: without noise." if value in ("accuracy", "nll", "ece") else ""
    dotted = " Dotted: chance." if value == "accuracy" else ""
    # the command draws all strengths of one network, several at the strength that tells bands apart
    paper = manner != "over strengths" if len(chosen) == 1 else sigma == charts.telling_strength(drawn)
    show_chart(
        figure, chosen, "robustness_noise", paper="" if paper and value == "accuracy" else None, note=dashed + dotted
    )
    st.markdown("##### Strength at half accuracy")
    show_chart(
        charts.half_strengths(drawn), chosen, "robustness_half",
        note="Where accuracy is half-way from clean to chance. Triangles: beyond the strengths that were tried.",
    )  # fmt: skip
    with st.expander("Numbers", icon=":material/table:"):
        show_table(charts.noise_table(drawn, value), "robustness_noise_table")


def _heat_map(chosen: Sequence[Chosen]) -> None:
    drawn = [each.drawn() for each in chosen]
    value = _value(heat_map_charts.WAVES, "robustness_wave_value")
    in_figure = value == "error" or (value == "flip_rate" and len(chosen) == 1)
    show_chart(
        heat_map_charts.heat_maps(drawn, value), chosen, "robustness_heat_maps",
        paper="heat_map" if in_figure else None, note=heat_map_charts.about(drawn),
    )  # fmt: skip
    if len(drawn) < 2:
        return
    st.markdown("##### Difference")
    names = [each.name for each in drawn]
    with st.container(horizontal=True):
        second = _model("Of", names, 1, "robustness_second")
        first = _model("less that of", names, 0, "robustness_first")
    figure = heat_map_charts.heat_map_difference(drawn[first], drawn[second], value)
    if figure is None:
        st.info("These two heat maps have other frequencies: there is no difference to show.")
    elif first != second:
        paper = "heat_map" if value == "error" else None
        show_chart(figure, [chosen[first], chosen[second]], "robustness_difference", paper=paper)


def _attacks(chosen: Sequence[Chosen]) -> None:
    chosen = [each for each in chosen if len(each.result.adversarial.epsilon)]
    drawn = [each.drawn() for each in chosen]
    value = _value(attack_charts.ATTACKS, "robustness_attack_value")
    figure = attack_charts.attacks(drawn, value)
    if figure is None:
        st.info("No attack has been computed yet.")
        return
    paper = "attacks" if value == "accuracy" else None
    show_chart(figure, chosen, "robustness_attacks", paper=paper, note=attack_charts.about(drawn))
    with st.expander("Numbers", icon=":material/table:"):
        show_table(attack_charts.attack_table(drawn), "robustness_attack_table")


def _corruptions(chosen: Sequence[Chosen]) -> None:
    chosen = [each for each in chosen if len(each.result.corruptions.corruption)]
    if not chosen:
        st.info("No corruption has been computed yet.")
        return
    drawn = [each.drawn() for each in chosen]
    severities = corruption_charts.severities(drawn)
    with st.container(horizontal=True, vertical_alignment="top"):
        value = _value(corruption_charts.CORRUPTED, "robustness_corruption_value")
        severity = st.segmented_control(
            "Severity", ["mean", *severities], default="mean", required=True, key="robustness_severity",
            bind="query-params",
        )  # fmt: skip
    level = None if severity == "mean" else severity
    # the command draws each severity of one network, and of several the mean over those that the first one has
    in_figure = len(chosen) == 1 or (level is None and corruption_charts.shared_severities(drawn) == severities)
    clean = "Dashed: not corrupted. " if value == "accuracy" else ""
    show_chart(
        corruption_charts.corruptions(drawn, value, level), chosen, "robustness_corruptions",
        paper="corruptions" if value == "accuracy" and in_figure else None,
        note=clean + corruption_charts.about(drawn),
    )  # fmt: skip
    kinds = list(dict.fromkeys(str(kind) for each in drawn for kind in each.result.corruptions.corruption))
    kind = st.selectbox(
        "Over severity", kinds, format_func=lambda name: name.replace("_", " "), key="robustness_corruption",
        bind="query-params", width=300,
    )  # fmt: skip
    figure = corruption_charts.over_severities(drawn, kind, value)
    show_chart(figure, chosen, "robustness_severities", paper=None)
    show_table(corruption_charts.corruption_table(drawn, value), "robustness_corruption_table")


PARTS: dict[str, tuple[str, Callable[[Sequence[Chosen]], None]]] = {
    "Noise by frequency": ("frequency_noise", _frequency_noise),
    "Fourier heat map": ("heat_map", _heat_map),
    "Attacks": ("adversarial", _attacks),
    "Corruptions": ("corruptions", _corruptions),
}
"""Title of the tab, field of the result, and what draws it."""


def _value(labels: dict[str, str], key: str) -> str:
    return st.selectbox(
        "Quantity", list(labels), format_func=lambda name: labels[name], key=key, bind="query-params", width=300
    )


def _model(label: str, names: list[str], place: int, key: str) -> int:
    """Which of the models; by its place, for names may be equal."""
    options = list(range(len(names)))
    return st.selectbox(
        label, options, index=place, format_func=lambda number: names[number], key=key,
        bind="query-params", width=300,
    )  # fmt: skip
