"""Run files side by side: `python -m analyze.compare A.h5 B.h5 ...` prints and draws what two or more of them share."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_type_hints

import tyro

from analyze import analyses
from analyze.cli import Flag, describe, free_options
from analyze.results import AnalysisResult, Difference, Quantity, aligned, checkpoint_name, difference, plain
from analyze.run import open_run
from data_cache import InputError, exit_on_input_error

T = TypeVar("T")

MOST_ROWS, MOST_HEADINGS = 12, 8
"""Rows under one heading, and headings of one analysis, unless all are asked for."""


@dataclass(frozen=True)
class Options:
    """Compare two or more run files in all that they share, with the standard errors of the differences."""

    files: tyro.conf.Positional[tuple[Path, ...]]
    """Run files; differences are to the first."""
    only: tuple[str, ...] = ()
    """These analyses alone, for example variance hessian."""
    all: Flag = False
    """Print every row and heading, not only those that differ most for their standard errors."""
    out: Path | None = None
    """Start of the figures' names; default: A_vs_B beside the first file."""
    plot: bool = True
    """Draw the figures."""
    figure_format: Literal["png", "pdf", "svg"] = "png"
    """Format of the figures."""
    json: Flag = False
    """Print the numbers as JSON instead of the tables."""


@dataclass(frozen=True)
class Stored:
    """One analysis in one run file."""

    name: str
    """What the file is called in tables."""
    result: AnalysisResult
    complete: bool


@dataclass(frozen=True)
class Line:
    """One quantity in all files."""

    name: str
    found: list[Quantity | None]
    """Of each file; None where it has none."""
    differences: list[Difference | None]
    """To the first file, of each further one; None where either has none."""

    @property
    def ratio(self) -> float:
        """The largest difference in units of its margin; -1 if none is known."""
        known = [each for each in self.differences if each is not None and math.isfinite(each.value + each.error)]
        return max((abs(d.value) / d.margin if d.error else math.inf if d.value else 0.0 for d in known), default=-1.0)


@dataclass(frozen=True)
class Comparison:
    """One analysis in two or more run files."""

    analysis: str
    stored: list[Stored]
    """The first is what the others are compared with."""
    paired: list[bool]
    """Whether each further one is of the same images, in the same batches, with the same seed, as the first."""
    lines: list[Line]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command: read, compare, draw, print."""
    options = tyro.cli(Options, args=arguments, prog="python -m analyze.compare")
    with exit_on_input_error():
        comparisons = compare(options.files, options.only)
        figures = draw(comparisons, options) if options.plot else []
        if options.json:
            print(json.dumps(plain(_content(comparisons, figures)), indent=2, default=str))
        else:
            print("\n\n".join(_text(comparison, everything=options.all) for comparison in comparisons))
            print("\n".join(["", *_footnotes(comparisons)]))
            for figure in figures:
                print(f"figure    {figure}")


def compare(files: Sequence[Path], only: Sequence[str] = ()) -> list[Comparison]:
    """What two or more run files share, analysis by analysis.

    Args:
        files: Run files; differences are to the first that holds an analysis. They may come from strangers.
        only: Names of analyses; default: all there are.

    Raises:
        InputError: Fewer than two files, one that can't be read, a name of no analysis, or nothing in common.
    """
    if len(files) < 2:
        raise InputError("give two or more run files to compare, before --only if that is given.")
    if len({path.resolve() for path in files}) < len(files):
        raise InputError("give each run file once: one of them is named twice.")
    if foreign := sorted(set(only).difference(analyses())):
        raise InputError(f"there is no analysis {', '.join(foreign)}; there are {', '.join(analyses())}.")
    contents = [_read(path, only) for path in files]
    names = _names(files, contents)
    comparisons = []
    for analysis in analyses():
        stored = [
            dataclasses.replace(content[analysis], name=name)
            for name, content in zip(names, contents, strict=True)
            if analysis in content
        ]
        if len(stored) > 1:
            comparisons.append(compared(analysis, stored))
    if not comparisons:
        told = "; ".join(
            f"{path} holds {', '.join(content) or 'none'}" for path, content in zip(files, contents, strict=True)
        )
        raise InputError(f"no two files share an analysis{' of --only' if only else ''}: {told}.")
    return comparisons


def _read(path: Path, only: Sequence[str]) -> dict[str, Stored]:
    """The analyses in a run file, by name."""
    found = {}
    with open_run(path) as run:
        held = set(run.analyses)
        for name in analyses():
            if name not in held or (only and name not in only):
                continue
            result = run.load(name, importlib.import_module(f"analyze.{name}.spec").Result)
            attributes = run.group_attributes(name) or {}
            assert result is not None
            subject = attributes.get("subject", {})
            try:
                describe(subject)
            except (KeyError, TypeError, ValueError) as error:
                raise InputError(f"{path}: {name!r} does not say what it is of ({error}).") from error
            result = result.of(attributes.get("config", {}), subject)
            found[name] = Stored(str(path), result, bool(attributes.get("complete")))
    return found


def _names(files: Sequence[Path], contents: Sequence[Mapping[str, Stored]]) -> list[str]:
    """What to call the files: by their checkpoints if these differ, else by file."""
    checkpoints = [
        next((checkpoint_name(stored.result.subject or {}) for stored in content.values()), path.stem)
        for path, content in zip(files, contents, strict=True)
    ]
    for names in (checkpoints, [path.stem for path in files]):
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in files]


def compared(analysis: str, stored: list[Stored]) -> Comparison:
    """Two or more results of one analysis; differences are to the first."""
    first, *others = (entry.result for entry in stored)
    paired = [_is_paired(first, other) for other in others]
    shared = _lines([entry.result.quantities() for entry in stored], paired, least=2)
    relative = [other.against(first, pair) for other, pair in zip(others, paired, strict=True)]
    return Comparison(analysis, stored, paired, shared + _lines([[], *relative], paired, least=1))


def _is_paired(first: AnalysisResult, other: AnalysisResult) -> bool:
    return bool((first.subject or {}).get("data_sha256")) and first.pairing() == other.pairing()


def _lines(quantities: Sequence[Sequence[Quantity]], paired: Sequence[bool], least: int) -> list[Line]:
    """Of each quantity that at least so many files have, in the order of the first file."""
    found = [{quantity.name: quantity for quantity in each} for each in quantities]
    lines = []
    for name in dict.fromkeys(name for each in found for name in each):
        first, *others = (each.get(name) for each in found)
        differences = [
            None if first is None or other is None else difference(first, other, pair)
            for other, pair in zip(others, paired, strict=True)
        ]
        line = Line(name, [first, *others], differences)
        if sum(quantity is not None for quantity in line.found) >= least:
            lines.append(line)
    return lines


def draw(comparisons: Sequence[Comparison], options: Options) -> list[Path]:
    """The figures of each analysis, of the first file with the others beside it."""
    first, *others = (path.stem for path in options.files)
    names = f"{first}_vs_{'_'.join(others)}"
    stem = options.out or options.files[0].with_name(names if len(names) <= 100 else f"{first}_vs_{len(others)}_others")
    files = []
    for comparison in comparisons:
        result, *rest = (entry.result for entry in comparison.stored)
        beside = [other for other in rest if not other.incomparable(_config(result))]
        files += result.plot(stem.with_name(f"{stem.name}_{comparison.analysis}.{options.figure_format}"), beside)
    return files


def _config(result: AnalysisResult) -> Any:
    """The options of a stored result as its analysis's Config, with all parts, for those come from several runs."""
    config = importlib.import_module(f"analyze.{result.analysis}.spec").Config
    hints = get_type_hints(config)
    stored = {key: value for key, value in (result.config or {}).items() if key in hints}
    if "parts" in hints:
        stored["parts"] = get_args(get_args(hints["parts"])[0])
    try:
        return config(**{key: tuple(value) if isinstance(value, list) else value for key, value in stored.items()})
    except (TypeError, ValueError) as error:
        raise InputError(f"{result.analysis} was stored with options that can't be: {error}.") from error


# Text


def _text(comparison: Comparison, *, everything: bool) -> str:
    """Heading, what the numbers are of, and the table."""
    stored = comparison.stored
    told = [comparison.analysis.upper()]
    for entry in stored:
        subject = entry.result.subject or {}
        name = "" if entry.name == checkpoint_name(subject) else f"{entry.name}: "
        told.append(f"  {name}{describe(subject)}{'' if entry.complete else ' (NOT COMPLETE)'}")
    told += [f"  {note}" for note in remarks(comparison)]
    if not comparison.lines:
        return "\n".join([*told, "  They have no quantity in common."])
    head = ["", stored[0].name, *(cell for entry in stored[1:] for cell in (entry.name, "difference"))]
    table = aligned([head, *_rows(comparison, everything)])
    return "\n".join([*told, "", *(f"  {row}" for row in table.splitlines())])


def _rows(comparison: Comparison, everything: bool) -> list[list[str]]:
    """Cells of the table: single quantities, then headings with their rows, in the order in which they come."""
    most_rows, most_headings = (None, None) if everything else (MOST_ROWS, MOST_HEADINGS)
    empty = [""] * (2 * len(comparison.stored) - 1)
    headings: dict[str, list[Line]] = {}
    for line in comparison.lines:
        heading, colon, _ = line.name.partition(": ")
        headings.setdefault(heading if colon else "", []).append(line)
    rows = [_cells(line, line.name) for line in headings.pop("", [])]
    told = _telling(list(headings), lambda heading: max(line.ratio for line in headings[heading]), most_headings)
    for heading in told:
        lines = _telling(headings[heading], lambda line: line.ratio, most_rows)
        rows += [[heading, *empty], *(_cells(line, "  " + line.name.partition(": ")[2]) for line in lines)]
        if hidden := len(headings[heading]) - len(lines):
            rows.append([f"  ({hidden} more: --all)", *empty])
    if hidden := len(headings) - len(told):
        rows.append([f"({hidden} more headings: --all)", *empty])
    return rows


def _telling(items: Sequence[T], ratio: Callable[[T], float], most: int | None) -> list[T]:
    """Those of the largest ratios, in their own order; all if there is no limit."""
    places = sorted(range(len(items)), key=lambda place: -ratio(items[place]))[:most]
    return [items[place] for place in sorted(places)]


def _cells(line: Line, name: str) -> list[str]:
    cells = [name, _number(line.found[0])]
    for quantity, found in zip(line.found[1:], line.differences, strict=True):
        cells += [_number(quantity), _difference(found)]
    return cells


def _number(quantity: Quantity | None) -> str:
    if quantity is None:
        return ""
    bound = "" if quantity.bound is None else f" (± {quantity.bound:.2g})"
    return _measured(f"{quantity.value:.4g}", quantity.error) + bound


def _difference(found: Difference | None) -> str:
    if found is None or math.isnan(found.value):
        return ""
    return _measured(f"{found.value:+.3g}", found.error) + (" *" if found.is_marked else "  ")


def _measured(value: str, error: float | None) -> str:
    return value + ("" if error is None or math.isnan(error) else f" ± {error:.2g}")


def _footnotes(comparisons: Sequence[Comparison]) -> list[str]:
    """What the marks in the tables mean."""
    lines = [line for comparison in comparisons for line in comparison.lines]
    notes = []
    if any(each is not None and each.is_marked for line in lines for each in line.differences):
        notes.append(
            "* more than two standard errors, or for few samples as many as Student's t asks for at the same 95.45 %; "
            "of rows without a true difference, one in 22 gets a star by chance"
        )
    if any(quantity is not None and quantity.bound is not None for line in lines for quantity in line.found):
        notes.append("(±) bound on the error, an eigenvalue's residual: no standard error, so differences have no star")
    return notes


def remarks(comparison: Comparison) -> list[str]:
    """What to know before reading the differences."""
    first, *others = comparison.stored
    notes = []
    for entry, paired in zip(others, comparison.paired, strict=True):
        if paired:
            how = "the same images, batches and seed; means are compared pairwise, other numbers by their own errors"
        else:
            how = f"other {_distinctions(first.result, entry.result)}; standard errors as of independent measurements"
        notes.append(f"{entry.name} - {first.name}: {how}")
        if options := _other_options(first.result, entry.result):
            notes.append(f"{entry.name} and {first.name} differ in options: {options}")
        paths = [(each.result.subject or {}).get("smoothing") for each in (entry, first)]
        if all(paths) and paths[0] != paths[1]:
            notes.append(
                f"{entry.name} and {first.name} were computed with the smoothing operator {paths[0]} and {paths[1]}, "
                "which differ in rounding"
            )
    return notes


def _distinctions(first: AnalysisResult, other: AnalysisResult) -> str:
    """In what two results are not of the same images."""
    words = {"data_sha256": "images", "batch_size": "batch size", "seed": "seed"}
    subjects = first.subject or {}, other.subject or {}
    return ", ".join(word for key, word in words.items() if subjects[0].get(key) != subjects[1].get(key)) or "images"


def _other_options(first: AnalysisResult, other: AnalysisResult) -> str:
    """Options in which two results differ and that matter to what they hold."""
    config = importlib.import_module(f"analyze.{first.analysis}.spec").Config
    free = {*free_options(config, first), *free_options(config, other)}
    a, b = (dict(result.config or {}) for result in (first, other))
    return ", ".join(
        f"{key} {a.get(key)} and {b.get(key)}" for key in {**a, **b} if key not in free and a.get(key) != b.get(key)
    )


def _content(comparisons: Sequence[Comparison], figures: Sequence[Path]) -> dict[str, Any]:
    """What the JSON says."""
    found = {}
    for comparison in comparisons:
        names = [entry.name for entry in comparison.stored]
        found[comparison.analysis] = {
            "reference": names[0],
            "subjects": {entry.name: entry.result.subject for entry in comparison.stored},
            "paired": dict(zip(names[1:], comparison.paired, strict=True)),
            "notes": remarks(comparison),
            "quantities": [_line_content(line, names) for line in comparison.lines],
        }
    return {"analyses": found, "figures": [str(figure) for figure in figures]}


def _line_content(line: Line, names: Sequence[str]) -> dict[str, Any]:
    return {
        "name": line.name,
        "values": {
            name: {"value": plain(float(quantity.value)), "stderr": plain(quantity.error)}
            | ({} if quantity.bound is None else {"bound": plain(quantity.bound)})
            for name, quantity in zip(names, line.found, strict=True)
            if quantity is not None
        },
        "differences": {
            name: {"value": plain(found.value), "stderr": plain(found.error)}
            for name, found in zip(names[1:], line.differences, strict=True)
            if found is not None
        },
    }


if __name__ == "__main__":
    main()
