"""torchvision's ResNet, as image_encoder/ holds it."""

import torch
from torch import nn


def _conv(inputs, outputs, kernel, stride=1):
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)


class Block(nn.Module):
    """A residual block with torchvision's names."""

    def __init__(self, inputs, dim, stride, kind):
        super().__init__()
        outputs = dim * (4 if kind == "bottleneck" else 1)
        if kind == "bottleneck":
            plan = ((inputs, dim, 1, 1), (dim, dim, 3, stride), (dim, outputs, 1, 1))
        else:
            plan = ((inputs, dim, 3, stride), (dim, outputs, 3, 1))
        for number, (*channels, kernel, step) in enumerate(plan, start=1):
            setattr(self, f"conv{number}", _conv(*channels, kernel, step))
            setattr(self, f"bn{number}", nn.BatchNorm2d(channels[1]))
        self.convolutions = len(plan)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                _conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)
            )

    def forward(self, x):
        y = x
        for number in range(1, self.convolutions + 1):
            y = getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(y))
            if number < self.convolutions:
                y = torch.relu(y)
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """torchvision's ResNet without its classifier, of any depth and width."""

    def __init__(self, stage_sizes, width, block):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        inputs, self.stages = width, len(stage_sizes)
        for stage, blocks in enumerate(stage_sizes):
            layers = []
            for index in range(blocks):
                stride = 2 if stage and not index else 1
                layers.append(Block(inputs, width * 2**stage, stride, block))
                inputs = width * 2**stage * (4 if block == "bottleneck" else 1)
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))

    def forward(self, x):
        """The map [B, C, H, W] of each stage."""
        x, maps = self.maxpool(torch.relu(self.bn1(self.conv1(x)))), []
        for stage in range(self.stages):
            x = getattr(self, f"layer{stage + 1}")(x)
            maps.append(x)
        return maps
