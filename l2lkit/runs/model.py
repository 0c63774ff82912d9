"""A trained defence, as the store hands it out."""

from dataclasses import dataclass
from functools import cached_property

import pandas as pd
from torch import nn

from l2lkit.game.identity import weights
from l2lkit.game.recipe import Recipe
from l2lkit.game.solver import Solver


@dataclass(frozen=True)
class Model:
    """A trained defence: its recipe and seed, the classifier and the attack it was trained with
    (both in eval mode), the log of its training, and `record`, its provenance."""

    recipe: Recipe
    seed: int
    classifier: nn.Module
    attack: Solver | None
    log: pd.DataFrame
    record: dict

    @property
    def defence(self) -> str:
        return self.recipe.defence

    @property
    def status(self) -> str:
        return self.record["status"]

    @property
    def id(self) -> str:
        return self.record["id"]

    @property
    def own_attack(self) -> Solver | None:
        """The network it was trained with, where that attacks other images too."""
        own = self.attack
        return own if own is not None and own.learns and own.general else None

    @cached_property
    def key(self) -> dict[str, str]:
        """What tells it from other models, also from one of its own recipe and other code."""
        return {"model": self.id, "weights": weights(self.classifier)}
