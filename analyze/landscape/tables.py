"""What a landscape comes to in a few numbers.

Standard errors are over images. Passes share their images, and so do the points of a grid: of sums of them no more is
known than that the error is at most the sum of the errors, and that is what stands here.
"""

from __future__ import annotations

import numpy as np

from analyze.landscape.shown import borrowed, error_over_images, span_of
from analyze.landscape.spec import DONE, FAILED, NOT_FINITE, RECOMPUTED, TODO, UNKNOWN, DirectionInfo, Metric, Result
from analyze.results import Quantity, Row


def rows(result: Result) -> list[Row]:
    """The table of the command."""
    found = [*_at_the_checkpoint(result), *_lowest(result), *_rises(result)]
    if np.isfinite(result.barrier):
        remark = f"at x = {result.barrier_x:.3g}, above the line from one checkpoint's NLL to the other's"
        found.append(Row("barrier", result.barrier, _barrier_error(result), remark))
    missed = "; the barrier needs x = 0 and x = 1 on the grid, leave out --span" if _misses_an_end(result) else ""
    found += [
        Row(f"direction {axis}", info.relative_length, None, f"||d|| / ||w||: {_told(info)}{borrowed(result)}{more}")
        for axis, info, more in (("x", result.info_x, missed), ("y", result.info_y, ""))
        if info is not None and info.kind != UNKNOWN
    ]
    if np.isfinite(result.cosine):
        found.append(Row("cosine", result.cosine, None, "between the directions"))
    if (scan := result.prescan) is not None:
        if np.isfinite(scan.span):
            remark = f"where the NLL reaches {scan.target:.3g}, from nine points"
            found.append(Row("suggested --span", scan.span, None, remark))
        elif np.isfinite(scan.target):
            remark = (
                f"of nine points within {scan.radius[-1]:.3g}; as it is below {scan.target:.3g}, no span is suggested"
            )
            found.append(Row("highest NLL", float(np.fmax.reduce(scan.nll)), None, remark))
    if not np.isnan(result.deviation):
        found.append(Row("deviation", result.deviation, None, "of the NLL from full precision, largest of 9 points"))
    return [*found, *_unfinished(result)]


def _told(info: DirectionInfo) -> str:
    """Where a direction comes from."""
    told = [info.kind, info.norm and f"norm {info.norm}"]
    told.append("" if np.isnan(info.eigenvalue) else f"eigenvalue {info.eigenvalue:.4g}, residual {info.residual:.1g}")
    told.append("" if np.isnan(info.explained) else f"explains {info.explained:.1%} of the series")
    return ", ".join(filter(None, told))


def _at_the_checkpoint(result: Result) -> list[Row]:
    if result.center is None:
        return []
    place = (slice(None), *result.center)
    if not (result.count[place] > 0).all():
        return []
    frames, count = len(result.frame), int(result.count[place][0])
    mean = f", mean over {frames} frames" if frames > 1 else ""
    mean += f", {RECOMPUTED}" if RECOMPUTED in result.arithmetic else ""
    accuracy, ece = (getattr(result, name)[place] for name in ("accuracy", "ece"))
    found = [
        Row("NLL", float(result.nll[place].mean()), float(_errors(result)[result.center]), f", {count} images{mean}"),
        Row("accuracy", float(accuracy.mean()), float(_errors(result, "accuracy")[result.center]), mean),
        Row("ECE", float(ece.mean()), None, mean),
    ]
    return [
        row._replace(remark=f"at the checkpoint{row.remark}")
        for row in found
        if row.quantity == "NLL" or not np.isnan(row.value)
    ]


def _mean(result: Result) -> np.ndarray:
    """(y, x) NLL, mean over frames."""
    return result.nll.mean(axis=0)


def _errors(result: Result, metric: Metric = "nll") -> np.ndarray:
    """(y, x) the largest standard error over images that its mean over frames can have."""
    errors = error_over_images(result, metric)
    assert errors is not None
    return errors


def _lowest(result: Result) -> list[Row]:
    mean = _mean(result)
    if not np.isfinite(mean).any():
        return []
    row, column = np.unravel_index(np.nanargmin(np.where(np.isfinite(mean), mean, np.nan)), mean.shape)
    at = f"at ({result.x[column]:.3g}, {result.y[row]:.3g})" if len(result.y) > 1 else f"at x = {result.x[column]:.3g}"
    return [Row("lowest NLL", float(mean[row, column]), float(_errors(result)[row, column]), f"on the grid, {at}")]


def _rises(result: Result) -> list[Row]:
    """How far the NLL lies above the checkpoint's, over the grid and at its rim; none if that isn't known.

    None for a way to another checkpoint either, which has no rim.
    """
    leads = any(info is not None and info.leads_to_checkpoint for info in (result.info_x, result.info_y))
    if leads or result.center is None or not (result.status == DONE).all():
        return []
    mean, errors = _mean(result), _errors(result)
    rim = np.zeros(mean.shape, dtype=bool)
    rim[:, [0, -1]] = True
    if len(result.y) > 1:
        rim[[0, -1]] = True
    found = []
    for name, points in (("over the grid", np.ones_like(rim)), ("at the rim", rim)):
        value = float((mean[points] - mean[result.center]).mean())
        error = float(errors[points].mean() + errors[result.center])
        found.append(
            Row(f"rise {name}", value, error, "mean NLL above the checkpoint's; the largest error it can have")
        )
    return found


def _misses_an_end(result: Result) -> bool:
    """Whether a curve leads to another checkpoint, and one of both is not on its grid."""
    leads = result.info_x.leads_to_checkpoint and result.one_dimensional
    return leads and not all(np.isclose(result.x, end, rtol=0, atol=1e-9).any() for end in (0, 1))


def _barrier_error(result: Result) -> float:
    """Of the three points that it is made of, at most."""
    errors, x = _errors(result)[0], result.barrier_x
    places = [int(np.abs(result.x - place).argmin()) for place in (x, 0, 1)]
    return float(errors[places] @ [1, 1 - x, x])


def _unfinished(result: Result) -> list[Row]:
    meanings = {NOT_FINITE: "not finite, stored as they are", FAILED: "failed; the same command tries them again"}
    meanings[TODO] = "to do; the same command goes on"
    counts = {meaning: int((result.status == status).sum()) for status, meaning in meanings.items()}
    total = result.status.size
    return [Row("points", count, None, f"{meaning}, of {total}") for meaning, count in counts.items() if count]


def quantities(result: Result) -> list[Quantity]:
    """Numbers to compare; rises have the range of the axes in their names, for they depend on it."""
    found = [Quantity(f"{row.quantity} at the checkpoint", row.value, row.error) for row in _at_the_checkpoint(result)]
    found += [Quantity(f"NLL {row.quantity}, {span_of(result)}", row.value, row.error) for row in _rises(result)]
    if np.isfinite(result.barrier):
        found.append(Quantity("barrier", result.barrier, _barrier_error(result)))
    if (scan := result.prescan) is not None and np.isfinite(scan.span):
        found.append(Quantity("suggested span", scan.span, None))
    for info in (result.info_x, result.info_y):
        if info is not None and np.isfinite(info.eigenvalue):
            name = f"eigenvalue {info.kind.removeprefix('eigen:')} along an axis"
            found.append(Quantity(name, info.eigenvalue, None, bound=info.residual))
    return found
