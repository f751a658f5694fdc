"""Seconds for a grid point, side by side: the published way, this package, and bare forward passes."""

from __future__ import annotations

import copy
import json
import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import tyro
from machine import describe
from table import RESULTS, markdown, titled
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

import data_cache
import ext
from analyze import Subject
from analyze.landscape.directions import Direction, random_direction
from analyze.landscape.grid import Evaluator
from analyze.landscape.network import PART_BYTES
from data_cache import ImageData
from models import get_model
from models.layers import MCDropout

NETWORKS = ("resnet_dnn_18", "resnet_mcdo_smoothing_18")
SHIPPED = ("resnet_mcdo_18", "resnet_mcdo_smoothing_18")
POINT = (0.05, -0.03)
"""A point of the grid that is not the checkpoint, near enough for the probabilities of the published way."""
BATCH = 128
Task = Callable[[], float]
"""Computes a point and gives its NLL, or NaN."""


@dataclass(frozen=True)
class Config:
    """Measure networks of the zoo at full width, random weights and real images."""

    quick: bool = False
    """Tiny sizes and nothing kept, to see that it works."""
    rounds: int = 5
    """The median of so many, or of fewer where the time is up."""
    minutes: float = 13.0
    """No new round begins after so long."""
    frames: int = 6
    """Monte Carlo passes at a point."""
    compile: bool = True
    """Include what is compiled."""
    out: Path = RESULTS / "landscape.json"
    """JSON to write."""

    @property
    def width(self) -> int:
        """Channels of the first stage."""
        return 4 if self.quick else 64

    @property
    def images(self) -> int:
        """How many a point takes."""
        return 20 if self.quick else 512


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


def published(model: nn.Module, data: ImageData, x: Direction, y: Direction, workers: int) -> Task:
    """A point as the notebook does it: copies of the state, a DataLoader, probabilities, confusion matrices.

    There are two thresholds of confidence and ten bins of calibration, with a matrix for each. What the notebook
    does besides is left out: it starts the loader twice, decodes images with PIL, computes all derived metrics again
    after each batch, and saves a figure for each point.
    """
    state = {name: value.clone() for name, value in model.state_dict().items()}
    images = Images(data)
    cutoffs, edges = (0.0, 0.9), np.linspace(0, 1, 11)

    def run() -> float:
        moved = copy.deepcopy(state)
        for name in x.tensors:
            moved[name] += POINT[0] * x.tensors[name] + POINT[1] * y.tensors[name]
        model.load_state_dict(moved)
        model.eval()
        total, confusion = 0.0, np.zeros((2 * len(cutoffs) + len(edges) - 1, 10, 10))
        confidences = np.zeros(len(edges) - 1)
        with torch.no_grad():
            for batch, labels in DataLoader(images, BATCH, num_workers=workers):
                probability = torch.softmax(model(batch), dim=1).cpu().numpy()
                truth = labels.numpy()
                total -= np.log(probability[np.arange(len(truth)), truth]).sum()
                confidence, predicted = probability.max(axis=1), probability.argmax(axis=1)
                within = [chosen for cutoff in cutoffs for chosen in (confidence > cutoff, confidence <= cutoff)]
                within += [
                    (low < confidence) & (confidence <= high) for low, high in zip(edges[:-1], edges[1:], strict=True)
                ]
                for matrix, chosen in zip(confusion, within, strict=True):
                    np.add.at(matrix, (truth[chosen], predicted[chosen]), 1)
                confidences += [confidence[chosen].sum() for chosen in within[2 * len(cutoffs) :]]
        return float(total / len(images))

    return run


def bare(model: nn.Module, subject: Subject, *, channels_last: bool, compiled: bool) -> Task:
    """The forward passes alone, over images that are in memory; what draws masks draws them."""
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


def ours(
    subject: Subject,
    x: Direction,
    y: Direction,
    engine: str,
    frames: int = 1,
    precision: str = "full",
    part_bytes: int = PART_BYTES,
) -> Task:
    """A point with all its metrics."""
    with mock.patch("analyze.landscape.grid.PART_BYTES", part_bytes):
        evaluator = Evaluator(subject, x, y, engine=engine, precision=precision)
    print(f"  {evaluator.arithmetic}", flush=True)
    if engine not in ("plain", "fast") and engine not in evaluator.arithmetic:
        raise RuntimeError(f"{engine} is not what it became: {evaluator.arithmetic}")

    def run() -> float:
        sums = evaluator.evaluate(*POINT, range(frames))
        return float(sums.nll_sum[0] / sums.count[0])

    return run


def problem(name: str, config: Config) -> tuple[Subject, ImageData, Direction, Direction]:
    """A network of the zoo with random weights, images, and the axes of a plane."""
    data = data_cache.load("fashion_mnist", "train").limit(config.images)
    subject = Subject(network(name, config), data, batch_size=BATCH)
    return subject, data, random_direction(subject, "filter", "x"), random_direction(subject, "filter", "y")


def network(name: str, config: Config) -> nn.Module:
    """The same weights each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return get_model(name, 10, width=config.width).eval()


def in_turns(tasks: Mapping[str, Task], rounds: int, until: float) -> dict[str, list[float]]:
    """Seconds of each task in each round; the tasks take turns, so that drift of the machine hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for done in range(rounds):
        if done and time.monotonic() > until:
            break
        for name, task in tasks.items():
            begin = time.perf_counter()
            task()
            seconds[name].append(time.perf_counter() - begin)
    return seconds


def measure(name: str, config: Config, until: float) -> dict:
    """Seconds of a point of one network."""
    subject, data, x, y = problem(name, config)
    stochastic = subject.stochastic
    makers: dict[str, Callable[[], Task]] = {
        "published way": lambda: published(network(name, config), data, x, y, 0),
        "published way, 2 workers": lambda: published(network(name, config), data, x, y, 2),
        "landscope, plain": lambda: ours(subject, x, y, "plain"),
        "landscope": lambda: ours(subject, x, y, "fast"),
        "landscope, parts twice as large": lambda: ours(subject, x, y, "fast", part_bytes=2 * PART_BYTES),
        "landscope, whole batches": lambda: ours(subject, x, y, "fast", part_bytes=2**40),
        "landscope, bfloat16": lambda: ours(subject, x, y, "fast", precision="bfloat16"),
        "forward passes": lambda: bare(network(name, config), subject, channels_last=False, compiled=False),
        "forward passes, channels last": lambda: bare(
            network(name, config), subject, channels_last=True, compiled=False
        ),
    }
    if config.compile:
        makers["landscope, compiled"] = lambda: ours(subject, x, y, "compiled")
        makers["forward passes, compiled"] = lambda: bare(
            network(name, config), subject, channels_last=True, compiled=True
        )
    if stochastic:
        makers[f"landscope, {config.frames} frames"] = lambda: ours(subject, x, y, "fast", config.frames)
    tasks, nll, failures = {}, {}, {}
    for task, make in makers.items():
        print(f"{name}: {task}", flush=True)
        try:
            tasks[task] = make()
            nll[task] = tasks[task]()  # warms up, too
        except Exception as error:  # such as no compiler; the others go on
            tasks.pop(task, None)
            failures[task] = f"{type(error).__name__}: {error}".splitlines()[0]
    seconds = in_turns(tasks, 1 if config.quick else config.rounds, until)
    reference = "landscope, plain" if stochastic else "published way"  # which draws its masks anew
    found = {
        "network": name,
        "width": config.width,
        "images": config.images,
        "rounds": seconds,
        "seconds": {task: statistics.median(values) for task, values in seconds.items()},
        "failures": failures,
        "difference in NLL": {
            task: abs(value - nll[reference])
            for task, value in nll.items()
            if task.startswith("landscope") and task != reference
        },
        "of": reference,
    }
    if stochastic:
        found |= frames(found["seconds"], name, config)
    return found


def frames(seconds: Mapping[str, float], name: str, config: Config) -> dict:
    """What several frames cost in single ones, and the least that sharing the beginning can leave of it."""
    share = before_the_first_dropout(network(name, config), config)
    several = seconds[f"landscope, {config.frames} frames"]
    return {
        "frames": config.frames,
        "frames / single": several / seconds["landscope"] / config.frames,
        "operations before the first dropout": share,
        "frames / single, by operations": 1 - share * (config.frames - 1) / config.frames,
    }


def before_the_first_dropout(model: nn.Module, config: Config) -> float:
    """Share of the multiplications of a pass."""
    before: list[int] = []
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        for module in model.modules():
            if isinstance(module, MCDropout):
                module.register_forward_pre_hook(lambda *_: before.append(counter.get_total_flops()))
        model(torch.zeros(1, 3, 32, 32))
    return before[0] / counter.get_total_flops()


def at_once(config: Config, points: int = 4) -> dict:
    """Seconds for several points by one vmap over stacked weights, and for one after the other."""
    count = config.images // 4
    models = [network("resnet_dnn_18", config).to(memory_format=torch.channels_last) for _ in range(points)]
    x = torch.randn(count, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    parameters, buffers = stack_module_state(models)

    def one(parameters: dict, buffers: dict) -> Tensor:
        return functional_call(models[0], (parameters, buffers), (x,))

    tasks = {
        "one after the other": lambda: float([model(x) for model in models][0][0, 0]),
        "vmap": lambda: float(vmap(one)(parameters, buffers)[0, 0, 0]),
    }
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop")
        difference = abs(np.subtract(*(task() for task in tasks.values())))
        seconds = in_turns(tasks, 1 if config.quick else 3, np.inf)
    median = {task: statistics.median(values) for task, values in seconds.items()}
    return {"points": points, "images": count, "seconds": median, "difference in a logit": difference}


def whole_grid(name: str, config: Config, side: int = 21) -> dict:
    """Minutes for a square grid of a checkpoint that ships, from a few of its points."""
    subject = Subject.load(name, limit=config.images)
    x, y = (random_direction(subject, "filter", axis) for axis in "xy")
    begin = time.perf_counter()
    task = ours(subject, x, y, "fast")
    task()
    first = time.perf_counter() - begin
    seconds = statistics.median(in_turns({"point": task}, 1 if config.quick else 9, np.inf)["point"])
    return {
        "checkpoint": name,
        "images": config.images,
        "side": side,
        "seconds for a point": seconds,
        "minutes": (first + (side**2 - 1) * seconds) / 60,
    }


def table(content: dict) -> str:
    """The results in Markdown."""
    parts = []
    for found in content.get("networks", []):
        seconds, differences = found["seconds"], found["difference in NLL"]
        slow = min(value for task, value in seconds.items() if task.startswith("published"))
        rows = [
            [task, f"{value:.2f}", f"{slow / value:.2f}", f"{differences[task]:.1e}" if task in differences else ""]
            for task, value in seconds.items()
        ]
        rows += [[task, "failed", reason, ""] for task, reason in found["failures"].items()]
        title = f"A point of the landscape of {found['network']} at width {found['width']}, {found['images']} images"
        if "frames" in found:
            title += (
                f"; {found['frames']} frames cost {found['frames / single']:.2f} of as many single ones "
                f"({found['frames / single, by operations']:.2f} by counting operations)"
            )
        header = ["", "seconds", "published way / this", f"NLL differs from {found['of']} by"]
        parts.append(titled(title, content, markdown(header, rows)))
    if several := content.get("several points at once"):
        rows = [[task, f"{value:.2f}"] for task, value in several["seconds"].items()]
        title = f"{several['points']} points of resnet_dnn_18, {several['images']} images"
        parts.append(titled(title, content, markdown(["", "seconds"], rows)))
    if grids := content.get("grids"):
        rows = [
            [each["checkpoint"], str(each["images"]), f"{each['seconds for a point']:.2f}", f"{each['minutes']:.1f}"]
            for each in grids
        ]
        header = ["checkpoint", "images", "seconds for a point", "minutes for 21 x 21"]
        parts.append(titled("Whole grids", content, markdown(header, rows)))
    return "\n\n".join(parts)


def main(config: Config) -> None:
    """Measure, write after each part, print."""
    begin = time.monotonic()
    content: dict = {"machine": describe(), "smoothing": ext.status(), "grids": [], "networks": []}

    def keep() -> None:
        if not config.quick:
            config.out.write_text(json.dumps(content, indent=2) + "\n")

    for name in SHIPPED:
        content["grids"].append(whole_grid(name, config))
        keep()
    content["several points at once"] = at_once(config)
    keep()
    for place, name in enumerate(NETWORKS, start=1):
        until = begin + 60 * config.minutes * place / len(NETWORKS)
        content["networks"].append(measure(name, config, until))
        keep()
    print(table(content))


if __name__ == "__main__":
    main(tyro.cli(Config))
