"""Products of the Hessian of a subject's loss with vectors."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from analyze.distributed import ALONE, World
from analyze.hessian.engines import (
    ENGINES,
    BatchHessian,
    DoubleBackward,
    GraphBytes,
    Loss,
    Measured,
    format_choice,
    measure,
    parse_choice,
)
from analyze.hessian.krylov import dot
from analyze.subject import Batch, Subject
from data_cache import InputError
from data_cache.errors import first_line


class HessianOperator:
    r"""The Hessian of a subject's loss over its parameters, known by its products.

    .. math:: H v = \sum_b \frac{N_b}{N} \nabla_w (v^\top \nabla_w \ell_b) + \lambda v

    summed over batches in float64. Weights that the loss does not use contribute zeros. Dropout masks are those of
    Monte Carlo pass `number` at every product, so H is symmetric.

    Engines, all exact but finite differences:

    - `auto`: the gradient is differentiated again. A batch's graph is kept between products while all that is
      kept fits into `graph_memory`; a product then costs 2 gradients instead of 3, with the same bits.
    - `recomputed`: the same, nothing kept.
    - `forward-over-reverse`: the gradient's derivative by forward mode; less memory than recomputed.
    - `finite-differences`: a central difference of gradients, for what can be differentiated only once.
    - `pyhessian`: PyHessian's own products.
    - `measured`: the fastest of the first three, by a short measurement on the first batch.

    `ENGINE/GROUP`, such as `forward-over-reverse/4`, multiplies groups of so many vectors at once in `matmat`, one
    by one where an operation of the model can't be batched.

    Under several processes, each takes its share of the batches, and one sum over processes follows each
    product: all get the same bits.

    Args:
        subject: Model, data and loss.
        engine: As above.
        graph_memory: GiB for the graphs that are kept; 0 keeps none.
        number: The Monte Carlo pass.
        parameters: Globs of parameter names: the loss as a function of these alone; all if empty. The weight decay is
            of these alone, too.
        world: The processes that share the batches.

    Raises:
        InputError: An engine that does not exist, or a glob that matches nothing. In products: memory ran out,
            or the model can't be differentiated so.
    """

    def __init__(
        self,
        subject: Subject,
        *,
        engine: str = "auto",
        graph_memory: float = 3.0,
        number: int = 0,
        parameters: Sequence[str] = (),
        world: World = ALONE,
    ):
        self.subject, self.number, self.world = subject, number, world
        # of our own, on the model's storage: neither its .grad nor its requires_grad is touched
        self._weights = {name: p.detach() for name, p in subject.parameters.items()}
        self.names = _matching(list(self._weights), parameters)
        """Of the parameters, in the order of the flat vector."""
        self.sizes = [self._weights[name].numel() for name in self.names]
        """How many entries of the flat vector each of them has."""
        self.size = sum(self.sizes)
        self.dtype, self.device = subject.dtype, subject.device
        self._budget = graph_memory * 2**30
        self._kept: dict[int, tuple[float, BatchHessian]] = {}  # batch index: share of all images
        self._kept_bytes = 0
        self._too_large: set[int] = set()
        self._batches: int | None = None
        self._one_by_one: set[int] = set()  # batches with an operation that can't be batched
        self._engine, self.group = parse_choice(engine)
        """Vectors at once in `matmat`."""
        self._measured = ""
        if self._engine == "measured":
            found = world.broadcast(self._measure() if world.rank == 0 else None)
            self._engine, self.group = found.name, found.group
            self._measured = f", {found.gradients:.1f} gradients a product"
        self.choice = format_choice(self._engine, self.group)
        """As a value of `engine`; it gives the same bits without measuring."""
        if self._engine == "recomputed":
            self._budget = 0.0

    @property
    def engine(self) -> str:
        """How products are computed, for reports."""
        text = {"auto": "double backward", "recomputed": "double backward", "pyhessian": "PyHessian"}.get(
            self._engine, self._engine
        )
        if self._kept:
            gigabytes = self._kept_bytes / 2**30
            text += f", {len(self._kept)} of {self._batches} graphs kept, {gigabytes:.2f} GiB"
        elif ENGINES[self._engine].keeps:
            text += ", graphs recomputed"
        if self.group > 1:
            text += f", groups of {self.group}"
        return f"measured: {text}{self._measured}" if self._measured else text

    def matvec(self, v: Tensor) -> Tensor:
        """H v, (n,) to (n,)."""
        return self.matmat(v[None])[0]

    def matmat(self, vectors: Tensor) -> Tensor:
        """H times each vector, (k, n) to (k, n), `group` of them at once; each batch's graph is built once for all."""
        return self._products(vectors, self.names)

    def block(self, names: Sequence[str]) -> HessianBlock:
        """The rows and columns of these parameters, in this order, as an operator that shares the kept graphs.

        Raises:
            InputError: A name that is not among `names`, or there twice; or none.
        """
        unknown = [name for name in names if name not in self.names]
        if unknown:
            raise InputError(
                f"there is no parameter {unknown[0]!r} to take a block of{_close(unknown[0], self.names)}."
            )
        if not names or len(set(names)) < len(names):
            raise InputError("a block needs the names of its parameters, each once.")
        return HessianBlock(self, names)

    def weights(self) -> Tensor:
        """A flat copy (n,) of the weights."""
        return torch.cat([self._weights[name].reshape(-1) for name in self.names])

    def loss_at(self, weights: Tensor) -> float:
        """The data loss at these weights (n,), the model's own in all other parameters."""
        parts = weights.detach().to(self.device, self.dtype).split(self.sizes)
        at = {name: part.view_as(self._weights[name]) for name, part in zip(self.names, parts, strict=True)}
        total = torch.zeros(1, dtype=torch.float64, device=self.device)
        with self._one_sentence():
            for index, share, batch in self._shard():
                total += share * self._loss(index, batch)({**self._weights, **at}).double()
        self.world.sum_(total)
        return total.item()

    def loss_and_gradient(self) -> tuple[float, Tensor]:
        """The data loss, and the gradient (n,) of the whole loss, weight decay included."""
        total = torch.zeros(self.size + 1, dtype=torch.float64, device=self.device)
        with self._one_sentence():
            leaves = {name: w.detach().requires_grad_(name in self.names) for name, w in self._weights.items()}
            for index, share, batch in self._shard():
                value = self._loss(index, batch)(leaves)
                _require_dependence(value.requires_grad)
                with self.subject.frozen():
                    gradients = torch.autograd.grad(
                        value, [leaves[name] for name in self.names], materialize_grads=True
                    )
                total[0] += share * value.item()
                total[1:].add_(torch.cat([g.reshape(-1) for g in gradients]), alpha=share)
                del value, gradients  # or the next graph is built beside this one
        self.world.sum_(total)
        return total[0].item(), total[1:].add_(self.weights(), alpha=self.subject.weight_decay).to(self.dtype)

    def noise_floor(self, seed: int = 0) -> float:
        r"""Relative error of a product, from two random vectors u, v of norm sqrt(n) and three products.

        .. math:: \max\left(\frac{\|Hv - (Hv)'\|}{\|Hv\|},
                  \frac{\sqrt{n}\,|u^\top H v - v^\top H u|}{\|u\|\,\|Hv\| + \|v\|\,\|Hu\|}\right)

        where (Hv)' is the same product by recomputed double backward, whatever the engine, if the model can be
        differentiated so. The second term estimates the share of H that is not symmetric; both are rounding alone
        for a deterministic subject and an exact engine.

        Args:
            seed: Of u and v.
        """
        generator = torch.Generator().manual_seed(seed)
        u, v = torch.randn(2, self.size, generator=generator).to(self.device, self.dtype)
        try:  # before anything is kept: graphs would stand beside each other
            again = self._anew("recomputed").matvec(v)
        except InputError:
            if ENGINES[self._engine] is DoubleBackward:
                raise
            again = self._anew(self.choice).matvec(v)
        hu, hv = self.matvec(u), self.matvec(v)
        norm_u, norm_v = (torch.linalg.vector_norm(x, dtype=torch.float64).item() for x in (hu, hv))
        if norm_u == 0 == norm_v:
            return 0.0
        repeat = torch.linalg.vector_norm(hv - again, dtype=torch.float64).item() / (norm_v or 1.0)
        skew = abs(dot(u, hv) - dot(v, hu)) / (norm_u + norm_v)  # ||u|| and ||v|| are sqrt(n)
        return max(repeat, skew)

    def release(self) -> None:
        """Free the kept graphs; the next product builds them again."""
        self._kept.clear()
        self._kept_bytes, self._batches = 0, None

    @contextmanager
    def _one_sentence(self) -> Iterator[None]:
        """Failures of autograd, and exhausted memory wherever it shows, as an `InputError`."""
        try:
            yield
        except (RuntimeError, MemoryError, InputError) as error:
            if is_exhausted(error):
                raise InputError(
                    "memory ran out while differentiating the loss; use fewer images at a time (--batch-size), less "
                    "--graph-memory, or --engine forward-over-reverse."
                ) from error
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"differentiating the loss with engine {self._engine} failed: {first_line(error)}; another engine may "
                "be able to."
            ) from error

    def _anew(self, engine: str) -> HessianOperator:
        return HessianOperator(
            self.subject, engine=engine, graph_memory=0, number=self.number, parameters=self.names, world=self.world
        )

    def _products(self, vectors: Tensor, names: Sequence[str]) -> Tensor:
        """Rows and columns `names` of H, times vectors (k, n)."""
        size = sum(self._weights[name].numel() for name in names)
        if vectors.dim() != 2 or vectors.shape[1] != size:
            raise ValueError(f"The operator has {size} columns; it was given vectors of shape {tuple(vectors.shape)}.")
        vectors = vectors.detach().to(self.dtype)
        with self._one_sentence():
            total = torch.zeros(vectors.shape, dtype=torch.float64, device=self.device)
            for index, share, batch, keep in self._terms(names):
                begin = 0
                while begin < len(vectors):
                    rows = slice(begin, begin + self.group)
                    begin += self.group
                    with self.subject.frozen():
                        found = self._group(index, batch, vectors[rows], names, keep or begin < len(vectors))
                    total[rows].add_(found, alpha=share)
                del batch  # or the next graph is built beside it
            self.world.sum_(total)
            return total.add_(vectors, alpha=self.subject.weight_decay).to(self.dtype)

    def _group(self, index: int, batch: BatchHessian, vectors: Tensor, names: Sequence[str], keep: bool) -> Tensor:
        """Products of one group: at once, or one by one if the model has an operation that can't be batched."""
        if len(vectors) > 1 and index not in self._one_by_one:
            try:
                return batch.products(vectors, names, True)
            except (RuntimeError, InputError) as error:
                if is_exhausted(error):
                    raise
                self._one_by_one.add(index)
        last = len(vectors) - 1
        return torch.cat([batch.products(v[None], names, keep or k < last) for k, v in enumerate(vectors)])

    def _terms(self, names: Sequence[str]) -> Iterator[tuple[int, float, BatchHessian, bool]]:
        """(index, share of all images, Hessian of the batch, whether it is kept) of each batch, in order."""
        if len(self._kept) == self._batches:  # then the images need not be read again
            yield from ((index, share, batch, True) for index, (share, batch) in self._kept.items())
            return
        count = 0
        for index, share, images in self._shard():
            batch = self._kept[index][1] if index in self._kept else self._build(index, share, images, names)
            yield index, share, batch, index in self._kept
            del batch  # or the next graph is built beside it
            count += 1
        self._batches = count

    def _build(self, index: int, share: float, images: Batch, names: Sequence[str]) -> BatchHessian:
        """The Hessian of one batch, kept if there is room; over all variables if it may be kept, else over `names`."""
        make, loss = ENGINES[self._engine], self._loss(index, images)
        with self.subject.frozen():
            if not make.keeps or not self._budget or index in self._too_large:
                batch = make(loss, self._weights, names)
                if len(names) == len(self.names):
                    _require_dependence(batch.depends)
                return batch
            graph = GraphBytes()
            with graph:
                batch = make(loss, self._weights, self.names)
        _require_dependence(batch.depends)
        if self._kept_bytes + graph.bytes <= self._budget:
            self._kept[index] = share, batch
            self._kept_bytes += graph.bytes
        else:
            self._too_large.add(index)
        return batch

    def _shard(self) -> Iterator[tuple[int, float, Batch]]:
        """The batches of this process."""
        for index, share, batch in self.subject.weighted_batches():
            if index % self.world.size == self.world.rank:
                yield index, share, batch

    def _loss(self, index: int, batch: Batch) -> Loss:
        def loss(weights: Mapping[str, Tensor]) -> Tensor:
            return self.subject.batch_loss(weights, batch, index, self.number)

        return loss

    def _measure(self) -> Measured:
        index, _, batch = next(iter(self.subject.weighted_batches()))
        batches = -(-self.subject.data.images // len(batch[1]))
        with self._one_sentence(), self.subject.frozen():
            return measure(
                self._loss(index, batch),
                self._weights,
                self.names,
                memory=self._budget,
                batches=-(-batches // self.world.size),
            )


class HessianBlock:
    """Rows and columns of a `HessianOperator`, those of some parameters; weight decay included."""

    def __init__(self, whole: HessianOperator, names: Sequence[str]):
        self.whole, self.names = whole, list(names)
        sizes = dict(zip(whole.names, whole.sizes, strict=True))
        self.sizes = [sizes[name] for name in self.names]
        self.size = sum(self.sizes)
        self.dtype, self.device, self.group = whole.dtype, whole.device, whole.group

    def matvec(self, v: Tensor) -> Tensor:
        """H_bb v, (n_b,) to (n_b,)."""
        return self.matmat(v[None])[0]

    def matmat(self, vectors: Tensor) -> Tensor:
        """H_bb times each vector, (k, n_b) to (k, n_b)."""
        return self.whole._products(vectors, self.names)


def _matching(names: list[str], globs: Sequence[str]) -> list[str]:
    for glob in globs:
        if not any(_matches(name, glob) for name in names):
            raise InputError(f"no parameter of the model matches {glob!r}{_close(glob, names)}.")
    return [name for name in names if any(_matches(name, glob) for glob in globs)] if globs else names


def _matches(name: str, glob: str) -> bool:
    return name == glob or fnmatchcase(name, glob)


def _close(name: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
    return f"; the closest name is {close[0]!r}" if close else ""


def _require_dependence(depends: bool) -> None:
    if not depends:
        raise InputError(
            "the loss does not depend on the weights: nothing uses them, or something in the model detaches its output."
        )


def is_exhausted(error: BaseException) -> bool:
    """Whether memory ran out; on the CPU torch says so in words only."""
    cause = error.__cause__ if isinstance(error, InputError) and error.__cause__ else error
    words = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(cause, (MemoryError, torch.OutOfMemoryError)) or any(word in str(cause) for word in words)
