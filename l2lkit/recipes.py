"""Every training run as data: a table's row is a recipe, and a profile says at which scale.

A recipe of the name `iclr2020/grad` is what that version's text says, at the paper's scale.
`at_scale` shrinks it to a profile for machines without a GPU and changes nothing else.
"""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from l2lkit.attackers import FreeAttacker, GradAttacker, NaiveAttacker
from l2lkit.attacks import CW, FGSM, PGM, check_positive
from l2lkit.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Optimiser:
    """One player's optimiser: `sgd`, `adam`, or `sign` (a step of `lr` along the gradient's sign).
    The learning rate is multiplied by `decay` after each of the `milestones`, given as fractions
    of the run."""

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
        if self.kind not in ("sgd", "adam", "sign"):
            raise InputError(f"Unknown optimiser '{self.kind}': choose sgd, adam or sign.")

    def build(self, parameters: Iterable[nn.Parameter], ascend: bool) -> torch.optim.Optimizer:
        if self.kind == "sign":  # Adam with no memory divides each gradient by its magnitude
            return torch.optim.Adam(
                parameters, self.lr, betas=(0.0, 0.0), eps=1e-30, maximize=ascend
            )
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

    def build(self, shape: tuple[int, int, int, int]) -> NaiveAttacker | GradAttacker:
        """The attacker for training batches (N, C, H, W) of this shape."""
        channels = shape[1]
        if self.steps == 0:
            return NaiveAttacker(self.network, channels, self.epsilon, self.width)
        return GradAttacker(
            self.network, channels, self.epsilon, self.width, self.steps, self.gradient
        )


@dataclass(frozen=True, kw_only=True)
class Free:
    """Free adversarial training (Shafahi et al. 2019, Algorithm 1): the inner player's parameters
    are the perturbation itself. It steps by ε along its gradient's sign, from the same pass as
    the classifier, and every batch is played `replays` (their m) times in a row."""

    epsilon: float = 0.031
    replays: int = 8

    def __post_init__(self) -> None:
        check_positive(epsilon=self.epsilon, replays=self.replays)

    @property
    def optimiser(self) -> Optimiser:
        return Optimiser(kind="sign", lr=self.epsilon, weight_decay=0)

    def build(self, shape: tuple[int, int, int, int]) -> FreeAttacker:
        return FreeAttacker(shape, self.epsilon)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One defence, as one row of one paper version trains it.

    `attack` solves the inner problem: nothing (None), a fixed attack, or one that learns along
    (`Learned`, `Free`).
    `update`: "simultaneous" steps both players from one pass; "alternating" gives each player
    passes of its own, as the authors' code does (classifier in train mode and attacker in eval
    mode for the first step, the other way round for the second).
    `clean_weight` adds that multiple of the clean loss (the 2018 version steps on clean and on
    adversarial batches; FGSM and PGM Net of v2 do too). `trades` is the β of TRADES (Zhang et al.
    2019, equation 5): where positive, the loss is the clean one plus β KL(f(x) ‖ f(x + δ)).
    `warm_start` names the recipe whose classifier this one starts from.
    """

    name: str
    defence: str
    source: str
    attack: FGSM | PGM | CW | Learned | Free | None
    classifier: str = "wrn-34-10"
    epochs: int = 100
    batch_size: int = 128
    optimiser: Optimiser = Optimiser(milestones=(0.3, 0.6, 0.9))
    update: str = "simultaneous"
    clean_weight: float = 0.0
    trades: float = 0.0
    warm_start: str | None = None
    precision: str = "float32"

    def __post_init__(self) -> None:
        check_positive(epochs=self.epochs, batch_size=self.batch_size)
        if self.update not in ("simultaneous", "alternating"):
            raise InputError(f"update must be simultaneous or alternating, not '{self.update}'.")
        if self.precision not in ("float32", "bfloat16"):
            raise InputError(f"precision must be float32 or bfloat16, not '{self.precision}'.")
        for name, value in (("clean_weight", self.clean_weight), ("trades", self.trades)):
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"{name} must be 0 or more, not {value}.")

    def as_dict(self) -> dict:
        """Plain data for a record: everything that decides the outcome of the training."""
        settings = asdict(self) | {"attack_kind": type(self.attack).__name__}
        del settings["source"]
        return settings


# Plain Net follows Zagoruyko and Komodakis (2016): 200 epochs, rate 0.1 divided by 5.
WRN = Optimiser(lr=0.1, weight_decay=5e-4, nesterov=True, milestones=(0.3, 0.6, 0.8), decay=0.2)
WRN_SVHN = Optimiser(lr=0.1, weight_decay=5e-4, milestones=(0.5, 0.75))


def _iclr2020() -> list[Recipe]:
    """Everything from scratch, 100 epochs (section 3); the slim network is Appendix B's."""
    plain = Recipe(
        name="iclr2020/plain", defence="Plain Net", source="ICLR 2020, section 3", attack=None,
        epochs=200, optimiser=WRN,
    )  # fmt: skip
    rows: list[tuple[str, str, FGSM | PGM | CW | Learned]] = [
        ("fgsm", "FGSM Net", FGSM()), ("pgm", "PGM Net", PGM(steps=10, step_size=0.007)),
        ("cw", "CW Net", CW(steps=10)), ("naive", "Naive L2L", Learned(steps=0)),
        ("grad", "Grad L2L", Learned(steps=1)), ("2step", "2-Step L2L", Learned(steps=2)),
    ]  # fmt: skip
    made = [
        Recipe(name=f"iclr2020/{key}", defence=defence, source=plain.source, attack=attack)
        for key, defence, attack in rows
    ]
    slim = [
        replace(
            r, name=f"{r.name}-slim", defence=f"{r.defence} (S)", source="ICLR 2020, Appendix B",
            attack=replace(r.attack, network="v2-slim"),
        )
        for r in made if isinstance(r.attack, Learned)
    ]  # fmt: skip
    return [plain, *made, *slim]


def _from_plain(version: str, source: str, epsilon: float, pgm: PGM, plain: Optimiser,
                plain_epochs: int, sgd: Optimiser) -> list[Recipe]:  # fmt: skip
    """Plain, FGSM and PGM Net of the two older versions. All but Plain Net start from it, on
    WRN-34-4, for 40 epochs; FGSM and PGM Net at a fixed rate of 0.01 and on clean and adversarial
    batches (where the texts take the two steps in turn, one step takes both losses)."""
    fixed = replace(sgd, lr=0.01, milestones=())
    shared: dict[str, Any] = {"source": source, "classifier": "wrn-34-4"}
    warm = shared | {"epochs": 40, "warm_start": f"{version}/plain", "clean_weight": 1.0}
    return [
        Recipe(name=f"{version}/plain", defence="Plain Net", attack=None, epochs=plain_epochs,
               optimiser=plain, **shared),
        Recipe(name=f"{version}/fgsm", defence="FGSM Net", attack=FGSM(epsilon=epsilon),
               optimiser=fixed, **warm),
        Recipe(name=f"{version}/pgm", defence="PGM Net", attack=pgm, optimiser=fixed, **warm),
    ]  # fmt: skip


ATTACKERS = (("naive", "Naive L2L", 0), ("grad", "Grad L2L", 1), ("2step", "2-Step L2L", 2))


def _2018() -> list[Recipe]:
    sgd = Optimiser(lr=0.1, weight_decay=1e-4, milestones=(0.75,))
    pgm = PGM(epsilon=0.03, steps=10, step_size=0.003, start="zero")
    designed = _from_plain("2018", "2018 version, section 3", 0.03, pgm, WRN, 200, sgd)
    learned = [
        replace(
            designed[-1], name=f"2018/{key}", defence=defence, optimiser=sgd,
            attack=Learned(steps=steps, epsilon=0.03, network="2018", optimiser=sgd),
        )
        for key, defence, steps in ATTACKERS[:2]
    ]  # fmt: skip
    return designed + learned


def _v2(version: str, source: str, epsilon: float, plain: Optimiser, plain_epochs: int,
        theta: Optimiser, phi: Optimiser) -> list[Recipe]:  # fmt: skip
    """The second version: slim and wide attackers; its L2L trains on adversarial batches only."""
    sgd = Optimiser(lr=0.1, weight_decay=1e-4)
    pgm = PGM(epsilon=epsilon, steps=10, step_size=0.01, start="zero")
    designed = _from_plain(version, source, epsilon, pgm, plain, plain_epochs, sgd)
    learned = [
        replace(
            designed[-1], name=f"{version}/{key}-{size}", defence=f"{defence} ({size[0].upper()})",
            clean_weight=0.0, optimiser=theta,
            attack=Learned(steps=steps, epsilon=epsilon, network=f"v2-{size}", optimiser=phi),
        )
        for size in ("slim", "wide")
        for key, defence, steps in ATTACKERS
    ]  # fmt: skip
    return designed + learned


def _older() -> list[Recipe]:
    sgd = Optimiser(lr=0.1, weight_decay=1e-4, milestones=(0.75,))
    adam = Optimiser(kind="adam", betas=(0.9, 0.99), weight_decay=1e-4)
    return [
        *_2018(),
        *_v2("v2", "second version, sections 3.1 and 3.2", 0.03, WRN, 200, sgd, sgd),
        *_v2("v2-svhn", "second version, sections 3.1 and 3.3", 0.05, WRN_SVHN, 160,
             replace(adam, lr=2e-4, milestones=(0.75,)), replace(adam, lr=1e-3)),
    ]  # fmt: skip


def _today() -> list[Recipe]:
    """What a user would pick today, in the setting of ICLR 2020 (ε, classifier, optimiser), so
    that the rows compare: the methods are their authors', the schedules are not."""
    return [
        # Replays count as epochs, as their authors count: 12 times 8.
        Recipe(name="today/free", defence="Free", source="Shafahi et al. 2019, Algorithm 1",
               attack=Free(), epochs=12),
        Recipe(name="today/fgsm-rs", defence="FGSM-RS", source="Wong et al. 2020, Algorithm 3",
               attack=PGM(steps=1, step_size=1.25 * 0.031)),
        Recipe(name="today/trades", defence="TRADES", source="Zhang et al. 2019, Algorithm 1",
               attack=PGM(steps=10, step_size=0.007, start="gaussian", against="prediction"),
               trades=6.0),
    ]  # fmt: skip


RECIPES: dict[str, Recipe] = {r.name: r for r in _iclr2020() + _older() + _today()}
# The rows that a run trains and the notebooks compare, ICLR 2020 where no version is named.
DEFENCES = ("plain", "fgsm", "pgm", "naive", "grad", "2step")
SLIM = ("naive-slim", "grad-slim", "2step-slim")
TODAY = ("today/free", "today/fgsm-rs", "today/trades")


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
    replays: int = 4
    trades: float = 1.0
    precision: str = "bfloat16"
    threads: int | None = 1


PROFILES = {
    "smoke": Profile(
        name="smoke", seeds=1, eval_images=32, curve_images=16, random_draws=5,
        train_images=1000, test_images=64, width=1 / 32, plain_epochs=14,
    ),
    "quick": Profile(
        name="quick", seeds=3, eval_images=120, curve_images=48, random_draws=20,
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
    attackers push a small classifier to chance before it has learnt anything. An Adam attacker
    learns faster, since it has a small fraction of the paper's steps to learn in; a classifier
    with Adam keeps its rate. Free training has as many epochs as the others, too few to divide
    by its replays, and fewer replays. TRADES has the smaller β of the two its authors report: at
    6 the small classifier ends at chance.
    """
    if profile.name == "paper":
        return recipe
    attack, version = recipe.attack, recipe.name.split("/")[0]
    if isinstance(attack, Learned):
        climb = attack.optimiser
        if climb.kind == "adam":
            climb = replace(climb, lr=profile.attacker_lr)
        attack = replace(attack, width=profile.width, optimiser=climb)
    if isinstance(attack, Free):
        attack = replace(attack, replays=profile.replays)
    plain = attack is None
    rate = profile.plain_lr if plain else profile.lr
    return replace(
        recipe,
        attack=attack,
        classifier=profile.classifier,
        epochs=profile.plain_epochs if plain else profile.epochs,
        batch_size=profile.batch_size,
        trades=min(recipe.trades, profile.trades),
        optimiser=replace(
            recipe.optimiser, lr=recipe.optimiser.lr if recipe.optimiser.kind == "adam" else rate,
            milestones=(0.5, 0.8), decay=0.2,
        ),
        warm_start=None if plain else f"{'iclr2020' if version == 'today' else version}/plain",
        precision=profile.precision,
    )  # fmt: skip


def profile(name: str) -> Profile:
    if name not in PROFILES:
        raise InputError(f"Unknown profile '{name}': choose {', '.join(PROFILES)}.")
    return PROFILES[name]
