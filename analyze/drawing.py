"""What the figures of all analyses share: palettes, sizes, and how models are named. Loads matplotlib only to draw."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from analyze.results import AnalysisResult, checkpoint_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito's palette: told apart with any colour vision, and in grey
BLUE, VERMILLION, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#555555"
MODELS = (BLUE, VERMILLION, GREEN, "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Colours of models that are drawn together, in their order."""


def new_figure(height: float, width: float = 6.4) -> Figure:
    """An empty figure, in inches, that belongs to no window and no global state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def in_order(count: int) -> list[Any]:
    """Colours from dark to light for lines that have an order, such as layers or strengths."""
    import matplotlib

    return list(matplotlib.colormaps["plasma"](np.linspace(0.0, 0.85, count)))


def model_name(result: AnalysisResult) -> str:
    """The checkpoint's name without folder and suffix, or the model's if it came from Python; "" if not known."""
    subject = result.subject or {}
    if not subject:
        return ""
    name = checkpoint_name(subject)
    return str(subject["model"]) if name.startswith("(") else name


def images_of(result: AnalysisResult) -> str:
    """How many images of which data; "" if not known."""
    subject = result.subject or {}
    return f"{subject['images']:,} images of {subject['data']}" if subject else ""


def title(result: AnalysisResult) -> str:
    """Which model, and which images; "" if not known."""
    return f"{model_name(result)}: {images_of(result)}" if result.subject else ""


def plain_axes(axes: Axes) -> None:
    """No frame on top and at the right."""
    axes.spines[["top", "right"]].set_visible(False)
