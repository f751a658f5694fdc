"""What the Fourier analysis is asked, and what it answers. NumPy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analyze.arrays import array, arrays
from analyze.frequencies import Rings
from analyze.layered import LayeredResult, change, measured, ratio
from analyze.moments import Moments
from analyze.results import Quantity, Row, aligned

TITLE = "Fourier spectra of feature maps by layer: amplitudes, and power of signal and Monte Carlo noise in rings"
SUBJECT_DEFAULTS = {"split": "test", "limit": 1000}
"""Images unless told otherwise: half a minute for the networks that ship, on two cores."""

HIGH = 0.8
"""Where high-frequency amplitudes are taken, in units of pi: the highest frequency of 5x5 maps, and so the highest that
maps of every size from 4 up have. Of maps that are not square, this is the frequency along the shorter axis."""
HALF = 0.5
"""Rings from here on, in units of pi, count as high frequencies in the shares of power."""


@dataclass(frozen=True)
class Config:
    """Options of the Fourier analysis."""

    passes: int = 10
    """Monte Carlo passes over each image; one is made where all of them are the same."""
    layers: tuple[str, ...] = ()
    """Globs of layer names, such as 'layer1.*', or the word stages; default: all blocks and smoothing layers."""
    rings: Rings = "radial"
    """Frequencies share a ring by sqrt(wy^2 + wx^2), in 15 rings of 0.1 pi, or (square) by max(|wy|, |wx|), in 10."""
    spectra: tuple[str, ...] = ()
    """Globs of layer names whose mean log amplitude is kept, and drawn, over the whole frequency plane."""

    def __post_init__(self) -> None:
        from data_cache import InputError

        if self.passes < 1:
            raise InputError(f"passes must be at least 1, not {self.passes}.")


@dataclass(frozen=True)
class Sums:
    """What the means come from; two over other images add up with `+`."""

    amplitude: Moments
    """Values: log amplitude in each bin of `Result.frequency`."""
    relative: Moments
    """Values: relative log amplitude in each bin."""
    high: Moments
    """Value: relative log amplitude at `HIGH`."""
    dead: Moments
    """Value: share of dead channels."""
    power: Moments
    """Values: power in each ring of `Result.radial_frequency`."""
    noise: Moments
    """Values: noise power in each ring."""
    plane: dict[str, np.ndarray] = arrays(
        unit="nat", doc="sum over images of the log amplitude of the layer, over half of the plane as rfft2 orders it"
    )

    def __add__(self, other: Sums) -> Sums:
        moments = {name: getattr(self, name) + getattr(other, name) for name in MOMENTS}
        return Sums(**moments, plane={name: total + other.plane[name] for name, total in self.plane.items()})


MOMENTS = ("amplitude", "relative", "high", "dead", "power", "noise")


@dataclass(frozen=True)
class Result(LayeredResult):
    r"""Spectra of the feature maps x[s, b, c, h, w] of each layer, means over images.

    With F the unnormalised two-dimensional Fourier transform over h, w of one channel, the log amplitude

    .. math:: A(\omega) = \mathrm{mean}_{s,b,c} \log |F(\omega)|, \qquad \Delta(\omega) = A(\omega) - A(0)

    is kept along the half diagonal :math:`\omega_y = \omega_x = \omega` from the origin outward, Nyquist frequency
    included where there is one (Park & Kim, "How Do Vision Transformers Work?", ICLR 2022; their figures label the last
    frequency pi whatever it is, and leave out the Nyquist frequency). Of maps that are not square, the diagonal goes
    through the shorter axis's bins and the nearest ones of the longer axis, and :math:`\omega` is their mean.

    Channels that are zero everywhere have no log amplitude: the mean is over the others of each image (`dead_share`
    counts them), and over images with any. Amplitudes below the rounding error of the transform, machine epsilon times
    the root mean square of |F|, count as that (a box blur leaves nothing at the Nyquist frequency); nothing is added to
    the others, whatever their scale.

    The power of a ring of frequencies and its part that is noise,

    .. math:: P_r = \frac{1}{(HW)^2} \sum_{\omega \in r} \mathrm{mean}_{s,b,c} |F|^2, \qquad
              N_r = \frac{1}{(HW)^2} \sum_{\omega \in r} \mathrm{mean}_{b,c} \mathrm{Var}_s F

    resolve the variances of the variance analysis by frequency: all rings but the origin's sum to the data variance
    (times 1 - 1/HW, for that is unbiased), and the noise of all rings to the model variance, with the same
    :math:`\mathrm{Var}_s` for ensembles.
    """

    analysis = "fourier"

    frequency: np.ndarray = array(
        "layer", "bin", unit="pi", doc="frequency along each axis of the half diagonal's bins; NaN beyond the last"
    )
    log_amplitude: np.ndarray = array("layer", "bin", unit="nat", doc="A, mean log amplitude")
    log_amplitude_stderr: np.ndarray = array("layer", "bin", unit="nat", doc="standard error over images")
    relative_log_amplitude: np.ndarray = array("layer", "bin", unit="nat", doc="A - A(0)")
    relative_log_amplitude_stderr: np.ndarray = array("layer", "bin", unit="nat", doc="standard error over images")
    high_frequency_amplitude: np.ndarray = array(
        "layer",
        unit="nat",
        doc="A - A(0) at 0.8 pi on the shorter axis, exp(A) interpolated between bins; NaN of maps that end below",
    )
    high_frequency_amplitude_stderr: np.ndarray = array("layer", unit="nat", doc="standard error over images")
    dead_share: np.ndarray = array("layer", doc="share of channels of single images that are zero everywhere")
    radial_frequency: np.ndarray = array("ring", unit="pi", doc="centre of the ring; the origin is a ring of its own")
    ring_low: np.ndarray = array("ring", unit="pi", doc="lower edge of the ring, which belongs to it")
    ring_bins: np.ndarray = array("layer", "ring", doc="frequencies in the ring")
    power: np.ndarray = array("layer", "ring", unit="activation^2", doc="power; NaN of a ring without frequencies")
    power_stderr: np.ndarray = array("layer", "ring", unit="activation^2", doc="standard error over images")
    model_noise_power: np.ndarray = array(
        "layer", "ring", unit="activation^2", doc="variance over realisations; 0 if deterministic, NaN of one pass"
    )
    model_noise_power_stderr: np.ndarray = array("layer", "ring", unit="activation^2", doc="standard error over images")
    spectra: dict[str, np.ndarray] = arrays(
        unit="nat", doc="mean log amplitude of the layer over the plane, both axes ascending, -1 pi first"
    )
    sums: Sums

    def moments(self) -> list[tuple[str, Moments, int]]:
        """All sums, with as many values as there are bins, rings or one."""
        bins, rings = self.frequency.shape[1], len(self.ring_low)
        values = {"amplitude": bins, "relative": bins, "high": 1, "dead": 1, "power": rings, "noise": rings}
        return [(name, getattr(self.sums, name), values[name]) for name in MOMENTS]

    def rows(self) -> list[Row]:
        """The table of the command: what each smoothing layer does, and what reaches the end."""
        rows = []
        for before, after in self.steps:
            value, error = change(self.sums.high, 0, before, after)
            if np.isfinite(value):
                name = f"log amplitude across {self.layer[after]}"
                rows.append(Row(name, value, error, f"nats, relative, at {HIGH:g} π, from {self.layer[before]}"))
        for before, after in self.steps:
            value, error = ratio(*(self.high_noise[:, place] for place in (before, after)))
            if np.isfinite(value):
                name = f"noise power across {self.layer[after]}"
                rows.append(Row(name, value, error, f"times that of {self.layer[before]}, from {HALF:g} π up"))
        for place, which in ((0, "first"), (-1, "last")):
            high, error = self.high_frequency_amplitude[place], self.high_frequency_amplitude_stderr[place]
            remark = f"nats, at {HIGH:g} π, of {self.layer[place]}, the {which} layer, {self.sizes[place]}"
            rows.append(Row("relative log amplitude", float(high), float(error), remark))
        return rows

    @property
    def high_noise(self) -> np.ndarray:
        """(group, layer) noise power from `HALF` up, sums over images."""
        rings = (self.ring_bins > 0) & (self.ring_low >= HALF)
        return np.where(rings, self.sums.noise.total, 0.0).sum(axis=-1)

    def high_share(self, power: np.ndarray) -> np.ndarray:
        """Share (layer,) from `HALF` up of a power (layer, ring) outside of the origin; NaN where there is none."""
        high, power = self.total(power * (self.ring_low >= HALF)), self.total(power) - power[:, 0]
        return np.divide(high, power, out=np.full(len(power), np.nan), where=power > 0)

    def total(self, power: np.ndarray) -> np.ndarray:
        """Sum (layer,) of a power (layer, ring) over all rings that have frequencies."""
        return np.where(self.ring_bins > 0, power, 0.0).sum(axis=1)

    def tables(self) -> list[str]:
        """All layers."""
        head = ["layer", "size", f"log amplitude at {HIGH:g} π"]
        for name in ("power", "noise power"):
            head += [f"{name} without origin", f"{name} from {HALF:g} π"]
        powers = self.power, self.model_noise_power
        signal, noise = (self.total(power) - power[:, 0] for power in powers)
        shares = [self.high_share(power) for power in powers]
        lines = [
            [
                str(name),
                self.sizes[place],
                measured(self.high_frequency_amplitude[place], self.high_frequency_amplitude_stderr[place]),
                measured(signal[place], np.nan),
                _percent(shares[0][place]),
                measured(noise[place], np.nan),
                _percent(shares[1][place]),
            ]
            for place, name in enumerate(self.layer)
        ]
        return [aligned([head, *lines])]

    def quantities(self) -> list[Quantity]:
        """Of each layer: high-frequency amplitude, and power and noise power in each ring."""
        found = self.quantities_of(f"relative log amplitude at {HIGH:g} π", self.sums.high, 0)
        for ring, low in enumerate(self.ring_low):
            where = "at the origin" if ring == 0 else f"from {low:.1f} π ({self.rings} rings)"
            found += self.quantities_of(f"power {where}", self.sums.power, ring)
            found += self.quantities_of(f"noise power {where}", self.sums.noise, ring)
        return found

    @property
    def rings(self) -> str:
        """How frequencies share rings."""
        return "radial" if self.radial_frequency[-1] > 1 else "square"

    def incomparable(self, config: Config) -> str:
        """Why it can't be drawn beside a result of this config; empty if it can."""
        return "" if self.rings == config.rings else f"its rings are {self.rings}, not {config.rings}"


def _percent(share: float) -> str:
    return "" if np.isnan(share) else f"{100 * share:.1f} %"
