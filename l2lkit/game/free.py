"""The player of Free adversarial training, whose parameters are the perturbation itself."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from l2lkit import distributed
from l2lkit.errors import InputError, check_positive
from l2lkit.game.recipe import Optimiser
from l2lkit.game.solver import Attacker, Generators, Maker, Scale, Shape


class FreeAttacker(Attacker):
    """Free adversarial training's player (Shafahi et al. 2019): φ is the perturbation itself.

    `delta` (N, C, H, W) belongs to a place in the batch, not to an image: it starts at zero, stays
    from batch to batch, and is kept in the ε-ball. It attacks the batches it is trained on and no
    others; InputError for images of another shape or more of them.
    """

    general = False

    def __init__(self, shape: Shape, epsilon: float = 0.031, replays: int = 1):
        super().__init__(epsilon)
        check_positive(replays=replays)
        self.replays = replays
        self.delta = nn.Parameter(torch.zeros(shape))

    def iterates(
        self, classifier: nn.Module, images: Tensor, labels: Tensor, generators: Generators = None
    ) -> Iterator[Tensor]:
        if len(images) > len(self.delta) or images.shape[1:] != self.delta.shape[1:]:
            raise InputError(
                f"This perturbation is {tuple(self.delta.shape)}: it has none for images of shape "
                f"{tuple(images.shape)}."
            )
        with torch.no_grad():  # not `project`: through its clamp no gradient reaches |δ| = ε
            self.delta.clamp_(-self.epsilon, self.epsilon)
        delta = distributed.share(self.delta)[: len(images)]
        yield (images + delta).clamp(0, 1) - images


@dataclass(frozen=True, kw_only=True)
class Free(Maker):
    """Free adversarial training (Shafahi et al. 2019, Algorithm 1): the inner player's parameters
    are the perturbation itself. They step by ε along their gradient's sign (`optimiser`, which its
    recipe must have), from the same pass as the classifier, and every batch is played `replays`
    (their m) times in a row."""

    general: ClassVar[bool] = False
    replays: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(epsilon=self.epsilon, replays=self.replays)

    @property
    def optimiser(self) -> Optimiser:
        """The one that the algorithm takes its steps with."""
        return Optimiser(kind="sign", lr=self.epsilon, weight_decay=0)

    def __call__(self, shape: Shape, classes: int) -> FreeAttacker:
        return FreeAttacker(shape, self.epsilon, self.replays)

    def scaled(self, scale: Scale) -> "Free":
        return replace(self, replays=scale.replays)
