"""The strength of noise at which accuracy has fallen half-way to chance, and how exact that is. NumPy only."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from analyze.robustness.spec import Clean, FrequencyNoise


def crossing(
    sigma: np.ndarray, accuracy: np.ndarray, clean: np.ndarray, chance: float
) -> tuple[np.ndarray, np.ndarray]:
    r"""Strength where accuracy first falls to half-way between clean and chance.

    .. math:: \ln \sigma_{1/2} = \ln \sigma_i + t \ln \frac{\sigma_{i+1}}{\sigma_i}, \qquad
              t = \frac{a_i - h}{a_i - a_{i+1}}, \quad a_i > h \ge a_{i+1}, \quad h = \frac{a_0 + a_c}{2}

    Args:
        sigma: (S,) strengths, ascending.
        accuracy: (S, ...) accuracy a at each, NaN where it was not measured: there that strength does not count.
        clean: (...) accuracy a_0 without noise.
        chance: a_c.

    Returns:
        (...) the strength, NaN where it is not known; and -1 where it is below the first that was measured, 1 where it
        is above the last, else 0: so also where none was, or the clean accuracy is not above chance.
    """
    level = (clean + chance) / 2
    order = np.isnan(accuracy).argsort(axis=0, kind="stable")  # what was not measured goes last
    sigma, accuracy = sigma[order], np.take_along_axis(accuracy, order, axis=0)
    fallen = accuracy <= level
    first = fallen.argmax(axis=0)
    known = ~np.isnan(accuracy[0]) & (clean > chance)
    crossed = fallen.any(axis=0)
    after = np.clip(first, min(1, len(sigma) - 1), None)
    (low, weak), (high, strong) = (
        [np.take_along_axis(values, place[None], axis=0)[0] for values in (accuracy, sigma)]
        for place in (after - 1, after)
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        step = (low - level) / (low - high)
        value = weak * (strong / weak) ** step
    side = np.where(crossed, np.where(first == 0, -1, 0), 1)
    return np.where(known & crossed & (first > 0), value, np.nan), np.where(known, side, 0)


def pseudo_values(noise: FrequencyNoise, clean: Clean) -> np.ndarray:
    """Jackknife pseudo-values of `sigma_half` that leave out one group of images each, (band, group).

    Their mean is `sigma_half`, and their standard error its standard error. Groups without images are left out;
    NaN where without one of the others it is not known.
    """
    value, _ = crossing(noise.sigma, noise.accuracy, np.array(clean.accuracy), 1 / clean.classes)
    held = clean.group_images > 0
    images, groups = clean.group_images[held], int(held.sum())
    correct = noise.group_correct[..., held]
    with np.errstate(divide="ignore", invalid="ignore"):  # a single group leaves nothing
        others = (correct.sum(axis=-1, keepdims=True) - correct) / (images.sum() - images)
        clean_others = (clean.group_correct.sum() - clean.group_correct[held]) / (images.sum() - images)
    without, _ = crossing(noise.sigma, others, np.broadcast_to(clean_others, others.shape[1:]), 1 / clean.classes)
    return value[:, None] + (groups - 1) * (without.mean(axis=1, keepdims=True) - without)


def with_sigma_half(noise: FrequencyNoise, clean: Clean) -> FrequencyNoise:
    """The same with `sigma_half` of each band, of the accuracies that it has."""
    value, side = crossing(noise.sigma, noise.accuracy, np.array(clean.accuracy), 1 / clean.classes)
    pseudo = pseudo_values(noise, clean)
    groups = pseudo.shape[1]
    stderr = pseudo.std(axis=1, ddof=1) / np.sqrt(groups) if groups > 1 else np.full(len(value), np.nan)
    return replace(noise, sigma_half=value, sigma_half_stderr=stderr, sigma_half_side=side)
