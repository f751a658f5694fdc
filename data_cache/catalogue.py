"""The data sets that have a name."""

from __future__ import annotations

import contextlib
import difflib
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from . import embed, paths
from .errors import InputError, first_line
from .folders import load_folder
from .image_data import ImageData

_Content = tuple[torch.Tensor, torch.Tensor, tuple[str, ...]]  # uint8 (N,3,32,32), int64 (N,), class names


@dataclass(frozen=True)
class _Published:
    splits: tuple[str, ...]
    mean: tuple[float, ...]  # (3,)
    std: tuple[float, ...]  # (3,)
    read: Callable[[str, bool], _Content]  # (split, download)


_REGISTRY: dict[str, _Published] = {}


def _register(name: str, splits: Sequence[str], mean: Sequence[float], std: Sequence[float]) -> Callable[..., Any]:
    def add(read: Callable[[str, bool], _Content]) -> Callable[[str, bool], _Content]:
        _REGISTRY[name] = _Published(tuple(splits), tuple(mean), tuple(std), read)
        return read

    return add


_DIGITS = tuple("0123456789")
_CLOTHES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)


@_register("fashion_mnist", ("train", "test", "full"), mean=(0.2860,) * 3, std=(0.3530,) * 3)
def _fashion_mnist(split: str, download: bool) -> _Content:
    # "train" is the first 10 000 images whatever else is installed: results must not depend on the machine.
    pair = None if split == "full" else embed.read(split)
    if pair is None:
        pair = _whole_fashion_mnist(split, download)
    return *_grey_to_rgb(*map(torch.tensor, pair)), _CLOTHES


@_register("mnist", ("train", "test"), mean=(0.1307,) * 3, std=(0.3081,) * 3)
def _mnist(split: str, download: bool) -> _Content:
    fetched = _torchvision("mnist", "MNIST", download, train=split == "train")
    return *_grey_to_rgb(fetched.data, fetched.targets), _DIGITS


@_register("cifar10", ("train", "test"), mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))
def _cifar10(split: str, download: bool) -> _Content:
    return _channels_first(_torchvision("cifar10", "CIFAR10", download, train=split == "train"))


@_register("cifar100", ("train", "test"), mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762))
def _cifar100(split: str, download: bool) -> _Content:
    return _channels_first(_torchvision("cifar100", "CIFAR100", download, train=split == "train"))


@_register("svhn", ("train", "test", "extra"), mean=(0.4377, 0.4438, 0.4728), std=(0.1980, 0.2010, 0.1970))
def _svhn(split: str, download: bool) -> _Content:
    fetched = _torchvision("svhn", "SVHN", download, split=split)
    return torch.from_numpy(np.ascontiguousarray(fetched.data)), torch.as_tensor(fetched.labels), _DIGITS


def load(name: str, split: str | None = None, *, download: bool = True) -> ImageData:
    """The data set of that name, on the CPU.

    Args:
        name: "fashion_mnist" (splits train, test, full), "mnist", "cifar10", "cifar100" (train, test), "svhn"
            (train, test, extra), or "folder:PATH", an ImageNet-style tree with a sub-folder of images for
            each class; each also with its split behind a colon, "fashion_mnist:test". In "folder:PATH:WORD",
            WORD is a split, the sub-folder PATH/WORD, unless "PATH:WORD" itself is an existing folder.
        split: where `name` has none; by default "train", and PATH itself for a folder.
        download: whether torchvision may fetch what this machine doesn't have.

    Returns:
        Images uint8 (N,3,32,32), grey ones padded by 2 and repeated; (N,3,224,224) for a folder.

    Raises:
        InputError: an unknown name or split, absent or damaged files, or a failed download.
    """
    if name.startswith("folder:"):
        return load_folder(name.removeprefix("folder:"), split)
    name, colon, named_split = name.partition(":")
    if colon and split not in (None, named_split):
        raise InputError(f"the split is given twice, as {named_split!r} and as {split!r}: give it once")
    split = named_split if colon else split or "train"
    if name not in _REGISTRY:
        raise InputError(
            f"there is no data set {name!r}{_close(name, _REGISTRY)}: {_choices(_REGISTRY, 'folder:PATH')}"
        )
    published = _REGISTRY[name]
    if split not in published.splits:
        raise InputError(
            f"{name} has no split {split!r}{_close(split, published.splits)}: {_choices(published.splits)}"
        )
    images, labels, classes = published.read(split, download)
    return ImageData.from_arrays(
        images, labels, name=name, split=split, classes=classes, mean=published.mean, std=published.std
    )


def _whole_fashion_mnist(split: str, download: bool) -> embed.Arrays:
    """The published images uint8 (N,28,28) and labels, from Debian's package or through torchvision."""
    part = "t10k" if split == "test" else "train"
    if embed.DEBIAN.is_dir():
        origin, (images, labels) = embed.DEBIAN, embed.read_idx_pair(embed.DEBIAN, part)
    else:
        origin = paths.root() / "datasets" / "FashionMNIST"
        fetched = _torchvision("fashion_mnist", "FashionMNIST", download, train=part == "train")
        images, labels = fetched.data.numpy(), fetched.targets.numpy().astype(np.uint8)
    if split == "train":
        images, labels = images[: embed.COUNT], labels[: embed.COUNT]
    if embed.content_sha256(images, labels) != embed.SHA256[split]:
        raise InputError(f"{origin} holds other {split} images than those published: fetch or install them again")
    return images, labels


def _torchvision(name: str, kind: str, download: bool, **arguments: Any) -> Any:
    """`torchvision.datasets.<kind>` in this machine's folder, quiet on stdout, failures as one sentence."""
    from torchvision import datasets  # slow to import, and the default data doesn't need it

    folder = paths.root() / "datasets"
    previous = socket.getdefaulttimeout()
    try:
        socket.setdefaulttimeout(30)  # torchvision gives none and would wait for ever
        with contextlib.redirect_stdout(sys.stderr):
            return getattr(datasets, kind)(folder, download=download, **arguments)
    except Exception as error:  # torchvision has no exception of its own; a damaged archive raises nearly anything
        fetch = "connect to the network for a download" if download else "allow the download"
        raise InputError(
            f"{name} can't be read from {folder} nor fetched ({first_line(error)}): {fetch}, or put the "
            f"files of torchvision.datasets.{kind} there, and delete them first if they are damaged"
        ) from error
    finally:
        socket.setdefaulttimeout(previous)


def _grey_to_rgb(images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    # expand: three channels at the memory of one
    return F.pad(images, (2, 2, 2, 2)).unsqueeze(1).expand(-1, 3, -1, -1), labels


def _channels_first(fetched: Any) -> _Content:
    images = torch.from_numpy(np.ascontiguousarray(fetched.data.transpose(0, 3, 1, 2)))
    return images, torch.as_tensor(fetched.targets), tuple(fetched.classes)


def _close(word: str, known: Any) -> str:
    match = difflib.get_close_matches(word.lower().replace("-", "_"), known, n=1)
    return f" (did you mean {match[0]!r}?)" if match else ""


def _choices(*known: Any) -> str:
    names = [name for each in known for name in ([each] if isinstance(each, str) else each)]
    return f"choose from {', '.join(names)}"
