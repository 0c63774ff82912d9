"""L2L-DA's U-Net: the network of its generator and, without y and z, of AdvGAN, GAP and L2L*."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l2lkit.errors import check_choice, check_positive

FOLDED = "-folded"  # after a network's name: on 2×2 pixels at a time
UNETS = ("unet", "unet-code", "unet" + FOLDED, "unet-code" + FOLDED)


class ConditionalBatchNorm(nn.Module):
    """Batch norm that knows the class of the image: each class has its own gain and bias, 1 and 0
    at first, or (`shared_gain`, the authors' code) all classes one gain, N(1, 0.02) at first, and
    each a bias of its own, N(0, 0.02)."""

    def __init__(self, channels: int, classes: int, shared_gain: bool = False):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, eps=1e-10 if shared_gain else 1e-5, affine=False)
        self.gain = nn.Embedding(1 if shared_gain else classes, channels)
        self.bias = nn.Embedding(classes, channels)
        spread = 0.02 if shared_gain else 0.0
        nn.init.normal_(self.gain.weight, 1, spread), nn.init.normal_(self.bias.weight, 0, spread)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        gain = self.gain(labels if len(self.gain.weight) > 1 else torch.zeros_like(labels))
        return gain[:, :, None, None] * self.norm(x) + self.bias(labels)[:, :, None, None]


class UNet(nn.Module):
    """The generator's network: (N, cin, H, W) in, (N, channels, H, W) before tanh out; H and W must
    divide by 2 to the power of `halvings`. Three layers down, the first of which keeps the size and
    has no norm, and two up, with skips. With `classes`, batch norm is class-conditional. A latent z
    of `latent` numbers joins the input of every layer down, the same at all pixels. Convolutions
    start at N(0, 0.02).

    `unet`: section 5.1 names a U-Net and no channels, so they double, as in the U-Net paper: 64,
    128, 256, times `width`, and all layers but the ends have a norm. z joins as it is.
    `unet-code`, the authors': 64, 64, 128; the innermost layer has no norm, no convolution a bias,
    and z passes two linear layers with ReLU first. Either with `-folded`, for small runs: each 2×2
    pixels are channels of one, on the way in and out, and the layers between are twice as wide.

    A convolution of joined inputs is the sum of two convolutions. That of z does not change while
    an attack steps on, so `mix` computes it once, for `forward` to take.
    """

    def __init__(
        self,
        name: str,
        cin: int,
        channels: int,
        width: float = 1.0,
        latent: int = 0,
        classes: int = 0,
    ):
        super().__init__()
        check_positive(width=width)
        check_choice(network=(name, UNETS))
        code, folded = name.startswith("unet-code"), name.endswith(FOLDED)
        self.halvings = 3 if folded else 2
        self.fold = nn.PixelUnshuffle(2) if folded else nn.Identity()
        self.unfold = nn.PixelShuffle(2) if folded else nn.Identity()
        if folded:
            cin, channels, width = 4 * cin, 4 * channels, 2 * width
        c1, c2, c3 = (max(1, round(c * width)) for c in ((64, 64, 128) if code else (64, 128, 256)))
        self.latent = latent
        if latent:
            linear = [nn.Linear(latent, latent), nn.ReLU(), nn.Linear(latent, latent), nn.ReLU()]
            self.encoder = nn.Sequential(*(linear if code else []))
            self.down_z = nn.ModuleList(_down(latent, latent, latent, c1, c2, c3, bias=False))
        self.down = nn.ModuleList(_down(cin, c1, c2, c1, c2, c3, bias=not code))
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(i, c, 4, 2, padding=1, bias=not code)
            for i, c in ((c3, c2), (2 * c2, c1))
        )
        self.last = nn.Conv2d(2 * c1, channels, 3, padding=1, bias=not code)

        def norm(c: int) -> nn.Module:
            eps = 1e-10 if code else 1e-5
            return ConditionalBatchNorm(c, classes, code) if classes else nn.BatchNorm2d(c, eps)

        innermost = nn.Identity() if code else norm(c3)
        self.norms = nn.ModuleList([norm(c2), innermost, norm(c2), norm(c1)])
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.normal_(module.weight, 0, 0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def mix(self, z: Tensor, size: tuple[int, int]) -> list[Tensor]:
        """What z (N, latent) adds to the three layers down, for images of that height and width;
        nothing without latents."""
        if not self.latent:
            return [z.new_zeros(())] * 3
        tiled, (h, w) = self.encoder(z)[:, :, None, None], size
        if self.halvings == 3:
            h, w = h // 2, w // 2
        sizes = ((h, w), (h, w), (h // 2, w // 2))
        return [m(tiled.expand(-1, -1, *s)) for m, s in zip(self.down_z, sizes, strict=True)]

    def forward(
        self, x: Tensor, labels: Tensor | None = None, mixed: list[Tensor] | None = None
    ) -> Tensor:
        m1, m2, m3 = mixed or [x.new_zeros(())] * 3

        def norm(i: int, h: Tensor) -> Tensor:
            layer = self.norms[i]
            return layer(h, labels) if isinstance(layer, ConditionalBatchNorm) else layer(h)

        h1 = F.leaky_relu(self.down[0](self.fold(x)) + m1, 0.2)
        h2 = F.leaky_relu(norm(0, self.down[1](h1) + m2), 0.2)
        h3 = F.leaky_relu(norm(1, self.down[2](h2) + m3), 0.2)
        u2 = F.relu(norm(2, self.up[0](h3)))
        u1 = F.relu(norm(3, self.up[1](torch.cat([u2, h2], 1))))
        return self.unfold(self.last(torch.cat([u1, h1], 1)))


def _down(i1: int, i2: int, i3: int, c1: int, c2: int, c3: int, bias: bool) -> list[nn.Module]:
    """The three convolutions down: 3×3, then twice 4×4 of stride 2."""
    return [
        nn.Conv2d(i1, c1, 3, padding=1, bias=bias),
        nn.Conv2d(i2, c2, 4, 2, padding=1, bias=bias),
        nn.Conv2d(i3, c3, 4, 2, padding=1, bias=bias),
    ]
