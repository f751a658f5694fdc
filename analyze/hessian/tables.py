"""The layers of a stored result as a plain-text table, and what to beware of in it. NumPy only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from analyze.hessian.spec import Blocks, Quantization
from analyze.results import aligned

# a layer without curvature has a trace of float32's rounding: 1e-7 of the products it is a part of
_ROUNDING = 1e-6


def tables(blocks: Blocks, quantization: Quantization | None = None) -> list[str]:
    """The tables of layers and of rounding costs as text, and the warnings on them."""
    found = [aligned(layer_rows(blocks, quantization))]
    if quantization is not None:
        found.append(aligned(cost_rows(quantization)))
    return found + warnings(blocks)


def layer_rows(blocks: Blocks, quantization: Quantization | None = None) -> list[list[str]]:
    """Cells of a table with a line for each layer, and below them what each bit allocation does to the loss.

    The columns are layer, weights, trace ± standard error, largest eigenvalue ± residual, and where known the bits
    chosen by HAWQ's omega and by d'Hd / 2. All lines have the same number of cells.

    Args:
        blocks: Traces and eigenvalues.
        quantization: Costs and choices, perhaps not all there yet.
    """
    head = ["layer", "weights", "trace", "largest eigenvalue"]
    lines = [
        [str(name), f"{size:,}", _measured(trace, error), _measured(value, residual) + _mark(value, converged)]
        for name, size, trace, error, value, residual, converged in zip(
            blocks.block,
            blocks.size,
            blocks.trace,
            blocks.trace_stderr,
            blocks.largest,
            blocks.largest_residual,
            blocks.converged,
            strict=True,
        )
    ]
    if quantization is None:
        return [head, *lines]
    head += [f"bits by {criterion}" for criterion in quantization.criterion]
    places = {name: place for place, name in enumerate(quantization.layer)}
    for line in lines:
        place = places.get(line[0])
        chosen = [""] * len(quantization.criterion) if place is None else quantization.allocation[:, place]
        line += [str(bits) if bits else "" for bits in chosen]
    totals = {
        "bits per weight": quantization.chosen_bits,
        "change of the loss, predicted": quantization.predicted,
        "change of the loss, measured": quantization.measured,
    }
    return [head, *lines, *([name, "", "", "", *map(_number, values)] for name, values in totals.items())]


def cost_rows(quantization: Quantization) -> list[list[str]]:
    """Cells of a table with a line for each layer: HAWQ's omega and d'Hd / 2 for each bit width."""
    costs = {"omega": quantization.omega, "d'Hd/2": quantization.direct}
    head = ["rounded layer", *(f"{cost} at {bits}" for cost in costs for bits in quantization.bits)]
    lines = [
        [str(layer), *(_number(value) for values in costs.values() for value in values[place])]
        for place, layer in enumerate(quantization.layer)
    ]
    return [head, *lines]


def warnings(blocks: Blocks) -> list[str]:
    """Sentences on layers whose trace is below zero, by more than two standard errors and within."""
    below = (blocks.trace < 0) & (np.abs(blocks.trace) > _ROUNDING * np.abs(blocks.trace).max(initial=0.0))
    surely = below & (blocks.trace + 2 * blocks.trace_stderr < 0)
    sentences = []
    if surely.any():
        sentences.append(
            f"The trace is below zero by more than two standard errors in {_list(blocks.block[surely])}: the weights "
            "are not at a minimum, and HAWQ's omega would reward rounding there; the bit allocation takes it as 0."
        )
    if (below & ~surely).any():
        sentences.append(
            f"The trace is below zero within two standard errors in {_list(blocks.block[below & ~surely])}: more "
            "--block-samples would tell its sign; the bit allocation takes HAWQ's omega there as 0."
        )
    return sentences


def _number(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.3g}"


def _measured(value: float, error: float) -> str:
    return _number(value) + ("" if np.isnan(error) else f" ± {error:.2g}")


def _mark(value: float, converged: bool) -> str:
    return "" if converged or np.isnan(value) else " NOT CONVERGED"


def _list(names: Sequence[str]) -> str:
    return ", ".join(map(str, names))
