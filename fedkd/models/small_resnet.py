"""Small residual networks for images of 28 to 64 px: ResNet-8 and ResNet-10.

Tensor names follow torchvision's ResNet (``conv1``, ``bn1``, ``layer1.0.conv1`` ...).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm and a shortcut (He et al., CVPR 2016)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, in_channels, h, w) to (batch, out_channels, h/stride, w/stride)."""
        out = torch.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return torch.relu(out + self.downsample(x))


class SmallResNet(nn.Module):
    """Residual network with a 3x3 stem at full resolution and one block per stage.

    The first stage keeps the resolution, each later one halves it.

    Args:
        widths: Channels of each stage.
        all_stages: Features are the pooled outputs of all stages, concatenated, instead of the
            last stage's alone. Shallow statistics help a frozen encoder on other domains.
    """

    def __init__(self, widths: Sequence[int], all_stages: bool = False) -> None:
        super().__init__()
        self.all_stages = all_stages
        self.widths = tuple(widths)
        self.num_stages = len(widths)
        self.num_features = sum(widths) if all_stages else widths[-1]
        self.conv1 = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        channels = widths[0]
        for number, width in enumerate(widths, start=1):
            block = BasicBlock(channels, width, stride=1 if number == 1 else 2)
            setattr(self, f"layer{number}", nn.Sequential(block))
            channels = width
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def pooled_stages(self, x: Tensor) -> list[Tensor]:
        """Mean over space of each stage's output: one (batch, width) tensor per stage."""
        x = torch.relu(self.bn1(self.conv1(x)))
        pooled = []
        for number in range(1, self.num_stages + 1):
            x = getattr(self, f"layer{number}")(x)
            pooled.append(x.mean((2, 3)))
        return pooled

    def forward(self, x: Tensor) -> Tensor:
        """Features (batch, num_features) of normalised images (batch, 3, height, width)."""
        pooled = self.pooled_stages(x)
        return torch.cat(pooled, dim=1) if self.all_stages else pooled[-1]


def num_deepest(backbone: nn.Module, num_features: int) -> int:
    """How many features, the last ones, are of the last stage: what a contrastive head takes."""
    return backbone.widths[-1] if isinstance(backbone, SmallResNet) else num_features


def resnet8() -> SmallResNet:
    """ResNet-8: three stages of 16, 32 and 64 channels, 64 features, 0.08 M parameters."""
    return SmallResNet((16, 32, 64))


def resnet10() -> SmallResNet:
    """ResNet-10: four stages of 32, 64, 128, 256 channels, all pooled: 480 features, 1.2 M."""
    return SmallResNet((32, 64, 128, 256), all_stages=True)
