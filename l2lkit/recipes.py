"""Every training run as data: a table's row is a recipe, and a profile says at which scale.

A recipe of the name `iclr2020/grad` is what that version's text says, at the paper's scale.
`at_scale` shrinks it to a profile for machines without a GPU and changes nothing else.
"""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace

import torch
from torch import nn

from l2lkit.attackers import GradAttacker, NaiveAttacker
from l2lkit.attacks import CW, FGSM, PGM, check_positive
from l2lkit.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Optimiser:
    """One player's optimiser. The learning rate is multiplied by `decay` after each of the
    `milestones`, given as fractions of the run."""

    kind: str = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 2e-4
    milestones: tuple[float, ...] = ()
    decay: float = 0.1

    def __post_init__(self) -> None:
        check_positive(lr=self.lr, decay=self.decay)
        if self.kind not in ("sgd", "adam"):
            raise InputError(f"Unknown optimiser '{self.kind}': choose sgd or adam.")

    def build(self, parameters: Iterable[nn.Parameter], ascend: bool) -> torch.optim.Optimizer:
        if self.kind == "adam":
            return torch.optim.Adam(
                parameters, self.lr, self.betas, weight_decay=self.weight_decay, maximize=ascend
            )
        return torch.optim.SGD(
            parameters, self.lr, self.momentum, weight_decay=self.weight_decay,
            nesterov=self.nesterov, maximize=ascend,
        )  # fmt: skip

    def lr_at(self, epoch: int, epochs: int) -> float:
        """The learning rate of epoch 0, 1, …, epochs − 1."""
        return self.lr * self.decay ** sum(
            epoch >= max(1, round(m * epochs)) for m in self.milestones
        )


@dataclass(frozen=True, kw_only=True)
class Learned:
    """A learned attacker and its optimiser. `steps` = 0 is Naive (the image alone), 1 is Grad,
    2 is the papers' 2-Step."""

    steps: int
    epsilon: float = 0.031
    network: str = "iclr2020"
    width: float = 1.0
    gradient: str = "per-image"
    optimiser: Optimiser = Optimiser(kind="adam", lr=1e-3)

    def build(self, channels: int) -> NaiveAttacker | GradAttacker:
        if self.steps == 0:
            return NaiveAttacker(self.network, channels, self.epsilon, self.width)
        return GradAttacker(
            self.network, channels, self.epsilon, self.width, self.steps, self.gradient
        )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One defence, as one row of one paper version trains it.

    `attack` solves the inner problem: nothing (None), a fixed attack, or a `Learned` one.
    `update`: "simultaneous" steps both players from one pass; "alternating" gives each player
    passes of its own, as the authors' code does (classifier in train mode and attacker in eval
    mode for the first step, the other way round for the second).
    `clean_weight` adds that multiple of the clean loss (the 2018 version steps on clean and on
    adversarial batches; FGSM and PGM Net of v2 do too).
    `warm_start` names the recipe whose classifier this one starts from.
    """

    name: str
    defence: str
    source: str
    attack: FGSM | PGM | CW | Learned | None
    classifier: str = "wrn-34-10"
    epochs: int = 100
    batch_size: int = 128
    optimiser: Optimiser = Optimiser(milestones=(0.3, 0.6, 0.9))
    update: str = "simultaneous"
    clean_weight: float = 0.0
    warm_start: str | None = None
    precision: str = "float32"

    def __post_init__(self) -> None:
        check_positive(epochs=self.epochs, batch_size=self.batch_size)
        if self.update not in ("simultaneous", "alternating"):
            raise InputError(f"update must be simultaneous or alternating, not '{self.update}'.")
        if self.precision not in ("float32", "bfloat16"):
            raise InputError(f"precision must be float32 or bfloat16, not '{self.precision}'.")
        if not (math.isfinite(self.clean_weight) and self.clean_weight >= 0):
            raise InputError(f"clean_weight must be 0 or more, not {self.clean_weight}.")

    def as_dict(self) -> dict:
        """Plain data for a record: everything that decides the outcome of the training."""
        return asdict(self) | {"attack_kind": type(self.attack).__name__}


def _iclr2020() -> list[Recipe]:
    source = "ICLR 2020, section 3"
    plain = Optimiser(
        lr=0.1, weight_decay=5e-4, nesterov=True, milestones=(0.3, 0.6, 0.8), decay=0.2
    )
    pgm = PGM(steps=10, step_size=0.007)
    rows = [
        ("plain", "Plain Net", None), ("fgsm", "FGSM Net", FGSM()), ("pgm", "PGM Net", pgm),
        ("cw", "CW Net", CW(steps=10)), ("naive", "Naive L2L", Learned(steps=0)),
        ("grad", "Grad L2L", Learned(steps=1)), ("2step", "2-Step L2L", Learned(steps=2)),
    ]  # fmt: skip
    recipes = [
        Recipe(name=f"iclr2020/{key}", defence=defence, source=source, attack=attack)
        for key, defence, attack in rows
    ]
    # Plain Net follows Zagoruyko and Komodakis (2016): 200 epochs, rate 0.1 divided by 5.
    recipes[0] = replace(recipes[0], epochs=200, optimiser=plain)
    return recipes


def _older() -> list[Recipe]:
    """One row each of the two older versions, which use what ICLR 2020 does not: the six-layer
    and wide networks, an SGD attacker, a clean loss, a warm start from Plain Net."""
    sgd = Optimiser(lr=0.1, weight_decay=1e-4, milestones=(0.75,))
    plain = Recipe(
        name="2018/plain", defence="Plain Net", source="2018 version, section 3", attack=None,
        classifier="wrn-34-4", epochs=200,
        optimiser=Optimiser(
            lr=0.1, weight_decay=5e-4, nesterov=True, milestones=(0.3, 0.6, 0.8), decay=0.2
        ),
    )  # fmt: skip
    grad = Recipe(
        name="2018/grad", defence="Grad L2L", source="2018 version, section 3, Tables 1 and 3",
        attack=Learned(steps=1, epsilon=0.03, network="2018", optimiser=sgd),
        classifier="wrn-34-4", epochs=40, optimiser=sgd, clean_weight=1.0,
        warm_start="2018/plain",
    )  # fmt: skip
    wide = replace(
        grad, name="v2/2step-wide", defence="2-Step L2L", source="second version, section 3.2",
        attack=Learned(steps=2, epsilon=0.03, network="v2-wide", optimiser=sgd), clean_weight=0.0,
    )  # fmt: skip
    return [plain, grad, wide]


RECIPES: dict[str, Recipe] = {r.name: r for r in _iclr2020() + _older()}
DEFENCES = ("plain", "fgsm", "pgm", "naive", "grad", "2step")  # the rows the notebooks compare


def recipe(name: str) -> Recipe:
    """The recipe of that name at the paper's scale; InputError lists the names there are."""
    if name not in RECIPES:
        raise InputError(f"Unknown recipe '{name}': choose {', '.join(RECIPES)}.")
    return RECIPES[name]


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A scale: how much data, how large the networks, how long, how many seeds. `eval_images` is
    the number of test images in the tables, `curve_images` that in the figures' sweeps, None the
    whole test set; `random_draws` is the N of random search. `threads` is what one model trains
    and is measured with on a CPU, None for all: a small network gains next to nothing from a
    second thread, so a run gives each core a model, and its results do not depend on the cores."""

    name: str
    seeds: int
    eval_images: int | None
    curve_images: int | None
    random_draws: int
    train_images: int | None = None
    test_images: int | None = None
    classifier: str = "wrn-10-1"
    width: float = 1.0
    plain_epochs: int = 1
    epochs: int = 1
    batch_size: int = 64
    plain_lr: float = 0.1
    lr: float = 0.05
    attacker_lr: float = 5e-3
    precision: str = "bfloat16"
    threads: int | None = 1


PROFILES = {
    "smoke": Profile(
        name="smoke", seeds=1, eval_images=32, curve_images=16, random_draws=5,
        train_images=1000, test_images=64, width=1 / 32, plain_epochs=14,
    ),
    "quick": Profile(
        name="quick", seeds=3, eval_images=150, curve_images=64, random_draws=20,
        train_images=3000, test_images=1000, width=1 / 16, plain_epochs=14, epochs=4,
    ),
    "paper": Profile(
        name="paper", seeds=1, eval_images=None, curve_images=1000, random_draws=10_000,
        threads=None,
    ),
}  # fmt: skip


def at_scale(recipe: Recipe, profile: Profile) -> Recipe:
    """The recipe at the profile's size; the paper profile's is the recipe itself.

    A small run starts from the Plain Net, as the two older versions do: from scratch, the learned
    attackers push a small classifier to chance before it has learnt anything. Its attacker learns
    faster, since it has a small fraction of the paper's steps to learn in.
    """
    if profile.name == "paper":
        return recipe
    attack = recipe.attack
    if isinstance(attack, Learned):
        climb = replace(attack.optimiser, lr=profile.attacker_lr)
        attack = replace(attack, width=profile.width, optimiser=climb)
    plain = attack is None
    return replace(
        recipe,
        attack=attack,
        classifier=profile.classifier,
        epochs=profile.plain_epochs if plain else profile.epochs,
        batch_size=profile.batch_size,
        optimiser=replace(
            recipe.optimiser, lr=profile.plain_lr if plain else profile.lr,
            milestones=(0.5, 0.8), decay=0.2,
        ),
        warm_start=None if plain else f"{recipe.name.split('/')[0]}/plain",
        precision=profile.precision,
    )  # fmt: skip


def profile(name: str) -> Profile:
    if name not in PROFILES:
        raise InputError(f"Unknown profile '{name}': choose {', '.join(PROFILES)}.")
    return PROFILES[name]
