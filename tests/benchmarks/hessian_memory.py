"""Peak memory of a search for the largest eigenvalues, each in a process of its own."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from analyze import Subject
from analyze.hessian import HessianOperator, extreme_eigenpairs
from models import get_model, save_checkpoint


def peak_bytes() -> int:
    """Highest resident memory of this process so far; getrusage would count its parent's from before the exec."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def graph_bytes(subject: Subject) -> list[int]:
    """What autograd keeps for one product with each batch: the distinct tensors that it saves."""
    sizes = []
    for index, _, batch in subject.weighted_batches():
        weights = {name: weight.detach().requires_grad_() for name, weight in subject.parameters.items()}
        saved: dict[int, int] = {}

        def note(tensor: Tensor, saved: dict[int, int] = saved) -> Tensor:
            storage = tensor.untyped_storage()
            saved[storage.data_ptr()] = storage.nbytes()
            return tensor

        with saved_tensors_hooks(note, lambda tensor: tensor), subject.frozen():
            value = subject.batch_loss(weights, batch, index)
            gradients = torch.autograd.grad(value, list(weights.values()), create_graph=True)
        sizes.append(sum(saved.values()))
        del value, gradients
    return sizes


def subject_and_baseline(ckpt: str, images: int, threads: int) -> tuple[Subject, int]:
    """The subject, and the memory of this process with torch's own code loaded, which is not ours to count."""
    torch.set_num_threads(threads)
    subject, one = (
        Subject.load(ckpt, data="fashion_mnist:train", limit=limit, weight_decay=0.0, device="cpu")
        for limit in (images, 1)
    )
    warm_up = HessianOperator(one, graph_memory=0)
    warm_up.matvec(torch.ones(warm_up.size))
    del warm_up, one
    return subject, resident_bytes()


def gradient(ckpt: str, images: int, threads: int) -> dict:
    """How much one gradient of the first batch takes while it is computed."""
    subject, before = subject_and_baseline(ckpt, images, threads)
    index, _, batch = next(subject.weighted_batches())
    weights = {name: weight.detach().requires_grad_() for name, weight in subject.parameters.items()}
    torch.autograd.grad(subject.batch_loss(weights, batch, index), list(weights.values()))
    return {"growth bytes": peak_bytes() - before}


def search(ckpt: str, images: int, threads: int, k: int) -> dict:
    """Top-k to 1e-3 and what it took; the peak means something only in a fresh process."""
    subject, before = subject_and_baseline(ckpt, images, threads)
    begin = time.perf_counter()
    operator = HessianOperator(subject)
    pairs = extreme_eigenpairs(operator, largest=k, smallest=0, tolerance=1e-3)
    seconds = time.perf_counter() - begin
    peak = peak_bytes()
    row = operator.size * torch.finfo(operator.dtype).bits // 8
    content = {
        "images": images,
        "parameters": operator.size,
        "k": k,
        "engine": operator.engine,
        "products": pairs.products,
        "converged": pairs.converged,
        "largest": pairs.largest.tolist(),
        "residual": pairs.largest_residual.tolist(),
        "seconds": seconds,
        "peak bytes": peak,
        "growth bytes": peak - before,
        "basis bytes": (pairs.products + 1 + k) * row,  # the rows that were written, and the result
    }
    del operator
    return content | {"graph bytes": graph_bytes(subject)}


def in_child(function: str, *, tight: bool = False, **arguments: object) -> dict:
    """`search` or `gradient` in a fresh process; `tight` makes the C library return what is freed at once."""
    command = [sys.executable, __file__, function, json.dumps(arguments | {"threads": torch.get_num_threads()})]
    environment = os.environ | ({"MALLOC_MMAP_THRESHOLD_": "65536"} if tight else {})
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def measure(ckpt: str, quick: bool, log: Callable[[str], None]) -> dict:
    """Top-5 with the graph kept: its growth against the bytes of graph and basis, and what the rest is.

    What is freed between the operations of a product stays with the C library's allocator, in pieces: `tight` is
    the growth without that. Of what then remains above graph and basis, a plain gradient takes as much.
    """
    arguments = {"ckpt": ckpt, "images": 8 if quick else 128}
    content = in_child("search", k=5, **arguments)
    content["growth bytes, tight"] = in_child("search", k=5, tight=True, **arguments)["growth bytes"]
    content["growth bytes of a gradient, tight"] = in_child("gradient", tight=True, **arguments)["growth bytes"]
    sizes = {name: content[name] for name in content if name.startswith(("growth", "basis"))}
    sizes["graph bytes"] = sum(content["graph bytes"])
    log("MiB: " + ", ".join(f"{name} {size / 2**20:.0f}" for name, size in sizes.items()))
    return {"checkpoint": ckpt} | content


def measure_large(ckpt: str, quick: bool, log: Callable[[str], None]) -> dict:
    """Top-3 of the 11-million-parameter ResNet-18 with random weights; `ckpt` is not used."""
    model, kwargs = "resnet_dnn_18", {"num_classes": 10, "width": 8 if quick else 64}
    with TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        path = Path(folder) / "large.safetensors"
        metadata = {"classes": list(map(str, range(10))), "dataset": "fashion_mnist", "weight_decay": 0.0}
        metadata |= {"mean": [0.286] * 3, "std": [0.353] * 3}
        save_checkpoint(path, get_model(model, **kwargs), {"model": model, "kwargs": kwargs, **metadata})
        log(f"{model} of width {kwargs['width']}, {8 if quick else 256} images ...")
        content = in_child("search", ckpt=str(path), images=8 if quick else 256, k=3)
    log(f"{content['products']} products, {content['seconds']:.0f} s, peak {content['peak bytes'] / 2**30:.2f} GiB")
    return {"model": model, "model_args": kwargs} | content


if __name__ == "__main__":
    print(json.dumps({"search": search, "gradient": gradient}[sys.argv[1]](**json.loads(sys.argv[2]))))
