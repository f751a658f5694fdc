"""The Hessian analysis: subject in, result out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from analyze.hessian.density import slq_probe, trace_estimate, trace_sample
from analyze.hessian.kernel import default_width, kernel_density
from analyze.hessian.lanczos import extreme_eigenpairs
from analyze.hessian.operator import HessianOperator
from analyze.hessian.spec import Config, Density, Extremes, Result, Trace
from analyze.results import Progress, silent
from analyze.subject import Subject
from data_cache import InputError


def compute(
    subject: Subject,
    config: Config | None = None,
    *,
    previous: Result | None = None,
    save: Callable[[Result], None] = lambda result: None,
    progress: Progress = silent,
) -> Result:
    """Eigenvalues, trace and density of the Hessian of the subject's loss, weight decay included.

    Args:
        subject: Model, data and loss.
        config: What to compute; the defaults of `Config` if None.
        previous: A result of the same subject and config, perhaps incomplete, to go on from.
        save: Called with the result so far after each part, trace sample and density probe.
        progress: Called after each product.

    Returns:
        The result; whatever did not converge says so.

    Raises:
        InputError: The tolerance lies below the noise floor, more eigenvalues are wanted than there are
            parameters, or a product is not finite.
    """
    config = config or Config()
    about = subject.describe()
    operator = HessianOperator(subject, graph_memory=config.graph_memory)
    if "extremes" in config.parts and max(config.largest, config.smallest) > operator.size:
        raise InputError(f"the model has only {operator.size} parameters, so fewer eigenvalues than asked for.")
    try:
        result = _begin(subject, operator, config, progress)
        if previous:
            result = replace(result, extremes=previous.extremes, trace=previous.trace, density=previous.density)

        def keep(**parts: object) -> None:
            nonlocal result
            result = _with_curve(replace(result, **parts))
            save(result.of(config, about))

        keep()
        if "extremes" in config.parts and result.extremes is None:
            keep(extremes=_extremes(operator, subject.seed, config, progress))
        if "trace" in config.parts:
            _extend_trace(operator, subject.seed, config, result.trace, keep, progress)
        if "density" in config.parts:
            _extend_density(operator, subject.seed, config, result.density, keep, progress)
    except FloatingPointError as error:
        raise InputError(str(error)) from error
    return result.of(config, about)


def is_complete(result: Result, config: Config) -> bool:
    """Whether the result holds all that the config asks for."""
    trace, density = result.trace, result.density
    return (
        ("extremes" not in config.parts or result.extremes is not None)
        and ("trace" not in config.parts or (trace is not None and len(trace.samples) >= config.trace_samples))
        and ("density" not in config.parts or (density is not None and len(density.node) >= config.probes))
    )


def _begin(subject: Subject, operator: HessianOperator, config: Config, progress: Progress) -> Result:
    progress("self-test", 0, 4, "")
    loss, gradient = operator.loss_and_gradient()
    if not np.isfinite(loss):
        raise InputError(f"the loss is {loss} at these weights, so it has no Hessian there.")
    progress("self-test", 1, 4, "")
    floor = operator.noise_floor(subject.seed)
    progress("self-test", 4, 4, f"noise floor {floor:.1e}")
    if not np.isfinite(floor):
        raise InputError("a Hessian-vector product is not finite at these weights; use --dtype float64.")
    if "extremes" in config.parts and config.tolerance < floor:
        raise InputError(
            f"tolerance {config.tolerance:g} is below the noise floor {floor:.1e} of the products in "
            f"{str(subject.dtype).removeprefix('torch.')}; raise it, or use float64."
        )
    return Result(
        parameters=operator.size,
        loss=loss,
        gradient_norm=torch.linalg.vector_norm(gradient, dtype=torch.float64).item(),
        noise_floor=floor,
        engine=operator.engine,
    )


def _extremes(operator: HessianOperator, seed: int, config: Config, progress: Progress) -> Extremes:
    def report(count: int, values: np.ndarray, residuals: np.ndarray) -> None:
        worst = np.max(residuals / np.maximum(np.abs(values), 1e-300), initial=0.0)
        top = f"largest {values[0]:.4g}, " if len(values) else ""
        progress("extremes", count, None, f"{top}worst relative residual {worst:.1e}")

    pairs = extreme_eigenpairs(
        operator,
        largest=config.largest,
        smallest=config.smallest,
        tolerance=config.tolerance,
        max_products=config.max_products,
        seed=seed,
        on_product=report,
    )
    return Extremes(
        largest=pairs.largest,
        largest_residual=pairs.largest_residual,
        smallest=pairs.smallest,
        smallest_residual=pairs.smallest_residual,
        products=pairs.products,
        converged=pairs.converged,
    )


def _extend_trace(operator, seed: int, config: Config, done: Trace | None, keep, progress: Progress) -> None:
    samples = [] if done is None else list(done.samples)
    for probe in range(len(samples), config.trace_samples):
        samples.append(trace_sample(operator, seed, probe))
        estimate, stderr = trace_estimate(samples)
        progress("trace", probe + 1, config.trace_samples, f"{estimate:.4g} ± {stderr:.2g}")
        keep(trace=Trace(estimate, stderr, np.array(samples)))


def _extend_density(operator, seed: int, config: Config, done: Density | None, keep, progress: Progress) -> None:
    nodes = [] if done is None else list(done.node)
    weights = [] if done is None else list(done.weight)
    total = config.probes * config.steps

    def report(count: int) -> None:
        progress("density", len(nodes) * config.steps + count, total, f"probe {len(nodes) + 1}")

    for probe in range(len(nodes), config.probes):
        node, weight = slq_probe(operator, seed, probe, config.steps, on_product=report)
        nodes.append(node)
        weights.append(weight)
        keep(density=density_of(np.array(nodes), np.array(weights)))


def _with_curve(result: Result) -> Result:
    """The result with its density's curve redrawn: the kernel's width depends on the extremes, where known."""
    if result.density is None:
        return result
    return replace(result, density=density_of(result.density.node, result.density.weight, result.extremes))


def density_of(node: np.ndarray, weight: np.ndarray, extremes: Extremes | None = None) -> Density:
    """The stored form of quadratures (probe, step), with their curve.

    The kernel's width is `default_width` of the deflated range: nodes at or beyond the innermost of the known
    largest and smallest eigenvalues, give or take 1 % of the range, are outliers.
    """
    low, high = -np.inf, np.inf
    if extremes is not None:
        margin = 0.01 * (node.max() - node.min())
        low = extremes.smallest[-1] + margin if len(extremes.smallest) else low
        high = extremes.largest[-1] - margin if len(extremes.largest) else high
    width = default_width(node, weight, low, high)
    x, curve = kernel_density(node, weight, width=width)
    return Density(node, weight, width, x, curve)
