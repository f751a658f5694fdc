"""Test metrics of checkpoints: `python -m models.evaluate --ckpt NAME ...`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated

import tyro

from data_cache import InputError, exit_on_input_error


@dataclass(frozen=True)
class Config:
    """Evaluate checkpoints on test images: negative log-likelihood, accuracy and calibration error."""

    ckpt: tuple[str, ...]
    """Checkpoints: files, or names of those that ship."""
    data: str | None = None
    """NAME[:SPLIT]; default: the test split of what the checkpoint records."""
    passes: tuple[int, ...] = (1, 20)
    """Numbers of Monte Carlo passes to average; networks without MC dropout are evaluated once."""
    limit: int | None = None
    """Use this many images only, evenly spaced."""
    batch_size: int = 125
    """Images in a batch."""
    seed: int = 0
    """Decides the dropout masks."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    quiet: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """No progress bar."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the numbers as JSON instead of the table."""


def evaluate_checkpoint(name: str, config: Config) -> dict[int, dict[str, float]]:
    """Metrics of one checkpoint for each number of passes."""
    import torch
    from tqdm import tqdm

    import data_cache
    from models.checkpoint import load_checkpoint
    from models.devices import pick_device
    from models.layers import MCDropout
    from models.metrics import evaluate

    if not config.passes or min(config.passes) < 1:
        raise InputError("--passes takes whole numbers from 1 up.")
    checkpoint = load_checkpoint(name)
    recorded, device = checkpoint.metadata, pick_device(config.device)
    if config.data is None and "dataset" not in recorded:
        raise InputError(f"{checkpoint.path} does not say what it was trained on; give --data NAME[:SPLIT].")
    spec = config.data or recorded["dataset"]
    data = data_cache.load(spec) if ":" in spec else data_cache.load(spec, "test")
    data = data.limit(config.limit) if config.limit else data
    if "mean" in recorded:
        data = data.with_normalization(recorded["mean"], recorded["std"])
    data = data.to(device)
    model = checkpoint.model.to(device, memory_format=torch.channels_last)
    monte_carlo = any(isinstance(module, MCDropout) for module in model.modules())
    results = {}
    for passes in config.passes if monte_carlo else (1,):
        batches = data.batches(config.batch_size)
        fast = ((x.contiguous(memory_format=torch.channels_last), y) for x, y in batches)
        label = f"{checkpoint.path.stem}, {passes} pass{'es' * (passes > 1)}"
        with tqdm(total=len(data), unit="image", desc=label, disable=config.quiet, dynamic_ncols=True) as bar:
            metrics = evaluate(model, fast, passes=passes, seed=config.seed, progress=bar.update)
        results[passes] = metrics.summary()
    return results


def table(rows: dict[str, dict[int, dict[str, float]]]) -> str:
    """A line for each checkpoint and number of passes."""
    width = max(len(name) for name in rows)
    lines = [f"{'checkpoint':{width}}  passes  {'test NLL':>15}  {'accuracy %':>12}  {'ECE %':>5}"]
    for name, results in rows.items():
        for passes, row in results.items():
            nll = f"{row['nll']:.4f} ± {row['nll_stderr']:.4f}"
            accuracy = f"{100 * row['accuracy']:.2f} ± {100 * row['accuracy_stderr']:.2f}"
            lines.append(f"{name:{width}}  {passes:6d}  {nll}  {accuracy}  {100 * row['ece']:5.2f}")
    return "\n".join(lines)


def main() -> None:
    """Parse the command line, evaluate, print."""
    config = tyro.cli(Config, prog="python -m models.evaluate")
    with exit_on_input_error():
        rows = {name: evaluate_checkpoint(name, config) for name in config.ckpt}
        print(json.dumps(rows, indent=2) if config.json else table(rows))


if __name__ == "__main__":
    main()
