"""Learned solvers g(·; φ): Naive, Grad and K-Step L2L, and the player of Free training.

`Learned` and `Free` make them from a recipe: their fields are the recipe's settings.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from l2lkit.errors import check_choice, check_positive
from l2lkit.game.networks import NETWORKS, folded, make_network
from l2lkit.game.padding import at_any_size
from l2lkit.game.solver import (
    Attacker,
    Generators,
    Maker,
    Scale,
    Shape,
    input_gradient,
    project,
    uniform,
)

GRADIENTS = ("per-image", "batch-max", "none")


class NaiveAttacker(Attacker):
    """Naive L2L: δ = ε tanh g(x), from the image alone (ICLR 2020, section 2.2)."""

    def __init__(
        self,
        network: str = "iclr2020-norm",
        channels: int = 3,
        epsilon: float = 0.031,
        width: float = 1.0,
    ):
        super().__init__(epsilon)
        self.network = at_any_size(make_network(network, channels, channels, width))

    def iterates(
        self, classifier: nn.Module, images: Tensor, labels: Tensor, generators: Generators = None
    ) -> Iterator[Tensor]:
        yield project(self.epsilon * self.network(images).tanh(), images, self.epsilon)


class GradAttacker(Attacker):
    """Grad L2L (`steps=1`) and K-Step L2L: the network as the cell of a length-K recurrence.

    δ ← Π(δ + ε tanh g(x + δ, ∇ₓℓ(f(x + δ), y))), K times from δ = 0 with the same φ and a
    projection after each step (ICLR 2020, section 2.2, "Gradient" and "Multi-Step"; K = 2 there).
    Gradients reach φ through all perturbations; the queried ∇ₓℓ is taken as a constant.

    `gradient` names how ∇ₓℓ is scaled before it enters the network: "batch-max" divides by the
    largest magnitude in the batch (the authors' code; then one image's perturbation depends on
    its batch), "per-image" by each image's own, "none" leaves it as the papers print it. `start`
    is "zero", or "uniform" in the ε-ball: then every call starts elsewhere, as L2L-DA restarts it
    (its section 4.3).
    """

    def __init__(
        self,
        network: str = "iclr2020-norm",
        channels: int = 3,
        epsilon: float = 0.031,
        width: float = 1.0,
        steps: int = 1,
        gradient: str = "per-image",
    ):
        super().__init__(epsilon)
        check_positive(steps=steps)
        check_choice(gradient=(gradient, GRADIENTS))
        self.steps, self.gradient, self.start = steps, gradient, "zero"
        self.network = at_any_size(make_network(network, 2 * channels, channels, width))

    @property
    def batch_dependent(self) -> bool:  # type: ignore[override]  # a property: it depends on the scale
        return self.gradient == "batch-max"

    @property
    def stochastic(self) -> bool:  # type: ignore[override]  # a property: it depends on the start
        return self.start == "uniform"

    @property
    def passes(self) -> int:
        return self.steps

    def scale(self, gradient: Tensor) -> Tensor:
        if self.gradient == "none":
            return gradient
        dims = (1, 2, 3) if self.gradient == "per-image" else (0, 1, 2, 3)
        return gradient / gradient.abs().amax(dims, keepdim=True).clamp(min=1e-30)

    def move(self, x: Tensor, gradient: Tensor) -> Tensor:
        """One step (N, C, H, W) from the image as it stands and its scaled gradient. A variant of
        the attacker is a subclass with another `move`."""
        return self.epsilon * self.network(torch.cat([x, gradient], 1)).tanh()

    def iterates(
        self, classifier: nn.Module, images: Tensor, labels: Tensor, generators: Generators = None
    ) -> Iterator[Tensor]:
        delta = torch.zeros_like(images)
        if self.start == "uniform":
            delta = project(uniform(images, self.epsilon, generators), images, self.epsilon)
        for _ in range(self.steps):
            x = images + delta
            gradient = self.scale(input_gradient(classifier, x, labels))
            delta = project(delta + self.move(x, gradient), images, self.epsilon)
            yield delta


@dataclass(frozen=True, kw_only=True)
class Learned(Maker):
    """A learned attacker of the L2L papers. `steps` = 0 is Naive (the image alone), 1 is Grad,
    2 is the papers' 2-Step; the rest as of `GradAttacker`."""

    steps: int
    network: str = "iclr2020-norm"
    width: float = 1.0
    gradient: str = "per-image"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(network=(self.network, NETWORKS), gradient=(self.gradient, GRADIENTS))

    def __call__(self, shape: Shape, classes: int) -> NaiveAttacker | GradAttacker:
        network = self.network, shape[1], self.epsilon, self.width
        if self.steps == 0:
            return NaiveAttacker(*network)
        return GradAttacker(*network, self.steps, self.gradient)

    def scaled(self, scale: Scale) -> "Learned":
        return replace(self, width=scale.width, network=folded(self.network))
