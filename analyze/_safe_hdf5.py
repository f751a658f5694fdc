"""Read HDF5 files that strangers wrote: everything is looked at before anything is read.

HDF5 can point outside of its own file (external and soft links, external storage, virtual datasets), load
code (dynamic filters), and describe terabytes in a kilobyte (chunked, compressed, or shared variable-length
data). `open_checked` walks all links, types, sizes and filters without following or reading any of it, and
refuses a file that has what a run file never needs. Whatever goes wrong in a file is an `InputError`.

What it doesn't do: protect from bugs in the HDF5 library itself. It avoids those that accidents run into
(files without checksums, inconsistent heaps), not those that a crafted file with right checksums may exploit.
"""

from __future__ import annotations

import io
import math
import mmap
import os
import stat
import struct
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import h5py
import numpy as np
from h5py import h5a, h5d, h5ds, h5g, h5l, h5o, h5s, h5t, h5z

from data_cache.errors import InputError

MAX_BYTES = 2 << 30
MAX_OBJECTS = 100_000
MAX_DEPTH = 16
MAX_ATTRIBUTES = 1_000
MAX_TEXT = 1 << 20
"""Characters in one string attribute, and bytes in any other attribute."""

_LZF = 32000
_FILTERS = {h5z.FILTER_DEFLATE, h5z.FILTER_SHUFFLE, h5z.FILTER_FLETCHER32, _LZF}
_DEFLATE_RATIO = 1032
"""What a byte of deflate can grow to at most (zlib's technical notes); LZF stays below."""

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_HEAP = b"GCOL\x01\0\0\0"

_SCALE_LISTS = {"DIMENSION_LIST", "REFERENCE_LIST"}
"""The attributes in which dimension scales keep object references, the only ones that are let through."""


@contextmanager
def only_input_errors(path: str | os.PathLike) -> Iterator[None]:
    """Turn whatever reading a bad file raises into one `InputError` that names the file."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # h5py raises any of a dozen types for a damaged file; none of them is a bug of ours
        lines = str(error).splitlines() or [type(error).__name__]
        raise InputError(f"{path} can't be read: damaged, or not an HDF5 file ({lines[0][:200]})") from error


@contextmanager
def open_checked(
    path: str | os.PathLike, *, max_bytes: int = MAX_BYTES, into: Collection[str] | None = None
) -> Iterator[h5py.File]:
    """Open the HDF5 file `path` for reading, after all of its structure was checked.

    With `into`, paths of groups such as "robustness/clean", only the top level and what lies in these groups was:
    the rest must not be read.

    Raises `InputError` that names the file and the object if it is not a regular HDF5 file, if it holds links
    other than plain hard ones, data outside of the file, references, exotic types or filters, more than
    100 000 objects, or if all its data together, once decompressed, would exceed `max_bytes`.
    """
    with only_input_errors(path):
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path} is not a regular file")
        if status.st_size > max_bytes:
            raise InputError(f"{path} has {status.st_size} bytes; the limit is {max_bytes}")
        _check_format(path)
        _check_heaps(path)
        file = h5py.File(path, "r", locking=False)
    try:
        with only_input_errors(path):
            _Inspection(path, status.st_size, max_bytes, into).walk(file)
        yield file
    finally:
        with only_input_errors(path):
            file.close()


def _check_format(path: str | os.PathLike) -> None:
    """Refuse the older format: it has no checksums, and HDF5 2.0 crashes on one damaged byte in 1000."""
    with open(path, "rb") as file:
        head = file.read(9)
    if len(head) < 9 or not head.startswith(_SIGNATURE):
        raise InputError(f"{path} is {'empty' if not head else 'not an HDF5 file'}")
    if head[8] < 2:
        raise InputError(f"{path} is an HDF5 file of the format before 1.8, without checksums; a run file never is")


def _check_heaps(path: str | os.PathLike) -> None:
    """Check the global heaps, where HDF5 keeps variable-length strings.

    Of all metadata only they have no checksum, and HDF5 2.0 runs forever over one with an object of size 0.
    (HDF5 file format specification, section III.E.)
    """
    with open(path, "rb") as file, _mapped(file) as content:
        start = content.find(_HEAP)
        while start >= 0:
            (size,) = struct.unpack_from("<Q", content, start + 8)
            position, end = start + 16, start + size
            while position + 16 <= end <= len(content):
                index, length = struct.unpack_from("<H6xQ", content, position)
                position += 16 + -(-length // 8) * 8 if index else length
                if position > end or (index == 0 and position != end):
                    break
            if not end - 16 < position <= end <= len(content):
                raise InputError(f"{path} is damaged: the heap of strings at byte {start} is inconsistent")
            start = content.find(_HEAP, end)


@contextmanager
def _mapped(file: BinaryIO) -> Iterator[mmap.mmap | bytes]:
    if os.fstat(file.fileno()).st_size == 0:
        yield b""
    else:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            yield content


class _Inspection:
    """One walk over a file; raises at the first thing that a run file must not hold."""

    def __init__(self, path: str | os.PathLike, file_bytes: int, max_bytes: int, into: Collection[str] | None = None):
        self.path, self.file_bytes, self.max_bytes = path, file_bytes, max_bytes
        self.into = None if into is None else [f"/{name}/" for name in into]
        self.seen: set[int] = set()
        self.total = 0

    def refuse(self, name: str, why: str) -> None:
        raise InputError(f"{self.path}: {name or '/'!r} {why}; a run file holds no such thing, so it isn't read")

    def walk(self, file: h5py.File) -> None:
        root = h5g.open(file.id, b"/")
        self.seen.add(h5o.get_info(root).addr)
        self.attributes(root, "/")
        todo = [(root, "", 1)]
        while todo:
            group, prefix, depth = todo.pop()
            for link in self.links(group, prefix):
                name = f"{prefix}/{link.decode('utf-8')}"
                child = h5o.open(group, link)
                address = h5o.get_info(child).addr
                if address in self.seen:
                    self.refuse(name, "is linked twice, or contains itself")
                self.seen.add(address)
                self.attributes(child, name)
                if isinstance(child, h5g.GroupID):
                    if depth == MAX_DEPTH:
                        self.refuse(name, f"is nested more than {MAX_DEPTH} groups deep")
                    if self.looks_into(name):
                        todo.append((child, name, depth + 1))
                elif isinstance(child, h5d.DatasetID):
                    self.dataset(child, name)
                else:
                    self.refuse(name, "is neither a group nor a dataset")

    def looks_into(self, name: str) -> bool:
        """Whether a group is asked for, or lies in or above one that is."""
        paths = (f"{name}/",) if self.into is None else self.into
        return any(path.startswith(f"{name}/") or f"{name}/".startswith(path) for path in paths)

    def links(self, group: h5g.GroupID, prefix: str) -> list[bytes]:
        """The names of the group's links, none of which was followed."""
        found: list[tuple[bytes, int]] = []

        def visit(name: bytes, info: h5l.LinkInfo) -> bool | None:  # h5py chokes on exceptions in here
            found.append((name, info.type))
            return True if len(found) + len(self.seen) > MAX_OBJECTS else None

        if group.links.iterate(visit, info=True)[0]:
            self.refuse(prefix, f"brings the file over {MAX_OBJECTS} objects")
        for name, kind in found:
            if kind != h5l.TYPE_HARD:
                kinds = {h5l.TYPE_SOFT: "a soft", h5l.TYPE_EXTERNAL: "an external"}
                self.refuse(f"{prefix}/{name.decode('utf-8')}", f"is {kinds.get(kind, 'a special')} link")
        return [name for name, _ in found]

    def attributes(self, owner: h5g.GroupID | h5d.DatasetID, name: str) -> None:
        if h5a.get_num_attrs(owner) > MAX_ATTRIBUTES:
            self.refuse(name, f"has more than {MAX_ATTRIBUTES} attributes")
        for index in range(h5a.get_num_attrs(owner)):
            attribute = h5a.open(owner, index=index)
            where = f"{name}@{attribute.name.decode('utf-8')}"
            datatype = attribute.get_type()
            if attribute.name.decode() in _SCALE_LISTS:
                if datatype.get_class() not in (h5t.VLEN, h5t.COMPOUND):
                    self.refuse(where, "isn't a list of dimension scales")
            else:
                self.datatype(datatype, where)
            count = math.prod(attribute.shape or ())
            if count * datatype.get_size() > MAX_TEXT or self.strings(datatype, count) > self.max_bytes:
                self.refuse(where, "is an attribute of unreasonable size")

    def dataset(self, dataset: h5d.DatasetID, name: str) -> None:
        layout = dataset.get_create_plist()
        if layout.get_layout() not in (h5d.COMPACT, h5d.CONTIGUOUS, h5d.CHUNKED):
            self.refuse(name, "is a virtual dataset: its data is in other files")
        if layout.get_external_count():
            self.refuse(name, "has external storage: its data is in other files")
        filters = [layout.get_filter(index)[0] for index in range(layout.get_nfilters())]
        if not set(filters) <= _FILTERS or len(set(filters)) < len(filters):
            self.refuse(name, f"is stored through the filters {filters}")
        datatype = dataset.get_type()
        self.datatype(datatype, name)
        if dataset.get_space().get_simple_extent_type() == h5s.NULL:
            self.refuse(name, "has no data space")
        self.total += math.prod(dataset.shape) * datatype.get_size()
        if self.total > self.max_bytes:
            self.refuse(name, f"brings the data, once unpacked, over {self.max_bytes} bytes")
        if layout.get_layout() == h5d.CHUNKED:
            self.chunks(dataset, name, math.prod(layout.get_chunk()) * datatype.get_size(), filters)

    def chunks(self, dataset: h5d.DatasetID, name: str, chunk_bytes: int, filters: list[int]) -> None:
        """Refuse chunks that may unpack to more than `max_bytes`, whatever size they say they have."""
        ratio = _DEFLATE_RATIO if {h5z.FILTER_DEFLATE, _LZF} & set(filters) else 1
        count = 0

        def visit(chunk: h5d.StoreInfo) -> bool | None:
            nonlocal count
            count += 1
            return True if chunk.size * ratio > self.max_bytes or count > MAX_OBJECTS else None

        if chunk_bytes > self.max_bytes or dataset.chunk_iter(visit):
            self.refuse(name, "has chunks of unreasonable size or number")

    def datatype(self, datatype: h5t.TypeID, name: str) -> None:
        plain = datatype.get_class() in (h5t.INTEGER, h5t.FLOAT, h5t.STRING)
        boolean = datatype.get_class() == h5t.ENUM and datatype.dtype == np.bool_
        if datatype.committed() or not (plain or boolean):
            self.refuse(name, "is neither numbers, booleans nor strings")
        if plain and datatype.get_class() != h5t.STRING and datatype.dtype.itemsize != datatype.get_size():
            self.refuse(name, "has numbers of a size of its own")

    def strings(self, datatype: h5t.TypeID, count: int) -> int:
        """Bytes that variable-length strings may unpack to: all may share one text as long as the file."""
        variable = datatype.get_class() == h5t.STRING and datatype.is_variable_str()
        return count * self.file_bytes if variable else 0


def read_array(dataset: h5py.Dataset, *, max_bytes: int = MAX_BYTES) -> np.ndarray:
    """The dataset as an array of its own dtype and shape; strings come as `<U` arrays."""
    if dataset.id.get_type().get_class() == h5t.STRING:
        return _read_strings(dataset, max_bytes)
    values = np.empty(dataset.shape, dataset.dtype)
    if values.nbytes > max_bytes:
        raise InputError(f"{dataset.file.filename}: {dataset.name!r} has {values.nbytes} bytes, over {max_bytes}")
    if values.size:
        dataset.read_direct(values)
    return values


def _read_strings(dataset: h5py.Dataset, max_bytes: int) -> np.ndarray:
    """Read few at a time: a stranger's may all share one huge text, and `<U` pads each to the longest."""
    where = f"{dataset.file.filename}: {dataset.name!r}"
    if dataset.ndim > 1:
        raise InputError(f"{where} is an array of strings with {dataset.ndim} dimensions; only 0 or 1 are read")
    source = dataset.asstr("utf-8", "strict")
    count = dataset.size
    step = max(1, max_bytes // max(1, dataset.file.id.get_filesize()))
    blocks = range(0, count, step) if dataset.ndim else ()
    texts: list[str] = []
    longest = 1
    for block in (source[start : start + step] for start in blocks) if dataset.ndim else ([source[()]],):
        texts.extend(block)
        longest = max(longest, *map(len, block))
        if 4 * longest * count > max_bytes:
            raise InputError(f"{where} has strings of more than {max_bytes} bytes together")
    return np.array(texts, dtype=f"<U{longest}").reshape(dataset.shape)


def read_attributes(owner: h5py.Group | h5py.Dataset) -> dict[str, Any]:
    """The attributes as plain str, bool, int, float, or lists of these, without those of dimension scales."""
    return {name: _plain(owner, name) for name in owner.attrs if name not in _SCALE_LISTS}


def _plain(owner: h5py.Group | h5py.Dataset, name: str) -> Any:
    value = owner.attrs[name]
    if isinstance(value, h5py.Empty):
        return None
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list):
        return [_checked_text(owner, name, item) for item in value]
    return _checked_text(owner, name, value)


def _checked_text(owner: h5py.Group | h5py.Dataset, name: str, value: Any) -> Any:
    if isinstance(value, bytes):
        value = value.decode("utf-8")
    if isinstance(value, str):
        value.encode("utf-8")  # h5py smuggles broken UTF-8 in as surrogates; they can't be printed
        if len(value) > MAX_TEXT:
            raise InputError(f"{owner.file.filename}: {owner.name}@{name} is a text of over {MAX_TEXT} characters")
    return value


def copy_contents(source: h5py.Group, target: h5py.Group, *, skip: str) -> None:
    """Copy all of a checked file, except the object of path `skip`, into an empty one.

    Values and attributes stay as they are; chunked data becomes contiguous. Not with H5Ocopy: it loses the
    dimension scales (their references mean nothing in another file), and crashes on damaged files.
    """
    copied: dict[int, tuple[h5py.Dataset, h5py.Dataset]] = {}
    _copy_group(source, target, skip, copied)
    for old, new in copied.values():
        if h5ds.is_scale(old.id):
            h5ds.set_scale(new.id, h5ds.get_scale_name(old.id))
    for old, new in copied.values():
        for axis in range(old.ndim):
            for scale in old.dims[axis].values():
                twin = copied.get(h5o.get_info(scale.id).addr)
                if twin is not None:
                    new.dims[axis].attach_scale(twin[1])


def _copy_group(source: h5py.Group, target: h5py.Group, skip: str, copied: dict) -> None:
    _copy_attributes(source, target, set())
    for name, child in source.items():
        if child.name == skip:
            continue
        if isinstance(child, h5py.Group):
            _copy_group(child, target.create_group(name), skip, copied)
        else:
            old = child.id
            space = h5s.create_simple(old.shape) if old.shape else h5s.create(h5s.SCALAR)
            _copy_values(old, h5d.create(target.id, name.encode(), old.get_type(), space))
            _copy_attributes(child, target[name], {"CLASS", "NAME"} if h5ds.is_scale(old) else set())
            copied[h5o.get_info(old).addr] = (child, target[name])


def _copy_attributes(source: h5py.Group | h5py.Dataset, target: h5py.Group | h5py.Dataset, skip: set[str]) -> None:
    for name in set(source.attrs) - _SCALE_LISTS - skip:
        old = h5a.open(source.id, name.encode())
        new = h5a.create(target.id, name.encode(), old.get_type(), old.get_space())
        if old.shape is not None:
            values = np.empty(old.shape, old.dtype)
            old.read(values)
            new.write(values)


def _copy_values(old: h5d.DatasetID, new: h5d.DatasetID) -> None:
    values = np.empty(old.shape, old.dtype)
    if values.size:
        old.read(h5s.ALL, h5s.ALL, values)
        new.write(h5s.ALL, h5s.ALL, values)


def build_image(fill: Callable[[h5py.File], None]) -> memoryview:
    """The bytes of a new HDF5 file that `fill(file)` writes.

    In memory, because HDF5 2.0 crashes the process when it closes a file on a full disk. The format of HDF5
    1.8, unlike the older default, has checksums on its metadata.
    """
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", libver=("v108", "latest")) as file:
        fill(file)
    return buffer.getbuffer()
