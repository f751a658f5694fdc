"""The page from which analyses are started, and watched."""

from __future__ import annotations

import importlib
import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import streamlit as st

from analyze import analyses
from apps import forms, inputs, jobs
from apps.context import Context, escape
from data_cache.errors import InputError

ALL = "all of them"
COLUMNS = 3
FIRST = ("limit", "restart")
"""Shared options that stand beside the checkpoint, not among those few change."""
MARKS = {
    "waiting": ":gray-badge[waiting]", "running": ":blue-badge[running]", "done": ":green-badge[done]",
    "failed": ":red-badge[failed]", "cancelled": ":orange-badge[cancelled]", "lost": ":red-badge[ended]",
}  # fmt: skip


def show(context: Context) -> None:
    """Draw the page."""
    _form(context)
    found = jobs.jobs(context.root)
    if found:
        st.markdown("##### Started here")
    active = [job for job in found if job.active]
    _active_jobs(context.root, tuple(job.folder.name for job in active))
    for job in found:
        if not job.active:
            _ended_job(job, context)


# The form


@dataclass(frozen=True)
class _Files:
    """What options that name files are chosen from: what a command takes, and what people see."""

    analysis: str
    known: Sequence[inputs.Checkpoint]
    context: Context

    @property
    def checkpoints(self) -> dict[str, str]:
        """Those that can be chosen."""
        return {checkpoint.value: checkpoint.name for checkpoint in self.known}

    @property
    def runs(self) -> dict[Path, str]:
        """The run files that hold this analysis; to know it, all are opened."""
        return {run.path.resolve(): run.key for run in self.context.runs if self.analysis in run.analyses}

    def of(self, option: forms.Option) -> dict[Any, str]:
        """Those of an option."""
        words = {word: word for word in option.choices}
        return words | (self.checkpoints if option.reads == "checkpoint" else self.runs)


def _form(context: Context) -> None:
    known, left_out = inputs.checkpoints(context.root)
    by_value = {checkpoint.value: checkpoint for checkpoint in known}
    columns = st.columns(COLUMNS)
    with columns[0]:
        name = st.selectbox("Analysis", [*analyses(), ALL], **_key("analysis"))
    with columns[1]:
        chosen = st.selectbox(
            "Checkpoint",
            list(by_value),
            format_func=lambda value: by_value[value].name,
            help="Those that ship, your own in the folder of checkpoints, and those below the folder of the run files.",
            **_key("checkpoint"),
        )
    if left_out:
        with st.popover(f"Files that can't be chosen: {len(left_out)}", type="tertiary", icon=":material/info:"):
            st.text("\n".join(left_out))
    if chosen is None:
        st.info("There is no checkpoint yet. `python -m models.train` makes one.")
        return
    with columns[2]:
        data = _data(by_value[chosen])
    try:
        command, out = _command(context, "" if name == ALL else name, known, by_value[chosen], data)
    except InputError as error:
        st.error(escape(error))
        st.button("Start", disabled=True, icon=":material/play_arrow:", key="new_run_start")
        return
    st.code(shlex.join(["python", *command[1:]]), language=None, wrap_lines=True)
    with st.container(horizontal=True, vertical_alignment="center"):
        begin = st.button("Start", type="primary", icon=":material/play_arrow:", key="new_run_start")
        st.caption(_says(context, out))
    if begin:
        try:
            jobs.start(context.root, command, analysis="" if name == ALL else name, out=out.name)
        except InputError as error:
            st.error(escape(error))


def _says(context: Context, out: Path) -> str:
    held = next((list(run.analyses) for run in context.runs if run.path == out), None)
    there = "" if held is None else f"{out.name} is there already, with {', '.join(held) or 'nothing'}. "
    return escape(f"{there}Runs go on when this page is closed. One runs at a time, the others wait.")


def _data(checkpoint: inputs.Checkpoint) -> str:
    """NAME:SPLIT; empty for the checkpoint's own."""
    choices = inputs.data_choices()
    if checkpoint.dataset:
        choices.insert(0, "")
    own = f"its own ({checkpoint.dataset})"
    there = checkpoint.dataset in inputs.present()
    data = st.selectbox(
        "Data",
        choices,
        format_func=lambda choice: choice or own,
        help="Its own: what the checkpoint was trained on, in the split that the analysis takes by default."
        + ("" if there else f" {escape(checkpoint.dataset)} is not on this machine yet: the command fetches it."),
        key=f"new_run_data_{checkpoint.value}",
        persist_state="session",
    )
    return data or ""


def _command(
    context: Context, analysis: str, known: Sequence[inputs.Checkpoint], checkpoint: inputs.Checkpoint, data: str
) -> tuple[list[str], Path]:
    """The command that the form describes, and its run file; InputError in a sentence for what can't be."""
    shared = forms.shared_options(analysis)
    prefix = f"{analysis or 'all'}_shared"
    first = [option for option in shared if option.name in FIRST]
    columns = st.columns(COLUMNS, vertical_alignment="bottom")
    with columns[0]:
        out_name = st.text_input(
            "Run file",
            checkpoint.run_file,
            help="In the folder of the run files. Several analyses of one checkpoint share one.",
            key=f"new_run_out_{checkpoint.value}",
            persist_state="session",
        )
    entered: dict[str, Any] = {}
    for column, option in zip(columns[1:], first, strict=False):
        with column:
            entered[option.name] = _widget(option, prefix)
    names = [analysis] if analysis else _selection()
    configs = {each: _options(each, _Files(each, known, context)) for each in names}
    with st.expander("Network, arithmetic and seed"):
        rest = [option for option in shared if option not in first]
        entered |= _grid(rest, prefix)

    out = inputs.output_file(context.root, out_name)
    line = ["--ckpt", checkpoint.value, *(["--data", data] if data else []), "--out", str(out)]
    line += forms.arguments(shared, _read(shared, entered, out))
    if not analysis and len(names) < len(analyses()):
        line += ["--only", *names]
    for each, (found, values) in configs.items():
        read = _read(found, values, out)
        _config(each)(**read)
        line += forms.arguments(found, read, "" if analysis else f"{each}.")
    return forms.command(analysis, line), out


def _config(analysis: str) -> type:
    return importlib.import_module(f"analyze.{analysis}.spec").Config


def _selection() -> list[str]:
    names = st.multiselect("Analyses", analyses(), analyses(), **_key("only"))
    if not names:
        raise InputError("Choose at least one analysis.")
    return [name for name in analyses() if name in names]


def _options(analysis: str, files: _Files) -> tuple[list[forms.Option], dict[str, Any]]:
    found = forms.options(_config(analysis))
    with st.expander(f"Options of {escape(analysis)}"):
        return found, _grid(found, analysis, files)


def _read(found: Sequence[forms.Option], entered: dict[str, Any], out: Path) -> dict[str, Any]:
    """Values of what was entered; files that are to be written stand beside the run file."""
    values = {option.name: forms.read(option, entered[option.name]) for option in found}
    for option in found:
        if option.kind == "output":
            written = inputs.output_file(out.parent, out.stem, option.writes) if values[option.name] else None
            values[option.name] = written
    return values


def _grid(found: Sequence[forms.Option], prefix: str, files: _Files | None = None) -> dict[str, Any]:
    entered = {}
    for begin in range(0, len(found), COLUMNS):
        columns = st.columns(COLUMNS, vertical_alignment="bottom")
        for column, option in zip(columns, found[begin : begin + COLUMNS], strict=False):
            with column:
                entered[option.name] = _widget(option, prefix, files)
    return entered


def _widget(option: forms.Option, prefix: str, files: _Files | None = None) -> Any:
    """A widget for the option; what is entered, as `forms.read` takes it."""
    about = {"label": option.label, "help": escape(option.help) or None, **_key(f"{prefix}_{option.name}")}
    if option.kind == "flag":
        return st.checkbox(value=option.default, **about)
    if option.kind == "output":
        return st.checkbox(value=False, **about)
    if option.kind == "whole":
        return st.number_input(value=option.default, step=1, placeholder="by default its own", **about)
    if option.kind == "number":
        return st.number_input(
            value=option.default, step=_step(option.default), format="%g", placeholder="its own", **about
        )
    if option.kind in ("text", "list"):
        return st.text_input(value=forms.shown(option.default), **about)
    named = files.of(option) if files and option.reads else {choice: choice for choice in option.choices}
    if option.optional and option.default is None:
        named = {None: "none", **named}
    label: Callable[[Any], str] = lambda choice: named.get(choice, str(choice))  # noqa: E731
    if option.kind in ("choices", "files"):
        return st.multiselect(options=list(named), default=list(option.default), format_func=label, wrap=True, **about)
    place = list(named).index(option.default)
    return st.selectbox(options=list(named), index=place, format_func=label, **about)


def _step(default: float | None) -> float:
    return 10.0 ** math.floor(math.log10(abs(default))) if default else 1e-4


def _key(name: str) -> dict[str, Any]:
    return {"key": f"new_run_{name}", "persist_state": "session"}


# Jobs


def _active_jobs(root: Path, seen: tuple[str, ...]) -> None:
    """Those under way, drawn anew every second as long as there are any."""

    def draw() -> None:
        active = [job for job in jobs.jobs(root) if job.active]
        if tuple(job.folder.name for job in active) != seen:
            st.rerun()
        for job in active:
            _active_job(job)

    st.fragment(run_every=1 if seen else None)(draw)()


def _active_job(job: jobs.Job) -> None:
    with st.container(border=True):
        _head(job)
        far = jobs.progress(job) if job.state == "running" else None
        with st.container(horizontal=True, vertical_alignment="center"):
            st.progress(far.fraction or 0.0 if far else 0.0, text=escape(_told(job, far)))
            asked = jobs.is_cancelled(job)
            st.button(
                "Cancelling ..." if asked else "Cancel",
                disabled=asked,
                on_click=partial(jobs.cancel, job),
                help="Keeps what is done; the same command goes on from there.",
                key=f"new_run_cancel_{job.folder.name}",
                icon=":material/stop:",
            )
        _details(job)


def _told(job: jobs.Job, far: jobs.Progress | None) -> str:
    if job.state == "waiting":
        return "waits for the one before it to end"
    if far is None:
        return "loading"
    left = f"{far.left} to go" if far.left and far.fraction != 1 else ""
    return ", ".join(each for each in (f"{far.part}: {far.count}", left, far.note) if each)


def _ended_job(job: jobs.Job, context: Context) -> None:
    with st.container(border=True):
        _head(job)
        name = job.folder.name
        with st.container(horizontal=True, vertical_alignment="center"):
            if job.state != "done":
                st.text(jobs.outcome(job), width="stretch")
            page = _page(job, context)
            if page and st.button(
                "See the result",
                type="primary" if job.state == "done" else "secondary",
                icon=":material/visibility:",
                on_click=partial(_choose, job.out),
                key=f"new_run_open_{name}",
            ):
                # the choice is bound to the URL, where it can be neither given nor cleared by hand
                st.switch_page(st.Page(partial(show, context), title=page, url_path=page), query_params={})
            st.button(
                "Remove", icon=":material/delete:", on_click=partial(jobs.remove, job), key=f"new_run_remove_{name}"
            )
        _details(job, expanded=job.state == "failed")


def _choose(key: str) -> None:
    """Make this the chosen run, on all pages."""
    st.session_state["run"] = [key]


def _page(job: jobs.Job, context: Context) -> str:
    """Where the result of a job is seen; empty if there is none."""
    held = next((list(run.analyses) for run in context.runs if run.key == job.out), [])
    if job.analysis:
        return job.analysis if job.analysis in held else ""
    return held[0] if held else ""


def _head(job: jobs.Job) -> None:
    when = datetime.fromtimestamp(job.created).strftime("%d %b, %H:%M")
    seconds = None if job.started is None or job.ended is None else job.ended - job.started
    took = "" if seconds is None else f", {seconds:.0f} s"
    title = escape(f"{job.analysis or 'all analyses'} into {job.out}")
    st.markdown(f"**{title}** {MARKS[job.state]} :small[:gray[{escape(when + took)}]]")


def _details(job: jobs.Job, expanded: bool = False) -> None:
    with st.expander("Command and log", expanded=expanded):
        st.code(job.command, language=None, wrap_lines=True)
        st.code(jobs.log(job) or "Nothing was printed yet.", language=None, height=240)
