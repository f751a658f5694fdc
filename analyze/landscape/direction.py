"""One direction in the space of weights: its tensors, their hash, and how run files hold it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from analyze.arrays import arrays
from analyze.landscape.filters import moved
from analyze.landscape.series import length
from analyze.landscape.spec import DirectionInfo, Result, kind_elsewhere
from analyze.run import open_run
from analyze.subject import Subject
from data_cache import InputError


@dataclass(frozen=True)
class Direction:
    """One axis of a landscape: the weights move by a multiple of it."""

    tensors: dict[str, Tensor]
    """By names of `Subject.parameters`, in the subject's dtype and on its device; a name it lacks does not move."""
    info: DirectionInfo
    """Where it comes from."""
    rest: dict[str, Tensor] = field(default_factory=dict)
    """To another checkpoint: what that differs by in floating-point buffers (BatchNorm's statistics) and parameters
    that are not studied."""

    @classmethod
    def of(
        cls,
        subject: Subject,
        tensors: Mapping[str, Tensor],
        *,
        kind: str,
        norm: str = "",
        rest: Mapping[str, Tensor] | None = None,
        **numbers: float,
    ) -> Direction:
        """A direction from tensors anywhere and in any dtype, with its lengths measured.

        Raises:
            InputError: It is zero, or not finite.
        """
        size, own = length(tensors), length({name: p.detach() for name, p in subject.parameters.items()})
        if not 0 < size < np.inf:
            raise InputError(f"the direction {kind} has the length {size:g}; it must be positive and finite.")
        known = {"eigenvalue": np.nan, "residual": np.nan, "explained": np.nan, **numbers}

        moves, carries = _placed(subject, tensors), _placed(subject, rest or {})
        sha256 = _sha256({**moves, **carries})
        return cls(
            moves, DirectionInfo(kind, norm, size, size / own if own else np.inf, **known, sha256=sha256), carries
        )

    @classmethod
    def stored(cls, subject: Subject, values: Mapping[str, np.ndarray], info: DirectionInfo) -> Direction:
        """A direction of this subject as a run file holds it.

        Raises:
            InputError: The arrays are not those that it is said to have.
        """
        tensors = _placed(subject, {name: torch.from_numpy(array) for name, array in values.items()})
        shapes = {name: parameter.shape for name, parameter in subject.parameters.items()}
        fits = all(tensor.shape == shapes.get(name) for name, tensor in tensors.items())
        if not fits or _sha256(tensors) != info.sha256:
            raise InputError(
                f"the run file's direction {info.kind} is damaged; use --restart to begin anew, or another --out."
            )
        return cls(tensors, info)

    def on_cpu(self) -> dict[str, Tensor]:
        """`tensors` on the CPU."""
        return {name: tensor.cpu() for name, tensor in self.tensors.items()}

    def arrays(self) -> dict[str, np.ndarray]:
        """`tensors` for a run file; what NumPy has no type for in float32."""
        known = {name: t.float() if t.dtype == torch.bfloat16 else t for name, t in self.on_cpu().items()}
        return {name: tensor.numpy() for name, tensor in known.items()}


def _placed(subject: Subject, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to(subject.device, subject.dtype) for name, tensor in tensors.items()}


def _sha256(tensors: Mapping[str, Tensor]) -> str:
    """Of names, shapes and bits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def read_directions(subject: Subject, path: str | Path) -> list[Direction]:
    """The directions of a landscape in a run file, which may be of another checkpoint of the same network.

    They are taken as they are: random ones keep the lengths of the network that they were made for. What is true of
    that network and its images alone is left out: an eigenvalue, what a direction explains, and that a checkpoint lies
    at coordinate 1.

    Raises:
        InputError: The file holds no landscape, or no directions, or some of parameters with other names or shapes.
    """
    with open_run(path) as run:
        stored = run.load(Result.analysis, _Stored)
    if stored is None:
        raise InputError(f"{path} holds no landscape, so no directions.")
    found = []
    for values, info in ((stored.direction_x, stored.info_x), (stored.direction_y, stored.info_y)):
        if info is not None:
            if not values:
                raise InputError(f"{path} was written with --no-keep-directions, so it has none to take.")
            tensors = _fitting(subject, values, path)
            found.append(Direction.of(subject, tensors, kind=kind_elsewhere(info), norm=info.norm))
    return found


@dataclass(frozen=True)
class _Stored:
    """What a landscape's `Result` says of directions."""

    direction_x: dict[str, np.ndarray] = arrays()
    direction_y: dict[str, np.ndarray] = arrays()
    info_x: DirectionInfo
    info_y: DirectionInfo | None


def _fitting(subject: Subject, stored: Mapping[str, np.ndarray], path: str | Path) -> dict[str, Tensor]:
    """Stored arrays as tensors, in the order of the subject's parameters."""
    own = subject.parameters
    for name, values in stored.items():
        if name not in own:
            raise InputError(f"{path} has a direction for {name!r}, which this network has no parameter of.")
        if values.shape != own[name].shape:
            raise InputError(
                f"{path} has a direction for {name!r} of shape {values.shape}, not {tuple(own[name].shape)}."
            )
        if values.dtype.kind != "f":
            raise InputError(f"{path} has a direction for {name!r} in {values.dtype}, which are no weights.")
    wanted = set(moved(subject))
    if len(stored) < len(own) and set(stored) != wanted:
        odd = sorted(set(stored) ^ wanted)[0]
        raise InputError(f"{path} has directions for other parameters than this network moves, such as {odd!r}.")
    return {
        name: torch.from_numpy(stored[name].astype(np.float64 if stored[name].itemsize > 4 else np.float32))
        for name in own
        if name in stored
    }
