"""The classifiers f(·; θ). Images come in as (N, C, H, W) in [0, 1]; logits (N, classes) come out.

Whatever normalisation a classifier wants is its own first layer, so that an attack's ε always
means the same thing: a fraction of the pixel range.
"""

import math
import re

import torch.nn.functional as F
from torch import Tensor, nn

from l2lkit.errors import InputError
from l2lkit.game.cpu import pooled
from l2lkit.game.resnets import LeNet5, ResNet, conv3x3, resnet20


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
    carries one extra, never-used block; it is left out. `stride` is that of the first convolution:
    with 2 the network works on a quarter of the pixels, and a small run takes a third of the time.
    """

    def __init__(self, depth: int, width: int, classes: int, channels: int = 3, stride: int = 1):
        super().__init__()
        n, rest = divmod(depth - 4, 6)
        if rest or n < 1 or width < 1:
            raise InputError(
                f"WRN-{depth}-{width} does not exist: the depth must be 10, 16, 22, 28, 34, … "
                "(6n + 4) and the width at least 1."
            )
        layers: list[nn.Module] = [conv3x3(channels, 16, stride)]
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


def make_classifier(name: str, classes: int, channels: int = 3, size: int = 32) -> nn.Module:
    """Build a classifier by name: `wrn-34-10` (any 6n+4 depth, any width), with `-stride2` one
    whose first convolution halves the images, `resnet-18`, `resnet-20` or `lenet-5`.

    `resnet-20` on colour images normalises with ImageNet's mean and deviation, as the L2L-DA code
    does on CIFAR-10; all others take the image as it is, as the L2L code does.

    Raises InputError for an unknown name or a size the network cannot take.
    """
    if match := re.fullmatch(r"wrn-(\d+)-(\d+)(-stride2)?", name):
        stride = 2 if match[3] else 1
        return WideResNet(int(match[1]), int(match[2]), classes, channels, stride)
    if name == "resnet-18":
        return ResNet((64, 128, 256, 512), 2, "projection", classes, channels)
    if name == "resnet-20":
        return resnet20(classes, channels)
    if name == "lenet-5":
        return LeNet5(classes, channels, size)
    raise InputError(
        f"Unknown classifier '{name}': choose wrn-DEPTH-WIDTH (as wrn-34-10 or wrn-10-1-stride2), "
        "resnet-18, resnet-20 or lenet-5."
    )
