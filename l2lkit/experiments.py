"""The measurements the notebooks show, at the store's profile: each is one call and one table.

They return tidy frames, one row a measurement, with the columns `defence`, `seed` and `status`
of the model beside the values. A model that diverged or collapsed keeps its rows; `summary`
leaves it out of the means and says so. The runner calls the same functions before it executes the
notebooks, which then find everything measured.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch

from l2lkit.attacks import CW, FGSM, PGM, Attack, RandomSearch
from l2lkit.evaluation import perturb, trajectory, transfer
from l2lkit.figures import Panel
from l2lkit.recipes import DEFENCES, SLIM, TODAY, Diverse, Learned
from l2lkit.store import Model, Store

EPSILON = 0.031  # ICLR 2020, section 3
STEPS = (1, 2, 5, 10, 20, 50, 100)
EPSILONS = (0.0, 0.008, 0.016, 0.031, 0.047, 0.062, 0.125)
LEARNED = ("naive", "grad", "2step")  # the defences with an attacker of their own
SURROGATES = ("plain", "fgsm", "pgm")  # ICLR 2020, Tables 4 to 6
WORST = ("PGM-20", "PGM-100", "CW")
FIGURE_5 = ("FGSM", "PGM-20", "2-Step L2L attacker")  # ICLR 2020


def white_box_attacks(store: Store) -> dict[str, Attack | None]:
    """Clean, FGSM, PGM for every number of steps, CW and random search, at ε = 0.031."""
    pgm = {f"PGM-{t}": PGM(epsilon=EPSILON, steps=t) for t in STEPS}
    random = RandomSearch(epsilon=EPSILON, draws=store.profile.random_draws)
    return {
        "Clean": None, "FGSM": FGSM(epsilon=EPSILON), **pgm, "CW": CW(epsilon=EPSILON),
        "Random": random,
    }  # fmt: skip


def survival(store: Store, name: str, seed: int) -> dict[str, np.ndarray]:
    """Whether the model is right on each image of the table, attack by attack. "Own attacker" is
    the network a defence was trained with, where there is one; "Worst" counts an image only if it
    survives PGM-20, PGM-100 and CW, one by one."""
    model = store.model(name, seed)
    attacks = white_box_attacks(store)
    if isinstance(model.recipe.attack, Learned | Diverse):
        attacks["Own attacker"] = model.attack
    right = store.correct(model, attacks, store.profile.eval_images)
    return right | {"Worst": np.logical_and.reduce([right[a] for a in WORST])}


def white_box(
    store: Store, names: Sequence[str] = DEFENCES, seeds: Sequence[int] | None = None
) -> pd.DataFrame:
    """Accuracy of every model under every attack of `survival`: columns defence, seed, status,
    attack, accuracy."""
    return pd.DataFrame(
        row_of(store.model(name, seed)) | {"attack": attack, "accuracy": right.mean()}
        for name in names
        for seed in seeds or store.seeds
        for attack, right in survival(store, name, seed).items()
    )


def against_steps(store: Store, names: Sequence[str] = DEFENCES) -> pd.DataFrame:
    """Accuracy under PGM-T against T, from the runs behind the white-box table: columns defence,
    seed, status, attack ("PGM"), accuracy, steps."""
    frame = white_box(store, names)
    frame = frame[frame.attack.str.match(r"PGM-\d+")]
    steps = frame.attack.str.removeprefix("PGM-").astype(int)
    return frame.assign(attack="PGM", steps=steps)


def against_epsilon(
    store: Store,
    names: Sequence[str] = DEFENCES,
    seeds: Sequence[int] | None = None,
    epsilons: Sequence[float] = EPSILONS,
) -> pd.DataFrame:
    """Accuracy under FGSM and PGM-10 against ε in [0, 1], PGM with a step size in proportion
    (0.007 at 0.031): columns defence, seed, status, attack, epsilon, accuracy."""
    attacks: dict[str, Attack | None] = {f"FGSM {e}": FGSM(epsilon=e) for e in epsilons}
    for e in epsilons:
        attacks[f"PGM-10 {e}"] = PGM(epsilon=e, steps=10, step_size=max(e, 1e-3) * 0.007 / EPSILON)
    rows = []
    for name in names:
        for seed in seeds or store.seeds:
            model = store.model(name, seed)
            for label, right in store.correct(model, attacks, store.profile.curve_images).items():
                attack, epsilon = label.split()
                rows.append(
                    row_of(model)
                    | {"attack": attack, "epsilon": float(epsilon), "accuracy": right.mean()}
                )
    return pd.DataFrame(rows)


def relative(frame: pd.DataFrame, x: str, base: str = "PGM Net") -> pd.DataFrame:
    """`frame` (columns defence, seed, attack, x, accuracy) with the column `difference`: the
    accuracy minus that of the defence `base` of the same seed, attack and x, in percentage points;
    empty (NaN) where `frame` has no such row of `base`. ICLR 2020, Figure 4."""
    keys = ["seed", "attack", x]
    bases = frame.loc[frame.defence == base, [*keys, "accuracy"]]
    paired = frame.merge(bases, on=keys, how="left", suffixes=("", "_base"), validate="m:1")
    paired["difference"] = 100 * (paired.accuracy - paired.pop("accuracy_base"))
    return paired


def measure(store: Store, name: str, seed: int) -> None:
    """All that the tables and sweeps want to know of one model, so that it is on disk."""
    white_box(store, [name], [seed])
    against_epsilon(store, [name], [seed])


def measure_curves(store: Store, seed: int) -> None:
    """All that notebooks 04 and 05 measure on the models of one seed."""
    loss_curves(store, seeds=[seed])
    roughness(store, seeds=[seed])


def measure_transfer(store: Store) -> None:
    black_box(store)


def black_box(
    store: Store,
    targets: Sequence[str] = (*DEFENCES, *SLIM, *TODAY),
    surrogates: Sequence[str] = SURROGATES,
) -> pd.DataFrame:
    """Transfer (ICLR 2020, Appendix A): FGSM and PGM-10 on a surrogate of another seed, shown to
    every target of the store's first seed. The published L2L rows are those of slim attackers.
    Columns defence, seed, status, surrogate, attack, accuracy."""
    other = store.seeds[-1] if len(store.seeds) > 1 else store.seed + 1
    attacks: dict[str, Attack] = {
        "FGSM": FGSM(epsilon=EPSILON), "PGM-10": PGM(epsilon=EPSILON, steps=10),
    }  # fmt: skip
    models = {name: store.model(name, store.seed) for name in targets}
    rows = []
    for name in surrogates:
        surrogate = store.model(name, other)
        for label, attack in attacks.items():
            found = transferred(store, surrogate, attack, models)
            rows += [
                row_of(models[n]) | {"surrogate": surrogate.defence, "attack": label, "accuracy": a}
                for n, a in found.items()
            ]
    return pd.DataFrame(rows)


def transferred(
    store: Store, surrogate: Model, attack: Attack, models: Mapping[str, Model]
) -> dict[str, float]:
    """Accuracy of every model, by its name here, on what `attack` made of the surrogate."""

    def compute() -> dict[str, float]:
        x, y = store.images(store.profile.eval_images)
        classifiers = {n: m.classifier for n, m in models.items()}
        found = transfer(surrogate.classifier, attack, classifiers, x, y, seed=store.seed)
        return {n: right.float().mean().item() for n, right in found.items()}

    settings = [surrogate.id, store.describe(attack), store.profile.eval_images,
                [m.id for m in models.values()]]  # fmt: skip
    return store.measured("transfer", settings, compute)


def loss_curves(
    store: Store,
    classifiers: Sequence[str] = ("plain", "pgm", "grad", "2step"),
    seeds: Sequence[int] | None = None,
) -> pd.DataFrame:
    """Classification loss over an attack's steps, on each classifier: PGM-20 and the trained
    Naive, Grad and 2-Step attackers of the same seed, on the same images. Columns classifier,
    seed, attack, step, loss (mean over images), deviation (over images), accuracy."""
    rows = []
    for seed in seeds or store.seeds:
        attacks: dict[str, Attack | None] = {"PGM-20": PGM(epsilon=EPSILON)}
        for learned in LEARNED:
            model = store.model(learned, seed)
            attacks[f"{model.defence} attacker"] = model.attack
        for name in classifiers:
            model = store.model(name, seed)
            for label, attack in attacks.items():
                found = store.measured(
                    "losses",
                    [model.id, store.describe(attack), store.profile.curve_images],
                    partial(_losses, store, model, attack),
                )
                rows += [row_of(model) | {"attack": label} | point for point in found]
    return pd.DataFrame(rows).rename(columns={"defence": "classifier"})


def _losses(store: Store, model: Model, attack: Attack | None) -> list[dict]:
    x, y = store.images(store.profile.curve_images)
    run = trajectory(model.classifier, attack, x, y, seed=model.seed)
    return [
        {"step": step, "loss": loss.mean().item(), "deviation": loss.std().item(),
         "accuracy": right.float().mean().item()}
        for step, loss, right in zip(run.steps, run.loss, run.correct, strict=True)
    ]  # fmt: skip


def named_attacks(store: Store, seed: int, epsilon: float = EPSILON) -> dict[str, Attack]:
    """FGSM, PGM-20 and the learned attackers of that seed ("… attacker"), at the given ε; L2L-DA's
    among them where it is trained."""
    attacks: dict[str, Attack] = {
        "FGSM": FGSM(epsilon=epsilon),
        "PGM-20": PGM(epsilon=epsilon, step_size=max(epsilon, 1e-4) * 0.003 / EPSILON),
    }
    full = f"{family(store)}/full"
    learned = [*reversed(LEARNED), *([full] if store.finished(full, seed) else [])]
    for name in learned:
        model = store.model(name, seed)
        attacker: Any = copy.copy(model.attack)  # shares φ; only ε is its own
        attacker.epsilon = epsilon
        attacks[f"{model.defence.removesuffix(' (full)')} attacker"] = attacker
    return attacks


def family(store: Store) -> str:
    """L2L-DA's recipes that fit the store's data: MNIST's for grey images, else CIFAR-10's."""
    return "l2l-da" if store.data.channels == 1 else "l2l-da-cifar10"


def panel(store: Store, model: Model, label: str, attack: Attack, index: int) -> Panel:
    """One attacked test image, for `figures.perturbation_grid`."""
    x, y = store.data.test_images[index : index + 1].float() / 255, store.data.test_labels
    y = y[index : index + 1]
    delta = perturb(model.classifier, attack, x, y, seed=index)
    with torch.no_grad():
        chances = model.classifier(x + delta).softmax(1)[0]
    names, best = store.data.class_names, int(chances.argmax())
    return Panel(
        label, model.defence, x[0], delta[0], names[int(y)], names[best], float(chances[best])
    )


def perturbations(
    store: Store,
    index: int,
    names: Sequence[str] = ("2step", "pgm"),
    attacks: Sequence[str] = FIGURE_5,
) -> list[Panel]:
    """One test image under some of the `named_attacks`, on each named classifier. The defaults are
    Figure 5 of ICLR 2020; v2's has FGSM and PGM on FGSM Net, PGM Net and Grad L2L."""
    known = named_attacks(store, store.seed)
    return [
        panel(store, store.model(name, store.seed), label, known[label], index)
        for name in names
        for label in attacks
    ]


def roughness(
    store: Store,
    names: Sequence[str] = ("plain", "pgm", "2step"),
    seeds: Sequence[int] | None = None,
) -> pd.DataFrame:
    """How fast perturbations vary: the squared differences between neighbouring pixels, down and
    across, summed and divided by 4 Σδ². About 1 for independent signs, 0 for a constant.
    Columns defence, seed, attack, roughness (mean over images)."""
    rows = []
    for name in names:
        for seed in seeds or store.seeds:
            model = store.model(name, seed)
            known = named_attacks(store, seed)
            for label in FIGURE_5:
                found = store.measured(
                    "roughness",
                    [model.id, label, store.model("2step", seed).id, store.profile.curve_images],
                    partial(_roughness, store, model, known[label]),
                )
                rows.append(row_of(model) | {"attack": label, "roughness": found})
    return pd.DataFrame(rows)


def _roughness(store: Store, model: Model, attack: Attack) -> float:
    x, y = store.images(store.profile.curve_images)
    delta = perturb(model.classifier, attack, x, y, seed=model.seed)
    fast = delta.diff(dim=2).square().sum((1, 2, 3)) + delta.diff(dim=3).square().sum((1, 2, 3))
    return (fast / (4 * delta.square().sum((1, 2, 3))).clamp(min=1e-12)).mean().item()


def example(store: Store, prefer: Sequence[str] = ("cat", "5", "apple")) -> int:
    """The first test image of the first of these classes that the data have, else image 0. The
    papers show a cat (ICLR 2020), an airplane, an apple and a digit 5 (v2)."""
    for name in prefer:
        if name in store.data.class_names:
            label = store.data.class_names.index(name)
            found = (store.data.test_labels == label).nonzero()
            if len(found):
                return int(found[0])
    return 0


def training_logs(store: Store, names: Sequence[str] = DEFENCES) -> pd.DataFrame:
    """The logs of all models below one another, with defence, seed and status."""
    return pd.concat([m.log.assign(**row_of(m)) for m in store.models(names)], ignore_index=True)


def summary(frame: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """A table to read: a defence a row, an attack a column, "mean ± deviation" in % over seeds.

    Seeds that collapsed or diverged are not averaged: the column `seeds` says how many count, as
    "2 of 3 (1 collapsed)". The deviation (n − 1) needs two seeds.
    """
    rows = {}
    for defence, group in frame.groupby("defence", sort=False):
        seeds = group.drop_duplicates("seed")
        fine = group[group.status == "ok"]
        failed = seeds[seeds.status != "ok"].status.value_counts()
        cells = {}
        for attack in columns:
            cells[attack] = mean_deviation(100 * fine[fine.attack == attack].accuracy)
        note = ", ".join(f"{n} {status}" for status, n in failed.items())
        cells["seeds"] = f"{len(seeds) - failed.sum()} of {len(seeds)}" + (note and f" ({note})")
        rows[defence] = cells
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("defence")


def attack_gaps(losses: pd.DataFrame) -> pd.DataFrame:
    """Each L2L defence's own attacker beside PGM on that defence, from the rows of `loss_curves`.

    Columns defence, seed, own attacker, PGM-20 (mean losses at the last step) and PGM steps
    matched: the first PGM step whose mean loss is at least the attacker's, empty if none is.
    """
    rows = []
    for (defence, seed), group in losses.groupby(["classifier", "seed"], sort=False):
        own = group[group.attack == f"{defence} attacker"]
        pgm = group[group.attack == "PGM-20"]
        if own.empty:
            continue
        reached = pgm[(pgm.loss >= own.loss.iloc[-1]) & (pgm.step > 0)].step
        rows.append(
            {
                "defence": defence,
                "seed": seed,
                "own attacker": round(own.loss.iloc[-1], 3),
                "PGM-20": round(pgm.loss.iloc[-1], 3),
                "PGM steps matched": "" if reached.empty else str(reached.min()),
            }
        )
    return pd.DataFrame(rows)


STRONG = ("PGM-20", "PGM-100", "Worst")
# The order under PGM that Table 2 of v2 and of ICLR 2020 print, pair by pair, and of the L2L rows
# under CW. Plain Net and Naive L2L are both at 0 there, in an order that changes with the dataset.
CLAIMS = (
    ("Naive L2L", "≈", "Plain Net", ("PGM-20",)),
    ("Naive L2L", ">", "Plain Net", STRONG),
    ("FGSM Net", ">", "Naive L2L", STRONG),
    ("PGM Net", ">", "FGSM Net", STRONG),
    ("Grad L2L", "≥", "PGM Net", (*STRONG, "CW")),
    ("2-Step L2L", "≥", "Grad L2L", (*STRONG, "CW")),
    ("2-Step L2L", "≥", "PGM Net", (*STRONG, "CW")),
)
_RELATIONS: dict[str, Callable[[pd.Series], pd.Series]] = {
    "≈": lambda gap: gap.abs() <= 10, ">": lambda gap: gap > 0, "≥": lambda gap: gap >= 0
}  # fmt: skip


def verdicts(frame: pd.DataFrame) -> pd.DataFrame:
    """The orderings that the papers' tables show, checked on the rows of `white_box`.

    A row a claim and an attack: the first defence is more accurate than the second (>), at least
    as accurate (≥), or within 10 points (≈). The difference is in percentage points, paired by
    seed, mean ± deviation. "holds" and "does not hold" need every seed to say so; "mixed" is
    anything else. Seeds of which either model failed are left out, claims about a defence or an
    attack that `frame` lacks too.
    """
    fine = frame[frame.status == "ok"]
    accuracy = 100 * fine.pivot_table(
        index="seed", columns=["defence", "attack"], values="accuracy"
    )
    rows = []
    for first, relation, second, attacks in CLAIMS:
        for attack in attacks:
            if not {(first, attack), (second, attack)} <= set(accuracy.columns):
                continue
            gap = (accuracy[first, attack] - accuracy[second, attack]).dropna()
            agree = int(_RELATIONS[relation](gap).sum())
            words = {len(gap): "holds", 0: "does not hold"}
            rows.append(
                {
                    "claim": f"{first} {relation} {second}",
                    "under": attack,
                    "difference": mean_deviation(gap),
                    "seeds that agree": f"{agree} of {len(gap)}",
                    "verdict": words.get(agree, "mixed") if len(gap) else "not measured",
                }
            )
    columns = ["claim", "under", "difference", "seeds that agree", "verdict"]
    return pd.DataFrame(rows, columns=columns)


def mean_deviation(values: pd.Series) -> str:
    """ "mean ± deviation" with one decimal; the deviation (n − 1) needs two values."""
    if values.empty:
        return ""
    deviation = f" ± {values.std():.1f}" if len(values) > 1 else ""
    return f"{round(values.mean(), 1) + 0.0:.1f}{deviation}"  # never -0.0


def row_of(model: Model) -> dict:
    """The columns that every row of a model has."""
    return {"defence": model.defence, "seed": model.seed, "status": model.status}
