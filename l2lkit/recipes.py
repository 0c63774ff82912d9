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

from l2lkit.attackers import AdvGANAttacker, FreeAttacker, GradAttacker, NaiveAttacker
from l2lkit.attacks import CW, FGSM, PGM, check_positive
from l2lkit.errors import InputError
from l2lkit.generators import NORMALISATIONS, DiverseAttacker

Shape = tuple[int, int, int, int]


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
        """torch's optimiser over the parameters, all of them in one kernel a step."""
        common: dict[str, Any] = {"lr": self.lr, "maximize": ascend, "fused": True}
        if self.kind == "sign":  # Adam with no memory divides each gradient by its magnitude
            return torch.optim.Adam(parameters, betas=(0.0, 0.0), eps=1e-30, **common)
        common["weight_decay"] = self.weight_decay
        if self.kind == "adam":
            return torch.optim.Adam(parameters, betas=self.betas, **common)
        return torch.optim.SGD(
            parameters, momentum=self.momentum, nesterov=self.nesterov, **common
        )

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

    def build(self, shape: Shape, classes: int) -> NaiveAttacker | GradAttacker:
        """The attacker for training batches (N, C, H, W) of this shape, with labels of so many
        classes."""
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

    def build(self, shape: Shape, classes: int) -> FreeAttacker:
        return FreeAttacker(shape, self.epsilon)


# Both players of L2L-DA (section 5.1); only the classifier's rate falls (the authors' code).
DA_SGD = Optimiser(lr=0.01, weight_decay=1e-5)


@dataclass(frozen=True, kw_only=True)
class Diverse:
    """L2L-DA's generator; settings as of `generators.DiverseAttacker`, which see. `diversity` is
    λ: 0.02 on MNIST and 0.5 on CIFAR-10 in the authors' code."""

    epsilon: float = 0.031
    width: float = 1.0
    steps: int = 10
    latent: int = 8
    labels: bool = True
    accumulated: bool = True
    gradient: str = "spatial"
    diversity: float = 0.5
    optimiser: Optimiser = DA_SGD

    def __post_init__(self) -> None:
        check_positive(epsilon=self.epsilon, width=self.width, steps=self.steps)
        if self.gradient not in NORMALISATIONS:
            raise InputError(
                f"gradient must be one of {', '.join(NORMALISATIONS)}, not '{self.gradient}'."
            )
        for name, value in (("diversity", self.diversity), ("latent", self.latent)):
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"{name} must be 0 or more, not {value}.")

    def build(self, shape: Shape, classes: int) -> DiverseAttacker:
        return DiverseAttacker(
            shape[1], classes, self.epsilon, self.width, self.steps, None, self.latent,
            self.labels, self.accumulated, self.gradient, self.diversity,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class AdvGAN:
    """AdvGAN's generator and critic (`attackers.AdvGANAttacker`), one optimiser for both."""

    epsilon: float = 0.031
    width: float = 1.0
    realism: float = 0.1
    optimiser: Optimiser = Optimiser(kind="adam", lr=1e-3)

    def __post_init__(self) -> None:
        check_positive(epsilon=self.epsilon, width=self.width)

    def build(self, shape: Shape, classes: int) -> AdvGANAttacker:
        return AdvGANAttacker(shape[1], self.epsilon, self.width, self.realism)


Player = Learned | Free | Diverse | AdvGAN  # the attacks that learn along


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One defence, as one row of one paper version trains it.

    `attack` solves the inner problem: nothing (None), a fixed attack, or one that learns along
    (`Player`). `optimiser` is the classifier's; with None it stays as it starts, and the attack
    alone learns (see `against`).
    `update`: "simultaneous" steps both players from one pass; "alternating" gives each player
    passes of its own, as the authors' code does (classifier in train mode and attacker in eval
    mode for the first step, the other way round for the second).
    `clean_weight` adds that multiple of the clean loss (the 2018 version steps on clean and on
    adversarial batches; FGSM and PGM Net of v2 do too). `trades` is the β of TRADES (Zhang et al.
    2019, equation 5): where positive, the loss is the clean one plus β KL(f(x) ‖ f(x + δ)).
    `warm_start` is the recipe whose classifier this one starts from, or its name.
    """

    name: str
    defence: str
    source: str
    attack: FGSM | PGM | CW | Player | None
    classifier: str = "wrn-34-10"
    epochs: int = 100
    batch_size: int = 128
    optimiser: Optimiser | None = Optimiser(milestones=(0.3, 0.6, 0.9))
    update: str = "simultaneous"
    clean_weight: float = 0.0
    trades: float = 0.0
    warm_start: "str | Recipe | None" = None
    precision: str = "float32"

    def __post_init__(self) -> None:
        check_positive(epochs=self.epochs, batch_size=self.batch_size)
        if self.optimiser is None and not isinstance(self.attack, Player):
            raise InputError("Without an optimiser nothing learns: give the attack's as well.")
        if self.update not in ("simultaneous", "alternating"):
            raise InputError(f"update must be simultaneous or alternating, not '{self.update}'.")
        both = self.optimiser and not isinstance(self.attack, Diverse | AdvGAN)
        if self.update == "alternating" and not both:
            raise InputError(
                "alternating updates are for two players of one loss: use simultaneous for L2L-DA, "
                "AdvGAN and a fixed classifier."
            )
        if self.precision not in ("float32", "bfloat16"):
            raise InputError(f"precision must be float32 or bfloat16, not '{self.precision}'.")
        for name, value in (("clean_weight", self.clean_weight), ("trades", self.trades)):
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"{name} must be 0 or more, not {value}.")

    def as_dict(self) -> dict:
        """Plain data for a record: everything that decides the outcome of the training."""
        settings = asdict(self) | {"attack_kind": type(self.attack).__name__}
        if isinstance(self.warm_start, Recipe):
            settings["warm_start"] = self.warm_start.name
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


# L2L-DA's generator in its Table 1: without recursion (R), diversity (D), and so on.
ABLATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "full": ("L2L-DA (full)", {}),
    "no-r": ("L2L-DA (R no, D yes)", {"steps": 1}),
    "no-d": ("L2L-DA (R yes, D no)", {"diversity": 0.0}),
    "no-r-no-d": ("L2L-DA (R no, D no)", {"steps": 1, "diversity": 0.0}),
    "no-y": ("L2L-DA (δ yes, y no)", {"labels": False}),
    "no-delta": ("L2L-DA (δ no, y yes)", {"accumulated": False}),
    "no-delta-no-y": ("L2L-DA (δ no, y no)", {"labels": False, "accumulated": False}),
    "no-norm": ("L2L-DA (gradient as it is)", {"gradient": "none"}),
}


def _diverse(version: str, classifier: str, epochs: int, plain_epochs: int, epsilon: float,
             diversity: float) -> list[Recipe]:  # fmt: skip
    """L2L-DA and its baselines on one dataset (sections 5.1 and 5.2): from a classifier trained
    on clean images, 100,000 iterations of 100 images on clean and adversarial batches."""
    sgd = replace(DA_SGD, milestones=(0.5,))
    plain = Recipe(
        name=f"{version}/plain", defence="Plain", source="L2L-DA, section 5.1", attack=None,
        classifier=classifier, epochs=plain_epochs, batch_size=100, optimiser=sgd,
    )  # fmt: skip
    game = replace(plain, epochs=epochs, clean_weight=1.0, warm_start=plain.name)
    step = epsilon / 4
    rows: dict[str, tuple[str, FGSM | PGM | CW | Learned | Diverse]] = {
        "fgsm": ("FGSM", FGSM(epsilon=epsilon)),
        "pgd10": ("PGD-10", PGM(epsilon=epsilon, steps=10, step_size=step)),
        "pgd100": ("PGD-100", PGM(epsilon=epsilon, steps=100, step_size=step)),
        "cw100": ("C&W-100", CW(epsilon=epsilon, steps=100)),
        # Its footnote 1: the 2018 version's Grad L2L, with skip connections.
        "l2l-star": ("L2L*", Learned(steps=1, epsilon=epsilon, network="unet", gradient="none",
                                     optimiser=DA_SGD)),
    }  # fmt: skip
    for key, (defence, off) in ABLATIONS.items():
        settings = {"diversity": diversity} | off
        rows[key] = (defence, Diverse(epsilon=epsilon, **settings))
    return [plain] + [
        replace(game, name=f"{version}/{key}", defence=defence, attack=attack)
        for key, (defence, attack) in rows.items()
    ]


def _l2l_da() -> list[Recipe]:
    # 100,000 iterations are 167 epochs of MNIST, 200 of CIFAR-10.
    return [
        *_diverse("l2l-da", "lenet-5", 167, 20, epsilon=0.3, diversity=0.02),
        *_diverse("l2l-da-cifar10", "resnet-20", 200, 200, epsilon=8 / 255, diversity=0.5),
    ]


def against(model: Recipe, attack: Player, name: str, epochs: int) -> Recipe:
    """The recipe of an attacker `name` that learns alone, for so many epochs, on the classifier
    that `model` trains (L2L-DA, section 5.2: generators fine-tuned to a classifier)."""
    return replace(
        model, name=f"{model.name}+{name}", defence=f"{name} on {model.defence}", attack=attack,
        optimiser=None, epochs=epochs, warm_start=model, clean_weight=0.0, trades=0.0,
        update="simultaneous",
    )  # fmt: skip


RECIPES: dict[str, Recipe] = {
    r.name: r for r in _iclr2020() + _older() + _l2l_da() + _today()
}
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
    whole test set; `random_draws` is the N of random search. `precision` is what the small ones
    train in, float32 where the device has no arithmetic in bfloat16 (`Store`). `threads` is what
    one model trains and is measured with on a CPU, None for all: a small network gains next to
    nothing from a second thread, so a run gives each core a model, and its results do not depend
    on the cores."""

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
    steps: int = 4
    trades: float = 1.0
    precision: str = "bfloat16"
    threads: int | None = 1


PROFILES = {
    "smoke": Profile(
        name="smoke", seeds=1, eval_images=16, curve_images=8, random_draws=5,
        train_images=640, test_images=64, width=1 / 32, plain_epochs=14,
    ),
    "quick": Profile(
        name="quick", seeds=2, eval_images=120, curve_images=48, random_draws=20,
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
    by its replays, and fewer replays. L2L-DA's generator has `steps` steps, just enough to reach
    ε, and Adam: with the paper's SGD it has not begun to attack when the game ends. TRADES has the
    smaller β of the two its authors report: at 6 the small classifier ends at chance.
    """
    if profile.name == "paper":
        return recipe
    if recipe.optimiser is None:
        raise InputError(f"{recipe.name} has no scale of its own: take the classifier's.")
    attack, version = recipe.attack, recipe.name.split("/")[0]
    if isinstance(attack, Learned):
        climb = attack.optimiser
        if climb.kind == "adam":
            climb = replace(climb, lr=profile.attacker_lr)
        attack = replace(attack, width=profile.width, optimiser=climb)
    if isinstance(attack, Diverse):
        climb = Optimiser(kind="adam", lr=profile.attacker_lr, weight_decay=0)
        steps = min(attack.steps, profile.steps)
        attack = replace(attack, width=profile.width, steps=steps, optimiser=climb)
    if isinstance(attack, Free):
        attack = replace(attack, replays=profile.replays)
    plain, old = attack is None, version in ("2018", "v2", "v2-svhn")
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
        warm_start=None if plain else f"{version if old else 'iclr2020'}/plain",
        precision=profile.precision,
    )  # fmt: skip


def profile(name: str) -> Profile:
    if name not in PROFILES:
        raise InputError(f"Unknown profile '{name}': choose {', '.join(PROFILES)}.")
    return PROFILES[name]
