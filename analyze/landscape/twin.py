"""A copy of a network whose weights move."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from analyze.batches import Batch
from analyze.subject import Subject
from data_cache.errors import InputError, first_line

Tensors = Mapping[str, Tensor]


class Twin:
    """A copy of a subject's network, at weights w0 + x dx + y dy that are computed from w0 every time.

    Raises:
        InputError: The network can't be copied.
    """

    def __init__(self, subject: Subject, axes: Sequence[Tensors], *, channels_last: bool = False):
        self.subject = copy.copy(subject)
        try:
            self.model = self.subject.model = copy.deepcopy(subject.model).requires_grad_(False)
        except Exception as error:  # modules may hold anything, such as tensors computed by the old weight_norm
            hint = "; use that of torch.nn.utils.parametrizations" if "weight_norm" in str(error) else ""
            raise InputError(f"the model can't be copied: {first_line(error)}{hint}.") from error
        if channels_last:
            for parameter in self.model.parameters():
                if parameter.dim() == 4:
                    parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        self._own = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        names = {name for axis in axes for name in axis}
        self._moving = [(self._own[name], self._own[name].clone()) for name in self._own if name in names]
        self._axes = [
            [(own, torch.empty_like(own).copy_(axis[name])) for name, own in self._own.items() if name in axis]
            for axis in axes
        ]
        self._buffers = [(buffer, buffer.clone()) for buffer in self.model.buffers()]

    @torch.no_grad()
    def move(self, *coordinates: float) -> None:
        """Go to these coordinates along the axes; buffers that no axis moves are the checkpoint's."""
        for tensor, own in self._buffers:
            tensor.copy_(own)
        for tensor, own in self._moving:
            tensor.copy_(own)
        for axis, coordinate in zip(self._axes, coordinates, strict=True):
            if coordinate:
                for tensor, step in axis:
                    tensor.add_(step, alpha=coordinate)

    @torch.no_grad()
    def move_to(self, difference: Tensors) -> None:
        """Go to w0 plus a difference; every later `move` must be of a new twin."""
        for name, step in difference.items():
            self._own[name].add_(step.to(self._own[name]))

    @torch.no_grad()
    def copy_buffers(self, other: Twin) -> None:
        """Take the buffers of another twin."""
        for own, theirs in zip(self.model.buffers(), other.model.buffers(), strict=True):
            own.copy_(theirs)

    @property
    def norms(self) -> list[_BatchNorm]:
        """The modules that have running statistics."""
        return [m for m in self.model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]

    @torch.no_grad()
    def recompute_statistics(self, batches: Sequence[Batch], counters: Sequence[tuple[int, ...]]) -> None:
        r"""Set BatchNorm's running statistics to mean and unbiased variance over all images, at the present weights.

        .. math:: \mu = \frac{1}{n} \sum_b n_b m_b, \quad
            \sigma^2 = \frac{n}{n-1} \left[ \frac{1}{n} \sum_b n_b (v_b + m_b^2) - \mu^2 \right]

        with mean m_b and variance v_b of what each norm meets in batch b, where all norms use those of the batch. It
        takes no running average, so neither the order of the batches nor a momentum matter.

        Args:
            batches: The images.
            counters: For each batch what its dropout masks are a function of.
        """
        norms = self.norms
        sums = {norm: [0.0, 0.0, 0.0] for norm in norms}

        def add(norm: nn.Module, inputs: tuple) -> None:
            x = inputs[0]
            variance, mean = torch.var_mean(x, [axis for axis in range(x.dim()) if axis != 1], correction=0)
            n, mean, total = x.numel() // x.shape[1], mean.double(), sums[norm]
            for place, value in enumerate((n, n * mean, n * (variance.double() + mean**2))):
                total[place] = total[place] + value

        with ExitStack() as stack:
            for norm in norms:
                stack.callback(norm.register_forward_pre_hook(add).remove)
            for (x, _), numbers in zip(batches, counters, strict=True):
                with self.subject.frozen(*numbers), torch.no_grad(), _batch_statistics(norms):
                    self.model(x)
        for norm, (n, first, second) in sums.items():
            if n:
                mean = first / n
                norm.running_mean.copy_(mean)
                norm.running_var.copy_((second / n - mean**2).clamp(min=0) * (n / max(1, n - 1)))


@contextmanager
def _batch_statistics(norms: Sequence[_BatchNorm]) -> Iterator[None]:
    before = [(norm.training, norm.track_running_stats) for norm in norms]
    try:
        for norm in norms:
            norm.training, norm.track_running_stats = True, False
        yield
    finally:
        for norm, (training, tracking) in zip(norms, before, strict=True):
            norm.training, norm.track_running_stats = training, tracking
