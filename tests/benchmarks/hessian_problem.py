"""The loss that all Hessian benchmarks and peers see: a shipped network in eval mode on one batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analyze import Subject


@dataclass(frozen=True)
class Problem:
    """Mean cross-entropy of one batch over all weights, without weight decay."""

    subject: Subject

    @classmethod
    def load(cls, ckpt: str, images: int, dtype: torch.dtype = torch.float32) -> Problem:
        """The first `images` training images as one batch."""
        problem = cls(Subject.load(ckpt, limit=images, batch_size=images, weight_decay=0.0, dtype=dtype, device="cpu"))
        problem.model.eval()
        return problem

    @property
    def model(self) -> nn.Module:
        return self.subject.model

    @property
    def weights(self) -> list[nn.Parameter]:
        return list(self.subject.parameters.values())

    @property
    def size(self) -> int:
        return sum(weight.numel() for weight in self.weights)

    @property
    def batch(self) -> tuple[Tensor, Tensor]:
        return next(iter(self.subject.data))

    def gradient(self) -> Callable[[], Sequence[Tensor]]:
        """One gradient as any training loop computes it: the unit in which products are measured."""
        (x, y), weights = self.batch, self.weights
        return lambda: torch.autograd.grad(F.cross_entropy(self.model(x), y), weights)


def normal(size: int, seed: int = 0) -> Tensor:
    """A random vector (n,) from a generator of its own."""
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))
