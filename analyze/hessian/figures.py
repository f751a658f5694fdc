"""The figure of the Hessian analysis."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from analyze.hessian.spec import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito's palette: told apart with any colour vision, and in grey
BLUE, VERMILLION, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#555555"


def figure(result: Result) -> Figure | None:
    """Spectral density on a log axis, and the extreme eigenvalues with their residuals as whiskers.

    None if the result holds neither.
    """
    from matplotlib.figure import Figure

    if result.density is None and result.extremes is None:
        return None
    fig = Figure(figsize=(6.4, 4.0), layout="constrained")
    if result.density is None:
        axes = fig.subplots()
        _draw_extremes(axes, result)
    elif result.extremes is None:
        axes = fig.subplots()
        _draw_density(axes, result)
    else:
        top, axes = fig.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        _draw_density(top, result)
        _draw_extremes(axes, result)
    axes.set_xlabel("eigenvalue of the Hessian of the loss (nats)")
    fig.suptitle(_title(result), fontsize=10)
    return fig


def _title(result: Result) -> str:
    subject = result.subject or {}
    if not subject:
        return f"{result.parameters:,} parameters"
    name = str(subject["checkpoint"]).rsplit("/", 1)[-1].removesuffix(".safetensors")
    name = str(subject["model"]) if name.startswith("(") else name
    decay = f", weight decay {subject['weight_decay']:g}" if subject["weight_decay"] else ""
    return f"{name}: {subject['images']:,} images of {subject['data']}{decay}"


def _draw_density(axes: Axes, result: Result) -> None:
    density = result.density
    assert density is not None
    floor = 1e-3 / (result.parameters * density.width)  # a thousandth of one eigenvalue under the kernel
    axes.semilogy(density.x, np.maximum(density.density, floor), color=BLUE, linewidth=1.2)
    axes.fill_between(density.x, floor, np.maximum(density.density, floor), color=BLUE, alpha=0.15, linewidth=0)
    axes.set_ylim(bottom=floor)
    axes.set_ylabel("density (1/nat)")
    probes, steps = density.node.shape
    label = f"{probes} probes × {steps} Lanczos steps\nkernel width {density.width:.3g}"
    axes.text(0.985, 0.95, label, transform=axes.transAxes, ha="right", va="top", fontsize=8, color=GREY)
    _tidy(axes)


def _draw_extremes(axes: Axes, result: Result) -> None:
    found = result.extremes
    assert found is not None
    for color, marker, name, values, residuals in (
        (VERMILLION, "o", "largest", found.largest, found.largest_residual),
        (GREEN, "s", "smallest", found.smallest, found.smallest_residual),
    ):
        if len(values):
            axes.errorbar(
                values,
                np.arange(1, len(values) + 1),
                xerr=residuals,
                fmt=marker,
                color=color,
                markersize=4,
                capsize=3,
                linewidth=1,
                label=name,
            )
    axes.invert_yaxis()
    axes.margins(y=0.2)
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.set_ylabel("rank")
    note = "whiskers: residual" if found.converged else "whiskers: residual; NOT CONVERGED"
    axes.legend(title=note, fontsize=8, title_fontsize=8, frameon=False, loc="best")
    _tidy(axes)


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.axvline(0, color=GREY, linewidth=0.6, zorder=0)
