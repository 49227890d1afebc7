"""ResNet in PyTorch with torchvision's names, written out: torchvision has no build
for the CPU PyTorch that the tests pin."""

import torch
from torch import nn


def conv(inputs, outputs, kernel, stride=1):
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)


def norm(channels):
    return nn.BatchNorm2d(channels, eps=1e-5, momentum=0.1)


class Block(nn.Module):
    def __init__(self, inputs, dim, stride, kind):
        super().__init__()
        outputs = dim * (4 if kind == "bottleneck" else 1)
        self.kind = kind
        if kind == "bottleneck":
            self.conv1, self.bn1 = conv(inputs, dim, 1), norm(dim)
            self.conv2, self.bn2 = conv(dim, dim, 3, stride), norm(dim)
            self.conv3, self.bn3 = conv(dim, outputs, 1), norm(outputs)
        else:
            self.conv1, self.bn1 = conv(inputs, dim, 3, stride), norm(dim)
            self.conv2, self.bn2 = conv(dim, outputs, 3), norm(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                conv(inputs, outputs, 1, stride), norm(outputs)
            )

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.kind == "bottleneck":
            y = self.bn3(self.conv3(torch.relu(y)))
        shortcut = x if self.downsample is None else self.downsample(x)
        return torch.relu(y + shortcut)


class ResNet(nn.Module):
    def __init__(self, stage_sizes=(3, 4, 6, 3), width=64, kind="bottleneck", out=1000):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 7, 2, 3, bias=False), norm(width)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        inputs = width
        for stage, blocks in enumerate(stage_sizes):
            layers = []
            for index in range(blocks):
                stride = 2 if stage and not index else 1
                layers.append(Block(inputs, width * 2**stage, stride, kind))
                inputs = width * 2**stage * (4 if kind == "bottleneck" else 1)
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
        self.stages = len(stage_sizes)
        self.fc = nn.Linear(inputs, out)

    def maps(self, x):
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        out = []
        for stage in range(self.stages):
            x = getattr(self, f"layer{stage + 1}")(x)
            out.append(x)
        return out

    def forward(self, x):
        return self.maps(x)[-1].mean((2, 3))
