"""What the Hessian analysis is asked, and what it answers. NumPy only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from analyze.arrays import array
from analyze.results import AnalysisResult, Row

TITLE = "Curvature of the loss: extreme eigenvalues, trace and spectral density of its Hessian"
SUBJECT_DEFAULTS = {"limit": 128}
"""Images unless told otherwise: what the default run does in a minute or two on two cores."""


@dataclass(frozen=True)
class Config:
    """Options of the Hessian analysis."""

    parts: tuple[Literal["extremes", "trace", "density"], ...] = field(
        default=("extremes", "trace", "density"), metadata={"free": True}
    )
    """What to compute; parts already in the run file stay, unless --restart."""
    largest: int = field(default=5, metadata={"part": "extremes"})
    """How many eigenvalues from the top."""
    smallest: int = field(default=1, metadata={"part": "extremes"})
    """How many from the bottom (the most negative)."""
    tolerance: float = field(default=1e-3, metadata={"part": "extremes"})
    """An eigenvalue has converged when its residual ||Hv - lambda v|| is at most tolerance * |lambda|; below 1 % of
    the largest |lambda|, at most tolerance / 100 of that."""
    max_products: int = field(default=400, metadata={"part": "extremes"})
    """Stop the search for extremes after this many Hessian-vector products, converged or not."""
    trace_samples: int = field(default=20, metadata={"free": True})
    """Random vectors for the trace; its standard error falls as 1/sqrt of this. More can be added later."""
    probes: int = field(default=2, metadata={"free": True})
    """Random vectors for the density. More can be added later."""
    steps: int = field(default=30, metadata={"part": "density"})
    """Lanczos steps, each one product, for each of them; more resolve finer detail."""
    graph_memory: float = field(default=3.0, metadata={"free": True})
    """GiB for keeping autograd graphs between products, a third faster; beyond it they are recomputed."""

    def __post_init__(self) -> None:
        from data_cache import InputError

        for name, least in {"largest": 0, "smallest": 0, "trace_samples": 1, "probes": 1, "steps": 1}.items():
            if getattr(self, name) < least:
                raise InputError(f"{name} must be at least {least}, not {getattr(self, name)}.")
        if self.largest + self.smallest == 0 and "extremes" in self.parts:
            raise InputError("largest and smallest are both 0, so there are no extremes to look for.")
        if self.max_products < self.largest + self.smallest:
            raise InputError(f"max_products={self.max_products} is fewer than the eigenvalues asked for.")
        if not 0 < self.tolerance < 1:
            raise InputError(f"tolerance must lie between 0 and 1, not {self.tolerance}.")
        if not self.graph_memory >= 0:
            raise InputError(f"graph_memory must be 0 or more GiB, not {self.graph_memory}.")


@dataclass(frozen=True)
class Extremes:
    """Eigenvalues at both ends; within its residual of each lies a true one."""

    largest: np.ndarray = array("rank", unit="nat", doc="largest eigenvalues, descending")
    largest_residual: np.ndarray = array("rank", unit="nat", doc="||Hv - lambda v|| of each, ||v|| = 1")
    smallest: np.ndarray = array("rank_smallest", unit="nat", doc="smallest eigenvalues, ascending")
    smallest_residual: np.ndarray = array("rank_smallest", unit="nat", doc="||Hv - lambda v|| of each")
    products: int = array(doc="Hessian-vector products spent")
    converged: bool = array(doc="whether every residual met the tolerance")


@dataclass(frozen=True)
class Trace:
    """Hutchinson's estimate of the trace."""

    estimate: float = array(unit="nat", doc="mean of the samples")
    stderr: float = array(unit="nat", doc="standard error of the estimate over probes")
    samples: np.ndarray = array("sample", unit="nat", doc="z'Hz for each Rademacher vector z")


@dataclass(frozen=True)
class Density:
    """Spectral density by stochastic Lanczos quadrature."""

    node: np.ndarray = array("probe", "step", unit="nat", doc="quadrature nodes, ascending for each probe")
    weight: np.ndarray = array("probe", "step", doc="their weights, summing to 1 for each probe")
    width: float = array(unit="nat", doc="standard deviation of the curve's Gaussian kernel: deflated range / steps")
    x: np.ndarray = array("grid", unit="nat", doc="where the curve is evaluated")
    density: np.ndarray = array("grid", unit="1/nat", doc="mean over probes of the blurred quadrature")


@dataclass(frozen=True)
class Result(AnalysisResult):
    """The Hessian of the loss at the checkpoint's weights; absent parts were not asked for, or not begun."""

    analysis = "hessian"

    parameters: int = array(doc="number of weights the Hessian is over")
    loss: float = array(unit="nat", doc="data loss, mean over images")
    gradient_norm: float = array(unit="nat", doc="norm of the gradient of the loss, weight decay included")
    noise_floor: float = array(doc="relative error of a product: repetition and symmetry, whichever is worse")
    engine: str = array(doc="how products were computed")
    extremes: Extremes | None = None
    trace: Trace | None = None
    density: Density | None = None

    def rows(self) -> list[Row]:
        """The table of the command."""
        rows = [
            Row("loss", self.loss, None, "data loss, mean over images"),
            Row("gradient norm", self.gradient_norm, None, "0 at a minimum"),
        ]
        if (found := self.extremes) is not None:
            kinds = (
                ("largest", found.largest, found.largest_residual),
                ("smallest", found.smallest, found.smallest_residual),
            )
            for kind, values, residuals in kinds:
                for rank, (value, residual) in enumerate(zip(values, residuals, strict=True), start=1):
                    rows.append(Row(f"{kind} eigenvalue {rank}", value, residual, "residual"))
            remark = "converged" if found.converged else "NOT CONVERGED: raise --max-products or --tolerance"
            rows.append(Row("products for extremes", found.products, None, remark))
        if (trace := self.trace) is not None:
            rows.append(Row("trace", trace.estimate, trace.stderr, f"standard error, {len(trace.samples)} probes"))
            mean, error = trace.estimate / self.parameters, trace.stderr / self.parameters
            rows.append(Row("mean eigenvalue", mean, error, f"trace / {self.parameters:,} parameters"))
        if (density := self.density) is not None:
            second = (density.weight * density.node**2).sum(axis=1)
            count = len(second)
            error = second.std(ddof=1) / np.sqrt(count) if count > 1 else np.nan
            remark = f"standard error, {count} probes of {density.node.shape[1]} steps"
            rows.append(Row("mean squared eigenvalue", float(second.mean()), float(error), remark))
        rows.append(Row("noise floor", self.noise_floor, None, f"relative error of a product; {self.engine}"))
        return rows
