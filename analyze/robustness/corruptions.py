"""Accuracy on corrupted pictures, by kind and severity: computed in memory, or from the files of CIFAR-10-C."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from analyze.distributed import ALONE, World
from analyze.results import Progress, silent
from analyze.robustness.pictures import SEVERITIES, corrupt
from analyze.robustness.predictions import SCORES, Outcome, Pictures, Predictor, no_scores
from analyze.robustness.spec import CORRUPTION_NAMES, Config, Corruptions
from data_cache import InputError
from data_cache.errors import first_line

Item = tuple[str, int]
"""Corruption and severity."""
Source = Callable[[Pictures, np.ndarray, str, int], np.ndarray]
"""Corrupted pictures of a batch, from the batch, its pixels as uint8 (B,C,H,W), and the corruption and severity."""
COMPUTED = "computed in memory"


class Corrupted(NamedTuple):
    """Sums over images for one corruption and severity."""

    outcome: Outcome
    squares: int
    """Of all changes of pixels, in levels of 1/255."""


def grow(
    predictor: Predictor,
    config: Config,
    done: Corruptions | None = None,
    *,
    world: World = ALONE,
    progress: Progress = silent,
) -> Iterator[Corruptions]:
    """The results so far, with one corruption and severity more at a time; ranks take them from a shared queue.

    Args:
        predictor: Of the images to corrupt.
        config: Corruptions and severities, and where their pictures come from.
        done: What is there already, of the same images and options.
        world: The ranks that share the work; rank 0 yields.
        progress: Called after each batch and each pair.

    Raises:
        InputError: The images are not in [0, 1], or a file is missing, damaged or of other images.
    """
    source = source_of(predictor, config)
    wanted = _wanted(config)
    rows = {} if done is None else _rows_of(done)
    clean = predictor.clean_outcome()
    todo = [item for item in wanted if item not in rows]
    total = len(rows) + len(todo)

    def work(item: Item) -> Corrupted:
        parts = []
        for pictures in predictor.pictures():
            parts.append(_corrupted(predictor, source, pictures, item))
            progress("corruptions", len(rows), total, f"{item[0]} {item[1]}, image {pictures.numbers[-1] + 1}")
        return Corrupted(*(sum(column[1:], column[0]) for column in zip(*parts, strict=True)))

    for item, corrupted in world.share_out(todo, work):
        change = np.sqrt(corrupted.squares / (predictor.images * np.prod(predictor.shape))) / 255
        rows[item] = corrupted.outcome.scores() | {"rms": change}
        progress("corruptions", len(rows), total, f"{item[0]} {item[1]}: accuracy {rows[item]['accuracy']:.3f}")
        yield _corruptions_of(rows, predictor, clean, config)


def is_complete(done: Corruptions | None, config: Config) -> bool:
    """Whether each corruption is there at each severity."""
    return done is not None and set(_wanted(config)) <= set(_items_of(done))


def source_of(predictor: Predictor, config: Config) -> Source:
    """Where the corrupted pictures come from.

    Raises:
        InputError: A file that the config needs is missing, damaged, or of other images.
    """
    if not config.cifar_c:
        return _computed(predictor)
    published = PublishedPictures(config.cifar_c, predictor)
    for name, _ in _wanted(config):
        published.stored(name)
    return published


class PublishedPictures:
    """Pictures of CIFAR-10-C or CIFAR-100-C (Hendrycks & Dietterich 2019) for the images of a predictor.

    NAME.npy holds uint8 pictures (5 n, 32, 32, 3), n for each severity in the order of the test set, and labels.npy
    their labels. Of a predictor's images evenly spaced over the test set, those in the same places are taken.

    Raises:
        InputError: A file is missing, damaged, or of another kind or other images.
    """

    def __init__(self, folder: str | Path, predictor: Predictor):
        self.folder = Path(folder)
        self._images = predictor.subject.data.images
        self._shape = predictor.shape
        labels = _open(self.folder / "labels.npy")
        if labels.ndim != 1 or labels.dtype.kind not in "iu" or not len(labels) or len(labels) % len(SEVERITIES):
            raise InputError(
                f"{self.folder / 'labels.npy'} holds {labels.dtype} {labels.shape}, not whole numbers for pictures of "
                f"{len(SEVERITIES)} severities."
            )
        self._each = len(labels) // len(SEVERITIES)
        for pictures in predictor.pictures():
            places = self._places(pictures)
            found = labels.reshape(len(SEVERITIES), -1)[:, places]
            if self._images > self._each or np.any(found != pictures.labels.cpu().numpy()):
                raise InputError(
                    f"the labels in {self.folder} are not those of {predictor.subject.data.spec}: give --data "
                    "cifar10:test or cifar100:test, whichever these corruptions are of."
                )

    def __call__(self, pictures: Pictures, levels: np.ndarray, name: str, severity: int) -> np.ndarray:
        """The corrupted pictures of a batch, uint8 (B,C,H,W)."""
        rows = (severity - 1) * self._each + self._places(pictures)
        return np.ascontiguousarray(self.stored(name)[rows].transpose(0, 3, 1, 2))

    def stored(self, name: str) -> np.ndarray:
        """The file of a corruption, (5 n, H, W, C), which is not read yet."""
        path = self.folder / f"{name}.npy"
        found = _open(path)
        channels, height, width = self._shape
        wanted = (len(SEVERITIES) * self._each, height, width, channels)
        if found.dtype != np.uint8 or found.shape != wanted:
            raise InputError(f"{path} holds {found.dtype} {found.shape}, not uint8 {wanted}.")
        return found

    def _places(self, pictures: Pictures) -> np.ndarray:
        return pictures.numbers * self._each // self._images


def _open(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"there is no file {path}.") from None
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} is no NumPy file: {first_line(error)}.") from error


def _computed(predictor: Predictor) -> Source:
    def source(pictures: Pictures, levels: np.ndarray, name: str, severity: int) -> np.ndarray:
        return corrupt(levels, name, severity, pictures.numbers.tolist(), predictor.subject.seed)

    return source


def _levels(pictures: Pictures) -> np.ndarray:
    """The pixels as uint8."""
    pixels = pictures.pixels.detach().cpu().double().numpy()
    return np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)


def _wanted(config: Config) -> list[Item]:
    names = config.corruptions or (_names_in(Path(config.cifar_c)) if config.cifar_c else CORRUPTION_NAMES)
    return [(name, severity) for name in dict.fromkeys(names) for severity in sorted(set(config.severities))]


def _names_in(folder: Path) -> list[str]:
    names = sorted(path.stem for path in folder.glob("*.npy") if path.stem != "labels")
    if not names:
        raise InputError(f"there are no corruptions, NAME.npy, in the folder {folder}.")
    return names


def _corrupted(predictor: Predictor, source: Source, pictures: Pictures, item: Item) -> Corrupted:
    """One batch."""
    levels = _levels(pictures)
    changed = source(pictures, levels, *item)
    change = changed.astype(np.int64) - levels
    pixels = torch.from_numpy(changed).to(pictures.pixels.device).to(pictures.pixels.dtype) / 255
    return Corrupted(predictor.outcome(pictures, pixels), int((change**2).sum()))


_ROW = (*SCORES, "rms")


def _items_of(done: Corruptions) -> list[Item]:
    names, severities = done.corruption.tolist(), done.severity.tolist()
    return [(names[row], severities[column]) for row, column in np.argwhere(~np.isnan(done.accuracy))]


def _rows_of(done: Corruptions) -> dict[Item, dict[str, float | np.ndarray]]:
    names, severities = done.corruption.tolist(), done.severity.tolist()
    return {
        (name, severity): {
            key: getattr(done, key)[names.index(name), severities.index(severity)] for key in _ROW
        }
        for name, severity in _items_of(done)
    }  # fmt: skip


def _corruptions_of(
    rows: dict[Item, dict[str, float | np.ndarray]], predictor: Predictor, clean: Outcome, config: Config
) -> Corruptions:
    found = {name for name, _ in rows}
    names = [name for name in CORRUPTION_NAMES if name in found] + sorted(found - set(CORRUPTION_NAMES))
    severities = sorted({severity for _, severity in rows})
    columns = no_scores(len(names), len(severities)) | {"rms": np.full((len(names), len(severities)), np.nan)}
    for (name, severity), scores in rows.items():
        for key in _ROW:
            columns[key][names.index(name), severities.index(severity)] = scores[key]
    return Corruptions(
        corruption=np.array(names),
        severity=np.array(severities),
        source=f"files in {Path(config.cifar_c).name}" if config.cifar_c else COMPUTED,
        images=predictor.images,
        clean_accuracy=clean.metrics.accuracy,
        clean_accuracy_stderr=clean.metrics.accuracy_stderr,
        group_images=predictor.group_images(),
        group_clean_correct=clean.group_correct,
        **columns,
    )
