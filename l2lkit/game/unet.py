"""L2L-DA's U-Net: the network of its generator and, without y and z, of AdvGAN, GAP and L2L*."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l2lkit.errors import check_positive


class ConditionalBatchNorm(nn.Module):
    """Batch norm whose gain and bias belong to the class of the image, 1 and 0 at first."""

    def __init__(self, channels: int, classes: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.gain, self.bias = nn.Embedding(classes, channels), nn.Embedding(classes, channels)
        nn.init.ones_(self.gain.weight), nn.init.zeros_(self.bias.weight)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        gain, bias = self.gain(labels)[:, :, None, None], self.bias(labels)[:, :, None, None]
        return gain * self.norm(x) + bias


class UNet(nn.Module):
    """The generator's network (section 5.1 and the authors' code): (N, cin, H, W) in, (N, channels,
    H, W) before tanh out; H and W must divide by 4.

    Three layers down (64, 128, 256 times `width`; the first keeps the size and has no norm), two
    up, with skips. A latent z of `latent` numbers passes two linear layers and joins the input of
    every layer down, the same at all pixels. With `classes`, batch norm is class-conditional.
    Weights start at N(0, 0.02).

    A convolution of joined inputs is the sum of two convolutions. That of z does not change while
    an attack steps on, so `mix` computes it once, for `forward` to take.
    """

    def __init__(
        self, cin: int, channels: int, width: float = 1.0, latent: int = 0, classes: int = 0
    ):
        super().__init__()
        check_positive(width=width)
        c1, c2, c3 = (max(1, round(c * width)) for c in (64, 128, 256))
        self.latent = latent
        if latent:
            self.encoder = nn.Sequential(
                nn.Linear(latent, latent), nn.LeakyReLU(0.2), nn.Linear(latent, latent)
            )
            self.down_z = nn.ModuleList(
                [
                    nn.Conv2d(latent, c1, 3, padding=1, bias=False),
                    nn.Conv2d(latent, c2, 4, 2, padding=1, bias=False),
                    nn.Conv2d(latent, c3, 4, 2, padding=1, bias=False),
                ]
            )
        self.down = nn.ModuleList(
            [
                nn.Conv2d(cin, c1, 3, padding=1),
                nn.Conv2d(c1, c2, 4, 2, padding=1),
                nn.Conv2d(c2, c3, 4, 2, padding=1),
            ]
        )
        self.up = nn.ModuleList(
            [
                nn.ConvTranspose2d(c3, c2, 4, 2, padding=1),
                nn.ConvTranspose2d(2 * c2, c1, 4, 2, padding=1),
            ]
        )
        self.conditional = classes > 0
        self.norms = nn.ModuleList(
            ConditionalBatchNorm(c, classes) if classes else nn.BatchNorm2d(c)
            for c in (c2, c3, c2, c1)
        )
        self.last = nn.Conv2d(2 * c1, channels, 3, padding=1)
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
        code, (h, w) = self.encoder(z)[:, :, None, None], size
        sizes = ((h, w), (h, w), (h // 2, w // 2))
        return [m(code.expand(-1, -1, *s)) for m, s in zip(self.down_z, sizes, strict=True)]

    def forward(
        self, x: Tensor, labels: Tensor | None = None, mixed: list[Tensor] | None = None
    ) -> Tensor:
        m1, m2, m3 = mixed or [x.new_zeros(())] * 3

        def norm(i: int, h: Tensor) -> Tensor:
            return self.norms[i](h, labels) if self.conditional else self.norms[i](h)

        h1 = F.leaky_relu(self.down[0](x) + m1, 0.2)
        h2 = F.leaky_relu(norm(0, self.down[1](h1) + m2), 0.2)
        h3 = F.leaky_relu(norm(1, self.down[2](h2) + m3), 0.2)
        u2 = F.relu(norm(2, self.up[0](h3)))
        u1 = F.relu(norm(3, self.up[1](torch.cat([u2, h2], 1))))
        return self.last(torch.cat([u1, h1], 1))
