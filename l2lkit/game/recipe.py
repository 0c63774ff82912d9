"""A game as data: who plays, with which optimisers, for how long."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from l2lkit.errors import InputError, check_choice, check_not_negative, check_positive, is_number
from l2lkit.game.identity import identity
from l2lkit.game.solver import Attack, Shape, Solver


@dataclass(frozen=True, kw_only=True)
class Optimiser:
    """One player's optimiser: `sgd`, `adam`, or `sign` (a step of `lr` along the gradient's sign).
    The learning rate is multiplied by `decay` after each of the `milestones`, given as fractions
    of the run. A gradient longer than `clip` is shortened to it; 0 leaves all as they are."""

    kind: str = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 2e-4
    milestones: tuple[float, ...] = ()
    decay: float = 0.1
    clip: float = 0.0

    def __post_init__(self) -> None:
        check_positive(lr=self.lr, decay=self.decay)
        check_not_negative(clip=self.clip, momentum=self.momentum, weight_decay=self.weight_decay)
        check_choice(optimiser=(self.kind, ("sgd", "adam", "sign")))
        shares = (self.momentum, *self.betas, *self.milestones)
        if len(self.betas) != 2 or not all(is_number(s) and 0 <= s < 1 for s in shares):
            raise InputError(
                f"momentum, both betas and all milestones must be from 0 to below 1, not {shares}."
            )
        if self.nesterov and not self.momentum:
            raise InputError("nesterov needs a momentum above 0.")

    def build(self, parameters: Iterable[nn.Parameter], ascend: bool) -> torch.optim.Optimizer:
        """torch's optimiser over the parameters, all of them in one kernel a step."""
        common: dict[str, Any] = {"lr": self.lr, "maximize": ascend, "fused": True}
        if self.kind == "sign":  # Adam with no memory divides each gradient by its magnitude
            return torch.optim.Adam(parameters, betas=(0.0, 0.0), eps=1e-30, **common)
        common["weight_decay"] = self.weight_decay
        made: torch.optim.Optimizer
        if self.kind == "adam":
            made = torch.optim.Adam(parameters, betas=self.betas, **common)
        else:
            made = torch.optim.SGD(
                parameters, momentum=self.momentum, nesterov=self.nesterov, **common
            )
        if self.clip:
            made.register_step_pre_hook(self._shorten)
        return made

    def _shorten(self, optimiser: torch.optim.Optimizer, *_: object) -> None:
        """Clip the gradient of all parameters together."""
        moved = [p for group in optimiser.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(moved, self.clip)

    def lr_at(self, epoch: int, epochs: int) -> float:
        """The learning rate of epoch 0, 1, …, epochs − 1."""
        passed = sum(epoch >= max(1, round(m * epochs)) for m in self.milestones)
        return self.lr * self.decay**passed


ADAM = Optimiser(kind="adam", lr=1e-3)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One defence, as one row of one paper version trains it.

    `attack` solves the inner problem: nothing (None), a designed solver, or what makes a learned
    one from the shape of a batch and the number of classes. `optimiser` is the classifier's; with
    None it stays as it starts, and the attacker alone learns. `attacker_optimiser` is that of a
    learned attacker.
    `update`: "simultaneous" steps both players from one pass; "printed" steps θ, then φ on the new
    θ against the same perturbation, as the papers' algorithms do; "alternating" gives each player
    a turn with passes of its own, as the authors' code does. They are `step`, and
    `step_as_printed` and `step_in_turns` of `l2lkit.game.orders`. "awp" is the first with θ's step
    taken on perturbed weights (`l2lkit.game.awp`).
    `classifier` is a name of `classifiers.make_classifier`, or what makes one of one's own from
    the number of classes, of channels and the images' width.
    `clean_weight` adds that multiple of the clean loss (the 2018 version steps on clean and on
    adversarial batches; FGSM and PGM Net of v2 do too). `trades` is the β of TRADES (Zhang et al.
    2019, equation 5): where positive, the loss is the clean one plus β KL(f(x) ‖ f(x + δ)).
    `warm_start` is the recipe whose classifier this one starts from, or its name.
    """

    name: str
    defence: str
    source: str
    attack: Attack | None
    classifier: str | Callable[[int, int, int], nn.Module] = "wrn-34-10"
    epochs: int = 100
    batch_size: int = 128
    optimiser: Optimiser | None = Optimiser(milestones=(0.3, 0.6, 0.9))
    attacker_optimiser: Optimiser = ADAM
    update: str = "simultaneous"
    clean_weight: float = 0.0
    trades: float = 0.0
    warm_start: "str | Recipe | None" = None
    precision: str = "float32"

    def __post_init__(self) -> None:
        check_positive(epochs=self.epochs, batch_size=self.batch_size)
        check_choice(
            update=(self.update, ("simultaneous", "printed", "alternating", "awp")),
            precision=(self.precision, ("float32", "bfloat16")),
        )
        check_not_negative(clean_weight=self.clean_weight, trades=self.trades)
        if self.trades and self.update in ("printed", "awp"):
            raise InputError(
                f"{self.name}: TRADES has one step for both its losses; use simultaneous."
            )
        if self.optimiser is None and not self.learned:
            raise InputError("Without an optimiser nothing learns: give a learned attack.")

    @property
    def learned(self) -> bool:
        """Whether the attack learns along."""
        return self.attack is not None and not isinstance(self.attack, Solver)

    def solver(self, shape: Shape, classes: int) -> Solver | None:
        """The inner player for training batches (N, C, H, W) of this shape."""
        if self.attack is None or isinstance(self.attack, Solver):
            return self.attack
        made = self.attack(shape, classes)
        if not (isinstance(made, Solver) and made.learns):
            raise InputError(
                f"{self.name}: its attack made a {type(made).__name__}; it must make an "
                "l2lkit.Attacker from a shape and a number of classes."
            )
        if self.update != "simultaneous" and (made.own_value or not self.optimiser):
            raise InputError(
                f"{self.name}: {self.update} updates are for two players of one loss; use "
                "simultaneous where the attacker climbs a value of its own or learns alone."
            )
        return made

    def key(self) -> dict[str, Any]:
        """Plain data for a record: everything that decides the outcome of the training."""
        plain = replace(self, classifier="") if not isinstance(self.classifier, str) else self
        settings = asdict(plain) | {"attack": None}
        if isinstance(self.attack, Solver):
            settings["attack"] = self.attack.key()
        elif self.attack is not None:
            settings["attack"] = identity(self.attack)
        if not isinstance(self.classifier, str):
            settings["classifier"] = identity(self.classifier)
        if isinstance(self.warm_start, Recipe):
            settings["warm_start"] = self.warm_start.name
        if not self.learned:
            del settings["attacker_optimiser"]
        del settings["source"]
        return settings
