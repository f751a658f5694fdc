"""The surface files of Li et al. (2018), github.com/tomgoldstein/loss-landscape, in and out."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np

from analyze._safe_hdf5 import build_image
from analyze.landscape.shown import mean_over_frames
from analyze.landscape.spec import BINS, DONE, NOT_FINITE, TODO, UNKNOWN, DirectionInfo, Result
from data_cache.errors import InputError

MISSING = -1.0
"""What their files hold where nothing is computed yet; they compute such points when run on them."""
SECONDS = 60
"""To read a file."""


def surface_image(result: Result) -> memoryview:
    """The bytes of an HDF5 file that their tools plot.

    `xcoordinates` (X,), `ycoordinates` (Y,), `train_loss` mean NLL over frames and `train_acc` in percent, -1 where
    missing; for a curve, (X,) without `ycoordinates`. Of a surface both are (Y, X): theirs are (X, Y) filled in the
    order of (Y, X), which is the same memory, but only a square one of those can their own tools plot.
    """

    def fill(file: h5py.File) -> None:
        file["dir_file"] = ""
        file["xcoordinates"] = np.asarray(result.x, np.float64)
        if len(result.y) > 1:
            file["ycoordinates"] = np.asarray(result.y, np.float64)
        for name, metric, unit in (("train_loss", "nll", 1.0), ("train_acc", "accuracy", 100.0)):
            shown = mean_over_frames(result, metric)
            values = np.where(shown.missing, MISSING, unit * shown.value)
            file[name] = values if len(result.y) > 1 else values[0]

    return build_image(fill)


def import_surface(path: str | Path, split: str = "train") -> Result:
    """A result that can be drawn, animated and exported, from their surface file.

    Surfaces that are not square are put in order: whatever shape they are stored in, their values run along x first.
    So are axes that descend.
    It counts as one image, since the files don't say how many there were; what they don't hold is NaN.

    Args:
        path: HDF5 file.
        split: `train` or `test`: which of the losses in it.

    Raises:
        InputError: The file can't be read, or holds no such surface.
    """
    found = _read(Path(path))
    loss = f"{split}_loss"
    if lacking := [name for name in ("xcoordinates", loss) if name not in found]:
        raise InputError(f"{path} holds no {lacking[0]}, so it is no surface file of tomgoldstein/loss-landscape.")
    x, y = found["xcoordinates"].ravel(), found.get("ycoordinates", np.zeros(1)).ravel()
    columns, rows = np.argsort(x), np.argsort(y)
    grids = {}
    for name in (loss, f"{split}_acc"):
        values = found.get(name, np.full(len(x) * len(y), np.nan))
        if values.size != len(x) * len(y):
            raise InputError(f"{path}: {name} has {values.size} values, but the grid {len(x)} x {len(y)} points.")
        grids[name] = values.reshape(1, len(y), len(x))[:, rows][:, :, columns]
    nll, accuracy = grids[loss], grids[f"{split}_acc"] / 100
    todo = nll == MISSING
    status = np.where(todo, TODO, np.where(np.isfinite(nll), DONE, NOT_FINITE)).astype(np.uint8)
    unknown = np.full((*nll.shape, BINS), np.nan)
    info = DirectionInfo(UNKNOWN, "", *[np.nan] * 5, sha256="")
    curve = len(y) == 1
    try:
        return Result(
            x=x[columns], y=y[rows], frame=np.zeros(1, int), status=status, count=np.where(todo, 0, 1),
            nll_sum=np.where(todo, 0, nll), nll_sq=np.full(nll.shape, np.nan), correct=np.where(todo, 0, accuracy),
            bin_count=unknown, bin_confidence=unknown, bin_correct=unknown, l2=np.full(nll.shape[1:], np.nan),
            direction_x={}, direction_y={}, info_x=info, info_y=None if curve else info, stochastic=False,
            cosine=np.nan, arithmetic=UNKNOWN, deviation=np.nan, prescan=None, trajectory=None,
        )  # fmt: skip
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _read(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise InputError(f"{path} doesn't exist, or is no file.")
    command = [sys.executable, "-I", str(Path(__file__).with_name("_surface_reader.py")), str(path.resolve())]
    try:
        done = subprocess.run(command, capture_output=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise InputError(f"{path} can't be read: it took over {SECONDS} s; it seems damaged.") from None
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise InputError(f"{path} can't be read: {said[-1] if said else 'it crashes the HDF5 library; it is damaged'}.")
    with np.load(io.BytesIO(done.stdout)) as arrays:
        return {name: arrays[name] for name in arrays.files}
