"""What a network says of images and of changed versions of them: the one place where pictures are judged."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from analyze.results import GROUPS, group_of
from analyze.robustness.pictures import check_range
from analyze.subject import FEW, Subject
from data_cache import InputError
from models.metrics import Metrics


@dataclass(frozen=True)
class Pictures:
    """One batch of images as pixels."""

    index: int
    """Number of the batch; with the pass it decides the dropout masks."""
    numbers: np.ndarray
    """(B,) number of each image in the subject's order; with the seed it decides what is drawn for the image."""
    groups: np.ndarray
    """(B,) group of each image: its place among the images used, modulo `GROUPS`."""
    pixels: Tensor
    """(B, C, H, W) in [0, 1], before normalisation."""
    labels: Tensor
    """(B,) int64."""


@dataclass(frozen=True)
class Outcome:
    """Sums over images of how their changed versions fared; two over disjoint images add up with `+`."""

    metrics: Metrics
    """Of the changed versions."""
    flips: int
    """Images whose prediction is not the clean one."""
    kl: float
    """Sum of KL(clean || changed), in nats."""
    group_correct: np.ndarray
    """(GROUPS,) images of each group whose changed version is classified right."""
    group_nll: np.ndarray
    """(GROUPS,) sums of their negative log-likelihoods."""
    group_flips: np.ndarray
    """(GROUPS,) how many of them flipped."""

    def __add__(self, other: Outcome) -> Outcome:
        return Outcome(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    def scores(self) -> dict[str, float | np.ndarray]:
        """The numbers that results store, by the names of their fields."""
        metrics = self.metrics
        flip_rate = self.flips / metrics.count
        return {
            "accuracy": metrics.accuracy,
            "accuracy_stderr": metrics.accuracy_stderr,
            "nll": metrics.mean_nll,
            "nll_stderr": metrics.nll_stderr,
            "ece": metrics.ece,
            "flip_rate": flip_rate,
            "flip_rate_stderr": binomial_stderr(flip_rate, metrics.count),
            "kl": self.kl / metrics.count,
            "group_correct": self.group_correct,
            "group_nll": self.group_nll,
            "group_flips": self.group_flips,
        }


GROUPED = ("group_correct", "group_nll", "group_flips")
SCORES = ("accuracy", "accuracy_stderr", "nll", "nll_stderr", "ece", "flip_rate", "flip_rate_stderr", "kl", *GROUPED)
"""Names of `Outcome.scores`; the grouped ones have a last dimension of `GROUPS`."""


def no_scores(*shape: int) -> dict[str, np.ndarray]:
    """Arrays of this shape for `Outcome.scores`, all NaN: not computed yet."""
    return {name: np.full((*shape, GROUPS) if name in GROUPED else shape, np.nan) for name in SCORES}


def binomial_stderr(share: float, count: int) -> float:
    """Standard error of a share of `count` images."""
    return float(np.sqrt(share * (1 - share) / count))


class Predictor:
    """A subject's images, what it says of them, and of changed versions of them.

    Probabilities are the mean over Monte Carlo passes; the passes of a batch draw the same masks for the images as
    they are and for every changed version, so that only the change makes a difference.

    Args:
        subject: Model and data.
        passes: Monte Carlo passes, where the network has any randomness.
        images: Use so many of the subject's images, evenly spaced; None for all.

    Raises:
        InputError: The data are no images (B, C, H, W), their labels no classes, or the outputs not (B, classes).
    """

    def __init__(self, subject: Subject, passes: int, images: int | None = None):
        self.subject = subject
        self.passes = subject.passes(passes)
        self.images = min(images or subject.data.images, subject.data.images)
        x, labels = next(iter(subject.data))
        subject.normalization  # noqa: B018  refuses what is no image
        if labels.is_floating_point() or labels.dim() != 1:
            raise InputError("the robustness analysis needs one class number as the label of each image.")
        self.shape: tuple[int, int, int] = tuple(x.shape[1:])  # type: ignore[assignment]
        self.classes = subject.log_probability(x[:FEW], 0, 1).shape[1]

    def pictures(self) -> Iterator[Pictures]:
        """The images in batches, the same at each call.

        Raises:
            InputError: Pixels are not in [0, 1], or labels are not among the network's classes.
        """
        place = 0
        for index, numbers, x, labels in self._batches():
            if int(labels.max()) >= self.classes or int(labels.min()) < 0:
                raise InputError(
                    f"labels go from {int(labels.min())} to {int(labels.max())}, but the model gives {self.classes} "
                    "numbers."
                )
            pixels = self.subject.pixels(x)
            check_range(float(pixels.min()), float(pixels.max()))
            yield Pictures(index, numbers, group_of(place, len(numbers)), pixels, labels)
            place += len(numbers)

    def log_probability(self, pictures: Pictures, pixels: Tensor) -> Tensor:
        """(B, classes) in float64, of these pixels in place of the batch's own."""
        return self.subject.log_probability(self.subject.normalized(pixels), pictures.index, self.passes)

    @cached_property
    def clean(self) -> list[Tensor]:
        """Log-probabilities (B, classes) of each batch as it is, float64 on the CPU."""
        return [self.log_probability(pictures, pictures.pixels).cpu() for pictures in self.pictures()]

    def outcome(self, pictures: Pictures, pixels: Tensor) -> Outcome:
        """How the network does on changed pixels (B, C, H, W) of a batch."""
        return self.compared(pictures, self.log_probability(pictures, pixels))

    def clean_outcome(self) -> Outcome:
        """How the network does on all the images as they are."""
        outcomes = [self.compared(pictures, self.clean[pictures.index]) for pictures in self.pictures()]
        return sum(outcomes[1:], outcomes[0])

    def compared(self, pictures: Pictures, log_probability: Tensor) -> Outcome:
        """The sums for one batch whose changed version has these log-probabilities."""
        changed, labels = log_probability.cpu(), pictures.labels.cpu()
        clean = self.clean[pictures.index]
        predicted = changed.argmax(dim=1)
        nll = -changed.gather(1, labels[:, None]).squeeze(1).numpy()
        flipped = (predicted != clean.argmax(dim=1)).numpy()

        def by_group(values: np.ndarray) -> np.ndarray:
            return np.bincount(pictures.groups, values, minlength=GROUPS)

        return Outcome(
            metrics=Metrics.of(changed, labels),
            flips=int(flipped.sum()),
            kl=float(torch.nn.functional.kl_div(changed, clean, reduction="sum", log_target=True)),
            group_correct=by_group((predicted == labels).numpy()),
            group_nll=by_group(nll),
            group_flips=by_group(flipped),
        )

    def group_images(self) -> np.ndarray:
        """(GROUPS,) images in each group."""
        return np.bincount(group_of(0, self.images), minlength=GROUPS)

    def _batches(self) -> Iterator[tuple[int, np.ndarray, Tensor, Tensor]]:
        """(index, image numbers, x, labels)."""
        if self.images < self.subject.data.images:
            yield from self._chosen
            return
        for index, first, (x, labels) in self.subject.numbered_batches():
            yield index, np.arange(first, first + len(labels)), x, labels

    @cached_property
    def _chosen(self) -> list[tuple[int, np.ndarray, Tensor, Tensor]]:
        """Some of the images, kept in memory, in batches of the subject's size."""
        wanted = np.arange(self.images) * self.subject.data.images // self.images
        parts = []
        for _, first, (x, labels) in self.subject.numbered_batches():
            rows = wanted[(wanted >= first) & (wanted < first + len(labels))] - first
            here = torch.from_numpy(rows).to(labels.device)
            parts.append((x[here], labels[here]))
        size = self.subject.data.batch_size
        x, labels = (torch.cat(column).split(size) for column in zip(*parts, strict=True))
        numbers = [wanted[start : start + size] for start in range(0, self.images, size)]
        return [(index, *batch) for index, batch in enumerate(zip(numbers, x, labels, strict=True))]
