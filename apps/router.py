"""The explorer's script: what Streamlit runs for each visitor, and at each of their clicks."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import logging
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path

import streamlit as st

from analyze import analyses
from apps import library, warm_up
from apps.context import Context, colors, escape
from apps.readme import section
from data_cache import paths

FIRST = tuple(
    f"{library.SHIPPED}/{name}.h5" for name in ("resnet_dnn_18", "resnet_mcdo_18", "resnet_mcdo_smoothing_18")
)
"""What a first visit shows, where it is there."""
_LAST = 20
"""Run files among which it else chooses."""
# a named icon would be fetched from another server
ICON = str(Path(__file__).with_name("icon.svg"))
ICONS = {
    "runs": "folder_open", "variance": "scatter_plot", "fourier": "graphic_eq", "robustness": "shield",
    "hessian": "show_chart", "landscape": "landscape", "compare": "compare_arrows", "new_run": "add_circle",
}  # fmt: skip
LINES = {
    "runs": "All run files below the root. Tick rows to choose what all pages show; click a heading to sort. "
    "Accuracy and NLL are of the images of the robustness analysis, curvature of those of the Hessian's.",
    "compare": "What the chosen runs share, and how they differ from the first of them.",
    "new_run": "Starts an analysis as a process of its own, of as many images as the form says.",
}
"""What the pages show that are of no analysis."""

# less empty space than Streamlit leaves; a run's colour at its name in the picker, which shows long names whole
STYLE = """<style>
.stMainBlockContainer {padding: 2.6rem 2.5rem 2rem}
[data-testid=stSidebarHeader] {height: 2.5rem}
[data-testid=stSidebar] [data-tag-index] {
  background: rgba(128,128,128,.16); color: inherit; border-left: 6px solid grey; height: auto; max-width: 100%%;
}
[data-testid=stSidebar] [data-tag-index] span {
  font-size: .8rem; white-space: normal; overflow-wrap: anywhere; max-width: none;
}
%s</style>"""


def main() -> None:
    """Draw the page that the URL names."""
    warm_up.wait()
    st.set_page_config(page_title="landscope", page_icon=ICON, layout="wide", initial_sidebar_state=320)
    root = _root()
    if not root.is_dir():
        if root != paths.results():
            st.error(f"{escape(root)} is not a folder: give --root a folder of run files.")
            return
        root.mkdir(parents=True, exist_ok=True)
    seen = library.signature(root)  # first: what comes after it is seen at the next look
    runs = library.list_runs(root)
    begin = _begin(runs)
    context = Context(root, runs, _picked(runs) if begin is None else begin)
    rule = '[data-testid=stSidebar] [data-tag-index="{}"] {{border-left-color: {}}}\n'
    st.html(STYLE % "".join(rule.format(*each) for each in enumerate(colors(len(context.chosen)))))
    page = st.navigation(_pages(context))
    if begin is not None:
        st.query_params["run"] = [run.name for run in begin]
        st.rerun()
    _watch(root, seen)
    keys = [run.key for run in context.chosen]
    missing = st.session_state["missing"]
    if missing and keys == st.session_state.setdefault("first_choice", keys):
        st.warning(f"The link names run files that are not below {escape(root)}: {escape(', '.join(missing))}.")
    for run in context.chosen:
        if run.problem:
            st.error(escape(run.problem))
    page.run()


def _root() -> Path:
    parser = argparse.ArgumentParser(prog="streamlit run apps/explorer.py --", add_help=False)
    parser.add_argument("--root", type=Path, default=None)
    options, _ = parser.parse_known_args()
    return options.root or paths.results()


def _picked(runs: Sequence[library.Run]) -> list[library.Run]:
    """The picker in the sidebar, which is in step with the URL."""
    by_key = {run.key: run for run in runs}
    keys = st.sidebar.multiselect(
        "Run files",
        list(by_key),
        format_func=lambda key: by_key[key].name if key in by_key else key,
        key="run",
        bind="query-params",
        placeholder="Choose one or several" if runs else "There are none yet",
        help="What all pages show. The first is what the others are compared with.",
    )
    return [by_key[key] for key in keys if key in by_key]


def _begin(runs: Sequence[library.Run]) -> list[library.Run] | None:
    """At the beginning of a visit what the URL asks for, or a first choice; None if the picker takes the URL as it is.

    The picker knows runs by their names alone; a URL may have their keys too, or the names of runs that are gone.
    """
    if "missing" in st.session_state:
        return None
    asked = [name for name in st.query_params.get_all("run") if name]
    found = {name: library.find(runs, name) for name in asked}
    st.session_state["missing"] = [name for name, run in found.items() if run is None]
    wanted = list({run.key: run for run in found.values() if run is not None}.values()) or first_runs(runs)
    return None if [run.name for run in wanted] == asked else wanted


def first_runs(runs: Sequence[library.Run]) -> list[library.Run]:
    """Those that show something worth seeing: results that ship, else three of the last ones that hold most."""
    by_key = {run.key: run for run in runs}
    if shipped := [by_key[key] for key in FIRST if key in by_key and by_key[key].analyses]:
        return shipped
    last = [run for run in sorted(runs, key=lambda run: -run.modified)[:_LAST] if run.analyses]
    return sorted(sorted(last, key=lambda run: -len(run.analyses))[:3], key=lambda run: run.key)


def _pages(context: Context) -> list[st.Page]:
    """All pages; those of what none of the chosen runs holds are not listed, but a link to them says so."""
    held = {name for run in context.chosen for name in run.analyses}
    held |= {"runs", "new_run"} | ({"compare"} if len(context.chosen) > 1 else set())
    return [
        st.Page(
            partial(show_page, name, context),
            title=page_title(name),
            icon=f":material/{ICONS.get(name, 'insights')}:",
            url_path=name,
            default=name == "runs",
            visibility="visible" if name in held else "hidden",
        )
        for name in ["runs", *analyses(), "compare", "new_run"]
        if name in analyses() or has_view(name)
    ]


def page_title(name: str) -> str:
    """What a page is called."""
    return name.replace("_", " ").capitalize()


@lru_cache
def has_view(name: str) -> bool:
    """Whether there is a page of this name."""
    return importlib.util.find_spec(f"apps.views.{name}") is not None


def show_page(name: str, context: Context) -> None:
    """Draw a page under its title; whatever a run file holds, what can't be drawn is a sentence."""
    st.subheader(page_title(name), anchor=False)
    if name in analyses() and not any(name in run.analyses for run in context.chosen):
        st.info(f"None of the chosen run files holds this analysis. `python -m analyze.{name}` makes one.")
        return
    try:
        _says(name, context)
        if has_view(name):
            importlib.import_module(f"apps.views.{name}").show(context)
        else:
            importlib.import_module("apps.views.generic").show(context, name)
    except Exception as error:  # a run file may hold anything: the page says so, the log has the traceback
        logging.getLogger("landscope").exception("the page %s can't be drawn", name)
        told = next(filter(str.strip, str(error).splitlines()), type(error).__name__)
        st.error(f"This page can't be drawn: {escape(told[:300])}")


def _says(name: str, context: Context) -> None:
    """One line: what the page shows, of how many images, and where to read more."""
    if name in analyses():
        line = f"{importlib.import_module(f'analyze.{name}.spec').TITLE}. {context.images(name)}"
    else:
        line = LINES[name]
    more = section(f"python -m analyze.{name}" if name in analyses() else "streamlit run")
    with st.container(horizontal=True, vertical_alignment="top", wrap=False, gap="small"):
        st.caption(escape(line), width="stretch")
        if more:
            with st.popover("Read more", type="tertiary", icon=":material/menu_book:", key=f"{name}_more"):
                st.markdown(more)


@st.fragment(run_every=2)
def _watch(root: Path, seen: int) -> None:
    """Draw the app anew when a run file has come, gone or grown."""
    if library.signature(root) != seen:
        st.rerun()


if __name__ == "__main__":
    main()
