"""Every row of every version as a recipe, at the papers' scale.

A name is `version/row`. A recipe of that name is what the version prints; `version/row@code` is
what the authors' code does in its place, and `version/row@ours` what measured better here, which is
what the profiles play (`grad` is short for `iclr2020/grad@ours`). Where they are the same there is
one name. Settings that a text leaves open are said where they are filled.
"""

from dataclasses import replace
from typing import Any

from l2lkit import names
from l2lkit.diverse.generator import Diverse
from l2lkit.game.cw import CW
from l2lkit.game.fixed import FGSM, PGM
from l2lkit.game.free import Free
from l2lkit.game.interpolation import Interpolation, LearnedInterpolation
from l2lkit.game.learned import Learned
from l2lkit.game.recipe import Optimiser, Recipe
from l2lkit.game.solver import Attack
from l2lkit.recipes.controls import controls

# Plain Net follows Zagoruyko and Komodakis (2016): 200 epochs, rate 0.1 divided by 5.
WRN = Optimiser(lr=0.1, weight_decay=5e-4, nesterov=True, milestones=(0.3, 0.6, 0.8), decay=0.2)
ATTACKERS = (("naive", "Naive L2L", 0), ("grad", "Grad L2L", 1), ("2step", "2-Step L2L", 2))
# On SVHN v2 trains it at a fixed rate of 0.1, and names no decay of the weights.
WRN_SVHN = Optimiser(lr=0.1, weight_decay=0)

# How a learned row differs from what its text prints, and the words for it. The public code is that
# of ICLR 2020's setting; its script stops at epoch 76 unless told otherwise. Its classifier has one
# more block, which is never used and left out. A network not named stays.
OUR_NETWORKS = {
    "iclr2020": "iclr2020-norm",
    "iclr2020-slim": "code-slim",
    "v2-slim": "code-slim",
}
CODE_NETWORKS = {"iclr2020": "v2-wide", "iclr2020-slim": "code-slim"}
CODE_SGD = Optimiser(milestones=(30 / 76, 60 / 76))


def _as_printed_and_ours(row: Recipe) -> list[Recipe]:
    """The recipe of a learned attacker as its text prints it (the gradient enters as it is, θ
    steps before φ), and as it measured better here (the gradient over its largest value, image by
    image; both players from one pass)."""
    attack = row.attack
    assert isinstance(attack, Learned)
    printed = replace(
        row,
        defence=f"{row.defence}, as printed",
        attack=replace(attack, gradient="none"),
        update="printed",
    )
    ours = replace(
        row,
        name=f"{row.name}@ours",
        source=f"{row.source}, with what measured better here",
        attack=replace(attack, network=OUR_NETWORKS.get(attack.network, attack.network)),
    )
    return [printed, ours]


def _as_coded(row: Recipe) -> Recipe:
    """The same as the authors' code plays it (the gradient over the largest value of its batch,
    the players in turns with passes of their own)."""
    attack = row.attack
    assert isinstance(attack, Learned)
    return replace(
        row,
        name=f"{row.name}@code",
        defence=f"{row.defence}, authors' code",
        source=f"the authors' code, in the setting of {row.source}",
        attack=replace(attack, gradient="batch-max", network=CODE_NETWORKS[attack.network]),
        update="alternating",
        epochs=76,
        optimiser=CODE_SGD,
    )


def _iclr2020() -> list[Recipe]:
    """Everything from scratch, 100 epochs (section 3); the slim network is Appendix B's.

    Its PGM Net starts at δ = 0, as equation 2 has it; ours starts anywhere in the ball. Naive L2L
    is not in the code, and no text has a CW Net."""
    plain = Recipe(
        name="iclr2020/plain",
        defence="Plain Net",
        source="ICLR 2020, section 3",
        attack=None,
        epochs=200,
        optimiser=WRN,
    )
    fgsm = Recipe(
        name="iclr2020/fgsm",
        defence="FGSM Net",
        source="ICLR 2020, Appendix A, as a surrogate",
        attack=FGSM(),
    )
    uniform = PGM(steps=10, step_size=0.007)
    printed = Recipe(
        name="iclr2020/pgm",
        defence="PGM Net, as printed",
        source=plain.source,
        attack=replace(uniform, start="zero"),
    )
    pgm = replace(
        printed,
        name="iclr2020/pgm@ours",
        defence="PGM Net",
        source=f"{plain.source}, with a uniform start",
        attack=uniform,
    )
    cw = replace(
        pgm,
        name="iclr2020/cw@ours",
        defence="CW Net",
        source="the setting of ICLR 2020, section 3; no text has this row",
        attack=CW(steps=10),
    )
    learned = []
    for suffix, size, source, network in (
        ("", "", plain.source, "iclr2020"),
        ("-slim", " (S)", "ICLR 2020, Appendix B", "iclr2020-slim"),
    ):
        for key, defence, steps in ATTACKERS:
            row = Recipe(
                name=f"iclr2020/{key}{suffix}",
                defence=defence + size,
                source=source,
                attack=Learned(steps=steps, network=network),
            )
            coded = [_as_coded(row)] if steps else []
            learned += [*_as_printed_and_ours(row), *coded]
    return [plain, fgsm, printed, pgm, cw, *learned]


def _from_plain(
    version: str,
    source: str,
    epsilon: float,
    pgm: PGM,
    plain: Optimiser,
    plain_epochs: int,
    sgd: Optimiser,
) -> list[Recipe]:
    """Plain, FGSM and PGM Net of the two older versions. All but Plain Net start from it, on
    WRN-34-4, for 40 epochs; FGSM and PGM Net at a fixed rate of 0.01 and on clean and adversarial
    batches, from one step (v2 does not say in which order; 2018 does). For SVHN the rate and the
    clean batches are those of v2's CIFAR section, since section 3.3 names none."""
    fixed = replace(sgd, lr=0.01, milestones=())
    shared: dict[str, Any] = {"source": source, "classifier": "wrn-34-4"}
    warm = shared | {"epochs": 40, "warm_start": f"{version}/plain", "clean_weight": 1.0}
    return [
        Recipe(
            name=f"{version}/plain",
            defence="Plain Net",
            attack=None,
            epochs=plain_epochs,
            optimiser=plain,
            **shared,
        ),
        Recipe(
            name=f"{version}/fgsm",
            defence="FGSM Net",
            attack=FGSM(epsilon=epsilon),
            optimiser=fixed,
            **warm,
        ),
        Recipe(name=f"{version}/pgm", defence="PGM Net", attack=pgm, optimiser=fixed, **warm),
    ]


def _2018() -> list[Recipe]:
    """The first version. Its algorithms step θ on the clean batch before the adversarial one. It
    gives momentum and decay for φ only; θ has the same."""
    sgd = Optimiser(lr=0.1, weight_decay=1e-4, milestones=(0.75,))
    pgm = PGM(epsilon=0.03, steps=10, step_size=0.003, start="zero")
    designed = _from_plain("2018", "2018 version, section 3", 0.03, pgm, WRN, 200, sgd)
    rows = designed[:1] + [replace(r, update="printed") for r in designed[1:]]
    for key, defence, steps in ATTACKERS[:2]:
        rows += _as_printed_and_ours(
            replace(
                designed[-1],
                name=f"2018/{key}",
                defence=defence,
                optimiser=sgd,
                attacker_optimiser=sgd,
                attack=Learned(steps=steps, epsilon=0.03, network="2018"),
            )
        )
    return rows


def _v2(
    version: str,
    source: str,
    epsilon: float,
    plain: Optimiser,
    plain_epochs: int,
    theta: Optimiser,
    phi: Optimiser,
) -> list[Recipe]:
    """The second version: slim and wide attackers; its L2L trains on adversarial batches only."""
    sgd = Optimiser(lr=0.1, weight_decay=1e-4)
    pgm = PGM(epsilon=epsilon, steps=10, step_size=0.01, start="zero")
    rows = _from_plain(version, source, epsilon, pgm, plain, plain_epochs, sgd)
    warm = replace(rows[-1], clean_weight=0.0, optimiser=theta, attacker_optimiser=phi)
    for size in ("slim", "wide"):
        for key, defence, steps in ATTACKERS:
            rows += _as_printed_and_ours(
                replace(
                    warm,
                    name=f"{version}/{key}-{size}",
                    defence=f"{defence} ({size[0].upper()})",
                    attack=Learned(steps=steps, epsilon=epsilon, network=f"v2-{size}"),
                )
            )
    return rows


def _older() -> list[Recipe]:
    sgd = Optimiser(lr=0.1, weight_decay=1e-4, milestones=(0.75,))
    adam = Optimiser(kind="adam", betas=(0.9, 0.99), weight_decay=1e-4)
    return [
        *_2018(),
        *_v2("v2", "second version, sections 3.1 and 3.2", 0.03, WRN, 200, sgd, sgd),
        *_v2(
            "v2-svhn",
            "second version, sections 3.1 and 3.3",
            0.05,
            WRN_SVHN,
            160,
            replace(adam, lr=2e-4, milestones=(0.75,)),
            replace(adam, lr=1e-3),
        ),
    ]


def _today() -> list[Recipe]:
    """What a user would pick today, in the setting of ICLR 2020 (ε, classifier, optimiser), so
    that the rows compare: the methods are their authors', the schedules are not."""
    return [
        # Replays count as epochs, as their authors count: 12 times 8.
        Recipe(
            name="today/free",
            defence="Free",
            source="Shafahi et al. 2019, Algorithm 1",
            attack=Free(),
            epochs=12,
            attacker_optimiser=Free().optimiser,
        ),
        Recipe(
            name="today/fgsm-rs",
            defence="FGSM-RS",
            source="Wong et al. 2020, Algorithm 3",
            attack=PGM(steps=1, step_size=1.25 * 0.031),
        ),
        Recipe(
            name="today/trades",
            defence="TRADES",
            source="Zhang et al. 2019, Algorithm 1",
            attack=PGM(steps=10, step_size=0.007, start="gaussian", against="prediction"),
            trades=6.0,
        ),
        Recipe(
            name="today/interpolation",
            defence="Interpolation",
            source="Zhang and Xu 2020, adversarial interpolation",
            attack=Interpolation(),
        ),
        # The inner step learned, with the code's λ; as in our other rows both players move from
        # one pass, where the code computes δ anew once φ has moved.
        Recipe(
            name="today/grad-interpolation",
            defence="Grad interpolation",
            source="the authors' code of the AISTATS 2021 version",
            attack=LearnedInterpolation(),
        ),
        Recipe(
            name="today/2step-interpolation",
            defence="2-Step interpolation",
            source="the authors' code of the AISTATS 2021 version",
            attack=LearnedInterpolation(steps=2, weight=0.9),
        ),
    ]


# Both players of L2L-DA (section 5.1); only the classifier's rate falls (the authors' code).
DA_SGD = Optimiser(lr=0.01, weight_decay=1e-5)
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


def _diverse(
    version: str, classifier: str, epochs: int, plain_epochs: int, epsilon: float, diversity: float
) -> list[Recipe]:
    """L2L-DA and its baselines on one dataset (sections 5.1 and 5.2): from a classifier trained
    on clean images, 100,000 iterations of 100 images on clean and adversarial batches."""
    sgd = replace(DA_SGD, milestones=(0.5,))
    plain = Recipe(
        name=f"{version}/plain",
        defence="Plain",
        source="L2L-DA, section 5.1",
        attack=None,
        classifier=classifier,
        epochs=plain_epochs,
        batch_size=100,
        optimiser=sgd,
    )
    game = replace(
        plain, epochs=epochs, clean_weight=1.0, warm_start=plain.name, attacker_optimiser=DA_SGD
    )
    step = epsilon / 4
    rows: dict[str, tuple[str, Attack]] = {
        "fgsm": ("FGSM", FGSM(epsilon=epsilon)),
        "pgd10": ("PGD-10", PGM(epsilon=epsilon, steps=10, step_size=step)),
        "pgd100": ("PGD-100", PGM(epsilon=epsilon, steps=100, step_size=step)),
        "cw100": ("C&W-100", CW(epsilon=epsilon, steps=100)),
        # Its footnote 1: the 2018 version's Grad L2L, with skip connections.
        "l2l-star": ("L2L*", Learned(steps=1, epsilon=epsilon, network="unet", gradient="none")),
    }
    for key, (defence, off) in ABLATIONS.items():
        settings = {"diversity": diversity} | off
        rows[key] = (defence, Diverse(epsilon=epsilon, **settings))
    return [plain] + [
        replace(game, name=f"{version}/{key}", defence=defence, attack=attack)
        for key, (defence, attack) in rows.items()
    ]


def _diverse_as_coded(row: Recipe) -> Recipe:
    """L2L-DA as its authors' code plays it: another U-Net, sums over the steps, one batch of clean
    and adversarial images, and no gradient longer than 1."""
    assert isinstance(row.attack, Diverse) and row.optimiser
    return replace(
        row,
        name=f"{row.name}@code",
        defence=f"{row.defence}, authors' code",
        source="the authors' code, in the setting of L2L-DA, section 5.1",
        attack=replace(row.attack, network="unet-code", objective="sum", with_clean=True),
        optimiser=replace(row.optimiser, clip=1.0),
        attacker_optimiser=replace(row.attacker_optimiser, clip=1.0),
        clean_weight=0.0,
    )


def _l2l_da() -> list[Recipe]:
    # 100,000 iterations are 167 epochs of MNIST, 200 of CIFAR-10. The text does not say how long
    # the classifier is trained on clean images first; on MNIST the authors' code takes the first
    # 1,000 of its iterations, which are 1⅔ epochs.
    mnist = _diverse("l2l-da", "lenet-5", 167, 20, epsilon=0.3, diversity=0.02)
    cifar = _diverse("l2l-da-cifar10", "resnet-20", 200, 200, epsilon=8 / 255, diversity=0.5)
    start = replace(
        mnist[0],
        name="l2l-da/start@code",
        defence="Plain, 1,000 iterations",
        source="the authors' code",
        epochs=2,
        optimiser=replace(DA_SGD, clip=1.0),
    )
    coded = [_diverse_as_coded(row) for row in mnist if isinstance(row.attack, Diverse)]
    coded = [replace(row, warm_start=start.name) for row in coded]
    coded_cifar = [_diverse_as_coded(row) for row in cifar if isinstance(row.attack, Diverse)]
    return [*mnist, start, *coded, *cifar, *coded_cifar]


def against(model: Recipe, attack: Attack, optimiser: Optimiser, name: str, epochs: int) -> Recipe:
    """The recipe of an attacker `name` that learns alone, for so many epochs, on the classifier
    that `model` trains (L2L-DA, section 5.2: generators fine-tuned to a classifier)."""
    return replace(
        model,
        name=f"{model.name}+{name}",
        defence=f"{name} on {model.defence}",
        attack=attack,
        attacker_optimiser=optimiser,
        optimiser=None,
        epochs=epochs,
        warm_start=model,
        clean_weight=0.0,
        trades=0.0,
        update="simultaneous",
    )


ROWS = (*_iclr2020(), *_older(), *_l2l_da(), *_today(), *controls())
RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in ROWS}
# The rows that a run trains and the notebooks compare, ICLR 2020 where no version is named.
DEFENCES = ("plain", "fgsm", "pgm", "naive", "grad", "2step")
SLIM = ("naive-slim", "grad-slim", "2step-slim")
TODAY = ("today/free", "today/fgsm-rs", "today/trades")
INTERPOLATION = ("today/interpolation", "today/grad-interpolation", "today/2step-interpolation")


def recipe(name: str) -> Recipe:
    """The recipe of that name, whole or short (`names.recipe`), at the paper's scale. InputError
    lists the names there are."""
    return RECIPES[names.recipe(name)]
