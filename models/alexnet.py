"""AlexNet (Krizhevsky 2014) without biases and norms, plain or with MC dropout and smoothing."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.layers import classifier, mc_dropout, smoothing_stages
from models.registry import Options, register


class ConvBlock(nn.Module):
    """dropout(relu(conv(x)))."""

    def __init__(self, conv: nn.Conv2d, monte_carlo: bool, options: Options):
        super().__init__()
        self.conv = conv
        self.dropout = mc_dropout(monte_carlo, options.rate, 0.1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) to (N, C_out, H', W')."""
        return self.dropout(torch.relu(self.conv(x)))


@register("alexnet", (None,), without=("groups", "width_per_group"), cblock="MLPBlock")
class AlexNet(nn.Module):
    """Three stages, a max pooling before each but the first, smoothing after each, and a classifier."""

    def __init__(self, depth: None, monte_carlo: bool, smoothing: bool, num_classes: int, options: Options):
        super().__init__()

        def block(source: int, target: int, size: int, stride: int = 1, padding: int | None = None) -> ConvBlock:
            padding = size // 2 if padding is None else padding
            convolution = nn.Conv2d(source, target, size, stride, padding, bias=False)
            return ConvBlock(convolution, monte_carlo, options)

        # published widths 64, 192, 384, 256, 256
        first, second, third, last = (options.width * factor for factor in (1, 3, 6, 4))

        def pool() -> nn.MaxPool2d:
            return nn.MaxPool2d(3 if options.stem else 2, stride=2)

        self.layer0 = nn.Sequential(block(3, first, 11, 4, 2) if options.stem else block(3, first, 3, 2))
        self.layer1 = nn.Sequential(pool(), block(first, second, 5))
        self.layer2 = nn.Sequential(pool(), block(second, third, 3), block(third, last, 3), block(last, last, 3))
        counts = (1, 1, 1) if smoothing else options.num_sblocks or (0, 0, 0)
        for stage, smoothers in enumerate(smoothing_stages(options, [first, second, last], counts)):
            setattr(self, f"smooth{stage}", smoothers)
        size = 6 if options.stem else 2
        self.classifier = classifier(options, last, num_classes, [pool(), nn.AdaptiveAvgPool2d(size)], size)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) images to (N, num_classes) logits."""
        for stage in range(3):
            x = getattr(self, f"layer{stage}")(x)
            x = getattr(self, f"smooth{stage}")(x)
        return self.classifier(x)
