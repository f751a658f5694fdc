"""The parts of the robustness analysis, measured beside the forward passes that they need.

`python tests/benchmarks/robustness.py` writes results/robustness.json and prints its table.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import tyro
from machine import describe, side_by_side
from table import RESULTS, markdown, titled

from analyze import Subject
from analyze.robustness import compute
from analyze.robustness.heat_map import grid
from analyze.robustness.spec import CORRUPTION_NAMES
from analyze.robustness.spec import Config as Robustness

LIMIT = 1.1
"""What a part may cost, in forward passes."""


@dataclass(frozen=True)
class Config:
    """Measure the parts that only look, on two shipped networks."""

    ckpt: tuple[str, ...] = ("resnet_dnn_18", "resnet_mcdo_smoothing_18")
    """Checkpoints."""
    images: int = 128
    """Images of every part."""
    passes: int = 3
    """Monte Carlo passes."""
    rounds: int = 3
    """Measurements, of which the medians count."""
    quick: bool = False
    """Few images and nothing kept, to see that it works."""
    out: Path = RESULTS / "robustness.json"
    """The JSON file."""


def case(ckpt: str, config: Config) -> dict:
    """Seconds of each part and of its bare forward passes."""
    images = 8 if config.quick else config.images
    subject = Subject.load(ckpt, split="test", limit=images, device="cpu")
    cycles = 1 if config.quick else 5
    waves = grid(32, 32, cycles)
    own = Robustness(
        passes=config.passes,
        heat_map_images=images,
        heat_map_cycles=cycles,
        corruption_images=images,
        sigmas=(0.05, 0.1),
    )
    passes = subject.passes(config.passes)
    changed = {
        "frequency-noise": own.bands * len(own.sigmas),
        "heat-map": sum(len(columns) for _, columns in waves.rows),
        "corruptions": len(own.corruptions or CORRUPTION_NAMES) * len(own.severities),
    }

    def bare(times: int) -> Callable[[], None]:
        def run() -> None:
            for _ in range(times + 1):  # and the images as they are
                for index, _, (x, _) in subject.numbered_batches():
                    for number in range(passes):
                        subject.outputs(x, index, number)

        return run

    parts = []
    for part, times in changed.items():
        asked = replace(own, parts=(part,))
        tasks = {"forward passes": bare(times), "part": lambda asked=asked: compute(subject, asked)}
        seconds = side_by_side(tasks, 1 if config.quick else config.rounds)
        ratio = seconds["part"] / seconds["forward passes"]
        parts.append({"part": part, "changed versions": times, "seconds": seconds, "in forward passes": ratio})
        print(f"  {ckpt} {part}: {ratio:.3f}", flush=True)
    return {"checkpoint": ckpt, "images": images, "passes": passes, "parts": parts}


def robustness(content: dict) -> str:
    """The table in Markdown."""
    rows = [
        [
            case["checkpoint"],
            part["part"],
            f"{part['changed versions'] + 1} × {case['images']} × {case['passes']}",
            f"{part['seconds']['forward passes']:.1f}",
            f"{part['in forward passes']:.2f}",
        ]
        for case in content["cases"]
        for part in case["parts"]
    ]
    header = ["network", "part", "versions × images × passes", "forward passes (s)", "the part, in forward passes"]
    title = f"Robustness, in the forward passes that it needs (limit {content['limit']:g})"
    return titled(title, content, markdown(header, rows))


def main(config: Config) -> None:
    """Measure, write the JSON, print the table."""
    cases = [case(ckpt, config) for ckpt in config.ckpt]
    content = {"machine": describe(), "limit": LIMIT, "cases": cases}
    if not config.quick:
        config.out.parent.mkdir(parents=True, exist_ok=True)
        config.out.write_text(json.dumps(content, indent=2) + "\n")
    print(robustness(content))


if __name__ == "__main__":
    main(tyro.cli(Config))
