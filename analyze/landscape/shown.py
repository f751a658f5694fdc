"""What pictures of a landscape show: means over frames, what is missing, shared levels and limits. NumPy only."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Literal, NamedTuple

import numpy as np

from analyze.charting import Drawn
from analyze.drawing import model_name
from analyze.landscape.spec import (
    DONE,
    NOT_FINITE,
    RECOMPUTED,
    TODO,
    TOWARDS,
    UNKNOWN,
    Config,
    DirectionInfo,
    Metric,
    Result,
)

LABELS = {
    "nll": "NLL (nats)",
    "accuracy": "accuracy",
    "ece": "ECE",
    "l2": "squared L2 norm of the weights",
    "loss": "loss with weight decay (nats)",
}
COLORS = {"nll": "plasma", "accuracy": "viridis_r", "ece": "cividis", "l2": "Greys_r", "loss": "plasma"}
"""Colour maps: dark is good."""
Extend = Literal["neither", "max"]
"""Whether the class above the last level is open."""
UNBOUNDED = ("nll", "loss")
"""Metrics that may rise so far that pictures cut them, and colour them by logarithmic levels."""


@dataclass(frozen=True)
class Shown:
    """A metric over a grid, one number for each point."""

    x: np.ndarray
    """(X,) coordinates."""
    y: np.ndarray
    """(Y,) coordinates."""
    value: np.ndarray
    """(Y, X) values; NaN where missing."""
    missing: np.ndarray
    """(Y, X) points that are still to do, or failed."""
    todo: np.ndarray
    """(Y, X) those still to do."""

    @property
    def nonfinite(self) -> np.ndarray:
        """(Y, X) points whose value was computed, and is no finite number."""
        return ~self.missing & ~np.isfinite(self.value)

    @property
    def finite(self) -> np.ndarray:
        """All finite values, in no order that means anything."""
        return self.value[np.isfinite(self.value)]

    @property
    def lowest(self) -> tuple[int, int] | None:
        """Row and column of the smallest finite value; None if there is no finite one."""
        if not self.finite.size:
            return None
        row, column = np.unravel_index(np.nanargmin(np.where(np.isfinite(self.value), self.value, np.nan)), self.shape)
        return int(row), int(column)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return len(self.y), len(self.x)

    def coarse(self) -> Shown:
        """Itself, or while there are points to do: the complete grid of rows and columns that reaches farthest.

        Among those that reach equally far, the one with most points.
        """
        there = ~self.todo
        if there.all() or not there.any():
            return self
        best, found = (0.0, 0), self
        for rows, columns in _complete(there):
            area = float(np.ptp(self.x[columns]) * np.ptp(self.y[rows]))
            if area > 0 and (area, len(rows) * len(columns)) > best:
                best, found = (area, len(rows) * len(columns)), self._picked(rows, columns)
        return found

    def _picked(self, rows: np.ndarray, columns: np.ndarray) -> Shown:
        picked = np.ix_(rows, columns)
        return Shown(self.x[columns], self.y[rows], self.value[picked], self.missing[picked], self.todo[picked])


def _complete(there: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows and columns whose crossings are all there: for each row all rows that have its columns, and vice versa."""
    for pattern in np.unique(there, axis=0):
        if pattern.any():
            yield np.flatnonzero(there[:, pattern].all(axis=1)), np.flatnonzero(pattern)
    for pattern in np.unique(there, axis=1).T:
        if pattern.any():
            yield np.flatnonzero(pattern), np.flatnonzero(there[pattern].all(axis=0))


def one_frame(result: Result, name: str, frame: int) -> Shown:
    """A metric in one frame, given by its place."""
    done = np.isin(result.status[frame], (DONE, NOT_FINITE))
    value = np.where(done, result.metric(name)[frame], np.nan)  # type: ignore[arg-type]
    return Shown(result.x, result.y, value, ~done, result.status[frame] == TODO)


def place_of(result: Result, number: int | None) -> int | None:
    """Where the pass of this number is stored; None where the result lacks it."""
    places = result.frame.tolist()
    return places.index(number) if number in places else None


def one_pass(result: Result, name: str, number: int | None) -> Shown:
    """A metric in the pass of this number; the mean over all passes for None, and where the result lacks it."""
    place = place_of(result, number)
    return mean_over_frames(result, name) if place is None else one_frame(result, name, place)


def mean_over_frames(result: Result, name: str) -> Shown:
    """The mean of a metric over the frames that are done at each point; not finite where any of them is not."""
    values, done, counts = _done(result, name)
    with np.errstate(invalid="ignore"):
        mean = np.where(done, values, 0).sum(axis=0) / np.where(counts, counts, np.nan)
    return Shown(result.x, result.y, mean, counts == 0, (result.status == TODO).all(axis=0))


def spread_over_frames(result: Result, name: str) -> Shown:
    """The standard deviation of a metric over the frames that are done, of which there are two at least."""
    values, done, counts = _done(result, name)
    with np.errstate(invalid="ignore"):
        mean = np.where(done, values, 0).sum(axis=0) / np.where(counts, counts, np.nan)
        square = np.where(done, (values - mean) ** 2, 0).sum(axis=0)
        spread = np.sqrt(square / np.where(counts > 1, counts - 1, np.nan))
    return Shown(result.x, result.y, spread, counts < 2, (result.status == TODO).sum(axis=0) > len(values) - 2)


def _done(result: Result, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    done = np.isin(result.status, (DONE, NOT_FINITE))
    return result.metric(name), done, done.sum(axis=0)  # type: ignore[arg-type]


def error_over_images(result: Result, metric: Metric, number: int | None = None) -> np.ndarray | None:
    r"""(Y, X) standard error of a metric over images; None for metrics without one.

    Of NLL as stored, of accuracy :math:`\sqrt{p (1 - p) / n}`. Passes share their images: of their mean it is the mean
    of the errors of those that are done, an upper bound.

    Args:
        result: A curve or a surface.
        metric: Which.
        number: Of a pass; of the mean of all for None, and where the result lacks it.
    """
    if metric in ("nll", "loss"):
        errors = result.nll_stderr
    elif metric == "accuracy":
        share = result.accuracy
        errors = np.sqrt(share * (1 - share) / np.where(result.count > 0, result.count, np.nan))
    else:
        return None
    if (place := place_of(result, number)) is not None:
        return errors[place]
    done = np.isin(result.status, (DONE, NOT_FINITE))
    with np.errstate(invalid="ignore"):
        return np.where(done, errors, 0).sum(axis=0) / np.where(done.any(axis=0), done.sum(axis=0), np.nan)


class Limits(NamedTuple):
    """The range that pictures share."""

    low: float
    high: float
    clipped: bool
    """Whether there are values above `high`."""


def limits(values: Iterable[np.ndarray], percentile: float = 95) -> Limits:
    """From the smallest of all finite values to this percentile of them, or to the largest if that is not far above."""
    pooled = _pooled(values)
    low, high = float(pooled.min()), float(np.percentile(pooled, percentile))
    highest = float(pooled.max())
    if highest - low <= 1.25 * (high - low):
        high = highest
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        low, high = low - _least(low) / 2, high + _least(high) / 2
    return Limits(low, high, highest > high)


def limits_of(metric: str, values: Iterable[np.ndarray]) -> Limits:
    """The limits that suit a metric."""
    return limits(values) if metric in UNBOUNDED else limits(values, percentile=100)


def levels_of(metric: str, values: Iterable[np.ndarray]) -> tuple[np.ndarray, Extend]:
    """The levels that suit a metric, and which end is open: `max` or `neither`."""
    return (log_levels(values), "max") if metric in UNBOUNDED else (even_levels(values), "neither")


def log_levels(values: Iterable[np.ndarray], count: int = 10, percentile: float = 90) -> np.ndarray:
    r"""Levels whose heights above the smallest value grow by a constant factor, 50 in all.

    .. math:: l_0 = \min, \quad l_k = \min + (p - \min) \, 50^{(k - n + 1) / (n - 1)}, \quad k = 1 \dots n-1

    with the percentile p of all finite values: the class above the last level is open.
    """
    pooled = _pooled(values)
    low = float(pooled.min())
    rise = max(float(np.percentile(pooled, percentile)) - low, _least(low))
    return low + rise * np.concatenate([[0], np.geomspace(0.02, 1, count - 1)])


def even_levels(values: Iterable[np.ndarray], count: int = 10) -> np.ndarray:
    """Evenly spaced levels from the smallest to the largest finite value."""
    pooled = _pooled(values)
    low, high = float(pooled.min()), float(pooled.max())
    return np.linspace(low, max(high, low + _least(low)), count)


def _least(value: float) -> float:
    """A rise that can still be drawn at this height."""
    return max(1e-6 * abs(value), 1e-9)


def _pooled(values: Iterable[np.ndarray]) -> np.ndarray:
    pooled = np.concatenate([np.ravel(each) for each in values])
    pooled = pooled[np.isfinite(pooled)]
    return pooled if pooled.size else np.zeros(1)


# Words


def heading(result: Result) -> str:
    """Model, images, and how the picture was made, in two lines."""
    subject, config = result.subject or {}, result.config or {}
    lines = [f"{model_name(result)}: {subject['images']:,} images of {subject['data']}"] if subject else []
    made = [f"{norm} norm"] if (norm := result.info_x.norm) else []
    made += [f"mean of {len(result.frame)} MC passes"] if len(result.frame) > 1 else []
    made += [precision] if (precision := str(config.get("precision", ""))) not in ("", Config.precision) else []
    made += [RECOMPUTED] if RECOMPUTED in result.arithmetic else []
    return "\n".join([*lines, ", ".join([*made, span_of(result)])])


def span_of(result: Result) -> str:
    """The range of the axes."""
    ends = [f"{axis[0] + 0.0:g} to {axis[-1]:g}" for axis in (result.x, result.y) if len(axis) > 1]
    if len(set(ends)) == 2:
        return f"x from {ends[0]}, y from {ends[1]}"
    return f"{'x' if len(ends) == 1 else 'x and y'} from {ends[0]}" if ends else "one point"


def axis_label(result: Result, axis: str) -> str:
    """What a step along x or y is."""
    info = result.info_x if axis == "x" else result.info_y
    return f"{axis}: {_direction(info)}{borrowed(result)}" if info and info.kind != UNKNOWN else axis


def axes_told(drawn: Sequence[Drawn[Result]]) -> str:
    """What the axes of several models are, which panels only call x and y; for each where they are not the same."""
    told = [", ".join(axis_label(each.result, axis) for axis in "xy"[: each.result.y.size]) for each in drawn]
    if len(set(told)) < 2:
        return told[0] if len(drawn) > 1 and ":" in told[0] else ""
    return "axes: " + "; ".join(f"{label} ({each.name})" for each, label in zip(drawn, told, strict=True))


def borrowed(result: Result) -> str:
    """Whose the directions are, as ", as in NAME", where they were taken from another run file; else nothing."""
    source = (result.config or {}).get("same_directions")
    return f", as in {PurePath(str(source)).stem}" if source else ""


def _direction(info: DirectionInfo) -> str:
    kind, _, number = info.kind.partition(":")
    if kind == "random":
        return f"random direction, {info.norm} norm" if info.norm not in ("", "none") else "random direction"
    if kind == "eigen":
        known = f" ({info.eigenvalue:.3g} nats)" if np.isfinite(info.eigenvalue) else ""
        return f"Hessian eigenvector {number}{known}"
    if kind == "pca":
        known = f" ({info.explained:.0%} of the series)" if np.isfinite(info.explained) else ""
        return f"principal component {number}{known}"
    name = info.kind.removeprefix(TOWARDS).rsplit("/", 1)[-1].removesuffix(".safetensors")
    return f"0 this checkpoint, 1 {name}" if info.leads_to_checkpoint else f"{TOWARDS}{name} from another checkpoint"


def caption(results: Sequence[Result], *sentences: str, width: int = 100) -> str:
    """Small print: sentences, then how many grid points are missing or not finite, wrapped to `width` characters."""
    notes = [sentence for sentence in sentences if sentence]
    for result in results:
        of = f" of {model_name(result)}" if len(results) > 1 else ""
        total = result.status.size
        todo, failed = int(np.sum(result.status == TODO)), int(np.sum(~np.isin(result.status, (TODO, 1, 2))))
        infinite = int(np.sum(result.status == NOT_FINITE))
        for number, what in ((todo, "still to come"), (failed, "failed"), (infinite, "not finite")):
            if number:
                notes.append(f"{number:,} of {total:,} points{of} {what}")
    text = "; ".join(notes)
    return "\n".join(textwrap.wrap(text[:1].upper() + text[1:] + "." * bool(text), width))
