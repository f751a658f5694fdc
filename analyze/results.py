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

    def rows(self) -> list[Row]:
        """The table of the command."""
        raise NotImplementedError

    def incomparable(self, config: Any) -> str:
        """Why it can't be drawn beside a result of this config; empty if it can."""
        return ""

    def tables(self) -> list[str]:
        """Further tables that the command prints as they are."""
        return []


def identity(subject: Mapping[str, Any]) -> dict[str, str | int | float]:
    """Root attributes of the run file that a subject's results go to."""
    return {
        key: value if isinstance(value, (str, int, float)) else json.dumps(value, sort_keys=True)
        for key, value in subject.items()
    }


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
