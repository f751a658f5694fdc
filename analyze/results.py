"""What all analyses' results share: what they are of, how they are saved, drawn, tabulated and reported."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np

from analyze.run import RunFile, open_run
from data_cache import InputError
from data_cache.files import written_whole

Self = TypeVar("Self", bound="AnalysisResult")

Progress = Callable[[str, int, "int | None", str], None]
"""`progress(part, done, total or None, note)`, called often."""


def silent(part: str, done: int, total: int | None, note: str) -> None:
    """Report nothing."""


class Row(NamedTuple):
    """A line of a command's table."""

    quantity: str
    value: float
    error: float | None
    remark: str


GROUPS = 64
"""Image number i belongs to group i % GROUPS: what is kept of each group stays small however many images there are."""


def group_of(first: int, count: int) -> np.ndarray:
    """(count,) groups of the images numbered first, first + 1, ..."""
    return np.arange(first, first + count) % GROUPS


class Quantity(NamedTuple):
    """A number in which run files can be compared."""

    name: str
    """`quantity`, or `heading: row` for one of many under a heading, such as `model variance: layer1.0`."""
    value: float
    error: float | None
    """Standard error; None or NaN if there is none."""
    samples: np.ndarray | None = None
    """(G,) the same number from the g-th group of images alone (or probe, or mini-batch), NaN where it has none; or
    jackknife pseudo-values where that number means nothing for so few images."""
    weights: np.ndarray | None = None
    """(G,) images in each group; None if all weigh the same."""
    bound: float | None = None
    """Largest error that the value can have, such as an eigenvalue's residual: no standard error."""


class Difference(NamedTuple):
    """How much larger one quantity is than another."""

    value: float
    error: float
    """Standard error; NaN where it isn't known."""
    freedom: float = math.inf
    """Degrees of freedom of the standard error: G - 1 for G groups of images; infinite where G isn't known."""

    @property
    def margin(self) -> float:
        """What a number whose true value is 0 exceeds by chance in 4.55 % of cases, as it does 2 standard deviations.

        It is Student's t quantile of the degrees of freedom times the standard error.
        """
        from scipy.special import ndtr, stdtrit

        return float(stdtrit(self.freedom, ndtr(2.0))) * self.error

    @property
    def is_marked(self) -> bool:
        """Whether it exceeds the margin; never where one of them is not known or infinite."""
        return math.isfinite(self.value) and abs(self.value) > self.margin


def difference(a: Quantity, b: Quantity, paired: bool) -> Difference:
    r"""How much larger b is than a, the standard error of that, and its degrees of freedom.

    .. math:: d = b - a, \quad
        s^2 = \frac{G}{G-1} \sum_g \left[ \frac{w^b_g (b_g - \bar b)}{W^b} - \frac{w^a_g (a_g - \bar a)}{W^a} \right]^2

    with the samples of the same G groups, their weights w, sum W and weighted mean. Where both have the same weights
    this is :math:`s^2 = \frac{G}{G-1} \sum_g w_g^2 (d_g - \bar d)^2 / W^2`. Where one of them has more samples (more
    probes, say), those count that both have, and d is the difference of their means.

    Args:
        a: The reference.
        b: What is compared with it.
        paired: Whether the g-th samples of both are of the same images; if not, or if one has no samples, the errors
            add up as of independent numbers.

    Returns:
        d, s (NaN where it isn't known), and G - 1. Not paired, the fewer degrees of freedom of the two.
    """
    value = b.value - a.value
    if not paired or a.samples is None or b.samples is None:
        errors = [math.nan if quantity.error is None else quantity.error for quantity in (a, b)]
        return Difference(value, math.hypot(*errors), min(_freedom(a), _freedom(b)))
    count = min(len(a.samples), len(b.samples))
    (mean_a, influence_a, held_a), (mean_b, influence_b, held_b) = (_influence(quantity, count) for quantity in (a, b))
    if len(a.samples) != len(b.samples):
        value = mean_b - mean_a
    groups = int((held_a | held_b).sum())
    if groups < 2:
        return Difference(value, math.nan)
    squares = float(((influence_b - influence_a) ** 2).sum())
    return Difference(value, math.sqrt(squares * groups / (groups - 1)), groups - 1)


def _freedom(quantity: Quantity) -> float:
    if quantity.samples is None:
        return math.inf
    *_, held = _influence(quantity, len(quantity.samples))
    return max(1, int(held.sum()) - 1)


def _influence(quantity: Quantity, count: int) -> tuple[float, np.ndarray, np.ndarray]:
    """Weighted mean of the first samples, what each adds to it beyond its share, and which there are."""
    assert quantity.samples is not None
    samples = np.asarray(quantity.samples, dtype=np.float64)[:count]
    weights = np.ones(count) if quantity.weights is None else np.asarray(quantity.weights, dtype=np.float64)[:count]
    held = np.isfinite(samples) & (weights > 0)
    if not held.any():
        return math.nan, np.zeros(count), held
    weights, samples = np.where(held, weights, 0.0), np.where(held, samples, 0.0)
    mean = float((weights * samples).sum() / weights.sum())
    return mean, weights * (samples - mean) / weights.sum(), held


class AnalysisResult:
    """Base of every `Result`: a frozen dataclass of arrays that knows what it is of."""

    analysis: ClassVar[str]
    """Name of the analysis, its folder and its group in the run file."""
    config: Mapping[str, Any] | None = None
    """The options it was computed with; None unless `compute` or a run file made it."""
    subject: Mapping[str, Any] | None = None
    """What it was computed of, as `Subject.describe` says."""

    def of(self: Self, config: Any, subject: Mapping[str, Any]) -> Self:
        """The same result, with options (a Config or a mapping) and subject written on it."""
        copy = dataclasses.replace(self)  # type: ignore[type-var]
        options = config if isinstance(config, Mapping) else dataclasses.asdict(config)
        object.__setattr__(copy, "config", dict(options))
        object.__setattr__(copy, "subject", dict(subject))
        return copy

    def save(self, path: str | Path, *, seconds: float = math.nan, complete: bool = True) -> None:
        """Write it into a run file as the group of its analysis; other groups stay as they are.

        Raises:
            InputError: The file is of another checkpoint, or can't be written.
        """
        if self.config is None or self.subject is None:
            raise ValueError("this result does not know what it is of: give it `.of(config, subject.describe())`")
        with RunFile(path, identity(self.subject)) as run:
            run.save(
                self.analysis,
                self,
                config=self.config,
                complete=complete,
                seconds=seconds,
                subject=self.subject,
            )

    @classmethod
    def read(cls: type[Self], path: str | Path) -> Self:
        """The result of this analysis in a run file, which may come from a stranger.

        Raises:
            InputError: The file is damaged, no run file, or holds no such result.
        """
        with open_run(path) as run:
            attributes, result = run.group_attributes(cls.analysis), run.load(cls.analysis, cls)
        if result is None or attributes is None:
            raise InputError(f"{path} holds no {cls.analysis} analysis.")
        return result.of(attributes.get("config", {}), attributes.get("subject", {}))

    def plot(self: Self, path: str | Path, others: Sequence[Self] = ()) -> list[Path]:
        """Draw the figures of its analysis, with those of `others` beside them where the analysis compares.

        Args:
            path: PNG, PDF or SVG file of the first; NAME_PART.png beside it for further ones.
            others: Results of other checkpoints.

        Returns:
            The files; none if there is nothing to draw.
        """
        path = Path(path)
        drawn = importlib.import_module(f"analyze.{self.analysis}.figures").figures(self, others)
        files = {path.with_stem(f"{path.stem}_{name}") if name else path: figure for name, figure in drawn.items()}
        for file, figure in files.items():
            with written_whole(file) as temporary:
                figure.savefig(temporary, dpi=200)
        return list(files)

    def animate(self: Self, config: Any, others: Sequence[Self] = (), progress: Progress = silent) -> list[Path]:
        """Write the animation that a command's options ask for, with those of `others` beside it; the files."""
        return []

    @classmethod
    def check_animation(cls: type[Self], config: Any, others: Sequence[Self]) -> None:
        """Refuse, before long work, others that `animate` could not show beside a result of this config."""

    def rows(self) -> list[Row]:
        """The table of the command."""
        raise NotImplementedError

    def incomparable(self, config: Any) -> str:
        """Why it can't be drawn beside a result of this config; empty if it can."""
        return ""

    def tables(self) -> list[str]:
        """Further tables that the command prints as they are."""
        return []

    def quantities(self) -> list[Quantity]:
        """The numbers in which run files are compared, told apart by their names."""
        return []

    def against(self: Self, reference: Self, paired: bool) -> list[Quantity]:
        """Further numbers, that have a meaning only beside a reference result, such as a mean corruption error.

        Args:
            reference: A result of the same analysis.
            paired: Whether both are of the same images.
        """
        return []

    def pairing(self) -> str:
        """What two results must agree in for their samples to be of the same images, by number."""
        subject = self.subject or {}
        return json.dumps([subject.get(key) for key in ("data_sha256", "images", "batch_size", "seed")])


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Cells as text: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            [f"{row[0]:<{widths[0]}}", *(f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))]
        ).rstrip()
        for row in rows
    )


def identity(subject: Mapping[str, Any]) -> dict[str, str | int | float]:
    """Root attributes of the run file that a subject's results go to."""
    return {
        key: value if isinstance(value, (str, int, float)) else json.dumps(value, sort_keys=True)
        for key, value in subject.items()
    }


def checkpoint_name(subject: Mapping[str, Any]) -> str:
    """What the checkpoint, or an ensemble of several, is called in tables and files."""
    name = str(subject["checkpoint"])
    return name if "members" in subject else Path(name).stem


def plain(value: Any, longest: int = 100) -> Any:
    """A result as JSON can hold it: arrays of over `longest` values left out, non-finite numbers as null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        items = {f.name: plain(getattr(value, f.name), longest) for f in dataclasses.fields(value)}
        return {key: item for key, item in items.items() if item is not None}
    if isinstance(value, np.ndarray):
        return plain(value.tolist(), longest) if value.size <= longest else None
    if isinstance(value, list):
        return [plain(item, longest) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value
