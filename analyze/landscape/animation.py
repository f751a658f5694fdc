"""Landscapes that move: Monte Carlo passes that flow into each other, a camera that turns, or both."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import subprocess
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from analyze.drawing import GREY, model_name
from analyze.landscape.contours import draw_contours
from analyze.landscape.scene import AZIMUTH, RED, Scene
from analyze.landscape.shown import COLORS, LABELS, Shown, levels_of, limits_of, mean_over_frames, one_frame
from analyze.landscape.spec import Config, Metric, Result, animation_format
from analyze.results import Progress, silent
from data_cache.errors import InputError, first_line
from data_cache.files import written_whole

if TYPE_CHECKING:
    from PIL import Image

Ease = Literal["cubic", "linear", "cosine"]
EASES: dict[Ease, Callable[[float], float]] = {
    "linear": lambda t: t,
    "cubic": lambda t: t * t * (3 - 2 * t),
    "cosine": lambda t: (1 - float(np.cos(np.pi * t))) / 2,
}
"""How far the way is gone at time t of [0, 1]."""
ORBIT = 60
"""Pictures of a turn of the camera where nothing else moves."""
SMALLEST = 100
"""Pixels that leave room for names, colours and caption."""
COLOR_COUNT = 127
"""Colours of a GIF; one of 128 is left for what stays as it was."""


class Moment(NamedTuple):
    """One picture: `weight` of the way from one frame to another, seen from an angle."""

    frame: int
    following: int
    weight: float
    azimuth: float


def timeline(frames: int, tween: int, ease: Ease, orbit: bool) -> list[Moment]:
    """All pictures of a loop: from each frame to the next and from the last to the first, in `tween` steps each.

    The first step of each is the frame itself. With an orbit, the camera turns once meanwhile.
    """
    steps = [
        (frame, (frame + 1) % frames, EASES[ease](step / tween)) for frame in range(frames) for step in range(tween)
    ]
    if frames == 1:
        steps = [(0, 0, 0.0)] * ORBIT
    turn = 360 / len(steps) if orbit else 0.0
    return [Moment(*step, AZIMUTH + turn * number) for number, step in enumerate(steps)]


def write_gif(
    results: Sequence[Result],
    path: str | Path,
    *,
    metric: Metric = "nll",
    style: Literal["surface", "contour"] = "surface",
    realisations: bool = True,
    tween: int = Config.gif_tween,
    ease: Ease = "cubic",
    orbit: bool = False,
    fps: float = Config.gif_fps,
    size: int = Config.gif_size,
    progress: Progress = silent,
) -> Path:
    """Write an animation that loops without a seam; all pictures share limits, camera and palette.

    What lies between two realisations is interpolated, for the eye only, and the caption says so.

    Args:
        results: One panel for each, side by side. All have equally many frames, or one, which then stands still.
        path: A GIF; or MP4, which needs the program ffmpeg.
        metric: What to show.
        style: 3-D surface, or filled contours.
        realisations: Show each Monte Carlo pass; otherwise their mean.
        tween: Pictures for each realisation: itself, and those interpolated on the way to the next.
        ease: How they are spaced: slow at the realisations (cubic, cosine), or evenly (linear).
        orbit: Turn the camera once during the loop (surfaces only).
        fps: Pictures in a second; a GIF rounds their duration to hundredths of a second.
        size: Height of the picture and width of each panel, in pixels.
        progress: Called after each picture.

    Raises:
        InputError: Nothing moves, frames don't match, nothing is computed yet, it is too small, or the file can't be
            written.
    """
    path = Path(path)
    check_format(path)
    if size < SMALLEST:
        raise InputError(f"an animation is at least {SMALLEST} pixels high, not {size}.")
    shown = [_frames(result, metric, realisations) for result in results]
    moments = timeline(_common(shown, orbit, style), tween, ease, orbit)
    stage = _Stage(results, shown, metric, style, size, _caption(moments, metric, shown))
    pictures = _reported(map(stage.picture, moments), len(moments), progress)
    with written_whole(path) as temporary:
        if animation_format(path) == "mp4":
            _write_mp4(temporary, pictures, fps)
        else:
            samples = [stage.picture(moments[number]) for number in _spread(len(moments), 6)]
            _write_gif(temporary, pictures, samples, fps)
    return path


def check_format(path: Path) -> None:
    """Refuse a file that can't be written on this machine, whatever it shows."""
    if animation_format(path) == "mp4" and shutil.which("ffmpeg") is None:
        raise InputError(f"{path.name} needs the program ffmpeg, which isn't installed; write a .gif instead.")


def check_together(frames: int, others: Sequence[Result], metric: Metric) -> None:
    """Refuse landscapes that can't move beside one of this many frames.

    Raises:
        InputError: They have other numbers of frames, are curves, or there is nothing to animate in one of them.
    """
    _alike([frames, *(len(_frames(other, metric, realisations=True)) for other in others)])


def _frames(result: Result, metric: Metric, realisations: bool) -> list[Shown]:
    if len(result.y) == 1:
        raise InputError("an animation shows surfaces, and this is a curve; leave --one-dimensional away.")
    frames = [mean_over_frames(result, metric)]
    if realisations:
        frames = [one_frame(result, metric, number) for number in range(len(result.frame))]
    if not any(frame.finite.size for frame in frames):
        raise InputError("there is nothing to animate: no point of the grid has a finite value yet.")
    return frames


def _common(shown: Sequence[Sequence[Shown]], orbit: bool, style: str) -> int:
    """The number of frames of all panels."""
    counts = _alike([len(frames) for frames in shown])
    if orbit and style != "surface":
        raise InputError("only surfaces can be orbited, not contours.")
    if not counts and not orbit:
        raise InputError("nothing would move in a landscape of one frame: compute more --frames, or ask for an orbit.")
    return counts.pop() if counts else 1


def _alike(frames: Sequence[int]) -> set[int]:
    """The number of frames of all that move, if any does."""
    counts = set(frames) - {1}
    if len(counts) > 1:
        raise InputError(f"landscapes with {' and '.join(map(str, sorted(counts)))} frames can't move together.")
    return counts


def _caption(moments: Sequence[Moment], metric: Metric, shown: Sequence[Sequence[Shown]]) -> str:
    frames = [frame for panel in shown for frame in panel]
    notes = [LABELS[metric]]
    if any(moment.weight > 0 for moment in moments):
        notes.append("in-between pictures are interpolated")
    if any(frame.nonfinite.any() for frame in frames):
        notes.append("red crosses: not finite")
    if any(frame.missing.any() for frame in frames):
        notes.append("holes: not computed")
    return ", ".join(notes)


def _spread(count: int, samples: int) -> list[int]:
    return sorted({round(place) for place in np.linspace(0, count - 1, samples)})


def _reported(pictures: Iterator[np.ndarray], count: int, progress: Progress) -> Iterator[np.ndarray]:
    for number, picture in enumerate(pictures, start=1):
        yield picture
        progress("animation", number, count, "")


# Drawing


class _Stage:
    """One figure that all pictures are taken of: what stands still is drawn once."""

    def __init__(
        self, results: Sequence[Result], shown: Sequence[Sequence[Shown]], metric: Metric, style: str, size: int,
        caption: str,
    ):  # fmt: skip
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.shown, self.metric, count = shown, metric, len(results)
        width, height = 2 * (size * count // 2), 2 * (size // 2)
        self.canvas = FigureCanvasAgg(Figure(figsize=(width / 100, height / 100), dpi=100))
        self.limits = limits_of(metric, (frame.value for frames in shown for frame in frames))
        self.levels, self.extend = levels_of(metric, (frame.value for frames in shown for frame in frames))
        foot = 46 / height
        head = 22 / height if any(map(model_name, results)) else 0.0
        self.panels: list[Callable[[Shown, float], None]] = []
        self.axes: list[Any] = []
        for number, (result, frames) in enumerate(zip(results, shown, strict=True)):
            place = (number / count, foot, 1 / count, 1 - foot - head)
            self.panels.append((self._surface if style == "surface" else self._contours)(frames[0], place))
            self._name((number + 0.5) / count, 1 - head / 2, model_name(result), room=width / count - 4)
        self._bar(width, height, style, caption)
        self.canvas.draw()
        self.background = self.canvas.copy_from_bbox(self.canvas.figure.bbox)

    def _name(self, x: float, y: float, name: str, room: float) -> None:
        """Over a panel, without its middle where it is longer than this many pixels."""
        text = self.canvas.figure.text(x, y, name, fontsize=8, color="black", ha="center", va="center")
        kept = len(name)
        while text.get_window_extent(self.canvas.get_renderer()).width > room and kept > 2:
            kept -= 1
            text.set_text(f"{name[: kept - kept // 2]}…{name[len(name) - kept // 2 :]}")

    def _surface(self, first: Shown, place: tuple[float, float, float, float]) -> Callable[[Shown, float], None]:
        axes: Any = self.canvas.figure.add_axes(place, projection="3d", animated=True)
        self.axes.append(axes)
        scene = Scene(axes, first.x, first.y, self.limits, COLORS[self.metric], zoom=1.15)

        def show(shown: Shown, azimuth: float) -> None:
            scene.turn(azimuth)
            scene.draw(shown)

        return show

    def _contours(self, first: Shown, place: tuple[float, float, float, float]) -> Callable[[Shown, float], None]:
        x, y, width, height = place
        axes = self.canvas.figure.add_axes((x + 0.06 * width, y + 0.02 * height, 0.88 * width, 0.96 * height))
        axes.set_animated(True)
        self.axes.append(axes)

        def show(shown: Shown, azimuth: float) -> None:
            axes.clear()
            axes.set_animated(True)
            draw_contours(axes, shown, self.levels, self.metric, extend=self.extend)
            axes.set(xticks=[], yticks=[])

        return show

    def _bar(self, width: int, height: int, style: str, caption: str) -> None:
        """Which colour is which value, and the caption."""
        figure, length = self.canvas.figure, max(20, min(160, width - 110)) / width
        if style == "surface":
            colors, ends = np.linspace(0, 1, 160), np.array(self.limits[:2])
            above = "≥ " if self.limits.clipped else ""
        else:
            colors, ends, above = (
                np.arange(len(self.levels) - (self.extend != "max"), dtype=float),
                self.levels[[0, -1]],
                "> " * bool(self.extend == "max"),
            )
        axes = figure.add_axes((0.5 - length / 2, 32 / height, length, 7 / height))
        axes.imshow(colors[None], aspect="auto", interpolation="nearest", cmap=COLORS[self.metric])
        axes.set_axis_off()
        for x, text, side in (
            (0.5 - length / 2 - 6 / width, f"{ends[0]:.3g}", "right"),
            (0.5 + length / 2 + 6 / width, f"{above}{ends[1]:.3g}", "left"),
        ):
            figure.text(x, 35.5 / height, text, fontsize=8, color=GREY, ha=side, va="center")
        lines = "\n".join(textwrap.wrap(caption, width // 6))
        figure.text(0.5, 15 / height, lines, fontsize=8, color=GREY, ha="center", va="center", linespacing=1.0)

    def picture(self, moment: Moment) -> np.ndarray:
        """(H, W, 3) uint8."""
        self.canvas.restore_region(self.background)
        for axes, show, frames in zip(self.axes, self.panels, self.shown, strict=True):
            show(between(frames, moment), moment.azimuth)
            axes.draw(self.canvas.renderer)
        return np.asarray(self.canvas.buffer_rgba())[:, :, :3].copy()


def between(frames: Sequence[Shown], moment: Moment) -> Shown:
    r"""What is shown at a moment, :math:`(1 - w) f_i + w f_j`; a panel of one frame stands still.

    A point that either frame lacks is missing.
    """
    first, following = (frames[number % len(frames)] for number in (moment.frame, moment.following))
    if moment.weight == 0 or first is following:
        return first
    with np.errstate(invalid="ignore"):
        value = (1 - moment.weight) * first.value + moment.weight * following.value
    missing = first.missing | following.missing
    return Shown(first.x, first.y, np.where(missing, np.nan, value), missing, first.todo | following.todo)


# Writing


def _write_gif(path: Path, pictures: Iterator[np.ndarray], samples: Sequence[np.ndarray], fps: float) -> None:
    from PIL import Image

    colors = _palette(samples)
    palette = Image.new("P", (1, 1))
    palette.putpalette(colors)

    def reduced(picture: np.ndarray) -> Image.Image:
        return Image.fromarray(picture).quantize(palette=palette, dither=Image.Dither.NONE)

    reduced(next(pictures)).save(
        path,
        format="GIF",
        save_all=True,
        append_images=map(reduced, pictures),
        palette=colors,
        optimize=True,  # write what changed only
        transparency=COLOR_COUNT,
        duration=max(20, 10 * round(100 / fps)),  # browsers slow anything faster down
        loop=0,
        disposal=1,
    )


def _palette(samples: Sequence[np.ndarray]) -> bytes:
    """Median cut of the colours of these pictures, and those of paper, type and crosses, exactly."""
    from matplotlib.colors import to_rgb
    from PIL import Image

    fixed = np.round(255 * np.array([to_rgb(color) for color in ("white", "black", "0.8", "0.6", GREY, RED)]))
    spare = COLOR_COUNT - len(fixed)
    reduced = Image.fromarray(np.concatenate(samples)).quantize(spare, method=Image.Quantize.MEDIANCUT)
    found = np.reshape(reduced.getpalette() or [], (-1, 3))
    found = found[found.min(axis=1) < 246]  # what is nearly white becomes white
    greys = ([level] * 3 for level in range(COLOR_COUNT))
    colors = dict.fromkeys(tuple(map(int, color)) for color in itertools.chain(fixed, found, greys))
    return bytes(itertools.chain.from_iterable(list(colors)[:COLOR_COUNT]))


def _write_mp4(path: Path, pictures: Iterator[np.ndarray], fps: float) -> None:
    first = next(pictures)
    height, width = first.shape[:2]
    command = [
        "ffmpeg", "-y", "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}",
        "-r", f"{fps:g}", "-i", "-", "-an", "-pix_fmt", "yuv420p", "-movflags", "+faststart", str(path),
    ]  # fmt: skip
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdin is not None
    try:
        with contextlib.suppress(BrokenPipeError):  # it says why on stderr
            for picture in itertools.chain([first], pictures):
                process.stdin.write(picture.tobytes())
        said = process.communicate()[1].decode(errors="replace")
    finally:
        process.kill()
    if process.returncode:
        raise InputError(f"ffmpeg could not write {path.name}: {first_line(Exception(said))}.")
