"""What a landscape comes to in a few numbers."""

from __future__ import annotations

import numpy as np

from analyze.landscape.spec import DONE, FAILED, NOT_FINITE, TODO, Result
from analyze.results import Quantity, Row


def rows(result: Result) -> list[Row]:
    """The table of the command."""
    found = [*_at_the_checkpoint(result), *_over_the_grid(result)]
    if np.isfinite(result.barrier):
        remark = f"at x = {result.barrier_x:.3g}, above the line from one checkpoint's NLL to the other's"
        found.append(Row("barrier", result.barrier, None, remark))
    for axis, info in (("x", result.info_x), ("y", result.info_y)):
        if info is None:
            continue
        told = [info.kind, info.norm and f"norm {info.norm}"]
        told.append("" if np.isnan(info.eigenvalue) else f"eigenvalue {info.eigenvalue:.4g} ± {info.residual:.1g}")
        told.append("" if np.isnan(info.explained) else f"explains {info.explained:.1%} of the series")
        remark = f"||d|| / ||w||: {', '.join(filter(None, told))}"
        found.append(Row(f"direction {axis}", info.relative_length, None, remark))
    if result.info_y is not None:
        found.append(Row("cosine", result.cosine, None, "between the directions"))
    if (scan := result.prescan) is not None:
        remark = f"where the NLL reaches {scan.target:.3g}, from nine points"
        if np.isnan(scan.span):
            remark = f"the NLL does not reach {scan.target:.3g} within {scan.radius[-1]:.3g}"
        found.append(Row("suggested --span", scan.span, None, remark))
    if not np.isnan(result.deviation):
        found.append(Row("deviation", result.deviation, None, "of the NLL from full precision, largest of 9 points"))
    return [*found, *_unfinished(result)]


def _at_the_checkpoint(result: Result) -> list[Row]:
    if result.center is None or not (result.count[:, result.center[0], result.center[1]] > 0).all():
        return []
    place = (slice(None), *result.center)
    frames = len(result.frame)
    mean = f", mean over {frames} frames" if frames > 1 else ""
    count = int(result.count[place][0])
    found = [Row("NLL", float(result.nll[place].mean()), _error(result), f"at the checkpoint, {count} images{mean}")]
    for name in ("accuracy", "ece"):
        if not np.isnan(value := float(getattr(result, name)[place].mean())):
            found.append(Row("ECE" if name == "ece" else name, value, None, f"at the checkpoint{mean}"))
    return found


def _error(result: Result) -> float:
    """Standard error over images of the NLL at the checkpoint, as of a single frame: they share the images."""
    assert result.center is not None
    return float(np.mean(result.nll_stderr[(slice(None), *result.center)]))


def _over_the_grid(result: Result) -> list[Row]:
    mean = _mean_over_frames(result)
    if not np.isfinite(mean).any():
        return []
    row, column = np.unravel_index(np.nanargmin(np.where(np.isfinite(mean), mean, np.nan)), mean.shape)
    at = f"at ({result.x[column]:.3g}, {result.y[row]:.3g})" if len(result.y) > 1 else f"at x = {result.x[column]:.3g}"
    found = [Row("lowest NLL", float(mean[row, column]), None, f"on the grid, {at}")]
    rise = _rises(result)
    if rise is not None:
        for name, values in rise.items():
            found.append(Row(f"rise {name}", float(np.mean(values)), None, "mean of NLL - NLL at the checkpoint"))
    return found


def _mean_over_frames(result: Result) -> np.ndarray:
    """(y, x) mean NLL."""
    return result.nll.mean(axis=0)


def _rises(result: Result) -> dict[str, np.ndarray] | None:
    """NLL above the checkpoint's at all points of the grid and at those of its rim; None if that isn't known."""
    if result.center is None or not (result.status == DONE).all():
        return None
    mean = _mean_over_frames(result)
    rise = mean - mean[result.center]
    rim = np.zeros(rise.shape, dtype=bool)
    rim[:, [0, -1]] = True
    if len(result.y) > 1:
        rim[[0, -1]] = True
    return {"over the grid": rise.ravel(), "at the rim": rise[rim]}


def _unfinished(result: Result) -> list[Row]:
    meanings = {NOT_FINITE: "not finite, stored as they are", FAILED: "failed; the same command tries them again"}
    meanings[TODO] = "to do; the same command goes on"
    counts = {meaning: int((result.status == status).sum()) for status, meaning in meanings.items()}
    total = result.status.size
    return [Row("points", count, None, f"{meaning}, of {total}") for meaning, count in counts.items() if count]


def quantities(result: Result) -> list[Quantity]:
    """Numbers to compare; the rises have one sample for each grid point."""
    found = []
    if checkpoint := _at_the_checkpoint(result):
        found = [Quantity(f"{row.quantity} at the checkpoint", row.value, row.error) for row in checkpoint]
    for name, values in (_rises(result) or {}).items():
        error = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else np.nan
        found.append(Quantity(f"NLL rise {name}", float(values.mean()), error, values))
    if np.isfinite(result.barrier):
        found.append(Quantity("barrier", result.barrier, None))
    return found
