"""The landscape analysis: subject in, result out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from analyze.distributed import ALONE, World
from analyze.landscape.animation import check_format
from analyze.landscape.checkpoints import difference
from analyze.landscape.direction import Direction
from analyze.landscape.directions import Plane, make_plane
from analyze.landscape.grid import Evaluator, Sums, coarse_to_fine
from analyze.landscape.prescan import prescan
from analyze.landscape.spec import BINS, DONE, FAILED, NOT_FINITE, SUMS, TODO, Config, DirectionInfo, Prescan, Result
from analyze.results import Progress, silent
from analyze.scratch import Scratch
from analyze.subject import Subject
from data_cache import InputError

SHARE = 20
"""A save waits until this many times its own seconds went into points."""
OFFER_SECONDS, SCRATCH_SECONDS = 1.0, 0.25
MOST_POINTS = 2 * 10**6
"""In all frames together, which take about 400 bytes each, a few times over."""


def compute(
    subject: Subject,
    config: Config | None = None,
    *,
    previous: Result | None = None,
    save: Callable[[Result], None] = lambda result: None,
    progress: Progress = silent,
    world: World = ALONE,
    scratch: Scratch | None = None,
) -> Result:
    """Sums over the subject's images at each point of a grid of weights.

    Args:
        subject: Model, data and loss.
        config: What to compute; the defaults of `Config` if None.
        previous: A result of the same subject and config, perhaps incomplete or of fewer frames, to go on from.
        save: Called with the result so far, often, and whatever ends the work.
        progress: Called after each point.
        world: The ranks that share the points; each calls `compute` with the same arguments. Rank 0's result counts.
        scratch: Where the sums are left after each point, for results that are too large to be saved as often.

    Returns:
        The result; points that are not finite or failed say so.

    Raises:
        InputError: The directions can't be made, are not those of `previous`, or the model fails at all points.
    """
    config = config or Config()
    if config.gif is not None:  # before the work that it would show
        check_format(config.gif)
    _check_size(config)
    return _Analysis(subject, config, previous, save, progress, world, scratch or Scratch()).run()


def is_complete(result: Result, config: Config) -> bool:
    """Whether the result holds all that the config asks for; points that failed are tried again."""
    frames = config.frames if result.stochastic else 1
    wanted = (result.frame >= config.first_frame) & (result.frame < config.first_frame + frames)
    asked = result.prescan is not None or not _prescans(config)
    traced = result.trajectory is not None or not config.series
    done = wanted.sum() == frames and np.isin(result.status[wanted], (DONE, NOT_FINITE)).all()
    return bool(done and asked and traced)


def _check_size(config: Config) -> None:
    columns, rows = config.points[0], 1 if config.one_dimensional else config.points[-1]
    if columns * rows * config.frames > MOST_POINTS:
        raise InputError(
            f"{columns} x {rows} points in {config.frames} frames are over {MOST_POINTS / 1e6:g} million, too many for "
            "one run; give smaller --points or --frames."
        )


def _prescans(config: Config) -> bool:
    return config.prescan and not config.interpolates


class _Item(NamedTuple):
    """The work at one point."""

    row: int
    column: int
    frames: tuple[int, ...]
    """Places of the frames that are to do."""


@dataclass
class _Analysis:
    """One call of `compute`."""

    subject: Subject
    config: Config
    previous: Result | None
    save: Callable[[Result], None]
    progress: Progress
    world: World
    scratch: Scratch

    def run(self) -> Result:
        self.about = self.subject.describe()
        self.x, self.y = self.config.axes()
        plane = self._plane()
        self.key = "-".join(each.info.sha256 for each in (plane.x, plane.y) if each is not None)
        stochastic = self.previous.stochastic if self.previous else self.subject.stochastic
        first = self.config.first_frame
        self.asked = np.arange(first, first + (self.config.frames if stochastic else 1))
        frames = np.union1d(self.previous.frame, self.asked) if self.previous else self.asked
        self.evaluator = Evaluator(
            self.subject,
            plane.x,
            plane.y,
            noise=self.config.noise,
            recompute=self.config.recomputes and (self.config.bn == "recompute" or self.subject.mode == "eval"),
            engine=self.config.engine,
            precision=self.config.precision,
        )
        self.arrays = self._empty(len(frames))
        if self.previous is not None:
            held = {name: getattr(self.previous, name) for name in ("status", *SUMS)}
            self._take({**held, "frame": self.previous.frame}, frames)
        state = self.world.broadcast(self.scratch.load())
        if state is not None and str(state.get("key")) == self.key:
            self._take(state, frames)
        self.result = self.previous or self._begin(plane, frames, stochastic)
        self.result = replace(self.result, frame=frames, **self.arrays, **self._kept(plane))
        if self.world.rank == 0:
            self._before_the_grid(plane)
        self._grid(frames)
        return self.result.of(self.config, self.about)

    def _plane(self) -> Plane:
        """The directions: those that the previous result holds, or made, again if need be."""
        plane = make_plane(self.subject, self.config, held=self._held(), world=self.world, progress=self.progress)
        if (previous := self.previous) is None:
            return plane
        for axis, made, info in (("x", plane.x, previous.info_x), ("y", plane.y, previous.info_y)):
            if made is not None and info is not None and made.info.sha256 != info.sha256:
                raise InputError(
                    f"direction {axis} is not what the run file's grid was computed along: {_why(info)}; use --restart "
                    "to begin anew, or another --out."
                )
        if plane.trajectory is not None and previous.trajectory is not None:
            for name in ("x", "y", "distance"):
                now, then = getattr(plane.trajectory, name), getattr(previous.trajectory, name)
                if not np.allclose(now, then, rtol=1e-5, atol=1e-9):
                    raise InputError(
                        "a checkpoint of --series is not what it was; use --restart to begin anew, or another --out."
                    )
        return plane

    def _held(self) -> dict[str, Direction]:
        """What the run file holds by axis, but for what files on the disk lead to: those are read again."""
        config, previous = self.config, self.previous
        if previous is None or config.same_directions is not None:
            return {}
        axes = [("x", config.direction_x, previous.direction_x, previous.info_x)]
        axes += [("y", config.direction_y, previous.direction_y, previous.info_y)]
        return {
            axis: Direction.stored(self.subject, values, info)
            for axis, kind, values, info in axes
            if values and info is not None and info.kind == kind and not info.leads_to_checkpoint
        }

    def _empty(self, frames: int) -> dict[str, Any]:
        shape = (frames, len(self.y), len(self.x))
        arrays = {name: np.zeros((*shape, BINS) if name.startswith("bin") else shape) for name in SUMS}
        return {"status": np.full(shape, TODO, dtype=np.uint8), **arrays}

    def _take(self, held: Mapping[str, Any], frames: np.ndarray) -> None:
        """Points that are done already."""
        for source, frame in enumerate(held["frame"]):
            for target in np.flatnonzero(frames == frame):
                done = np.isin(held["status"][source], (DONE, NOT_FINITE))
                for name, values in self.arrays.items():
                    values[target][done] = held[name][source][done]

    def _begin(self, plane: Plane, frames: np.ndarray, stochastic: bool) -> Result:
        norms = [[self.evaluator.squared_norm(float(x), float(y)) for x in self.x] for y in self.y]
        return Result(
            x=self.x,
            y=self.y,
            frame=frames,
            **self.arrays,
            l2=np.array(norms),
            **self._kept(plane),
            info_x=plane.x.info,
            info_y=plane.y.info if plane.y is not None else None,
            stochastic=stochastic,
            cosine=self.evaluator.cosine,
            arithmetic=self.evaluator.arithmetic,
            deviation=np.nan,
            prescan=None,
            trajectory=None,
        )

    def _kept(self, plane: Plane) -> dict[str, Any]:
        """The directions as the result holds them."""
        kept = {"x": plane.x, "y": plane.y} if self.config.keep_directions else {}
        return {f"direction_{axis}": each.arrays() if (each := kept.get(axis)) is not None else {} for axis in "xy"}

    def _before_the_grid(self, plane: Plane) -> None:
        """What one process finds out alone."""
        first = int(self.result.frame[0])
        if _prescans(self.config) and self.result.prescan is None:
            self.result = replace(self.result, prescan=self._prescan(first))
        if self.config.precision != "full" and np.isnan(self.result.deviation):
            rows, columns = (np.unique([0, (n - 1) // 2, n - 1]) for n in (len(self.y), len(self.x)))
            points = [(float(self.x[column]), float(self.y[row])) for row in rows for column in columns]
            self.result = replace(self.result, deviation=self.evaluator.deviation(points, first))
        if plane.trajectory is not None and self.result.trajectory is None:
            losses = []
            for number, name in enumerate(self.config.series, start=1):
                moved, rest = difference(self.subject, name)
                losses.append(self.evaluator.nll_of({**moved, **rest}, first))
                self.progress("trajectory", number, len(self.config.series), name)
            self.result = replace(self.result, trajectory=replace(plane.trajectory, nll=np.array(losses)))
        self._offer()

    def _prescan(self, frame: int) -> Prescan:
        done = 0

        def nll(x: float, y: float) -> float:
            nonlocal done
            try:
                sums = self.evaluator.evaluate(x, y, [frame])
                found = float(sums.nll_sum[0] / sums.count[0])
            except InputError:
                if done == 0:  # the checkpoint itself
                    raise
                found = np.nan
            done += 1
            self.progress("pre-scan", done, 9, "")
            return found

        span = float(max(np.abs(self.x).max(), np.abs(self.y).max()))
        return prescan(nll, span, self.evaluator.guessing, one_dimensional=len(self.y) == 1)

    def _grid(self, frames: np.ndarray) -> None:
        items = self._items()
        total = len(self.x) * len(self.y)
        done = total - len(items)
        self.progress("grid", done, total, "")
        self._succeeded = done > 0
        numbers = [int(frame) for frame in frames]
        try:
            for item, sums in self.world.share_out(items, lambda item: self._work(item, numbers)):
                self._put(item, sums)
                done += 1
                self.progress("grid", done, total, self._note(item))
                self._keep()
        finally:
            if self.world.rank == 0:
                self._offer()
        if self.world.rank == 0:
            self.scratch.clear()

    def _items(self) -> list[_Item]:
        """What is to do, the checkpoint first, then coarse to fine."""
        asked = np.isin(self.result.frame, self.asked)
        todo = np.isin(self.arrays["status"], (TODO, FAILED))
        order = coarse_to_fine(len(self.y), len(self.x))
        order.sort(key=lambda point: not (self.y[point[0]] == 0 == self.x[point[1]]))
        items = [
            _Item(row, column, tuple(int(f) for f in np.flatnonzero(asked & todo[:, row, column])))
            for row, column in order
        ]
        return [item for item in items if item.frames]

    def _work(self, item: _Item, numbers: Sequence[int]) -> Sums | None:
        """The sums at a point; None where it failed, though the checkpoint itself does not."""
        x, y = float(self.x[item.column]), float(self.y[item.row])
        try:
            sums = self.evaluator.evaluate(
                x, y, [numbers[frame] for frame in item.frames], item.row * len(self.x) + item.column
            )
        except InputError:
            if not self._succeeded:  # not even at the checkpoint, which another rank may compute?
                self.evaluator.evaluate(0.0, 0.0, [numbers[item.frames[0]]])
                self._succeeded = True
            return None
        self._succeeded = True
        return sums

    def _put(self, item: _Item, sums: Sums | None) -> None:
        values = sums or Sums.failed(len(item.frames))
        for place, frame in enumerate(item.frames):
            for name, value in zip(SUMS, values, strict=True):
                self.arrays[name][frame, item.row, item.column] = value[place]
            finite = np.isfinite(values.nll_sum[place])
            status = FAILED if sums is None else DONE if finite else NOT_FINITE
            self.arrays["status"][frame, item.row, item.column] = status

    def _note(self, item: _Item) -> str:
        place = item.frames[-1], item.row, item.column
        count = self.arrays["count"][place]
        return f"NLL {self.arrays['nll_sum'][place] / count:.3g}" if count else "failed"

    def _offer(self) -> None:
        """Save what there is."""
        began = time.perf_counter()
        copies: dict[str, Any] = {name: values.copy() for name, values in self.arrays.items()}
        self.result = replace(self.result, **copies)
        self.save(self.result.of(self.config, self.about))
        self._pauses["offer"] = began, time.perf_counter()

    def _keep(self) -> None:
        """Leave the sums in the scratch, and save, unless that was done a moment ago."""
        if self._due("scratch", SCRATCH_SECONDS):
            began = time.perf_counter()
            self.scratch.save({**self.arrays, "frame": self.result.frame, "key": np.array(self.key)})
            self._pauses["scratch"] = began, time.perf_counter()
        if self._due("offer", OFFER_SECONDS):
            self._offer()

    def _due(self, name: str, seconds: float) -> bool:
        began, ended = self._pauses.get(name, (0.0, 0.0))
        return time.perf_counter() - ended >= max(seconds, SHARE * (ended - began))

    @cached_property
    def _pauses(self) -> dict[str, tuple[float, float]]:
        return {}


def _why(info: DirectionInfo) -> str:
    """Why a direction may come out otherwise than it did."""
    if info.kind == "random":
        return "this version of torch draws other numbers"
    if info.kind.startswith("eigen:"):
        return "it was found again with other rounding, as another number of threads or processes has"
    return "a file that it is made from has changed"
