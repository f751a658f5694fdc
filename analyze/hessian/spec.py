"""What the Hessian analysis is asked, and what it answers. NumPy only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from analyze.arrays import array
from analyze.results import AnalysisResult, Quantity, Row

TITLE = "Curvature of the loss: extreme eigenvalues, trace, spectral density, max-eigenvalue spectrum, layers"
SUBJECT_DEFAULTS = {"limit": 128}
"""Images unless told otherwise: what the default run does in a minute or two on two cores."""

Part = Literal["extremes", "trace", "density", "max-spectrum", "blocks"]
Engine = Literal["auto", "measured", "recomputed", "forward-over-reverse", "finite-differences", "pyhessian"]


def _of(part: str, default: Any, *further: str) -> Any:
    return field(default=default, metadata={"parts": (part, *further)})


def _free(default: Any) -> Any:
    return field(default=default, metadata={"free": True})


@dataclass(frozen=True)
class Config:
    """Options of the Hessian analysis."""

    parts: tuple[Part, ...] = _free(("extremes", "trace", "density"))
    """What to compute; parts already in the run file stay, unless --restart."""
    parameters: tuple[str, ...] = ()
    """Globs of parameter names, such as 'layer1.*': the loss as a function of these alone; default: of all."""
    engine: Engine = "auto"
    """How products are computed. auto: double backward on kept graphs, recomputed beyond --graph-memory.
    measured: what a short measurement finds fastest, for groups of vectors too; such runs may differ in rounding."""
    graph_memory: float = _free(3.0)
    """GiB for keeping autograd graphs between products, a third faster; beyond it they are recomputed."""
    basis_memory: float = 4.0
    """GiB for a Krylov basis; a smaller one restarts earlier and takes more products, never less exact ones."""

    largest: int = _of("extremes", 5, "density")
    """How many eigenvalues from the top."""
    smallest: int = _of("extremes", 1, "density")
    """How many from the bottom (the most negative)."""
    tolerance: float = _of("extremes", 1e-3, "density")
    """An eigenvalue has converged when its residual ||Hv - lambda v|| is at most tolerance * |lambda|.
    Near zero: at most tolerance / 100 of the largest |lambda|, or 1.2e-5 of it in float32 if that is more."""
    max_products: int = _of("extremes", 400, "density", "max_spectrum", "blocks")
    """Stop a search for eigenvalues after this many Hessian-vector products, converged or not."""

    trace_samples: int = _free(20)
    """Random vectors for the trace; its standard error falls as 1/sqrt of this. More can be added later."""
    sketch: int = _of("trace", 0)
    """Hutch++: take the trace over this many dominant directions exactly (2 products each) and sample the rest."""

    probes: int = _free(2)
    """Random vectors for the density. More can be added later."""
    steps: int = _of("density", 30)
    """Lanczos steps, each one product, for each of them; more resolve finer detail."""
    deflate: bool = _of("density", True)
    """Take the converged extremes out of the density's probes, so that their steps go to the bulk."""

    batches: int = _free(16)
    """Mini-batches of the max-eigenvalue spectrum. More can be added later."""
    minibatch: int = _of("max_spectrum", 128)
    """Images in each of them, drawn in random order from the whole split, whatever --limit says."""
    augment: bool = _of("max_spectrum", True)
    """Crop and flip them as in training."""
    top: int = _of("max_spectrum", 5)
    """Largest eigenvalues of each mini-batch."""
    which: Literal["largest", "magnitude"] = _of("max_spectrum", "largest")
    """Largest (and the smallest one) by value, or by magnitude as in published figures made with PyHessian."""
    spectrum_tolerance: float = _of("max_spectrum", 1e-2)
    """As --tolerance, for each mini-batch."""
    warm_start: bool = _of("max_spectrum", False)
    """Start each mini-batch from the eigenvectors of the first, mixed with noise.
    To show that nothing was missed then takes about as many products as a random start."""
    log_x: bool = _free(False)
    """Draw the max-eigenvalue spectrum over a logarithmic axis; negative values are then left out, and counted."""

    block_samples: int = _free(10)
    """Random vectors that all layers' traces share, and share with the trace. More can be added later."""
    block_error: float = _of("blocks", 0.3)
    """A layer whose trace has a larger standard error than this share of it gets as many vectors of its own."""
    block_tolerance: float = _of("blocks", 1e-2)
    """As --tolerance, for each layer's largest eigenvalue."""
    bits: tuple[int, ...] = _of("quantization", (2, 4, 8))
    """Bit widths to which weights could be rounded: what that costs each layer; give none to skip it."""
    mean_bits: float = _free(4.0)
    """Size limit of the bit allocation: bits per weight, on average."""

    def __post_init__(self) -> None:
        from data_cache import InputError

        least = {
            "largest": 0, "smallest": 0, "trace_samples": 1, "sketch": 0, "probes": 1, "steps": 1, "batches": 1,
            "minibatch": 1, "top": 1, "block_samples": 2,
        }  # fmt: skip
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise InputError(f"{name} must be at least {bound}, not {getattr(self, name)}.")
        if not self.parts:
            raise InputError("parts is empty: name at least one of extremes, trace, density, max-spectrum, blocks.")
        if self.largest + self.smallest == 0 and "extremes" in self.parts:
            raise InputError("largest and smallest are both 0, so there are no extremes to look for.")
        if self.max_products < max(self.largest + self.smallest, self.top + 1):
            raise InputError(f"max_products={self.max_products} is fewer than the eigenvalues asked for.")
        for name in ("tolerance", "spectrum_tolerance", "block_tolerance"):
            if not 0 < getattr(self, name) < 1:
                raise InputError(f"{name} must lie between 0 and 1, not {getattr(self, name)}.")
        for name in ("block_error", "basis_memory", "mean_bits"):
            if not 0 < getattr(self, name) < np.inf:
                raise InputError(f"{name} must be a number above 0, not {getattr(self, name)}.")
        if not 0 <= self.graph_memory < np.inf:
            raise InputError(f"graph_memory must be 0 or more GiB, not {self.graph_memory}.")
        if any(not 2 <= bits <= 16 for bits in self.bits) or len(set(self.bits)) < len(self.bits):
            raise InputError(f"bits must be different whole numbers from 2 to 16, not {self.bits}.")
        if self.bits and self.mean_bits < min(self.bits):
            raise InputError(f"mean_bits={self.mean_bits} is below the smallest of bits={self.bits}.")


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
    """The trace, by Hutchinson's estimate, or Hutch++ where directions were sketched."""

    estimate: float = array(unit="nat", doc="mean of the samples")
    stderr: float = array(unit="nat", doc="standard error of the estimate over probes; NaN for a single one")
    sketched: float = array(unit="nat", doc="exact trace over the sketched directions, part of each sample; 0 if none")
    samples: np.ndarray = array("sample", unit="nat", doc="one unbiased sample of the trace for each random vector")


@dataclass(frozen=True)
class Density:
    """Spectral density by stochastic Lanczos quadrature, and the outliers that were taken out of it."""

    node: np.ndarray = array("probe", "step", unit="nat", doc="quadrature nodes, ascending for each probe")
    weight: np.ndarray = array("probe", "step", doc="their weights; with the outliers' they sum to 1 for each probe")
    outlier: np.ndarray = array(
        "outlier", unit="nat", doc="deflated eigenvalues, ascending; each weighs 1 / parameters"
    )
    outlier_residual: np.ndarray = array("outlier", unit="nat", doc="||Hv - lambda v|| of each")
    width: float = array(unit="nat", doc="standard deviation of the curve's Gaussian kernel: deflated range / steps")
    x: np.ndarray = array("grid", unit="nat", doc="where the curve is evaluated")
    density: np.ndarray = array("grid", unit="1/nat", doc="mean over probes of the blurred quadrature, with outliers")


@dataclass(frozen=True)
class MaxSpectrum:
    """Extreme eigenvalues of the Hessians of mini-batches, weight decay included."""

    batch: np.ndarray = array("batch", doc="number of the mini-batch")
    images: np.ndarray = array("batch", doc="images in it")
    loss: np.ndarray = array("batch", unit="nat", doc="its data loss")
    largest: np.ndarray = array("batch", "rank", unit="nat", doc="largest eigenvalues, descending (or by magnitude)")
    largest_residual: np.ndarray = array("batch", "rank", unit="nat", doc="||Hv - lambda v|| of each")
    smallest: np.ndarray = array("batch", unit="nat", doc="smallest eigenvalue; NaN where ordered by magnitude")
    smallest_residual: np.ndarray = array("batch", unit="nat", doc="||Hv - lambda v|| of it")
    hvps: np.ndarray = array("batch", doc="Hessian-vector products spent")
    converged: np.ndarray = array("batch", doc="whether every residual met the tolerance")
    data: str = array(doc="which images, and how they were augmented")
    share_below_zero: float = array(doc="share of `largest` below zero")
    mean_positive: float = array(unit="nat", doc="mean of those of `largest` above zero; NaN if none is")


@dataclass(frozen=True)
class Blocks:
    """Each layer's own block of the Hessian: the rows and columns of its parameters."""

    block: np.ndarray = array("block", doc="module that owns the parameters, in the network's order")
    size: np.ndarray = array("block", doc="number of parameters")
    trace: np.ndarray = array("block", unit="nat", doc="trace of the block")
    trace_stderr: np.ndarray = array("block", unit="nat", doc="its standard error")
    largest: np.ndarray = array("block", unit="nat", doc="largest eigenvalue of the block; NaN: not computed yet")
    largest_residual: np.ndarray = array("block", unit="nat", doc="||Hv - lambda v|| of it")
    products: np.ndarray = array("block", doc="products with the block spent on its largest eigenvalue")
    converged: np.ndarray = array("block", doc="whether the residual met the tolerance")
    samples: np.ndarray = array("sample", "block", unit="nat", doc="z_b'(Hz)_b for vectors z over all parameters")
    own_samples: np.ndarray = array(
        "own_sample", "block", unit="nat", doc="z_b'H z_b for vectors in the block alone; NaN where not needed"
    )


@dataclass(frozen=True)
class Quantization:
    """What rounding each layer's weights costs, and which bit widths fit a size limit best."""

    layer: np.ndarray = array("layer", doc="module whose weight is rounded")
    bits: np.ndarray = array("bits", doc="bit widths")
    size: np.ndarray = array("layer", doc="number of weights")
    error: np.ndarray = array("layer", "bits", doc="||Q_b(W) - W||^2")
    omega: np.ndarray = array("layer", "bits", unit="nat", doc="HAWQ-V2: trace / size of the block * error")
    first_order: np.ndarray = array("layer", "bits", unit="nat", doc="g'd with d = Q_b(W) - W, g the gradient")
    direct: np.ndarray = array("layer", "bits", unit="nat", doc="d'Hd / 2")
    coupling: np.ndarray = array(
        "setting", "other_setting", unit="nat", doc="d_i'H d_j for all pairs of (layer, bits), layer by layer"
    )
    mean_bits: float = array(doc="the size limit: bits per weight, on average")
    allocation: np.ndarray = array("criterion", "layer", doc="bits chosen for each layer")
    criterion: np.ndarray = array(
        "criterion", doc="the cost whose sum over layers was minimised, without couplings: omega or direct"
    )
    chosen_bits: np.ndarray = array("criterion", doc="average bits per weight of the choice")
    predicted: np.ndarray = array(
        "criterion",
        unit="nat",
        doc="change of the loss, weight decay included, by g'd + d'Hd / 2 of all layers at once",
    )
    measured: np.ndarray = array("criterion", unit="nat", doc="the same with the weights rounded so")


@dataclass(frozen=True)
class Result(AnalysisResult):
    """The Hessian of the loss at the checkpoint's weights; absent parts were not asked for, or not begun."""

    analysis = "hessian"

    parameters: int = array(doc="number of weights the Hessian is over")
    loss: float = array(unit="nat", doc="data loss, mean over images; NaN where only mini-batches were studied")
    gradient_norm: float = array(unit="nat", doc="norm of the gradient of the loss, weight decay included; NaN as loss")
    noise_floor: float = array(doc="relative error of a product: repetition and symmetry, whichever is worse")
    engine: str = array(doc="how products were computed")
    choice: str = array(doc="the same as a value of --engine; what `measured` picked")
    extremes: Extremes | None = None
    trace: Trace | None = None
    density: Density | None = None
    max_spectrum: MaxSpectrum | None = None
    blocks: Blocks | None = None
    quantization: Quantization | None = None

    def rows(self) -> list[Row]:
        """The table of the command."""
        rows = []
        if globs := (self.config or {}).get("parameters"):
            rows.append(Row("parameters", self.parameters, None, f"of the model's: {' '.join(globs)}"))
        if not np.isnan(self.loss):
            rows.append(Row("loss", self.loss, None, "data loss, mean over images"))
            rows.append(Row("gradient norm", self.gradient_norm, None, "0 at a minimum"))
        if self.extremes is not None:
            rows += _extremes_rows(self.extremes)
        if (trace := self.trace) is not None:
            method = "Hutch++" if trace.sketched else "Hutchinson"
            rows.append(Row("trace", trace.estimate, trace.stderr, _error_of(len(trace.samples), method)))
            mean, error = trace.estimate / self.parameters, trace.stderr / self.parameters
            rows.append(Row("mean eigenvalue", mean, error, f"trace / {self.parameters:,} parameters"))
        if self.density is not None:
            rows.append(_second_moment(self.density, self.parameters, self.config or {}))
        if self.max_spectrum is not None:
            rows += _spectrum_rows(self.max_spectrum)
        rows.append(Row("noise floor", self.noise_floor, None, f"relative error of a product; {self.engine}"))
        return rows

    def quantities(self) -> list[Quantity]:
        """Eigenvalues with their residuals as bounds; estimates with a sample for each probe or mini-batch."""
        found = [] if np.isnan(self.loss) else [Quantity("loss", self.loss, None)]
        found += [] if np.isnan(self.loss) else [Quantity("gradient norm", self.gradient_norm, None)]
        if (extremes := self.extremes) is not None:
            found += _ranked("largest eigenvalues", extremes.largest, extremes.largest_residual)
            found += _ranked("smallest eigenvalues", extremes.smallest, extremes.smallest_residual)
        if (trace := self.trace) is not None:
            found.append(Quantity("trace", trace.estimate, trace.stderr, trace.samples))
        if self.density is not None:
            found.append(_mean_of("mean squared eigenvalue", _second_moments(self.density, self.parameters)))
        if (spectrum := self.max_spectrum) is not None:
            found.append(_mean_of("max eigenvalue of a batch", spectrum.largest[:, 0]))
            found.append(_mean_of("min eigenvalue of a batch", spectrum.smallest))
            found.append(_mean_of("share below zero", (spectrum.largest < 0).mean(axis=1)))
        if (blocks := self.blocks) is not None:
            own = blocks.own_samples
            for place, name in enumerate(blocks.block):
                used = own if len(own) == len(blocks.samples) and not np.isnan(own[:, place]).any() else blocks.samples
                value, error = float(blocks.trace[place]), float(blocks.trace_stderr[place])
                found.append(Quantity(f"trace of a layer: {name}", value, error, used[:, place]))
            for name, value, residual in zip(blocks.block, blocks.largest, blocks.largest_residual, strict=True):
                name = f"largest eigenvalue of a layer: {name}"
                found.append(Quantity(name, float(value), None, bound=float(residual)))
        return [quantity for quantity in found if not np.isnan(quantity.value)]

    def incomparable(self, config: Config) -> str:
        """Why it can't be drawn beside a result of this config; empty if it can."""
        drawn = [part for part in config.parts if part != "trace"]
        if not drawn:
            return "a trace has no figure to compare in; add density, max-spectrum or blocks to --parts"
        held = any(getattr(self, part.replace("-", "_")) is not None for part in drawn)
        return "" if held else f"it holds none of {', '.join(drawn)}"

    def tables(self) -> list[str]:
        """Layers, and what rounding their weights costs."""
        from analyze.hessian.tables import tables

        return [] if self.blocks is None else tables(self.blocks, self.quantization)


def _error_of(count: int, what: str) -> str:
    return f"standard error, {count} probes, {what}" if count > 1 else f"1 probe, {what}: no standard error"


def _extremes_rows(found: Extremes) -> list[Row]:
    rows = []
    for kind, values, residuals in (
        ("largest", found.largest, found.largest_residual),
        ("smallest", found.smallest, found.smallest_residual),
    ):
        for rank, (value, residual) in enumerate(zip(values, residuals, strict=True), start=1):
            rows.append(Row(f"{kind} eigenvalue {rank}", value, residual, "residual"))
    remark = "converged" if found.converged else "NOT CONVERGED: raise --max-products or --tolerance"
    return [*rows, Row("products for extremes", found.products, None, remark)]


def _ranked(heading: str, values: np.ndarray, residuals: np.ndarray) -> list[Quantity]:
    return [
        Quantity(f"{heading}: {rank}", float(value), None, bound=float(residual))
        for rank, (value, residual) in enumerate(zip(values, residuals, strict=True), start=1)
    ]


def _mean_of(name: str, samples: np.ndarray) -> Quantity:
    """The mean of independent samples, with its standard error."""
    count = len(samples)
    error = float(samples.std(ddof=1) / np.sqrt(count)) if count > 1 else np.nan
    return Quantity(name, float(samples.mean()), error, samples)


def _second_moments(density: Density, parameters: int) -> np.ndarray:
    """tr(H^2) / parameters by each probe."""
    return (density.weight * density.node**2).sum(axis=1) + (density.outlier**2).sum() / parameters


def _second_moment(density: Density, parameters: int, config: Mapping[str, Any]) -> Row:
    found = _mean_of("mean squared eigenvalue", _second_moments(density, parameters))
    count = len(density.node)
    wanted = config.get("largest", 0) + config.get("smallest", 0) if config.get("deflate") else 0
    deflated = f"{len(density.outlier)} outliers deflated"
    if len(density.outlier) < wanted < parameters:
        deflated += f", {wanted - len(density.outlier)} NOT CONVERGED"
    remark = _error_of(count, f"{density.node.shape[1]} Lanczos steps, {deflated}")
    return Row(found.name, found.value, found.error, remark)


def _spectrum_rows(found: MaxSpectrum) -> list[Row]:
    count, top = found.largest.shape
    what = f"over {count} mini-batches of {found.images.max()} images"

    def over_batches(name: str, values: np.ndarray) -> Row:
        error = values.std(ddof=1) / np.sqrt(count) if count > 1 else np.nan
        return Row(name, float(values.mean()), float(error), f"mean and standard error {what}")

    source = found.data.split(", sha256")[0] + ")"
    rows = [over_batches("max eigenvalue of a batch", found.largest[:, 0])]
    rows[0] = rows[0]._replace(remark=f"{rows[0].remark} of {source}")
    if not np.isnan(found.smallest).all():
        rows.append(over_batches("min eigenvalue of a batch", found.smallest))
    rows.append(Row("share below zero", found.share_below_zero, None, f"of the top {top} {what}"))
    rows.append(Row("mean of those above zero", found.mean_positive, None, f"of the top {top} {what}"))
    remark = (
        "converged"
        if found.converged.all()
        else f"NOT CONVERGED in {np.sum(~found.converged)} batches: raise --spectrum-tolerance or --max-products"
    )
    rows.append(Row("products for each batch", float(found.hvps.mean()), None, remark))
    return rows
