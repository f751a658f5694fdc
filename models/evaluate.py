"""Test metrics of checkpoints: `python -m models.evaluate --ckpt NAME ...`."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from data_cache import InputError, exit_on_input_error

if TYPE_CHECKING:
    import torch

    from data_cache import ImageData


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


def test_metrics(
    model: torch.nn.Module,
    data: ImageData,
    *,
    passes: tuple[int, ...] = (1, 20),
    batch_size: int = 125,
    seed: int = 0,
    quiet: bool = True,
) -> dict[str, dict[str, float]]:
    """NLL, accuracy and ECE with standard errors: once, and for each number of passes with MC dropout.

    Args:
        model: In channels_last memory format, on the data's device.
        data: Labelled images.
        passes: Numbers of passes whose probabilities are averaged.
        batch_size: Images in a batch.
        seed: Decides the dropout masks.
        quiet: No progress bar.
    """
    import torch
    from tqdm import tqdm

    from models.layers import MCDropout
    from models.metrics import evaluate

    if not any(isinstance(module, MCDropout) for module in model.modules()):
        passes = (1,)
    results = {}
    for count in passes:
        label = f"{count} pass{'es' * (count > 1)}"
        batches = ((x.contiguous(memory_format=torch.channels_last), y) for x, y in data.batches(batch_size))
        with tqdm(total=len(data), unit="image", desc=label, disable=quiet, dynamic_ncols=True) as bar:
            metrics = evaluate(model, batches, passes=count, seed=seed, progress=bar.update)
        results[label] = metrics.summary()
    return results


def evaluate_checkpoint(name: str, config: Config, notes: set[str]) -> dict[str, dict[str, float]]:
    """The metrics of one checkpoint; what there is to say of how they were computed is added to `notes`."""
    import torch

    import ext
    from models.checkpoint import load_checkpoint
    from models.devices import pick_device
    from models.layers import smoothing_path
    from models.recorded import recorded_data

    if not config.passes or min(config.passes) < 1:
        raise InputError("--passes takes whole numbers from 1 up.")
    checkpoint = load_checkpoint(name)
    device = pick_device(config.device)
    data = recorded_data(checkpoint, config.data, "test")
    if config.limit is not None:
        data = data.limit(config.limit)
    model = checkpoint.model.to(device, memory_format=torch.channels_last)
    if smoothing_path(model, device) is not None:
        notes.add(ext.status())
    if not config.quiet:
        print(checkpoint.path.stem, file=sys.stderr)
    return test_metrics(
        model,
        data.to(device),
        passes=config.passes,
        batch_size=config.batch_size,
        seed=config.seed,
        quiet=config.quiet,
    )


def table(rows: dict[str, dict[str, dict[str, float]]]) -> str:
    """A line for each checkpoint and number of passes."""
    width = max(len(name) for name in rows)
    lines = [f"{'checkpoint':{width}}  {'':9}  {'test NLL':>15}  {'accuracy %':>12}  {'ECE %':>5}"]
    for name, results in rows.items():
        for passes, row in results.items():
            nll = f"{row['nll']:.4f} ± {row['nll_stderr']:.4f}"
            accuracy = f"{100 * row['accuracy']:.2f} ± {100 * row['accuracy_stderr']:.2f}"
            lines.append(f"{name:{width}}  {passes:9}  {nll}  {accuracy}  {100 * row['ece']:5.2f}")
    return "\n".join(lines)


def main() -> None:
    """Parse the command line, evaluate, print."""
    config = tyro.cli(Config, prog="python -m models.evaluate")
    with exit_on_input_error():
        notes: set[str] = set()
        rows = {name: evaluate_checkpoint(name, config, notes) for name in config.ckpt}
        for note in notes:
            print(note, file=sys.stderr if config.json else sys.stdout)
        print(json.dumps(rows, indent=2) if config.json else table(rows))


if __name__ == "__main__":
    main()
