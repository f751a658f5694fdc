"""The interface of `HessianOperator` over a matrix: fast, and with any number of vectors at once."""

from __future__ import annotations

import torch
from cases import dense_hessian

from analyze import Subject


class DenseOperator:
    """A dense symmetric matrix (n, n) whose rows belong to named parameters; it counts its products."""

    def __init__(self, matrix, parameters, *, dtype=torch.float64, group=1):
        self.matrix = torch.as_tensor(matrix).to(dtype)
        self.names, self.sizes = list(parameters), list(parameters.values())
        self.size, self.dtype, self.device = sum(self.sizes), dtype, torch.device("cpu")
        self.group = group
        self.products = 0

    def matvec(self, v):
        return self.matmat(v[None])[0]

    def matmat(self, vectors):
        self.products += len(vectors)
        return (self.matrix @ vectors.T).T

    def block(self, names):
        rows = torch.cat([part for name, part in zip(self.names, self._rows(), strict=True) if name in names])
        sizes = {name: size for name, size in zip(self.names, self.sizes, strict=True) if name in names}
        return DenseOperator(self.matrix[rows][:, rows], sizes, dtype=self.dtype)

    def _rows(self):
        return torch.arange(self.size).split(self.sizes)


class SubjectOperator(DenseOperator):
    """The dense Hessian of a subject, with its weights, its loss and its gradient."""

    def __init__(self, subject: Subject, *, dtype=torch.float64, group=1):
        sizes = {name: p.numel() for name, p in subject.parameters.items()}
        super().__init__(dense_hessian(subject), sizes, dtype=dtype, group=group)
        self.subject = subject

    def weights(self):
        return torch.cat([p.detach().reshape(-1) for p in self.subject.parameters.values()]).to(self.dtype)

    def _loss(self, weights):
        parameters = self.subject.parameters
        pieces = weights.split(self.sizes)
        values = {name: piece.view_as(parameters[name]) for name, piece in zip(self.names, pieces, strict=True)}
        return sum(
            share * self.subject.batch_loss(values, batch, index)
            for index, share, batch in self.subject.weighted_batches()
        )

    def loss_at(self, weights):
        return self._loss(weights).item()

    def loss_and_gradient(self):
        weights = self.weights().requires_grad_()
        loss = self._loss(weights)
        gradient = torch.autograd.grad(loss, weights, materialize_grads=True)[0]
        return loss.item(), gradient + self.subject.weight_decay * weights.detach()
