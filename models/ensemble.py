"""Deep ensembles."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from data_cache import InputError

if TYPE_CHECKING:
    from models.checkpoint import Checkpoint


class Ensemble(nn.Module):
    r"""A deep ensemble (Lakshminarayanan et al. 2017) as one network that gives log-probabilities.

    .. math:: \log p = \mathrm{logsumexp}_m \log\mathrm{softmax}(z_m) - \log M

    So softmax of the output is exactly the mean of the members' probabilities, however small they are.
    """

    def __init__(self, models: Iterable[nn.Module], name: str | None = None):
        super().__init__()
        self.models = nn.ModuleList(models)
        if not self.models:
            raise ValueError("an ensemble needs at least one model")
        self.name = name or f"{getattr(self.models[0], 'name', 'model')}_ensemble"

    def forward(self, x: Tensor) -> Tensor:
        """(N, ...) inputs to (N, classes) log-probabilities; of members that give several outputs, `first_tensor`."""
        return mean_log_probability([torch.log_softmax(first_tensor(model(x)), dim=-1) for model in self.models])


def first_tensor(output: Any) -> Tensor:
    """The tensor in what a model gave: itself, what is called `logits`, or the first of several.

    Raises:
        InputError: There is none.
    """
    if isinstance(output, Mapping):
        output = output.get("logits", next(iter(output.values()), None))
    elif isinstance(output, (tuple, list)):
        output = getattr(output, "logits", output[0] if output else None)
    if not isinstance(output, Tensor):
        raise InputError(f"the model gives a {type(output).__name__}, not a tensor.")
    return output


def mean_log_probability(log_probabilities: list[Tensor]) -> Tensor:
    """Logarithm of the mean of S probabilities given as S logarithms, each (..., classes)."""
    return torch.logsumexp(torch.stack(log_probabilities), dim=0) - math.log(len(log_probabilities))


def check_members(checkpoints: Sequence[Checkpoint], recorded: Mapping[str, str]) -> None:
    """Refuse checkpoints that can't be one ensemble.

    Args:
        checkpoints: The members.
        recorded: Keys of the metadata in which they must agree, each with what to do where they don't.

    Raises:
        InputError: Two are the same file, are for another number of classes, or record something else.
    """
    for number, other in enumerate(checkpoints):
        for first in checkpoints[:number]:
            if first.sha256 == other.sha256:
                raise InputError(
                    f"{first.path} and {other.path} are the same network; an ensemble needs different ones."
                )
        first = checkpoints[0]
        classes = [checkpoint.kwargs.get("num_classes") for checkpoint in (first, other)]
        if None not in classes and classes[0] != classes[1]:
            raise InputError(
                f"{first.path} is of a network for {classes[0]} classes and {other.path} for {classes[1]}."
            )
        for key, advice in recorded.items():
            values = [checkpoint.metadata.get(key) for checkpoint in (first, other)]
            if values[0] != values[1]:
                told = " and ".join(str(value)[:50] for value in values)
                raise InputError(
                    f"{first.path} and {other.path} don't go together: they record different {key} ({told}){advice}."
                )


def ensemble_name(names: Sequence[str]) -> str:
    """`A+B+C`, short enough for the name of a file."""
    joined = "+".join(names)
    return joined if len(joined) <= 100 else f"{names[0][:80]}+{len(names) - 1}_more"
