"""Convolutions without bias, blurs, and the smoothing and classifier blocks of the zoo."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ext
from data_cache import InputError
from models.registry import Options


def conv(in_channels: int, out_channels: int, size: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A bias-free convolution that keeps the size at stride 1 (odd kernels)."""
    return nn.Conv2d(in_channels, out_channels, size, stride, padding=size // 2, groups=groups, bias=False)


class Blur(nn.Module):
    """Depthwise blur with the outer product of a 1-D kernel, height and width kept (Zhang 2019).

    The kernel is stored as a parameter that needs no gradient, (C, 1, k, k), as the published checkpoints do.
    """

    def __init__(self, channels: int, kernel: tuple[int, ...], pad_mode: str):
        super().__init__()
        line = torch.tensor(kernel, dtype=torch.float32)
        box = torch.outer(line, line) / line.sum() ** 2
        self.filter = nn.Parameter(box.repeat(channels, 1, 1, 1), requires_grad=False)
        before, after = (len(kernel) - 1) // 2, len(kernel) // 2
        self.padding = (before, after, before, after)
        self.pad_mode = "constant" if pad_mode == "zero" else pad_mode

    def forward(self, x: Tensor) -> Tensor:
        """Blur (N, C, H, W)."""
        return F.conv2d(F.pad(x, self.padding, mode=self.pad_mode), self.filter, groups=x.shape[1])


def is_growing_box(sfilter: tuple[int, ...], pad_mode: str) -> bool:
    """Whether these settings mean the default box, which grows height and width by one."""
    return tuple(sfilter) == (1, 1) and pad_mode in ("constant", "zero")


def blur(channels: int, sfilter: tuple[int, ...] = (1, 1), pad_mode: str = "constant") -> nn.Module:
    """The published blur: the growing 2x2 box for (1, 1) with zero padding, else a size-keeping `Blur`."""
    if is_growing_box(sfilter, pad_mode):
        return nn.AvgPool2d(kernel_size=2, stride=1, padding=1)
    return Blur(channels, tuple(sfilter), pad_mode)


class SmoothingBlock(nn.Module):
    """A bounded activation, then a blur; subclasses say which. `temp` and `thr` bound the activation."""

    default_temp = 10.0
    normalizes = False
    blurs = True

    def __init__(
        self,
        channels: int,
        temp: float | None = None,
        thr: float = 6.0,
        sfilter: tuple[int, ...] = (1, 1),
        pad_mode: str = "constant",
    ):
        super().__init__()
        self.temp = self.default_temp if temp is None else temp
        self.thr = thr
        if self.normalizes:
            self.bn = nn.BatchNorm2d(channels)
        if self.blurs:
            self.blur = blur(channels, sfilter, pad_mode)

    def activate(self, x: Tensor) -> Tensor:
        """The activation, elementwise or over channels."""
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Smooth (N, C, H, W)."""
        if self.normalizes:
            x = self.bn(x)
        x = self.activate(x)
        return self.blur(x) if self.blurs else x

    def extra_repr(self) -> str:
        """The bounds."""
        return f"temp={self.temp:g}, thr={self.thr:g}"


class TanhBlock(SmoothingBlock):
    """relu(t tanh(x / t)), no blur."""

    blurs = False

    def activate(self, x: Tensor) -> Tensor:
        """relu(t tanh(x / t))."""
        return torch.relu(self.temp * torch.tanh(x / self.temp))


class TanhBlurBlock(TanhBlock):
    """relu(t tanh(x / t)), then the blur: the paper's smoothing, one fused operator for the default box."""

    blurs = True

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        try:
            ext.status()
        except RuntimeError as error:  # LANDSCOPE_EXT asks for what is not there
            raise InputError(str(error)) from error

    def forward(self, x: Tensor) -> Tensor:
        """Smooth (N, C, H, W); the default box gives (N, C, H + 1, W + 1)."""
        if isinstance(self.blur, Blur):
            return super().forward(x)
        return ext.smooth(self.bn(x) if self.normalizes else x, self.temp)


def smoothing_path(model: nn.Module, device: torch.device) -> str | None:
    """Which path computes the smoothing operator of a network on a device, fused or eager; None if it has none."""
    from ext.smoothing import DEVICES

    if not any(isinstance(module, TanhBlurBlock) for module in model.modules()):
        return None
    return "fused" if device.type in DEVICES else "eager"


class BNTanhBlurBlock(TanhBlurBlock):
    """BatchNorm before `TanhBlurBlock`."""

    normalizes = True


class SigmoidBlurBlock(SmoothingBlock):
    """relu(4 t (sigmoid(x / t) - 1/2)), then the blur."""

    def activate(self, x: Tensor) -> Tensor:
        """relu(4 t (sigmoid(x / t) - 1/2))."""
        return torch.relu(4 * self.temp * (torch.sigmoid(x / self.temp) - 0.5))


class SoftmaxBlurBlock(SmoothingBlock):
    """t softmax(x / t) over channels, then the blur."""

    def activate(self, x: Tensor) -> Tensor:
        """Scaled softmax over channels."""
        return self.temp * torch.softmax(x / self.temp, dim=1)


class ReLuBlurBlock(SmoothingBlock):
    """clamp(x, 0, temp), then the blur."""

    default_temp = 6.0

    def activate(self, x: Tensor) -> Tensor:
        """Clamp to [0, temp]."""
        return x.clamp(0.0, self.temp)


class ReLuBlock(SmoothingBlock):
    """clamp(x, 0, thr), no blur."""

    blurs = False

    def activate(self, x: Tensor) -> Tensor:
        """Clamp to [0, thr]."""
        return x.clamp(0.0, self.thr)


class ScalingBlurBlock(SmoothingBlock):
    """x / temp, then the blur."""

    default_temp = 5.0

    def activate(self, x: Tensor) -> Tensor:
        """Divide by temp."""
        return x / self.temp


class ScalingBlock(ScalingBlurBlock):
    """x / temp, no blur."""

    blurs = False


class BNBlurBlock(SmoothingBlock):
    """BatchNorm, ReLU, then the blur."""

    normalizes = True

    def activate(self, x: Tensor) -> Tensor:
        """Rectify."""
        return torch.relu(x)


class BlurBlock(SmoothingBlock):
    """The blur alone."""


class _MLP(nn.Module):
    """Three dense layers with ordinary dropout between them (off in eval mode, so not Monte Carlo)."""

    def __init__(self, features: int, num_classes: int, hidden: int):
        super().__init__()
        self.dense1 = nn.Linear(features, hidden)
        self.dropout1 = nn.Dropout(0.5)
        self.dense2 = nn.Linear(hidden, hidden)
        self.dropout2 = nn.Dropout(0.5)
        self.dense3 = nn.Linear(hidden, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Classify (N, C, H, W) by all its C*H*W values."""
        x = self.dropout1(torch.relu(self.dense1(x.flatten(1))))
        return self.dense3(self.dropout2(torch.relu(self.dense2(x))))


class MLPBlock(_MLP):
    """The dense classifier of AlexNet and VGG; `hidden` is 4096 in the paper."""


class GAPMLPBlock(_MLP):
    """Global average pooling, then three dense layers."""

    def forward(self, x: Tensor) -> Tensor:
        """Classify (N, C, H, W)."""
        return super().forward(_global_average(x))


class GAPBlock(nn.Module):
    """Global average pooling, then one dense layer."""

    def __init__(self, features: int, num_classes: int):
        super().__init__()
        self.dense = nn.Linear(features, num_classes)

    def pool(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C)."""
        return _global_average(x)

    def forward(self, x: Tensor) -> Tensor:
        """Classify (N, C, H, W)."""
        return self.dense(self.pool(x))


class BNGAPBlock(GAPBlock):
    """BatchNorm and ReLU before `GAPBlock`: the end of a pre-activation network."""

    def __init__(self, features: int, num_classes: int):
        nn.Module.__init__(self)
        self.bn = nn.BatchNorm2d(features)
        self.dense = nn.Linear(features, num_classes)

    def pool(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C)."""
        return _global_average(torch.relu(self.bn(x)))


class GMaxPBlock(GAPBlock):
    """Global max pooling, then one dense layer."""

    def pool(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C)."""
        return F.adaptive_max_pool2d(x, 1).flatten(1)


class GMedPBlock(GAPBlock):
    """Global median pooling, the floor(HW/2)-th largest value, then one dense layer."""

    def pool(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C)."""
        x = x.flatten(2)
        return torch.topk(x, k=max(1, x.shape[2] // 2), dim=2)[0][:, :, -1]


class GAPClipBlock(GAPBlock):
    """Global average pooling, t (sigmoid(x / t) - 1/2), then one dense layer."""

    def __init__(self, features: int, num_classes: int, temp: float | None = None):
        super().__init__(features, num_classes)
        self.temp = 2.0 if temp is None else temp

    def pool(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C)."""
        return self.temp * (torch.sigmoid(_global_average(x) / self.temp) - 0.5)


def _global_average(x: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(x, 1).flatten(1)


def _by_name(*classes: type[nn.Module]) -> dict[str, type[nn.Module]]:
    return {cls.__name__: cls for cls in classes}


SMOOTHING_BLOCKS = _by_name(
    TanhBlurBlock, BNTanhBlurBlock, TanhBlock, SigmoidBlurBlock, SoftmaxBlurBlock, ReLuBlurBlock,
    ScalingBlurBlock, ScalingBlock, ReLuBlock, BNBlurBlock, BlurBlock,
)  # fmt: skip
CLASSIFIER_BLOCKS = _by_name(
    GAPBlock, BNGAPBlock, MLPBlock, GMaxPBlock, GMedPBlock, GAPClipBlock, GAPMLPBlock
)  # fmt: skip


def _lookup(kind: str, table: dict[str, type[nn.Module]], name: str) -> type[nn.Module]:
    if not isinstance(name, str) or name not in table:
        raise InputError(f"there is no {kind} block named {name!r}; there are {', '.join(table)}.")
    return table[name]


def smoothing_stages(options: Options, channels: list[int], counts: tuple[int, ...]) -> list[nn.Sequential]:
    """For each stage, a sequence of `counts[i]` smoothing blocks over `channels[i]` channels."""
    if len(counts) != len(channels):
        raise InputError(f"num_sblocks needs {len(channels)} numbers, one a stage, not {len(counts)}.")
    block = _lookup("smoothing", SMOOTHING_BLOCKS, options.sblock)
    settings = options.temp, options.thr, options.sfilter, options.pad_mode
    return [
        nn.Sequential(*(block(width, *settings) for _ in range(count)))
        for width, count in zip(channels, counts, strict=True)
    ]


def classifier(
    options: Options, channels: int, num_classes: int, pooling: list[nn.Module], pooled_size: int
) -> nn.Sequential:
    """The classifier; `MLPBlock` alone comes after `pooling`, which leaves pooled_size^2 positions."""
    block = _lookup("classifier", CLASSIFIER_BLOCKS, options.cblock)
    if block is MLPBlock:
        return nn.Sequential(*pooling, MLPBlock(channels * pooled_size**2, num_classes, options.hidden))
    if block is GAPMLPBlock:
        return nn.Sequential(GAPMLPBlock(channels, num_classes, options.hidden))
    if block is GAPClipBlock:
        return nn.Sequential(GAPClipBlock(channels, num_classes, options.temp))
    return nn.Sequential(block(channels, num_classes))


class MCDropout(nn.Module):
    """Dropout that stays on at test time: each forward pass is one sample of the network.

    No parameters and no buffers, so checkpoints with and without it have the same keys.
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Drop elements with probability `rate` and rescale the others."""
        return F.dropout(x, p=self.rate, training=True)

    def extra_repr(self) -> str:
        """The rate."""
        return f"rate={self.rate:g}"


def mc_dropout(monte_carlo: bool, rate: float | None, default: float) -> nn.Module:
    """`MCDropout` at `rate` (or `default`) for Monte Carlo variants, else the identity."""
    if not monte_carlo:
        return nn.Identity()
    return MCDropout(default if rate is None else rate)
