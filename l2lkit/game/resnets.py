"""The other classifiers: ResNet-18, ResNet-20 and LeNet-5."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l2lkit.errors import InputError
from l2lkit.game.cpu import pooled

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def conv3x3(cin: int, cout: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(cin, cout, 3, stride, padding=1, bias=False)


class Normalise(nn.Module):
    """Subtract a mean and divide by a deviation, channel by channel."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class BasicBlock(nn.Module):
    """Convolution, batch norm, ReLU, twice (He et al. 2016). The shortcut is a 1×1 convolution
    ("projection") or, as in the original CIFAR ResNets, subsampling with zero channels added
    ("pad", their option A)."""

    def __init__(self, cin: int, cout: int, stride: int, shortcut: str):
        super().__init__()
        self.conv1, self.bn1 = conv3x3(cin, cout, stride), nn.BatchNorm2d(cout)
        self.conv2, self.bn2 = conv3x3(cout, cout), nn.BatchNorm2d(cout)
        self.stride, self.grow = stride, cout - cin
        self.project = None
        if shortcut == "projection" and (stride > 1 or cin != cout):
            self.project = nn.Sequential(
                nn.Conv2d(cin, cout, 1, stride, bias=False), nn.BatchNorm2d(cout)
            )

    def forward(self, x: Tensor) -> Tensor:
        if self.project is not None:
            skip = self.project(x)
        else:
            skip = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.grow))
        h = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(skip + self.bn2(self.conv2(h)), inplace=True)


class ResNet(nn.Module):
    """A CIFAR-style ResNet: 3×3 stem, no max-pooling, one stage for each entry of `widths`."""

    def __init__(
        self, widths: tuple[int, ...], blocks: int, shortcut: str, classes: int, channels: int
    ):
        super().__init__()
        layers: list[nn.Module] = [
            conv3x3(channels, widths[0]),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(inplace=True),
        ]
        cin = widths[0]
        for stage, cout in enumerate(widths):
            for block in range(blocks):
                layers.append(BasicBlock(cin, cout, 2 if stage and not block else 1, shortcut))
                cin = cout
        self.features = nn.Sequential(*layers)
        self.linear = nn.Linear(cin, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(pooled(self.features(x)))


class LeNet5(nn.Module):
    """LeNet-5 with ReLU and max-pooling, as the L2L-DA code has it, for 28×28 (padded by the
    first layer, as usual on MNIST) or 32×32 images."""

    def __init__(self, classes: int, channels: int, size: int):
        super().__init__()
        if size not in (28, 32):
            raise InputError(f"LeNet-5 takes 28×28 or 32×32 images, not {size}×{size}.")
        self.net = nn.Sequential(
            nn.Conv2d(channels, 6, 5, padding=2 if size == 28 else 0),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(400, 120),
            nn.ReLU(),
            nn.Linear(120, 84),
            nn.ReLU(),
            nn.Linear(84, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def resnet20(classes: int, channels: int) -> nn.Module:
    """ResNet-20; on colour images it normalises as the L2L-DA code does."""
    net = ResNet((16, 32, 64), 3, "pad", classes, channels)
    return nn.Sequential(Normalise(IMAGENET_MEAN, IMAGENET_STD), net) if channels == 3 else net
