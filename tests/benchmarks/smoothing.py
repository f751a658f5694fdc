"""The smoothing operator, measured: eager, torch.compile and fused take turns. Writes results/smoothing.json."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from machine import describe, side_by_side
from table import RESULTS, markdown, titled
from torch import Tensor
from torch.func import functional_call, grad, jvp

import ext
import models
from ext import smoothing

SHAPES = ((128, 64, 32, 32), (128, 128, 16, 16), (128, 256, 8, 8), (128, 512, 4, 4), (256, 64, 56, 56))
WIDTHS = (64, 16)
"""Of the whole network: the paper's, and that of the shipped checkpoints."""
Smoothing = Callable[[Tensor], Tensor]
Task = Callable[[], object]


@dataclass(frozen=True)
class Config:
    """Measure the smoothing operator on one device."""

    device: str = "cpu"
    """Device."""
    rounds: int = 15
    """Turns of each contestant; medians are reported."""
    quick: bool = False
    """A sixteenth of the batch and three rounds, to see that all parts work."""
    out: Path = RESULTS
    """Folder for the JSON file, which is named by the device."""


def forward(f: Smoothing, x: Tensor, g: Tensor) -> Task:
    def run() -> Tensor:
        with torch.no_grad():
            return f(x)

    return run


def gradient(f: Smoothing, x: Tensor, g: Tensor) -> Task:
    leaf = x.clone().requires_grad_()
    return lambda: torch.autograd.grad(f(leaf), leaf, g)


def double_backward(f: Smoothing, x: Tensor, g: Tensor) -> Task:
    leaf, cotangent = x.clone().requires_grad_(), g.clone().requires_grad_()

    def run() -> tuple[Tensor, ...]:
        (first,) = torch.autograd.grad(f(leaf), leaf, cotangent, create_graph=True)
        return torch.autograd.grad(first, (leaf, cotangent), x)

    return run


def hessian_product(f: Smoothing, x: Tensor, g: Tensor) -> Task:
    return lambda: product(f, x, g)


def product(f: Smoothing, x: Tensor, g: Tensor) -> Tensor:
    """Forward over reverse, of a function that needs value, gradient and both tangents of f."""
    return jvp(grad(lambda x: (f(x) - g).square().sum()), (x,), (x,))[1]


PASSES = {
    "forward": forward,
    "forward and backward": gradient,
    "double backward": double_backward,
    "forward over reverse": hessian_product,
}


def contestants(name: str, x: Tensor, g: Tensor) -> dict[str, Task]:
    """Eager, compiled where torch.compile can (not twice backward), fused, and a plain copy of the input."""
    make = PASSES[name]
    tasks = {"eager": make(smoothing.eager, x, g), "fused": make(ext.smooth, x, g), "copy": x.clone}
    if make is hessian_product:
        compiled = torch.compile(functools.partial(product, smoothing.eager))
        tasks["compiled"] = lambda: compiled(x, g)
    elif make is not double_backward:
        tasks["compiled"] = make(torch.compile(smoothing.eager), x, g)
    return tasks


def operator(config: Config) -> list[dict]:
    rows = []
    for n, *shape in SHAPES:
        torch.compiler.reset()
        x = 4 * torch.randn(max(1, n // 16) if config.quick else n, *shape, device=config.device)
        g = torch.randn_like(smoothing.eager(x))
        for name in PASSES:
            seconds = side_by_side(contestants(name, x, g), 3 if config.quick else config.rounds)
            moved = {"forward": [x, g], "forward and backward": [x, g, x, g, x]}.get(name)
            rows.append({"shape": list(x.shape), "pass": name, "seconds": seconds})
            if moved:
                rows[-1]["fused bytes per second"] = sum(part.nbytes for part in moved) / seconds["fused"]
            rows[-1]["copy bytes per second"] = 2 * x.nbytes / seconds["copy"]
            print(row_of(rows[-1]), flush=True)
    return rows


def network(config: Config, width: int) -> dict:
    """A whole network of the zoo, on both paths."""
    torch.manual_seed(0)
    model = models.get_model("resnet_mcdo_smoothing_18", width=width).to(config.device).eval()
    images = 4 if config.quick else 128
    x, y = torch.randn(images, 3, 32, 32, device=config.device), torch.arange(images, device=config.device) % 10
    weights = {name: weight.detach() for name, weight in model.named_parameters()}

    def loss(weights: dict[str, Tensor]) -> Tensor:
        return torch.nn.functional.cross_entropy(functional_call(model, weights, (x,)), y)

    def predict() -> Tensor:
        with torch.no_grad():
            return model(x)

    passes: dict[str, Task] = {
        "forward": predict,
        "gradient": lambda: torch.autograd.grad(loss(dict(model.named_parameters())), list(model.parameters())),
        "Hessian product": lambda: jvp(grad(loss), (weights,), (weights,))[1],
    }
    served = smoothing.DEVICES

    def on(devices: frozenset[str], task: Task) -> Task:
        def run() -> object:
            smoothing.DEVICES = devices
            try:
                return task()
            finally:
                smoothing.DEVICES = served

        return run

    seconds = {
        name: side_by_side({"eager": on(frozenset(), task), "fused": on(served, task)}, 3 if config.quick else 7)
        for name, task in passes.items()
    }
    return {"model": "resnet_mcdo_smoothing_18", "width": width, "images": images, "seconds": seconds}


def row_of(row: dict) -> list[str]:
    seconds = row["seconds"]
    fused = seconds["fused"]
    cells = [f"{1e3 * seconds[name]:.2f}" if name in seconds else "" for name in ("eager", "compiled", "fused", "copy")]
    ratios = [f"{seconds[name] / fused:.2f}" if name in seconds else "" for name in ("eager", "compiled")]
    return ["x".join(map(str, row["shape"])), row["pass"], *cells, *ratios]


def table(content: dict) -> str:
    """The results in Markdown."""
    header = ["shape", "pass", "eager (ms)", "compiled (ms)", "fused (ms)", "copy of x (ms)"]
    header += ["eager / fused", "compiled / fused"]
    whole = [
        [
            str(network["width"]),
            name,
            *(f"{1e3 * seconds[path]:.0f}" for path in ("eager", "fused")),
            f"{seconds['eager'] / seconds['fused']:.2f}",
        ]
        for network in content["networks"]
        for name, seconds in network["seconds"].items()
    ]
    title = f"Smoothing operator, {content['dtype']}, {content['status']}"
    images = f"{content['networks'][0]['model']}, {content['networks'][0]['images']} images"
    columns = ["width", "pass", "eager (ms)", "fused (ms)", "eager / fused"]
    return "\n\n".join(
        [
            titled(title, content, markdown(header, [row_of(row) for row in content["operator"]])),
            titled(images, content, markdown(columns, whole)),
        ]
    )


def main(config: Config) -> None:
    """Measure, write, print."""
    if config.device.split(":")[0] not in smoothing.DEVICES:
        raise SystemExit(f"{ext.status()}: build it first, with python -m ext")
    content = {"machine": describe(), "status": ext.status(), "dtype": "float32"}
    content |= {"operator": operator(config), "networks": [network(config, width) for width in WIDTHS]}
    if not config.quick:
        config.out.mkdir(parents=True, exist_ok=True)
        (config.out / f"smoothing_{config.device.split(':')[0]}.json").write_text(json.dumps(content, indent=2) + "\n")
    print(table(content))


if __name__ == "__main__":
    main(tyro.cli(Config))
