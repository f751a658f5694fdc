"""Negative log-likelihood, accuracy and calibration as sums over images, and the evaluation of a network."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor, nn

from models.ensemble import mean_log_probability
from models.randomness import fixed_randomness

BINS = 15


@dataclass(frozen=True)
class Metrics:
    """Sums over images in float64; two of them over disjoint images add up with `+`."""

    count: int
    """Images."""
    nll: float
    """Sum of negative log-likelihoods, in nats."""
    nll_sq: float
    """Sum of their squares."""
    correct: int
    """Images whose most probable class is the label."""
    bin_count: np.ndarray
    """(15,) images whose confidence, the largest probability, lies in ((k-1)/15, k/15]."""
    bin_confidence: np.ndarray
    """(15,) sum of their confidences."""
    bin_correct: np.ndarray
    """(15,) how many of them are right."""

    @classmethod
    def of(cls, log_probability: Tensor, labels: Tensor) -> Metrics:
        """The sums for one batch: (N, classes) log-probabilities and (N,) labels."""
        log_probability = log_probability.detach().to("cpu", torch.float64)
        labels = labels.detach().cpu()
        nll = -log_probability.gather(1, labels[:, None]).squeeze(1)
        top, prediction = log_probability.max(dim=1)
        confidence = top.exp().clamp(max=1.0).numpy()
        right = (prediction == labels).numpy()
        edges = np.arange(1, BINS) / BINS
        bins = np.searchsorted(edges, confidence, side="left")  # (lo, hi], exact at confidence 1
        return cls(
            count=len(labels),
            nll=float(nll.sum()),
            nll_sq=float((nll**2).sum()),
            correct=int(right.sum()),
            bin_count=np.bincount(bins, minlength=BINS),
            bin_confidence=np.bincount(bins, confidence, minlength=BINS),
            bin_correct=np.bincount(bins, right, minlength=BINS),
        )

    def __add__(self, other: Metrics) -> Metrics:
        return Metrics(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def mean_nll(self) -> float:
        """Mean negative log-likelihood, in nats."""
        return self.nll / self.count

    @property
    def nll_stderr(self) -> float:
        """Standard error of `mean_nll` over images."""
        variance = (self.nll_sq / self.count - self.mean_nll**2) * self.count / max(1, self.count - 1)
        return float(np.sqrt(np.maximum(0.0, variance) / self.count))  # NaN stays NaN

    @property
    def accuracy(self) -> float:
        """Share of images classified right."""
        return self.correct / self.count

    @property
    def accuracy_stderr(self) -> float:
        """Binomial standard error of `accuracy`."""
        return float(np.sqrt(self.accuracy * (1 - self.accuracy) / self.count))

    @property
    def ece(self) -> float:
        """Expected calibration error: sum over bins of |correct - confidence| / count (Guo et al. 2017)."""
        return float(np.abs(self.bin_correct - self.bin_confidence).sum() / self.count)

    def summary(self) -> dict[str, float]:
        """The numbers that tables show."""
        return {
            "images": self.count,
            "nll": self.mean_nll,
            "nll_stderr": self.nll_stderr,
            "accuracy": self.accuracy,
            "accuracy_stderr": self.accuracy_stderr,
            "ece": self.ece,
        }


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    passes: int = 1,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Metrics:
    """Evaluate a network in eval mode; the probability is the mean over `passes` MC dropout passes.

    Pass p of batch b draws its masks from (seed, p, b) alone. Every module's mode is restored.

    Args:
        model: Gives (N, classes) logits or log-probabilities.
        batches: (x, y) pairs.
        passes: Stochastic passes whose probabilities are averaged.
        seed: Seed of the masks.
        progress: Called with the number of images after each batch.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    total: Metrics | None = None
    try:
        for index, (x, y) in enumerate(batches):
            members = []
            for number in range(passes):
                with fixed_randomness(x.device, seed, number, index):
                    members.append(torch.log_softmax(model(x).double(), dim=-1))
            batch = Metrics.of(mean_log_probability(members), y)
            total = batch if total is None else total + batch
            if progress:
                progress(len(y))
    finally:
        for module, training in modes:
            module.training = training
    if total is None:
        raise ValueError("there is no image to evaluate")
    return total
