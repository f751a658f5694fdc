"""Labelled images in a fixed order, as bytes: in memory where they are small, streamed where they are big."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np
import torch

from .augmentation import augment, normalize
from .errors import InputError


class Source(Protocol):
    """Where images come from; rows are int64 positions."""

    labels: torch.Tensor
    """Int64 (N,), on the device that `read` puts images on."""
    published: bool
    """Whether the name of the data says what the images are, wherever they lie."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C,H,W) of every image."""

    def read(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Images uint8 (B,C,H,W) and labels int64 (B,)."""

    def take(self, rows: np.ndarray) -> Source:
        """These images alone."""

    def to(self, device: torch.device) -> Source:
        """The same on a device."""

    def identity(self) -> Iterator[bytes]:
        """What tells the images apart from others."""


@dataclass(frozen=True, eq=False)
class ImageData:
    """Labelled images in a fixed order; made by `load`, or from tensors by `ImageData.from_arrays`."""

    name: str  # as `load` takes it, "fashion_mnist" or "folder:PATH"
    split: str  # "" for a folder without one
    classes: tuple[str, ...]
    mean: tuple[float, ...]  # (C,), for images scaled to [0,1]
    std: tuple[float, ...]  # (C,)
    indices: np.ndarray  # int64 (N,), each image's position in the full published split
    source: Source  # where the images come from

    def __post_init__(self) -> None:
        channels = self.shape[0]
        for what, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != channels or not np.all(np.isfinite(values)) or (what == "std" and min(values) <= 0):
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
            raise InputError(f"images are {images.dtype} {tuple(images.shape)}: give at least one, as uint8 (N,C,H,W)")
        if labels.shape != images.shape[:1] or labels.is_floating_point():
            raise InputError(f"labels are {labels.dtype} {tuple(labels.shape)}: give {len(images)} integers, (N,)")
        labels = labels.to(images.device, torch.int64)
        lowest, highest = int(labels.min()), int(labels.max())
        classes = tuple(map(str, range(highest + 1))) if classes is None else tuple(classes)
        if lowest < 0 or highest >= len(classes):
            raise InputError(f"labels go from {lowest} to {highest}: with {len(classes)} classes, give 0 and up")
        channels = images.shape[1]
        return cls(
            name=name,
            split=split,
            classes=classes,
            mean=(0.0,) * channels if mean is None else tuple(mean),
            std=(1.0,) * channels if std is None else tuple(std),
            indices=np.arange(len(images)),
            source=Memory(images, labels),
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
            raise InputError(f"positions go from {rows.min()} to {rows.max()}: {self.spec} has 0 to {len(self) - 1}")
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
        name = self.name if self.source.published else "folder"
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
class Memory:
    """Images held in memory, on any device."""

    images: torch.Tensor  # uint8 (N,C,H,W)
    labels: torch.Tensor  # int64 (N,)
    published = True

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C,H,W) of every image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def read(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Images uint8 (B,C,H,W) and labels int64 (B,)."""
        index = torch.from_numpy(rows).to(self.labels.device)
        return self.images[index], self.labels[index]

    def take(self, rows: np.ndarray) -> Memory:
        """These images alone."""
        return Memory(*self.read(rows))

    def to(self, device: torch.device) -> Memory:
        """The same on a device."""
        return Memory(self.images.to(device), self.labels.to(device))

    def identity(self) -> Iterator[bytes]:
        """What tells the images apart from others."""
        for chunk in self.images.split(1024):
            yield chunk.cpu().numpy().tobytes()
