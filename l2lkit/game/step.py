"""The game: two players, and one step of both on a batch.

    min over θ  max over φ  of  mean ℓ(f(x + g(x, ∇ₓℓ; φ); θ), y)        (ICLR 2020, equation 3)

The inner solver is exchangeable: nothing (Plain Net), a designed attack (FGSM, PGM and CW Net) or a
learned one (Naive, Grad, 2-Step L2L, L2L-DA). `step` is the whole game; `orders` has the papers'
and the authors' order of the same two moves, and `loop` plays it over a dataset.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l2lkit import distributed
from l2lkit.data import Dataset
from l2lkit.errors import InputError
from l2lkit.game.classifiers import make_classifier
from l2lkit.game.recipe import Recipe
from l2lkit.game.solver import Play, Solver

Step = tuple[Tensor, Tensor, Tensor]  # adversarial loss (), logits (N, classes), δ (N, C, H, W)


@dataclass
class Players:
    """The classifier f(·; θ), the solver that attacks it, and an optimiser for each that learns.

    On several processes each plays its share of a batch, and `averaged` readies the gradients of
    a player to be the means over all of them.
    """

    recipe: Recipe
    classifier: nn.Module
    attack: Solver | None
    optimisers: dict[str, torch.optim.Optimizer]
    averaged: dict[str, Callable[[], None]] = field(default_factory=dict)

    @classmethod
    def build(
        cls, recipe: Recipe, data: Dataset, device: torch.device, learn: bool = True
    ) -> "Players":
        """New players for the data's classes, channels and size; torch's seed decides weights.
        Who is not to `learn` has no optimisers, the first of which takes two seconds to import."""
        channels, *plane = data.train_images.shape[1:]
        name = recipe.classifier
        make = name if callable(name) else partial(make_classifier, name)
        classifier = _placed(make(data.num_classes, channels, plane[1]), device)
        players = cls(recipe, classifier, None, {})
        if recipe.optimiser and learn:
            theta = classifier.parameters()
            players.optimisers["classifier"] = recipe.optimiser.build(theta, ascend=False)
        if not recipe.optimiser:
            classifier.requires_grad_(False)
        # A last image that would be alone joins the batch before it.
        shape = (recipe.batch_size + 1, channels, plane[0], plane[1])
        players.attack = recipe.solver(shape, data.num_classes)
        if isinstance(players.attack, nn.Module):
            players.attack = _placed(players.attack, device)
            if learn:
                phi = players.attack.parameters()
                climb = recipe.attacker_optimiser.build(phi, ascend=True)
                players.optimisers["attacker"] = climb
        return players

    def modules(self) -> dict[str, nn.Module]:
        """The players that are networks, by the name of their optimiser."""
        players = {"classifier": self.classifier, "attacker": self.attack}
        return {name: m for name, m in players.items() if isinstance(m, nn.Module)}

    def state(self) -> dict:
        """All tensors of the game, for a checkpoint: f, g and the optimisers'."""
        return {name: part.state_dict() for name, part in self._parts()}

    def load(self, state: dict) -> None:
        for name, part in self._parts():
            part.load_state_dict(state[name])

    def _parts(self) -> list[tuple[str, nn.Module | torch.optim.Optimizer]]:
        short = {"classifier": "f", "attacker": "g"}
        return [(short[name], m) for name, m in self.modules().items()] + [
            (f"optimiser {name}", o) for name, o in self.optimisers.items()
        ]

    def join(self) -> None:
        """Play with the other processes of the group, if any, from where the first one stands."""
        if distributed.size() == 1:
            return
        if self.attack and self.attack.batch_dependent:
            raise InputError(
                f"The attack of {self.recipe.name} looks at the whole batch: train in one process."
            )
        for name in self.optimisers:
            self.averaged[name] = distributed.averaged(self.modules()[name])

    def prepare(self, *names: str) -> None:
        """Before a pass that moves these players: no gradients yet, and those to come averaged."""
        for name in names:
            self.optimisers[name].zero_grad(set_to_none=True)
            if name in self.averaged:
                self.averaged[name]()


def _placed(module: Any, device: torch.device) -> Any:
    """The module on the device, its images channels last, which is what convolutions want."""
    if distributed.size() > 1 and device.type == "cuda":
        module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
    return module.to(device).to(memory_format=torch.channels_last)


def step(players: Players, x: Tensor, y: Tensor, weight: float = 1.0) -> Step:
    """One step of the game on a batch, both players from one pass.

    Designed attacks, and the gradient query of learned ones, see the classifier in eval mode, so
    that only the images it trains on move its batch statistics. `weight` is what the mean over
    this batch counts in the mean over all processes.
    """
    recipe, f, solver = players.recipe, players.classifier, players.attack
    players.prepare(*players.optimisers)
    with autocast(recipe, x.device):
        f.eval()
        batch, labels, delta, own = (
            solver.play(f, x, y) if solver else Play(x, y, torch.zeros_like(x))
        )
    if own is not None:  # the solver climbs a value of its own, and not the classifier's loss
        (weight * own).backward(inputs=list(players.modules()["attacker"].parameters()))
        delta = delta.detach()
    with autocast(recipe, x.device):
        f.train(recipe.optimiser is not None)
        logits = f(batch + delta)
        loss = F.cross_entropy(logits, labels)
        total = total_loss(recipe, loss, logits, f, x, y)
    if total.requires_grad:
        (weight * total).backward()  # ∇θ to step down and ∇φ to step up, from the same pass
    for optimiser in players.optimisers.values():
        optimiser.step()
    return loss.detach(), logits.detach()[: len(x)], delta.detach()[: len(x)]


def total_loss(
    recipe: Recipe, loss: Tensor, logits: Tensor, f: nn.Module, x: Tensor, y: Tensor
) -> Tensor:
    """What the players move on: the adversarial loss, with what a recipe adds to it."""
    if recipe.clean_weight:
        loss = loss + recipe.clean_weight * F.cross_entropy(f(x), y)
    if recipe.trades:
        clean = f(x)
        distance = F.kl_div(logits.log_softmax(1), clean.softmax(1), reduction="batchmean")
        loss = F.cross_entropy(clean, y) + recipe.trades * distance
    return loss


def autocast(recipe: Recipe, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16")
