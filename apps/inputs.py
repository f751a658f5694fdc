"""What a command can be started on: the checkpoints and data sets that are on this machine. Loads no torch."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from data_cache import paths
from data_cache.errors import InputError

MOST = 2000
"""Files under the root that are looked at."""

SETS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "fashion_mnist": (("train", "test"), ("fashion_mnist",)),
    "mnist": (("train", "test"), ("MNIST",)),
    "cifar10": (("train", "test"), ("cifar-10-batches-py",)),
    "cifar100": (("train", "test"), ("cifar-100-python",)),
    "svhn": (("train", "test"), ("train_32x32.mat", "test_32x32.mat")),
}
"""Splits of each data set that `data_cache.load` knows, and what of it lies in the folder of data sets."""

_LIBRARY = re.compile(r"[\w.-]+|torchvision:\w+|timm:[\w.]+")
_OUT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Checkpoint:
    """A file that says of itself what it is."""

    name: str
    """For people: that of a checkpoint which ships, or the path below the root."""
    value: str
    """What --ckpt takes."""
    dataset: str
    """What it was trained on; empty if it doesn't say."""

    @property
    def run_file(self) -> str:
        """What its run file is called unless told otherwise."""
        stem = re.sub(r"[^A-Za-z0-9._-]+", "_", PurePosixPath(self.name).stem if "/" in self.value else self.name)
        return f"{stem.lstrip('._-')[:90] or 'run'}.h5"


def checkpoints(root: Path) -> tuple[list[Checkpoint], list[str]]:
    """Checkpoints that commands take by name and those below the root; and why others there were left out."""
    found: list[Checkpoint] = []
    left_out: list[str] = []
    for name, path in paths.checkpoints().items():
        _sort_in(name, name, path, found, left_out)
    known = {path.resolve() for path in paths.checkpoints().values()}
    for path in _files(root):
        if path.resolve() not in known:
            name = path.relative_to(root).as_posix()
            _sort_in(name, str(path.resolve()), path, found, left_out)
    return found, left_out


def _files(root: Path) -> Iterator[Path]:
    """Checkpoint files below the root, as long as they are no links, no pipes and not hidden."""
    seen = 0
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = Path(folder, name)
            if path.suffix not in (".safetensors", ".pth", ".pt") or name.startswith("."):
                continue
            if path.is_file() and not path.is_symlink():
                yield path
                seen += 1
                if seen >= MOST:
                    return


def _sort_in(name: str, value: str, path: Path, found: list[Checkpoint], left_out: list[str]) -> None:
    try:
        found.append(Checkpoint(name, value, _dataset(path)))
    except InputError as error:
        left_out.append(f"{name} {error}")


def _dataset(path: Path) -> str:
    """What a self-describing checkpoint was trained on; InputError, the end of a sentence, for other files."""
    if not str(path).isprintable():
        raise InputError("has control characters in its path.")
    if path.suffix != ".safetensors":
        raise InputError("doesn't say which network it is of: the command line takes it with --model.")
    header = _header(path)
    model, dataset = (_text(header.get(key)) for key in ("model", "dataset"))
    if header.get("format") != "landscope" or not model:
        raise InputError("doesn't say which network it is of: the command line takes it with --model.")
    if not _LIBRARY.fullmatch(model):
        raise InputError("is of a network that your own code makes: the command line takes it with --model.")
    if dataset and dataset not in SETS:
        raise InputError("was trained on images that have no name here: the command line takes it.")
    return dataset


def _header(path: Path) -> dict[str, str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError, ValueError):
        raise InputError("is not a whole safetensors file.") from None


def _text(stored: str | None) -> str:
    try:
        value: Any = json.loads(stored or '""')
    except (ValueError, RecursionError):
        return ""
    return value if isinstance(value, str) else ""


def present() -> list[str]:
    """Names of the data sets that are on this machine."""
    from data_cache.embed import DEBIAN

    elsewhere = {"fashion_mnist": DEBIAN.is_dir() or paths.shipped() is not None}
    return [
        name
        for name, (_, files) in SETS.items()
        if elsewhere.get(name) or all((paths.root() / "datasets" / file).exists() for file in files)
    ]


def data_choices() -> list[str]:
    """NAME:SPLIT of all data that is on this machine."""
    return [f"{name}:{split}" for name in present() for split in SETS[name][0]]


def output_file(root: Path, name: str, suffix: str = ".h5") -> Path:
    """The file of this name in the root that a command is to write; the ending is added where it is missing.

    Raises:
        InputError: The name is none, or there is a link or a folder of that name, or the root is that of the shipped
            results.
    """
    name = name.strip()
    if not _OUT.fullmatch(name):
        raise InputError(
            "The run file's name has letters, digits, '.', '_' and '-' only, and begins with no '.' or '-'."
        )
    path = root.resolve() / (name if name.endswith(suffix) else f"{name}{suffix}")
    shipped = paths.shipped()
    if shipped is not None and path.parent.is_relative_to(shipped / "results" / "shipped"):
        raise InputError("The results that ship stay as they are: start the explorer on another folder with --root.")
    if path.is_symlink() or path.is_dir():
        raise InputError(f"{path.name} is a {'link' if path.is_symlink() else 'folder'}; choose another name.")
    return path
