"""What the variance analysis is asked, and what it answers. NumPy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analyze.arrays import array
from analyze.layered import LayeredResult, measured, ratio
from analyze.moments import Moments
from analyze.results import Quantity, Row, aligned

TITLE = "Variance of feature maps by layer: over Monte Carlo passes (model) and over positions (data)"
SUBJECT_DEFAULTS = {"split": "test", "limit": 1000}
"""Images unless told otherwise: half a minute for the networks that ship, on two cores."""

VALUES = ("model_variance", "data_variance", "model_std", "data_std")
"""What is measured of each image and layer, in the order of `Result.sums`."""


@dataclass(frozen=True)
class Config:
    """Options of the variance analysis."""

    passes: int = 10
    """Monte Carlo passes over each image; one is made where all of them are the same."""
    layers: tuple[str, ...] = ()
    """Globs of layer names, such as 'layer1.*', or the word stages; default: all blocks and smoothing layers."""

    def __post_init__(self) -> None:
        from data_cache import InputError

        if self.passes < 1:
            raise InputError(f"passes must be at least 1, not {self.passes}.")


@dataclass(frozen=True)
class Result(LayeredResult):
    r"""Variance of the feature maps x[s, b, c, h, w] of each layer.

    The realisations s are Monte Carlo passes and members of an ensemble, b are images, c channels:

    .. math:: v^{model}_b = \mathrm{mean}_{c,h,w} \mathrm{Var}_s\, x, \qquad
              v^{data}_b = \mathrm{mean}_{s,c} \mathrm{Var}_{h,w}\, x

    with unbiased variances. Of an ensemble whose M members are random themselves, in S passes each, the realisation's
    variance is that over members and passes drawn at random, whatever S is:

    .. math:: \mathrm{Var}_s\, x = \Big(1 - \frac1S\Big) \mathrm{mean}_m \mathrm{Var}_{s \in m}\, x
              + \mathrm{Var}_m\, \mathrm{mean}_{s \in m}\, x

    `*_variance` is the mean of v over images and `*_std` that of its square root, each with a
    standard error over images ("feature map uncertainty" of Park & Kim, "Blurs Behave Like Ensembles", ICML 2022;
    data variance as the feature map variance of "How Do Vision Transformers Work?", ICLR 2022).
    """

    analysis = "variance"

    model_variance: np.ndarray = array(
        "layer", unit="activation^2", doc="variance over realisations; 0 of a deterministic network, NaN of one pass"
    )
    model_variance_stderr: np.ndarray = array("layer", unit="activation^2", doc="standard error over images")
    data_variance: np.ndarray = array(
        "layer", unit="activation^2", doc="variance over positions; NaN of maps of one position"
    )
    data_variance_stderr: np.ndarray = array("layer", unit="activation^2", doc="standard error over images")
    model_std: np.ndarray = array("layer", unit="activation", doc="mean of each image's sqrt(model variance)")
    model_std_stderr: np.ndarray = array("layer", unit="activation", doc="standard error over images")
    data_std: np.ndarray = array("layer", unit="activation", doc="mean of each image's sqrt(data variance)")
    data_std_stderr: np.ndarray = array("layer", unit="activation", doc="standard error over images")
    sums: Moments
    """Of model variance, data variance, and both standard deviations: what the means come from."""

    def moments(self) -> list[tuple[str, Moments, int]]:
        """Those of `VALUES`."""
        return [("sums", self.sums, len(VALUES))]

    def rows(self) -> list[Row]:
        """The table of the command: what each smoothing layer does, and what reaches the end."""
        rows = []
        for kind, value in (("model variance", 0), ("data variance", 1)):
            for before, after in self.steps:
                quotient, error = ratio(*(self.sums.total[:, place, value] for place in (before, after)))
                if np.isfinite(quotient):
                    name = f"{kind} across {self.layer[after]}"
                    rows.append(Row(name, quotient, error, f"times that of {self.layer[before]}"))
        last = f"{self.layer[-1]}, the last layer, {self.sizes[-1]}"
        for name in VALUES:
            value, error = getattr(self, name)[-1], getattr(self, f"{name}_stderr")[-1]
            remark = f"of {last}" if name.startswith("data") else f"of {last}; {self.realisations}"
            rows.append(Row(name.replace("_", " "), float(value), float(error), remark))
        return rows

    @property
    def realisations(self) -> str:
        """How many there are, as text."""
        passes = f"{self.passes} Monte Carlo pass{'es' * (self.passes > 1)}"
        return passes if self.members == 1 else f"{passes} of {self.members} members"

    def tables(self) -> list[str]:
        """All layers."""
        lines = [
            [str(name), size, measured(*model), measured(*data)]
            for name, size, model, data in zip(
                self.layer,
                self.sizes,
                zip(self.model_variance, self.model_variance_stderr, strict=True),
                zip(self.data_variance, self.data_variance_stderr, strict=True),
                strict=True,
            )
        ]
        return [aligned([["layer", "size", "model variance", "data variance"], *lines])]

    def quantities(self) -> list[Quantity]:
        """Variances and standard deviations of each layer."""
        return [
            quantity
            for value, name in enumerate(VALUES)
            for quantity in self.quantities_of(name.replace("_", " "), self.sums, value)
        ]
