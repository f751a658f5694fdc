"""Error of the spectral density against the dense spectrum of a small trained network, for ours and the peers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from importlib.metadata import version

import numpy as np
import torch
import torch.nn.functional as F
from curvlinops.papyan2020traces.spectrum import fast_lanczos
from hessian_peers import curvlinops_of, pyhessian_of
from hessian_problem import Problem
from scipy.stats import wasserstein_distance
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap

import data_cache
from analyze import Subject
from analyze.hessian import HessianOperator, extreme_eigenpairs, slq_probe

Measure = tuple[np.ndarray, np.ndarray]  # nodes, and weights that sum to 1 or nearly


def trained_network(steps: int, images: int) -> Problem:
    """A convolutional network of 2946 parameters, trained on 8x8 images of Fashion-MNIST from a fixed seed."""
    data = data_cache.load("fashion_mnist", "train").limit(images)
    x, y = next(iter(data.batches(images)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.AvgPool2d(4),
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Tanh(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 24, 3, padding=1),
            nn.Tanh(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(96, 10),
        )
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for _ in range(steps):
            rows = torch.randint(0, images, (64,))
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    return Problem(Subject(model.eval(), [(x, y)]))


def dense_spectrum(problem: Problem) -> np.ndarray:
    """All eigenvalues (n,), ascending, of the dense Hessian in float64."""
    x, y = problem.batch
    model = copy.deepcopy(problem.model).double()
    names, shapes = zip(*[(name, weight.shape) for name, weight in model.named_parameters()], strict=True)

    def loss(flat: Tensor) -> Tensor:
        parts = flat.split([shape.numel() for shape in shapes])
        weights = {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        return F.cross_entropy(functional_call(model, weights, (x.double(),)), y)

    flat = torch.cat([weight.detach().reshape(-1) for weight in model.parameters()])
    rows = vmap(lambda v: jvp(grad(loss), (flat,), (v,))[1], chunk_size=16)(torch.eye(len(flat), dtype=flat.dtype))
    return torch.linalg.eigvalsh((rows + rows.T) / 2).numpy()


def reorthogonalised(problem: Problem) -> tuple[Callable[[int, int], Measure], int]:
    operator = HessianOperator(problem.subject)
    return lambda probe, steps: slq_probe(operator, 0, probe, steps), 0


def deflated(problem: Problem) -> tuple[Callable[[int, int], Measure], int]:
    """As the analysis does by default: five largest and one smallest to 1e-3, then the probes."""
    operator = HessianOperator(problem.subject)
    pairs = extreme_eigenpairs(operator, largest=5, smallest=1, tolerance=1e-3)
    vectors = torch.cat([pairs.largest_vectors, pairs.smallest_vectors])
    outliers = np.concatenate([pairs.largest, pairs.smallest])

    def measure(probe: int, steps: int) -> Measure:
        nodes, weights = slq_probe(operator, 0, probe, steps, deflate=vectors)
        return np.concatenate([nodes, outliers]), np.concatenate([weights, np.full(len(outliers), 1 / operator.size)])

    return measure, pairs.products


def not_reorthogonalised(problem: Problem) -> tuple[Callable[[int, int], Measure], int]:
    operator = curvlinops_of(problem)

    def measure(probe: int, steps: int) -> Measure:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(probe)
            nodes, vectors = fast_lanczos(operator, steps)
        return nodes.double().numpy(), vectors[0].double().numpy() ** 2

    return measure, 0


OURS, BASELINE = "landscope", "curvlinops (not reorthogonalised)"
METHODS = {OURS: deflated, "landscope, not deflated": reorthogonalised, BASELINE: not_reorthogonalised}


def pyhessian_says(problem: Problem) -> str:
    """What PyHessian's density ends with, as released."""
    model = copy.deepcopy(problem.model)
    try:
        pyhessian_of(model, problem).density(iter=10, n_v=1)
    except Exception as error:  # whatever it raises is the finding
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    finally:
        model.zero_grad(set_to_none=True)
    return "no error"


def errors_of(measures: Sequence[Measure], probes: int, truth: np.ndarray) -> list[float]:
    """Wasserstein-1 distance, in units of the range, of each `probes` measures together."""
    errors = []
    for begin in range(0, len(measures), probes):
        nodes, weights = (np.concatenate(parts) for parts in zip(*measures[begin : begin + probes], strict=True))
        errors.append(wasserstein_distance(truth, nodes, v_weights=weights) / (truth[-1] - truth[0]))
    return errors


def advantage(rows: Sequence[dict], probes: int, steps: int) -> float:
    """The error without reorthogonalisation over ours at as many products, interpolated between its step counts."""
    ours, theirs = (
        [row for row in rows if row["method"] == name and row["probes"] == probes] for name in (OURS, BASELINE)
    )
    mine = next(row for row in ours if row["steps"] == steps)
    error = np.exp(np.interp(mine["products"], [r["products"] for r in theirs], np.log([r["error"] for r in theirs])))
    return float(error / mine["error"])


def measure(ckpt: str, quick: bool, log: Callable[[str], None]) -> dict:
    """Errors by steps and probes; `ckpt` is not used: no shipped network has a dense spectrum."""
    groups, counts = ((1, 2), (5, 10)) if quick else ((1, 4, 16), (10, 20, 30, 50, 100))
    problem = trained_network(*((20, 64) if quick else (400, 256)))
    truth = dense_spectrum(problem)
    log(f"dense spectrum of {problem.size} eigenvalues from {truth[0]:.3g} to {truth[-1]:.3g}")
    rows = []
    for name, method in METHODS.items():
        measure_probe, before = method(problem)
        for steps in counts:
            measures = [measure_probe(probe, steps) for probe in range(max(groups))]
            for probes in groups:
                error = float(np.mean(errors_of(measures, probes, truth)))
                products = before + probes * steps
                rows.append({"method": name, "steps": steps, "probes": probes, "products": products, "error": error})
            log(f"{name}, {steps} steps: " + ", ".join(f"{row['error']:.5f}" for row in rows[-len(groups) :]))
    steps = counts[len(counts) // 2]
    return {
        "parameters": problem.size,
        "spectrum": {"smallest": float(truth[0]), "largest": truth[-10:][::-1].tolist()},
        "PyHessian": {"version": version("PyHessian"), "density": pyhessian_says(problem)},
        "errors": rows,
        "advantage": {"steps": steps, "at equal products": {p: advantage(rows, p, steps) for p in groups}},
    }
