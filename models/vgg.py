"""VGG with BatchNorm (Simonyan & Zisserman 2015), plain or pre-activation, with MC dropout and smoothing."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.layers import classifier, conv, mc_dropout, smoothing_stages
from models.registry import Options, register

_BLOCKS_PER_STAGE = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


class ConvBlock(nn.Module):
    """dropout(relu(norm(conv(x))))."""

    def __init__(self, in_channels: int, out_channels: int, monte_carlo: bool, options: Options):
        super().__init__()
        self.conv = conv(in_channels, out_channels, 3)
        self.bn = nn.BatchNorm2d(out_channels)
        self.dropout = mc_dropout(monte_carlo, options.rate, 0.3)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) to (N, C_out, H, W)."""
        return self.dropout(torch.relu(self.bn(self.conv(x))))


class PreActivationConvBlock(nn.Module):
    """dropout(conv(relu(norm(x)))); the first one acts on the image itself, as in the published network."""

    def __init__(self, in_channels: int, out_channels: int, monte_carlo: bool, options: Options):
        super().__init__()
        self.bn = nn.BatchNorm2d(in_channels)
        self.conv = conv(in_channels, out_channels, 3)
        self.dropout = mc_dropout(monte_carlo, options.rate, 0.3)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) to (N, C_out, H, W)."""
        return self.dropout(self.conv(torch.relu(self.bn(x))))


class VGG(nn.Module):
    """Five stages, a max pooling before each but the first, smoothing after each, and a classifier."""

    block: type[nn.Module] = ConvBlock

    def __init__(self, depth: int, monte_carlo: bool, smoothing: bool, num_classes: int, options: Options):
        super().__init__()
        widths = [options.width * factor for factor in (1, 2, 4, 8, 8)]
        channels = 3
        for stage, (width, blocks) in enumerate(zip(widths, _BLOCKS_PER_STAGE[depth], strict=True)):
            layers: list[nn.Module] = [nn.MaxPool2d(2)] if stage else []
            for _ in range(blocks):
                layers.append(self.block(channels, width, monte_carlo, options))
                channels = width
            setattr(self, f"layer{stage}", nn.Sequential(*layers))
        counts = (1, 1, 1, 1, 1) if smoothing else options.num_sblocks or (0, 0, 0, 0, 0)
        for stage, smoothers in enumerate(smoothing_stages(options, widths, counts)):
            setattr(self, f"smooth{stage}", smoothers)
        pooling = [nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(7)]
        self.classifier = classifier(options, channels, num_classes, pooling, pooled_size=7)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) images to (N, num_classes) logits."""
        for stage in range(5):
            x = getattr(self, f"layer{stage}")(x)
            x = getattr(self, f"smooth{stage}")(x)
        return self.classifier(x)


class PreActivationVGG(VGG):
    """VGG of pre-activation blocks."""

    block = PreActivationConvBlock


_WITHOUT = ("stem", "groups", "width_per_group")
register("vgg", (11, 13, 16, 19), without=_WITHOUT, cblock="MLPBlock")(VGG)
register("prevgg", (11, 13, 16, 19), without=_WITHOUT, cblock="MLPBlock")(PreActivationVGG)
