"""L2L-DA beside L2L: the tables and Figure 2 of the ICCV 2019 paper, at the store's profile.

As in `l2lkit.experiments`, each measurement is one call and one tidy frame, with the columns
`defence`, `seed` and `status` beside the values.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch

from l2lkit.checks import measures
from l2lkit.diverse.advgan import AdvGAN
from l2lkit.diverse.generator import Diverse
from l2lkit.game.cw import CW
from l2lkit.game.evaluate import perturb
from l2lkit.game.fixed import FGSM, PGM
from l2lkit.game.learned import Learned
from l2lkit.game.recipe import Optimiser, Recipe
from l2lkit.game.solver import Attack, Attacker, Maker, Solver, going_on
from l2lkit.recipes import against, printed
from l2lkit.results import experiments, published
from l2lkit.results.experiments import family, mean_deviation, row_of
from l2lkit.runs.model import Model
from l2lkit.runs.store import Store

GAMES = ("l2l-star", "no-r-no-d", "no-r", "no-d", "full")  # Table 1a
GENERATORS = ("AdvGAN", "GAP", "L2L-DA")
OTHERS = ("plain", "pgm", "naive", "grad", "2step")  # the L2L papers' rows in the joint table
TUNED = ("pgm", "full")  # whom a small profile trains generators against: Figure 2's classifiers
TABLE_2 = ("Clean", "FGSM", "PGD-10", "PGD-100", "C&W-100", "C&W-1000", *GENERATORS)
SMALL = tuple(a for a in TABLE_2 if a != "C&W-1000")  # what a small profile can pay for
DESIGNED = SMALL[:5]  # without training a generator
DRAWS = 10  # restarts and draws of Figure 2


def games(store: Store) -> list[str]:
    """The names of the recipes that a run trains for Table 1a."""
    return [f"{family(store)}/{name}" for name in GAMES]


def joint(store: Store) -> list[str]:
    """The rows of the table of both papers: L2L's and, of Table 1a, those that Table 2 has."""
    return [*OTHERS, *(f"{family(store)}/{name}" for name in ("l2l-star", "full"))]


def seeds(store: Store) -> list[int]:
    """The seeds that play these games: the first at a small profile, where a recursive generator
    takes as long as four other defences."""
    return store.seeds if store.profile.name == "paper" else store.seeds[:1]


def designed_attacks(epsilon: float) -> dict[str, Solver | None]:
    """The hand-designed attacks of Table 2 in its order, with steps of ε/4."""
    step = max(epsilon, 1e-9) / 4
    return {
        "Clean": None,
        "FGSM": FGSM(epsilon=epsilon),
        "PGD-10": PGM(epsilon=epsilon, steps=10, step_size=step),
        "PGD-100": PGM(epsilon=epsilon, steps=100, step_size=step),
        "C&W-100": CW(epsilon=epsilon, steps=100),
        "C&W-1000": CW(epsilon=epsilon, steps=1000),
    }


def generators(
    store: Store, recipe: Recipe, seed: int, full: Recipe | None = None
) -> dict[str, Recipe]:
    """The recipes of the three generators of Table 2, trained against the classifier of `recipe`
    for that seed.

    L2L-DA's goes on from the one that `full` (default: the L2L-DA of the store's family) was
    trained with, as in the authors' code ("fine-tuned"); AdvGAN's and GAP's start afresh with the
    same network. They see the classifier's training images once in ten epochs of the game, at least
    once; the code takes half as many iterations as the game.
    """
    full = full or store.recipe(f"{family(store)}/full")
    generator = full.attack
    assert isinstance(generator, Diverse)
    trained = store.model(full, seed).attack
    assert isinstance(trained, Attacker)
    epochs = max(1, full.epochs // 10)
    climb = Optimiser(kind="adam", lr=store.profile.attacker_lr, weight_decay=0)
    shared: dict[str, Any] = {
        "epsilon": generator.epsilon,
        "width": generator.width,
        "network": generator.network,
    }
    attacks: dict[str, Attack] = {
        "AdvGAN": AdvGAN(**shared),
        "GAP": Learned(steps=0, **shared),
        "L2L-DA": partial(going_on, trained),
    }
    return {name: against(recipe, attack, climb, name, epochs) for name, attack in attacks.items()}


def survival(
    store: Store,
    recipe: Recipe,
    seed: int,
    attacks: Sequence[str] = TABLE_2,
    full: Recipe | None = None,
) -> dict[str, np.ndarray]:
    """Whether the model of `recipe` is right on each image of the table, under the named attacks
    of the paper's Table 2; the generators among them are trained against the model first."""
    full = full or store.recipe(f"{family(store)}/full")
    model = store.model(recipe, seed)
    count, designed = store.profile.eval_images, designed_attacks(epsilon_of(full))
    right = store.correct(model, {a: designed[a] for a in DESIGNED}, count)
    if set(attacks) & set(GENERATORS):
        for name, tuned in generators(store, recipe, seed, full).items():
            if name in attacks:
                right[name] = under_generator(store, model, tuned, count)
    if "C&W-1000" in attacks:
        right |= store.correct(model, {"C&W-1000": designed["C&W-1000"]}, count)
    return {a: right[a] for a in attacks}


def under_generator(store: Store, model: Model, tuned: Recipe, count: int | None) -> np.ndarray:
    """Whether `model` is right on each of the images under the generator of the recipe `tuned`.
    Remembered under that recipe, so that what is measured is there without the generator."""

    def compute() -> list[int]:
        attack = store.model(tuned, model.seed).attack
        return store.correct(model, {tuned.name: attack}, count)[tuned.name].astype(int).tolist()

    settings = [model.key, store.where(tuned, model.seed).parent.name, count]
    return np.array(store.measured("generator", settings, compute), dtype=bool)


def white_box(
    store: Store,
    rows: Sequence[Recipe],
    which: Sequence[int] | None = None,
    attacks: Sequence[str] = TABLE_2,
    full: Recipe | None = None,
) -> pd.DataFrame:
    """Tables 1 and 2: accuracy of every model under the attacks of `survival`. Columns recipe,
    defence, seed, status, attack, accuracy; the attack "Min" is the paper's, the lowest of the
    accuracies, and "Worst" counts an image only if it survives all attacks. `which` are the seeds,
    by default `seeds(store)`."""
    parts = []
    for model in store.models(rows, which or seeds(store)):
        right = survival(store, model.recipe, model.seed, attacks, full)
        accuracy = {name: alive.mean() for name, alive in right.items()}
        accuracy["Min"] = min(a for name, a in accuracy.items() if name != "Clean")
        accuracy["Worst"] = np.logical_and.reduce(list(right.values())).mean()
        row = {"recipe": model.recipe.name} | row_of(model)
        parts += [row | {"attack": n, "accuracy": a} for n, a in accuracy.items()]
    return pd.DataFrame(parts)


def black_box(
    store: Store,
    targets: Sequence[Recipe],
    surrogates: Sequence[Recipe],
    full: Recipe,
    pair: tuple[int, int],
) -> pd.DataFrame:
    """Table 3: L2L-DA's generator, PGD-10 and PGD-100 on surrogates of the second seed, shown to
    the targets of the first. Columns defence, seed, status, surrogate, attack, accuracy."""
    seed, other = pair
    models = {r.name: store.model(r, seed) for r in targets}
    designed = designed_attacks(epsilon_of(full))
    rows = []
    for recipe in surrogates:
        surrogate = store.model(recipe, other)
        tuned = store.model(generators(store, recipe, other, full)["L2L-DA"], other)
        attacks = {"L2L-DA": tuned.attack} | {n: designed[n] for n in ("PGD-10", "PGD-100")}
        for name, attack in attacks.items():
            assert attack is not None
            rows += experiments.transferred(store, surrogate, name, attack, models)
    return pd.DataFrame(rows)


def epsilon_of(recipe: Recipe) -> float:
    """ε of a recipe whose attack is known before it is made."""
    assert isinstance(recipe.attack, Solver | Maker)
    return recipe.attack.epsilon


def restarts(
    store: Store,
    classifiers: Sequence[str | Recipe],
    star: str | Recipe,
    full: str | Recipe,
    which: Sequence[int] | None = None,
) -> pd.DataFrame:
    """Figure 2: how high ten attempts get, step by step, on each classifier.

    PGD from ten uniform starts; the one-step attacker of `star`, applied ten times from ten
    uniform starts; ten draws of z of the generator of `full`, as many steps as it has. For each
    image the largest loss of the ten and their deviation; columns classifier, seed, status,
    attack, step, loss and deviation are means over images. No generator is tuned to a classifier
    that it has not trained.
    """
    count, rows = store.profile.curve_images, []
    for seed in which or seeds(store):
        generator, one_step = store.model(full, seed).attack, store.model(star, seed).attack
        assert generator is not None and one_step is not None
        epsilon = generator.epsilon
        attacks: dict[str, Solver] = {
            "PGD": PGM(epsilon=epsilon, steps=10, step_size=epsilon / 4),
            "L2L": one_step.varied(steps=10, start="uniform"),
            "L2L-DA": generator,
        }
        for model in store.models(classifiers, [seed]):
            for label, attack in attacks.items():
                points = measures.highest_losses(store.subject(model), attack, DRAWS, count)
                rows += [row_of(model) | {"attack": label} | point for point in points]
    return pd.DataFrame(rows).rename(columns={"defence": "classifier"})


def draws(
    store: Store, recipe: str | Recipe, index: int, count: int = DRAWS, seed: int | None = None
) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """`count` draws of a generator's perturbation of one test image, on its own classifier: the
    image (C, H, W), the perturbations (count, C, H, W) and the classifier's answers."""
    model = store.model(recipe, seed)
    x, y = (part[index:] for part in store.images(index + 1))
    f, attack = model.classifier, model.attack
    assert attack is not None
    deltas = torch.cat([perturb(f, attack, x, y, seed=i) for i in range(count)])
    with torch.no_grad():
        answers = f(x + deltas).argmax(1).tolist()
    return x[0], deltas, [store.data.class_names[a] for a in answers]


def diversity(deltas: torch.Tensor, epsilon: float) -> float:
    """How far the draws (K, C, H, W) of one image lie apart: the mean over pairs and pixels of
    |δᵢ − δⱼ| / 2ε, 0 for one and the same perturbation, 1 at most for a pair."""
    pairs = torch.combinations(torch.arange(len(deltas)))
    apart = (deltas[pairs[:, 0]] - deltas[pairs[:, 1]]).abs().mean()
    return (apart / (2 * epsilon)).item()


# Table 1a, row against row: what is switched on, what else is on, the two recipes.
SWITCHES = (
    ("recursion", "without diversity", "no-d", "no-r-no-d"),
    ("recursion", "with diversity", "full", "no-r"),
    ("diversity", "in one step", "no-r", "no-r-no-d"),
    ("diversity", "with recursion", "full", "no-d"),
)


def effects(
    frame: pd.DataFrame, attacks: Sequence[str] = ("PGD-100", "C&W-100", "Worst")
) -> pd.DataFrame:
    """What recursion and diversity each add, on the rows of `white_box`: percentage points, paired
    by seed, mean ± deviation, and on how many seeds they add anything; beside it the difference
    that the paper's Table 1a prints (MNIST). Seeds of which either model failed are left out."""
    fine = frame[frame.status == "ok"].assign(key=frame.recipe.map(printed).str.split("/").str[1])
    accuracy = 100 * fine.pivot_table(index="seed", columns=["key", "attack"], values="accuracy")
    paper = published.select(version="l2l-da", table="Table 1a")
    paper = paper.assign(key=paper.recipe.str.split("/").str[1])
    value = paper.set_index(["key", "attack"]).value
    rows = []
    for what, where, more, less in SWITCHES:
        for attack in attacks:
            pair = accuracy.reindex(columns=pd.MultiIndex.from_product([(more, less), (attack,)]))
            gap = (pair[more, attack] - pair[less, attack]).dropna()
            told = value.get((more, attack)), value.get((less, attack))
            gain = f"{(gap > 0).sum()} of {len(gap)}"
            paper = "" if None in told else f"{told[0] - told[1]:+.2f}"
            rows.append((what, where, attack, mean_deviation(gap), gain, paper))
    columns = ["adding", "", "under", "points", "seeds that gain", "published"]
    return pd.DataFrame(rows, columns=columns)


def effects_table(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of `effects` to read: a row a switch and a column an attack, "points (seeds that
    gain)", and the published points, which are under PGD-100."""
    rows = table.assign(text=table.points + " (" + table["seeds that gain"] + ")")
    wide = rows.pivot(index=["adding", ""], columns="under", values="text")[rows.under.unique()]
    told = rows[rows.under == "PGD-100"].set_index(["adding", ""]).published
    wide = wide.reindex(rows.set_index(["adding", ""]).index.unique())
    return wide.assign(**{"published, PGD-100": told})


def everything(store: Store, names: Sequence[str], seed: int | None = None) -> pd.DataFrame:
    """Every named defence under every attack of both papers: the rows of
    `experiments.white_box` (ICLR 2020, Tables 2 and 8) and of `white_box` (L2L-DA, Table 2).
    Columns recipe, defence, seed, status, attack, accuracy; attacks that both have differ in
    their settings, and are told apart by name: PGM is ICLR 2020's, PGD is L2L-DA's. A small
    profile trains generators against the classifiers of Figure 2 only, PGM Net and L2L-DA's own."""
    seed = store.seed if seed is None else seed
    parts = []
    for recipe in map(store.recipe, names):
        small = SMALL if printed(recipe.name).split("/")[1] in TUNED else DESIGNED
        attacks = TABLE_2 if store.profile.name == "paper" else small
        first = experiments.white_box(store, [recipe.name], [seed]).assign(recipe=recipe.name)
        first = first[first.attack != "Worst"]
        second = white_box(store, [recipe], [seed], attacks)
        second = second[~second.attack.isin(["Clean", "FGSM", "Min", "Worst"])]
        both = pd.concat([first, second], ignore_index=True)
        lowest = both[both.attack != "Clean"].accuracy.min()
        parts += [both, both.head(1).assign(attack="Min", accuracy=lowest)]
    return pd.concat(parts, ignore_index=True)
