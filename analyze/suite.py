"""All analyses of one checkpoint, one after the other, into one run file: `python -m analyze --ckpt ...`."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import tyro

from analyze import analyses
from analyze.cli import (
    Outcome,
    Shared,
    assist,
    carry_out,
    check,
    content,
    draw,
    load_subject,
    run_file,
    setting,
    smoothing_status,
    split_of,
    table,
)
from analyze.distributed import ALONE, World, first_speaks, joined
from analyze.results import AnalysisResult, checkpoint_name, identity, plain
from analyze.run import RunFile, open_run
from data_cache import InputError, exit_on_input_error


@dataclass(frozen=True)
class Selection:
    """Which of the analyses."""

    only: tuple[str, ...] = ()
    """These analyses alone, for example variance hessian."""
    skip: tuple[str, ...] = ()
    """All but these."""

    def names(self) -> list[str]:
        """The chosen analyses, in the order in which they are run.

        Raises:
            InputError: A name is of no analysis, or none is left.
        """
        known = analyses()
        if foreign := sorted({*self.only, *self.skip}.difference(known)):
            raise InputError(f"there is no analysis {', '.join(foreign)}; there are {', '.join(known)}.")
        chosen = [name for name in known if name in (self.only or known) and name not in self.skip]
        if not chosen:
            raise InputError("--only and --skip leave no analysis.")
        return chosen


@dataclass(frozen=True)
class SharedByAll(Shared):
    """Options that all analyses share."""

    limit: int | None = None
    """Use this many images, evenly spaced over the split; 0 for all of them; default: each analysis's own number."""


@dataclass
class Suite:
    """What came of the analyses that were run."""

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    figures: list[Path] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    """Analyses that could not be done, or not be drawn, and why."""


def parse(arguments: Sequence[str] | None = None) -> tuple[SharedByAll, Selection, dict[str, Any]]:
    """Shared options, the choice of analyses and the options of each; exits with help or a usage error."""
    specs = {name: importlib.import_module(f"analyze.{name}.spec") for name in analyses()}
    flat = tyro.conf.OmitArgPrefixes
    command = dataclasses.make_dataclass(
        "Command",
        [("selection", flat[Selection]), ("shared", flat[SharedByAll])]
        + [(name, spec.Config) for name, spec in specs.items()],
        frozen=True,
    )
    with exit_on_input_error():
        parsed = tyro.cli(
            command,
            args=arguments,
            prog="python -m analyze",
            description=f"All analyses of a checkpoint, into one run file: {', '.join(specs)}.",
            default=command(Selection(), SharedByAll(ckpt=tyro.MISSING), *(spec.Config() for spec in specs.values())),
        )
        check(parsed.shared)
        configs = {name: getattr(parsed, name) for name in parsed.selection.names()}
    return parsed.shared, parsed.selection, configs


def main(arguments: Sequence[str] | None = None) -> None:
    """The command: parse, run all chosen analyses, print; exit status 2 if one of them could not be done."""
    with first_speaks():
        shared, _, configs = parse(arguments)
    with exit_on_input_error(), joined(shared.device) as world:
        suite = run(shared, configs, world)
        if suite.failed:
            if world.rank == 0:
                told = f"{len(suite.failed)} of {len(configs)} analyses failed: {', '.join(suite.failed)}"
                print(f"error: {told}.", file=sys.stderr)
            raise SystemExit(2)


def run(shared: SharedByAll, configs: Mapping[str, Any], world: World = ALONE) -> Suite:
    """Run analyses by name, each with its config, on one network; what one of them refuses stops none of the others.

    Raises:
        InputError: Nothing can be done: the checkpoint can't be loaded, the run file not written, or a run file to
            compare with not read; or a process of several has failed alone.
    """
    check(shared)
    first = world.rank == 0
    if first and not shared.quiet:
        print("loading ...", file=sys.stderr, flush=True)
    name = next(iter(configs))
    network = load_subject(_own(shared, name), split=split_of(name))
    about = network.describe()
    out = run_file(shared, about)
    if first:
        _check_files(shared, out, about)
    suite = Suite()
    for number, (name, config) in enumerate(configs.items(), start=1):
        own = _own(shared, name)
        try:
            subject = network
            if number > 1:
                subject = network.on(shared.data, split=split_of(name), limit=own.limit or None)
            if first:
                title = f"{name} {number}/{len(configs)}" if len(configs) > 1 else ""
                suite.outcomes[name] = carry_out(name, own, config, subject, out, world, title)
            else:
                assist(name, subject, config, world)
        except InputError as error:
            if not world.everywhere(name):
                raise
            suite.failed[name] = str(error)
    if first:
        _draw(suite, shared, configs, out)
        _report(suite, shared, about, out)
    return suite


def _own(shared: SharedByAll, name: str) -> Shared:
    """The shared options with the analysis's own defaults where none was given."""
    defaults = importlib.import_module(f"analyze.{name}.spec").SUBJECT_DEFAULTS
    unset = {key: value for key, value in defaults.items() if getattr(shared, key, value) is None}
    return replace(shared, **unset)


def _check_files(shared: Shared, out: Path, about: Mapping[str, Any]) -> None:
    """Refuse before long work what no analysis could write to or be compared with."""
    for path in shared.compare:
        with open_run(path):
            pass
    with RunFile(out, identity(about)):
        pass


def _draw(suite: Suite, shared: Shared, configs: Mapping[str, Any], out: Path) -> None:
    for name, outcome in suite.outcomes.items():
        try:
            suite.figures += draw(outcome.result, configs[name], _others(name, shared, configs[name]), out, shared)
        except InputError as error:
            suite.failed[name] = f"its figure can't be drawn: {error}"


def _others(name: str, shared: Shared, config: Any) -> list[AnalysisResult]:
    """The results of this analysis in the run files to compare with, where they hold one that can be."""
    result = importlib.import_module(f"analyze.{name}.spec").Result
    others = []
    for path in shared.compare:
        with open_run(path) as stored:
            held = name in stored.analyses
        if held and not (other := result.read(path)).incomparable(config):
            others.append(other)
    return others


def _report(suite: Suite, shared: Shared, about: Mapping[str, Any], out: Path) -> None:
    """Print a short table of each analysis, or JSON, and the paths written."""
    if shared.json:
        found = {
            "analyses": {name: content(outcome) for name, outcome in suite.outcomes.items()},
            "failed": suite.failed,
            "run_file": str(out),
            "figures": [str(figure) for figure in suite.figures],
        }
        print(json.dumps(plain(found), indent=2, default=str))
        return
    print(f"{checkpoint_name(about)} ({about['model']}): {setting(about)}")
    if overall := smoothing_status(about):
        print(overall)
    for name, outcome in suite.outcomes.items():
        subject = outcome.result.subject or {}
        stored = "" if outcome.fresh else " (already in the run file)"
        print(f"\n{name}: {subject['images']:,} images of {subject['data']}, {outcome.seconds:.1f} s{stored}")
        if subject.get("smoothing") != about.get("smoothing"):
            print(smoothing_status(subject, outcome.fresh))
        print(table(outcome.result.rows()))
    print()
    for name, reason in suite.failed.items():
        print(f"{name} FAILED: {reason}")
    print(f"run file  {out}" if out.is_file() else "nothing was written")
    for figure in suite.figures:
        print(f"figure    {figure}")
