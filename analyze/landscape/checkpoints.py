"""Other checkpoints of the network under study, as differences from its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from analyze.results import Progress, silent
from analyze.subject import Subject
from data_cache import InputError
from models.checkpoint import find_checkpoint, load_checkpoint, read_tensors

Other = str | Path | nn.Module | Mapping[str, Tensor]
"""A checkpoint's file or the name of one that ships; from Python also a model or a state dict."""


def difference(subject: Subject, other: Other) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights of another checkpoint minus the subject's, on the CPU: studied parameters, and all else that counts.

    Raises:
        InputError: The other is of another network, or holds NaN.
    """
    state, it = _tensors(_state(subject, other)), told(other)
    own = _tensors(subject.model.state_dict())
    for name in [*own, *state]:
        if name not in state or name not in own:
            verb = "lacks" if name not in state else "has"
            raise InputError(f"{it} is of another network: it {verb} {name!r}.")
        if state[name].shape != own[name].shape:
            raise InputError(
                f"{it} is of another network: {name!r} is {tuple(state[name].shape)}, not {tuple(own[name].shape)}."
            )
        if state[name].is_floating_point() and not torch.isfinite(state[name]).all():
            raise InputError(f"{it}: {name!r} holds NaN or infinity; the training probably diverged.")
    here = {**dict(subject.model.named_parameters()), **dict(subject.model.named_buffers())}
    studied = subject.parameters
    found: tuple[dict[str, Tensor], dict[str, Tensor]] = {}, {}
    for name, tensor in here.items():
        if tensor.is_floating_point() and name in state:
            step = state[name].detach().cpu().double() - tensor.detach().cpu().double()
            found[name not in studied][name] = step.to(torch.promote_types(subject.dtype, torch.float32))
    return found


def _state(subject: Subject, other: Other) -> Mapping[str, Tensor]:
    if isinstance(other, nn.Module):
        return other.state_dict()
    if isinstance(other, Mapping):
        return other
    path, about = find_checkpoint(other), subject.describe()
    says = path.suffix == ".safetensors" and "model" in read_tensors(path)[1]
    if says or about["checkpoint"] == "(from Python)":
        checkpoint = load_checkpoint(path)
        if about["checkpoint"] != "(from Python)" and checkpoint.name != about["model"]:
            raise InputError(f"{other} is of {checkpoint.name}, not of {about['model']}; give one of the same network.")
    else:
        checkpoint = load_checkpoint(path, model=about["model"], model_args=about["model_args"])
    return checkpoint.model.state_dict()


def _tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def told(other: Other) -> str:
    """How reports call a checkpoint."""
    return str(other) if isinstance(other, (str, Path)) else "the other model"


def read_series(subject: Subject, series: Sequence[str], progress: Progress = silent) -> dict[str, dict[str, Tensor]]:
    """The `difference` of each checkpoint, by the file's name, or by its path where names are not unique."""
    stems = [Path(each).stem for each in series]
    names = stems if len(set(stems)) == len(stems) else [str(each) for each in series]
    steps = {}
    for name, other in zip(names, series, strict=True):
        steps[name] = difference(subject, other)[0]
        progress("series", len(steps), len(series), name)
    return steps
