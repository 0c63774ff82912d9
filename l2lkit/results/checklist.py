"""The checklist of notebook 06 on the store's models: `l2lkit.checks`, remembered, as frames."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from l2lkit.checks import evidence as checks
from l2lkit.checks import measures
from l2lkit.checks.attacks import LONG, WORST, all_attacks
from l2lkit.checks.items import Quantity
from l2lkit.recipes import DEFENCES, SLIM, TODAY
from l2lkit.results import experiments
from l2lkit.results.experiments import row_of
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
    for model in store.models(names, seeds):
        of_model = (transfers.defence == model.defence) & (transfers.seed == model.seed)
        beside = _beside(store, model, transfers[of_model])
        frame = pd.concat([alone(store, model), checks.as_frame(beside)])
        frames.append(frame.assign(**row_of(model)))
    columns = ["defence", "seed", "status", "quantity", "value", "images"]
    return pd.concat(frames, ignore_index=True)[columns]


def alone(store: Store, model: Model) -> pd.DataFrame:
    """What the checklist asks of one model alone, and of no other."""
    own, attack = model.own_attack, model.attack
    trained_on = attack if attack is not None and attack.general else None
    return checks.examine(store.subject(model), store.budget, own=own, trained_on=trained_on)


def _beside(store: Store, model: Model, transfers: pd.DataFrame) -> Iterator[Quantity]:
    mine = _trained(store, model)
    undefended, reference = (
        _trained(store, other) if other.id != model.id else None
        for other in store.models(("plain", "pgm"), [model.seed])
    )
    yield from checks.compare(mine, undefended, reference)
    if len(transfers):
        lowest = transfers.groupby("attack").accuracy.min().to_dict()
        yield from checks.black_box(mine.right, lowest)


def _trained(store: Store, model: Model) -> checks.Trained:
    return checks.Trained(experiments.survival(store, model), training_seconds(model))


def training_seconds(model: Model) -> float:
    """How long the model itself trained, without the one it starts from."""
    return float(model.log["seconds"].sum())


def long_run(
    store: Store, names: Sequence[str] = DEFENCES, seeds: Sequence[int] | None = None
) -> pd.DataFrame:
    """One run of PGM-500 on a quarter of the fewer images: columns defence, seed, status, steps,
    loss (mean over images), accuracy, images; a row for each of the steps `LONG`."""
    count = max(1, len(store.images(store.budget.fewer)[0]) // 4)
    frames = []
    for model in store.models(names, seeds):
        run = measures.long_run(store.subject(model), store.budget, count)
        frames.append(pd.DataFrame(row_of(model) | {"steps": LONG} | run | {"images": count}))
    return pd.concat(frames, ignore_index=True)


def large_epsilon(
    store: Store, names: Sequence[str] = DEFENCES, seeds: Sequence[int] | None = None
) -> pd.DataFrame:
    """Accuracy under PGM-10 for ε from 0 to 1: columns defence, seed, status, epsilon, accuracy.
    See `checks.evidence.large_epsilon`."""
    return pd.DataFrame(
        row_of(model) | {"epsilon": epsilon, "accuracy": accuracy}
        for model in store.models(names, seeds)
        for epsilon, accuracy in checks.large_epsilon(store.subject(model), store.budget).items()
    )


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
    for model in store.models(names, [seed]):
        plane = measures.loss_surface(store.subject(model), index, points)
        frames.append(pd.DataFrame(row_of(model) | plane))
    return pd.concat(frames, ignore_index=True)


def under_each(
    store: Store, names: Sequence[str], seeds: Sequence[int] | None = None
) -> pd.DataFrame:
    """Accuracy on the fewer images, attack by attack, and of those that survive all with
    AutoAttack (none where it is not installed): columns defence, seed, status, attack, accuracy."""
    rows = []
    for model in store.models(names, seeds):
        worst, strongest = measures.survivors(store.subject(model), store.budget, model.own_attack)
        right = experiments.survival(store, model)
        alive = {attack: right[attack][: len(worst)] for attack in ("Clean", *WORST)}
        if strongest is not None:
            alive["AutoAttack"] = strongest
        rows += [row_of(model) | {"attack": a, "accuracy": r.mean()} for a, r in alive.items()]
    return pd.DataFrame(rows)


SHOWN_STEPS = ("PGM-20", "PGM-100")  # of the numbers of steps


def by_seed(store: Store, names: Sequence[str], seeds: Sequence[int] | None = None) -> pd.DataFrame:
    """The rows of `experiments.white_box` with those of the worst case on the fewer images, without
    and with AutoAttack: columns defence, seed, status, attack, accuracy."""
    fewer = len(store.images(store.budget.fewer)[0])
    words = {"Worst": f"Worst, first {fewer}", "AutoAttack": "with AutoAttack"}
    worst = robust_accuracy(store, names, seeds).rename(columns={"accuracy": "least"} | words)
    worst = worst.melt(["defence", "seed", "status"], [*words.values()], "attack", "accuracy")
    return pd.concat([experiments.white_box(store, names, seeds), worst.dropna()])


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of `by_seed` as a table to read: see `experiments.summary`."""
    steps = [a for a in rows.attack.unique() if a.startswith("PGM-") and a not in SHOWN_STEPS]
    return experiments.summary(rows, [a for a in rows.attack.unique() if a not in steps])


def robust_accuracy(
    store: Store,
    names: Sequence[str] = (*DEFENCES, *SLIM, *TODAY),
    seeds: Sequence[int] | None = None,
) -> pd.DataFrame:
    """What each defence withstands and what its training took: columns defence, seed, status,
    accuracy (of images that survive PGM-20, PGM-100, CW and AutoAttack one by one), Worst (without
    AutoAttack), AutoAttack (as accuracy; empty where it is not installed, and then accuracy is
    Worst), clean, seconds (of training) and start_seconds (of the Plain Net it starts from)."""
    rows = []
    for model in store.models(names, seeds):
        worst, strongest = measures.survivors(store.subject(model), store.budget, model.own_attack)
        clean, start = experiments.survival(store, model)["Clean"], model.recipe.warm_start
        row = {
            "clean": clean[: len(worst)].mean(),
            "Worst": worst.mean(),
            "AutoAttack": np.nan if strongest is None else strongest.mean(),
            "accuracy": (worst if strongest is None else strongest).mean(),
            "seconds": training_seconds(model),
            "start_seconds": training_seconds(store.model(start, model.seed)) if start else 0.0,
        }
        rows.append(row_of(model) | row)
    return pd.DataFrame(rows)


def decided(table: pd.DataFrame, topic: str) -> pd.DataFrame:
    """The rows of `checks.verdicts` on one topic with an item a row: how much is `allowed`, and for
    each defence the deciding value, with the verdict where the item does not hold. A value below
    zero is that far on the safe side."""
    rows = table[(table.topic == topic) & (table.verdict != "")]
    parts = rows.decides.str.extract(r"(?P<value>\S+) \((?P<allowed>\S+) allowed\)")
    words = parts.value + (" " + rows.verdict).where(rows.verdict != "holds", "")
    wide = rows.assign(words=words).pivot(index="item", columns="defence", values="words")
    wide = wide.reindex(index=rows["item"].unique(), columns=rows.defence.unique()).fillna("")
    wide.insert(0, "allowed", parts.allowed.groupby(rows["item"]).first())
    return wide
