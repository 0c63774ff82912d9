"""The measurements the notebooks show, at the store's profile: each is one call and one table.

They return tidy frames, one row a measurement, with the columns `defence`, `seed` and `status`
of the model beside the values. A model that diverged or collapsed keeps its rows; `summary`
leaves it out of the means and says so. The runner calls the same functions before it executes the
notebooks, which then find everything measured.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from l2lkit.checks import measures
from l2lkit.checks.attacks import EPSILON, EPSILONS
from l2lkit.checks.subject import Right
from l2lkit.data import Dataset
from l2lkit.game.evaluate import perturb
from l2lkit.game.fixed import FGSM, PGM
from l2lkit.game.solver import Solver
from l2lkit.recipes import DEFENCES, SLIM, TODAY
from l2lkit.runs.model import Model
from l2lkit.runs.store import Store

LEARNED = ("naive", "grad", "2step")  # the defences with an attacker of their own
SURROGATES = ("plain", "fgsm", "pgm")  # ICLR 2020, Tables 4 to 6
TRANSFERRED = {"FGSM": FGSM(epsilon=EPSILON), "PGM-10": PGM(epsilon=EPSILON, steps=10)}
FIGURE_5 = ("FGSM", "PGM-20", "2-Step L2L attacker")  # ICLR 2020


@dataclass(frozen=True)
class Panel:
    """One attacked image: row names the attack, column the classifier (as in Figure 5).

    image: the clean image, (C, H, W) in [0, 1] with C 1 or 3; perturbation: same shape, same
    units; label and predicted: class names before and after; confidence: in [0, 1], of predicted.
    """

    row: str
    column: str
    image: Tensor
    perturbation: Tensor
    label: str
    predicted: str
    confidence: float


def survival(store: Store, model: Model) -> Right:
    """`measures.survival` of a model, its own attacker among the attacks where it has one."""
    return measures.survival(store.subject(model), store.budget, model.own_attack)


def white_box(
    store: Store, names: Sequence[str] = DEFENCES, seeds: Sequence[int] | None = None
) -> pd.DataFrame:
    """Accuracy of every model under every attack of `survival`: columns defence, seed, status,
    attack, accuracy."""
    return pd.DataFrame(
        row_of(model) | {"attack": attack, "accuracy": right.mean()}
        for model in store.models(names, seeds)
        for attack, right in survival(store, model).items()
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
    """`measures.against_epsilon` of every model: columns defence, seed, status, attack, epsilon,
    accuracy."""
    count, rows = store.profile.curve_images, []
    for model in store.models(names, seeds):
        accuracies = measures.against_epsilon(store.subject(model), epsilons, count)
        for (attack, epsilon), accuracy in accuracies.items():
            row = {"attack": attack, "epsilon": epsilon, "accuracy": accuracy}
            rows.append(row_of(model) | row)
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


def black_box(
    store: Store,
    targets: Sequence[str] = (*DEFENCES, *SLIM, *TODAY),
    surrogates: Sequence[str] = SURROGATES,
    attacks: Mapping[str, Solver] = TRANSFERRED,
) -> pd.DataFrame:
    """Transfer (ICLR 2020, Appendix A): FGSM and PGM-10 on a surrogate of another seed, shown to
    every target of the store's first seed. The published L2L rows are those of slim attackers.
    Columns defence, seed, status, surrogate, attack, accuracy."""
    other = surrogate_seed(store)
    models = {name: store.model(name, store.seed) for name in targets}
    rows = []
    for name in surrogates:
        surrogate = store.model(name, other)
        for label, attack in attacks.items():
            rows += transferred(store, surrogate, label, attack, models)
    return pd.DataFrame(rows)


def surrogate_seed(store: Store) -> int:
    """The seed of the surrogates: the last, and where there is one seed only, the next."""
    return store.seeds[-1] if len(store.seeds) > 1 else store.seed + 1


def transferred(
    store: Store, surrogate: Model, label: str, attack: Solver, models: Mapping[str, Model]
) -> list[dict]:
    """A row for every model: its accuracy on what `attack` made of the surrogate."""
    accuracy = measures.transferred(
        store.subject(surrogate),
        attack,
        {name: model.classifier for name, model in models.items()},
        {name: model.key for name, model in models.items()},
        store.profile.eval_images,
        store.seed,
    )
    about = {"surrogate": surrogate.defence, "attack": label}
    return [row_of(models[n]) | about | {"accuracy": a} for n, a in accuracy.items()]


def loss_curves(
    store: Store,
    classifiers: Sequence[str] = ("plain", "pgm", "grad", "2step"),
    seeds: Sequence[int] | None = None,
) -> pd.DataFrame:
    """Classification loss over an attack's steps, on each classifier: PGM-20 and the trained
    Naive, Grad and 2-Step attackers of the same seed, on the same images. Columns classifier,
    seed, attack, step, loss (mean over images), deviation (over images), accuracy."""
    count, rows = store.profile.curve_images, []
    for seed in seeds or store.seeds:
        attacks: dict[str, Solver] = {"PGM-20": PGM(epsilon=EPSILON)}
        attacks |= learned_attackers(store, seed, LEARNED)
        for model in store.models(classifiers, [seed]):
            for label, attack in attacks.items():
                points = measures.step_losses(store.subject(model), attack, count)
                rows += [row_of(model) | {"attack": label} | point for point in points]
    return pd.DataFrame(rows).rename(columns={"defence": "classifier"})


def learned_attackers(store: Store, seed: int, names: Sequence[str]) -> dict[str, Solver]:
    """The attackers that these defences were trained with, "<defence> attacker"."""
    return {
        f"{model.defence.removesuffix(' (full)')} attacker": model.own_attack
        for model in store.models(names, [seed])
        if model.own_attack
    }


def named_attacks(store: Store, seed: int, epsilon: float = EPSILON) -> dict[str, Solver]:
    """FGSM, PGM-20 and the learned attackers of that seed ("… attacker"), at the given ε; L2L-DA's
    among them where it is trained."""
    full = f"{family(store)}/full"
    learned = [*reversed(LEARNED), *([full] if store.finished(full, seed) else [])]
    attacks: dict[str, Solver] = {"FGSM": FGSM(epsilon=EPSILON), "PGM-20": PGM(epsilon=EPSILON)}
    attacks |= learned_attackers(store, seed, learned)
    return {name: attack.within(epsilon) for name, attack in attacks.items()}


def family(store: Store) -> str:
    """L2L-DA's recipes that fit the store's data: MNIST's for grey images, else CIFAR-10's."""
    return "l2l-da" if store.data.channels == 1 else "l2l-da-cifar10"


def panel(store: Store, model: Model, label: str, attack: Solver | None, index: int) -> Panel:
    """One test image, attacked or not, for `show.pictures.perturbation_grid`."""
    x, y = (part[index : index + 1] for part in store.images(index + 1))
    delta = perturb(model.classifier, attack, x, y, seed=index) if attack else torch.zeros_like(x)
    with torch.no_grad():
        chances = model.classifier(x + delta).softmax(1)[0]
    names, best = store.data.class_names, int(chances.argmax())
    return Panel(
        label, model.defence, x[0], delta[0], names[int(y)], names[best], float(chances[best])
    )


def perturbations(
    store: Store,
    index: int,
    names: Sequence[str] = ("plain", "2step", "pgm"),
    attacks: Sequence[str] = FIGURE_5,
) -> list[Panel]:
    """One test image, clean ("no attack") and under some of the `named_attacks`, on each named
    classifier. The defaults are Figure 5 of ICLR 2020 with Plain Net; v2's has FGSM and PGM on FGSM
    Net, PGM Net and Grad L2L."""
    known, models = named_attacks(store, store.seed), store.models(names, [store.seed])
    rows = {"no attack": None} | {label: known[label] for label in attacks}
    return [panel(store, m, label, attack, index) for m in models for label, attack in rows.items()]


def roughness(
    store: Store,
    names: Sequence[str] = ("plain", "pgm", "2step"),
    seeds: Sequence[int] | None = None,
) -> pd.DataFrame:
    """`measures.roughness` of the attacks of Figure 5 on each model: columns defence, seed,
    attack, roughness (mean over images)."""
    count, rows = store.profile.curve_images, []
    for model in store.models(names, seeds):
        known = named_attacks(store, model.seed)
        for label in FIGURE_5:
            rough = measures.roughness(store.subject(model), known[label], count)
            rows.append(row_of(model) | {"attack": label, "roughness": rough})
    return pd.DataFrame(rows)


def example(store: Store, prefer: Sequence[str] = ("cat", "5", "apple")) -> int:
    """The first test image of the first of these classes that the data have, else image 0. The
    papers show a cat (ICLR 2020), an airplane, an apple and a digit 5 (v2)."""
    first = examples(store.data)
    return next((first[name] for name in prefer if name in first), 0)


def examples(data: Dataset, row: int = 0, columns: int | None = None) -> dict[str, int]:
    """Class name -> the index of its test image number `row` (from 0, and over again), for the
    first `columns` classes."""
    indices = {}
    for label, name in enumerate(data.class_names[:columns]):
        places = (data.test_labels == label).nonzero().flatten()
        if len(places):
            indices[name] = int(places[row % len(places)])
    return indices


def contrast(store: Store, fooled: str = "plain", withstands: str = "pgm") -> int:
    """The first of ten `examples` on which PGM-20 fools the one model and not the other, for a
    first look at what robustness is; without one, `example`."""
    models = [store.model(name, store.seed) for name in (fooled, withstands)]
    attack = named_attacks(store, store.seed)["PGM-20"]
    with store.computing():
        for index in examples(store.data, columns=10).values():
            panels = [panel(store, model, "PGM-20", attack, index) for model in models]
            if [p.predicted == p.label for p in panels] == [False, True]:
                return index
    return example(store)


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
        percent = 100 * group[group.status == "ok"].set_index("attack").accuracy
        rows[defence] = {a: mean_deviation(percent[percent.index == a]) for a in columns}
        rows[defence]["seeds"] = seeds_that_count(group.drop_duplicates("seed").status)
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("defence")


def seeds_that_count(status: pd.Series) -> str:
    """Of the seeds with this status, in words: "3 of 3", or "2 of 3 (1 collapsed)"."""
    failed = status[status != "ok"].value_counts()
    note = ", ".join(f"{n} {what}" for what, n in failed.items())
    return f"{len(status) - failed.sum()} of {len(status)}" + (note and f" ({note})")


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
        own_loss, pgm_loss = own.loss.iloc[-1], pgm.loss.iloc[-1]
        reached = pgm[(pgm.loss >= own_loss) & (pgm.step > 0)].step
        matched = "" if reached.empty else str(reached.min())
        rows.append((defence, seed, round(own_loss, 3), round(pgm_loss, 3), matched))
    columns = ["defence", "seed", "own attacker", "PGM-20", "PGM steps matched"]
    return pd.DataFrame(rows, columns=columns)


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
    "≈": lambda gap: gap.abs() <= 10,
    ">": lambda gap: gap > 0,
    "≥": lambda gap: gap >= 0,
}


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
            verdict = words.get(agree, "mixed") if len(gap) else "not measured"
            claim, agreed = f"{first} {relation} {second}", f"{agree} of {len(gap)}"
            rows.append((claim, attack, mean_deviation(gap), agreed, verdict))
    columns = ["claim", "under", "difference", "seeds that agree", "verdict"]
    return pd.DataFrame(rows, columns=columns)


def verdicts_table(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of `verdicts` to read: a claim a row and an attack a column, "difference (seeds that
    agree): verdict"."""
    text = table.difference + " (" + table["seeds that agree"] + "): " + table.verdict
    wide = table.assign(text=text).pivot(index="claim", columns="under", values="text")
    return wide.reindex(index=table.claim.unique(), columns=table.under.unique()).fillna("")


def mean_deviation(values: pd.Series) -> str:
    """ "mean ± deviation" with one decimal; the deviation (n − 1) needs two values."""
    if values.empty:
        return ""
    deviation = f" ± {values.std():.1f}" if len(values) > 1 else ""
    return f"{round(values.mean(), 1) + 0.0:.1f}{deviation}"  # never -0.0


def row_of(model: Model) -> dict:
    """The columns that every row of a model has."""
    return {"defence": model.defence, "seed": model.seed, "status": model.status}
