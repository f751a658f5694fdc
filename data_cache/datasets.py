"""Image data sets by name, in a fixed order, as bytes: small ones in memory, big ones streamed."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import os
import re
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from . import embed, paths
from .augmentation import augment, normalize
from .errors import InputError

IMAGE_SIZE = 224
"""Height and width of the images of a folder tree, cropped from a shorter side of `RESIZED`."""

RESIZED = 256
MAX_ASPECT = 100
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGE_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}


@dataclass(frozen=True, eq=False)
class ImageData:
    """Labelled images in a fixed order; made by `load`, or from tensors by `ImageData.from_arrays`."""

    name: str  # as `load` takes it, "fashion_mnist" or "folder:PATH"
    split: str  # "" for a folder without one
    classes: tuple[str, ...]
    mean: tuple[float, ...]  # (C,), for images scaled to [0,1]
    std: tuple[float, ...]  # (C,)
    indices: np.ndarray  # int64 (N,), each image's position in the full published split
    source: _Memory | _Folder  # where the images come from

    def __post_init__(self) -> None:
        channels = self.shape[0]
        for what, values in (("mean", self.mean), ("std", self.std)):
            if (
                len(values) != channels
                or not np.all(np.isfinite(values))
                or (what == "std" and min(values) <= 0)
            ):
                raise InputError(
                    f"{self.spec} got the {what} {values}: give {channels} finite numbers, one for each "
                    + ("channel, above 0" if what == "std" else "channel")
                )

    @classmethod
    def from_arrays(
        cls,
        images: torch.Tensor | np.ndarray,
        labels: torch.Tensor | np.ndarray | Sequence[int],
        *,
        name: str = "arrays",
        split: str = "",
        classes: Sequence[str] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> ImageData:
        """Data from uint8 images (N,C,H,W) and integer labels (N,); by default with mean 0 and std 1.

        Raises:
            InputError: another dtype or shape, no images, or a label without a class.
        """
        images, labels = torch.as_tensor(images), torch.as_tensor(labels)
        if images.dtype != torch.uint8 or images.ndim != 4 or images.numel() == 0:
            raise InputError(
                f"images are {images.dtype} {tuple(images.shape)}: give at least one, as uint8 (N,C,H,W)"
            )
        if labels.shape != images.shape[:1] or labels.is_floating_point():
            raise InputError(
                f"labels are {labels.dtype} {tuple(labels.shape)}: give {len(images)} integers, (N,)"
            )
        labels = labels.to(images.device, torch.int64)
        lowest, highest = int(labels.min()), int(labels.max())
        classes = tuple(map(str, range(highest + 1))) if classes is None else tuple(classes)
        if lowest < 0 or highest >= len(classes):
            raise InputError(
                f"labels go from {lowest} to {highest}: with {len(classes)} classes, give 0 and up"
            )
        channels = images.shape[1]
        return cls(
            name=name,
            split=split,
            classes=classes,
            mean=(0.0,) * channels if mean is None else tuple(mean),
            std=(1.0,) * channels if std is None else tuple(std),
            indices=np.arange(len(images)),
            source=_Memory(images, labels),
        )

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C,H,W) of every image."""
        return self.source.shape

    @property
    def spec(self) -> str:
        """What `load` takes for this data: "name:split" (before any `limit`)."""
        return f"{self.name}:{self.split}" if self.split else self.name

    @property
    def labels(self) -> torch.Tensor:
        """Int64 (N,), on the data's device."""
        return self.source.labels

    @property
    def device(self) -> torch.device:
        """Where `read` and `batches` put images."""
        return self.source.labels.device

    def read(self, positions: Sequence[int] | np.ndarray | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The images uint8 (B,C,H,W) and labels int64 (B,) at `positions` in 0..len-1, on the data's device.

        Raises:
            InputError: a position is out of range or no integer, or an image of a folder can't be decoded.
        """
        given = np.asarray(positions.cpu() if isinstance(positions, torch.Tensor) else positions)
        if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
            raise InputError(f"positions have type {given.dtype} and shape {given.shape}: give integers (B,)")
        rows = given.astype(np.int64)
        if rows.size and not 0 <= rows.min() <= rows.max() < len(self):
            raise InputError(
                f"positions go from {rows.min()} to {rows.max()}: {self.spec} has 0 to {len(self) - 1}"
            )
        return self.source.read(rows)

    def batches(
        self,
        batch_size: int,
        *,
        augmentation: tuple[int, int] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Batches:
        """All images in order as batches (x, y), the same at every pass; the last may be short.

        Args:
            batch_size: images in a batch, at least 1.
            augmentation: (seed, epoch) for the cropped and flipped version; see `augment`.
            dtype: of x, (B,C,H,W), normalised with this data's mean and std; y is int64 (B,).
        """
        if batch_size < 1:
            raise InputError(f"the batch size is {batch_size}: give 1 or more")
        return Batches(self, batch_size, augmentation, dtype)

    def limit(self, n: int) -> ImageData:
        """At most n images, evenly spaced so that a class-sorted folder stays balanced."""
        if n < 1:
            raise InputError(f"the limit is {n} images: give 1 or more")
        if n >= len(self):
            return self
        rows = np.arange(n) * len(self) // n
        return replace(self, indices=self.indices[rows], source=self.source.take(rows))

    def to(self, device: torch.device | str) -> ImageData:
        """The same data on a device: images in memory move there now, streamed ones batch by batch."""
        return replace(self, source=self.source.to(torch.device(device)))

    def with_normalization(self, mean: Sequence[float], std: Sequence[float]) -> ImageData:
        """The same images with another mean and std (C numbers each), such as those that a checkpoint has."""
        return replace(self, mean=tuple(map(float, mean)), std=tuple(map(float, std)))

    def sha256(self) -> str:
        """The hex digest of name, split, indices, labels and image bytes; computed once.

        Of a folder, relative file names and sizes stand for the bytes, and its own path doesn't count. The
        normalisation and the device don't count either.
        """
        return self._digest

    @cached_property
    def _digest(self) -> str:
        name = "folder" if isinstance(self.source, _Folder) else self.name
        digest = hashlib.sha256(f"{name}\0{self.split}\0{len(self)}\0{self.shape}\0".encode(errors="replace"))
        digest.update(self.indices.astype("<i8").tobytes())
        digest.update(self.labels.cpu().numpy().astype("<i8").tobytes())
        for part in self.source.identity():
            digest.update(part)
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Batches:
    """One pass after another over `ImageData`; `len` is the number of batches."""

    data: ImageData
    batch_size: int
    augmentation: tuple[int, int] | None
    dtype: torch.dtype

    def __len__(self) -> int:
        return -(-len(self.data) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        data = self.data
        for start in range(0, len(data), self.batch_size):
            rows = np.arange(start, min(start + self.batch_size, len(data)))
            images, labels = data.read(rows)
            if self.augmentation is not None:
                images = augment(images, *self.augmentation, data.indices[rows])
            yield normalize(images, data.mean, data.std, self.dtype), labels


@dataclass(frozen=True, eq=False)
class _Memory:
    images: torch.Tensor  # uint8 (N,C,H,W)
    labels: torch.Tensor  # int64 (N,)

    @property
    def shape(self) -> tuple[int, int, int]:
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def read(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        index = torch.from_numpy(rows).to(self.labels.device)
        return self.images[index], self.labels[index]

    def take(self, rows: np.ndarray) -> _Memory:
        return _Memory(*self.read(rows))

    def to(self, device: torch.device) -> _Memory:
        return _Memory(self.images.to(device), self.labels.to(device))

    def identity(self) -> Iterator[bytes]:
        for chunk in self.images.split(1024):
            yield chunk.cpu().numpy().tobytes()


@dataclass(frozen=True, eq=False)
class _Folder:
    root: Path
    files: np.ndarray  # object (N,), str relative to root with forward slashes
    labels: torch.Tensor  # int64 (N,)

    @property
    def shape(self) -> tuple[int, int, int]:
        return 3, IMAGE_SIZE, IMAGE_SIZE

    def read(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        images = torch.empty((len(rows), *self.shape), dtype=torch.uint8)
        if len(rows):
            with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # Pillow decodes without the GIL
                decoded = pool.map(lambda file: decode_image(self.root / file), self.files[rows])
                for i, image in enumerate(decoded):
                    images[i] = torch.from_numpy(image)
        device = self.labels.device
        return images.to(device), self.labels[torch.from_numpy(rows).to(device)]

    def take(self, rows: np.ndarray) -> _Folder:
        return replace(
            self, files=self.files[rows], labels=self.labels[torch.from_numpy(rows).to(self.labels.device)]
        )

    def to(self, device: torch.device) -> _Folder:
        return replace(self, labels=self.labels.to(device))

    def identity(self) -> Iterator[bytes]:
        for file in self.files:
            try:
                size = (self.root / file).stat().st_size
            except OSError as error:
                raise InputError(
                    f"{self.root / file} can't be read ({error.strerror}): restore it"
                ) from error
            yield os.fsencode(file) + f"\0{size}\0".encode()


def decode_image(path: Path) -> np.ndarray:
    """A file as uint8 RGB (3,224,224): its shorter side resized to 256 (bilinear, antialiased), then cropped.

    Transparency is dropped, and 16-bit grey keeps its upper 8 bits.

    Raises:
        InputError: Pillow can't decode the file, or one side is over 100 times the other.
    """
    try:
        with Image.open(path) as file:
            image: Image.Image = file
            if image.mode.startswith("I"):
                image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
            elif "transparency" in image.info:
                image = image.convert("RGBA")  # straight to RGB, Pillow warns for some palettes
            image = image.convert("RGB")
    except Exception as error:  # Pillow's decoders raise whatever they stumble on
        raise InputError(
            f"{path} can't be decoded as an image ({_reason(error)}): replace it or take it out of the folder"
        ) from error
    width, height = image.size
    short = min(width, height)
    if max(width, height) > MAX_ASPECT * short:  # resized, it would fill the memory
        raise InputError(f"{path} is {width} x {height}, too thin for a crop: take it out of the folder")
    image = image.resize((RESIZED * width // short, RESIZED * height // short), Image.Resampling.BILINEAR)
    left, top = (round((size - IMAGE_SIZE) / 2) for size in image.size)
    cropped = image.crop((left, top, left + IMAGE_SIZE, top + IMAGE_SIZE))
    return np.ascontiguousarray(np.asarray(cropped).transpose(2, 0, 1))


_Content = tuple[torch.Tensor, torch.Tensor, tuple[str, ...]]  # uint8 (N,3,32,32), int64 (N,), class names


@dataclass(frozen=True)
class _Published:
    splits: tuple[str, ...]
    mean: tuple[float, ...]  # (3,)
    std: tuple[float, ...]  # (3,)
    read: Callable[[str, bool], _Content]  # (split, download)


_REGISTRY: dict[str, _Published] = {}


def _register(
    name: str, splits: Sequence[str], mean: Sequence[float], std: Sequence[float]
) -> Callable[..., Any]:
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
        return _load_folder(name.removeprefix("folder:"), split)
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


def _load_folder(path: str, split: str | None) -> ImageData:
    if split is None and not os.path.isdir(os.path.expanduser(path)):
        before, _, word = path.rpartition(":")
        if before and re.fullmatch(r"\w[\w.-]*", word):
            path, split = before, word
    root = Path(path).expanduser().absolute()
    tree = root / split if split else root
    if not path or not os.path.isdir(tree):
        raise InputError(
            f"there is no folder {str(tree) if path else path!r}: give folder:PATH or folder:PATH:SPLIT, "
            "where PATH or PATH/SPLIT has a sub-folder of images for each class"
        )
    try:
        folders = sorted(entry.name for entry in os.scandir(tree) if entry.is_dir() and entry.name[0] != ".")
        files = [
            (f"{folder}/{file}", label)
            for label, folder in enumerate(folders)
            for file in sorted(os.listdir(tree / folder))
            if file[0] != "." and os.path.splitext(file)[1].lower() in IMAGE_SUFFIXES
        ]
    except OSError as error:
        raise InputError(
            f"{error.filename or tree} can't be listed ({error.strerror}): make it readable"
        ) from error
    if not files:
        has = f"the sub-folders {', '.join(folders[:5])}, none with images" if folders else "no sub-folders"
        raise InputError(
            f"{tree} has {has}: give a folder (folder:PATH:SPLIT) with a sub-folder of images for each class"
        )
    names, labels = zip(*files, strict=True)
    return ImageData(
        name=f"folder:{root}",
        split=split or "",
        classes=tuple(folders),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        indices=np.arange(len(files)),
        source=_Folder(tree, np.array(names, dtype=object), torch.tensor(labels)),
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
        raise InputError(
            f"{origin} holds other {split} images than those published: fetch or install them again"
        )
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
    except (
        Exception
    ) as error:  # torchvision has no exception of its own; a damaged archive raises nearly anything
        fetch = "connect to the network for a download" if download else "allow the download"
        raise InputError(
            f"{name} can't be read from {folder} nor fetched ({_reason(error)}): {fetch}, or put the "
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


def _reason(error: Exception) -> str:
    """The first sentence of a foreign error."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].split(". ")[0].rstrip(" .:")
