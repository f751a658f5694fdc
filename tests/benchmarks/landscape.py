"""Seconds for a grid point, side by side: the published way, this package, and bare forward passes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from machine import describe, side_by_side
from table import RESULTS, markdown, titled
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import data_cache
import ext
from analyze import Subject
from analyze.landscape.directions import Direction, random_direction
from analyze.landscape.grid import Evaluator
from data_cache import ImageData
from models import get_model

NETWORKS = ("resnet_dnn_18", "resnet_mcdo_smoothing_18")
POINT = (0.05, -0.03)
"""A point of the grid that is not the checkpoint, near enough for the probabilities of the published way."""
BATCH = 128


@dataclass(frozen=True)
class Config:
    """Measure networks of the zoo at full width, random weights and real images."""

    quick: bool = False
    """Tiny sizes and nothing kept, to see that it works."""
    rounds: int = 5
    """The median of so many."""
    frames: int = 6
    """Monte Carlo passes at a point."""
    compile: bool = True
    """Include what is compiled."""
    out: Path = RESULTS / "landscape.json"
    """JSON to write."""


class Images(Dataset):
    """One image at a time, as a transform gives it."""

    def __init__(self, data: ImageData):
        images, self.labels = data.read(np.arange(len(data)))
        self.images = images.numpy()
        self.mean, self.std = (torch.tensor(each)[:, None, None] for each in (data.mean, data.std))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = torch.from_numpy(self.images[index]).float().div(255)
        return (image - self.mean) / self.std, int(self.labels[index])


def published(model: nn.Module, data: ImageData, x: Direction, y: Direction, workers: int) -> Callable[[], float]:
    """A point as notebooks do it: a state dict, a DataLoader, probabilities and their metrics batch by batch."""
    state = {name: value.clone() for name, value in model.state_dict().items()}
    images = Images(data)

    def run() -> float:
        moved = {
            name: value + POINT[0] * x.tensors[name] + POINT[1] * y.tensors[name] if name in x.tensors else value
            for name, value in state.items()
        }
        model.load_state_dict(moved)
        model.eval()
        total = torch.zeros(())
        confusion = torch.zeros(15, 10, 10)
        bins = torch.zeros(3, 15)
        with torch.no_grad():
            for batch, labels in DataLoader(images, BATCH, num_workers=workers):
                probability = torch.softmax(model(batch), dim=1).cpu()
                total += -torch.log(probability[torch.arange(len(labels)), labels]).sum()
                confidence, predicted = probability.max(dim=1)
                for k in range(15):  # a confusion matrix for each threshold, and the bins of the calibration error
                    sure = confidence > k / 15
                    confusion[k].index_put_((labels[sure], predicted[sure]), torch.ones(()), accumulate=True)
                    inside = sure & (confidence <= (k + 1) / 15)
                    right = (predicted == labels)[inside].float().sum()
                    bins[:, k] += torch.stack([inside.float().sum(), confidence[inside].sum(), right])
        return float(total / len(images))

    return run


def bare(model: nn.Module, subject: Subject, *, channels_last: bool, compiled: bool) -> Callable[[], float]:
    """The forward passes alone, over images that are in memory."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = model.to(memory_format=layout).eval()
    batches = [x.contiguous(memory_format=layout) for x, _ in subject.data]
    network = torch.compile(model) if compiled else model

    def run() -> float:
        with torch.no_grad():
            for x in batches:
                network(x)
        return np.nan

    return run


def ours(subject: Subject, x: Direction, y: Direction, engine: str, frames: int = 1) -> Callable[[], float]:
    evaluator = Evaluator(subject, x, y, engine=engine)

    def run() -> float:
        sums = evaluator.evaluate(*POINT, range(frames))
        return float(sums.nll_sum[0] / sums.count[0])

    return run


def measure(name: str, config: Config) -> dict:
    """Seconds of a point of one network."""
    width, count = (4, 20) if config.quick else (64, 512)

    def make() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return get_model(name, 10, width=width).eval()

    data = data_cache.load("fashion_mnist", "train").limit(count)
    subject = Subject(make(), data, batch_size=BATCH)
    x, y = (random_direction(subject, "filter", axis) for axis in ("x", "y"))
    tasks = {
        "published way": published(make(), data, x, y, 0),
        "published way, 2 workers": published(make(), data, x, y, 2),
        "landscope, plain": ours(subject, x, y, "plain"),
        "landscope": ours(subject, x, y, "fast"),
        "forward passes": bare(make(), subject, channels_last=False, compiled=False),
        "forward passes, channels last": bare(make(), subject, channels_last=True, compiled=False),
    }
    if config.compile:
        tasks["landscope, compiled"] = ours(subject, x, y, "compiled")
        tasks["forward passes, compiled"] = bare(make(), subject, channels_last=True, compiled=True)
    stochastic = "mcdo" in name
    if stochastic:
        tasks[f"landscope, {config.frames} frames"] = ours(subject, x, y, "fast", config.frames)
    values = {task: run() for task, run in tasks.items()}
    seconds = side_by_side(tasks, 1 if config.quick else config.rounds)
    plain = values["landscope, plain" if stochastic else "published way"]
    found = {
        "network": name,
        "width": width,
        "images": count,
        "seconds": seconds,
        "difference in NLL": abs(values["landscope"] - plain),
        "of": "the plain engine, with the same masks" if stochastic else "the published way",
    }
    if stochastic:
        found["frames / single"] = seconds[f"landscope, {config.frames} frames"] / seconds["landscope"] / config.frames
    return found


def table(content: dict) -> str:
    """The results in Markdown."""
    parts = []
    for found in content["networks"]:
        seconds = found["seconds"]
        rows = [[task, f"{value:.2f}", f"{seconds['published way'] / value:.2f}"] for task, value in seconds.items()]
        title = (
            f"A point of the landscape of {found['network']} at width {found['width']}, {found['images']} images; "
            f"NLL within {found['difference in NLL']:.1e} of {found['of']}"
        )
        if "frames / single" in found:
            title += f"; several frames cost {found['frames / single']:.2f} of as many single ones"
        parts.append(titled(title, content, markdown(["", "seconds", "published way / this"], rows)))
    return "\n\n".join(parts)


def main(config: Config) -> None:
    """Measure, write, print."""
    content = {"machine": describe(), "smoothing": ext.status()}
    content["networks"] = [measure(name, config) for name in NETWORKS]
    if not config.quick:
        config.out.write_text(json.dumps(content, indent=2) + "\n")
    print(table(content))


if __name__ == "__main__":
    main(tyro.cli(Config))
