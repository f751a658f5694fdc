"""Augmentation as a pure function of (seed, epoch, index), so augmented data is a deterministic data set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F

from .errors import InputError

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MASK = (1 << 64) - 1


def augment(
    images: torch.Tensor, seed: int, epoch: int, indices: Sequence[int] | np.ndarray, padding: int = 4
) -> torch.Tensor:
    """Zero-pad, crop back at a random offset, and flip left to right with probability 1/2.

    What happens to an image depends on `(seed, epoch, its index)` alone: not on the batch that it comes in,
    on the order, or on the device.

    Args:
        images: uint8 (B,C,H,W), of any H and W.
        seed: an integer.
        epoch: an integer; each pair of the two is another version of the data.
        indices: (B,) integers, each image's position in the full published split.
        padding: pixels added on each side; offsets are uniform on {0, ..., 2*padding}.

    Returns:
        uint8 (B,C,H,W), contiguous, on the device of `images`.

    Raises:
        InputError: the shapes don't fit, or the padding is negative.
    """
    if images.ndim != 4 or images.dtype != torch.uint8:
        raise InputError(f"augment got {images.dtype} images of shape {tuple(images.shape)}: give uint8 (B,C,H,W)")
    if padding < 0:
        raise InputError(f"augment got padding {padding}: give 0 or more pixels")
    indices = np.asarray(indices, dtype=np.int64)
    if indices.shape != (len(images),):
        raise InputError(f"augment got {len(images)} images and indices {indices.shape}: give one index for each image")
    _, channels, height, width = images.shape
    top, left, flip = crops_and_flips(seed, epoch, indices, padding)
    rows = top[:, None] + np.arange(height)
    columns = left[:, None] + np.where(flip[:, None], np.arange(width)[::-1], np.arange(width))
    row, column = (torch.from_numpy(each).to(images.device) for each in (rows, columns))
    batch = torch.arange(len(images), device=images.device)
    channel = torch.arange(channels, device=images.device)
    padded = F.pad(images, (padding,) * 4)
    return padded[batch[:, None, None, None], channel[:, None, None], row[:, None, :, None], column[:, None, None, :]]


def normalize(
    images: torch.Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Turn bytes into a network's input, `(images/255 - mean)/std` for each channel.

    Args:
        images: uint8 (B,C,H,W).
        mean: C numbers, for images scaled to [0,1].
        std: C numbers likewise.
        dtype: of the result; the arithmetic itself is never narrower than float32.

    Returns:
        (B,C,H,W) of `dtype`, on the device of `images`.

    Raises:
        InputError: `mean` or `std` has not one number for each channel.
    """
    if not len(mean) == len(std) == images.shape[1]:
        raise InputError(
            f"normalize got {len(mean)} means and {len(std)} stds for {images.shape[1]} channels: "
            "give one of each for each channel"
        )
    work = torch.promote_types(dtype, torch.float32)
    mean_, std_ = (torch.tensor(each, dtype=work, device=images.device)[:, None, None] for each in (mean, std))
    return ((images.to(work) / 255 - mean_) / std_).to(dtype)


def crops_and_flips(
    seed: int, epoch: int, indices: np.ndarray, padding: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The random numbers of `augment`: top, left int64 (B,) in {0, ..., 2*padding}, and flip bool (B,)."""
    key = _hash(_hash(np.array([_GOLDEN]), seed), epoch)
    key = _mix(key ^ indices.astype(np.uint64))
    # Fixed-point multiplication maps 32 random bits to an offset; its bias is below (2*padding+1) / 2**32.
    offsets = np.uint64(2 * padding + 1)
    top, left = (((_hash(key, i) >> np.uint64(32)) * offsets >> np.uint64(32)).astype(np.int64) for i in (0, 1))
    return top, left, (_hash(key, 2) >> np.uint64(63)).astype(bool)


def _hash(key: np.ndarray, counter: int) -> np.ndarray:
    return _mix(key ^ np.uint64(counter & _MASK))


def _mix(z: np.ndarray) -> np.ndarray:
    """One step of SplitMix64 (Steele, Lea & Flood, OOPSLA 2014), a bijection of the 64-bit integers."""
    z = z + _GOLDEN  # arrays wrap around silently; NumPy scalars would warn
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
