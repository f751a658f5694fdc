"""ImageNet-style trees of image files, decoded as they are needed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from .errors import InputError, first_line
from .image_data import ImageData

IMAGE_SIZE = 224
"""Height and width of the images of a folder tree, cropped from a shorter side of `RESIZED`."""

RESIZED = 256
MAX_ASPECT = 100
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGE_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}


@dataclass(frozen=True, eq=False)
class Folder:
    """Image files below a root, read when asked for."""

    root: Path
    files: np.ndarray  # object (N,), str relative to root with forward slashes
    labels: torch.Tensor  # int64 (N,)
    published = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C,H,W) of every image."""
        return 3, IMAGE_SIZE, IMAGE_SIZE

    def read(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Images uint8 (B,C,H,W) and labels int64 (B,)."""
        images = torch.empty((len(rows), *self.shape), dtype=torch.uint8)
        if len(rows):
            with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # Pillow decodes without the GIL
                decoded = pool.map(lambda file: decode_image(self.root / file), self.files[rows])
                for i, image in enumerate(decoded):
                    images[i] = torch.from_numpy(image)
        device = self.labels.device
        return images.to(device), self.labels[torch.from_numpy(rows).to(device)]

    def take(self, rows: np.ndarray) -> Folder:
        """These images alone."""
        return replace(self, files=self.files[rows], labels=self.labels[torch.from_numpy(rows).to(self.labels.device)])

    def to(self, device: torch.device) -> Folder:
        """The same on a device."""
        return replace(self, labels=self.labels.to(device))

    def identity(self) -> Iterator[bytes]:
        """What tells the images apart from others."""
        for file in self.files:
            try:
                size = (self.root / file).stat().st_size
            except OSError as error:
                raise InputError(f"{self.root / file} can't be read ({error.strerror}): restore it") from error
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
            f"{path} can't be decoded as an image ({first_line(error)}): replace it or take it out of the folder"
        ) from error
    width, height = image.size
    short = min(width, height)
    if max(width, height) > MAX_ASPECT * short:  # resized, it would fill the memory
        raise InputError(f"{path} is {width} x {height}, too thin for a crop: take it out of the folder")
    image = image.resize((RESIZED * width // short, RESIZED * height // short), Image.Resampling.BILINEAR)
    left, top = (round((size - IMAGE_SIZE) / 2) for size in image.size)
    cropped = image.crop((left, top, left + IMAGE_SIZE, top + IMAGE_SIZE))
    return np.ascontiguousarray(np.asarray(cropped).transpose(2, 0, 1))


def load_folder(path: str, split: str | None) -> ImageData:
    """The tree at `path`, or its sub-folder `split`; InputError if it is not there or holds no images."""
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
        raise InputError(f"{error.filename or tree} can't be listed ({error.strerror}): make it readable") from error
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
        source=Folder(tree, np.array(names, dtype=object), torch.tensor(labels)),
    )
