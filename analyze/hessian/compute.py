"""The Hessian analysis: subject in, result out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from analyze.distributed import ALONE, World
from analyze.hessian import blocks, density, quantization, spectrum, trace
from analyze.hessian.krylov import NoMemoryError, dot
from analyze.hessian.lanczos import Eigenpairs, extreme_eigenpairs
from analyze.hessian.operator import HessianOperator, is_exhausted
from analyze.hessian.spec import Config, Extremes, Result
from analyze.results import Progress, silent
from analyze.scratch import Scratch
from analyze.subject import Subject
from data_cache import InputError

PARTS = ("extremes", "trace", "density", "max_spectrum", "blocks", "quantization")


def compute(
    subject: Subject,
    config: Config | None = None,
    *,
    previous: Result | None = None,
    save: Callable[[Result], None] = lambda result: None,
    progress: Progress = silent,
    world: World = ALONE,
    scratch: Scratch | None = None,
) -> Result:
    """Eigenvalues, trace, density, max-eigenvalue spectrum and blocks of the Hessian of the subject's loss.

    Args:
        subject: Model, data and loss, weight decay included.
        config: What to compute; the defaults of `Config` if None.
        previous: A result of the same subject and config, perhaps incomplete, to go on from.
        save: Called with the result so far after each part, random vector, mini-batch and block.
        progress: Called after each product.
        world: The ranks that share the work; each calls `compute` with the same arguments. Rank 0's result counts.
        scratch: Where the search for extremes leaves its state at restarts.

    Returns:
        The result; whatever did not converge says so.

    Raises:
        InputError: The tolerance lies below the noise floor, more eigenvalues are wanted than there are
            parameters, memory is exhausted, or a product is not finite.
    """
    config = config or Config()
    try:
        return _Analysis(subject, config, previous, save, progress, world, scratch or Scratch()).run()
    except (FloatingPointError, NoMemoryError) as error:
        raise InputError(str(error)) from error
    except (RuntimeError, MemoryError) as error:
        if not is_exhausted(error):
            raise
        raise InputError("memory ran out; lower --basis-memory, --graph-memory or --batch-size.") from error


def is_complete(result: Result, config: Config) -> bool:
    """Whether the result holds all that the config asks for."""
    holds = {
        "extremes": result.extremes is not None,
        "trace": trace.is_complete(result.trace, config),
        "density": density.is_complete(result.density, config),
        "max-spectrum": spectrum.is_complete(result.max_spectrum, config),
        "blocks": blocks.is_complete(result.blocks, config)
        and (not config.bits or quantization.is_complete(result.quantization, config, result.blocks)),
    }
    return all(holds[part] for part in config.parts)


@dataclass
class _Analysis:
    """One call of `compute`: the parts in turn, and what they share."""

    subject: Subject
    config: Config
    previous: Result | None
    save: Callable[[Result], None]
    progress: Progress
    world: World
    scratch: Scratch

    def run(self) -> Result:
        config, subject = self.config, self.subject
        self.about = subject.describe()
        # mini-batches alone need no pass over the images of all other parts
        self.alone = config.parts == ("max-spectrum",)
        self.operator = HessianOperator(
            subject.minibatch(0, config.minibatch, augmented=config.augment) if self.alone else subject,
            engine=self.previous.choice if self.previous else config.engine,
            graph_memory=config.graph_memory,
            parameters=config.parameters,
            world=ALONE if self.alone else self.world,
        )
        if "extremes" in config.parts and max(config.largest, config.smallest) > self.operator.size:
            raise InputError(
                f"there are only {self.operator.size} parameters, so fewer eigenvalues than were asked for."
            )
        self.result = self._begin()
        self._keep()
        if "extremes" in config.parts and self.result.extremes is None:
            self._keep(extremes=_extremes_of(self._pairs))
        if "trace" in config.parts:
            for found in trace.grow(
                self.operator, subject.seed, config, self.result.trace, self.progress, sample=self._trace_sample
            ):
                self._keep(trace=found)
        if "density" in config.parts and not density.is_complete(self.result.density, config):
            self._grow_density()
        self.__dict__.pop("_pairs", None)  # its vectors are needed no more
        self.scratch.clear()
        if "blocks" in config.parts:
            self._grow_blocks()
        self.operator.release()  # mini-batches bring graphs of their own
        if "max-spectrum" in config.parts:
            for found in spectrum.grow(
                subject,
                config,
                self.result.max_spectrum,
                engine=self.world.broadcast(self.operator.choice),
                world=self.world,
                progress=self.progress,
            ):
                self._keep(max_spectrum=found)
        return self.result.of(config, self.about)

    def _keep(self, **parts: object) -> None:
        self.result = replace(self.result, **parts)  # type: ignore[arg-type]
        self.save(self.result.of(self.config, self.about))

    def _begin(self) -> Result:
        """The self-test, before long work."""
        operator, progress = self.operator, self.progress
        progress("self-test", 0, 4, "")
        loss, gradient = operator.loss_and_gradient()
        if not np.isfinite(loss):
            raise InputError(f"the loss is {loss} at these weights, so it has no Hessian there.")
        progress("self-test", 1, 4, "")
        floor = operator.noise_floor(self.subject.seed)
        progress("self-test", 4, 4, f"noise floor {floor:.1e}; {operator.engine}")
        if not np.isfinite(floor):
            raise InputError("a Hessian-vector product is not finite at these weights; use --dtype float64.")
        asked = {"extremes": "tolerance", "max-spectrum": "spectrum_tolerance", "blocks": "block_tolerance"}
        if self.config.deflate:
            asked["density"] = "tolerance"
        for part, option in asked.items():
            if part in self.config.parts and getattr(self.config, option) < floor:
                raise InputError(
                    f"{option} {getattr(self.config, option):g} is below the noise floor {floor:.1e} of the products "
                    f"in {str(self.subject.dtype).removeprefix('torch.')}; raise it, or use --dtype float64."
                )
        result = Result(
            parameters=operator.size,
            loss=np.nan if self.alone else loss,
            gradient_norm=np.nan if self.alone else torch.linalg.vector_norm(gradient, dtype=torch.float64).item(),
            noise_floor=floor,
            engine=operator.engine,
            choice=operator.choice,
        )
        if self.previous is None:
            return result
        # what mini-batches alone don't tell stays, and so does what the engine's choice was based on
        known = self.previous if self.alone and not np.isnan(self.previous.loss) else result
        return replace(known, engine=self.previous.engine, **{part: getattr(self.previous, part) for part in PARTS})

    @cached_property
    def _pairs(self) -> Eigenpairs:
        """The extremes with their vectors; found again where only their values are in the run file."""
        config = self.config

        def report(count: int, values: np.ndarray, residuals: np.ndarray) -> None:
            worst = np.max(residuals / np.maximum(np.abs(values), 1e-300), initial=0.0)
            top = f"largest {values[0]:.4g}, " if len(values) else ""
            self.progress("extremes", count, None, f"{top}their worst relative residual {worst:.1e}")

        state = self.world.broadcast(self.scratch.load())
        if state is not None and "found" in state:
            return _unpacked(state, self.operator)
        pairs = extreme_eigenpairs(
            self.operator,
            largest=config.largest,
            smallest=config.smallest,
            tolerance=config.tolerance,
            max_products=config.max_products,
            basis_bytes=int(config.basis_memory * 2**30),
            seed=self.subject.seed,
            on_product=report,
            on_restart=self.scratch.save,
            state=state,
        )
        if self._deflates:
            self.scratch.save(_packed(pairs))
        return pairs

    @property
    def _deflates(self) -> bool:
        """Whether the density is still to come and needs the extremes' vectors."""
        config = self.config
        return (
            "density" in config.parts
            and config.deflate
            and 0 < config.largest + config.smallest < self.operator.size
            and not density.is_complete(self.result.density, config)
        )

    @cached_property
    def _blocks(self) -> list[blocks.Block]:
        return blocks.partition(self.operator.names, self.operator.sizes)

    def _sampled(self, probe: int) -> tuple[float, np.ndarray | None]:
        """What trace and blocks take from the product with a random vector, computed once for both."""
        if probe not in self._samples:
            z, product = trace.probe_product(self.operator, self.subject.seed, probe)
            shared = blocks.block_samples(self._blocks, z, product) if "blocks" in self.config.parts else None
            self._samples[probe] = dot(z, product), shared
        return self._samples[probe]

    @cached_property
    def _samples(self) -> dict[int, tuple[float, np.ndarray | None]]:
        return {}

    def _trace_sample(self, probe: int) -> float:
        return self._sampled(probe)[0]

    def _block_sample(self, probe: int) -> np.ndarray:
        shared = self._sampled(probe)[1]
        assert shared is not None
        return shared

    def _grow_density(self) -> None:
        config, vectors = self.config, None
        values = residuals = np.zeros(0)
        if self._deflates:
            vectors, values, residuals = _converged(self._pairs, config.tolerance)
        for found in density.grow(
            self.operator,
            self.subject.seed,
            config,
            self.result.density,
            self.progress,
            vectors=vectors,
            values=values,
            residuals=residuals,
        ):
            self._keep(density=found)

    def _grow_blocks(self) -> None:
        config = self.config
        for found in blocks.grow(
            self.operator, self.subject.seed, config, self.result.blocks, self.progress, sample=self._block_sample
        ):
            self._keep(blocks=found)
        if config.bits and self.result.blocks is not None:
            for costs in quantization.grow(
                self.operator, config, self.result.blocks, self.result.quantization, self.progress
            ):
                self._keep(quantization=costs)


def _extremes_of(pairs: Eigenpairs) -> Extremes:
    return Extremes(
        largest=pairs.largest,
        largest_residual=pairs.largest_residual,
        smallest=pairs.smallest,
        smallest_residual=pairs.smallest_residual,
        products=pairs.products,
        converged=pairs.converged,
    )


def _converged(pairs: Eigenpairs, tolerance: float) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """Vectors, values and residuals of the pairs that met the tolerance themselves, by ascending value."""
    values = np.concatenate([pairs.largest, pairs.smallest])
    residuals = np.concatenate([pairs.largest_residual, pairs.smallest_residual])
    vectors = torch.cat([pairs.largest_vectors, pairs.smallest_vectors])
    order = np.argsort(values)
    order = order[residuals[order] <= tolerance * np.abs(values[order])]
    return vectors[torch.from_numpy(order).to(vectors.device)], values[order], residuals[order]


def _packed(pairs: Eigenpairs) -> dict[str, np.ndarray]:
    """Eigenpairs as arrays for the scratch, told from the state of a search by `found`."""
    arrays = {name: np.asarray(value) for name, value in vars(pairs).items() if not isinstance(value, Tensor)}
    vectors = {name: value.cpu().numpy() for name, value in vars(pairs).items() if isinstance(value, Tensor)}
    return {**arrays, **vectors, "found": np.array(True)}


def _unpacked(state: dict[str, np.ndarray], operator: HessianOperator) -> Eigenpairs:
    values = {
        name: torch.from_numpy(array).to(operator.device) if name.endswith("_vectors") else array
        for name, array in state.items()
        if name != "found"
    }
    return Eigenpairs(**{**values, "products": int(values["products"]), "converged": bool(values["converged"])})
