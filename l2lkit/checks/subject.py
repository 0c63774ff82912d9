"""A classifier under examination: every measurement takes one, and none needs a store."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from l2lkit.game import evaluate
from l2lkit.game.identity import fingerprint
from l2lkit.game.solver import Solver

Right = dict[str, NDArray[np.bool_]]  # attack -> is the classifier right on each image (N,)?
Remember = Callable[[str, object, Callable[[], Any]], Any]


class Subject:
    """A classifier with the images (N, C, H, W) in [0, 1] and labels (N,) that it is measured on.

    `remember(what, settings, compute)` returns what `compute` gave (plain data) when it was first
    asked for these settings: by default for as long as the subject lives, with a store for good.
    `seed` decides every random number.
    """

    def __init__(
        self,
        classifier: nn.Module,
        images: Tensor,
        labels: Tensor,
        *,
        seed: int = 0,
        remember: Remember | None = None,
    ):
        self.classifier, self.seed = classifier, seed
        self.images, self.labels = images, labels
        self._kept: dict[str, Any] = {}
        self.measured = remember or self._remember

    def _remember(self, what: str, settings: object, compute: Callable[[], Any]) -> Any:
        key = fingerprint(what, settings)
        if key not in self._kept:
            self._kept[key] = compute()
        return self._kept[key]

    def first(self, count: int | None) -> tuple[Tensor, Tensor]:
        """The first `count` images and their labels; all of them for None."""
        return self.images[:count], self.labels[:count]

    def count(self, wanted: int | None) -> int:
        """How many images there are of those wanted."""
        return len(self.labels[:wanted])

    def correct(self, attacks: Mapping[str, Solver | None], count: int | None = None) -> Right:
        """Whether the classifier is right on each of the first `count` images, attack by attack;
        None is no attack."""

        def compute() -> dict[str, list[int]]:
            x, y = self.first(count)
            right = evaluate.correct(self.classifier, attacks, x, y, seed=self.seed)
            return {name: r.int().tolist() for name, r in right.items()}

        keys = {name: attack and attack.key() for name, attack in attacks.items()}
        result = self.measured("correct", [count, keys], compute)
        return {name: np.array(right, dtype=bool) for name, right in result.items()}
