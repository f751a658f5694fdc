"""The images of a subject: the same batches, in the same order, at every pass."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from data_cache import ImageData, InputError

Batch = tuple[Tensor, Tensor]
KEEP_BYTES = 2 * 2**30
"""What is kept of an iterable at most."""


@dataclass(frozen=True)
class Batches:
    """The `(x, y)` batches that every analysis sees: the same ones, in the same order, at every pass."""

    source: Iterable[Batch]
    """Gives fresh iterators over the same batches."""
    images: int
    batch_size: int
    """Images in the first batch, the largest of `ImageData`."""
    spec: str
    """What they are, for reports: `fashion_mnist:test` or `user data`."""
    sha256: str
    """Of what identifies them."""
    device: torch.device
    dtype: torch.dtype

    def __iter__(self) -> Iterator[Batch]:
        for x, y in self.source:
            yield self._place(x), self._place(y)

    def _place(self, tensor: Tensor) -> Tensor:
        dtype = self.dtype if tensor.is_floating_point() else None
        return tensor.to(self.device, dtype)


def as_batches(
    data: ImageData | Iterable[Batch],
    batch_size: int,
    limit: int | None,
    device: torch.device,
    dtype: torch.dtype,
) -> Batches:
    """The batches of images by name, at most `limit` of them, or those that an iterable brings, read once.

    Raises:
        InputError: An iterable gives no (x, y) pairs of tensors, no images, or more than can be kept.
    """
    if isinstance(data, ImageData):
        data = data.limit(limit) if limit else data
        data = data.to(device)
        return Batches(
            data.batches(batch_size), len(data), min(batch_size, len(data)), data.spec, data.sha256(), device, dtype
        )
    kept = _read_once(data, limit)
    digest = hashlib.sha256()
    for batch in kept:
        for tensor in batch:
            digest.update(str((tuple(tensor.shape), tensor.dtype)).encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    images = sum(len(y) for _, y in kept)
    return Batches(kept, images, len(kept[0][1]), "user data", digest.hexdigest(), device, dtype)


def _read_once(data: Iterable[Batch], limit: int | None) -> list[Batch]:
    """All batches of an iterable, kept, so that a loader that shuffles or augments is drawn from once only."""
    kept: list[Batch] = []
    images = held = 0
    for batch in data:
        if not (isinstance(batch, (tuple, list)) and len(batch) == 2 and all(isinstance(t, Tensor) for t in batch)):
            raise InputError("the data must give (x, y) pairs of tensors.")
        x, y = batch
        if x.dim() == 0 or y.dim() == 0 or len(x) != len(y):
            raise InputError(f"a batch pairs x {tuple(x.shape)} with y {tuple(y.shape)}; their first sizes must agree.")
        if not len(y):
            continue
        room = len(y) if limit is None else min(len(y), limit - images)
        kept.append((x[:room].detach().clone(), y[:room].detach().clone()))  # the loader may reuse its buffers
        images += room
        held += sum(tensor.numel() * tensor.element_size() for tensor in kept[-1])
        if held > KEEP_BYTES:
            raise InputError(
                f"the data is over {KEEP_BYTES >> 30} GiB, too much to keep in memory so that each pass sees the "
                "same; give limit=, or images by name or folder."
            )
        if images == limit:
            break
    if not images:
        raise InputError("the data holds no images.")
    return kept
