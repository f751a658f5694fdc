"""The figures of the variance analysis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from analyze.by_depth import draw_by_depth, heading, legend_of_marks
from analyze.drawing import new_figure
from analyze.variance.spec import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figures(result: Result, others: Sequence[Result] = ()) -> dict[str, Figure]:
    """Model and data variance over depth with standard errors, those of `others` beside them.

    Without any model variance, of deterministic networks, only data variance is drawn.
    """
    results = [result, *others]
    panels = ["data_variance"]
    if any((each.model_variance > 0).any() for each in results):
        panels.insert(0, "model_variance")
    fig = new_figure(1.7 + 2.1 * len(panels))
    rows = fig.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, name in zip(rows, panels, strict=True):
        drawn = [_positive(getattr(each, name)) for each in results]
        errors = [getattr(each, f"{name}_stderr") for each in results]
        draw_by_depth(axes, results, drawn, errors, name.replace("_", " "))
        if any(np.isfinite(values).any() for values in drawn):
            axes.set_yscale("log")
    for axes in rows[:-1]:
        axes.tick_params(labelbottom=False)
    legend_of_marks(rows[0], results)
    fig.suptitle(heading(results), fontsize=10)
    return {"": fig}


def _positive(values: np.ndarray) -> np.ndarray:
    """What a logarithmic axis can show: layers before any randomness have none."""
    return np.where(values > 0, values, np.nan)
