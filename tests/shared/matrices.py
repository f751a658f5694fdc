"""Operators with known spectra."""

from __future__ import annotations

import numpy as np
import torch
from scipy.fft import dct, idct

DTYPES = [torch.float32, torch.float64]


class MatrixOperator:
    """A dense symmetric matrix, or a diagonal one given as a vector; it counts its products and calls."""

    def __init__(self, matrix, group=1):
        self.matrix = matrix
        self.size, self.dtype, self.device = len(matrix), matrix.dtype, matrix.device
        self.group = group
        self.products, self.calls = 0, []

    def matvec(self, v):
        self.products += 1
        self.calls.append(1)
        return self.matrix * v if self.matrix.ndim == 1 else self.matrix @ v

    def matmat(self, vectors):
        self.products += len(vectors)
        self.calls.append(len(vectors))
        return self.matrix * vectors if self.matrix.ndim == 1 else vectors @ self.matrix


def rotated(spectrum, dtype=torch.float64, seed=0, group=1):
    """Q diag(spectrum) Q^T with a random orthogonal Q."""
    spectrum = np.asarray(spectrum, dtype=np.float64)
    q = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(spectrum),) * 2))[0]
    matrix = (q * spectrum) @ q.T
    return MatrixOperator(torch.from_numpy((matrix + matrix.T) / 2).to(dtype), group)


def diagonal(spectrum, dtype=torch.float64, group=1):
    """diag(spectrum)."""
    return MatrixOperator(torch.as_tensor(np.asarray(spectrum), dtype=dtype), group)


def bulk(size, seed=0):
    """A Gaussian spectrum."""
    return np.random.default_rng(seed).normal(size=size)


class TransformedOperator(MatrixOperator):
    """C diag(spectrum) C^T with C the cosine transform: random signs see each eigenvector as a Gaussian does."""

    def matvec(self, v):
        return self.matmat(v[None])[0]

    def matmat(self, vectors):
        self.products += len(vectors)
        self.calls.append(len(vectors))
        coordinates = idct(vectors.numpy(), norm="ortho") * self.matrix.numpy()
        return torch.from_numpy(dct(coordinates, norm="ortho"))
