"""Networks over small images, and all their feature maps at once, by hooks of their own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

import numpy as np
import torch
from torch import nn

from analyze import Subject
from models import get_model
from models.ensemble import Ensemble


def noise_subject(
    model: nn.Module, sizes: Sequence[int] = (5, 5, 3), shape: tuple[int, ...] = (3, 16, 16), **options
) -> Subject:
    """The model on batches of Gaussian noise; the same images whatever the batches are."""
    images = torch.randn(sum(sizes), *shape, generator=torch.Generator().manual_seed(1))
    labels = torch.zeros(len(images), dtype=torch.int64)
    own = next(model.parameters()).dtype
    return Subject(
        model, list(zip(images.to(own).split(list(sizes)), labels.split(list(sizes)), strict=True)), **options
    )


def zoo_net(name: str, seed: int = 0, **options) -> nn.Module:
    """A narrow network of the zoo whose BatchNorms have statistics and affine parameters of their own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = get_model(name, 10, **{"width": 4, **options})
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0.0, 0.3)
    return model


def all_maps(subject: Subject, names: Iterable[str], passes: int) -> dict[str, np.ndarray]:
    """(S, B, C, H, W) maps of each module in float64, with S = passes * members."""
    members = subject.model.models if isinstance(subject.model, Ensemble) else [subject.model]
    found: dict[str, list[list[np.ndarray]]] = {name: [[] for _ in range(passes * len(members))] for name in names}
    for number in range(passes):
        hooks = []
        for member, network in enumerate(members):
            for name, rows in found.items():
                keep = partial(_keep, rows[number * len(members) + member])
                hooks.append(network.get_submodule(name).register_forward_hook(keep))
        for index, (x, _) in enumerate(subject.data):
            subject.outputs(x, index, number)
        for hook in hooks:
            hook.remove()
    return {name: np.stack([np.concatenate(batches) for batches in rows]) for name, rows in found.items()}


def spread(maps: np.ndarray, members: int = 1) -> np.ndarray:
    """Unbiased variance over the first axis, of realisations that come member by member in every pass."""
    if len(maps) == 1:
        return np.zeros(maps.shape[1:])
    passes = maps.reshape(-1, members, *maps.shape[1:])
    if 1 in passes.shape[:2]:
        return maps.var(axis=0, ddof=1)
    within, between = passes.var(axis=0, ddof=1).mean(axis=0), passes.mean(axis=0).var(axis=0, ddof=1)
    return (1 - 1 / len(passes)) * within + between


def _keep(row: list[np.ndarray], module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
    row.append(output.double().numpy())
