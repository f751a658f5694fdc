"""The points of a grid: in which order they are computed, and the sums over images at one of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analyze.landscape.directions import Direction
from analyze.landscape.masks import Masks, Met, met
from analyze.landscape.network import PART_BYTES, QuickNetwork, lower_precision
from analyze.landscape.spec import BINS, SUMS
from analyze.landscape.twin import Tensors, Twin
from analyze.subject import Subject, failures
from data_cache import InputError
from models.ensemble import first_tensor
from models.metrics import Metrics

AGREEMENT = 1e-5
"""How far the quick network's mean NLL may lie from the plain one's, absolutely and relatively."""
TRIAL = 0.25
"""Where the quick network is tried, beside the checkpoint: so far along each direction, and no farther than this share
of the weights' norm. No negative numbers: between checkpoints variances stay positive."""


class Sums(NamedTuple):
    """Sums over images at a point, for each of F frames; float64."""

    count: np.ndarray
    """(F,) images."""
    nll_sum: np.ndarray
    """(F,) of negative log-likelihoods, in nats; of the loss where it isn't the cross-entropy of classes."""
    nll_sq: np.ndarray
    """(F,) of their squares; NaN where there are no classes, as all that follow."""
    correct: np.ndarray
    """(F,) images classified right; NaN where the NLL is."""
    bin_count: np.ndarray
    """(F, 15) images in each bin of confidence."""
    bin_confidence: np.ndarray
    """(F, 15) their confidences."""
    bin_correct: np.ndarray
    """(F, 15) how many of them are right."""

    @classmethod
    def failed(cls, frames: int) -> Sums:
        """Of no image."""
        return cls(*(np.zeros((frames, BINS) if name.startswith("bin") else frames) for name in SUMS))


class Evaluator:
    r"""Sums over a subject's images at weights :math:`w_0 + x\,d_x + y\,d_y`.

    All of it happens in copies: the subject is not touched. Frame f is Monte Carlo pass f, whose masks are a function
    of (seed, f, batch), and with `noise="point"` of the number of the point too, whatever else is computed with it.
    Where nothing but rounding differs, the quick network takes the place of the plain one; at the checkpoint itself
    the plain one is always used, so that the numbers there are those of any other evaluation, to the last bit.

    Args:
        subject: Model, data and loss.
        x: First direction; along another checkpoint, buffers move too.
        y: Second direction; None for a curve.
        noise: Whether a frame has the same masks at all points.
        recompute: Recompute BatchNorm's statistics at each point, with the masks of pass 0.
        engine: `plain`, `fast` or `compiled`.
        precision: `full`, or what is faster.

    Raises:
        InputError: The model fails, or an option does not fit it.
    """

    def __init__(
        self,
        subject: Subject,
        x: Direction,
        y: Direction | None = None,
        *,
        noise: Literal["frame", "point"] = "frame",
        recompute: bool = False,
        engine: Literal["plain", "fast", "compiled"] = "fast",
        precision: Literal["full", "tf32", "bfloat16"] = "full",
    ):
        if recompute and subject.mode == "train":
            raise InputError("BatchNorm uses no running statistics in train mode; leave out --bn recompute.")
        if precision == "tf32" and subject.device.type != "cuda":
            raise InputError("tf32 is an arithmetic of CUDA devices; on the CPU give --precision bfloat16 or full.")
        if precision != "full" and subject.dtype != torch.float32:
            raise InputError(f"--precision {precision} is a short cut for float32 networks, not for {subject.dtype}.")
        self.subject = subject
        self._axes = [{**each.tensors, **each.rest} for each in (x, y) if each is not None]
        self._noise, self._recompute, self._precision = noise, recompute, precision
        self._batches = list(subject.data)
        self._classes: bool | None = None
        self._compiled = engine == "compiled"
        self.guessing = np.nan
        self._plain = Twin(subject, self._axes)
        self._squares = self._gram(x, y)
        self._quick: QuickNetwork | None = None
        self._masks: Masks | None = None
        self._of(first := self._plain_outputs(self._plain, 0, (0, 0)), self._batches[0][1])
        if engine != "plain":
            self._prepare(first, compiled=engine == "compiled")

    guessing: float
    """NLL of a guess, the log of the number of classes; NaN if there are none."""

    @property
    def arithmetic(self) -> str:
        """How the network is computed, in words."""
        words = [str(self.subject.dtype).removeprefix("torch.")]
        if self._precision != "full":
            words = [f"{self._precision} in {words[0]}"]
        if (quick := self._quick) is None:
            words.append("as it is")
        else:
            words.append("channels last")
            words += [f"{quick.folded} norms folded"] * bool(quick.folded)
            words += ["shared up to the first dropout"] * quick.shares_prefix
            words += ["compiled"] * self._compiled
        words += ["BatchNorm recomputed"] * self._recompute
        return ", ".join(words)

    def squared_norm(self, x: float, y: float = 0.0) -> float:
        """||w||^2 over all studied weights, in float64."""
        point = np.array([1.0, x, y][: len(self._squares)])
        return float(point @ self._squares @ point)

    @property
    def cosine(self) -> float:
        """Of the angle between the directions; NaN for a curve."""
        if len(self._squares) < 3:
            return np.nan
        return float(self._squares[1, 2] / np.sqrt(self._squares[1, 1] * self._squares[2, 2]))

    def evaluate(self, x: float, y: float, frames: Sequence[int], point: int = 0) -> Sums:
        """The sums at one point.

        Args:
            x: Coordinate along the first direction.
            y: Coordinate along the second.
            frames: Numbers of the Monte Carlo passes.
            point: Number of the point, which masks depend on if `noise` is `point`.

        Raises:
            InputError: The model fails.
        """
        # the numbers of the checkpoint itself are those of any other evaluation
        plain = self._quick is None or (x == y == 0 and self._precision == "full")
        return self._evaluate(x, y, frames, point, plain=plain)

    def deviation(self, points: Sequence[tuple[float, float]], frame: int) -> float:
        """Largest difference of the mean NLL from that in full precision, among the points where both are finite."""
        if self._precision == "full":
            return np.nan
        found = []
        for x, y in points:
            with suppress(InputError):
                quick, plain = (self._evaluate(x, y, [frame], 0, plain=plain, exact=plain) for plain in (False, True))
                found.append(abs(float(quick.nll_sum[0] / quick.count[0]) - float(plain.nll_sum[0] / plain.count[0])))
        return max(filter(math.isfinite, found), default=np.nan)

    def nll_of(self, difference: Tensors, frame: int) -> float:
        """Mean NLL of another checkpoint, which differs by so much in parameters and buffers."""
        twin = Twin(self.subject, [])
        twin.move_to(difference)
        if self._recompute:
            self._recompute_statistics(twin, 0)
        sums = self._sums([[self._plain_outputs(twin, index, (frame, index))] for index in range(len(self._batches))])
        return float(sums.nll_sum[0] / sums.count[0])

    def _evaluate(
        self, x: float, y: float, frames: Sequence[int], point: int, *, plain: bool, exact: bool = False
    ) -> Sums:
        coordinates = (x, y)[: len(self._axes)]
        if plain or self._quick is None or self._recompute:
            self._plain.move(*coordinates)
        if self._recompute:
            self._recompute_statistics(self._plain, point)
        if not plain and self._quick is not None:
            self._quick.twin.move(*coordinates)
            if self._recompute:
                self._quick.twin.copy_buffers(self._plain)
            self._quick.update()
        outputs = []
        for index, (images, _) in enumerate(self._batches):
            counters = [self._counters(frame, index, point) for frame in frames]
            if plain or self._quick is None:
                with self._lower(exact):
                    outputs.append([self._plain_outputs(self._plain, index, each) for each in counters])
            else:
                outputs.append(self._quick_outputs(self._quick, images, index, counters, exact=exact))
        return self._sums(outputs)

    def _recompute_statistics(self, twin: Twin, point: int) -> None:
        counters = [self._counters(0, index, point) for index in range(len(self._batches))]
        with failures("the model", self._batches[0][0]):
            twin.recompute_statistics(self._batches, counters)

    def _lower(self, exact: bool) -> Any:
        return lower_precision("full" if exact else self._precision, self.subject.device)

    def _counters(self, frame: int, index: int, point: int) -> tuple[int, ...]:
        return (frame, index) if self._noise == "frame" else (frame, index, 1 + point)

    def _plain_outputs(self, twin: Twin, index: int, counters: tuple[int, ...]) -> Any:
        x = self._batches[index][0]
        with twin.subject.frozen(*counters), torch.no_grad(), failures("the model", x):
            return twin.model(x)

    def _quick_outputs(
        self, quick: QuickNetwork, x: Tensor, index: int, counters: Sequence[tuple[int, ...]], *, exact: bool = False
    ) -> list[Any]:
        masks = [self._masks(index, each) if self._masks else [] for each in counters]
        with quick.twin.subject.frozen(0), self._lower(exact), failures("the model", x):
            return quick.outputs(x, masks)

    def _sums(self, outputs: Sequence[Sequence[Any]]) -> Sums:
        """Of the outputs for each batch and frame."""
        frames = []
        for frame in range(len(outputs[0])):
            total: Sums | None = None
            for (_, labels), each in zip(self._batches, outputs, strict=True):
                sums = self._of(each[frame], labels)
                total = sums if total is None else Sums(*(a + b for a, b in zip(total, sums, strict=True)))
            frames.append(total)
        return Sums(*(np.stack(parts) for parts in zip(*frames, strict=True)))

    def _of(self, output: Any, labels: Tensor) -> Sums:
        if self._classes is None:
            self._classes = _is_cross_entropy(self.subject.loss) and all(
                _are_classes(first_tensor(output), each) for _, each in self._batches
            )
            if self._classes:
                self.guessing = math.log(first_tensor(output).shape[1])
        if self._classes:
            metrics = Metrics.of(torch.log_softmax(first_tensor(output).double(), dim=1), labels)
            correct = np.nan if math.isnan(metrics.nll) else metrics.correct  # NaN has no most probable class
            found = [metrics.count, metrics.nll, metrics.nll_sq, correct]
            found += [metrics.bin_count, metrics.bin_confidence, metrics.bin_correct]
            return Sums(*(np.asarray(value, dtype=np.float64) for value in found))
        with torch.no_grad(), failures("the loss", labels):
            loss = self.subject.loss(output, labels)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise InputError("the loss must give one number, the mean over the batch.")
        nothing, count = np.float64(np.nan), np.float64(len(labels))
        return Sums(count, count * np.float64(loss.item()), nothing, nothing, *[np.full(BINS, np.nan)] * 3)

    def _prepare(self, first: Any, *, compiled: bool) -> None:
        """Make the quick network, and keep it only if it does what the plain one does, here and at a moved point."""
        x, _ = self._batches[0]
        here, there = (0.0,) * len(self._axes), self._trial_point()
        plain = {here: [first, self._plain_outputs(self._plain, 0, (1, 0))]}
        self._plain.move(*there)
        with _plain_if_it_fails():
            plain[there] = [self._plain_outputs(self._plain, 0, (1, 0))]
        self._plain.move(*here)
        if there not in plain:
            return
        seen = {images.shape: met(self._plain, images) for images in {i.shape: i for i, _ in self._batches}.values()}
        shapes = [seen[images.shape].dropouts for images, _ in self._batches]
        for tuned in (True, False):
            try:
                quick = QuickNetwork(
                    Twin(self.subject, self._axes, channels_last=True),
                    tuned=tuned,
                    compiled=compiled,
                    rows=self._rows(first, seen[x.shape]) if tuned else 0,
                )
            except Exception:  # torch.fx raises whatever it meets in a network that it can't trace
                return
            self._masks = Masks(self.subject, shapes, keep=self._noise == "frame")
            if len(quick.dropouts) == len(shapes[0]):
                with _plain_if_it_fails():
                    if all(self._agrees(quick, point, outputs) for point, outputs in plain.items()):
                        self._quick = quick
                        return
        self._masks = None

    def _trial_point(self) -> tuple[float, ...]:
        own, *lengths = np.sqrt(np.diag(self._squares))
        return tuple(TRIAL * min(1.0, own / length) if own and length else TRIAL for length in lengths)

    def _rows(self, output: Any, seen: Met) -> int:
        """Images to compute together, where they do not depend on each other; 0 for a whole batch."""
        count = len(self._batches[0][0])
        alone = isinstance(output, Tensor) and len(output) == count and self.subject.mode == "eval"
        if self.subject.device.type != "cpu" or not alone or any(size[0] != count for size, *_ in seen.dropouts):
            return 0
        rows = 2 ** max(3, round(math.log2(PART_BYTES / seen.largest)))
        return rows if rows < count else 0  # so that the trial on the first batch shows whether parts are right

    def _agrees(self, quick: QuickNetwork, point: Sequence[float], plain: Sequence[Any]) -> bool:
        """Whether it gives the plain network's outputs in pass 1, or passes 0 and 1; not if they are no numbers."""
        x, labels = self._batches[0]
        quick.twin.move(*point)
        quick.update()
        counters = [(0, 0), (1, 0)][-len(plain) :]
        for outputs in zip(plain, self._quick_outputs(quick, x, 0, counters, exact=True), strict=True):
            a, b = (self._of(output, labels) for output in outputs)
            if not abs(a.nll_sum - b.nll_sum) / a.count <= AGREEMENT * (1 + abs(a.nll_sum / a.count)):
                return False
        return True

    def _gram(self, x: Direction, y: Direction | None) -> np.ndarray:
        """Inner products of w0, dx and dy over the studied weights."""
        weights = {name: p.detach() for name, p in self.subject.parameters.items()}
        tensors = [weights, *(each.tensors for each in (x, y) if each is not None)]
        return np.array([[_inner(a, b) for b in tensors] for a in tensors])


def _inner(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    return sum(torch.dot(a[name].double().reshape(-1), b[name].double().reshape(-1)).item() for name in a if name in b)


@contextmanager
def _plain_if_it_fails() -> Iterator[None]:
    """For a trial of the quick network: what it can't do, the plain one can."""
    try:
        yield
    except (InputError, RuntimeError, NotImplementedError, TypeError):
        return


def _is_cross_entropy(loss: Any) -> bool:
    if isinstance(loss, nn.CrossEntropyLoss):
        return loss.weight is None and loss.label_smoothing == 0 and loss.reduction == "mean"
    return loss is F.cross_entropy


def _are_classes(output: Tensor, labels: Tensor) -> bool:
    return (
        output.dim() == 2
        and labels.dim() == 1
        and not labels.is_floating_point()
        and int(labels.min()) >= 0
        and int(labels.max()) < output.shape[1]
    )


def coarse_to_fine(rows: int, columns: int) -> list[tuple[int, int]]:
    """All (row, column) of a grid, so that every beginning of the list is spread over all of it.

    Each axis is halved again and again from its two ends; a point comes with the later of its two coordinates.
    """
    levels = _levels(rows), _levels(columns)
    points = [(row, column) for row in range(rows) for column in range(columns)]
    return sorted(points, key=lambda point: (max(levels[0][point[0]], levels[1][point[1]]), point))


def _levels(length: int) -> list[int]:
    """At which halving each index comes; 0 for the ends."""
    levels = [0] * length
    segments, level = [(0, length - 1)], 1
    while segments:
        halves = []
        for low, high in segments:
            if high - low > 1:
                middle = (low + high) // 2
                levels[middle] = level
                halves += [(low, middle), (middle, high)]
        segments, level = halves, level + 1
    return levels
