"""What a Hessian-vector product costs in gradients, by each engine."""

from __future__ import annotations

from collections.abc import Callable

import torch
from hessian_problem import Problem, normal
from machine import side_by_side

from analyze.hessian import HessianOperator
from data_cache import InputError

ENGINES = ("auto", "recomputed", "forward-over-reverse", "finite-differences", "pyhessian", "measured")


def measure(ckpt: str, quick: bool, log: Callable[[str], None]) -> dict:
    """Each engine at a small and at a large batch."""
    sizes, rounds = ((4,), 1) if quick else ((16, 128), 7)
    return {"checkpoint": ckpt, "rounds": rounds, "batches": [at(ckpt, images, rounds, log) for images in sizes]}


def at(ckpt: str, images: int, rounds: int, log: Callable[[str], None]) -> dict:
    """Seconds of a gradient, and gradients of a product for each engine that can multiply here."""
    problem = Problem.load(ckpt, images)
    tasks: dict[str, Callable[[], object]] = {"gradient": problem.gradient()}
    operators, failures = {}, {}
    for engine in ENGINES:
        operator = HessianOperator(problem.subject, engine=engine)
        vectors = torch.stack([normal(problem.size, seed) for seed in range(operator.group)])
        try:
            operator.matmat(vectors)
        except InputError as error:
            failures[engine] = str(error)
            continue
        operators[engine] = operator
        tasks[engine] = lambda operator=operator, vectors=vectors: operator.matmat(vectors)
    seconds = side_by_side(tasks, rounds)
    rows = []
    for engine, operator in operators.items():
        cost = seconds[engine] / operator.group / seconds["gradient"]
        rows.append(
            {
                "engine": engine,
                "choice": operator.choice,
                "group": operator.group,
                "gradients per product": cost,
                "description": operator.engine,
            }
        )
        log(f"{images} images, {engine} ({operator.choice}): {cost:.2f} gradients a product")
    return {
        "images": images,
        "parameters": problem.size,
        "seconds of a gradient": seconds["gradient"],
        "engines": rows,
        "failures": failures,
    }
