"""A small network with dropout on images of noise, and options that run every part of the robustness analysis."""

from __future__ import annotations

import torch
from torch import nn

from analyze import Subject
from data_cache import ImageData
from models.layers import MCDropout

TINY = {
    "passes": 2, "sigmas": (0.1, 0.4), "bands": 4, "heat_map_images": 5, "heat_map_cycles": 2, "attacks": ("fgsm",),
    "epsilons_linf": (4 / 255,), "epsilons_l2": (0.5,), "attack_images": 6, "corruptions": ("contrast",),
    "severities": (1, 3), "corruption_images": 6,
}  # fmt: skip


def network(seed: int = 0, rate: float = 0.3) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), MCDropout(rate), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
            nn.Linear(16, 4),
        )  # fmt: skip


def subject(model: nn.Module | None = None, n: int = 20, **options) -> Subject:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (n, 3, 9, 8), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 4, (n,), generator=generator)
    data = ImageData.from_arrays(pixels, labels, name="noise", classes="abcd", mean=[0.5] * 3, std=[0.25] * 3)
    return Subject(model or network(), data, **{"batch_size": 8} | options)
