"""What every page gets: the run files, which of them are chosen, and their results."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import streamlit as st

from analyze.charting import Drawn
from analyze.drawing import MODELS
from analyze.results import AnalysisResult
from apps.library import Run, load
from data_cache import InputError

COLORS = (*MODELS[:-1], "#8A8A8A")
"""Colours of the chosen runs, in their order: those of the figures, with grey for black, which dark mode would hide."""


def escape(text: object) -> str:
    """Any text as Streamlit's markdown and labels show it: as it is, on one line.

    Links and icons are made of text that is already unescaped; an invisible word joiner (U+2060) in them prevents it.
    """
    line = " ".join(str(text).split())
    line = re.sub(r":(?=//|[\w/+-]+:)|@|www(?=\.)", "\\g<0>\u2060", line, flags=re.IGNORECASE)
    return re.sub(r"([\\`*_{}\[\]()<>#+\-.!|~$:^=&\"'/@])", r"\\\1", line)


def choose(keys: Sequence[str]) -> None:
    """Choose these runs, in a callback of a widget: the picker and the URL follow."""
    st.session_state["run"] = list(keys)


@dataclass(frozen=True)
class Chosen:
    """One of the chosen runs, with its result of the page's analysis."""

    run: Run
    result: AnalysisResult
    color: str
    """The run's own, on all pages."""

    @property
    def name(self) -> str:
        """For legends; any text."""
        return self.run.name

    def drawn(self) -> Drawn:
        """The result as charts take it."""
        return Drawn(self.result, self.name, self.color)


@dataclass(frozen=True)
class Context:
    """What a page shows."""

    root: Path
    """Folder of the run files."""
    runs: list[Run]
    """All of them."""
    chosen: list[Run]
    """Those picked in the sidebar, in order."""

    def results(self, analysis: str) -> list[Chosen]:
        """The chosen runs that hold this analysis, read; where that fails the page says why."""
        found = []
        for run, color in zip(self.chosen, colors(len(self.chosen)), strict=True):
            if analysis not in run.analyses:
                continue
            try:
                found.append(Chosen(run, load(run, analysis), color))
            except InputError as error:
                st.error(escape(error))
        return found

    def images(self, analysis: str) -> str:
        """Of which images the chosen results of an analysis are, and which are not complete; any text."""
        held = [run for run in self.chosen if analysis in run.analyses]
        of: dict[str, list[str]] = {}
        for run in held:
            subject = run.analyses[analysis].subject
            count = subject.get("images")
            counted = f"{count:,} images" if isinstance(count, int) else "images"
            of.setdefault(f"{counted} of {subject.get('data', 'unknown data')}", []).append(run.name)
        told = [each if len(of) == 1 else f"{each} ({', '.join(names)})" for each, names in of.items()]
        partly = [run.name for run in held if not run.analyses[analysis].complete]
        return f"Of {'; '.join(told)}." + (f" Not complete yet: {', '.join(partly)}." if partly else "")


def colors(count: int) -> list[str]:
    """Of so many chosen runs; they repeat when there are more than colours."""
    return [COLORS[place % len(COLORS)] for place in range(count)]
