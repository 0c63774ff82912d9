"""The checklist of notebook 06 on the store's models: `l2lkit.checks`, remembered, as frames."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from l2lkit.checks import evidence as checks
from l2lkit.checks import measures
from l2lkit.checks.attacks import LONG, all_attacks
from l2lkit.recipes import DEFENCES, SLIM, TODAY
from l2lkit.results import experiments
from l2lkit.results.experiments import per_model, row_of
from l2lkit.runs.model import Model
from l2lkit.runs.store import Store


def described(store: Store) -> pd.DataFrame:
    """The attacks of the checklist: columns attack and settings, the line that makes the attack."""
    table = all_attacks(store.budget)
    return pd.DataFrame([{"attack": k, "settings": repr(a)} for k, a in table.items()])


def evidence(
    store: Store, names: Sequence[str] = DEFENCES, seeds: Sequence[int] | None = None
) -> pd.DataFrame:
    """The numbers behind the verdicts: columns defence, seed, status, quantity, value, images.

    Shares are in [0, 1], counts in images. A quantity that a model does not have (an attacker of
    its own, a black-box result of another seed than the first, AutoAttack where it is not
    installed) has no row. Comparisons with Plain Net and PGM Net are with the same seed's.
    """
    frames = []
    transfers = experiments.black_box(store)
    for name in names:
        for seed in seeds or store.seeds:
            frame = pd.concat([alone(store, name, seed), _beside(store, name, seed, transfers)])
            frames.append(frame.assign(**row_of(store.model(name, seed))))
    columns = ["defence", "seed", "status", "quantity", "value", "images"]
    return pd.concat(frames, ignore_index=True)[columns]


def alone(store: Store, name: str, seed: int) -> pd.DataFrame:
    """What the checklist asks of one model alone, and of no other."""
    model = store.model(name, seed)
    trained_on = model.attack if model.attack is not None and model.attack.general else None
    return checks.examine(
        store.subject(model), store.budget, own=model.own_attack, trained_on=trained_on
    )


def _beside(store: Store, name: str, seed: int, transfers: pd.DataFrame) -> pd.DataFrame:
    others = {"plain": None, "pgm": None} | {
        other: _trained(store, other, seed) for other in ("plain", "pgm") if other != name
    }
    mine = _trained(store, name, seed)
    numbers = [*checks.compare(mine, others["plain"], others["pgm"])]
    model = store.model(name, seed)
    rows = transfers[(transfers.defence == model.defence) & (transfers.seed == seed)]
    if len(rows):
        lowest = rows.groupby("attack").accuracy.min().to_dict()
        numbers += checks.black_box(mine.right, lowest)
    return checks.as_frame(numbers)


def _trained(store: Store, name: str, seed: int) -> checks.Trained:
    model = store.model(name, seed)
    right = experiments.survival(store, model)
    return checks.Trained(right, training_seconds(store, model)[0])


def training_seconds(store: Store, model: Model) -> tuple[float, float]:
    """How long the model trained, and the model it starts from (0 where it starts afresh)."""
    start = model.recipe.warm_start
    first = float(store.model(start, model.seed).log["seconds"].sum()) if start else 0.0
    return float(model.log["seconds"].sum()), first


def long_run(
    store: Store, names: Sequence[str] = DEFENCES, seeds: Sequence[int] | None = None
) -> pd.DataFrame:
    """One run of PGM-500 on a quarter of the fewer images: columns defence, seed, status, steps,
    loss (mean over images), accuracy, images; a row for each of the steps `LONG`."""

    def measure(model: Model) -> Iterator[dict]:
        subject = store.subject(model)
        count = max(1, subject.count(store.budget.fewer) // 4)
        run = measures.long_run(subject, count)
        for steps, loss, accuracy in zip(LONG, run["loss"], run["accuracy"], strict=True):
            yield {"steps": steps, "loss": loss, "accuracy": accuracy, "images": count}

    return per_model(store, names, seeds, measure)


def large_epsilon(
    store: Store, names: Sequence[str] = DEFENCES, seeds: Sequence[int] | None = None
) -> pd.DataFrame:
    """Accuracy under PGM-10 for ε from 0 to 1: columns defence, seed, status, epsilon, accuracy.
    See `checks.evidence.large_epsilon`."""

    def measure(model: Model) -> Iterator[dict]:
        accuracies = checks.large_epsilon(store.subject(model), store.budget)
        for epsilon, accuracy in accuracies.items():
            yield {"epsilon": epsilon, "accuracy": accuracy}

    return per_model(store, names, seeds, measure)


def loss_surface(
    store: Store,
    names: Sequence[str] = DEFENCES,
    seed: int | None = None,
    index: int | None = None,
    points: int = 25,
) -> pd.DataFrame:
    """`measures.loss_surface` of every model around one test image, `experiments.example`'s
    without an `index`: columns defence, seed, status, a, b, loss; `points` values of a and of b."""
    seed = store.seed if seed is None else seed
    index = experiments.example(store) if index is None else index
    frames = []
    for name in names:
        model = store.model(name, seed)
        plane = measures.loss_surface(store.subject(model), index, points)
        frames.append(pd.DataFrame(plane).assign(**row_of(model)))
    return pd.concat(frames, ignore_index=True)


def robust_accuracy(
    store: Store,
    names: Sequence[str] = (*DEFENCES, *SLIM, *TODAY),
    seeds: Sequence[int] | None = None,
) -> pd.DataFrame:
    """What each defence withstands and what its training took: columns defence, seed, status,
    accuracy (of images that survive PGM-20, PGM-100, CW and AutoAttack one by one), Worst (without
    AutoAttack), AutoAttack (as accuracy; empty where it is not installed, and then accuracy is
    Worst), clean, seconds (of training) and start_seconds (of the Plain Net it starts from)."""

    def measure(model: Model) -> Iterator[dict]:
        subject = store.subject(model)
        worst, strongest = measures.survivors(subject, store.budget, model.own_attack)
        clean = experiments.survival(store, model)["Clean"][: len(worst)]
        seconds, start = training_seconds(store, model)
        yield {
            "clean": clean.mean(),
            "Worst": worst.mean(),
            "AutoAttack": np.nan if strongest is None else strongest.mean(),
            "accuracy": (worst if strongest is None else strongest).mean(),
            "seconds": seconds,
            "start_seconds": start,
        }

    return per_model(store, names, seeds, measure)
