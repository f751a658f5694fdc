"""The run files below a folder: what each holds, and its results, read safely and once. No streamlit, no torch."""

from __future__ import annotations

import importlib
import logging
import math
import os
import stat
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from analyze import analyses
from analyze.results import AnalysisResult
from analyze.run import open_run
from data_cache import InputError, paths

SUFFIXES = (".h5", ".hdf5")
SHIPPED = "shipped"
"""Folder of the results that ship, below that of all results."""
_KEPT = 96
"""Results that stay in memory."""

T = TypeVar("T")


@dataclass(frozen=True)
class Analysis:
    """What a run file says of one analysis."""

    complete: bool
    seconds: float
    """Spent on it; NaN if unknown."""
    command: str
    """The command line that made it, as the file has it: any text."""
    subject: Mapping[str, Any]
    """What it is of."""
    config: Mapping[str, Any]
    """Its options."""


@dataclass(frozen=True)
class Run:
    """A run file as it was when it was listed; what is in it is read once it is asked for."""

    key: str
    """Path below the root with slashes, such as "shipped/resnet_dnn_18.h5"; unique."""
    path: Path
    name: str
    """For legends: the file's stem, or the key without suffix where stems clash."""
    modified: float
    """Seconds since 1970."""
    size: int
    """Bytes."""

    @property
    def analyses(self) -> Mapping[str, Analysis]:
        """By name, in the order in which they are run."""
        return self._contents[0]

    @property
    def attributes(self) -> Mapping[str, Any]:
        """Of the file as a whole: model, data, versions, times."""
        return self._contents[1]

    @property
    def problem(self) -> str:
        """One sentence if the file can't be read."""
        return self._contents[2]

    @cached_property
    def _contents(self) -> tuple[Mapping[str, Analysis], Mapping[str, Any], str]:
        return _read_contents(self.path, self.key)


class KeyNumber(NamedTuple):
    """A number that tells networks apart."""

    value: float
    error: float
    """Standard error, or an eigenvalue's residual; NaN if there is none."""


class _Cache:
    """The last values of a function of files, by file, time and size; the oldest go first."""

    def __init__(self, most: int):
        self._most, self._lock = most, threading.Lock()
        self._values: OrderedDict[tuple, Any] = OrderedDict()

    def get(self, path: Path, further: tuple, make: Callable[[], T]) -> T:
        """The value for the file as it is now; what `make` raises is not kept."""
        status = path.stat()
        key = (str(path), status.st_mtime_ns, status.st_size, *further)
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        value = make()
        with self._lock:
            self._values[key] = value
            while len(self._values) > self._most:
                self._values.popitem(last=False)
        return value


_contents, _results, _numbers = _Cache(5000), _Cache(_KEPT), _Cache(5000)


def shipped_folder() -> Path | None:
    """Where results that ship lie; None without a checkout."""
    base = paths.shipped()
    return None if base is None else base / "results" / SHIPPED


def list_runs(root: Path) -> list[Run]:
    """All run files below a folder, by key, none of them opened; a bad one will say its problem.

    Hidden files, links that lead out of the folder, and pipes and the like are left out. Below the default folder of
    results the shipped ones are listed too, wherever `$LANDSCOPE_CACHE` has put it.
    """
    found = _files(root)
    return [
        Run(key, path, name, status.st_mtime, status.st_size)
        for (key, (path, status)), name in zip(found.items(), _names(list(found), root.resolve().name), strict=True)
    ]


def printable(path: Path) -> str:
    """A path, whose bytes may be any, as text."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def find(runs: Sequence[Run], name: str) -> Run | None:
    """The run that a URL calls by its name, its key or its file's stem; the one nearest to the root if several are."""
    nearest = sorted(runs, key=lambda run: run.key.count("/"))
    callings: tuple[Callable[[Run], str], ...] = (lambda run: run.name, lambda run: run.key, lambda run: run.path.stem)
    return next((run for called in callings for run in nearest if called(run) == name), None)


def signature(root: Path) -> int:
    """A number that differs when a run file came, went or grew; looks into none."""
    return hash(tuple((key, status.st_mtime_ns, status.st_size) for key, (_, status) in _files(root).items()))


def load(run: Run, analysis: str) -> AnalysisResult:
    """The result of an analysis in a run file, as it is now; the last ones read stay in memory.

    Raises:
        InputError: The file can't be read, or holds no such result, or does not say what it is of.
    """
    return _sentence(run.key, run.path, lambda: _results.get(run.path, (analysis,), lambda: _load(run, analysis)))


def key_numbers(run: Run) -> dict[str, KeyNumber]:
    """A few numbers that tell networks apart, where the file holds them; empty if it can't be read.

    accuracy and nll are of the images of the robustness analysis, eigenvalue and trace of those of the Hessian's.
    """
    try:
        return {} if run.problem else _numbers.get(run.path, (), lambda: _read_numbers(run))
    except OSError:  # gone meanwhile
        return {}


class Numbers:
    """What many runs hold and their key numbers: those that take long come later.

    Args:
        runs: Those that matter most come first.
        seconds: How long to read now.
    """

    _one_reads = threading.Lock()

    def __init__(self, runs: Sequence[Run], seconds: float = 0.3):
        deadline = time.monotonic() + seconds
        self._found: dict[str, dict[str, KeyNumber]] = {}
        self._left = list(dict.fromkeys(runs))
        while self._left and time.monotonic() < deadline:
            self._read()

    def go_on(self) -> None:
        """Read the others in a thread of its own."""
        if self._left:
            threading.Thread(target=self._read_all, daemon=True).start()

    def _read(self) -> None:
        run = self._left[0]
        self._found[run.key] = key_numbers(run)
        self._left.pop(0)

    def _read_all(self) -> None:
        with self._one_reads:  # a second thread finds what the first has read
            while self._left:
                self._read()

    @property
    def left(self) -> int:
        """How many runs are still to be read."""
        return len(self._left)

    def of(self, run: Run) -> dict[str, KeyNumber] | None:
        """Key numbers of a run; None if it is still to be read."""
        return self._found.get(run.key)


def _names(keys: Sequence[str], root: str) -> list[str]:
    """Short names by which all can be told apart: stems, paths without suffix from the root on, or keys.

    Results that ship keep their stems, so that a link to them means the same whatever else there is.
    """
    stems = [Path(key).stem for key in keys]
    longer = [(key if "/" in key else f"{root}/{key}").rpartition(".")[0] for key in keys]
    count = Counter(stems)
    names = [
        stem if count[stem] == 1 or key.startswith(f"{SHIPPED}/") else long
        for key, stem, long in zip(keys, stems, longer, strict=True)
    ]
    count = Counter(names)
    return [name if count[name] == 1 else key for key, name in zip(keys, names, strict=True)]


def _files(root: Path) -> dict[str, tuple[Path, os.stat_result]]:
    """Run files below the root and their status, by key."""
    found = _walk(root, "")
    shipped = shipped_folder()
    if shipped is not None and root.resolve() == paths.results().resolve():
        found = _walk(shipped, f"{SHIPPED}/") | found
    return dict(sorted(found.items()))


def _walk(root: Path, prefix: str) -> dict[str, tuple[Path, os.stat_result]]:
    found = {}
    real = root.resolve()
    for folder, folders, names in os.walk(root, followlinks=False):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(folder, name)
            if name.startswith(".") or path.suffix.lower() not in SUFFIXES:
                continue
            try:
                if path.is_symlink() and not path.resolve().is_relative_to(real):
                    continue
                status = path.stat()
                if not stat.S_ISREG(status.st_mode):  # to open a pipe is to wait for whoever writes into it
                    continue
                found[prefix + printable(path.relative_to(root))] = (path, status)
            except (OSError, RuntimeError):  # gone meanwhile, or a link to itself
                continue
    return found


def _read_contents(path: Path, key: str) -> tuple[Mapping[str, Analysis], Mapping[str, Any], str]:
    def read() -> tuple[Mapping[str, Analysis], Mapping[str, Any], str]:
        try:
            return *_open_contents(path), ""
        except InputError as error:
            return {}, {}, _named(error, path, key).rstrip(".") + "."

    try:
        return _contents.get(path, (), read)
    except OSError as error:
        return {}, {}, f"{key} can't be read: {error.strerror or error}."


def _open_contents(path: Path) -> tuple[Mapping[str, Analysis], Mapping[str, Any]]:
    with open_run(path, into=()) as run:
        held = set(run.analyses)
        contents = {name: _analysis(run.group_attributes(name) or {}) for name in analyses() if name in held}
        return contents, dict(run.attributes)


def _analysis(attributes: Mapping[str, Any]) -> Analysis:
    seconds = attributes.get("seconds")
    return Analysis(
        complete=bool(attributes.get("complete")),
        seconds=float(seconds) if isinstance(seconds, int | float) else math.nan,
        command=str(attributes.get("command", "")),
        subject=attributes.get("subject", {}),
        config=attributes.get("config", {}),
    )


def _load(run: Run, analysis: str) -> AnalysisResult:
    from analyze.cli import describe

    with open_run(run.path, into=(analysis,)) as file:
        attributes = file.group_attributes(analysis)
        if attributes is None or analysis not in analyses():
            raise InputError(f"{run.path} holds no {analysis} analysis.")
        result = file.load(analysis, importlib.import_module(f"analyze.{analysis}.spec").Result)
    assert result is not None
    subject = attributes.get("subject", {})
    try:
        describe(subject)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{run.path}: {analysis!r} does not say what it is of ({error}).") from error
    return result.of(attributes.get("config", {}), subject)


def _read_numbers(run: Run) -> dict[str, KeyNumber]:
    numbers: dict[str, KeyNumber] = {}
    try:
        _add_numbers(numbers, run.path)
    except Exception as error:  # a run file may hold anything; what was found until then is good
        logging.getLogger("landscope").info("%s: no more key numbers (%s)", run.key, error)
    return numbers


def _add_numbers(numbers: dict[str, KeyNumber], path: Path) -> None:
    from analyze.hessian.spec import Extremes, Trace
    from analyze.robustness.spec import Clean

    with open_run(path, into=("robustness/clean", "hessian/extremes", "hessian/trace")) as file:
        if clean := file.load("robustness/clean", Clean):
            numbers["accuracy"] = KeyNumber(clean.accuracy, clean.accuracy_stderr)
            numbers["nll"] = KeyNumber(clean.nll, clean.nll_stderr)
        if (extremes := file.load("hessian/extremes", Extremes)) and len(extremes.largest):
            numbers["eigenvalue"] = KeyNumber(float(extremes.largest[0]), float(extremes.largest_residual[0]))
        if trace := file.load("hessian/trace", Trace):
            numbers["trace"] = KeyNumber(trace.estimate, trace.stderr)


def _sentence(key: str, path: Path, read: Callable[[], T]) -> T:
    try:
        return read()
    except InputError as error:
        raise InputError(_named(error, path, key)) from error
    except OSError as error:
        raise InputError(f"{key} can't be read: {error.strerror or error}.") from error


def _named(error: InputError, path: Path, key: str) -> str:
    """The sentence with the key in place of the path, which may be of any bytes."""
    return str(error).replace(str(path), key)
