"""Feature-map variance and Fourier spectra, measured beside the forward passes that they need.

`python tests/benchmarks/features.py` writes results/features.json and prints its table.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import tyro
from machine import describe, side_by_side
from table import RESULTS, markdown, titled
from torch import Tensor, nn

from analyze import Subject, fourier, variance
from analyze.layers import feature_maps, find_layers
from models import get_model

LIMIT = 1.35
"""What an analysis may cost, in forward passes."""


@dataclass(frozen=True)
class Config:
    """Measure all default layers of two networks at two widths, side by side in one run."""

    batch: int = 64
    """Images in a batch, 32x32."""
    passes: int = 5
    """Monte Carlo passes of the networks with dropout."""
    rounds: int = 5
    """Measurements, of which the medians count."""
    threads: int | None = None
    """Threads of torch; default: as many as it takes by itself."""
    quick: bool = False
    """Tiny sizes and nothing kept, to see that it works."""
    out: Path = RESULTS
    """Folder for the JSON file."""


def published(subject: Subject, passes: int) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """As in published notebooks: keep all maps, then log amplitudes of whole transforms and variances over axes."""
    layers = find_layers(subject)
    kept: dict[str, list[list[Tensor]]] = {layer.name: [[] for _ in range(passes)] for layer in layers}
    for number in range(passes):
        for index, _, (x, _) in subject.numbered_batches():

            def keep(position: int, member: int, maps: Tensor, number: int = number) -> None:
                kept[layers[position].name][number].append(maps.clone())

            feature_maps(subject, layers, x, index, number, keep)
    found = {}
    for name, rows in kept.items():
        maps = torch.stack([torch.cat(row) for row in rows])
        amplitude = (torch.fft.fft2(maps).abs() + 1e-6).log().mean((0, 1, 2))
        spread = maps.var(0).mean() if passes > 1 else torch.zeros(())
        found[name] = amplitude, spread, maps.var((-2, -1)).mean()
    return found


def case(model: nn.Module, name: str, batches: int, config: Config) -> dict:
    """Seconds of the forward passes, of both analyses and of the published way."""
    generator = torch.Generator().manual_seed(0)
    data = [
        (torch.randn(config.batch, 3, 32, 32, generator=generator), torch.zeros(config.batch, dtype=torch.int64))
        for _ in range(batches)
    ]
    subject = Subject(model, data)
    passes = subject.passes(config.passes)

    def bare() -> None:
        for number in range(passes):
            for index, _, (x, _) in subject.numbered_batches():
                subject.outputs(x, index, number)

    seconds = side_by_side(
        {
            "forward passes": bare,
            "variance": lambda: variance.compute(subject, variance.Config(passes=config.passes)),
            "fourier": lambda: fourier.compute(subject, fourier.Config(passes=config.passes)),
            "published way": lambda: published(subject, passes),
        },
        1 if config.quick else config.rounds,
    )
    numbers = sum(layer.channels * layer.height * layer.width for layer in find_layers(subject))
    return {
        "network": name,
        "images": batches * config.batch,
        "passes": passes,
        "layers": len(find_layers(subject)),
        "seconds": seconds,
        "bytes that the published way keeps": 4 * numbers * batches * config.batch * passes,
        "in forward passes": {task: value / seconds["forward passes"] for task, value in seconds.items()},
    }


def measure(config: Config, log: Callable[[str], None]) -> dict:
    """Both networks at both widths."""
    cases = []
    for width, batches in ((4, 1),) if config.quick else ((16, 8), (64, 2)):
        for name in ("resnet_dnn_18", "resnet_mcdo_smoothing_18"):
            torch.manual_seed(0)
            cases.append(case(get_model(name, 10, width=width), f"{name}, width {width}", batches, config))
            log(f"{cases[-1]['network']}: {cases[-1]['in forward passes']}")
    return {"limit": LIMIT, "batch": config.batch, "cases": cases}


def features(content: dict) -> str:
    """The table in Markdown."""
    rows = [
        [
            case["network"],
            f"{case['images']} × {case['passes']}",
            f"{case['seconds']['forward passes']:.2f}",
            *(f"{case['in forward passes'][task]:.2f}" for task in ("variance", "fourier", "published way")),
            f"{case['bytes that the published way keeps'] / 2**20:.0f}",
        ]
        for case in content["cases"]
    ]
    title = f"Variance and Fourier spectra of all layers, in forward passes (limit {content['limit']:g})"
    header = [
        "network",
        "images × passes",
        "forward passes (s)",
        "variance",
        "fourier",
        "published way",
        "it keeps (MiB)",
    ]
    return titled(title, content, markdown(header, rows))


def main() -> None:
    """Measure, write the JSON, print the table."""
    config = tyro.cli(Config)
    if config.threads:
        torch.set_num_threads(config.threads)
    begin = time.perf_counter()

    def log(line: str) -> None:
        print(f"  {time.perf_counter() - begin:6.1f} s  {line}", file=sys.stderr, flush=True)

    content = {"machine": describe(), **measure(config, log)}
    content["seconds of the benchmark"] = time.perf_counter() - begin
    with TemporaryDirectory() as nowhere:
        folder = Path(nowhere) if config.quick else config.out
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "features.json").write_text(json.dumps(content, indent=2) + "\n")
    print(features(content))


if __name__ == "__main__":
    main()
