"""ResNet (He et al. 2016), its pre-activation form, ResNeXt and Wide ResNet, plain or with MC dropout and smoothing."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from data_cache import InputError
from models.layers import classifier, conv, mc_dropout, smoothing_stages
from models.registry import Options, register

_BLOCKS_PER_STAGE = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


class _Block(nn.Module):
    """Common to all residual blocks: the convolutions' plan and the shortcut."""

    def __init__(self, in_channels: int, channels: int, stride: int, bottleneck: bool, options: Options):
        super().__init__()
        groups, width_per_group = options.groups, options.width_per_group
        inner = int(channels * (width_per_group / 64)) * groups
        if inner == 0:
            raise InputError(f"{channels} channels in {groups} groups leave none for each; give a larger width.")
        if not bottleneck and (groups, width_per_group) != (1, 64):
            raise InputError("depths 18 and 34 take groups=1 and width_per_group=64 only.")
        self.out_channels = channels * (4 if bottleneck else 1)
        self.plan = (  # (in, out, kernel size, stride, groups) of each convolution
            [
                (in_channels, inner, 1, 1, 1),
                (inner, inner, 3, stride, groups),
                (inner, self.out_channels, 1, 1, 1),
            ]
            if bottleneck
            else [(in_channels, inner, 3, stride, 1), (inner, self.out_channels, 3, 1, 1)]
        )
        self.projects = stride != 1 or in_channels != self.out_channels

    def _shortcut(self, in_channels: int, stride: int, normalized: bool) -> nn.Sequential:
        if not self.projects:
            return nn.Sequential()
        norm = [nn.BatchNorm2d(self.out_channels)] if normalized else []
        return nn.Sequential(conv(in_channels, self.out_channels, 1, stride), *norm)


class ResidualBlock(_Block):
    """relu(shortcut(x) + convolutions, each normalised); dropout stands before the last convolution."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int,
        bottleneck: bool,
        monte_carlo: bool,
        options: Options,
    ):
        super().__init__(in_channels, channels, stride, bottleneck, options)
        self.shortcut = self._shortcut(in_channels, stride, normalized=True)
        self.dropout = mc_dropout(monte_carlo, options.rate, 0.3)
        for i, (source, target, size, step, groups) in enumerate(self.plan, start=1):
            setattr(self, f"conv{i}", conv(source, target, size, step, groups))
            setattr(self, f"bn{i}", nn.BatchNorm2d(target))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) to (N, C_out, H / stride, W / stride)."""
        skip, last = self.shortcut(x), len(self.plan)
        for i in range(1, last):
            x = torch.relu(getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(x)))
        x = getattr(self, f"bn{last}")(getattr(self, f"conv{last}")(self.dropout(x)))
        return torch.relu(skip + x)


class PreActivationBlock(_Block):
    """shortcut + convolutions, each after BatchNorm and ReLU (He et al. 2016b); dropout before the last one.

    A projecting shortcut starts from the activated input. Bottlenecks with MC dropout normalise it, the other
    blocks do not: an irregularity of the published networks that their checkpoints depend on.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int,
        bottleneck: bool,
        monte_carlo: bool,
        options: Options,
    ):
        super().__init__(in_channels, channels, stride, bottleneck, options)
        self.shortcut = self._shortcut(in_channels, stride, normalized=monte_carlo and bottleneck)
        self.dropout = mc_dropout(monte_carlo, options.rate, 0.3)
        for i, (source, target, size, step, groups) in enumerate(self.plan, start=1):
            setattr(self, f"bn{i}", nn.BatchNorm2d(source))
            setattr(self, f"conv{i}", conv(source, target, size, step, groups))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) to (N, C_out, H / stride, W / stride)."""
        activated = torch.relu(self.bn1(x))
        skip = self.shortcut(activated if self.projects else x)
        x, last = self.conv1(activated), len(self.plan)
        for i in range(2, last + 1):
            x = torch.relu(getattr(self, f"bn{i}")(x))
            x = getattr(self, f"conv{i}")(self.dropout(x) if i == last else x)
        return skip + x


class ResNet(nn.Module):
    """A stem, four stages each followed by its smoothing blocks, and a classifier."""

    block: type[_Block] = ResidualBlock
    smoothed_stages = (1, 1, 1, 1)

    def __init__(self, depth: int, monte_carlo: bool, smoothing: bool, num_classes: int, options: Options):
        super().__init__()
        self.layer0 = self._stem(options)
        channels, stage_channels = options.width, []
        for stage, blocks in enumerate(_BLOCKS_PER_STAGE[depth], start=1):
            layers: list[_Block] = []
            for i in range(blocks):
                stride, width = 2 if stage > 1 and i == 0 else 1, options.width * 2 ** (stage - 1)
                layers.append(self.block(channels, width, stride, depth >= 50, monte_carlo, options))
                channels = layers[-1].out_channels
            setattr(self, f"layer{stage}", nn.Sequential(*layers))
            stage_channels.append(channels)
        counts = self.smoothed_stages if smoothing else options.num_sblocks or (0, 0, 0, 0)
        for stage, blocks in enumerate(smoothing_stages(options, stage_channels, counts), start=1):
            setattr(self, f"smooth{stage}", blocks)
        self.classifier = classifier(options, channels, num_classes, [nn.AdaptiveAvgPool2d(7)], pooled_size=7)

    def _stem(self, options: Options) -> nn.Sequential:
        first = conv(3, options.width, 7, stride=2) if options.stem else conv(3, options.width, 3)
        pool = [nn.MaxPool2d(kernel_size=3, stride=2, padding=1)] if options.stem else []
        return nn.Sequential(first, *self._stem_norm(options.width), *pool)

    @staticmethod
    def _stem_norm(width: int) -> list[nn.Module]:
        return [nn.BatchNorm2d(width), nn.ReLU()]

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) images to (N, num_classes) logits."""
        x = self.layer0(x)
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
            x = getattr(self, f"smooth{stage}")(x)
        return self.classifier(x)


class PreActivationResNet(ResNet):
    """ResNet of pre-activation blocks: no norm in the stem, none smoothed after the last stage."""

    block = PreActivationBlock
    smoothed_stages = (1, 1, 1, 0)

    @staticmethod
    def _stem_norm(width: int) -> list[nn.Module]:
        return []


register("resnet", (18, 34, 50, 101, 152), cblock="GAPBlock")(ResNet)
register("preresnet", (18, 34, 50, 101, 152), cblock="BNGAPBlock")(PreActivationResNet)
register("resnext", (50,), cblock="GAPBlock", groups=32, width_per_group=4)(ResNet)
register("resnext", (101,), cblock="GAPBlock", groups=32, width_per_group=8)(ResNet)
register("wideresnet", (50, 101), cblock="GAPBlock", width_per_group=128)(ResNet)
