"""The networks g of the learned attackers, as the papers print them."""

import torch
from torch import Tensor, nn

from l2lkit.errors import InputError, check_positive
from l2lkit.game.cpu import PReLU
from l2lkit.game.unet import FOLDED, UNETS, UNet

WIDE = {  # channels of the blocks, and whether a norm follows the last
    "v2-wide": ((64, 128, 256, 128, 64), True),
    "iclr2020": ((64, 128, 256, 128), False),
    "iclr2020-norm": ((64, 128, 256, 128), True),
}
SLIM = {  # a norm and ReLU after the deconvolution, a learnable scalar before tanh
    "v2-slim": (False, False),
    "iclr2020-slim": (True, False),
    "code-slim": (True, True),
}
NETWORKS = ("2018", *SLIM, *WIDE, *(name + FOLDED for name in WIDE), *UNETS)


class ResBlock(nn.Module):
    """The attackers' residual block (ICLR 2020, Figure 7): twice batch norm without affine
    parameters, PReLU and a 3×3 convolution; a 1×1 convolution on the skip path when the number
    of channels changes. Initialised as the authors' code does. The second version says only that
    its blocks are those of Miyato et al. (2018); these stand in for them."""

    def __init__(self, cin: int, cout: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(cin, affine=False),
            PReLU(),
            nn.Conv2d(cin, cout, 3, padding=1),
            nn.BatchNorm2d(cout, affine=False),
            PReLU(),
            nn.Conv2d(cout, cout, 3, padding=1),
        )
        self.skip = nn.Conv2d(cin, cout, 1) if cin != cout else nn.Identity()
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                gain = 2**0.5 if module.kernel_size == (3, 3) else 1.0
                nn.init.xavier_uniform_(module.weight, gain)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.skip(x)


def stem(cin: int, cout: int, stride: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(cin, cout, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(cout, eps=1e-3),
        nn.ReLU(inplace=True),
    ]


class SlimNetwork(nn.Module):
    """The slim network with the skip from the input to the last layer (v2 Table 1, ICLR 2020
    Table 7). Both tables give the stem stride 1, while the texts and the decoder need one halving
    before the blocks end; as in the authors' code the stem halves. `norm`: batch norm and ReLU
    follow the deconvolution, which ICLR 2020 prints and v2 does not. `scale`: the code's learnable
    scalar (initially 5) before tanh, which no text has."""

    def __init__(self, cin: int, channels: int, width: float, norm: bool, scale: bool):
        super().__init__()
        c128, c256, c16 = (scaled(c, width) for c in (128, 256, 16))
        after = [nn.BatchNorm2d(c16), nn.ReLU()] if norm else []
        self.body = nn.Sequential(
            *stem(cin, c128, stride=2),
            ResBlock(c128, c256),
            ResBlock(c256, c128),
            nn.BatchNorm2d(c128, affine=False),
            nn.ConvTranspose2d(c128, c16, 4, 2, padding=1),
            *after,
        )
        self.last = nn.Conv2d(c16 + cin, channels, 3, padding=1, bias=False)
        self.scale = nn.Parameter(torch.tensor(5.0)) if scale else 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.last(torch.cat([self.body(x), x], 1))


class Folded(nn.Sequential):
    """A network that works on a quarter of the pixels, each 2×2 of them as channels of one, so that
    nothing of image or gradient is lost; H and W must be even. For small runs."""

    def __init__(self, network: nn.Module):
        super().__init__(nn.PixelUnshuffle(2), network, nn.PixelShuffle(2))


def folded(name: str) -> str:
    """The name of this network as a small run has it: the wide ones and the U-Nets, which begin at
    the images' size, are folded."""
    return name + FOLDED if name in (*WIDE, *UNETS) and not name.endswith(FOLDED) else name


def scaled(channels: int, width: float) -> int:
    return max(1, round(channels * width))


def make_network(name: str, cin: int, channels: int = 3, width: float = 1.0) -> nn.Module:
    """An attacker network g: (N, cin, H, W) in, (N, channels, H, W) before tanh out.

    `2018`: six convolutions with batch norm (2018 version, Table 3); H and W must divide by 4.
    `v2-slim`, `iclr2020-slim`, `code-slim`: down- and upsampling with a skip (v2 Table 1, ICLR 2020
    Table 7, the authors' code); H, W even.
    `v2-wide`: residual blocks 128-256-128-64 and a norm (v2 Table 1, and the authors' code).
    `iclr2020`: residual blocks 128-256-128 (ICLR 2020, Table 1); `iclr2020-norm` adds the norm.
    These three with `-folded`: on 2×2 pixels at a time, with twice the channels (`Folded`); H, W
    even.
    `unet`, `unet-code`: L2L-DA's U-Net without y and z, as its section 5.1 prints it and as its
    authors' code has it; H and W must divide by 4, with `-folded` by 8.

    `width` multiplies all inner channel counts. Raises InputError for an unknown name or a width
    that is not positive.
    """
    check_positive(width=width)
    if name == "2018":
        c16, c32, c64 = (scaled(c, width) for c in (16, 32, 64))
        return nn.Sequential(
            nn.Conv2d(cin, c16, 3, padding=1),
            nn.BatchNorm2d(c16),
            nn.ReLU(),
            nn.Conv2d(c16, c32, 4, 2, padding=1),
            nn.BatchNorm2d(c32),
            nn.ReLU(),
            nn.Conv2d(c32, c64, 4, 2, padding=1),
            nn.BatchNorm2d(c64),
            nn.ReLU(),
            nn.ConvTranspose2d(c64, c32, 4, 2, padding=1),
            nn.BatchNorm2d(c32),
            nn.ReLU(),
            nn.ConvTranspose2d(c32, c16, 4, 2, padding=1),
            nn.BatchNorm2d(c16),
            nn.ReLU(),
            nn.Conv2d(c16, channels, 1),
            nn.BatchNorm2d(channels),
        )
    if name in UNETS:
        return UNet(name, cin, channels, width)
    if name in SLIM:
        return SlimNetwork(cin, channels, width, *SLIM[name])
    if name.endswith(FOLDED):
        return Folded(make_network(name.removesuffix(FOLDED), 4 * cin, 4 * channels, 2 * width))
    if name in WIDE:
        widths, norm = WIDE[name]
        c = [scaled(w, width) for w in widths]
        blocks = [ResBlock(a, b) for a, b in zip(c, c[1:], strict=False)]  # drawn before the stem
        return nn.Sequential(
            *stem(cin, c[0]),
            *blocks,
            *([nn.BatchNorm2d(c[-1], affine=False)] if norm else []),
            nn.Conv2d(c[-1], channels, 3, padding=1),
        )
    raise InputError(f"Unknown attacker network '{name}': choose {', '.join(NETWORKS)}.")
