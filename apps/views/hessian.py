"""The page of the Hessian analysis: how sharp the loss is, and along how many directions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import streamlit as st

from analyze.hessian import charts
from apps.chart import show_chart
from apps.context import Chosen, Context, escape
from apps.tables import show_table

WIDTHS = tuple(float(f"{10**exponent:.2g}") for exponent in np.linspace(-1.5, 1, 51))
"""Kernel widths to choose from, in stored widths; one of them is 1."""


def show(context: Context) -> None:
    """A tab for each part that the chosen runs hold, and the numbers of all."""
    chosen = context.results("hessian")
    if not chosen:
        st.info("None of the chosen run files holds a Hessian analysis that can be read.")
        return
    held = {
        title: draw
        for title, (parts, draw) in TABS.items()
        if any(getattr(each.result, part) is not None for each in chosen for part in parts)
    }
    tabs = st.tabs([*held, "Numbers"], key="hessian_part", on_change="rerun", bind="query-params")
    for tab, draw in zip(tabs, [*held.values(), _numbers], strict=True):
        if tab.open:
            with tab:
                draw(chosen)


def _holding(chosen: Sequence[Chosen], *parts: str) -> list[Chosen]:
    """Those that hold any of these parts; the page says which others don't."""
    kept = [each for each in chosen if any(getattr(each.result, part) is not None for part in parts)]
    if missing := [each.name for each in chosen if each not in kept]:
        st.info(f"Not computed for {escape(', '.join(missing))}.")
    return kept


def _spectrum(chosen: Sequence[Chosen]) -> None:
    kept = _holding(chosen, "density", "extremes")
    width, dense = 1.0, any(each.result.density is not None for each in kept)
    if dense:
        width = st.select_slider(
            "Kernel width, in stored widths", WIDTHS, value=1.0, format_func=lambda each: f"{each:g}",
            key="hessian_width", bind="query-params", width=420,
            help="Narrower shows the nodes of the quadrature one by one; wider shows the bulk only. "
            "The stored width is what the Lanczos steps resolve.",
        )  # fmt: skip
    notes = [f"{each.name}: {_about_density(each, width)}" for each in kept if each.result.density is not None]
    if any(each.result.extremes is not None for each in kept):
        notes.append("whiskers: residual ‖Hv − λv‖, within which lies a true eigenvalue")
    for each in kept:
        if (found := each.result.extremes) is not None and not found.converged:
            notes.append(f"{each.name}: {charts.NOT_CONVERGED}")
    figure = charts.spectrum([each.drawn() for each in kept], width)
    show_chart(figure, kept, "hessian_spectrum", paper="" if width == 1 else None, note="; ".join(notes))


def _about_density(each: Chosen, width: float) -> str:
    density = each.result.density
    probes, steps = density.node.shape
    told = f"{probes} probe{'s' * (probes > 1)} × {steps} steps, kernel width {width * float(density.width):.3g}"
    return told + (f", {len(density.outlier)} outliers deflated" if len(density.outlier) else "")


def _trace(chosen: Sequence[Chosen]) -> None:
    kept = _holding(chosen, "trace")
    mean = st.toggle(
        "Over the number of parameters", key="hessian_mean", bind="query-params", help="the mean eigenvalue"
    )
    counts = sorted({len(each.result.trace.samples) for each in kept})
    note = f"bars: standard error over {' or '.join(map(str, counts))} random vectors; ticks: the sample of each"
    if counts == [1]:
        note = "of one random vector, which tells no standard error"
    figure = charts.traces([each.drawn() for each in kept], mean)
    show_chart(figure, kept, "hessian_trace", paper=None, note=note)


def _max_spectrum(chosen: Sequence[Chosen]) -> None:
    kept = _holding(chosen, "max_spectrum")
    with st.container(horizontal=True, vertical_alignment="bottom"):
        which = st.segmented_control(
            "Eigenvalues of each mini-batch", ("largest", "smallest"), default="largest", required=True,
            key="hessian_which", bind="query-params",
        )  # fmt: skip
        log = st.toggle("Logarithmic", key="hessian_spectrum_log", bind="query-params")
    found = [each.result.max_spectrum for each in kept]
    if not any(np.isfinite(getattr(each, which)).any() for each in found):
        st.info(f"There are no {which} eigenvalues: these runs order them by magnitude.")
        return
    notes = [f"{each.name}: {_about_batches(each)}" for each in kept]
    figure = charts.max_spectrum([each.drawn() for each in kept], logarithmic=log, which=which)
    paper = "max_spectrum" if which == "largest" else None
    show_chart(figure, kept, "hessian_max_spectrum", paper=paper, note="; ".join(notes))


def _about_batches(each: Chosen) -> str:
    spectrum = each.result.max_spectrum
    count, missing = len(spectrum.batch), int(np.sum(~spectrum.converged))
    # without the hash of the images
    data = spectrum.data.split(", sha256")[0]
    data += ")" * (data.count("(") - data.count(")"))
    told = f"{count} mini-batch{'es' * (count > 1)} of {spectrum.images.max()} images of {data}"
    return told + (f", {missing} of them {charts.NOT_CONVERGED}" if missing else "")


def _blocks(chosen: Sequence[Chosen]) -> None:
    kept = _holding(chosen, "blocks")
    log = st.toggle("Logarithmic", value=True, key="hessian_blocks_log", bind="query-params")
    note = "trace / size ± standard error; largest eigenvalue of each layer's own block ± residual"
    note += "; open marks: below zero, at the absolute value" if log else ""
    figure = charts.blocks([each.drawn() for each in kept], logarithmic=log)
    show_chart(figure, kept, "hessian_blocks", paper="blocks", note=note)
    rounded = [each for each in kept if each.result.quantization is not None]
    if rounded:
        _bits(rounded)
    with st.expander("Numbers of the layers", icon=":material/table:"):
        show_table(_layers(kept), "hessian_layers")


def _bits(kept: Sequence[Chosen]) -> None:
    st.markdown("##### Bits for each layer")
    limits = sorted({f"{each.result.quantization.mean_bits:g}" for each in kept})
    note = f"What costs least at {' or '.join(limits)} bits per weight on average, by each estimate of the cost."
    paper = "blocks" if len(kept) == 1 else None  # of several networks the command draws no bits
    show_chart(charts.bits([each.drawn() for each in kept]), kept, "hessian_bits", paper=paper, note=note)
    columns: dict[str, list[Any]] = {name: [] for name in ("model", "cost by", "bits", "predicted", "measured")}
    for each in kept:
        found = each.result.quantization
        columns["model"] += [each.name] * len(found.criterion)
        columns["cost by"] += [str(name) for name in found.criterion]
        for name, values in zip(
            ("bits", "predicted", "measured"), (found.chosen_bits, found.predicted, found.measured), strict=True
        ):
            columns[name] += [float(value) for value in values]
    renamed = {
        "bits": "bits per weight",
        "predicted": "loss rises by (predicted)",
        "measured": "loss rises by (measured)",
    }
    show_table({renamed.get(name, name): values for name, values in columns.items()}, "hessian_bits_table")


def _layers(kept: Sequence[Chosen]) -> dict[str, list[Any]]:
    names = "model", "layer", "parameters", "trace", "standard error", "largest eigenvalue", "residual", "converged"
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for each in kept:
        found = each.result.blocks
        fields = found.block, found.size, found.trace, found.trace_stderr, found.largest, found.largest_residual
        columns["model"] += [each.name] * len(found.block)
        for name, values in zip(names[1:], (*fields, found.converged), strict=True):
            columns[name] += np.asarray(values).tolist()
    return columns


def _numbers(chosen: Sequence[Chosen]) -> None:
    names = "model", "quantity", "value", "error", "what it is"
    rows = [(each.name, *row) for each in chosen for row in each.result.rows()]
    columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    columns["error"] = [np.nan if error is None else float(error) for error in columns["error"]]
    columns["value"] = [float(value) for value in columns["value"]]
    show_table(columns, "hessian_table")


TABS: dict[str, tuple[tuple[str, ...], Callable[[Sequence[Chosen]], None]]] = {
    "Spectrum": (("density", "extremes"), _spectrum),
    "Trace": (("trace",), _trace),
    "Mini-batches": (("max_spectrum",), _max_spectrum),
    "Layers": (("blocks",), _blocks),
}
"""What each tab shows, and which parts it needs."""
