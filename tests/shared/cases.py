"""Small subjects that the tests share: model x data x loss, each with what makes it awkward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analyze import Subject
from models.layers import MCDropout

CLASSES = 3


class WithUnused(nn.Module):
    """A network with a layer that the loss never sees, and one whose output it sees only linearly."""

    def __init__(self):
        super().__init__()
        self.used = nn.Linear(5, CLASSES)
        self.unused = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(torch.tanh(x))


class Attention(nn.Module):
    """One transformer block over tokens, through scaled_dot_product_attention."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(4, 12)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        x = x + F.scaled_dot_product_attention(q, k, v)
        return self.head(self.norm(x).mean(dim=1))


class Tied(nn.Module):
    """An autoencoder-like classifier whose two layers share one weight."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))


def conv_net() -> nn.Module:
    """Convolution, BatchNorm, both kinds of dropout, odd and non-square maps."""
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1, bias=False),
        nn.BatchNorm2d(3),
        nn.Softplus(),
        MCDropout(0.3),
        nn.Conv2d(3, 2, 3, stride=2, groups=1),
        nn.Dropout(0.25),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2, CLASSES),
    )


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, CLASSES))


def partly_frozen() -> nn.Module:
    model = mlp()
    model[1].weight.requires_grad_(False)
    return model


@dataclass(frozen=True)
class Case:
    """How to make a subject, and its dense Hessian by an independent road."""

    name: str
    model: Callable[[], nn.Module]
    shape: tuple[int, ...]
    batches: tuple[int, ...] = (4, 4, 3)
    loss: Callable[[Tensor, Tensor], Tensor] = field(default=F.cross_entropy)
    regression: bool = False

    def build(self, dtype: torch.dtype = torch.float64, **options) -> Subject:
        """The subject, the same at every call."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = self.model().to(dtype)
            data = [self.batch(n, dtype) for n in self.batches]
        return Subject(model, data, self.loss, **options)

    def batch(self, n: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        x = torch.randn(n, *self.shape).to(dtype)
        y = torch.randn(n, CLASSES).to(dtype) if self.regression else torch.randint(0, CLASSES, (n,))
        return x, y


CASES = [
    Case("mlp", mlp, (6,)),
    Case("mlp_mse", mlp, (6,), loss=F.mse_loss, regression=True),
    Case("conv_bn_dropout", conv_net, (2, 7, 5)),
    Case("unused_parameters", WithUnused, (5,)),
    Case("attention", Attention, (3, 4)),
    Case("tied", Tied, (4,)),
    Case("partly_frozen", partly_frozen, (6,)),
    Case("one_image_batches", mlp, (6,), batches=(5, 1)),
]


def dense_hessian(subject: Subject) -> Tensor:
    """The Hessian (n, n) in float64, by torch.func.hessian of the whole loss in one piece.

    A road of its own: one flat weight vector, all batches summed before differentiating, weight decay inside
    the differentiated function. It shares the subject's forward pass (masks and mode are its definition).
    """
    parameters = {name: p.detach().double() for name, p in subject.parameters.items()}
    sizes = [p.numel() for p in parameters.values()]

    def loss(flat: Tensor) -> Tensor:
        pieces = zip(parameters.items(), flat.split(sizes), strict=True)
        weights = {name: piece.view_as(p) for (name, p), piece in pieces}
        total = flat.new_zeros(())
        for index, (x, y) in enumerate(subject.data):
            total = total + subject.batch_loss(weights, (x, y), index) * len(y)
        return total / subject.data.images + subject.weight_decay / 2 * flat @ flat

    flat = torch.cat([p.reshape(-1) for p in parameters.values()]).requires_grad_()
    return torch.autograd.functional.hessian(loss, flat)
