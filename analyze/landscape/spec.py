"""What the landscape analysis is asked, and what it answers. NumPy only."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from analyze.arrays import array, arrays
from analyze.landscape.checks import check_arrays, check_subject
from analyze.results import AnalysisResult, Progress, Quantity, Row, silent
from data_cache.errors import InputError

TITLE = "Loss landscape: the loss over a line or a plane of weights through the checkpoint"
SUBJECT_DEFAULTS = {"limit": 512}
"""Images unless told otherwise: a few minutes for the networks that ship, on two cores."""

BINS = 15
"""Confidence bins of the calibration error."""
SUMS = ("count", "nll_sum", "nll_sq", "correct", "bin_count", "bin_confidence", "bin_correct")
"""The fields of `Result` that are sums over images."""
TODO, DONE, NOT_FINITE, FAILED = range(4)
"""Values of `Result.status`."""
UNKNOWN = "(unknown)"
"""Kind of a direction in a file that doesn't say."""
RECOMPUTED = "BatchNorm recomputed"
"""In `Result.arithmetic`, where the running statistics at each point are those of its own activations."""
TOWARDS = "towards "
"""Begins the kind of a direction that leads to a checkpoint from another one, and here beside it."""

Norm = Literal["filter", "layer", "weight", "none", "filter_transposed"]
Metric = Literal["nll", "accuracy", "ece", "l2", "loss"]


def _free(default: Any, **further: Any) -> Any:
    return field(default=default, metadata={"free": True, **further})


def _direction() -> Any:
    words = ("random", *(f"eigen:{rank}" for rank in range(1, 6)), "pca:1", "pca:2")
    return field(default="random", metadata={"reads": "checkpoint", "words": words})


@dataclass(frozen=True)
class Config:
    """Options of the landscape analysis."""

    points: tuple[int, ...] = (21,)
    """Grid points along x and y; one number for both. Odd numbers have the checkpoint itself in the middle."""
    one_dimensional: bool = False
    """A curve over x alone instead of a surface."""
    span: tuple[float, ...] = ()
    """x and y run from -SPAN to SPAN, with two numbers each to its own; default 1. Along another checkpoint they run
    from -SPAN to 1 + SPAN; default 0, from this checkpoint to the other."""
    frames: int = _free(1)
    """Monte Carlo passes, each a surface of its own; more can be added later. One where all passes are the same."""
    first_frame: int = 0
    """Number of the first pass, for runs that are to be merged."""

    direction_x: str = _direction()
    """random; eigen:K, eigenvector of the K-th largest Hessian eigenvalue; pca:1 or pca:2, principal axes of --series;
    or another checkpoint, a file or the name of one that ships: then x = 0 is this checkpoint and x = 1 that one."""
    direction_y: str = _direction()
    """The same for y; not used by a curve."""
    series: tuple[str, ...] = field(default=(), metadata={"reads": "checkpoint"})
    """Checkpoints of one training, first to last: the axes of pca, and a trajectory projected into the plane."""
    norm: Norm = "filter"
    """Length of random directions. filter: each filter as long as the network's own (Li et al. 2018); layer: each
    layer; weight: each weight; none: as drawn; filter_transposed: over the first axis, as in some published figures."""
    same_directions: Path | None = field(default=None, metadata={"reads": "run"})
    """Take both directions from another run file, in place of --direction-x, --direction-y and --norm."""
    keep_directions: bool = _free(True)
    """Store the directions in the run file, which takes twice the size of the network. Without them it is small; they
    are made again to go on, and other runs can't take them from it."""

    noise: Literal["frame", "point"] = "frame"
    """Dropout masks: the same at all points of a frame (a smooth surface), or other ones at each point."""
    bn: Literal["auto", "frozen", "recompute"] = "auto"
    """Running statistics of BatchNorm: as in the checkpoint, or recomputed at each point from all the images.
    auto: recomputed along another checkpoint, else frozen."""
    engine: Literal["plain", "fast", "compiled"] = "fast"
    """plain: as all other analyses compute; fast: BatchNorm folded into convolutions, channels last, and what comes
    before the first dropout shared by all frames, equal to rounding; compiled: also by torch.compile, slow to begin."""
    precision: Literal["full", "tf32", "bfloat16"] = "full"
    """Arithmetic of the network; what tf32 (on CUDA) or bfloat16 change of the NLL is measured at 9 points."""
    prescan: bool = _free(True)
    """Look at nine points of growing radius first, and say which span would show the basin."""

    gif: Path | None = _free(None, writes=".gif")
    """Write an animation too: GIF, or MP4 where ffmpeg is installed."""
    gif_metric: Metric = _free("nll")
    """What the animation shows."""
    gif_style: Literal["surface", "contour"] = _free("surface")
    """As a surface in 3-D, or as contours from above."""
    gif_tween: int = _free(10)
    """Pictures for each frame: itself, and the others interpolated between it and the next."""
    gif_orbit: bool = _free(False)
    """Turn the camera around the surface, as it does anyway where nothing else moves."""
    gif_fps: int = _free(33)
    """Pictures of the animation in a second."""
    gif_size: int = _free(400)
    """Height of the animation in pixels; each surface is as wide."""

    def __post_init__(self) -> None:
        if not 1 <= len(self.points) <= 2 or min(self.points) < 2:
            raise InputError(f"points is one or two whole numbers from 2 up, not {_told(self.points)}.")
        if self.one_dimensional and len(self.points) > 1:
            raise InputError(f"a curve has one number of points, not {_told(self.points)}.")
        if len(self.span) > 2 - self.one_dimensional:
            raise InputError(f"span is one number for each axis at most, not {_told(self.span)}.")
        for axis in range(len(self._directions)):
            span, leads = self._span(axis), self._leads(axis)
            if not (0 < span < np.inf or (span == 0 and leads)):
                at_least = "0 or more" if leads else "above 0"
                raise InputError(f"span along {'xy'[axis]} must be a number {at_least}, not {span:g}.")
        for name, least in {"frames": 1, "first_frame": 0, "gif_tween": 1, "gif_fps": 1, "gif_size": 100}.items():
            if getattr(self, name) < least:
                raise InputError(f"{name} must be at least {least}, not {getattr(self, name)}.")
        for name, kind in zip(("direction_x", "direction_y"), self._directions, strict=False):
            if re.match(r"eigen\b", kind) and not re.fullmatch(r"eigen:[1-9]\d{0,3}", kind):
                raise InputError(f"{name} is eigen:K with K from 1 up, not {kind!r}.")
            if re.match(r"pca\b", kind) and kind not in ("pca:1", "pca:2"):
                raise InputError(f"{name} is pca:1 or pca:2, not {kind!r}.")
            if kind.startswith("pca:") and len(self.series) < 2:
                raise InputError(f"{name} {kind} needs at least two checkpoints in --series.")
            if not kind:
                raise InputError(f"{name} is empty; give random, eigen:K, pca:1, pca:2 or a checkpoint.")
        if len(set(self._directions)) < len(self._directions) and self.direction_x != "random":
            raise InputError(f"direction_x and direction_y are both {self.direction_x}, which spans no plane.")
        for name in self.series:
            if self.series.count(name) > 1:
                raise InputError(f"series names {name} twice.")
        if self.gif is not None:
            self._check_gif(Path(self.gif))

    def _check_gif(self, path: Path) -> None:
        """Refuse an animation that can't be, before the work that it would show."""
        animation_format(path)
        if self.one_dimensional:
            raise InputError("an animation shows surfaces; leave out --gif or --one-dimensional.")
        if self.gif_orbit and self.gif_style != "surface":
            raise InputError(
                "only surfaces can be orbited, not contours; leave out --gif-orbit or --gif-style contour."
            )

    @property
    def _directions(self) -> tuple[str, ...]:
        return (self.direction_x,) if self.one_dimensional else (self.direction_x, self.direction_y)

    @property
    def interpolates(self) -> bool:
        """Whether an axis leads to another checkpoint."""
        return any(map(self._leads, range(len(self._directions))))

    @property
    def recomputes(self) -> bool:
        """Whether BatchNorm's statistics are recomputed at each point."""
        return self.bn == "recompute" or (self.bn == "auto" and self.interpolates)

    def axes(self) -> tuple[np.ndarray, np.ndarray]:
        """X (X,) and y (Y,); y is [0] for a curve. Checkpoints that the grid meets lie at exactly 0 and 1."""
        lines = [self._axis(axis) for axis in range(len(self._directions))]
        return lines[0], lines[1] if len(lines) > 1 else np.zeros(1)

    def _axis(self, axis: int) -> np.ndarray:
        span, points = self._span(axis), self.points[min(axis, len(self.points) - 1)]
        if not self._leads(axis):
            return _line(-span, span, points)
        line = _line(-span, 1 + span, points)
        for checkpoint in (0.0, 1.0):
            line[np.abs(line - checkpoint) < 1e-12] = checkpoint
        return line

    def _span(self, axis: int) -> float:
        if not self.span:
            return 0.0 if self._leads(axis) else 1.0
        return self.span[min(axis, len(self.span) - 1)]

    def _leads(self, axis: int) -> bool:
        """Whether another checkpoint lies at coordinate 1."""
        return self.same_directions is None and _is_checkpoint(self._directions[axis])


def animation_format(path: Path) -> str:
    """By a file's ending, gif or mp4.

    Raises:
        InputError: It is neither.
    """
    if (ending := path.suffix.lower().removeprefix(".")) not in ("gif", "mp4"):
        raise InputError(f"an animation is a .gif or an .mp4, not {path.name or path}.")
    return ending


def _told(numbers: Sequence[float]) -> str:
    return " ".join(f"{number:g}" for number in numbers) or "none"


def _is_checkpoint(kind: str) -> bool:
    return kind not in ("random", UNKNOWN) and not re.match(r"(eigen|pca)\b|" + TOWARDS, kind)


def _line(low: float, high: float, points: int) -> np.ndarray:
    """Evenly spaced numbers with exact ends and exact zero in the middle of a symmetric range.

    Those of n points are bit-equal to every other one of 2n - 1.
    """
    places = np.arange(points)
    line = (low * (points - 1 - places) + high * places) / (points - 1)
    line[[0, -1]] = low, high
    return line


@dataclass(frozen=True)
class DirectionInfo:
    """Where a direction comes from; NaN where something has no meaning for it."""

    kind: str = array(doc="random, eigen:K, pca:K, the checkpoint that it leads to, or `towards` one from elsewhere")
    norm: str = array(doc="filter, layer, weight, none or filter_transposed; empty if not random")
    length: float = array(doc="||d||")
    relative_length: float = array(doc="||d|| / ||w||, over all studied weights")
    eigenvalue: float = array(unit="nat", doc="Hessian eigenvalue along an eigenvector")
    residual: float = array(unit="nat", doc="||Hd - lambda d|| / ||d|| of an eigenvector")
    explained: float = array(doc="share of the series' squared distance from its end that this direction explains")
    sha256: str = array(doc="of the direction's names, shapes and bits, and of the buffers that move with it")

    @property
    def leads_to_checkpoint(self) -> bool:
        """Whether another checkpoint lies at coordinate 1."""
        return _is_checkpoint(self.kind)


def kind_elsewhere(info: DirectionInfo) -> str:
    """The kind of a direction in another landscape than that which it was made for."""
    return f"{TOWARDS}{info.kind}" if info.leads_to_checkpoint else info.kind


@dataclass(frozen=True)
class Trajectory:
    """Checkpoints of a series, projected into the plane by least squares."""

    name: np.ndarray = array("checkpoint", doc="file of each")
    x: np.ndarray = array("checkpoint", doc="coordinate along direction x")
    y: np.ndarray = array("checkpoint", doc="coordinate along direction y; 0 for a curve")
    distance: np.ndarray = array("checkpoint", doc="distance of the weights from the plane, as a norm of weights")
    nll: np.ndarray = array("checkpoint", unit="nat", doc="mean NLL at the checkpoint itself, not at its projection")


@dataclass(frozen=True)
class Prescan:
    """Nine points of growing radius, in turning directions."""

    x: np.ndarray = array("step", doc="coordinate along direction x")
    y: np.ndarray = array("step", doc="coordinate along direction y")
    radius: np.ndarray = array("step", doc="largest of |x| and |y|, ascending")
    nll: np.ndarray = array("step", unit="nat", doc="mean NLL, one Monte Carlo pass")
    target: float = array(unit="nat", doc="NLL that the rim should reach: that of guessing, or twice the centre's")
    span: float = array(doc="radius at which the NLL gets there; NaN if nowhere")


def derived(*dims: str, unit: str = "", doc: str = "") -> Any:
    """A field that `Result` computes from others; it is written too, for readers without this code."""
    return field(default=None, metadata=array(*dims, unit=unit, doc=doc).metadata)


@dataclass(frozen=True)
class Result(AnalysisResult):
    """Sums over images at each grid point w0 + x dx + y dy, and what follows from them.

    For a loss other than the cross-entropy of classes, `nll` is that loss, and what needs classes is NaN.
    """

    analysis = "landscape"

    x: np.ndarray = array("x", doc="coordinate along direction x, in lengths of it")
    y: np.ndarray = array("y", doc="coordinate along direction y; only 0 for a curve")
    frame: np.ndarray = array("frame", doc="number of the Monte Carlo pass")
    status: np.ndarray = array("frame", "y", "x", doc="0 to do, 1 done, 2 done and not finite, 3 failed")
    count: np.ndarray = array("frame", "y", "x", doc="images")
    nll_sum: np.ndarray = array("frame", "y", "x", unit="nat", doc="sum of negative log-likelihoods")
    nll_sq: np.ndarray = array("frame", "y", "x", unit="nat^2", doc="sum of their squares")
    correct: np.ndarray = array("frame", "y", "x", doc="images classified right")
    bin_count: np.ndarray = array("frame", "y", "x", "bin", doc="images with confidence in ((k-1)/15, k/15]")
    bin_confidence: np.ndarray = array("frame", "y", "x", "bin", doc="sum of their confidences")
    bin_correct: np.ndarray = array("frame", "y", "x", "bin", doc="how many of them are right")
    l2: np.ndarray = array("y", "x", doc="squared norm of all studied weights; NaN: to do")
    direction_x: dict[str, np.ndarray] = arrays(doc="direction of x for each parameter; none if they were not kept")
    direction_y: dict[str, np.ndarray] = arrays(doc="direction of y for each parameter; none for a curve")
    info_x: DirectionInfo
    info_y: DirectionInfo | None
    stochastic: bool = array(doc="whether Monte Carlo passes differ; if not, there is one frame")
    cosine: float = array(doc="cosine of the angle between the directions; NaN for a curve")
    arithmetic: str = array(doc="how the network was computed")
    deviation: float = array(
        unit="nat", doc="largest |NLL - NLL in full precision| at 9 points; NaN where all is in full precision"
    )
    prescan: Prescan | None
    trajectory: Trajectory | None
    nll: np.ndarray = derived("frame", "y", "x", unit="nat", doc="mean negative log-likelihood")
    nll_stderr: np.ndarray = derived("frame", "y", "x", unit="nat", doc="its standard error over images")
    accuracy: np.ndarray = derived("frame", "y", "x", doc="share classified right")
    ece: np.ndarray = derived("frame", "y", "x", doc="expected calibration error, 15 bins")
    barrier: float = derived(unit="nat", doc="max over x in [0, 1] of L(x) - (1-x) L(0) - x L(1), mean over frames")
    barrier_x: float = derived(doc="where")

    def __post_init__(self) -> None:
        check_arrays(self)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            count = np.where(self.count > 0, self.count, np.nan)
            nll = self.nll_sum / count
            # +inf - +inf is NaN, and stays that
            variance = np.maximum(0.0, self.nll_sq / count - nll**2) / np.maximum(1, self.count - 1)
            found = {
                "nll": nll,
                "nll_stderr": np.sqrt(variance),
                "accuracy": self.correct / count,
                "ece": np.abs(self.bin_correct - self.bin_confidence).sum(axis=-1) / count,
            }
        for name, value in found.items():
            object.__setattr__(self, name, value)
        barrier, place = self._barrier()
        object.__setattr__(self, "barrier", barrier)
        object.__setattr__(self, "barrier_x", place)

    def _barrier(self) -> tuple[float, float]:
        between = np.flatnonzero((self.x > -1e-9) & (self.x < 1 + 1e-9))
        leads = self.info_x.leads_to_checkpoint and len(self.y) == 1 and len(between) > 1
        if not leads or not np.allclose(self.x[between[[0, -1]]], [0, 1], atol=1e-9):
            return np.nan, np.nan
        x, loss = self.x[between], self.nll[:, 0, between].mean(axis=0)
        height = loss - (1 - x) * loss[0] - x * loss[-1]
        if not np.isfinite(height).all():
            return np.nan, np.nan
        return float(height.max()), float(x[height.argmax()])

    @classmethod
    def read(cls, path: str | Path) -> Result:
        """The landscape in a run file, which may come from a stranger.

        Raises:
            InputError: The file is damaged, no run file, holds no landscape, or does not say what it is of.
        """
        try:
            result = super().read(path)
            check_subject(result.subject or {})
        except InputError as error:
            named = str(path) in str(error)
            raise InputError(str(error) if named else f"{path}: {error}") from error
        return result

    @property
    def one_dimensional(self) -> bool:
        """Whether it is a curve."""
        return self.info_y is None

    @property
    def weight_decay(self) -> float:
        """Of the subject; 0 where it isn't known."""
        return float((self.subject or {}).get("weight_decay", 0.0))

    def metric(self, name: Metric) -> np.ndarray:
        """(frame, y, x) values of a metric; NaN where not computed. `loss` is nll + weight decay / 2 * l2."""
        if name in ("nll", "accuracy", "ece"):
            return getattr(self, name)
        l2 = np.where(self.count > 0, self.l2, np.nan)
        if name == "l2":
            return l2
        if name == "loss":
            return self.nll + self.weight_decay / 2 * l2
        raise ValueError(f"there is no metric {name!r}")

    @property
    def center(self) -> tuple[int, int] | None:
        """Row and column of the checkpoint's own weights; None where they are not on the grid."""
        rows, columns = np.flatnonzero(self.y == 0), np.flatnonzero(self.x == 0)
        return (int(rows[0]), int(columns[0])) if len(rows) and len(columns) else None

    def rows(self) -> list[Row]:
        """The table of the command."""
        from analyze.landscape.tables import rows

        return rows(self)

    def quantities(self) -> list[Quantity]:
        """NLL, accuracy and ECE at the checkpoint, and how far the NLL rises over the grid and at its rim."""
        from analyze.landscape.tables import quantities

        return quantities(self)

    def incomparable(self, config: Config) -> str:
        """Why it can't be drawn beside a result of this config; empty if it can."""
        if self.one_dimensional != config.one_dimensional:
            kinds = "a curve", "a surface"
            return f"it is {kinds[not self.one_dimensional]}, and this {kinds[not config.one_dimensional]}"
        return ""

    @classmethod
    def check_animation(cls, config: Config, others: Sequence[Result]) -> None:
        """Refuse, before the work, others that can't move beside a result of this config."""
        if config.gif is not None and others:
            from analyze.landscape.animation import check_together

            check_together(config.frames, others, config.gif_metric)

    def animate(self, config: Config, others: Sequence[Result] = (), progress: Progress = silent) -> list[Path]:
        """Write the animation that the config asks for, with those of `others` beside it."""
        if config.gif is None:
            return []
        from analyze.landscape.animation import write_gif

        results = [self, *others]
        still = all(len(result.frame) == 1 for result in results)
        return [
            write_gif(
                results,
                config.gif,
                metric=config.gif_metric,
                style=config.gif_style,
                tween=config.gif_tween,
                orbit=config.gif_orbit or (still and config.gif_style == "surface"),
                fps=config.gif_fps,
                size=config.gif_size,
                progress=progress,
            )
        ]
