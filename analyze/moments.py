"""Numbers of each image and layer as sums over images, from which means and standard errors follow. NumPy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analyze.arrays import array
from analyze.results import GROUPS


@dataclass(frozen=True)
class Moments:
    """Sums in float64 over images; two of them over other images add up with `+`."""

    images: np.ndarray = array("group", "layer", doc="images in the sums; image number i belongs to group i % groups")
    total: np.ndarray = array("group", "layer", "value", doc="sum over the group's images")
    squares: np.ndarray = array("layer", "value", doc="sum of squares over all images")

    @classmethod
    def of(cls, values: np.ndarray, first: int, counted: np.ndarray | None = None) -> Moments:
        """The sums of consecutive images.

        Args:
            values: (images, layers, values); NaN where a layer has no such value.
            first: Number of the first image.
            counted: (images, layers), False where the image has no values for the layer; default: all have.
        """
        counted = np.ones(values.shape[:2], dtype=bool) if counted is None else counted
        values = np.where(counted[..., None], values.astype(np.float64), 0.0)
        return cls(_by_group(counted.astype(np.int64), first), _by_group(values, first), (values**2).sum(axis=0))

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.images + other.images, self.total + other.total, self.squares + other.squares)

    @property
    def count(self) -> np.ndarray:
        """(layers,) images."""
        return self.images.sum(axis=0)

    @property
    def mean(self) -> np.ndarray:
        """(layers, values) mean over images; NaN where there are none."""
        return _divided(self.total.sum(axis=0), self.count[:, None])

    @property
    def stderr(self) -> np.ndarray:
        """(layers, values) standard error of `mean` over images; NaN for less than two."""
        count = self.count[:, None]
        variance = _divided(self.squares - count * self.mean**2, count - 1)
        return np.sqrt(_divided(np.maximum(variance, 0.0), count))  # NaN stays NaN

    @property
    def samples(self) -> np.ndarray:
        """(groups, layers, values) mean over each group's images; NaN where it has none."""
        return _divided(self.total, self.images[..., None])


def _by_group(values: np.ndarray, first: int) -> np.ndarray:
    """Sums (groups, ...) of values (images, ...) over the images of each group."""
    before = first % GROUPS
    rows = np.zeros((-(-(before + len(values)) // GROUPS) * GROUPS, *values.shape[1:]), dtype=values.dtype)
    rows[before : before + len(values)] = values
    return rows.reshape(-1, GROUPS, *values.shape[1:]).sum(axis=0)


def _divided(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """The quotient; NaN where the denominator isn't above 0."""
    return np.where(denominator > 0, numerator, np.nan) / np.maximum(denominator, 1)
