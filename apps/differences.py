"""Two or more runs side by side: differences with standard errors, as chart and as table. No streamlit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from analyze.charting import new_chart, text
from analyze.compare import Comparison, Line, Stored, compared
from analyze.results import Difference
from apps.library import Run, load

if TYPE_CHECKING:
    import plotly.graph_objects as go

MOST = 20
"""Rows of a chart."""


@lru_cache(maxsize=32)
def side_by_side(analysis: str, runs: tuple[Run, ...]) -> Comparison:
    """What runs that hold an analysis share; differences are to the first.

    Raises:
        InputError: One of them can't be read.
    """
    return compared(analysis, [Stored(run.name, load(run, analysis), run.analyses[analysis].complete) for run in runs])


def by_heading(lines: Sequence[Line]) -> dict[str, list[Line]]:
    """Lines by what stands before the colon of their names, "" for those without; the most telling heading first."""
    found: dict[str, list[Line]] = {}
    for line in lines:
        heading, colon, _ = line.name.partition(": ")
        found.setdefault(heading if colon else "", []).append(line)
    ratios = {heading: max(line.ratio for line in under) for heading, under in found.items()}
    return dict(sorted(found.items(), key=lambda item: -ratios[item[0]]))


def label(line: Line) -> str:
    """A line's name without its heading."""
    heading, colon, name = line.name.partition(": ")
    return name if colon else heading


def drawable(lines: Sequence[Line], in_margins: bool) -> list[Line]:
    """The lines with a difference that the chart can show, first those that differ most for their errors."""
    held = [line for line in lines if any(_point(each, in_margins) is not None for each in line.differences)]
    return sorted(held, key=lambda line: -line.ratio)


def left_out(lines: Sequence[Line], held: Sequence[Line]) -> str:
    """What a chart of the first `MOST` of `drawable` lines does not show, in sentences; "" if nothing."""
    told = [f"The {MOST} of {len(held)} that differ most for their errors."] * (len(held) > MOST)
    if without := len(lines) - len(held):
        told.append(
            f"{without} without a difference or its standard error {'is' if without == 1 else 'are'} not drawn."
        )
    return " ".join(told)


def why_no_chart(lines: Sequence[Line]) -> str:
    """Why none of the lines can be drawn, in a sentence."""
    if all(each is None for line in lines for each in line.differences):
        return "These numbers are relative to the first run already: there is no difference to draw."
    return "These differences have no standard errors, so there is no chart of them."


def chart(
    comparison: Comparison, lines: Sequence[Line], colors: Sequence[str], *, in_margins: bool = False, of: str = ""
) -> go.Figure:
    """Differences to the first run, a row for each line, with standard errors; filled where marked.

    Args:
        comparison: Of which the lines are.
        lines: From top to bottom.
        colors: Of all its runs, the first's too.
        in_margins: Divide by `Difference.margin`, so that quantities of any unit stand on one axis and what chance
            explains lies within the dashed lines at -1 and 1.
        of: What the lines have in common, for the axis.
    """
    import plotly.graph_objects as go

    figure = new_chart(height=min(560, 130 + 22 * max(8, len(lines))))
    labels = [text(label(line)) for line in lines]
    others = len(comparison.stored) - 1
    for place, (entry, color) in enumerate(zip(comparison.stored[1:], colors[1:], strict=True)):
        offset = 0.5 * ((place + 0.5) / others - 0.5)  # so that no two runs hide each other
        found = [line.differences[place] for line in lines]
        points = [_point(each, in_margins) for each in found]
        marked = [each is not None and each.is_marked for each in found]
        figure.add_trace(
            go.Scatter(
                x=[None if point is None else point[0] for point in points],
                y=[row + offset for row in range(len(lines))],
                error_x={"type": "data", "array": [None if point is None else point[1] for point in points]},
                mode="markers",
                name=text(f"{entry.name} - {comparison.stored[0].name}"),
                marker={
                    "color": color,
                    "size": 9,
                    "symbol": ["circle" if each else "circle-open" for each in marked],
                },
                text=labels,
                hovertext=[_told(line, place, comparison) for line in lines],
                hovertemplate="%{hovertext}<extra></extra>",
                showlegend=True,
            )
        )
    figure.add_vline(x=0, line={"color": "grey", "width": 1})
    if in_margins:
        for edge in (-1, 1):
            figure.add_vline(x=edge, line={"color": "grey", "width": 1, "dash": "dash"})
    axis = "difference" + (f" of {text(of)}" if of else "")
    axis += " in units of the margin that chance explains" if in_margins else ""
    figure.update_xaxes(title=axis, zeroline=False)
    figure.update_yaxes(
        tickvals=list(range(len(lines))),
        ticktext=labels,
        range=[len(lines) - 0.5, -0.5],
        automargin=True,
        zeroline=False,
    )
    return figure


COLUMNS = {
    "value": "{}", "error": "{}: ±", "bound": "{}: residual", "difference": "{}: difference",
    "difference error": "{}: ± of it", "star": "{}: *",
}  # fmt: skip
"""What a table says of each run, and its headings with the run's name."""


def table(comparison: Comparison, lines: Sequence[Line], of: str = "") -> tuple[list[dict[str, Any]], dict[str, str]]:
    """A row for each line: value and standard error of each run, and difference, error and mark of each further one.

    What is a bound on the error and no standard error, an eigenvalue's residual, has a column of its own. Columns that
    are empty in all rows are left out.

    Args:
        comparison: Of which runs.
        lines: Its rows.
        of: Heading that they share, which their names need not repeat.

    Returns:
        Rows, and the headings of their columns, whose own names do not depend on those of the runs.
    """
    rows = []
    for line in lines:
        cells: dict[str, Any] = {"quantity": line.name.removeprefix(f"{of}: ")}
        for place, quantity in enumerate(line.found):
            numbers = (None,) * 3 if quantity is None else (quantity.value, quantity.error, quantity.bound)
            values = dict(zip(("value", "error", "bound"), map(_number, numbers), strict=True))
            if place:
                found = line.differences[place - 1] or Difference(math.nan, math.nan)
                values["difference"] = _number(found.value)
                values["difference error"] = _number(found.error) if values["difference"] is not None else None
                values["star"] = "*" if found.is_marked else ""
            cells |= {f"{name} {place}": value for name, value in values.items()}
        rows.append(cells)
    headings = {
        f"{kind} {place}": heading.format(entry.name)
        for place, entry in enumerate(comparison.stored)
        for kind, heading in COLUMNS.items()
        if any(row.get(f"{kind} {place}") not in (None, "") for row in rows)
    }
    return [{"quantity": row["quantity"], **{key: row[key] for key in headings}} for row in rows], headings


def _number(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else float(value)


def _point(found: Any, in_margins: bool) -> tuple[float, float | None] | None:
    """Where a difference stands and its error, or None if it can't be shown."""
    if found is None or not math.isfinite(found.value):
        return None
    if not in_margins:
        return float(found.value), float(found.error) if math.isfinite(found.error) else None
    margin = found.margin
    if not math.isfinite(margin) or margin <= 0:
        return None
    return float(found.value / margin), float(found.error / margin)


def _told(line: Line, place: int, comparison: Comparison) -> str:
    found, quantities = line.differences[place], (line.found[0], line.found[place + 1])
    if found is None:
        return ""
    values = " and ".join("none" if each is None else f"{each.value:.4g}" for each in quantities)
    error = "" if math.isnan(found.error) else f" ± {found.error:.2g}"
    mark = ", more than chance explains" if found.is_marked else ""
    return f"{text(line.name)}<br>{found.value:+.3g}{error}{mark}<br>{values}"
