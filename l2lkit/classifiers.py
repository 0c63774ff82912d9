"""The classifiers f(·; θ). Images come in as (N, C, H, W) in [0, 1]; logits (N, classes) come out.

Whatever normalisation a classifier wants is its own first layer, so that an attack's ε always
means the same thing: a fraction of the pixel range.
"""

import math
import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l2lkit.errors import InputError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def conv3x3(cin: int, cout: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(cin, cout, 3, stride, padding=1, bias=False)


def pooled(x: Tensor) -> Tensor:
    """The mean over the pixels, (N, C, H, W) -> (N, C). The way back through `Tensor.mean` is a
    gradient with strides of zero, for which a CPU's next kernel leaves its fast path: 3% of an
    input gradient of WRN-10-1."""
    return F.avg_pool2d(x, x.shape[-2:]).flatten(1)


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


class PreActivationBlock(nn.Module):
    """Batch norm, ReLU, convolution, twice; the shortcut leaves after the first activation when
    it must change shape (Zagoruyko and Komodakis 2016)."""

    def __init__(self, cin: int, cout: int, stride: int):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(cin), conv3x3(cin, cout, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(cout), conv3x3(cout, cout)
        same = cin == cout and stride == 1
        self.shortcut = None if same else nn.Conv2d(cin, cout, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn1(x), inplace=True)
        skip = x if self.shortcut is None else self.shortcut(h)
        return skip + self.conv2(F.relu(self.bn2(self.conv1(h)), inplace=True))


class WideResNet(nn.Module):
    """WRN-depth-width with depth = 6n + 4: three stages of n pre-activation blocks.

    WRN-34-10 is the classifier of the ICLR 2020 version. The older versions name theirs
    "WRN-4-32", width 4 and 32 layers; 6n + 4 has no 32, and 34 (n = 5) is the depth the field
    builds when it says so, hence WRN-34-4 here. The TRADES code that the authors start from
    carries one extra, never-used block; it is left out.
    """

    def __init__(self, depth: int, width: int, classes: int, channels: int = 3):
        super().__init__()
        n, rest = divmod(depth - 4, 6)
        if rest or n < 1 or width < 1:
            raise InputError(
                f"WRN-{depth}-{width} does not exist: the depth must be 10, 16, 22, 28, 34, … "
                "(6n + 4) and the width at least 1."
            )
        layers: list[nn.Module] = [conv3x3(channels, 16)]
        cin = 16
        for stage, cout in enumerate((16 * width, 32 * width, 64 * width)):
            for block in range(n):
                stride = 2 if stage > 0 and block == 0 else 1
                layers.append(PreActivationBlock(cin, cout, stride))
                cin = cout
        self.features = nn.Sequential(*layers, nn.BatchNorm2d(cin), nn.ReLU(inplace=True))
        self.linear = nn.Linear(cin, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(
                    module.weight,
                    0,
                    math.sqrt(2 / (module.kernel_size[0] ** 2 * module.out_channels)),
                )
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(pooled(self.features(x)))


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
            skip = F.pad(
                x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.grow)
            )
        h = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(skip + self.bn2(self.conv2(h)), inplace=True)


class ResNet(nn.Module):
    """A CIFAR-style ResNet: 3×3 stem, no max-pooling, one stage for each entry of `widths`."""

    def __init__(
        self, widths: tuple[int, ...], blocks: int, shortcut: str, classes: int, channels: int
    ):
        super().__init__()
        layers: list[nn.Module] = [
            conv3x3(channels, widths[0]), nn.BatchNorm2d(widths[0]), nn.ReLU(inplace=True)
        ]  # fmt: skip
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
            nn.Conv2d(channels, 6, 5, padding=2 if size == 28 else 0), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, classes),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def make_classifier(name: str, classes: int, channels: int = 3, size: int = 32) -> nn.Module:
    """Build a classifier by name: `wrn-34-10` (any 6n+4 depth, any width), `resnet-18`,
    `resnet-20` or `lenet-5`.

    `resnet-20` on colour images normalises with ImageNet's mean and deviation, as the L2L-DA code
    does on CIFAR-10; all others take the image as it is, as the L2L code does.

    Raises InputError for an unknown name or a size the network cannot take.
    """
    if match := re.fullmatch(r"wrn-(\d+)-(\d+)", name):
        return WideResNet(int(match[1]), int(match[2]), classes, channels)
    if name == "resnet-18":
        return ResNet((64, 128, 256, 512), 2, "projection", classes, channels)
    if name == "resnet-20":
        net = ResNet((16, 32, 64), 3, "pad", classes, channels)
        return nn.Sequential(Normalise(IMAGENET_MEAN, IMAGENET_STD), net) if channels == 3 else net
    if name == "lenet-5":
        return LeNet5(classes, channels, size)
    raise InputError(
        f"Unknown classifier '{name}': choose wrn-DEPTH-WIDTH (as wrn-34-10), resnet-18, "
        "resnet-20 or lenet-5."
    )
