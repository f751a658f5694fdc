"""What the robustness analysis is asked, and what it answers. NumPy only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from analyze.arrays import array
from analyze.frequencies import Rings
from analyze.results import AnalysisResult, Quantity, Row

if TYPE_CHECKING:
    from analyze.robustness.corruption_errors import CorruptionErrors

TITLE = "Robustness: frequency-masked noise, Fourier heat map, adversarial attacks, corruptions"
SUBJECT_DEFAULTS = {"limit": 256, "split": "test"}
"""Images unless told otherwise: what the default run does in a minute or two on two cores."""

Part = Literal["frequency-noise", "heat-map", "adversarial", "corruptions"]

CORRUPTION_NAMES = (
    "gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "gaussian_blur", "defocus_blur", "zoom_blur",
    "brightness", "contrast", "saturate", "pixelate", "jpeg_compression", "fog",
)  # fmt: skip
"""What `pictures.CORRUPTIONS` can compute."""


def _of(part: str, default: Any, *further: str) -> Any:
    return field(default=default, metadata={"parts": (part, *further)})


def _free(default: Any) -> Any:
    return field(default=default, metadata={"free": True})


@dataclass(frozen=True)
class Config:
    """Options of the robustness analysis. Strengths are in pixels scaled to [0, 1], before normalisation."""

    parts: tuple[Part, ...] = _free(("frequency-noise", "heat-map", "adversarial", "corruptions"))
    """What to compute; parts already in the run file stay, unless --restart."""
    passes: int = 3
    """Monte Carlo passes whose probabilities are averaged; networks without randomness take one."""

    sigmas: tuple[float, ...] = _free((0.02, 0.05, 0.1, 0.2, 0.4))
    """Strengths of the noise: its root mean square over each image, or as --norm says. More can be added later."""
    bands: int = _of("frequency_noise", 10)
    """Bands from 0 to the Nyquist frequency, pi; beyond it radial ones go on at the same width."""
    rings: Rings = _of("frequency_noise", "square", "adversarial")
    """square: by max(|wy|, |wx|); radial: by sqrt(wy^2 + wx^2)."""
    dc: bool = _of("frequency_noise", False)
    """Also a band of frequency 0 alone, which brightens or darkens each channel."""
    noise: Literal["normal", "rademacher"] = _of("frequency_noise", "normal")
    """Distribution of the white noise that the bands are cut from."""
    norm: Literal["rms", "psd"] = _of("frequency_noise", "rms")
    """rms: the same energy in each band; psd: the same power in each Fourier bin, so that wide bands get more."""
    definition: Literal["ours", "park2022"] = _of("frequency_noise", "ours")
    """park2022: windows of +-0.2 rad around multiples of pi / bands, square, rademacher, psd, and strengths in
    normalised images: how the published code does it, with windows that also hold each frequency's mirror image."""
    clip: bool = _of("frequency_noise", False)
    """Cut noisy pixels to [0, 1], which spreads some energy to other bands."""

    heat_map_images: int = _of("heat_map", 32)
    """Images of the heat map, evenly spaced over those of the subject; 0 for all of them."""
    heat_map_sigma: float = _of("heat_map", 0.125)
    """Root mean square of the Fourier basis images; 0.125 is the published strength for 32 x 32."""
    heat_map_cycles: int = _of("heat_map", 16)
    """Highest frequency along each axis, in periods for each image; 16 is the whole plane of a 32 x 32 image."""

    attacks: tuple[Literal["fgsm", "pgd"], ...] = _free(("fgsm", "pgd"))
    """fgsm: one step along the gradient; pgd: several, of which the worst counts, or for a network with randomness the
    last. More can be added later."""
    norms: tuple[Literal["linf", "l2"], ...] = _free(("linf", "l2"))
    """What bounds a perturbation: its largest pixel (linf) or its Euclidean norm over the image (l2)."""
    epsilons_linf: tuple[float, ...] = _free((1 / 255, 2 / 255, 4 / 255))
    """Bounds on the largest pixel."""
    epsilons_l2: tuple[float, ...] = _free((0.25, 0.5))
    """Bounds on the Euclidean norm."""
    pgd_steps: int = _of("adversarial", 10)
    """Steps of pgd."""
    pgd_step: float = _of("adversarial", 2.5)
    """Length of a step, times bound / steps."""
    random_start: bool = _of("adversarial", True)
    """Start pgd at a random point in the ball, not at the image."""
    attack_band: tuple[float, ...] = _of("adversarial", ())
    """LOW HIGH in units of pi: perturbations of these frequencies alone (as --rings); pixels may then leave [0, 1]."""
    attack_passes: int = _of("adversarial", 2)
    """Monte Carlo passes for each gradient, other ones at each step and than those that judge the attack."""
    attack_images: int = _of("adversarial", 64)
    """Images to attack, evenly spaced over those of the subject; 0 for all of them."""

    corruptions: tuple[str, ...] = _free(())
    """Corruptions by name, such as gaussian_noise; default: all there are. More can be added later."""
    severities: tuple[int, ...] = _free((1, 2, 3, 4, 5))
    """How strong, from 1 to 5."""
    cifar_c: str | None = field(default=None, metadata={"parts": ("corruptions",), "reads": "folder"})
    """Folder of CIFAR-10-C or CIFAR-100-C (NAME.npy, labels.npy) to take pictures from, not computing any."""
    corruption_images: int = _of("corruptions", 128)
    """Images to corrupt, evenly spaced over those of the subject; 0 for all of them."""

    def __post_init__(self) -> None:
        from data_cache import InputError

        least = {
            "passes": 1, "bands": 1, "heat_map_images": 0, "heat_map_cycles": 0, "pgd_steps": 1, "attack_passes": 1,
            "attack_images": 0, "corruption_images": 0,
        }  # fmt: skip
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise InputError(f"{name} must be at least {bound}, not {getattr(self, name)}.")
        if not self.parts:
            raise InputError(
                "parts is empty: name at least one of frequency-noise, heat-map, adversarial, corruptions."
            )
        if not self.sigmas or len(set(self.sigmas)) < len(self.sigmas) or any(not 0 < s < np.inf for s in self.sigmas):
            raise InputError(f"sigmas must be different numbers above 0, not {self.sigmas}.")
        if not 0 < self.heat_map_sigma < np.inf:
            raise InputError(f"heat_map_sigma must be a number above 0, not {self.heat_map_sigma}.")
        self._check_attacks()
        self._check_corruptions()

    def _check_attacks(self) -> None:
        from data_cache import InputError

        for name in ("epsilons_linf", "epsilons_l2"):
            if any(not 0 <= epsilon < np.inf for epsilon in getattr(self, name)):
                raise InputError(f"{name} must be numbers from 0 up, not {getattr(self, name)}.")
        for name in ("attacks", "norms", *(f"epsilons_{norm}" for norm in self.norms)):
            if not getattr(self, name):
                raise InputError(f"{name} is empty: give at least one, or leave adversarial out of parts.")
        if not 0 < self.pgd_step < np.inf:
            raise InputError(f"pgd_step must be a number above 0, not {self.pgd_step}.")
        if self.attack_band and not (len(self.attack_band) == 2 and 0 <= self.attack_band[0] < self.attack_band[1]):
            raise InputError(f"attack_band is two numbers, LOW below HIGH, from 0 up, not {self.attack_band}.")

    def _check_corruptions(self) -> None:
        from data_cache import InputError

        if unknown := [] if self.cifar_c else sorted(set(self.corruptions) - set(CORRUPTION_NAMES)):
            raise InputError(f"there is no corruption {unknown[0]!r}: name some of {', '.join(CORRUPTION_NAMES)}.")
        if not self.severities or not set(self.severities) <= {1, 2, 3, 4, 5}:
            raise InputError(f"severities are numbers from 1 to 5, not {self.severities}.")


def other_options(part: str, config: Mapping[str, Any] | None, reference: Mapping[str, Any] | None = None) -> list[str]:
    """Options of a part, a field of `Result`, in which two configs differ; what they don't name has its default."""

    def value(options: Mapping[str, Any] | None, name: str, default: Any) -> Any:
        found = (options or {}).get(name, default)
        return list(found) if isinstance(found, tuple) else found  # as JSON gives it back

    names = [
        option.name
        for option in fields(Config)
        if part in option.metadata.get("parts", ())
        and value(config, option.name, option.default) != value(reference, option.name, option.default)
    ]
    banded = any((options or {}).get("attack_band") for options in (config, reference))
    return [name for name in names if name != "rings" or part != "adversarial" or banded]


@dataclass(frozen=True)
class Clean:
    """How the network does on the subject's images as they are."""

    images: int = array(doc="how many")
    classes: int = array(doc="classes of the network; chance is 1 / classes")
    passes: int = array(doc="Monte Carlo passes that were averaged; 1 for a network without randomness")
    accuracy: float = array(doc="share classified right")
    accuracy_stderr: float = array(doc="binomial standard error over images")
    nll: float = array(unit="nat", doc="mean negative log-likelihood")
    nll_stderr: float = array(unit="nat", doc="its standard error over images")
    ece: float = array(doc="expected calibration error, 15 bins")
    group_images: np.ndarray = array("group", doc="images whose place, modulo 64, is the group's number")
    group_correct: np.ndarray = array("group", doc="how many of them are classified right")
    group_nll: np.ndarray = array("group", unit="nat", doc="sum of their negative log-likelihoods")


@dataclass(frozen=True)
class FrequencyNoise:
    """The network under noise of one frequency band at a time; NaN: not computed yet, or no frequency in the band."""

    sigma: np.ndarray = array("sigma", doc="strength of the noise, in pixels scaled to [0, 1]; ascending")
    band_low: np.ndarray = array("band", unit="pi rad/px", doc="lower edge of the band, in it")
    band_high: np.ndarray = array("band", unit="pi rad/px", doc="upper edge, not in it, except 1 of square bands")
    bins: np.ndarray = array("band", doc="bins of the Fourier plane in the band")
    accuracy: np.ndarray = array("sigma", "band", doc="share classified right")
    accuracy_stderr: np.ndarray = array("sigma", "band", doc="binomial standard error over images")
    nll: np.ndarray = array("sigma", "band", unit="nat", doc="mean negative log-likelihood")
    nll_stderr: np.ndarray = array("sigma", "band", unit="nat", doc="its standard error over images")
    ece: np.ndarray = array("sigma", "band", doc="expected calibration error, 15 bins")
    flip_rate: np.ndarray = array("sigma", "band", doc="share whose prediction is not the one without noise")
    flip_rate_stderr: np.ndarray = array("sigma", "band", doc="binomial standard error over images")
    kl: np.ndarray = array("sigma", "band", unit="nat", doc="mean KL(without noise || with noise)")
    rms: np.ndarray = array(
        "sigma", "band", doc="root mean square of what was added, over all images, in units of sigma"
    )
    clipped: np.ndarray = array("sigma", "band", doc="share of pixel values that were cut to [0, 1]")
    in_band: np.ndarray = array("sigma", "band", doc="share of the energy added that lies in the band; 1 if not cut")
    sigma_half: np.ndarray = array("band", doc="strength where accuracy is half-way from clean to chance")
    sigma_half_stderr: np.ndarray = array("band", doc="its standard error: jackknife over groups of images")
    sigma_half_side: np.ndarray = array(
        "band", doc="-1: sigma_half is below the smallest strength, 1: above the largest, 0: between, or not known"
    )
    group_correct: np.ndarray = array("sigma", "band", "group", doc="images of each group classified right")
    group_nll: np.ndarray = array("sigma", "band", "group", unit="nat", doc="sums of negative log-likelihoods")
    group_flips: np.ndarray = array("sigma", "band", "group", doc="images of each group whose prediction flipped")


def attacked_band(config: Mapping[str, Any] | None) -> str:
    """To which frequencies attacks were limited, as the end of a heading; empty for none."""
    band = (config or {}).get("attack_band")
    return f", within {band[0]:g}-{band[1]:g} pi" if band else ""


def noise_name(config: Mapping[str, Any] | None) -> str:
    """What tells this noise from the default one, as the end of a phrase: `, psd, clipped`; "" for the default."""
    config = config or {}
    if config.get("definition") == "park2022":
        words = ["park2022"]
    else:
        usual = {"noise": "normal", "norm": "rms", "rings": "square"}
        words = [str(config[name]) for name, value in usual.items() if config.get(name, value) != value]
    return "".join(f", {word}" for word in [*words, *["clipped"] * bool(config.get("clip"))])


def band_name(noise: FrequencyNoise, band: int) -> str:
    """`0.2-0.3 pi`, as tables and progress call a band."""
    low, high = noise.band_low[band], noise.band_high[band]
    return "0 alone" if high == 0 else f"{low:.3g}-{high:.3g} pi"


@dataclass(frozen=True)
class HeatMap:
    """The network under one Fourier basis image at a time (Yin et al. 2019); NaN: not computed yet."""

    frequency_y: np.ndarray = array("frequency_y", unit="pi rad/px", doc="vertical frequency, ascending")
    frequency_x: np.ndarray = array("frequency_x", unit="pi rad/px", doc="horizontal frequency, ascending")
    sigma: float = array(doc="root mean square of the basis image, in pixels scaled to [0, 1]")
    images: int = array(doc="images it was added to")
    clean_error: float = array(doc="share of them classified wrong as they are")
    clean_logit_norm: float = array(unit="nat", doc="mean norm of their centred logits as they are")
    error: np.ndarray = array("frequency_y", "frequency_x", doc="share classified wrong")
    error_stderr: np.ndarray = array("frequency_y", "frequency_x", doc="binomial standard error over images")
    flip_rate: np.ndarray = array(
        "frequency_y", "frequency_x", doc="share whose prediction is not the one without the basis image"
    )
    flip_rate_stderr: np.ndarray = array("frequency_y", "frequency_x", doc="binomial standard error over images")
    logit_change: np.ndarray = array(
        "frequency_y",
        "frequency_x",
        unit="nat",
        doc="mean norm of the change of the centred logits, log p minus its mean over classes",
    )
    ring_low: np.ndarray = array("ring", unit="pi rad/px", doc="lower edges of square rings; that of 0 alone is first")
    ring_bins: np.ndarray = array("ring", doc="frequencies of the map in each")
    group_images: np.ndarray = array("group", doc="images in each group")
    group_errors: np.ndarray = array("ring", "group", doc="classified wrong, summed over the frequencies of the ring")
    group_flips: np.ndarray = array("ring", "group", doc="flipped, summed over the frequencies of the ring")


@dataclass(frozen=True)
class Adversarial:
    """The network under perturbations made against it; the rows are in the order of attack, norm and bound."""

    attack: np.ndarray = array("row", doc="fgsm or pgd")
    norm: np.ndarray = array("row", doc="what the bound is on: linf or l2")
    epsilon: np.ndarray = array("row", doc="the bound, in pixels scaled to [0, 1]")
    images: int = array(doc="images attacked")
    clean_accuracy: float = array(doc="share of them classified right as they are")
    clean_accuracy_stderr: float = array(doc="binomial standard error over images")
    clean_nll: float = array(unit="nat", doc="mean negative log-likelihood as they are")
    accuracy: np.ndarray = array("row", doc="share classified right")
    accuracy_stderr: np.ndarray = array("row", doc="binomial standard error over images")
    success_rate: np.ndarray = array("row", doc="share made wrong of those right as they are; NaN if none was")
    success_rate_stderr: np.ndarray = array("row", doc="binomial standard error over those")
    nll: np.ndarray = array("row", unit="nat", doc="mean negative log-likelihood")
    nll_stderr: np.ndarray = array("row", unit="nat", doc="its standard error over images")
    ece: np.ndarray = array("row", doc="expected calibration error, 15 bins")
    linf: np.ndarray = array("row", doc="largest pixel of the perturbation, mean over images")
    l2: np.ndarray = array("row", doc="Euclidean norm of the perturbation, mean over images")
    outside: np.ndarray = array("row", doc="share of pixel values outside [0, 1]; 0 unless band-limited")
    no_gradient: np.ndarray = array(
        "row", doc="share of images whose first gradient was zero or not finite: the attack is blind there"
    )
    group_images: np.ndarray = array("group", doc="images in each group")
    group_clean_correct: np.ndarray = array("group", doc="how many of them are classified right as they are")
    group_correct: np.ndarray = array("row", "group", doc="images of each group classified right")
    group_nll: np.ndarray = array("row", "group", unit="nat", doc="sums of negative log-likelihoods")


@dataclass(frozen=True)
class Corruptions:
    """The network on corrupted pictures; NaN: not computed."""

    corruption: np.ndarray = array("corruption", doc="kind of corruption")
    severity: np.ndarray = array("severity", doc="how strong, from 1 to 5")
    source: str = array(doc="where the pictures come from")
    images: int = array(doc="pictures of each kind and severity")
    clean_accuracy: float = array(doc="share classified right as they are")
    clean_accuracy_stderr: float = array(doc="binomial standard error over images")
    accuracy: np.ndarray = array("corruption", "severity", doc="share classified right")
    accuracy_stderr: np.ndarray = array("corruption", "severity", doc="binomial standard error over images")
    nll: np.ndarray = array("corruption", "severity", unit="nat", doc="mean negative log-likelihood")
    nll_stderr: np.ndarray = array("corruption", "severity", unit="nat", doc="its standard error over images")
    ece: np.ndarray = array("corruption", "severity", doc="expected calibration error, 15 bins")
    flip_rate: np.ndarray = array("corruption", "severity", doc="share whose prediction is not the clean one")
    flip_rate_stderr: np.ndarray = array("corruption", "severity", doc="binomial standard error over images")
    kl: np.ndarray = array("corruption", "severity", unit="nat", doc="mean KL(clean || corrupted)")
    rms: np.ndarray = array("corruption", "severity", doc="root mean square of the change of pixels in [0, 1]")
    group_images: np.ndarray = array("group", doc="images in each group")
    group_clean_correct: np.ndarray = array("group", doc="how many of them are classified right as they are")
    group_correct: np.ndarray = array("corruption", "severity", "group", doc="images of each group classified right")
    group_nll: np.ndarray = array("corruption", "severity", "group", unit="nat", doc="sums of negative log-likelihoods")
    group_flips: np.ndarray = array(
        "corruption", "severity", "group", doc="images of each group whose prediction flipped"
    )

    def relative_to(self, reference: Corruptions, *, paired: bool) -> CorruptionErrors:
        """Corruption errors in percent of those of a reference network, and their means (mCE).

        Args:
            reference: On the same corruptions; of others, those in common count.
            paired: Whether both are of the same images.

        Raises:
            InputError: They have no corruption and severity in common.
        """
        from analyze.robustness.corruption_errors import relative_errors

        return relative_errors(self, reference, paired=paired)


@dataclass(frozen=True)
class Result(AnalysisResult):
    """How a network bears noise, waves, attacks and corruptions; absent parts were not asked for, or not begun."""

    analysis = "robustness"

    clean: Clean | None = None
    frequency_noise: FrequencyNoise | None = None
    heat_map: HeatMap | None = None
    adversarial: Adversarial | None = None
    corruptions: Corruptions | None = None

    def __post_init__(self) -> None:
        from data_cache import InputError

        clean, noise = self.clean, self.frequency_noise
        if noise is not None and not len(noise.sigma):
            raise InputError("the frequency noise has no strength.")
        if clean is not None and noise is not None and noise.group_correct.shape[-1] != len(clean.group_images):
            raise InputError(
                f"the images as they are come in {len(clean.group_images)} groups, but those with frequency noise in "
                f"{noise.group_correct.shape[-1]}."
            )

    def rows(self) -> list[Row]:
        """The table of the command."""
        from analyze.robustness.tables import rows

        return rows(self)

    def tables(self) -> list[str]:
        """Accuracy under each noise, attack and corruption."""
        from analyze.robustness.tables import tables

        return tables(self)

    def quantities(self) -> list[Quantity]:
        """Every number that another network's result has too, with its groups of images."""
        from analyze.robustness.tables import quantities

        return quantities(self)

    def against(self, reference: Result, paired: bool) -> list[Quantity]:
        """Corruption errors relative to those of a reference network."""
        from analyze.robustness.tables import against

        return against(self, reference, paired)

    def incomparable(self, config: Config) -> str:
        """Why it can't be drawn beside a result of this config; empty if it can."""
        parts = [part.replace("-", "_") for part in config.parts]
        held = [part for part in parts if getattr(self, part) is not None]
        if not held:
            return f"it holds none of {', '.join(parts)}"
        others = [other_options(part, self.config, asdict(config)) for part in held]
        return "" if not all(others) else f"its {', '.join(dict.fromkeys(sum(others, [])))} differ"
