"""A stored result as rows of a table, as text, and as numbers in which networks are compared. NumPy only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from analyze.results import Quantity, Row, aligned
from analyze.robustness.corruption_errors import mean_accuracies, whole_kinds
from analyze.robustness.sigma_half import pseudo_values
from analyze.robustness.spec import (
    CORRUPTION_NAMES,
    Adversarial,
    Clean,
    Corruptions,
    FrequencyNoise,
    HeatMap,
    Result,
    attacked_band,
    band_name,
    noise_name,
    other_options,
)
from data_cache.errors import InputError

_PUBLISHED_ONLY = ("elastic_transform", "frost", "glass_blur", "motion_blur", "snow", "spatter")
"""Corruptions of CIFAR-10-C that `pictures.CORRUPTIONS` can't compute."""


def rows(result: Result) -> list[Row]:
    """What the command prints first: the network as it is, and each part's worst and mean."""
    found: list[Row] = []
    if (clean := result.clean) is not None:
        over = f"{clean.images:,} images" + (f", mean of {clean.passes} passes" if clean.passes > 1 else "")
        found.append(Row("accuracy", clean.accuracy, clean.accuracy_stderr, over))
        found.append(Row("negative log-likelihood", clean.nll, clean.nll_stderr, over))
    if result.frequency_noise is not None:
        found += _noise_rows(result.frequency_noise, noise_name(result.config))
    if result.heat_map is not None:
        found += _heat_map_rows(result.heat_map)
    if result.adversarial is not None:
        found += _adversarial_rows(result.adversarial, attacked_band(result.config))
    if result.corruptions is not None:
        found += _corruption_rows(result.corruptions)
    return found


def _noise_rows(noise: FrequencyNoise, kind: str) -> list[Row]:
    found = []
    for strength, sigma in enumerate(noise.sigma):
        accuracy = noise.accuracy[strength]
        if noise.bins.any() and not np.isnan(accuracy[noise.bins > 0]).any():
            band = int(np.nanargmin(accuracy))
            error = float(noise.accuracy_stderr[strength, band])
            remark = f"lowest of all bands: {band_name(noise, band)}{kind}"
            found.append(Row(f"accuracy, noise of {sigma:g}", float(accuracy[band]), error, remark))
    if not np.isnan(noise.sigma_half).all():
        band = int(np.nanargmin(noise.sigma_half))
        value, error = float(noise.sigma_half[band]), float(noise.sigma_half_stderr[band])
        remark = f"where accuracy is half-way to chance; lowest: {band_name(noise, band)}"
        found.append(Row("sigma at half accuracy", value, error, remark))
    return found


def _heat_map_rows(found: HeatMap) -> list[Row]:
    if np.isnan(found.error).all():
        return []
    done = int((~np.isnan(found.error)).sum())
    y, x = np.unravel_index(int(np.nanargmax(found.error)), found.error.shape)
    where = f"at ({found.frequency_y[y]:.3g}, {found.frequency_x[x]:.3g}) pi, of {done} frequencies"
    images = f"{found.images:,} images, waves of {found.sigma:g}"
    return [
        Row("error over the heat map", float(np.nanmean(found.error)), None, f"mean, {images}"),
        Row("largest error of the heat map", float(found.error[y, x]), float(found.error_stderr[y, x]), where),
    ]


def _adversarial_rows(found: Adversarial, band: str) -> list[Row]:
    """The strongest of each attack and norm."""
    strongest: dict[tuple[str, str], int] = {}
    for row in np.argsort(found.epsilon, kind="stable").tolist():
        strongest[str(found.attack[row]), str(found.norm[row])] = row
    return [
        Row(
            f"accuracy, {attack} {norm}",
            float(found.accuracy[row]),
            float(found.accuracy_stderr[row]),
            f"{found.images:,} images, epsilon {epsilon_name(norm, found.epsilon[row])}{band}",
        )
        for (attack, norm), row in sorted(strongest.items(), key=lambda item: item[1])
    ]


def _corruption_rows(found: Corruptions) -> list[Row]:
    if not (means := mean_accuracies(found)):
        return []
    whole, *kinds = means
    remark = f"mean over {len(kinds)} kinds and {len(found.severity)} severities, {found.images:,} images"
    worst = min(kinds, key=lambda quantity: quantity.value)
    return [
        Row("accuracy, corrupted", whole.value, whole.error, remark),
        Row(worst.name, worst.value, worst.error, "lowest of all kinds, mean over severities"),
    ]


def tables(result: Result) -> list[str]:
    """Accuracy for each band and strength, attack, and corruption, as text."""
    found = []
    if result.frequency_noise is not None:
        found.append(f"accuracy under noise of one band{noise_name(result.config)}\n{_noise_table(result)}")
    if result.adversarial is not None and len(result.adversarial.epsilon):
        found.append(
            f"under attack{attacked_band(result.config)}\n{_adversarial_table(result.adversarial, result.config or {})}"
        )
    if result.corruptions is not None:
        found.append(f"accuracy on corrupted images, by severity\n{_corruption_table(result.corruptions)}")
    return found


def _noise_table(result: Result) -> str:
    noise = result.frequency_noise
    assert noise is not None
    lines = [["band", *(f"sigma {sigma:g}" for sigma in noise.sigma), "sigma at half accuracy"]]
    for band in range(len(noise.bins)):
        if noise.bins[band]:
            accuracies = map(_with_error, noise.accuracy[:, band], noise.accuracy_stderr[:, band])
            lines.append([band_name(noise, band), *accuracies, _half_text(noise, band)])
    return aligned(lines)


def _half_text(noise: FrequencyNoise, band: int) -> str:
    side = int(noise.sigma_half_side[band])
    tried = noise.sigma[~np.isnan(noise.accuracy[:, band])]
    if side and len(tried):
        return f"below {tried[0]:g}" if side < 0 else f"above {tried[-1]:g}"
    return _with_error(noise.sigma_half[band], noise.sigma_half_stderr[band])


def _adversarial_table(found: Adversarial, config: Mapping[str, Any]) -> str:
    shares = {}
    if config.get("attack_band") or (found.outside > 0).any():
        shares["outside [0, 1]"] = found.outside
    if (found.no_gradient > 0).any():
        shares["no gradient"] = found.no_gradient
    lines = [["attack", "epsilon", "accuracy", "success rate", "nll", "mean linf", "mean l2", *shares]]
    for row, (attack, norm, epsilon) in enumerate(zip(found.attack, found.norm, found.epsilon, strict=True)):
        lines.append(
            [
                f"{attack} {norm}",
                epsilon_name(norm, epsilon),
                _with_error(found.accuracy[row], found.accuracy_stderr[row]),
                _with_error(found.success_rate[row], found.success_rate_stderr[row]),
                _with_error(found.nll[row], found.nll_stderr[row]),
                f"{found.linf[row]:.3g}",
                f"{found.l2[row]:.3g}",
                *(f"{100 * share[row]:.3g} %" for share in shares.values()),
            ]
        )
    return aligned(lines)


def _corruption_table(found: Corruptions) -> str:
    lines = [["corruption", *map(str, found.severity), "mean"]]
    for name, accuracy in zip(found.corruption, found.accuracy, strict=True):
        lines.append(
            [str(name), *("" if np.isnan(value) else f"{value:.3f}" for value in (*accuracy, accuracy.mean()))]
        )
    return aligned(lines)


def epsilon_name(norm: str, epsilon: float) -> str:
    """`8/255` where it is a number of grey levels, else `0.5`."""
    levels = 255 * epsilon
    return f"{round(levels)}/255" if norm == "linf" and abs(levels - round(levels)) < 1e-6 else f"{epsilon:g}"


def quantities(result: Result) -> list[Quantity]:
    """Numbers that other results of the same options have, too, with a sample from each group of images.

    Names say all that the numbers depend on, so that only like is compared with like.
    """
    clean = result.clean
    if clean is None:
        return []
    found = [
        _share("accuracy", clean.accuracy, clean.accuracy_stderr, clean.group_correct, clean.group_images),
        _share("negative log-likelihood", clean.nll, clean.nll_stderr, clean.group_nll, clean.group_images),
    ]
    if result.frequency_noise is not None:
        found += _noise_quantities(result.frequency_noise, clean, noise_name(result.config))
    if result.heat_map is not None:
        found += _heat_map_quantities(result.heat_map, result.config or {})
    if result.adversarial is not None:
        found += _adversarial_quantities(result.adversarial, result.config or {})
    if result.corruptions is not None:
        found += _corruption_quantities(result.corruptions)
    return [quantity for quantity in found if not np.isnan(quantity.value)]


def _noise_quantities(noise: FrequencyNoise, clean: Clean, kind: str) -> Iterator[Quantity]:
    per_image = (("accuracy", "group_correct"), ("nll", "group_nll"), ("flip_rate", "group_flips"))
    for field, grouped in per_image:
        for strength, sigma in enumerate(noise.sigma):
            heading = f"{field.replace('_', ' ')} under noise of {sigma:g}{kind}"
            for band in range(len(noise.bins)):
                value, error = (getattr(noise, name)[strength, band] for name in (field, f"{field}_stderr"))
                sums = getattr(noise, grouped)[strength, band]
                yield _share(f"{heading}: {band_name(noise, band)}", value, error, sums, clean.group_images)
    pseudo = pseudo_values(noise, clean)
    held = clean.group_images > 0
    for band in range(len(noise.bins)):
        samples = np.full(len(held), np.nan)
        samples[held] = pseudo[band]
        name = f"sigma at half accuracy{kind}: {band_name(noise, band)}"
        yield Quantity(name, float(noise.sigma_half[band]), float(noise.sigma_half_stderr[band]), samples)


def _heat_map_quantities(found: HeatMap, config: Mapping[str, Any]) -> Iterator[Quantity]:
    if np.isnan(found.error).any():
        return
    further = _further("heat_map", config, ("heat_map_sigma", "heat_map_images"))
    for name, sums in (("error", found.group_errors), ("flip rate", found.group_flips)):
        heading = f"{name} under waves of {found.sigma:g}, {found.images} images{further}"
        for ring, bins in enumerate(found.ring_bins):
            if bins:
                total = sums[ring] / bins
                where = "0 alone" if ring == 0 else f"{found.ring_low[ring]:.3g}-{found.ring_low[ring] + 0.1:.3g} pi"
                value = total.sum() / found.images
                yield _share(
                    f"{heading}: {where}", value, group_stderr(total, found.group_images), total, found.group_images
                )


def _adversarial_quantities(found: Adversarial, config: Mapping[str, Any]) -> Iterator[Quantity]:
    band = config.get("attack_band")
    kind = (f" in {band[0]:g}-{band[1]:g} pi" if band else "") + f", {found.images} images"
    named = ("attack_band", "attack_images")
    kinds = {
        "pgd": kind + _further("adversarial", config, named),
        "fgsm": kind + _further("adversarial", config, (*named, "pgd_steps", "pgd_step", "random_start")),
    }
    for field, grouped in (("accuracy", "group_correct"), ("nll", "group_nll")):
        for row, (attack, norm, epsilon) in enumerate(zip(found.attack, found.norm, found.epsilon, strict=True)):
            name = f"{field} under {attack} {norm}{kinds.get(str(attack), '')}: epsilon {epsilon_name(norm, epsilon)}"
            value, error = (getattr(found, column)[row] for column in (field, f"{field}_stderr"))
            yield _share(name, value, error, getattr(found, grouped)[row], found.group_images)


def _corruption_quantities(found: Corruptions) -> Iterator[Quantity]:
    if not (means := mean_accuracies(found)):
        return
    severities = " ".join(map(str, found.severity))
    heading = f"accuracy on corrupted images, {found.images} {found.source}, severities {severities}"
    names = [str(found.corruption[row]) for row in whole_kinds(found)]
    for name, quantity in zip([f"mean of {_listed(names)}", *names], means, strict=True):
        yield quantity._replace(name=f"{heading}: {name}")


def against(result: Result, reference: Result, paired: bool) -> list[Quantity]:
    """Corruption errors in percent of the reference's, where both saw the same corruptions."""
    ours, theirs = result.corruptions, reference.corruptions
    if ours is None or theirs is None:
        return []
    try:
        errors = ours.relative_to(theirs, paired=paired)
    except InputError:  # nothing in common
        return []
    return [
        Quantity("mean corruption error (%)", errors.mean_error, errors.mean_error_stderr),
        Quantity("mean relative corruption error (%)", errors.mean_relative, errors.mean_relative_stderr),
        *(
            Quantity(f"corruption error (%): {name}", float(value), float(error))
            for name, value, error in zip(errors.corruption, errors.error, errors.error_stderr, strict=True)
        ),
    ]


def _listed(names: list[str]) -> str:
    """Names of corruptions; of all that are computed, or all that are published, how many."""
    everything = set(names) in (set(CORRUPTION_NAMES), {*CORRUPTION_NAMES, *_PUBLISHED_ONLY})
    return f"all {len(names)}" if everything else ", ".join(names)


def _further(part: str, config: Mapping[str, Any], named: tuple[str, ...]) -> str:
    """What tells a part's options from the defaults, besides those named already, as the end of a phrase."""
    return "".join(f", {name} {config[name]}" for name in other_options(part, config) if name not in named)


def _share(name: str, value: float, error: float, sums: np.ndarray, images: np.ndarray) -> Quantity:
    """A mean over images of which each group's sum is known."""
    samples = np.divide(sums, images, out=np.full(len(images), np.nan), where=images > 0)
    return Quantity(name, float(value), float(error), samples, images)


def group_stderr(sums: np.ndarray, images: np.ndarray) -> float:
    """Standard error over groups of the mean over images of which each group's sum is known."""
    held = images > 0
    count, total = int(held.sum()), images.sum()
    deviations = sums[held] - images[held] * sums.sum() / total
    return float(np.sqrt((deviations**2).sum() * count / (count - 1)) / total) if count > 1 else np.nan


def _with_error(value: float, error: float) -> str:
    if np.isnan(value):
        return ""
    return f"{value:.3f}" if np.isnan(error) else f"{value:.3f} ± {error:.3f}"
