"""Landscapes for other programs: `python -m analyze.landscape.export RUN.h5 OUT.vts`."""

from __future__ import annotations

import argparse
import base64
import csv
import io
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args
from xml.sax.saxutils import quoteattr

import numpy as np

from analyze._safe_hdf5 import open_checked
from analyze.landscape.shown import mean_over_frames
from analyze.landscape.spec import Metric, Result
from analyze.landscape.tomgoldstein import import_surface, surface_image
from data_cache.errors import InputError, exit_on_input_error
from data_cache.files import written_whole

METRICS: tuple[Metric, ...] = get_args(Metric)
HIDDEN = 2
"""VTK's mark of a point that is not drawn (vtkDataSetAttributes::HIDDENPOINT)."""


def export(result: Result, path: str | Path, format: str | None = None) -> Path:
    """Write a landscape for another program.

    Args:
        result: Any landscape.
        path: File to write.
        format: `vtk` (.vts, a surface for ParaView), `csv` (a line for each point and frame), `npz` (all arrays) or
            `tomgoldstein` (.h5, the surface file of Li et al.); default: by the file's ending.

    Raises:
        InputError: The format is unknown, or the file can't be written.
    """
    path = Path(path)
    chosen = format or {".vts": "vtk", ".csv": "csv", ".npz": "npz", ".h5": "tomgoldstein"}.get(path.suffix.lower())
    if chosen not in _CONTENT:
        asked = f"the format {format!r}" if format else f"the ending of {path.name}"
        raise InputError(f"{asked} is unknown; export to .vts (vtk), .csv, .npz or .h5 (tomgoldstein).")
    content = _CONTENT[chosen](result)
    with written_whole(path) as temporary:
        temporary.write_bytes(content)
    return path


def _csv(result: Result) -> bytes:
    """Columns frame, x, y, status, images and metrics, in full precision; nan where not computed."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["frame", "x", "y", "status", "images", "nll", "nll_stderr", *METRICS[1:]])
    columns = [result.metric("nll"), result.nll_stderr, *(result.metric(name) for name in METRICS[1:])]
    for place in np.ndindex(result.status.shape):
        frame, row, column = place
        at = [int(result.frame[frame]), float(result.x[column]), float(result.y[row])]
        counts = [int(result.status[place]), int(result.count[place])]
        table.writerow([*at, *counts, *(repr(float(values[place])) for values in columns)])
    return text.getvalue().encode()


def _npz(result: Result) -> bytes:
    """Every array of the result by its name, metrics too; without the directions."""
    arrays = {field.name: getattr(result, field.name) for field in fields(result)}
    arrays |= {"loss": result.metric("loss")}
    kept: dict[str, Any] = {name: each for name, each in arrays.items() if isinstance(each, np.ndarray)}
    content = io.BytesIO()
    np.savez_compressed(content, **kept)
    return content.getvalue()


def _vtk(result: Result) -> bytes:
    """A structured grid of VTK's XML format (VTK User's Guide, "XML File Formats"), binary in base64.

    Height is the mean NLL over frames. Point data: the means of all metrics, and each frame's where there are
    several; `status` is the largest of all frames. Points without a finite height are hidden; their values are in
    the point data as they are.
    """
    height = mean_over_frames(result, "nll")
    hidden = ~np.isfinite(height.value)
    low = float(height.finite.min()) if height.finite.size else 0.0
    x, y = np.meshgrid(result.x, result.y)
    points = np.stack([x, y, np.where(hidden, low, height.value)], axis=-1).astype("<f8")
    data: dict[str, np.ndarray] = {name: mean_over_frames(result, name).value.astype("<f8") for name in METRICS}
    if len(result.frame) > 1:
        for name in METRICS[:3]:
            each = zip(result.frame, result.metric(name), strict=True)
            data |= {f"{name}_frame_{frame}": values for frame, values in each}
    data |= {"status": result.status.max(axis=0), "vtkGhostType": np.where(hidden, HIDDEN, 0).astype(np.uint8)}
    extent = f"0 {len(result.x) - 1} 0 {len(result.y) - 1} 0 0"
    lines = [
        '<?xml version="1.0"?>',
        '<VTKFile type="StructuredGrid" version="1.0" byte_order="LittleEndian" header_type="UInt64">',
        f'<StructuredGrid WholeExtent="{extent}"><Piece Extent="{extent}">',
        '<PointData Scalars="nll">',
        *(_data_array(name, values.ravel()) for name, values in data.items()),
        "</PointData><CellData/>",
        f"<Points>{_data_array('Points', points.reshape(-1, 3))}</Points>",
        "</Piece></StructuredGrid></VTKFile>",
    ]
    return "\n".join(lines).encode()


def _data_array(name: str, values: np.ndarray) -> str:
    kind, values = ("UInt8", values.astype("u1")) if values.dtype == np.uint8 else ("Float64", values.astype("<f8"))
    content = np.array([values.nbytes], "<u8").tobytes() + np.ascontiguousarray(values).tobytes()
    of = f'type="{kind}" Name={quoteattr(name)} NumberOfComponents="{values.shape[1] if values.ndim > 1 else 1}"'
    return f'<DataArray {of} format="binary">{base64.b64encode(content).decode()}</DataArray>'


_CONTENT: dict[Any, Callable[[Result], bytes | memoryview]] = {
    "vtk": _vtk,
    "csv": _csv,
    "npz": _npz,
    "tomgoldstein": surface_image,
}


def read(path: str | Path) -> Result:
    """A landscape from a run file, or from a surface file of tomgoldstein/loss-landscape.

    Raises:
        InputError: It is neither.
    """
    try:
        with open_checked(path) as file:
            ours = "xcoordinates" not in file
    except InputError:
        ours = False
    if ours or not Path(path).is_file():
        return Result.read(path)
    return import_surface(path)


def _is_hdf5(path: Path) -> bool:
    with suppress(OSError), open(path, "rb") as file:
        return file.read(8) == b"\x89HDF\r\n\x1a\n"
    return False


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m analyze.landscape.export", description=__doc__)
    parser.add_argument("run", type=Path, help="run file, or a surface file of tomgoldstein/loss-landscape")
    parser.add_argument("out", type=Path, help="file to write: .vts, .csv, .npz, or .h5 for tomgoldstein's tools")
    parser.add_argument("--format", choices=list(_CONTENT), help="default: by the ending")
    given = parser.parse_args(arguments)
    with exit_on_input_error():
        if given.out.resolve() == given.run.resolve():
            raise InputError(f"{given.out} is the file to be read; give another one to write.")
        if _is_hdf5(given.out):
            raise InputError(f"{given.out} exists, and may hold analyses; give another name.")
        print(export(read(given.run), given.out, given.format))


if __name__ == "__main__":
    main()
