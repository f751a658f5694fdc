"""The Fourier heat map: errors under one wave at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from analyze.distributed import ALONE, World
from analyze.frequencies import edges, ring_index, signed
from analyze.results import GROUPS, Progress, silent
from analyze.robustness.predictions import Outcome, Pictures, Predictor, binomial_stderr
from analyze.robustness.spec import Config, HeatMap

_TAG = 43


class Grid(NamedTuple):
    """The frequencies of a heat map, in cycles for each image."""

    cycles_y: np.ndarray
    """Ascending."""
    cycles_x: np.ndarray
    """Ascending."""
    rows: list[tuple[int, list[int]]]
    """Row, and the columns in it, of one of each pair of mirror images; the other has the same wave."""
    mirror_y: np.ndarray
    """The row of each row's mirror image."""
    mirror_x: np.ndarray
    """The column of each column's mirror image."""


def grid(height: int, width: int, cycles: int) -> Grid:
    """The frequencies of (height, width) images up to so many cycles along each axis."""
    kept_y, kept_x = (_cycles(n, cycles) for n in (height, width))
    mirror_y, mirror_x = _mirror(kept_y, height), _mirror(kept_x, width)
    rows = []
    for row in range(len(kept_y)):
        # of a pair, the one further right, and further down where both are in one column
        columns = [
            column for column in range(len(kept_x)) if (column, row) >= (int(mirror_x[column]), int(mirror_y[row]))
        ]
        if columns:
            rows.append((row, columns))
    return Grid(kept_y, kept_x, rows, mirror_y, mirror_x)


def basis_image(height: int, width: int, cycles_y: int, cycles_x: int) -> np.ndarray:
    r"""The real wave of one frequency, float64 (height, width), with a root mean square of 1.

    .. math:: U_{yx} = \sqrt 2 \cos\left( 2 \pi (k_y y / H + k_x x / W) + \pi / 4 \right)

    The phase gives it the same strength at the origin and at the Nyquist frequencies, where a cosine is constant or
    alternates, as everywhere else.
    """
    turns = (cycles_y * np.arange(height) % height)[:, None] / height + cycles_x * np.arange(width) % width / width
    return np.sqrt(2) * np.cos(2 * np.pi * turns + np.pi / 4)


def signs(predictor: Predictor, pictures: Pictures) -> Tensor:
    """+1 or -1 for each image and channel, (B, C, 1, 1), a function of (seed, image number)."""
    subject, channels = predictor.subject, pictures.pixels.shape[1]
    drawn = [
        2.0 * np.random.default_rng((subject.seed, _TAG, int(number))).integers(0, 2, channels) - 1
        for number in pictures.numbers
    ]
    return torch.from_numpy(np.array(drawn)[:, :, None, None]).to(subject.dtype).to(subject.device)


class Measured(NamedTuple):
    """Sums over all images for one wave."""

    outcome: Outcome
    change: float
    """Of the norms of the change of the centred logits."""


def grow(
    predictor: Predictor,
    config: Config,
    done: HeatMap | None = None,
    *,
    world: World = ALONE,
    progress: Progress = silent,
) -> Iterator[HeatMap]:
    r"""The map so far, with one more row of frequencies at a time; ranks take rows from a shared queue.

    .. math:: x'_c = x_c + \sigma r_c U_{k}, \qquad r_c = \pm 1

    for each frequency k of the half plane (Yin et al., "A Fourier Perspective on Model Robustness in Computer
    Vision", NeurIPS 2019); its mirror image gets the same numbers.

    Args:
        predictor: Of the images that the waves are added to.
        config: Strength and extent.
        done: Rows that are there already, of the same images and options.
        world: The ranks that share the work; rank 0 yields.
        progress: Called after each row.
    """
    height, width = predictor.shape[1:]
    waves = grid(height, width, config.heat_map_cycles)
    found = _nothing(predictor, config, waves) if done is None else done
    todo = [(row, columns) for row, columns in waves.rows if np.isnan(found.error[row, columns[-1]])]
    total = sum(len(columns) for _, columns in waves.rows)
    left = sum(len(columns) for _, columns in todo)
    progress("heat map", total - left, total, "")
    drawn = [signs(predictor, pictures) for pictures in predictor.pictures()]

    def work(item: tuple[int, list[int]]) -> list[Measured]:
        row, columns = item
        return [_measure(predictor, config, drawn, waves.cycles_y[row], waves.cycles_x[column]) for column in columns]

    for (row, columns), measured in world.share_out(todo, work):
        found = _with(found, waves, row, columns, measured, predictor)
        left -= len(columns)
        progress("heat map", total - left, total, f"error {found.error[row, columns].mean():.3f} in the last row")
        yield found


def is_complete(done: HeatMap | None) -> bool:
    """Whether each frequency is there."""
    return done is not None and not np.isnan(done.error).any()


def _cycles(n: int, most: int) -> np.ndarray:
    cycles = np.sort(np.rint(signed(n) * n / 2).astype(np.int64))
    return cycles[np.abs(cycles) <= most]


def _mirror(kept: np.ndarray, n: int) -> np.ndarray:
    """Where -k lies among the frequencies kept; n / 2 is its own mirror image."""
    return np.searchsorted(kept, np.where(2 * kept == n, kept, -kept))


def _nothing(predictor: Predictor, config: Config, waves: Grid) -> HeatMap:
    height, width = predictor.shape[1:]
    clean = predictor.clean_outcome().metrics
    shape = len(waves.cycles_y), len(waves.cycles_x)
    empty = {
        name: np.full(shape, np.nan)
        for name in ("error", "error_stderr", "flip_rate", "flip_rate_stderr", "logit_change")
    }
    low = np.concatenate([[0.0], edges("square", 10)[:-1]])
    return HeatMap(
        frequency_y=2 * waves.cycles_y / height,
        frequency_x=2 * waves.cycles_x / width,
        sigma=config.heat_map_sigma,
        images=predictor.images,
        clean_error=(clean.count - clean.correct) / clean.count,
        clean_logit_norm=float(torch.cat([_norms(batch) for batch in predictor.clean]).mean()),
        ring_low=low,
        ring_bins=np.bincount(_rings(waves, height, width).ravel(), minlength=len(low)),
        group_images=predictor.group_images(),
        group_errors=np.zeros((len(low), GROUPS), dtype=np.int64),
        group_flips=np.zeros((len(low), GROUPS), dtype=np.int64),
        **empty,
    )


def _rings(waves: Grid, height: int, width: int) -> np.ndarray:
    """The ring of each frequency of the map; 0 is the origin alone."""
    return ring_index(height, width, "square")[np.ix_(waves.cycles_y % height, waves.cycles_x % width)] + 1


def _with(
    found: HeatMap, waves: Grid, row: int, columns: list[int], measured: list[Measured], predictor: Predictor
) -> HeatMap:
    """The same with one row more, and its mirror image."""
    names = ("error", "error_stderr", "flip_rate", "flip_rate_stderr", "logit_change", "group_errors", "group_flips")
    new = {name: getattr(found, name).copy() for name in names}
    rings = _rings(waves, *predictor.shape[1:])
    for column, (outcome, change) in zip(columns, measured, strict=True):
        error, flip_rate = (count / found.images for count in (found.images - outcome.metrics.correct, outcome.flips))
        values = {
            "error": error,
            "error_stderr": binomial_stderr(error, found.images),
            "flip_rate": flip_rate,
            "flip_rate_stderr": binomial_stderr(flip_rate, found.images),
            "logit_change": change / found.images,
        }
        places = {(row, column), (int(waves.mirror_y[row]), int(waves.mirror_x[column]))}
        for place in places:
            for name, value in values.items():
                new[name][place] = value
        new["group_errors"][rings[row, column]] += len(places) * (
            found.group_images - outcome.group_correct.astype(np.int64)
        )
        new["group_flips"][rings[row, column]] += len(places) * outcome.group_flips.astype(np.int64)
    return replace(found, **new)


def _measure(predictor: Predictor, config: Config, drawn: list[Tensor], cycles_y: int, cycles_x: int) -> Measured:
    wave = config.heat_map_sigma * basis_image(*predictor.shape[1:], int(cycles_y), int(cycles_x))
    added = torch.from_numpy(wave).to(drawn[0].dtype).to(drawn[0].device)
    measured = [
        _measure_batch(predictor, pictures, torch.addcmul(pictures.pixels, drawn[pictures.index], added))
        for pictures in predictor.pictures()
    ]
    return Measured(*(sum(column[1:], column[0]) for column in zip(*measured, strict=True)))


def _measure_batch(predictor: Predictor, pictures: Pictures, waved: Tensor) -> Measured:
    changed = predictor.log_probability(pictures, waved).cpu()
    change = _norms(changed - predictor.clean[pictures.index]).sum()
    return Measured(predictor.compared(pictures, changed), float(change))


def _norms(log_probability: Tensor) -> Tensor:
    """Norms (B,) of logits whose mean over classes is 0; the probabilities determine these."""
    return torch.linalg.vector_norm(log_probability - log_probability.mean(dim=1, keepdim=True), dim=1)
