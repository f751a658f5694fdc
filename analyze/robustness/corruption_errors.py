"""What corruption curves come to: mean accuracies, and errors relative to a reference network. NumPy only."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from analyze.results import Quantity
from analyze.robustness.spec import Corruptions
from data_cache.errors import InputError


class CorruptionErrors(NamedTuple):
    r"""Corruption errors of a network in percent of a reference's (Hendrycks & Dietterich 2019).

    .. math:: \mathrm{CE}_c = 100 \frac{\sum_s E_{s,c}}{\sum_s E^\mathrm{ref}_{s,c}}, \qquad
              \mathrm{relative\ CE}_c = 100 \frac{\sum_s (E_{s,c} - E_\mathrm{clean})}
              {\sum_s (E^\mathrm{ref}_{s,c} - E^\mathrm{ref}_\mathrm{clean})}

    with E the error rate at severity s. NaN where the reference's sum is not above 0; means are over the others.
    Standard errors are a jackknife over groups of images.
    """

    corruption: np.ndarray
    """(C,) kinds that both networks saw, at the same severities."""
    error: np.ndarray
    """(C,) CE in percent."""
    error_stderr: np.ndarray
    relative: np.ndarray
    """(C,) relative CE in percent."""
    relative_stderr: np.ndarray
    mean_error: float
    """mCE in percent."""
    mean_error_stderr: float
    mean_relative: float
    """Relative mCE in percent."""
    mean_relative_stderr: float


def relative_errors(result: Corruptions, reference: Corruptions, *, paired: bool) -> CorruptionErrors:
    """Corruption errors of `result` in percent of those of `reference`.

    Args:
        result: Of the network in question.
        reference: Of another one, on the same corruptions; of others, those in common count.
        paired: Whether group by group both are of the same images.

    Raises:
        InputError: They have no corruption in common at all severities that they share.
    """
    severities = [severity for severity in result.severity.tolist() if severity in reference.severity.tolist()]
    names = [name for name in result.corruption.tolist() if name in reference.corruption.tolist()]
    names = [n for n in names if all(_has(each, n, severities) for each in (result, reference))] if severities else []
    if not names:
        raise InputError("the two results have no corruption and severities in common.")
    ours, theirs = (_sums(each, names, severities) for each in (result, reference))
    counted = theirs > 0
    value = _ratios(ours, theirs, counted)[:, 0]
    ours_without, theirs_without = (_sums(each, names, severities, leave_out=True) for each in (result, reference))
    if paired and ours_without.shape == theirs_without.shape:
        stderr = _jackknife(_ratios(ours_without, theirs_without, counted))
    else:
        each = _ratios(ours_without, theirs, counted), _ratios(ours, theirs_without, counted)
        stderr = np.hypot(*map(_jackknife, each))
    count = len(names)
    return CorruptionErrors(
        np.array(names),
        value[:count],
        stderr[:count],
        value[count : 2 * count],
        stderr[count : 2 * count],
        float(value[-2]),
        float(stderr[-2]),
        float(value[-1]),
        float(stderr[-1]),
    )


def mean_accuracies(result: Corruptions) -> list[Quantity]:
    """Accuracy averaged over corruptions and severities, then over the severities of each corruption.

    Of the corruptions that were computed at each severity; empty if there are none. Samples are the same of each group
    of images alone, weights their numbers.
    """
    whole = whole_kinds(result)
    if not len(whole):
        return []
    parts = [("mean accuracy", whole), *((f"accuracy under {result.corruption[row]}", [row]) for row in whole)]
    weights = result.group_images.astype(np.float64)
    quantities = []
    for name, rows in parts:
        with np.errstate(invalid="ignore"):
            samples = result.group_correct[rows].mean(axis=(0, 1)) / weights
        value = float(result.accuracy[rows].mean())
        quantities.append(Quantity(name, value, _stderr(samples, weights), samples, weights))
    return quantities


def whole_kinds(result: Corruptions) -> np.ndarray:
    """Rows of the corruptions that were computed at each severity."""
    return np.flatnonzero(~np.isnan(result.accuracy).any(axis=1)) if len(result.severity) else np.zeros(0, dtype=int)


def _stderr(samples: np.ndarray, weights: np.ndarray) -> float:
    """Of a weighted mean of independent groups."""
    held = weights > 0
    samples, weights = samples[held], weights[held]
    if (groups := len(samples)) < 2:
        return np.nan
    spread = weights * (samples - np.average(samples, weights=weights))
    return float(np.sqrt((spread**2).sum() * groups / (groups - 1)) / weights.sum())


def _has(result: Corruptions, name: str, severities: list[int]) -> bool:
    row = result.corruption.tolist().index(name)
    columns = [result.severity.tolist().index(severity) for severity in severities]
    return not np.isnan(result.accuracy[row, columns]).any()


def _sums(result: Corruptions, names: list[str], severities: list[int], *, leave_out: bool = False) -> np.ndarray:
    """Error rates summed over severities, (2 C, K): as they are, and above the clean ones.

    K is 1, or with `leave_out` the number of groups that hold images: all but each of them.
    """
    rows = [result.corruption.tolist().index(name) for name in names]
    columns = [result.severity.tolist().index(severity) for severity in severities]
    held = result.group_images > 0
    images = result.group_images[held].astype(np.float64)
    wrong = images - result.group_correct[np.ix_(rows, columns)][:, :, held]
    wrong_clean = images - result.group_clean_correct[held]

    def rate(counts: np.ndarray) -> np.ndarray:
        total, number = counts.sum(axis=-1, keepdims=True), images.sum()
        with np.errstate(invalid="ignore"):  # a single group leaves nothing
            return (total - counts) / (number - images) if leave_out else total / number

    error = rate(wrong).sum(axis=1)
    return np.concatenate([error, error - len(severities) * rate(wrong_clean)])


def _ratios(sums: np.ndarray, reference: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """(2 C + 2, K) in percent: corruption errors, relative ones, and the means of both."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(counted, 100 * sums / reference, np.nan)
    means = []
    for half, which in zip(np.split(ratios, 2), np.split(counted[:, 0], 2), strict=True):
        means.append(half[which].mean(axis=0) if which.any() else np.full(ratios.shape[1], np.nan))
    return np.concatenate([ratios, np.stack(means)])


def _jackknife(leave_one_out: np.ndarray) -> np.ndarray:
    """Standard error of a statistic from its values without each group in turn, the last axis."""
    groups = leave_one_out.shape[-1]
    if groups < 2:
        return np.full(leave_one_out.shape[:-1], np.nan)
    with np.errstate(invalid="ignore"):  # infinite without a group: no error is known
        spread = leave_one_out - leave_one_out.mean(axis=-1, keepdims=True)
    return np.sqrt((spread**2).sum(axis=-1) * (groups - 1) / groups)
