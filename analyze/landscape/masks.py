"""Dropout masks that are drawn ahead, those of a pass in all other analyses, and kept as bits."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from analyze.landscape.twin import Twin
from analyze.subject import Subject
from models.layers import MCDropout

MASK_BYTES = 2**30
"""What kept masks take at most; further ones are drawn anew at each point."""


class Shape(NamedTuple):
    """What a dropout meets in a batch."""

    size: tuple[int, ...]
    strides: tuple[int, ...]
    rate: float


class Met(NamedTuple):
    """What a pass over a batch comes across."""

    dropouts: tuple[Shape, ...]
    """Those that are on, in the order of the calls."""
    largest: float
    """Bytes for each image of the largest output of a module."""


def met(twin: Twin, x: Tensor) -> Met:
    """What a pass over images (B, ...) comes across."""
    dropouts: list[Shape] = []
    largest = 0

    def note(module: nn.Module, inputs: tuple) -> None:
        if rate := rate_of(module):
            like = torch.empty_like(inputs[0])
            dropouts.append(Shape(tuple(like.shape), like.stride(), rate))

    def weigh(module: nn.Module, inputs: tuple, output: object) -> None:
        nonlocal largest
        if isinstance(output, Tensor):
            largest = max(largest, output.numel() * output.element_size())

    with ExitStack() as stack:
        for module in twin.model.modules():
            stack.callback(module.register_forward_hook(weigh).remove)
            if isinstance(module, (MCDropout, nn.Dropout)):
                stack.callback(module.register_forward_pre_hook(note).remove)
        twin.subject.outputs(x, 0)
    return Met(tuple(dropouts), largest / len(x))


def rate_of(module: nn.Module) -> float:
    """Of a dropout that is on; 0 of anything else."""
    if isinstance(module, MCDropout):
        return module.rate
    return module.p if isinstance(module, nn.Dropout) and module.training and not module.inplace else 0.0


class Masked(nn.Module):
    """A dropout whose mask is given."""

    def __init__(self, rate: float, dtype: torch.dtype):
        super().__init__()
        self.scale = 0.0 if rate == 1 else torch.ones((), dtype=dtype).div_(1 - rate).item()  # rounded as dropout does
        self.mask: Tensor | None = None
        self.in_place = False
        """Whether nothing else reads the input."""

    def forward(self, x: Tensor) -> Tensor:
        """Drop what the mask says and rescale the others."""
        if self.mask is None:
            return x
        mask = self.mask.to(x.dtype)
        return (x.mul_(mask) if self.in_place else x * mask).mul_(self.scale)


class Mask:
    """Zeros and ones (B, ...) of one dropout, as a tensor or as bits."""

    def __init__(self, drawn: Tensor):
        layout = torch.channels_last if drawn.dim() == 4 else torch.contiguous_format
        self._values: Tensor | None = drawn.contiguous(memory_format=layout).view(torch.uint8)
        self._bits = np.empty(0, np.uint8)
        self._size, self._strides = drawn.shape, self._values.stride()

    @property
    def packed_bytes(self) -> int:
        """What `pack` leaves of it."""
        return self._size.numel() // 8 + 1

    def pack(self) -> None:
        """Keep bits in the order of memory."""
        if self._values is not None:
            flat = self._values.as_strided((self._values.numel(),), (1,))
            self._values, self._bits = None, np.packbits(flat.numpy())

    def rows(self, rows: slice) -> Tensor:
        """The part for some of the images, in bytes."""
        if self._values is not None:
            return self._values[rows]
        begin, end, _ = rows.indices(self._size[0])
        each = self._size[1:].numel()
        first, last = begin * each, end * each
        bits = np.unpackbits(self._bits[first // 8 : -(-last // 8)])[first % 8 :][: last - first]
        return torch.from_numpy(bits).as_strided((end - begin, *self._size[1:]), self._strides)


class Masks:
    """The masks of each pass and batch, in the order in which a plain pass draws them."""

    def __init__(self, subject: Subject, shapes: Sequence[Sequence[Shape]], *, keep: bool):
        self._subject, self._shapes = subject, shapes
        self._room = MASK_BYTES if keep and subject.device.type == "cpu" else 0
        self._kept: dict[tuple[int, ...], list[Mask]] = {}

    def __call__(self, index: int, counters: tuple[int, ...]) -> list[Mask]:
        """One mask for each dropout of batch `index`."""
        if counters not in self._kept:
            masks = self._draw(index, counters)
            size = sum(mask.packed_bytes for mask in masks)
            if size > self._room:
                return masks
            self._room -= size
            for mask in masks:
                mask.pack()
            self._kept[counters] = masks
        return self._kept[counters]

    def _draw(self, index: int, counters: tuple[int, ...]) -> list[Mask]:
        subject, masks = self._subject, []
        with subject.frozen(*counters), torch.no_grad():
            for size, strides, rate in self._shapes[index]:
                ones = torch.empty_strided(size, strides, dtype=subject.dtype, device=subject.device).fill_(1)
                masks.append(Mask(torch.dropout(ones, rate, True) != 0))
        return masks
