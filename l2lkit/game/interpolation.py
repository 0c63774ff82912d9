"""Adversarial interpolation (Zhang and Xu 2020), and L2L in the place of its inner step.

The inner player moves an image's features towards those of another image of the batch, and the
outer one learns from labels that lean away from that image's class. Both are a solver's part of a
training step, `play`: it returns soft labels for the loss that the classifier descends and, where
the step is learned, the value that the attacker climbs. No text of the L2L papers has this; the
code of their last version (AISTATS 2021) does.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l2lkit.errors import InputError, check_choice, check_positive
from l2lkit.game.networks import NETWORKS, folded, make_network
from l2lkit.game.padding import at_any_size
from l2lkit.game.solver import (
    Attacker,
    Generators,
    Maker,
    Play,
    Scale,
    Shape,
    Solver,
    check_epsilon,
    project,
    uniform,
)


def last_layer(classifier: nn.Module) -> nn.Linear:
    """The classifier's last linear layer; InputError if it has none."""
    layers = [m for m in classifier.modules() if isinstance(m, nn.Linear)]
    if not layers:
        raise InputError(
            "Adversarial interpolation needs a classifier that ends in a linear layer."
        )
    return layers[-1]


def features(classifier: nn.Module, images: Tensor) -> Tensor:
    """What the classifier's last linear layer is given (N, features)."""
    given: list[Tensor] = []
    with last_layer(classifier).register_forward_pre_hook(lambda _, x: given.append(x[0])):
        classifier(images)
    return given[0]


def distance(classifier: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """The cosine distance, in [0, 2], of each image's features to its target's (N,)."""
    return 1 - F.cosine_similarity(features(classifier, images), targets)


def soft_labels(labels: Tensor, classes: int, weight: float, like: Tensor) -> Tensor:
    """(1 − λ) y + λ (1 − y′)/(classes − 1), probabilities (N, classes) of `like`'s type, where y′
    is the label of the image that the features are moved towards: that in the mirrored place of
    the batch."""
    y = F.one_hot(labels, classes).to(like)
    return (1 - weight) * y + weight * (1 - y.flip(0)) / (classes - 1)


def walk(
    classifier: nn.Module,
    images: Tensor,
    generators: Generators,
    epsilon: float,
    steps: int,
    move: Callable[[Tensor, Tensor], Tensor],
) -> Iterator[Tensor]:
    """Yield δ after each of `steps` steps from a uniform start, which alone may leave [0, 1].
    `move` gives a step (N, C, H, W) from x + δ and the gradient of the summed distances there."""
    with torch.no_grad():
        targets = features(classifier, images.flip(0))
    delta = uniform(images, epsilon, generators)
    for _ in range(steps):
        with torch.enable_grad():
            at = (images + delta).detach().requires_grad_()
            apart = distance(classifier, at, targets).sum()
            (gradient,) = torch.autograd.grad(apart, at)
        delta = project(delta + move(images + delta, gradient), images, epsilon)
        yield delta


@dataclass(frozen=True, kw_only=True)
class Interpolation(Solver):
    """One step of size ε against the sign of the distance's gradient, from a uniform start. It
    opposes no label; `weight` is λ of `soft_labels` in training."""

    epsilon: float = 0.031
    weight: float = 0.5

    stochastic = True
    batch_dependent = True
    general = False

    def __post_init__(self) -> None:
        check_epsilon(self.epsilon)

    @property
    def passes(self) -> int:
        return 2

    def iterates(
        self, classifier: nn.Module, images: Tensor, labels: Tensor, generators: Generators = None
    ) -> Iterator[Tensor]:
        def move(_: Tensor, gradient: Tensor) -> Tensor:
            return -self.epsilon * gradient.sign()

        yield from walk(classifier, images, generators, self.epsilon, 1, move)

    def play(self, classifier: nn.Module, images: Tensor, labels: Tensor) -> Play:
        classes = last_layer(classifier).out_features
        soft = soft_labels(labels, classes, self.weight, images)
        return Play(images, soft, super().play(classifier, images, labels).delta)


class InterpolationAttacker(Attacker):
    """A network in the place of that step: δ ← Π(δ + ε tanh g(x + δ, ∇d)), `steps` times, with the
    gradient of the distance d over its largest value in the batch. In training it descends d."""

    stochastic = True
    batch_dependent = True
    general = False
    own_value = True

    def __init__(
        self,
        network: str = "v2-wide",
        channels: int = 3,
        epsilon: float = 0.031,
        width: float = 1.0,
        steps: int = 1,
        weight: float = 0.5,
    ):
        super().__init__(epsilon)
        check_positive(steps=steps)
        self.steps, self.weight = steps, weight
        self.network = at_any_size(make_network(network, 2 * channels, channels, width))

    @property
    def passes(self) -> int:
        return self.steps + 1

    def iterates(
        self, classifier: nn.Module, images: Tensor, labels: Tensor, generators: Generators = None
    ) -> Iterator[Tensor]:
        def move(x: Tensor, gradient: Tensor) -> Tensor:
            gradient = gradient / gradient.abs().max().clamp(min=1e-30)
            return self.epsilon * self.network(torch.cat([x, gradient], 1)).tanh()

        yield from walk(classifier, images, generators, self.epsilon, self.steps, move)

    def play(self, classifier: nn.Module, images: Tensor, labels: Tensor) -> Play:
        delta = super().play(classifier, images, labels).delta
        with torch.no_grad():
            targets = features(classifier, images.flip(0))
        apart = distance(classifier, images + delta, targets).mean()
        classes = last_layer(classifier).out_features
        return Play(images, soft_labels(labels, classes, self.weight, images), delta, -apart)


@dataclass(frozen=True, kw_only=True)
class LearnedInterpolation(Maker):
    """Makes an `InterpolationAttacker`. `weight` is λ: 0.5 for one step and 0.9 for two in the
    authors' code."""

    general: ClassVar[bool] = False
    steps: int = 1
    network: str = "v2-wide"
    width: float = 1.0
    weight: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(network=(self.network, NETWORKS))

    def __call__(self, shape: Shape, classes: int) -> InterpolationAttacker:
        return InterpolationAttacker(
            self.network, shape[1], self.epsilon, self.width, self.steps, self.weight
        )

    def scaled(self, scale: Scale) -> "LearnedInterpolation":
        return replace(self, width=scale.width, network=folded(self.network))
