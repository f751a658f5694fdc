"""Results as dataclasses of arrays, and as HDF5 groups with dimension scales, units and descriptions."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import h5py
import numpy as np

from analyze._safe_hdf5 import MAX_BYTES, only_input_errors, read_array
from data_cache.errors import InputError

_SCALARS = (bool, int, float, str)

ResultType = TypeVar("ResultType")


@dataclasses.dataclass(frozen=True)
class _Array:
    dims: tuple[str, ...]
    unit: str
    doc: str
    many: bool = False


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
    return dataclasses.field(metadata={"array": _Array((), unit, doc, many=True)})


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
            raise TypeError(f"{cls.__name__}.{field.name} is neither declared by array() nor a result dataclass")
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
        elif member.array.many:
            nested[member.name] = {key: (item, member.array) for key, item in value.items()}
        else:
            if member.type in _SCALARS:
                if value == value and member.type(value) != value:
                    raise ValueError(f"{member.name!r} is declared as {member.type.__name__}, but is {value!r}")
                value = member.type(value)
            datasets[member.name] = (_storable(member.name, value), member.array)
    _write_datasets(group, datasets, reserved=set(nested))
    for name, value in nested.items():
        if isinstance(value, dict):
            _write_datasets(group.create_group(name), {key: _anonymous(key, *item) for key, item in value.items()})
        else:
            write_result(group.create_group(name), value)


def read_result(group: h5py.Group, cls: type[ResultType], *, max_bytes: int = MAX_BYTES) -> ResultType:
    """Read what `write_result` wrote; InputError if the group doesn't hold a `cls`."""
    members = _members(cls)
    where = f"{group.file.filename}: {group.name!r}"
    with only_input_errors(group.file.filename):
        values: dict[str, Any] = {}
        lengths: dict[str, int] = {}
        for member in members:
            stored = group.get(member.name)
            if stored is None and member.optional:
                values[member.name] = None
                continue
            is_group = member.array is None or member.array.many
            if not isinstance(stored, h5py.Group if is_group else h5py.Dataset):
                raise InputError(f"{where} lacks {member.name!r}, so it doesn't hold {cls.__name__}")
            if member.array is None:
                values[member.name] = read_result(stored, member.type, max_bytes=max_bytes)
            elif member.array.many:
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
            raise ValueError(f"{name!r} is neither numbers nor a string nor a list of strings (without NUL characters)")
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
    return values, dataclasses.replace(spec, dims=dims, many=False)


def _check_shape(
    name: str, shape: tuple[int, ...], dims: tuple[str, ...], lengths: dict[str, int], error: type[Exception]
) -> None:
    if len(shape) != len(dims):
        raise error(f"{name} has the shape {shape}, but the dimensions {dims}")
    for dim, length in zip(dims, shape, strict=True):
        if lengths.setdefault(dim, length) != length:
            raise error(f"{name} has the shape {shape}, but the dimension {dim!r} also the length {lengths[dim]}")


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
            raise ValueError(f"{dim!r} names a dimension, so the field of this name must be its 1-D coordinate")
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
