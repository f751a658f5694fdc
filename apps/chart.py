"""A chart on a page, and what can be taken away from it: pictures, numbers, and the command that made it."""

from __future__ import annotations

import csv
import importlib
import io
import re
import shlex
import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import streamlit as st

from analyze.charting import long_table
from analyze.results import AnalysisResult
from apps.context import Chosen, escape
from apps.library import printable
from data_cache import InputError

if TYPE_CHECKING:
    import plotly.graph_objects as go

_drawing = threading.Lock()
PAPER_FORMATS = {"png": "image/png", "svg": "image/svg+xml", "pdf": "application/pdf"}


def show_chart(
    figure: go.Figure,
    chosen: Sequence[Chosen],
    key: str,
    *,
    paper: str | None = "",
    on_select: bool = False,
    note: str = "",
) -> Any:
    """Draw a plotly figure, with its downloads under it, which are made when asked for.

    Args:
        figure: The chart.
        chosen: The results that it shows; the first is the one that the paper figure is of, with the others beside it.
        key: Of the chart among all of the app.
        paper: Which of the analysis's `figures` shows the same; None if none does.
        on_select: Whether a click on a point reruns the page.
        note: A sentence under the chart; any text.

    Returns:
        With `on_select` what is selected (`.points`), else None.
    """
    state: Any = st.plotly_chart(
        figure,
        theme="streamlit",
        key=key,
        on_select="rerun" if on_select else "ignore",
        selection_mode="points",
        config={"displaylogo": False, "scrollZoom": False, "toImageButtonOptions": {"filename": key}},
    )
    with st.container(horizontal=True, vertical_alignment="center", wrap=False, gap="small"):
        st.caption(escape(note) if note else "&nbsp;", width="stretch")
        with st.popover("Download", icon=":material/download:", type="tertiary", key=f"{key}_download"):
            _downloads(figure, chosen, key, paper)
    return state.selection if on_select else None


def show_pictures(chosen: Sequence[Chosen], key: str, *, paper: str = "") -> None:
    """Draw one of the figures that the command draws, with its downloads under it.

    Args:
        chosen: The results that it shows.
        key: Of the picture among all of the app.
        paper: Key in what the analysis's `figures` returns.

    Raises:
        InputError: There is no such figure of these results.
    """
    st.image(paper_figure([each.result for each in chosen], paper, "png"))
    with st.popover("Download", icon=":material/download:", type="tertiary", key=f"{key}_download"):
        _paper_buttons(chosen, key, paper)
        _command(chosen)


def _downloads(figure: go.Figure, chosen: Sequence[Chosen], key: str, paper: str | None) -> None:
    if chosen and paper is not None:
        _paper_buttons(chosen, key, paper)
    stem = file_stem([each.run.name for each in chosen], key)
    with st.container(horizontal=True):
        _button("HTML", lambda: interactive(figure), f"{stem}.html", "text/html", key)
        _button("CSV", lambda: table(figure), f"{stem}.csv", "text/csv", key)
    st.caption("This chart as a page of its own, and its numbers.")
    _command(chosen)


def _paper_buttons(chosen: Sequence[Chosen], key: str, paper: str) -> None:
    stem = file_stem([each.run.name for each in chosen], key)
    with st.container(horizontal=True):
        for kind, mime in PAPER_FORMATS.items():
            _button(kind.upper(), _drawer(chosen, paper, kind), f"{stem}.{kind}", mime, key)
    st.caption("The figure as the command draws it.")


def _command(chosen: Sequence[Chosen]) -> None:
    if lines := commands(chosen):
        st.code("\n".join(lines), language=None, wrap_lines=True)
        st.caption("What made it, as the run files say.")


def _button(label: str, make: Callable[[], bytes], name: str, mime: str, key: str) -> None:
    st.download_button(label, make, name, mime, key=f"{key}_{label}", on_click="ignore")


def _drawer(chosen: Sequence[Chosen], paper: str, kind: str) -> Callable[[], bytes]:
    results = [each.result for each in chosen]
    return lambda: paper_figure(results, paper, kind)


def paper_figure(results: Sequence[AnalysisResult], name: str, kind: str) -> bytes:
    """The figure that the command draws of the first result with the others beside it; the last ones are kept.

    Args:
        results: Of one analysis.
        name: Key in what its `figures` returns.
        kind: png, svg or pdf.

    Raises:
        InputError: There is no such figure of these results.
    """
    return _paper_figure(_Same(results), name, kind)


def figure_names(results: Sequence[AnalysisResult]) -> list[str]:
    """Of all figures that the command draws of these results."""
    return list(_figures(_Same(results)))


class _Same(tuple):
    """Results that are the same if they are the same objects, for caches."""

    def __hash__(self) -> int:
        return hash(tuple(map(id, self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and list(map(id, self)) == list(map(id, other))


@lru_cache(maxsize=8)
def _figures(results: _Same) -> dict[str, Any]:
    first, *others = results
    return importlib.import_module(f"analyze.{first.analysis}.figures").figures(first, others)


@lru_cache(maxsize=32)
def _paper_figure(results: _Same, name: str, kind: str) -> bytes:
    figures = _figures(results)
    if name not in figures:
        raise InputError(f"the {results[0].analysis} analysis of this run has no figure {name!r}.")
    content = io.BytesIO()
    with _drawing:
        figures[name].savefig(content, format=kind, dpi=200)
    return content.getvalue()


def interactive(figure: go.Figure) -> bytes:
    """The chart as a web page that needs nothing else, drawn on white."""
    import plotly.graph_objects as go

    page = go.Figure(figure)
    page.update_layout(template="plotly_white", paper_bgcolor="white")
    return page.to_html(include_plotlyjs=True, auto_play=False).encode()


def table(figure: go.Figure) -> bytes:
    """The chart's numbers as CSV; texts that a spreadsheet would take for a formula begin with an apostrophe."""
    content = io.StringIO()
    csv.writer(content).writerows([[_cell(value) for value in row] for row in long_table(figure)])
    return content.getvalue().encode()


def _cell(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value[:1] in tuple("=+-@\t\r") else value


def commands(chosen: Sequence[Chosen]) -> list[str]:
    """The command lines that made the results, as their files record them, and the one that puts them side by side."""
    made = [each.run.analyses[each.result.analysis].command for each in chosen]
    lines = [line for line in dict.fromkeys(made) if line]
    if len(chosen) > 1:
        files = shlex.join(printable(each.run.path) for each in chosen)
        lines.append(f"python -m analyze.compare {files} --only {chosen[0].result.analysis}")
    return lines


def file_stem(names: Sequence[str], key: str) -> str:
    """A name for a file that any system takes: letters, digits, dots, dashes and underscores."""
    text = "_vs_".join(names) if len(names) < 4 else f"{names[0]}_and_{len(names) - 1}_more"
    return re.sub(r"[^A-Za-z0-9._-]+", "_", f"{text}_{key}").strip("._-")[:120] or "chart"
