"""Planes through a series of checkpoints, and checkpoints projected into planes.

Everything here takes weights as differences from one point, tensors by parameter name on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from data_cache import InputError

Tensors = Mapping[str, Tensor]

# entries in float64 at a time
_CHUNK = 1 << 20
# the coordinate of the checkpoint farthest out, so that a grid from -1 to 1 shows it with a margin
_REACH = 0.9
# a share of the squared distances that is rounding of the weights
_NOTHING = 1e-10


def inner(a: Tensors, b: Tensors) -> float:
    """Inner product in float64; a name that one of them lacks counts as zeros."""
    total = 0.0
    for name in (name for name in a if name in b):  # not of sets, whose order changes the rounding from run to run
        parts = zip(a[name].reshape(-1).split(_CHUNK), b[name].reshape(-1).split(_CHUNK), strict=True)
        total += sum(torch.dot(p.double(), q.double()).item() for p, q in parts)
    return total


def length(a: Tensors) -> float:
    """Euclidean norm in float64."""
    return math.hypot(*(torch.linalg.vector_norm(tensor.double()).item() for tensor in a.values()))


def cosine(a: Tensors, b: Tensors) -> float:
    """Cosine of the angle between two directions; NaN if one of them is zero."""
    lengths = length(a) * length(b)
    return inner(a, b) / lengths if lengths else math.nan


def principal_axes(differences: Sequence[Tensors], count: int = 2) -> tuple[list[dict[str, Tensor]], np.ndarray]:
    r"""The line or plane through the origin to which T checkpoints are nearest: PCA of w_t - w_0 (Li et al. 2018).

    With D the (T, n) matrix of the differences and :math:`D D^\top u_k = \lambda_k u_k`, computed in float64, the axes
    are the orthonormal :math:`D^\top u_k / \sqrt{\lambda_k}`, times one length common to them. It puts the coordinate
    that is farthest out at 0.9, with its sign positive on each axis. The mean of the differences is not taken off them,
    so the plane holds the origin, and what is not explained is the squared distance from the plane.

    Args:
        differences: w_t - w_0 of each checkpoint, all with the same names and shapes.
        count: How many axes.

    Returns:
        The axes, in the dtype of the differences, and the shares :math:`\lambda_k / \sum_j \lambda_j`, (count,).

    Raises:
        InputError: The differences span fewer dimensions.
    """
    gram = torch.zeros(len(differences), len(differences), dtype=torch.float64)
    for name in differences[0]:
        parts = [difference[name].reshape(-1).split(_CHUNK) for difference in differences]
        for columns in zip(*parts, strict=True):
            block = torch.stack(columns).double()
            gram += block @ block.T
    values, vectors = torch.linalg.eigh(gram)
    values, vectors = values.flip(0)[:count], vectors.flip(1)[:, :count]
    if len(values) < count or not (values > _NOTHING * gram.trace()).all():
        raise InputError(
            f"the series' checkpoints span no {'plane' if count == 2 else 'line'} through this one's weights; "
            "give --series further checkpoints of the training."
        )
    coordinates = vectors * values.sqrt()
    farthest = coordinates.gather(0, coordinates.abs().argmax(0, keepdim=True))[0]
    unit = farthest.abs().max() / _REACH
    mix = vectors * farthest.sign() / values.sqrt() * unit
    axes = []
    for column in mix.T:
        axis = {}
        for name, tensor in differences[0].items():
            total = torch.zeros(tensor.shape, dtype=torch.float64)
            for weight, difference in zip(column.tolist(), differences, strict=True):
                total.add_(difference[name], alpha=weight)
            axis[name] = total.to(tensor.dtype)
        axes.append(axis)
    return axes, (values / gram.trace()).numpy()


def project(difference: Tensors, axes: Sequence[Tensors]) -> tuple[np.ndarray, float]:
    r"""The nearest point of a line or plane: :math:`\min_c \|\delta - \sum_k c_k a_k\|`.

    Args:
        difference: w - w_0. All its names count for the distance, also those that no axis has.
        axes: Directions, of any lengths and angles to each other. A name that one lacks counts as zeros.

    Returns:
        Coordinates c in lengths of the axes, (len(axes),) float64, and the distance that remains.
    """
    lengths = np.array([length(axis) for axis in axes])
    gram = np.array([[inner(a, b) for b in axes] for a in axes]) / np.outer(lengths, lengths)
    right = np.array([inner(axis, difference) for axis in axes]) / lengths
    coordinates = np.linalg.solve(gram, right) / lengths
    rest = {}
    for name, tensor in difference.items():
        rest[name] = tensor.double()
        for coordinate, axis in zip(coordinates.tolist(), axes, strict=True):
            if name in axis:
                rest[name] = rest[name] - coordinate * axis[name].double()
    return coordinates, length(rest)
