"""The interactive charts of noise of one frequency band, and what all charts of the robustness analysis share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from analyze.chart_parts import highest, in_order, label_panels, legend_above_panels, line, side_by_side
from analyze.charting import NEUTRAL, Drawn, new_chart, text
from analyze.layered import measured
from analyze.robustness.figures import beyond
from analyze.robustness.spec import FrequencyNoise, Result, band_name, noise_name, other_options

if TYPE_CHECKING:
    import plotly.graph_objects as go

NOISE = {
    "accuracy": "accuracy",
    "nll": "negative log-likelihood (nats)",
    "ece": "expected calibration error",
    "flip_rate": "flip rate",
    "kl": "KL divergence from clean (nats)",
    "rms": "RMS of what was added (sigma)",
    "in_band": "share of the energy in the band",
    "clipped": "share of clipped pixels",
}
"""What `over_bands` and `over_strengths` show."""

_SHARES = ("accuracy", "flip_rate", "success_rate")
_BAND = "frequency of the noise (π rad/px)"


def comparable(part: str, drawn: Sequence[Drawn[Result]]) -> tuple[list[Drawn[Result]], list[str]]:
    """The results that hold a part with the first one's options, and why the others are left out.

    Args:
        part: Field of `Result`.
        drawn: The results.

    Returns:
        The results, and a sentence for each that holds the part with other options.
    """
    held = [each for each in drawn if getattr(each.result, part) is not None]
    kept, sentences = [], []
    for each in held:
        options = other_options(part, held[0].result.config, each.result.config)
        if options:
            sentences.append(f"{each.name} is not shown here: its {', '.join(options)} differ from {held[0].name}'s.")
        else:
            kept.append(each)
    return kept, sentences


def strengths(drawn: Sequence[Drawn[Result]]) -> list[float]:
    """All strengths of noise that any result has, ascending."""
    return sorted({float(sigma) for each in drawn for sigma in _noise(each).sigma})


def telling_strength(drawn: Sequence[Drawn[Result]]) -> float:
    """The strength, of those that all results have, where the first one's accuracy differs most between bands."""
    first = _noise(drawn[0])
    shared = set.intersection(*(set(_noise(each).sigma.tolist()) for each in drawn))
    spread = [
        np.ptp(row[~np.isnan(row)]) if sigma in shared and not np.isnan(row).all() else -1.0
        for sigma, row in zip(first.sigma, first.accuracy, strict=True)
    ]
    return float(first.sigma[int(np.argmax(spread))])


def band_names(drawn: Sequence[Drawn[Result]]) -> list[str]:
    """Bands of the first result that have frequencies, in order."""
    noise = _noise(drawn[0])
    return [band_name(noise, band) for band in np.flatnonzero(noise.bins)]


def over_bands(drawn: Sequence[Drawn[Result]], value: str = "accuracy", sigma: float | None = None) -> go.Figure:
    """One of `NOISE` over the band of the noise, with standard errors.

    Args:
        drawn: Comparable results with frequency noise.
        value: Which quantity.
        sigma: Strength of the noise, the models overlaid; None for all strengths, a panel for each model.
    """
    if sigma is None:
        return _all_strengths(drawn, value)
    figure = new_chart(420)
    for each in drawn:
        noise = _noise(each)
        for strength in np.flatnonzero(noise.sigma == sigma):
            figure.add_trace(_band_curve(each, value, int(strength), each.name, each.color))
        figure.add_traces(_clean_line(each, value, [0.0, _highest_band(noise)]))
    _band_axes(figure, drawn, value)
    label_panels(figure, _BAND, NOISE[value])
    return figure


def _all_strengths(drawn: Sequence[Drawn[Result]], value: str) -> go.Figure:
    figure, cells = side_by_side([each.name for each in drawn], 440)
    sigmas = strengths(drawn)
    told: set[float] = set()
    for each, (row, column) in zip(drawn, cells, strict=True):
        noise = _noise(each)
        for strength, sigma in enumerate(noise.sigma.tolist()):
            color = in_order(len(sigmas))[sigmas.index(sigma)]
            curve = _band_curve(each, value, strength, f"sigma {sigma:g}", color)
            curve.update(showlegend=sigma not in told)
            told.add(sigma)
            figure.add_trace(curve, row=row, col=column)
        for level in _clean_line(each, value, [0.0, _highest_band(noise)], NEUTRAL):
            figure.add_trace(level, row=row, col=column)
    _band_axes(figure, drawn, value)
    # with linked axes, plotly does not find limits of y where those of x are given
    top = max(highest(getattr(_noise(each), value)) for each in drawn)
    if value not in _SHARES and top > 0:
        figure.update_yaxes(range=[0, 1.08 * top])
    label_panels(figure, _BAND, NOISE[value])
    legend_above_panels(figure)
    return figure


def over_strengths(drawn: Sequence[Drawn[Result]], band: str, value: str = "accuracy") -> go.Figure:
    """One of `NOISE` over the strength of the noise in one band, with standard errors; the models overlaid.

    Args:
        drawn: Comparable results with frequency noise.
        band: One of `band_names`.
        value: Which quantity.
    """
    figure = new_chart(420)
    found = strengths(drawn)
    for each in drawn:
        noise = _noise(each)
        for place in range(len(noise.bins)):
            if band_name(noise, place) == band:
                values, errors = with_errors(noise, value)
                figure.add_trace(
                    line(noise.sigma, values[:, place], errors[:, place], each.name, each.color, "sigma %{x:g}")
                )
        figure.add_traces(_clean_line(each, value, [found[0], found[-1]]))
    figure.update_xaxes(type="log", tickvals=found, ticktext=[f"{sigma:g}" for sigma in found])
    figure.update_xaxes(title_text=f"sigma, strength of the noise{text(noise_name(drawn[0].result.config))}")
    chance(figure, drawn, value)
    value_axis(figure, value)
    figure.update_yaxes(title_text=NOISE[value])
    return figure


def half_strengths(drawn: Sequence[Drawn[Result]]) -> go.Figure:
    """Strength of the noise at half accuracy over its band, with standard errors; triangles: beyond those tried."""
    import plotly.graph_objects as go

    figure = new_chart(380)
    tried, apart = strengths(drawn), 1.14  # between the triangles of two models, so that none hides another
    for number, each in enumerate(drawn):
        noise = _noise(each)
        x, named = _centres(noise), [band_name(noise, band) for band in range(len(noise.bins))]
        curve = line(x, noise.sigma_half, noise.sigma_half_stderr, each.name, each.color, "%{text}", named)
        figure.add_trace(curve)
        for side, factor, symbol, where in (
            (-1, 1 / 1.25 / apart**number, "triangle-down", "below"),
            (1, 1.25 * apart**number, "triangle-up", "above"),
        ):
            bands, last = beyond(noise, side)
            if len(bands):
                figure.add_trace(
                    go.Scatter(
                        x=x[bands],
                        y=last * factor,
                        name=text(f"{each.name}: {where} those tried"),
                        text=[f"{named[band]}: {where} {end:g}" for band, end in zip(bands, last, strict=True)],
                        mode="markers",
                        marker={"color": each.color, "symbol": symbol, "size": 9},
                        legendgroup=text(each.name),
                        showlegend=False,
                        hovertemplate="%{text}, no strength there was tried",
                    )
                )
    _band_axes(figure, drawn, "sigma_half")
    figure.update_yaxes(
        type="log",
        tickvals=tried,
        ticktext=[f"{sigma:g}" for sigma in tried],
        range=[np.log10(tried[0] / 1.4 / apart ** len(drawn)), np.log10(tried[-1] * 1.4 * apart ** len(drawn))],
    )
    label_panels(figure, _BAND, "sigma at half accuracy")
    return figure


def noise_table(drawn: Sequence[Drawn[Result]], value: str = "accuracy") -> dict[str, list[Any]]:
    """One of `NOISE` as columns by heading, a row for each model, strength and band that has frequencies."""
    rows = []
    for each in drawn:
        noise = _noise(each)
        values, errors = with_errors(noise, value)
        for strength, sigma in enumerate(noise.sigma):
            rows += [
                (each.name, float(sigma), band_name(noise, band), values[strength, band], errors[strength, band])
                for band in np.flatnonzero(noise.bins)
            ]
    return columns(["model", "sigma", "band", NOISE[value], "± standard error"], rows)


def columns(headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> dict[str, list[Any]]:
    """Rows of a table as columns by heading."""
    return {heading: [row[place] for row in rows] for place, heading in enumerate(headings)}


def part_about(drawn: Sequence[Drawn[Result]], part: str) -> str:
    """Of how many images a part is, as a sentence."""
    counts = dict.fromkeys(int(getattr(each.result, part).images) for each in drawn)
    return f"Of {' or '.join(f'{count:,}' for count in counts)} images."


def _noise(each: Drawn[Result]) -> FrequencyNoise:
    assert each.result.frequency_noise is not None
    return each.result.frequency_noise


def _centres(noise: FrequencyNoise) -> np.ndarray:
    return (noise.band_low + noise.band_high) / 2


def _highest_band(noise: FrequencyNoise) -> float:
    return max(1.0, float(noise.band_high.max(initial=1.0)))


def _band_curve(each: Drawn[Result], value: str, strength: int, name: str, color: str) -> Any:
    noise = _noise(each)
    values, errors = with_errors(noise, value)
    named = [band_name(noise, band) for band in range(len(noise.bins))]
    return line(_centres(noise), values[strength], errors[strength], name, color, "%{text}", named)


def _clean_line(each: Drawn[Result], value: str, ends: Sequence[float], color: str = "") -> list[Any]:
    """Level without noise, dashed; none where it isn't known or means nothing."""
    import plotly.graph_objects as go

    clean = each.result.clean
    if clean is None or value not in ("accuracy", "nll", "ece"):
        return []
    level, error = getattr(clean, value), getattr(clean, f"{value}_stderr", np.nan)
    return [
        go.Scatter(
            x=list(ends),
            y=[level, level],
            error_y={"type": "data", "array": [error, error], "visible": False},
            name=text(f"{each.name}, without noise"),
            mode="lines",
            line={"color": color or each.color, "width": 1, "dash": "dash"},
            legendgroup=text(each.name),
            showlegend=False,
            hovertemplate=f"without noise: <b>{measured(level, error)}</b>",
        )
    ]


def _band_axes(figure: go.Figure, drawn: Sequence[Drawn[Result]], value: str) -> None:
    top = max(_highest_band(_noise(each)) for each in drawn)
    figure.update_xaxes(range=[-0.02, top + 0.02])
    chance(figure, drawn, value)
    value_axis(figure, value)


def with_errors(part: Any, value: str) -> tuple[np.ndarray, np.ndarray]:
    """An array of a part and its standard errors; NaN where the part has none."""
    values = getattr(part, value)
    return values, getattr(part, f"{value}_stderr", np.full(values.shape, np.nan))


def chance(figure: go.Figure, drawn: Sequence[Drawn[Result]], value: str) -> None:
    """Mark the accuracy of guessing, dotted, where the networks' classes are known."""
    known = {each.result.clean.classes for each in drawn if each.result.clean is not None}
    for classes in known if value == "accuracy" else ():
        figure.add_hline(y=1 / classes, line={"color": NEUTRAL, "width": 1, "dash": "dot"}, layer="below")


def value_axis(figure: go.Figure, value: str) -> None:
    """Axes of y from 0, and to 1 where the value is a share of all images."""
    scale: dict[str, Any] = {"range": [0, 1.02]} if value in _SHARES else {"rangemode": "tozero"}
    figure.update_yaxes(uirevision=value, **scale)
