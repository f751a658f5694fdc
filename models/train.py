"""Training by the recipe of the spatial-smoothing paper: `python -m models.train --model ... --out ...`."""

from __future__ import annotations

import json
import math
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from data_cache import InputError, exit_on_input_error

if TYPE_CHECKING:
    import torch

    from data_cache import ImageData


@dataclass(frozen=True)
class Config:
    """Train a network of the zoo and write a self-describing checkpoint."""

    model: str
    """Name in the zoo (`python -m models list`), or torchvision:NAME, timm:NAME, package.module:factory."""
    out: Path
    """Checkpoint to write, ending in .safetensors. Beside it, OUT.resume holds the state after each epoch."""
    data: str = "fashion_mnist"
    """fashion_mnist, mnist, cifar10, cifar100, svhn or folder:PATH, with :SPLIT unless `train`; tests on `test`."""
    model_args: tuple[str, ...] = ()
    """Options of the network as key=value, for example width=16 cblock=MLPBlock."""
    epochs: int = 200
    """Epochs after the warm-up."""
    warmup_epochs: int = 1
    """Epochs over which the learning rate grows linearly from near zero."""
    batch_size: int = 128
    """Images a step; the last batch of an epoch may be smaller."""
    learning_rate: float = 0.1
    """Peak learning rate."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 5e-4
    """Of all parameters: the loss has (weight_decay / 2) ||w||^2 added."""
    schedule: Literal["milestones", "cosine"] = "milestones"
    """Fall of the learning rate: in steps at the milestones, or as half a cosine to zero."""
    milestones: tuple[float, ...] = (0.3, 0.65, 0.8)
    """Where the rate falls, as shares of the epochs."""
    gamma: float = 0.2
    """Factor at each milestone."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the forward pass; bfloat16 (autocast) is faster where there is hardware for it."""
    seed: int = 0
    """Decides the first weights, the order, the augmentation and the dropout masks."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    limit: int | None = None
    """Train on this many images only, evenly spaced over the data set."""
    restart: bool = False
    """Begin again even where OUT.resume could be continued."""
    quiet: bool = False
    """No progress bar."""


def learning_rate(config: Config, progress: float) -> float:
    """The rate at `progress` epochs (fractional): linear warm-up, then milestones or half a cosine."""
    if progress < config.warmup_epochs:
        return config.learning_rate * (progress + 1e-3) / config.warmup_epochs
    share = (progress - config.warmup_epochs) / config.epochs
    if config.schedule == "cosine":
        return config.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
    return config.learning_rate * config.gamma ** sum(share >= milestone for milestone in config.milestones)


def train(config: Config) -> dict[str, dict[str, float]]:
    """Train, write the checkpoint, and return its test metrics for 1 pass (and 20 of an MC dropout network).

    Every random draw is a function of (seed, epoch, step or image), and OUT.resume holds weights and momenta,
    so a run that was killed and started again ends in the same bits on the same machine and thread count.
    """
    import torch
    import torch.nn.functional as F
    from tqdm import tqdm

    import data_cache
    import ext
    from models.arguments import parse_key_values
    from models.checkpoint import build_model, save_checkpoint
    from models.devices import pick_device
    from models.evaluate import test_metrics
    from models.layers import smoothing_path
    from models.randomness import derived_seed, fixed_randomness

    _check(config)
    device = pick_device(config.device)
    named = ":" in config.data.removeprefix("folder:")
    data = data_cache.load(config.data, None if named else "train")
    if config.limit is not None:
        data = data.limit(config.limit)
    test = data_cache.load(data.name, "test").to(device)
    data = data.to(device)
    kwargs = {"num_classes": len(data.classes), **parse_key_values(config.model_args)}
    with fixed_randomness("cpu", config.seed, 0):
        model = build_model(config.model, kwargs)
    model = model.to(device, memory_format=torch.channels_last).train()
    path = smoothing_path(model, device)
    if path is not None and not config.quiet:
        print(ext.status(), file=sys.stderr)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=config.momentum, weight_decay=config.weight_decay)
    resume = config.out.with_name(config.out.name + ".resume")
    recipe = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(config).items()}
    recipe = json.loads(json.dumps(recipe)) | {"data_sha256": data.sha256()}
    first_epoch, mean = (0, math.nan) if config.restart else _restore(resume, recipe, model, optimizer)

    half = config.precision == "bfloat16"
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=half)
    total = config.warmup_epochs + config.epochs
    steps = math.ceil(len(data) / config.batch_size)
    bar = tqdm(
        total=total * steps,
        initial=first_epoch * steps,
        unit="step",
        desc=config.model,
        disable=config.quiet,
        dynamic_ncols=True,
        mininterval=1.0,
    )
    with bar:
        for epoch in range(first_epoch, total):
            generator = torch.Generator().manual_seed(derived_seed(config.seed, 1, epoch))
            order = torch.randperm(len(data), generator=generator).numpy()
            loss_sum = 0.0
            for step in range(steps):
                positions = order[step * config.batch_size : (step + 1) * config.batch_size]
                x, y = training_batch(data, positions, config.seed, epoch)
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(config, epoch + step / steps)
                x = x.contiguous(memory_format=torch.channels_last)
                with fixed_randomness(device, config.seed, 2, epoch, step), autocast:
                    loss = F.cross_entropy(model(x), y)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                loss_sum += loss.item() * len(y)
                bar.update()
            mean = loss_sum / len(data)
            if not math.isfinite(mean):
                raise InputError(f"the training loss is {mean} after epoch {epoch + 1}; lower --learning-rate.")
            bar.set_postfix(epoch=f"{epoch + 1}/{total}", loss=f"{mean:.4f}")
            _save_resume(resume, recipe, model, optimizer, epoch + 1, mean)

    metrics = test_metrics(model, test, quiet=config.quiet)
    metadata = {
        "model": config.model,
        "kwargs": kwargs,
        "classes": list(data.classes),
        "dataset": data.name,
        "split": data.split,
        "mean": list(data.mean),
        "std": list(data.std),
        "weight_decay": config.weight_decay,
        "augmentation": "crop and flip",
        "training": recipe
        | {
            "images": len(data),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "smoothing": path,
            "final_loss": mean,
        },
        "test": metrics,
    }
    save_checkpoint(config.out, model, metadata)
    resume.unlink(missing_ok=True)
    return metrics


def training_batch(data: ImageData, positions, seed: int, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Augmented, normalised images and labels: a pure function of (seed, epoch, image)."""
    from data_cache import augment, normalize

    images, labels = data.read(positions)
    images = augment(images, seed, epoch, data.indices[positions])
    return normalize(images, data.mean, data.std), labels


_LEAST = {
    "epochs": 1, "warmup_epochs": 0, "batch_size": 1, "learning_rate": 0, "momentum": 0, "weight_decay": 0,
    "seed": 0, "limit": 1,
}  # fmt: skip


def _check(config: Config) -> None:
    """Refuse what could only fail later."""
    for name, least in _LEAST.items():
        value = getattr(config, name)
        if value is not None and not value >= least:  # NaN too
            raise InputError(f"--{name.replace('_', '-')} must be at least {least}, not {value}.")
    if config.seed >= 2**63:
        raise InputError(f"--seed must be below 2^63, not {config.seed}.")
    if not all(0 < value <= 1 for value in (*config.milestones, config.gamma)):
        raise InputError("--milestones and --gamma are shares, above 0 and up to 1.")
    resume = config.out.with_name(config.out.name + ".resume")
    if config.out.is_file() and not resume.exists() and not config.restart:
        raise InputError(f"{config.out} is trained already; give --restart to train it anew, or another --out.")
    if config.out.suffix != ".safetensors":
        raise InputError(f"--out must end in .safetensors, not {config.out.name!r}.")
    if config.out.is_dir():
        raise InputError(f"cannot write {config.out}: it is a folder.")
    parent = next(parent for parent in config.out.absolute().parents if parent.exists())
    if not (parent.is_dir() and os.access(parent, os.W_OK)):
        raise InputError(f"cannot write {config.out}: {parent} is no folder that can be written to.")


# whether a difference in these matters for the weights: it does not
_FREE = ("out", "restart", "quiet", "device")


def _save_resume(path: Path, recipe: dict, model, optimizer, epoch: int, loss: float) -> None:
    from models.checkpoint import write_tensors

    tensors = {f"model/{key}": value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        if (momentum := optimizer.state[parameter].get("momentum_buffer")) is not None:
            tensors[f"momentum/{name}"] = momentum.cpu().contiguous()
    write_tensors(path, tensors, {"recipe": recipe, "epoch": epoch, "loss": loss})


def _restore(path: Path, recipe: dict, model, optimizer) -> tuple[int, float]:
    """Load the state after the last whole epoch; the number of epochs done, and the loss in the last."""
    import torch

    from models.checkpoint import read_tensors

    if not path.is_file():
        return 0, math.nan
    tensors, metadata = read_tensors(path)
    stored = metadata.get("recipe", {})
    for key, value in recipe.items():
        if key not in _FREE and stored.get(key) != value:
            raise InputError(
                f"{path} was begun with {key}={stored.get(key)!r}, not {value!r}; "
                "give --restart to begin again, or another --out."
            )
    prefix = "model/"
    model.load_state_dict({k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)})
    for name, parameter in model.named_parameters():
        momentum = tensors.get(f"momentum/{name}")
        if momentum is not None:
            buffer = torch.empty_like(parameter).copy_(momentum)
            optimizer.state[parameter]["momentum_buffer"] = buffer
    return metadata["epoch"], metadata.get("loss", math.nan)


def main() -> None:
    """Parse the command line, train, and print the test metrics."""
    import tyro

    from models.evaluate import table

    config = tyro.cli(Config, prog="python -m models.train")
    with exit_on_input_error("the same command goes on after the last whole epoch"):
        metrics = train(config)
        print(table({config.out.stem: metrics}))
        print(f"\ncheckpoint  {config.out}")


if __name__ == "__main__":
    main()
