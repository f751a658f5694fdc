"""Products of the Hessian of a subject's loss with vectors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from analyze.hessian.krylov import dot
from analyze.subject import Batch, Subject
from data_cache import InputError
from data_cache.errors import first_line


class HessianOperator:
    r"""The Hessian of a subject's loss over its parameters, known by exact products.

    .. math:: H v = \sum_b \frac{N_b}{N} \nabla_w (v^\top \nabla_w \ell_b) + \lambda v

    by differentiating the gradient again. The graph of a batch's gradient is kept between products while all
    that is kept fits into `graph_memory`; a product then costs 2 gradients instead of 3. Weights that the loss
    does not use contribute zeros. Dropout masks are those of Monte Carlo pass `number` at every product, so H
    is symmetric.

    Args:
        subject: Model, data and loss.
        graph_memory: GiB for the graphs that are kept; 0 keeps none.
        number: The Monte Carlo pass.
    """

    def __init__(self, subject: Subject, *, graph_memory: float = 3.0, number: int = 0):
        self.subject = subject
        self.number = number
        # leaves of our own on the model's storage: neither its .grad nor its requires_grad is touched
        self._weights = {name: p.detach().requires_grad_() for name, p in subject.parameters.items()}
        self._sizes = [weight.numel() for weight in self._weights.values()]
        self.size = sum(self._sizes)
        self.dtype, self.device = subject.dtype, subject.device
        self._budget = graph_memory * 2**30
        self._kept: dict[int, tuple[float, list[Tensor]]] = {}  # batch index: share of all images, gradient
        self._kept_bytes = 0
        self._batches: int | None = None

    @property
    def engine(self) -> str:
        """How products are computed, for reports."""
        if not self._kept:
            return "double backward, graphs recomputed"
        gigabytes = self._kept_bytes / 2**30
        return f"double backward, {len(self._kept)} of {self._batches} graphs kept, {gigabytes:.2f} GiB"

    def matvec(self, v: Tensor) -> Tensor:
        """H v, (n,) to (n,), summed over batches in float64."""
        vectors = [
            part.view_as(weight) for part, weight in zip(v.split(self._sizes), self._weights.values(), strict=True)
        ]
        total = torch.zeros(self.size, dtype=torch.float64, device=self.device)
        for share, gradients, kept in self._terms():
            total.add_(self._differentiate(gradients, vectors, kept), alpha=share)
        return total.add_(v, alpha=self.subject.weight_decay).to(self.dtype)

    def _terms(self) -> Iterator[tuple[float, list[Tensor], bool]]:
        """(share of all images, differentiable gradient, whether it is kept) of each batch, in order."""
        if len(self._kept) == self._batches:  # then the images need not be read again
            yield from ((share, gradients, True) for share, gradients in self._kept.values())
            return
        count = 0
        for index, share, batch in self.subject.weighted_batches():
            if index in self._kept:
                gradients = self._kept[index][1]
            else:
                gradients = self._differentiable_gradient(index, share, batch)
            yield share, gradients, index in self._kept
            count += 1
        self._batches = count

    def loss_and_gradient(self) -> tuple[float, Tensor]:
        """The data loss, and the gradient (n,) of the whole loss, weight decay included."""
        loss, gradient = 0.0, torch.zeros(self.size, dtype=torch.float64, device=self.device)
        for index, share, batch in self.subject.weighted_batches():
            value = self.subject.batch_loss(self._weights, batch, index, self.number)
            loss += share * value.item()
            gradient.add_(_flat(self._grad([value], None)), alpha=share)
        weights = _flat([weight.detach() for weight in self._weights.values()])
        return loss, gradient.add_(weights, alpha=self.subject.weight_decay).to(self.dtype)

    def _grad(self, outputs: Sequence[Tensor], seeds: Sequence[Tensor] | None, **options: bool) -> Sequence[Tensor]:
        if not any(output.requires_grad for output in outputs):
            raise InputError("the loss does not depend on the weights: something in the model detaches it.")
        with self.subject.frozen():
            try:
                return torch.autograd.grad(
                    outputs, list(self._weights.values()), seeds, materialize_grads=True, **options
                )
            except RuntimeError as error:
                raise InputError(
                    f"differentiating the loss failed: {first_line(error)}; where memory ran out, use fewer images "
                    "at a time (--batch-size) and less --graph-memory."
                ) from error

    def _differentiable_gradient(self, index: int, share: float, batch: Batch) -> list[Tensor]:
        """The gradient of one batch's loss with its graph, kept if there is room."""
        counted: dict[int, int] = {}

        def count(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            counted[storage.data_ptr()] = storage.nbytes()
            return tensor

        with saved_tensors_hooks(count, lambda tensor: tensor):
            value = self.subject.batch_loss(self._weights, batch, index, self.number)
            gradients = list(self._grad([value], None, create_graph=True))
        held = sum(counted.values())
        if self._kept_bytes + held <= self._budget:
            self._kept[index] = share, gradients
            self._kept_bytes += held
        return gradients

    def _differentiate(self, gradients: Sequence[Tensor], vectors: Sequence[Tensor], keep: bool) -> Tensor:
        # a gradient that no longer depends on the weights has a zero row in the Hessian
        pairs = [(g, v) for g, v in zip(gradients, vectors, strict=True) if g.requires_grad]
        if not pairs:
            return torch.zeros(self.size, dtype=self.dtype, device=self.device)
        outputs, seeds = zip(*pairs, strict=True)
        return _flat(self._grad(outputs, seeds, retain_graph=keep))

    def noise_floor(self, seed: int = 0) -> float:
        r"""Relative error of a product, from two random vectors u, v of norm sqrt(n) and three products.

        .. math:: \max\left(\frac{\|Hv - (Hv)'\|}{\|Hv\|},
                  \frac{\sqrt{n}\,|u^\top H v - v^\top H u|}{\|u\|\,\|Hv\| + \|v\|\,\|Hu\|}\right)

        where (Hv)' is the same product again, with all graphs computed anew. The second term estimates the share of
        H that is not symmetric;
        both are rounding alone for a deterministic subject.

        Args:
            seed: Of u and v.
        """
        generator = torch.Generator().manual_seed(seed)
        u, v = torch.randn(2, self.size, generator=generator).to(self.device, self.dtype)
        hu, hv = self.matvec(u), self.matvec(v)
        again = HessianOperator(self.subject, graph_memory=0, number=self.number).matvec(v)
        norm_u, norm_v = (torch.linalg.vector_norm(x, dtype=torch.float64).item() for x in (hu, hv))
        if norm_u == 0 == norm_v:
            return 0.0
        repeat = torch.linalg.vector_norm(hv - again, dtype=torch.float64).item() / (norm_v or 1.0)
        skew = abs(dot(u, hv) - dot(v, hu)) / (norm_u + norm_v)  # ||u|| and ||v|| are sqrt(n)
        return max(repeat, skew)


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])
