"""LAS-AT (Jia et al. 2022, "learnable attack strategy"): the step is the sign step, and a network
learns how PGM is to be played.

The paper's text was not at hand: all settings are those of its authors' code, LAS-PGD-AT on
CIFAR-10.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Categorical

from l2lkit.errors import check_positive
from l2lkit.game.classifiers import make_classifier
from l2lkit.game.fixed import PGM
from l2lkit.game.solver import (
    Attacker,
    Generators,
    Maker,
    Play,
    Scale,
    Shape,
    input_gradient,
    project,
    uniform,
)

# What a strategy chooses from: radius and size of the steps in eighths of ε, which is 8/255 in the
# authors' code, and the number of steps.
RADII, SIZES, COUNTS = range(3, 16), range(1, 6), range(3, 15)


class StrategyAttacker(Attacker):
    """A network looks at an image and draws how PGM attacks it: radius, step size and number of
    steps. In training the radius may be up to 15/8 ε; called as an attack, δ is projected to ε.

    On every `every`-th batch φ climbs the expected reward by policy gradient. An image's reward is
    the loss of f at its δ, plus 4 if f one step of θ later (`rate` down the gradient at this
    batch's x + δ) is right under PGM-10, plus 2 if it is right on x; less the batch's mean. Two
    things differ from the authors' code. There the whole batch has one reward, the mean, with
    nothing taken from it, which hardly moves φ in a short run; and θ's labels are smoothed.
    """

    own_value = True
    stochastic = True

    def __init__(
        self,
        network: str = "resnet-18",
        channels: int = 3,
        size: int = 32,
        epsilon: float = 0.031,
        every: int = 20,
        rate: float = 0.1,
    ):
        super().__init__(epsilon)
        self.every, self.rate = every, rate
        self.choices = (
            torch.tensor(RADII) * epsilon / 8,
            torch.tensor(SIZES) * epsilon / 8,
            torch.tensor(COUNTS),
        )
        outputs = sum(len(choice) for choice in self.choices)
        self.network = make_classifier(network, outputs, channels, size)
        self.batches: Tensor
        self.register_buffer("batches", torch.tensor(0))

    @property
    def passes(self) -> int:
        return max(COUNTS)

    def heads(self, images: Tensor) -> list[Categorical]:
        """The distributions of radius, step size and number of steps, for each image."""
        logits = self.network(images).float().split([len(c) for c in self.choices], 1)
        return [Categorical(logits=part) for part in logits]

    def settings(self, chosen: list[Tensor]) -> list[Tensor]:
        """Radius, step size and number of steps, each (N, 1, 1, 1), from their places (N,)."""
        values = zip(self.choices, chosen, strict=True)
        return [value.to(at.device)[at].view(-1, 1, 1, 1) for value, at in values]

    def climbed(
        self, f: nn.Module, x: Tensor, y: Tensor, settings: list[Tensor], start: Tensor
    ) -> Tensor:
        """δ of PGM from `start`, each image with its own settings."""
        (radius, size, count), delta = settings, start
        for done in range(int(count.max())):
            moved = delta + size * input_gradient(f, x + delta, y).sign() * (done < count)
            delta = project(torch.minimum(torch.maximum(moved, -radius), radius), x, 1.0)
        return delta

    def reward(self, f: nn.Module, x: Tensor, y: Tensor, delta: Tensor) -> Tensor:
        """Of each image's strategy (N,), less the mean. f stays as it is."""
        later = copy.deepcopy(f).requires_grad_(True)
        losses = F.cross_entropy(later(x + delta), y, reduction="none")
        theta = list(later.parameters())
        gradients = torch.autograd.grad(losses.mean(), theta)
        with torch.no_grad():
            for p, g in zip(theta, gradients, strict=True):
                p.sub_(self.rate * g)
        attacked = x + PGM(epsilon=self.epsilon, steps=10, step_size=self.epsilon / 4)(later, x, y)
        with torch.no_grad():
            robust, clean = (later(z).argmax(1) == y for z in (attacked, x))
        reward = losses.detach() + 4.0 * robust + 2.0 * clean
        return reward - reward.mean()

    def play(self, classifier: nn.Module, images: Tensor, labels: Tensor) -> Play:
        heads = self.heads(images)
        chosen = [head.sample() for head in heads]
        start = project(uniform(images, self.epsilon, None), images, 1.0)
        delta = self.climbed(classifier, images, labels, self.settings(chosen), start)
        probability = torch.stack([h.log_prob(at) for h, at in zip(heads, chosen, strict=True)])
        self.batches += 1
        reward = torch.zeros_like(probability[0])  # no gradient for φ
        if self.batches % self.every == 0:
            reward = self.reward(classifier, images, labels, delta)
        return Play(images, labels, delta, (probability.sum(0) * reward).mean())

    def iterates(
        self, classifier: nn.Module, images: Tensor, labels: Tensor, generators: Generators = None
    ) -> Iterator[Tensor]:
        """With the likeliest settings for each image."""
        settings = self.settings([head.logits.argmax(1) for head in self.heads(images)])
        start = project(uniform(images, self.epsilon, generators), images, 1.0)
        yield project(
            self.climbed(classifier, images, labels, settings, start), images, self.epsilon
        )


@dataclass(frozen=True, kw_only=True)
class Strategy(Maker):
    """Makes a `StrategyAttacker`. A small run learns on every fifth batch, for it has few, and with
    a small classifier as its network."""

    network: str = "resnet-18"
    every: int = 20
    rate: float = 0.1

    wants_adam: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(every=self.every, rate=self.rate)

    def __call__(self, shape: Shape, classes: int) -> StrategyAttacker:
        where = shape[1], shape[2], self.epsilon
        return StrategyAttacker(self.network, *where, self.every, self.rate)

    def scaled(self, scale: Scale) -> "Strategy":
        return replace(self, network="wrn-10-1-stride2", every=5, rate=0.05)
