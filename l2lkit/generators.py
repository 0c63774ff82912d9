"""The recursive, stochastic generator of L2L-DA (Jang et al. 2019, *Adversarial Defense via
Learning to Generate Diverse Attacks*).

It answers the call of the attackers in `l2lkit.attackers`. What it climbs is more than the loss
that the classifier descends, so it has an `objective` of its own, which the training loop asks for
in place of that loss.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l2lkit.attacks import (
    Generators,
    check_batch,
    check_epsilon,
    check_positive,
    input_gradient,
    last,
    project,
)
from l2lkit.errors import InputError

NORMALISATIONS = ("spatial", "none")


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
            self.down_z = nn.ModuleList([
                nn.Conv2d(latent, c1, 3, padding=1, bias=False),
                nn.Conv2d(latent, c2, 4, 2, padding=1, bias=False),
                nn.Conv2d(latent, c3, 4, 2, padding=1, bias=False),
            ])  # fmt: skip
        self.down = nn.ModuleList([
            nn.Conv2d(cin, c1, 3, padding=1),
            nn.Conv2d(c1, c2, 4, 2, padding=1),
            nn.Conv2d(c2, c3, 4, 2, padding=1),
        ])  # fmt: skip
        self.up = nn.ModuleList([
            nn.ConvTranspose2d(c3, c2, 4, 2, padding=1),
            nn.ConvTranspose2d(2 * c2, c1, 4, 2, padding=1),
        ])  # fmt: skip
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


class DiverseAttacker(nn.Module):
    """L2L-DA's generator, T = `steps` steps of

        δ ← Π(δ + step_size · tanh g(x + δ, y, z, δ, ∇ₓℓ(f(x + δ), y)))        (equation 5)

    from δ = 0, with the projection to the ε-ball and the image range. One z ~ N(0, I) of `latent`
    numbers is drawn for an image and kept over its steps, so that every call gives other
    perturbations; 0 makes the attacker deterministic. `labels` and `accumulated` say whether y and
    δ are inputs. `gradient`: "spatial" divides ∇ₓℓ by its norm over the pixels of each image and
    channel (the authors' code), "none" leaves it. `step_size` is ε/4 by default (section 5.1), and
    ε for one step.
    """

    batch_dependent = False

    def __init__(
        self, channels: int = 3, classes: int = 10, epsilon: float = 0.031, width: float = 1.0,
        steps: int = 10, step_size: float | None = None, latent: int = 8, labels: bool = True,
        accumulated: bool = True, gradient: str = "spatial", diversity: float = 0.0,
    ):  # fmt: skip
        super().__init__()
        check_epsilon(epsilon)
        check_positive(steps=steps)
        if gradient not in NORMALISATIONS:
            raise InputError(
                f"gradient must be one of {', '.join(NORMALISATIONS)}, not '{gradient}'."
            )
        self.epsilon, self.steps, self._step_size = epsilon, steps, step_size
        self.latent, self.accumulated, self.gradient = latent, accumulated, gradient
        self.diversity = diversity
        cin = (3 if accumulated else 2) * channels
        self.network = UNet(cin, channels, width, latent, classes if labels else 0)

    @property
    def stochastic(self) -> bool:
        """Whether two calls on the same images differ."""
        return self.latent > 0

    @property
    def step_size(self) -> float:
        return self._step_size or self.epsilon / (4 if self.steps > 1 else 1)

    def draw(self, count: int, like: Tensor, generators: Generators = None) -> Tensor:
        """Latents z (count, latent) as `like` is, one from each generator if given."""
        if generators is None:
            return torch.randn(count, self.latent, device=like.device).to(like)
        return torch.stack([torch.randn(self.latent, generator=g) for g in generators]).to(like)

    def mix(self, z: Tensor, images: Tensor) -> list[Tensor]:
        return self.network.mix(z, (images.shape[2], images.shape[3]))

    def step(
        self, x: Tensor, y: Tensor, delta: Tensor, gradient: Tensor, mixed: list[Tensor]
    ) -> Tensor:
        """The next δ (N, C, H, W) from this one, the gradient at x + δ and what z adds."""
        if self.gradient == "spatial":
            gradient = gradient / gradient.norm(dim=(2, 3), keepdim=True).clamp(min=1e-30)
        seen = [x + delta, gradient] + ([delta] if self.accumulated else [])
        moved = self.step_size * self.network(torch.cat(seen, 1), y, mixed).tanh()
        return project(delta + moved, x, self.epsilon)

    def iterates(
        self, classifier: nn.Module, images: Tensor, labels: Tensor, generators: Generators = None
    ) -> Iterator[Tensor]:
        check_batch(images, labels)
        mixed = self.mix(self.draw(len(images), images, generators), images)
        delta = torch.zeros_like(images)
        for _ in range(self.steps):
            gradient = input_gradient(classifier, images + delta, labels)
            delta = self.step(images, labels, delta, gradient, mixed)
            yield delta

    def forward(
        self, classifier: nn.Module, images: Tensor, labels: Tensor, generators: Generators = None
    ) -> Tensor:
        return last(self.iterates(classifier, images, labels, generators))

    def objective(
        self, classifier: nn.Module, images: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What φ climbs, and the perturbations it made (2N, C, H, W), two draws of z for each
        image: x, then x again; (N, C, H, W) where there is no z to draw.

        Climbed are the mean of ℓ(f(x + δᵗ), y) over the steps t (equation 6), and `diversity` (λ)
        times the mean over steps of |δᵗ(z₁) − δᵗ(z₂)| / |z₁ − z₂| (equation 7), where | | is the
        mean magnitude of a coordinate, as in the authors' code: λ is theirs.

        The gradient ∇ₓℓ that step t + 1 is shown is that through which ℓ after step t reaches φ.
        So it is taken once, and the value returned has ∇ₓℓ · δᵗ in the place of ℓ: another number
        with the same gradient in φ, at half the passes through the classifier.
        """
        draws = 2 if self.latent else 1
        x, y = torch.cat([images] * draws), labels.repeat(draws)  # `repeat` loses the layout
        z = self.draw(len(x), x)
        gradient = torch.cat([input_gradient(classifier, images, labels)] * draws)
        value, delta, mixed = x.new_zeros(()), torch.zeros_like(x), self.mix(z, x)
        for _ in range(self.steps):
            delta = self.step(x, y, delta, gradient, mixed)
            gradient = input_gradient(classifier, x + delta, y)
            value = value + (gradient * delta).sum() / len(x)
            if self.diversity and draws == 2:
                value = value + self.diversity * spread(delta, z)
        return value / self.steps, delta


def spread(deltas: Tensor, z: Tensor) -> Tensor:
    """How far two draws lie apart, relative to their latents: the mean over images of
    |δ(z₁) − δ(z₂)| / |z₁ − z₂| for deltas (2N, C, H, W) and z (2N, latent), the first draw of all
    images before the second (equation 7 for one step; | | is the mean magnitude)."""
    (d1, d2), (z1, z2) = deltas.chunk(2), z.chunk(2)
    return ((d1 - d2).abs().mean((1, 2, 3)) / (z1 - z2).abs().mean(1)).mean()
