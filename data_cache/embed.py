"""The part of Fashion-MNIST that ships in git: how it is stored, read, and made again.

`python -m data_cache.embed` makes it from the published files.

A file is the xz compression of 10 000 label bytes followed by 10 000 images of 28 columns of 28 bytes.
Column by column makes the smallest lossless file of those measured: 3.6 MB, where xz row by row takes
3.8, lossless WebP 4.0, PNG 4.1 and npz 4.4. It loads in 0.2 s.
"""

from __future__ import annotations

import gzip
import hashlib
import lzma
import sys
import zlib
from pathlib import Path

import numpy as np

from . import paths
from .errors import InputError, exit_on_input_error

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts the published idx files."""

COUNT = 10_000
"""Images in each embedded file."""

SHA256 = {
    "train": "eb8b79f2bd6050927cbc89d6d482efb3577349d51369f7a79e96125c9cdc4301",
    "test": "b7f140f1222993c13e87dc8277a29fffab35bf5fa0777d972356122e7320f6c6",
    "full": "308c6213870624505959c710712dbe6debc9c2041d98fda2dccb47bcffbd3d84",
}
"""Of the content, see `content_sha256`: 10 000 first training, all test, and all training images."""

Arrays = tuple[np.ndarray, np.ndarray]  # images uint8 (N,28,28), labels uint8 (N,)

_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": 1 << 23, "lc": 4, "lp": 0, "pb": 0, "nice_len": 273}]


def read(split: str) -> Arrays | None:
    """The embedded images uint8 (10000,28,28) and labels uint8 (10000,), or None where there is no checkout.

    Args:
        split: "train" or "test".

    Raises:
        InputError: the file is missing from the checkout, or its content is not what was published.
    """
    parts = ("datasets", "fashion_mnist", f"{split}.xz")
    path = paths.search(*parts)
    if path is None:
        if (checkout := paths.shipped()) is None:
            return None
        path = checkout.joinpath(*parts)
        raise InputError(f"{path} is missing from the checkout: restore it with `git checkout -- {path}`")
    try:
        images, labels = decode(path.read_bytes())
        if content_sha256(images, labels) != SHA256[split]:
            raise ValueError("its content has another sha256 than the published images")
    except (OSError, EOFError, ValueError, lzma.LZMAError) as error:
        checkout = paths.shipped()
        mend = (
            f"restore it with `git checkout -- {path}`"
            if checkout is not None and path.is_relative_to(checkout)
            else "delete it, so that the copy that ships with landscope is used"
        )
        raise InputError(f"{path} is damaged or can't be read ({error}): {mend}") from error
    return images, labels


def encode(images: np.ndarray, labels: np.ndarray) -> bytes:
    """The bytes of an embedded file, from images uint8 (10000,28,28) and labels uint8 (10000,)."""
    content = labels.tobytes() + images.transpose(0, 2, 1).tobytes()
    return lzma.compress(content, format=lzma.FORMAT_XZ, filters=_FILTERS)


def decode(data: bytes) -> Arrays:
    """The inverse of `encode`; unpacks no more than a file may hold, ValueError for another length."""
    length = COUNT * (1 + 28 * 28)
    unpacker = lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=1 << 28)
    content = np.frombuffer(unpacker.decompress(data, max_length=length + 1), np.uint8)
    if len(content) != length:
        raise ValueError(f"it unpacks to {len(content)} bytes or more instead of {length}")
    images = content[COUNT:].reshape(COUNT, 28, 28).transpose(0, 2, 1)
    return np.ascontiguousarray(images), content[:COUNT].copy()


def content_sha256(images: np.ndarray, labels: np.ndarray) -> str:
    """The sha256 of the label bytes followed by the image bytes row by row, whatever file they came from."""
    return hashlib.sha256(labels.tobytes() + images.tobytes()).hexdigest()


def read_idx(path: Path) -> np.ndarray:
    """The uint8 array in an idx file (MNIST's format), gzipped or plain.

    Raises:
        InputError: the file is missing, damaged, or holds anything but unsigned bytes of the size it states.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            magic = file.read(4)
            if len(magic) < 4 or magic[:3] != b"\0\0\x08" or not 1 <= magic[3] <= 4:
                raise ValueError("it is not an idx file of unsigned bytes")
            shape = np.frombuffer(file.read(4 * magic[3]), ">u4").astype(object)
            length = int(np.prod(shape))
            if len(shape) != magic[3] or length > 1 << 30:
                raise ValueError(f"its header gives the shape {tuple(shape)}")
            content = np.frombuffer(file.read(length + 1), np.uint8)
            if len(content) != length:
                raise ValueError(f"it doesn't hold the {length} bytes that its header promises")
            return content.reshape(tuple(shape)).copy()  # writable, as torch wants it
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise InputError(f"{path} can't be read ({error}): fetch or install it again") from error


def read_idx_pair(folder: Path, part: str) -> Arrays:
    """The images uint8 (N,28,28) and labels uint8 (N,) of a part, "train" or "t10k", from idx files."""
    images, labels = (read_idx(folder / f"{part}-{kind}-ubyte.gz") for kind in ("images-idx3", "labels-idx1"))
    if images.shape != (len(labels), 28, 28):
        raise InputError(f"{folder} has images {images.shape} for {len(labels)} labels: fetch the files again")
    return images, labels


def main(arguments: list[str]) -> None:
    """Write train.xz and test.xz into the checkout from the published files in a folder (or Debian's)."""
    if len(arguments) > 1 or any(word.startswith("-") for word in arguments):
        raise InputError(f"usage: python -m data_cache.embed [FOLDER OF THE FOUR idx .gz FILES, default {DEBIAN}]")
    if (checkout := paths.shipped()) is None:
        raise InputError("the embedded files belong to a git checkout and this is none: run this from a checkout")
    folder = Path(arguments[0]) if arguments else DEBIAN
    for split, part in (("train", "train"), ("test", "t10k")):
        images, labels = (array[:COUNT] for array in read_idx_pair(folder, part))
        if content_sha256(images, labels) != SHA256[split]:
            raise InputError(f"{folder} holds other {split} images than those published: fetch the files again")
        target = checkout / "datasets" / "fashion_mnist" / f"{split}.xz"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(encode(images, labels))
        print(f"{target}: {target.stat().st_size} bytes")


if __name__ == "__main__":
    with exit_on_input_error():
        main(sys.argv[1:])
