"""What results with numbers of each layer share: which layers, and how these are told and compared. NumPy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analyze.arrays import array
from analyze.moments import Moments
from analyze.results import GROUPS, AnalysisResult, Quantity
from data_cache.errors import InputError


@dataclass(frozen=True)
class LayeredResult(AnalysisResult):
    """Base of results with numbers of each layer, means over images."""

    layer: np.ndarray = array("layer", doc="name of the layer in the network, in the order of execution")
    kind: np.ndarray = array("layer", doc="block, smoothing, stage, attention, mlp or module")
    depth: np.ndarray = array("layer", doc="position among the layers, from 0 (first) to 1 (last)")
    subsampling: np.ndarray = array("layer", doc="whether its maps are smaller than those of the layer before")
    channels: np.ndarray = array("layer", doc="channels of its maps")
    height: np.ndarray = array("layer", unit="pixel", doc="height of its maps")
    width: np.ndarray = array("layer", unit="pixel", doc="width of its maps")
    images: int = array(doc="images in the sums so far")
    all_images: int = array(doc="images that were asked for")
    batches: int = array(doc="batches in the sums so far")
    passes: int = array(doc="Monte Carlo passes over each image; 1 where all of them are the same")
    members: int = array(doc="members of the ensemble; 1 if it is none")

    def __post_init__(self) -> None:
        """Refuse sums that are not of these layers, as a file from a stranger may hold."""
        for name, moments, values in self.moments():
            if moments.total.shape != (GROUPS, len(self.layer), values):
                raise InputError(
                    f"the {self.analysis} analysis holds {name} of shape {moments.total.shape} for {GROUPS} groups of "
                    f"images, {len(self.layer)} layers and {values} values; the file is damaged."
                )
        if not len(self.layer):
            raise InputError(f"the {self.analysis} analysis holds no layers; the file is damaged.")

    def moments(self) -> list[tuple[str, Moments, int]]:
        """Name, sums and number of values of all sums that the result holds."""
        raise NotImplementedError

    @property
    def steps(self) -> list[tuple[int, int]]:
        """(position of the layer before, position) of each smoothing layer."""
        return [(place - 1, place) for place in np.flatnonzero(self.kind == "smoothing").tolist() if place > 0]

    @property
    def sizes(self) -> list[str]:
        """Channels, height and width of each layer's maps as text."""
        shapes = zip(self.channels, self.height, self.width, strict=True)
        return [f"{channels}×{height}×{width}" for channels, height, width in shapes]

    def quantities_of(self, heading: str, moments: Moments, value: int) -> list[Quantity]:
        """`heading: LAYER` for each layer: a mean over images, with samples for paired differences."""
        mean, error, samples = (found[..., value] for found in (moments.mean, moments.stderr, moments.samples))
        columns = zip(mean, error, samples.T, moments.images.T, strict=True)
        return [
            Quantity(f"{heading}: {name}", float(here), float(stderr), groups, weights)
            for name, (here, stderr, groups, weights) in zip(self.layer, columns, strict=True)
            if not np.isnan(here)
        ]


def ratio(before: np.ndarray, after: np.ndarray) -> tuple[float, float]:
    r"""Ratio of two sums over the same images, and its standard error.

    .. math:: r = \sum_g b_g \Big/ \sum_g a_g, \qquad
              s^2 = \frac{G}{G-1} \sum_g \Big[ (b_g - r a_g) \Big/ \sum_h a_h \Big]^2

    Args:
        before: (groups,) sums a over each group of images.
        after: (groups,) sums b.

    Returns:
        NaN where the first sum isn't above 0.
    """
    whole = before.sum()
    if not whole > 0:
        return float("nan"), float("nan")
    quotient = after.sum() / whole
    return float(quotient), _error((after - quotient * before) / whole, int(((before != 0) | (after != 0)).sum()))


def change(moments: Moments, value: int, before: int, after: int) -> tuple[float, float]:
    """How much larger the mean of a value is in layer `after` than in `before`, and the standard error of that."""
    mean, count = moments.mean[:, value], moments.count
    first, second = (
        (moments.total[:, place, value] - moments.images[:, place] * mean[place]) / max(1, count[place])
        for place in (before, after)
    )
    return float(mean[after] - mean[before]), _error(second - first, int((moments.images[:, before] > 0).sum()))


def _error(influence: np.ndarray, groups: int) -> float:
    """Standard error of a sum of independent groups' shares."""
    return float(np.sqrt((influence**2).sum() * groups / (groups - 1))) if groups > 1 else float("nan")


def measured(value: float, error: float) -> str:
    """A number and its error as text; empty if there is none."""
    return "" if np.isnan(value) else f"{value:.4g}" + ("" if np.isnan(error) else f" ± {error:.2g}")
