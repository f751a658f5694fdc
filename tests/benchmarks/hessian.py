"""The Hessian analysis, measured: `make bench`. Each part writes results/hessian_PART.json and prints its table."""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import tyro
from machine import describe
from table import RESULTS, TABLES, path_of

Part = Literal["products", "peers", "density", "spectrum", "memory", "large"]
PARTS: dict[Part, tuple[str, str]] = {
    "products": ("hessian_products", "measure"),
    "peers": ("hessian_peers", "measure"),
    "density": ("hessian_density", "measure"),
    "spectrum": ("hessian_spectrum", "measure"),
    "memory": ("hessian_memory", "measure"),
    "large": ("hessian_memory", "measure_large"),
}


@dataclass(frozen=True)
class Config:
    """Measure on a shipped checkpoint, side by side in one run."""

    only: tuple[Part, ...] = ("products", "peers", "density", "spectrum", "memory")
    """Parts; large, a network of 11 million parameters, takes about as long as the others together."""
    ckpt: str = "resnet_dnn_18"
    """Checkpoint; one without dropout, since the peers can't hold its masks."""
    quick: bool = False
    """Tiny sizes and nothing kept, to see that all parts work."""
    out: Path = RESULTS
    """Folder for the JSON files."""


def run(part: Part, config: Config, folder: Path) -> None:
    """Measure a part, write its JSON, print its table."""
    module, function = PARTS[part]
    measure: Callable[..., dict] = getattr(importlib.import_module(module), function)
    begin = time.perf_counter()

    def log(line: str) -> None:
        print(f"  {time.perf_counter() - begin:6.1f} s  {part}: {line}", file=sys.stderr, flush=True)

    content = {"machine": describe(), **measure(config.ckpt, config.quick, log)}
    content["seconds of the benchmark"] = time.perf_counter() - begin
    folder.mkdir(parents=True, exist_ok=True)
    path_of(part, folder).write_text(json.dumps(content, indent=2) + "\n")
    print(TABLES[part](content) + "\n", flush=True)


def main() -> None:
    """Measure the parts asked for, one after another."""
    config = tyro.cli(Config)
    with TemporaryDirectory() as nowhere:
        for part in config.only:
            run(part, config, Path(nowhere) if config.quick else config.out)


if __name__ == "__main__":
    main()
