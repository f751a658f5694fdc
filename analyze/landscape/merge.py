"""Landscapes of one plane put together: `python -m analyze.landscape.merge A.h5 B.h5 --out C.h5`. NumPy only."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from analyze.landscape.spec import DONE, NOT_FINITE, RECOMPUTED, SUMS, Config, Result, Trajectory
from data_cache import InputError, exit_on_input_error

_NAMELESS = {"user data", "arrays"}
_OF_IMAGES = ("data", "images", "data_sha256", "batch_size", "merged")
_FREE = {"checkpoint", "smoothing", *_OF_IMAGES}
_FREE_OPTIONS = {f.name for f in fields(Config) if f.metadata.get("free")} | {"first_frame", "same_directions"}


def merge(results: Sequence[Result]) -> Result:
    """One landscape from several of the same plane: sums over disjoint images add up, other frames are appended.

    Args:
        results: Complete landscapes. Those of the same images need different frames, and those of different images
            the same frames.

    Raises:
        InputError: They differ in grid, directions, checkpoint or an option, share images and frames, are incomplete,
            or recomputed BatchNorm each from images of its own. Different sets of one named split are taken to share
            images, for limits of it do; that other sets have none in common is for the caller to know.
    """
    if len(results) < 2:
        raise InputError("there must be at least two landscapes to merge.")
    merged = results[0]
    for other in results[1:]:
        merged = _merged(merged, other)
    return merged


def _merged(a: Result, b: Result) -> Result:
    _check(a, b)
    if b.frame.min() < a.frame.min():  # pre-scan and trajectory are those of the first frame
        a, b = b, a
    ours, theirs = _with_paths_of(a, b), _with_paths_of(b, a)
    a, config = _with_directions_of(a, b), dict(a.config or {})
    config["keep_directions"] = bool(a.direction_x)
    if _images(ours) == _images(theirs):
        if common := sorted(set(a.frame.tolist()) & set(b.frame.tolist())):
            what = f"frame {common[0]}" if a.stochastic else "a deterministic network, which has one frame"
            raise InputError(f"two of the landscapes are of the same images and both hold {what}; nothing adds up.")
        frames = np.concatenate([a.frame, b.frame])
        order = np.argsort(frames)
        arrays: dict[str, Any] = {
            name: np.concatenate([getattr(a, name), getattr(b, name)])[order] for name in ("status", *SUMS)
        }
        config |= {"first_frame": int(frames.min()), "frames": len(frames)}
        return replace(a, frame=frames[order], deviation=_worse(a, b), **arrays).of(config, ours)
    if shared := set(_images(ours)) & set(_images(theirs)):
        raise InputError(f"two of the landscapes have images in common (sha256 {sorted(shared)[0][:16]}).")
    if splits := _splits(ours) & _splits(theirs):
        raise InputError(
            f"two of the landscapes are of images of {min(splits)}, and sets of one split have images in common; "
            "nothing adds up."
        )
    if any(RECOMPUTED in result.arithmetic for result in (a, b)):
        raise InputError(
            "BatchNorm was recomputed from other images in each of the landscapes, which makes them those of different "
            "networks; nothing adds up."
        )
    if not np.array_equal(a.frame, b.frame):
        raise InputError(
            f"landscapes of different images need the same frames to be added up, not {a.frame.tolist()} and "
            f"{b.frame.tolist()}."
        )
    sums: dict[str, Any] = {name: getattr(a, name) + getattr(b, name) for name in SUMS}
    sums["status"] = np.maximum(a.status, b.status)
    shas = [*_images(ours), *_images(theirs)]
    about = {
        **ours,
        "data": f"{ours.get('data')} + {theirs.get('data')}",
        "images": ours.get("images", 0) + theirs.get("images", 0),
        "data_sha256": hashlib.sha256(" ".join(shas).encode()).hexdigest(),
        "merged": shas,
    }
    weights = ours.get("images", 1), theirs.get("images", 1)
    trajectory = _average(a.trajectory, b.trajectory, weights)
    return replace(a, prescan=None, trajectory=trajectory, deviation=_worse(a, b), **sums).of(config, about)


def _with_paths_of(a: Result, b: Result) -> dict[str, Any]:
    """What a is of, computed by the paths of the smoothing operator of both."""
    ours, theirs = (result.subject or {} for result in (a, b))
    paths = [path for each in (ours, theirs) if "smoothing" in each for path in str(each["smoothing"]).split(" and ")]
    return {**ours, "smoothing": " and ".join(dict.fromkeys(paths))} if paths else dict(ours)


def _with_directions_of(a: Result, b: Result) -> Result:
    """The landscape a with the directions that it was saved without, if b has them."""
    return a if a.direction_x else replace(a, direction_x=b.direction_x, direction_y=b.direction_y)


def _splits(subject: Mapping[str, Any]) -> set[str]:
    """Names of the data sets, but for images from Python, which have none."""
    return set(str(subject.get("data")).split(" + ")) - _NAMELESS


def _images(subject: Mapping[str, Any]) -> list[str]:
    """Hashes of the sets of images."""
    return list(subject.get("merged") or [str(subject.get("data_sha256"))])


def _worse(a: Result, b: Result) -> float:
    return float(np.fmax(a.deviation, b.deviation))


def _average(a: Trajectory | None, b: Trajectory | None, weights: tuple[float, float]) -> Trajectory | None:
    if a is None or b is None:
        return None
    return replace(a, nll=np.average([a.nll, b.nll], axis=0, weights=weights))


def _check(a: Result, b: Result) -> None:
    for result in (a, b):
        if not np.isin(result.status, (DONE, NOT_FINITE)).all():
            raise InputError(f"a landscape of {_told(result)} is incomplete; finish it with the command that began it.")
    for kind, ours, theirs, free in (
        ("", a.subject or {}, b.subject or {}, _FREE),
        ("--", a.config or {}, b.config or {}, _FREE_OPTIONS),
    ):
        for key in [*ours, *(key for key in theirs if key not in ours)]:
            if key not in free and ours.get(key) != theirs.get(key):
                raise InputError(
                    f"the landscapes differ in {kind}{key}: {ours.get(key)!r} and {theirs.get(key)!r}; only those of "
                    "one plane can be merged."
                )
    for name in ("x", "y"):
        if not np.array_equal(getattr(a, name), getattr(b, name)):
            raise InputError(f"the landscapes have different grids along {name}; only those of one grid can be merged.")
        hashes = [getattr(getattr(result, f"info_{name}"), "sha256", None) for result in (a, b)]
        if hashes[0] != hashes[1]:
            raise InputError(f"the landscapes have different directions {name}; only those of one plane can be merged.")


def _told(result: Result) -> str:
    subject = result.subject or {}
    return f"{subject.get('images')} images of {subject.get('data')}"


@dataclass(frozen=True)
class Command:
    """Merge landscapes of one plane: of disjoint images, or of other frames."""

    files: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run files."""
    out: Path
    """Run file to write."""


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    command = tyro.cli(Command, args=arguments, prog="python -m analyze.landscape.merge")
    with exit_on_input_error():
        if command.out.exists():
            raise InputError(f"{command.out} exists; give --out another name.")
        merged = merge([Result.read(path) for path in command.files])
        merged.save(command.out)
    print(f"{_told(merged)}, {len(merged.frame)} frames: {command.out}")


if __name__ == "__main__":
    main()
