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

import dataclasses
import importlib.metadata
import json
import os
import platform
import re
import shlex
import shutil
import socket
import sys
import types
import typing
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np

from analyze._safe_hdf5 import (
    MAX_BYTES,
    MAX_TEXT,
    build_image,
    copy_contents,
    only_input_errors,
    open_checked,
    read_array,
    read_attributes,
)
from data_cache.errors import InputError

FORMAT = "landscope"
VERSION = 1
_RESERVED = {"format", "version", "command", "created", "modified"}

_SCALARS = (bool, int, float, str)

ResultType = TypeVar("ResultType")


# Results: dataclasses of arrays <-> HDF5 groups


@dataclasses.dataclass(frozen=True)
class _Array:
    dims: tuple[str, ...] | None
    unit: str
    doc: str


def array(*dims: str, unit: str = "", doc: str = "") -> Any:
    """A field of a result that holds an array with these named dimensions, or a scalar if there are none.

    Numbers up to 64 bits, booleans, and strings in at most one dimension. The field may also be annotated
    `bool`, `int`, `float` or `str` (without dimensions), and comes back as that; `| None` lets it be absent.
    A field with one dimension and the same name is that dimension's coordinate. Write units in short ("s",
    not "seconds": xarray turns a unit "seconds" into timedeltas).
    """
    if len(set(dims)) < len(dims):
        raise ValueError(f"dimensions of an array need different names, not {dims}")
    return dataclasses.field(metadata={"array": _Array(dims, unit, doc)})


def arrays(*, unit: str = "", doc: str = "") -> Any:
    """A field that holds a dict of arrays of any shapes, such as one for each parameter of a model.

    It becomes a sub-group. Its dimensions are named by axis and length: an 8x3 array has the dimensions
    `axis0_8` and `axis1_3`.
    """
    return dataclasses.field(metadata={"array": _Array(None, unit, doc)})


@dataclasses.dataclass(frozen=True)
class _Member:
    name: str
    type: Any
    optional: bool
    array: _Array | None


def _members(cls: type) -> list[_Member]:
    """How the fields of a result dataclass are stored; a field that can't be is a TypeError."""
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        raise TypeError(f"a result is a dataclass, not {cls!r}")
    hints = typing.get_type_hints(cls)
    members = []
    for field in dataclasses.fields(cls):
        choices = [hints[field.name]]
        if typing.get_origin(choices[0]) in (typing.Union, types.UnionType):
            choices = list(typing.get_args(choices[0]))
        kind = next(choice for choice in choices if choice is not type(None))
        spec = field.metadata.get("array")
        if spec is None and not dataclasses.is_dataclass(kind):
            raise TypeError(
                f"{cls.__name__}.{field.name} is neither declared by array() nor a result dataclass"
            )
        members.append(_Member(field.name, kind, type(None) in choices, spec))
    return members


def write_result(group: h5py.Group, result: Any) -> None:
    """Write a result dataclass into an empty group, with dimension scales, units and descriptions.

    Raises ValueError if arrays don't fit their dimensions or each other, or hold what a run file can't.
    """
    datasets, nested = {}, {}
    for member in _members(type(result)):
        value = getattr(result, member.name)
        if value is None and member.optional:
            continue
        if member.array is None:
            nested[member.name] = value
        elif member.array.dims is None:
            nested[member.name] = {key: (item, member.array) for key, item in value.items()}
        else:
            if member.type in _SCALARS:
                if value == value and member.type(value) != value:
                    raise ValueError(
                        f"{member.name!r} is declared as {member.type.__name__}, but is {value!r}"
                    )
                value = member.type(value)
            datasets[member.name] = (_storable(member.name, value), member.array)
    _write_datasets(group, datasets, reserved=set(nested))
    for name, value in nested.items():
        if isinstance(value, dict):
            _write_datasets(
                group.create_group(name), {key: _anonymous(key, *item) for key, item in value.items()}
            )
        else:
            write_result(group.create_group(name), value)


def read_result(group: h5py.Group, cls: type[ResultType], *, max_bytes: int = MAX_BYTES) -> ResultType:
    """Read what `write_result` wrote; InputError if the group doesn't hold a `cls`."""
    members = _members(cls)
    where = f"{group.file.filename}: {group.name!r}"
    with only_input_errors(group.file.filename):
        values, lengths = {}, {}
        for member in members:
            stored = group.get(member.name)
            if stored is None and member.optional:
                values[member.name] = None
                continue
            is_group = member.array is None or member.array.dims is None
            if not isinstance(stored, h5py.Group if is_group else h5py.Dataset):
                raise InputError(f"{where} lacks {member.name!r}, so it doesn't hold {cls.__name__}")
            if member.array is None:
                values[member.name] = read_result(stored, member.type, max_bytes=max_bytes)
            elif member.array.dims is None:
                values[member.name] = {
                    key: read_array(item, max_bytes=max_bytes)
                    for key, item in stored.items()
                    if isinstance(item, h5py.Dataset) and not h5py.h5ds.is_scale(item.id)
                }
            else:
                _check_shape(f"{where}/{member.name}", stored.shape, member.array.dims, lengths, InputError)
                value = read_array(stored, max_bytes=max_bytes)
                values[member.name] = member.type(value.item()) if member.type in _SCALARS else value
    return cls(**values)


def _storable(name: str, value: Any) -> np.ndarray:
    values = np.asarray(value)
    if values.dtype.kind in "OTU":
        texts = values.astype(object).ravel()
        if values.ndim > 1 or not all(isinstance(text, str) and "\0" not in text for text in texts):
            raise ValueError(
                f"{name!r} is neither numbers nor a string nor a list of strings (without NUL characters)"
            )
        for text in texts:
            text.encode("utf-8")
        return values.astype(object)
    if values.dtype.kind not in "biuf" or values.dtype.itemsize > 8:
        raise ValueError(
            f"{name!r} has the type {values.dtype}; numbers up to 64 bits, booleans and strings can be stored"
        )
    return values


def _anonymous(name: str, value: Any, spec: _Array) -> tuple[np.ndarray, _Array]:
    values = _storable(name, value)
    dims = tuple(f"axis{axis}_{length}" for axis, length in enumerate(values.shape))
    return values, dataclasses.replace(spec, dims=dims)


def _check_shape(
    name: str, shape: tuple[int, ...], dims: tuple[str, ...], lengths: dict[str, int], error: type[ValueError]
) -> None:
    if len(shape) != len(dims):
        raise error(f"{name} has the shape {shape}, but the dimensions {dims}")
    for dim, length in zip(dims, shape, strict=True):
        if lengths.setdefault(dim, length) != length:
            raise error(
                f"{name} has the shape {shape}, but the dimension {dim!r} also the length {lengths[dim]}"
            )


def _write_datasets(
    group: h5py.Group, datasets: Mapping[str, tuple[np.ndarray, _Array]], reserved: Iterable[str] = ()
) -> None:
    lengths: dict[str, int] = {}
    for name, (values, spec) in datasets.items():
        if name in ("", ".", "..") or "/" in name:
            raise ValueError(f"{name!r} can't be the name of an array")
        _check_shape(f"{name!r}", values.shape, spec.dims, lengths, ValueError)
    scales = {}
    for dim, length in lengths.items():
        if dim in reserved or (dim in datasets and datasets[dim][1].dims != (dim,)):
            raise ValueError(
                f"{dim!r} names a dimension, so the field of this name must be its 1-D coordinate"
            )
        values, spec = datasets.get(dim) or (np.arange(length), _Array((dim,), "", f"index along {dim}"))
        scales[dim] = _write_dataset(group, dim, values, spec)
        scales[dim].make_scale(dim)
    for name, (values, spec) in datasets.items():
        if name not in scales:
            dataset = _write_dataset(group, name, values, spec)
            for axis, dim in enumerate(spec.dims):
                dataset.dims[axis].attach_scale(scales[dim])


def _write_dataset(group: h5py.Group, name: str, values: np.ndarray, spec: _Array) -> h5py.Dataset:
    text = values.dtype.kind == "O"
    dataset = group.create_dataset(name, values.shape, h5py.string_dtype() if text else values.dtype)
    if values.size:
        dataset[()] = values if values.ndim else values.item() if text else values
    dataset.attrs["units"] = spec.unit or ("" if text else "1")
    dataset.attrs["long_name"] = spec.doc or name
    return dataset


# Reading


class RunReader:
    """A run file that `open_run` opened: a read-only view of what it says it is, and of its results."""

    attributes: dict[str, Any]
    """The root attributes: format, version, checkpoint, model, data, library versions, times ..."""

    def __init__(self, file: h5py.File, path: str | os.PathLike, max_bytes: int = MAX_BYTES):
        self._file, self._max_bytes, self.path = file, max_bytes, Path(path)
        with only_input_errors(path):
            self.attributes = read_attributes(file)
        version = self.attributes.get("version")
        if self.attributes.get("format") != FORMAT or not isinstance(version, int):
            raise InputError(f"{path} is an HDF5 file, but not a run file of {FORMAT}")
        if version > VERSION:
            raise InputError(
                f"{path} has the format version {version}; this {FORMAT} reads up to {VERSION}: update it"
            )

    @property
    def analyses(self) -> list[str]:
        """The names of the groups that `RunFile.save` wrote, such as "hessian" or "robustness/heat_map"."""
        names: list[str] = []
        with only_input_errors(self.path):
            self._file.visititems(
                lambda name, item: (
                    names.append(name) if isinstance(item, h5py.Group) and "config" in item.attrs else None
                )
            )
        return names

    def load(self, name: str, cls: type[ResultType]) -> ResultType | None:
        """The stored, perhaps incomplete, result of an analysis; None if there is none."""
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
                if not isinstance(attributes[key], dict):
                    raise InputError(f"{self.path}: the attribute {key!r} of {name!r} isn't a JSON object")
        return attributes

    def _group(self, name: str) -> h5py.Group | None:
        with only_input_errors(self.path):
            found = self._file.get(_checked_name(name))
        return found if isinstance(found, h5py.Group) else None


@contextmanager
def open_run(path: str | os.PathLike, *, max_bytes: int = MAX_BYTES) -> Iterator[RunReader]:
    """Open a run file, which may come from a stranger, for reading.

    Raises InputError that names the file if it isn't a run file, is damaged, points outside of itself, or
    holds more than `max_bytes`, and nothing else whatever is in it.
    """
    if not os.path.exists(path):
        raise InputError(f"{path} doesn't exist")
    with open_checked(path, max_bytes=max_bytes) as file:
        yield RunReader(file, path, max_bytes)


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
            resources.enter_context(_exclusive(self._sibling("lock"), self.path))
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
            return run and run.load(name, cls)

    def attributes(self, name: str) -> dict[str, Any] | None:
        """The attributes of an analysis, `config` and `subject` as dicts; None if it isn't there."""
        with self._reader() as run:
            return run and run.group_attributes(name)

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
            given, found = json.loads(_json(given)), stored.get(kind) or {}
            for field in [*given, *(key for key in found if key not in given)]:
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
                raise InputError(
                    f"{self.path} is of {field} {stored.get(field)!r}, not {self._identity.get(field)!r}; "
                    "give another --out"
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
            raise InputError(
                f"{self.path} can't be written: {error.strerror or error}; give another --out"
            ) from error


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
    return shlex.join(sys.orig_argv)[: MAX_TEXT // 16]


def library_versions() -> dict[str, str]:
    """The versions of what the numbers may depend on; loads none of it."""
    versions = {"python": platform.python_version()}
    for library in (FORMAT, "numpy", "torch", "h5py"):
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            versions[library] = "unknown"
    return versions


# The lock


_descriptors: set[int] = set()


def _forget_locks() -> None:
    for descriptor in _descriptors:
        os.close(descriptor)
    _descriptors.clear()


if hasattr(os, "register_at_fork"):  # a forked worker that outlives a killed writer must not keep its lock
    os.register_at_fork(after_in_child=_forget_locks)


@contextmanager
def _exclusive(lock: Path, path: Path) -> Iterator[None]:
    """Hold an exclusive lock on the file `lock`, which the kernel releases however the process ends.

    The file is removed at the end. A process that opened it before, and locks it after, holds a lock on a
    file that is gone: it sees that and tries again.
    """
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            _try_lock(descriptor)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(lock)):
                    break
        except BlockingIOError:
            holder = "".join(filter(str.isprintable, os.read(descriptor, 200).decode("utf-8", "replace")))
            os.close(descriptor)
            raise InputError(
                f"{path} is being written by another process ({holder or 'just started'}); "
                "wait for it, or give another --out"
            ) from None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
    _descriptors.add(descriptor)
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"pid {os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        if descriptor in _descriptors:
            _descriptors.discard(descriptor)
            if os.name == "posix":
                lock.unlink(missing_ok=True)
            os.close(descriptor)
            if (
                os.name != "posix"
            ):  # Windows doesn't unlink open files, nor files that the next writer has open
                with suppress(OSError):
                    lock.unlink()


def _try_lock(descriptor: int) -> None:
    """Lock, or raise BlockingIOError."""
    try:
        import fcntl
    except ImportError:
        import msvcrt

        os.lseek(descriptor, 1 << 30, os.SEEK_SET)  # Windows' locks also stop readers, who want the pid
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise BlockingIOError from error
        finally:
            os.lseek(descriptor, 0, os.SEEK_SET)
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        warnings.warn(f"this file system has no locks ({error}): start one writer at a time", stacklevel=2)
