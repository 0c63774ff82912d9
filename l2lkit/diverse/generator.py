"""The recursive, stochastic generator of L2L-DA (Jang et al. 2019, *Adversarial Defense via
Learning to Generate Diverse Attacks*).

What it climbs in training is more than the loss that the classifier descends, and it attacks every
image twice: see `DiverseAttacker.play`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from l2lkit.errors import check_choice, check_not_negative, check_positive
from l2lkit.game.networks import folded
from l2lkit.game.padding import at_any_size
from l2lkit.game.solver import (
    Attacker,
    Generators,
    Maker,
    Play,
    Scale,
    Shape,
    input_gradient,
)
from l2lkit.game.unet import UNETS, UNet

NORMALISATIONS = ("spatial", "none")
OBJECTIVES = ("mean", "sum")


class DiverseAttacker(Attacker):
    """L2L-DA's generator, T = `steps` steps of

        δ ← Π(δ + step_size · tanh g(x, y, z, δ, ∇ₓℓ(x_adv, y))),  x_adv = Π(x + δ)   (equation 5)

    from δ = 0, where the first Π clips δ to ±ε and the second the image to [0, 1]: δ may point out
    of the image range, and the perturbation that leaves here, x_adv − x, does not. One z ~ N(0, I)
    of `latent` numbers is drawn for an image and kept over its steps, so that every call gives
    other perturbations; 0 makes the attacker deterministic. `labels` and `accumulated` say whether
    y and δ are inputs. `gradient`: "spatial" divides ∇ₓℓ by its norm over the pixels of each image
    and channel (the authors' code), "none" leaves it. `step_size` is ε/4 by default (section 5.1),
    and ε for one step. `network` names a U-Net, see there. `objective` and `with_clean` are of
    training, see `play`.
    """

    own_value = True

    def __init__(
        self,
        channels: int = 3,
        classes: int = 10,
        epsilon: float = 0.031,
        width: float = 1.0,
        steps: int = 10,
        step_size: float | None = None,
        latent: int = 8,
        labels: bool = True,
        accumulated: bool = True,
        gradient: str = "spatial",
        diversity: float = 0.0,
        network: str = "unet",
        objective: str = "mean",
        with_clean: bool = False,
    ):
        super().__init__(epsilon)
        check_positive(steps=steps)
        check_choice(gradient=(gradient, NORMALISATIONS), objective=(objective, OBJECTIVES))
        self.steps, self.own_step_size, self.latent = steps, step_size, latent
        self.accumulated, self.gradient, self.diversity = accumulated, gradient, diversity
        self.objective, self.with_clean = objective, with_clean
        cin = (3 if accumulated else 2) * channels
        self.network = UNet(network, cin, channels, width, latent, classes if labels else 0)
        at_any_size(self.network, self.network.halvings)

    @property
    def stochastic(self) -> bool:  # type: ignore[override]  # a property: it depends on z
        return self.latent > 0

    @property
    def passes(self) -> int:
        return self.steps

    @property
    def step_size(self) -> float:
        return self.own_step_size or self.epsilon / (4 if self.steps > 1 else 1)

    def draw(self, count: int, like: Tensor, generators: Generators = None) -> Tensor:
        """Latents z (count, latent) as `like` is, one from each generator if given."""
        if generators is None:
            return torch.randn(count, self.latent, device=like.device).to(like)
        return torch.stack(
            [torch.randn(self.latent, generator=g, dtype=torch.float32) for g in generators]
        ).to(like)

    def mix(self, z: Tensor, images: Tensor) -> list[Tensor]:
        multiple = 2**self.network.halvings
        h, w = (size + -size % multiple for size in images.shape[2:])  # as the padded images are
        return self.network.mix(z, (h, w))

    def step(
        self, x: Tensor, y: Tensor, delta: Tensor, gradient: Tensor, mixed: list[Tensor]
    ) -> Tensor:
        """The next δ (N, C, H, W) from this one, the gradient at x_adv and what z adds."""
        if self.gradient == "spatial":
            gradient = gradient + 1e-15  # so that none is 0
            gradient = gradient / gradient.norm(dim=(2, 3), keepdim=True)
        seen = [x, gradient] + ([delta] if self.accumulated else [])
        moved = self.step_size * self.network(torch.cat(seen, 1), y, mixed).tanh()
        return (delta + moved).clamp(-self.epsilon, self.epsilon)

    def iterates(
        self, classifier: nn.Module, images: Tensor, labels: Tensor, generators: Generators = None
    ) -> Iterator[Tensor]:
        mixed = self.mix(self.draw(len(images), images, generators), images)
        delta, attacked = torch.zeros_like(images), images
        for _ in range(self.steps):
            gradient = input_gradient(classifier, attacked, labels)
            delta = self.step(images, labels, delta, gradient, mixed)
            attacked = (images + delta).clamp(0, 1)
            yield attacked - images

    def play(self, classifier: nn.Module, images: Tensor, labels: Tensor) -> Play:
        """Two draws of z for each image: x, then x again (2N, C, H, W); one where there is no z.
        `with_clean` adds x once more, unperturbed, so that the classifier takes one mean over clean
        and adversarial images (the authors' code).

        Climbed are ℓ(x_adv, y) after each step (equation 6), and `diversity` (λ) times
        |x_adv(z₁) − x_adv(z₂)| / |z₁ − z₂| (equation 7), where | | is the mean magnitude of a
        coordinate, as in the authors' code: λ is theirs. `objective` is the "mean" of these over
        the steps, as the equations have it, or their "sum", as the authors' code has it.

        The gradient ∇ₓℓ that step t + 1 is shown is that through which ℓ after step t reaches φ.
        So it is taken once, and the value returned has ∇ₓℓ · x_adv in the place of ℓ: another
        number with the same gradient in φ, at half the passes through the classifier.
        """
        draws = 2 if self.latent else 1
        x, y = torch.cat([images] * draws), labels.repeat(draws)  # `repeat` loses the layout
        z = self.draw(len(x), x)
        gradient = torch.cat([input_gradient(classifier, images, labels)] * draws)
        value, delta, mixed = x.new_zeros(()), torch.zeros_like(x), self.mix(z, x)
        attacked = x
        for _ in range(self.steps):
            delta = self.step(x, y, delta, gradient, mixed)
            attacked = (x + delta).clamp(0, 1)
            gradient = input_gradient(classifier, attacked, y)
            value = value + (gradient * attacked).sum() / len(x)
            if self.diversity and draws == 2:
                value = value + self.diversity * spread(attacked, z)
        delta = attacked - x
        if self.with_clean:
            x, y = torch.cat([x, images]), torch.cat([y, labels])
            delta = torch.cat([delta, torch.zeros_like(images)])
        return Play(x, y, delta, value / (self.steps if self.objective == "mean" else 1))


def spread(attacked: Tensor, z: Tensor) -> Tensor:
    """How far two draws lie apart, relative to their latents: the mean over images of
    |x_adv(z₁) − x_adv(z₂)| / |z₁ − z₂| for attacked images (2N, C, H, W) and z (2N, latent), the
    first draw of all images before the second (equation 7 for one step; | | is the mean
    magnitude)."""
    (x1, x2), (z1, z2) = attacked.chunk(2), z.chunk(2)
    return ((x1 - x2).abs().mean((1, 2, 3)) / (z1 - z2).abs().mean(1)).mean()


@dataclass(frozen=True, kw_only=True)
class Diverse(Maker):
    """L2L-DA's generator; settings as of `DiverseAttacker`. `diversity` is λ: 0.02 on MNIST and
    0.5 on CIFAR-10 in the authors' code."""

    wants_adam: ClassVar[bool] = True
    draws: ClassVar[int] = 2
    width: float = 1.0
    steps: int = 10
    latent: int = 8
    labels: bool = True
    accumulated: bool = True
    gradient: str = "spatial"
    diversity: float = 0.5
    network: str = "unet"
    objective: str = "mean"
    with_clean: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(epsilon=self.epsilon, width=self.width, steps=self.steps)
        check_choice(
            gradient=(self.gradient, NORMALISATIONS),
            network=(self.network, UNETS),
            objective=(self.objective, OBJECTIVES),
        )
        check_not_negative(diversity=self.diversity, latent=self.latent)

    def __call__(self, shape: Shape, classes: int) -> DiverseAttacker:
        return DiverseAttacker(
            shape[1],
            classes,
            self.epsilon,
            self.width,
            self.steps,
            latent=self.latent,
            labels=self.labels,
            accumulated=self.accumulated,
            gradient=self.gradient,
            diversity=self.diversity,
            network=self.network,
            objective=self.objective,
            with_clean=self.with_clean,
        )

    def scaled(self, scale: Scale) -> "Diverse":
        steps = min(self.steps, scale.steps)
        return replace(self, width=scale.width, steps=steps, network=folded(self.network))
