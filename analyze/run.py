"""The run file: what every analysis of one checkpoint found, in one HDF5 file that any HDF5 reader can open.

An analysis declares its result as a frozen dataclass of arrays, and `RunFile` keeps it:

    @dataclass(frozen=True)
    class Extremes:
        rank: np.ndarray = array("rank", doc="1 is the largest")
        largest: np.ndarray = array("rank", unit="nat", doc="largest eigenvalues, descending")

    with RunFile("A.h5", {"checkpoint_sha256": "..."}) as run:
        run.save("extremes", result, config={"ranks": 5}, complete=True, seconds=1.5)
    with open_run("A.h5") as run:
        result = run.load("extremes", Extremes)

A save replaces the file as a whole, so whoever reads it finds a complete one, whatever was killed and when.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import shlex
import shutil
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from analyze._lock import exclusive
from analyze._safe_hdf5 import (
    MAX_BYTES,
    MAX_TEXT,
    build_image,
    copy_contents,
    only_input_errors,
    open_checked,
    read_attributes,
)
from analyze.arrays import ResultType, read_result, write_result
from data_cache.errors import InputError

FORMAT = "landscope"
VERSION = 1
_RESERVED = {"format", "version", "command", "created", "modified"}


class RunReader:
    """A run file that `open_run` opened: a read-only view of what it says it is, and of its results."""

    attributes: dict[str, Any]
    """The root attributes: format, version, checkpoint, model, data, library versions, times ..."""

    def __init__(
        self,
        file: h5py.File,
        path: str | os.PathLike,
        max_bytes: int = MAX_BYTES,
        into: Collection[str] | None = None,
    ):
        self._file, self._max_bytes, self.path = file, max_bytes, Path(path)
        self._into = into
        with only_input_errors(path):
            self.attributes = read_attributes(file)
        version = self.attributes.get("version")
        if self.attributes.get("format") != FORMAT or not isinstance(version, int):
            raise InputError(f"{path} is an HDF5 file, but not a run file of {FORMAT}")
        if version > VERSION:
            raise InputError(f"{path} has the format version {version}; this {FORMAT} reads up to {VERSION}: update it")

    @property
    def analyses(self) -> list[str]:
        """The names of the groups that `RunFile.save` wrote, such as "hessian" or "robustness/heat_map".

        Only those at the top of a file that was opened with `into`.
        """
        names: list[str] = []
        if self._into is not None:
            with only_input_errors(self.path):
                top = {name: self._file[name] for name in self._file if re.fullmatch(r"\w[\w.-]*", name)}
                return [name for name, item in top.items() if isinstance(item, h5py.Group) and "config" in item.attrs]
        with only_input_errors(self.path):
            self._file.visititems(
                lambda name, item: (
                    names.append(name) if isinstance(item, h5py.Group) and "config" in item.attrs else None
                )
            )
        return names

    def load(self, name: str, cls: type[ResultType]) -> ResultType | None:
        """The stored, perhaps incomplete, result of an analysis; None if there is none."""
        if self._into is not None and name not in self._into:
            raise ValueError(f"{self.path} was opened to read {sorted(self._into)}, not {name!r}")
        group = self._group(name)
        return None if group is None else read_result(group, cls, max_bytes=self._max_bytes)

    def group_attributes(self, name: str) -> dict[str, Any] | None:
        """The attributes of an analysis, `config` and `subject` as dicts; None if it isn't there."""
        group = self._group(name)
        if group is None:
            return None
        with only_input_errors(self.path):
            attributes = read_attributes(group)
            for key in {"config", "subject"} & set(attributes):
                attributes[key] = json.loads(attributes[key])
                # JSON can smuggle in surrogates, which can't be printed
                json.dumps(attributes[key], ensure_ascii=False).encode("utf-8")
                if not isinstance(attributes[key], dict):
                    raise InputError(f"{self.path}: the attribute {key!r} of {name!r} isn't a JSON object")
        return attributes

    def _group(self, name: str) -> h5py.Group | None:
        with only_input_errors(self.path):
            found = self._file.get(_checked_name(name))
        return found if isinstance(found, h5py.Group) else None


@contextmanager
def open_run(
    path: str | os.PathLike, *, max_bytes: int = MAX_BYTES, into: Collection[str] | None = None
) -> Iterator[RunReader]:
    """Open a run file, which may come from a stranger, for reading.

    With `into`, only groups of these names, such as "robustness/clean", can be loaded, and attributes read of them and
    of the groups at the top: that takes a fraction of the time, for only this is checked.

    Raises InputError that names the file if it isn't a run file, is damaged, points outside of itself, or
    holds more than `max_bytes`, and nothing else whatever is in it.
    """
    if not os.path.exists(path):
        raise InputError(f"{path} doesn't exist")
    with open_checked(path, max_bytes=max_bytes, into=into) as file:
        yield RunReader(file, path, max_bytes, into)


# Writing


class RunFile:
    """The one writer of a run file, as a context manager.

    `identity` says what the file is about (checkpoint, model, data ...: str, int or float) and becomes its
    root attributes. The fields named by `must_match` can't differ from those of an existing file. Entering
    checks all that can be checked before long work, and locks the file until exit. InputError if the file
    belongs to another checkpoint, is damaged or not a run file, is being written by another process, or can't
    be written.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        identity: Mapping[str, str | int | float],
        *,
        must_match: Iterable[str] = ("checkpoint_sha256",),
    ):
        if "\0" in os.fspath(path):
            raise InputError(f"{os.fspath(path)!r} can't be the name of a file")
        if taken := _RESERVED & set(identity):
            raise ValueError(f"{sorted(taken)} can't be fields of an identity: the run file sets them itself")
        self.path = Path(path)
        self._target = Path(os.path.realpath(path))
        self._identity = {key: _attribute(key, value) for key, value in identity.items()}
        self._must_match = tuple(must_match)
        self._resources = ExitStack()

    def __enter__(self) -> RunFile:
        with ExitStack() as resources, self._output_errors():
            if self._target.is_dir():
                raise InputError(f"{self.path} is a folder; give --out a file name")
            self._target.parent.mkdir(parents=True, exist_ok=True)
            resources.enter_context(exclusive(self._sibling("lock"), self.path))
            self._remove_stale()
            self._check_existing()
            self._write(b"\0" * 4096, replace=False)
            self._resources = resources.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._resources.close()

    def save(
        self,
        name: str,
        result: Any,
        *,
        config: Mapping[str, Any],
        complete: bool,
        seconds: float,
        subject: Mapping[str, Any] | None = None,
        **attributes: str | int | float | bool,
    ) -> None:
        """Replace the group `name` ("hessian", "robustness/heat_map") by this result, and nothing else.

        The whole file is written anew beside the old one, forced to the disk, and renamed over it. Raises
        InputError if that fails (a full disk, say), and ValueError for a result that can't be stored; the old
        file stays then. The new file is put together in memory, so every save costs as much memory and
        writing as the whole file has.
        """
        attributes |= {"config": _json(config), "complete": bool(complete), "seconds": float(seconds)}
        attributes |= {"command": _command(), "modified": _now()}
        if subject is not None:
            attributes["subject"] = _json(subject)
        attributes = {key: _attribute(key, value) for key, value in attributes.items()}

        def fill(file: h5py.File) -> None:
            if self._target.exists():
                with open_checked(self._target, max_bytes=self._limit()) as old, only_input_errors(self.path):
                    copy_contents(old, file, skip="/" + _checked_name(name))
            versions = {f"{library}_version": version for library, version in library_versions().items()}
            root = {"format": FORMAT, "version": VERSION, **self._identity, **versions}
            root |= {"command": attributes["command"], "modified": attributes["modified"]}
            for key, value in root.items():
                file.attrs[key] = value
            file.attrs.setdefault("created", attributes["modified"])
            group = file.create_group(_checked_name(name))
            for key, value in attributes.items():
                group.attrs[key] = value
            write_result(group, result)

        with self._output_errors():
            self._write(build_image(fill), replace=True)

    def load(self, name: str, cls: type[ResultType]) -> ResultType | None:
        """The stored, perhaps incomplete, result of an analysis; None if there is none."""
        with self._reader() as run:
            return None if run is None else run.load(name, cls)

    def attributes(self, name: str) -> dict[str, Any] | None:
        """The attributes of an analysis, `config` and `subject` as dicts; None if it isn't there."""
        with self._reader() as run:
            return None if run is None else run.group_attributes(name)

    def check_resume(
        self,
        name: str,
        config: Mapping[str, Any],
        subject: Mapping[str, Any] | None = None,
        *,
        ignore: Iterable[str] = (),
    ) -> bool:
        """Whether the analysis has a stored result to go on from; InputError if its config or subject differ.

        Fields named in `ignore` may differ, in both.
        """
        stored = self.attributes(name)
        if stored is None:
            return False
        for kind, given in (("config", config), ("subject", subject or {})):
            order, given, found = list(given), json.loads(_json(given)), stored.get(kind) or {}
            for field in [*order, *(key for key in found if key not in given)]:
                if field not in set(ignore) and _json(given.get(field)) != _json(found.get(field)):
                    raise InputError(
                        f"{self.path}: {name!r} was computed with {kind} {field} = {found.get(field)!r}, "
                        f"not {given.get(field)!r}; use --restart to replace it, or another --out"
                    )
        return True

    def _limit(self) -> int:
        """The user's own file may be large; what it unpacks to may not be out of proportion."""
        return max(MAX_BYTES, 2 * self._target.stat().st_size)

    @contextmanager
    def _reader(self) -> Iterator[RunReader | None]:
        if not self._target.exists():
            yield None
        else:
            with open_checked(self._target, max_bytes=self._limit()) as file:
                yield RunReader(file, self.path, self._limit())

    def _check_existing(self) -> None:
        if not os.path.lexists(self._target):
            return
        try:
            with self._reader() as run:
                stored = run.attributes if run else {}
        except InputError as error:
            raise InputError(f"{error}; move it away, or give another --out") from error
        for field in self._must_match:
            if stored.get(field) != self._identity.get(field):
                names = [about.get("checkpoint") for about in (stored, self._identity)]
                raise InputError(
                    f"{self.path} is of {field} {stored.get(field)!r}, not {self._identity.get(field)!r}"
                    + (f" (of {names[0]}, not {names[1]})" if names[0] != names[1] else "")
                    + "; give another --out"
                )
        if not os.access(self._target, os.W_OK):
            raise InputError(f"{self.path} is read-only; give another --out")

    def _sibling(self, suffix: str) -> Path:
        return self._target.with_name(f".{self._target.name}.{suffix}")

    def _remove_stale(self) -> None:
        """Remove what killed writers left; nobody else writes while we hold the lock."""
        pattern = re.compile(re.escape(self._sibling("tmp").name) + r"-\d+")
        for entry in list(os.scandir(self._target.parent)):
            if pattern.fullmatch(entry.name):
                os.unlink(entry.path)

    def _write(self, content: bytes | memoryview, *, replace: bool) -> None:
        temporary = self._sibling(f"tmp-{os.getpid()}")
        try:
            with open(temporary, "xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if replace:
                if self._target.exists():
                    shutil.copymode(self._target, temporary)
                os.replace(temporary, self._target)
                _sync_folder(self._target.parent)
        finally:
            temporary.unlink(missing_ok=True)

    @contextmanager
    def _output_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(f"{self.path} can't be written: {error.strerror or error}; give another --out") from error


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _checked_name(name: str) -> str:
    if not all(re.fullmatch(r"\w[\w.-]*", part) for part in name.split("/")):
        raise ValueError(f"{name!r} can't be the name of an analysis")
    return name


def _attribute(key: str, value: Any) -> Any:
    """The value as it can be stored, and read back by `open_run`."""
    if isinstance(value, str):
        value = value.encode("utf-8", "backslashreplace").decode("utf-8").replace("\0", "\\0")
        if len(value) > MAX_TEXT:
            raise ValueError(f"the attribute {key!r} has over {MAX_TEXT} characters")
    elif not isinstance(value, int | float | np.number | np.bool_):
        raise ValueError(f"the attribute {key!r} is neither text nor a number: {value!r}")
    return value


def _json(value: Any) -> str:
    def plain(item: Any) -> Any:
        if isinstance(item, np.ndarray | np.generic):
            return item.tolist()
        if isinstance(item, os.PathLike):
            return os.fspath(item)
        raise TypeError(f"{item!r} can't be stored as JSON")

    return json.dumps(value, sort_keys=True, default=plain)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _command() -> str:
    launcher = ""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and "LOCAL_WORLD_SIZE" in os.environ:
        hosts, processes = os.environ.get("GROUP_WORLD_SIZE", "1"), os.environ["LOCAL_WORLD_SIZE"]
        launcher = f"torchrun --nnodes {hosts} --nproc-per-node {processes}: "
    return (launcher + shlex.join(sys.orig_argv))[: MAX_TEXT // 16]


def library_versions() -> dict[str, str]:
    """The versions of what the numbers may depend on; loads none of it."""
    versions = {"python": platform.python_version()}
    for library in (FORMAT, "numpy", "torch", "h5py"):
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            versions[library] = "unknown"
    return versions
