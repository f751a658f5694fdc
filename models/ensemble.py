"""Deep ensembles."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn


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
        """(N, ...) inputs to (N, classes) log-probabilities."""
        return mean_log_probability([torch.log_softmax(model(x), dim=-1) for model in self.models])


def mean_log_probability(log_probabilities: list[Tensor]) -> Tensor:
    """Logarithm of the mean of S probabilities given as S logarithms, each (..., classes)."""
    return torch.logsumexp(torch.stack(log_probabilities), dim=0) - math.log(len(log_probabilities))
