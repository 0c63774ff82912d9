"""The measurements the notebooks show, at the store's profile: each is one call and one table.

They return tidy frames, one row a measurement, with the columns `defence`, `seed` and `status`
of the model beside the values. A model that diverged or collapsed keeps its rows; `summary`
leaves it out of the means and says so. The runner calls the same functions before it executes the
notebooks, which then find everything measured.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
import pandas as pd

from l2lkit.attacks import CW, FGSM, PGM, Attack, RandomSearch
from l2lkit.evaluation import trajectory, transfer
from l2lkit.recipes import DEFENCES
from l2lkit.store import Model, Store

EPSILON = 0.031  # ICLR 2020, section 3
STEPS = (1, 2, 5, 10, 20, 50, 100)
EPSILONS = (0.0, 0.008, 0.016, 0.031, 0.047, 0.062, 0.125)
LEARNED = ("naive", "grad", "2step")  # the defences with an attacker of their own
WORST = ("PGM-20", "PGM-100", "CW")


def white_box_attacks(store: Store) -> dict[str, Attack | None]:
    """Clean, FGSM, PGM for every number of steps, CW and random search, at ε = 0.031."""
    pgm = {f"PGM-{t}": PGM(epsilon=EPSILON, steps=t) for t in STEPS}
    random = RandomSearch(epsilon=EPSILON, draws=store.profile.random_draws)
    return {
        "Clean": None, "FGSM": FGSM(epsilon=EPSILON), **pgm, "CW": CW(epsilon=EPSILON),
        "Random": random,
    }  # fmt: skip


def white_box(
    store: Store, names: Sequence[str] = DEFENCES, seeds: Sequence[int] | None = None
) -> pd.DataFrame:
    """Accuracy of every model under every attack: columns defence, seed, status, attack,
    accuracy. "Own attacker" is the attack a defence was trained with, where it is learned;
    "Worst" counts an image only if it survives PGM-20, PGM-100 and CW, one by one."""
    rows = []
    for name in names:
        for seed in seeds or store.seeds:
            model = store.model(name, seed)
            attacks = white_box_attacks(store)
            if name in LEARNED:
                attacks["Own attacker"] = model.attack
            right = store.correct(model, attacks, store.profile.eval_images)
            right["Worst"] = np.logical_and.reduce([right[a] for a in WORST])
            rows += [_row(model) | {"attack": a, "accuracy": r.mean()} for a, r in right.items()]
    return pd.DataFrame(rows)


def against_steps(store: Store) -> pd.DataFrame:
    """Accuracy under PGM-T against T, from the runs behind the white-box table."""
    frame = white_box(store)
    frame = frame[frame.attack.str.match(r"PGM-\d+")]
    return frame.assign(steps=frame.attack.str.removeprefix("PGM-").astype(int))


def against_epsilon(store: Store, names: Sequence[str] = DEFENCES) -> pd.DataFrame:
    """Accuracy under PGM-10 against ε, with a step size in proportion (0.007 at 0.031)."""
    rows = []
    attacks = {
        str(e): PGM(epsilon=e, steps=10, step_size=max(e, 1e-3) * 0.007 / EPSILON)
        for e in EPSILONS
    }
    for name in names:
        for seed in store.seeds:
            model = store.model(name, seed)
            right = store.correct(model, attacks, store.profile.curve_images)
            rows += [
                _row(model) | {"epsilon": float(e), "accuracy": r.mean()} for e, r in right.items()
            ]
    return pd.DataFrame(rows)


def black_box(store: Store, surrogates: Sequence[str] = ("plain", "fgsm", "pgm")) -> pd.DataFrame:
    """Transfer (ICLR 2020, Appendix A): FGSM and PGM-10 on a surrogate of another seed, shown to
    every defence of the store's first seed. Columns defence, surrogate, attack, accuracy."""
    other = store.seeds[-1] if len(store.seeds) > 1 else store.seed + 1
    attacks: dict[str, Attack] = {
        "FGSM": FGSM(epsilon=EPSILON), "PGM-10": PGM(epsilon=EPSILON, steps=10),
    }  # fmt: skip
    targets = {d: store.model(d, store.seed) for d in DEFENCES}
    rows = []
    for name in surrogates:
        surrogate = store.model(name, other)
        for label, attack in attacks.items():
            found = store.measured(
                "transfer",
                [surrogate.id, repr(attack), store.profile.eval_images,
                 [m.id for m in targets.values()]],
                partial(_transfer, store, surrogate, attack, targets),
            )  # fmt: skip
            rows += [
                _row(targets[d]) | {"surrogate": surrogate.defence, "attack": label, "accuracy": a}
                for d, a in found.items()
            ]
    return pd.DataFrame(rows)


def _transfer(
    store: Store, surrogate: Model, attack: Attack, targets: dict[str, Model]
) -> dict[str, float]:
    x, y = store.images(store.profile.eval_images)
    classifiers = {d: m.classifier for d, m in targets.items()}
    found = transfer(surrogate.classifier, attack, classifiers, x, y, seed=store.seed)
    return {d: right.float().mean().item() for d, right in found.items()}


def loss_curves(
    store: Store, classifiers: Sequence[str] = ("plain", "pgm", "grad", "2step")
) -> pd.DataFrame:
    """Classification loss over an attack's steps, on each classifier: PGM-20 and the trained
    Naive, Grad and 2-Step attackers of the same seed, on the same images. Columns classifier,
    seed, attack, step, loss (mean over images), deviation (over images), accuracy."""
    rows = []
    for seed in store.seeds:
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
                rows += [_row(model) | {"attack": label} | point for point in found]
    return pd.DataFrame(rows).rename(columns={"defence": "classifier"})


def _losses(store: Store, model: Model, attack: Attack) -> list[dict]:
    x, y = store.images(store.profile.curve_images)
    run = trajectory(model.classifier, attack, x, y, seed=model.seed)
    return [
        {"step": step, "loss": loss.mean().item(), "deviation": loss.std().item(),
         "accuracy": right.float().mean().item()}
        for step, loss, right in zip(run.steps, run.loss, run.correct, strict=True)
    ]  # fmt: skip


def training_logs(store: Store, names: Sequence[str] = DEFENCES) -> pd.DataFrame:
    """The logs of all models below one another, with defence, seed and status."""
    return pd.concat(
        [m.log.assign(**_row(m)) for m in store.models(names)], ignore_index=True
    )


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
            values = 100 * fine[fine.attack == attack].accuracy
            cells[attack] = "" if values.empty else f"{values.mean():.1f}"
            if len(values) > 1:
                cells[attack] += f" ± {values.std():.1f}"
        note = ", ".join(f"{n} {status}" for status, n in failed.items())
        cells["seeds"] = f"{len(seeds) - failed.sum()} of {len(seeds)}" + (note and f" ({note})")
        rows[defence] = cells
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("defence")


def _row(model: Model) -> dict:
    return {"defence": model.defence, "seed": model.seed, "status": model.status}
