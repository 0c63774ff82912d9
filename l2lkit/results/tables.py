"""The papers' tables with this store's numbers beside the printed ones.

The two are never mixed: published and measured have columns of their own, in %, and a cell is
empty (NaN) where nothing was printed or measured. A difference is measured minus published, in
percentage points, and only on the dataset that the paper used; at a small profile the scale still
differs, and it is no reproduction. The measured statistic is the one that the version prints: the
mean over seeds in 2018 and v2, the worst seed in ICLR 2020 and beside it. Seeds that diverged or
collapsed do not count; the column `seeds` says so.
"""

from collections.abc import Sequence

import pandas as pd

from l2lkit.game.cw import CW
from l2lkit.game.fixed import FGSM, PGM
from l2lkit.game.recipe import Recipe
from l2lkit.game.solver import Maker, Solver
from l2lkit.recipes import RECIPES
from l2lkit.results import diverse, experiments, published
from l2lkit.runs.store import Store

ATTACKS = ("Clean", "FGSM", "PGM-10", "PGM-20", "PGM-100", "CW", "Random", "Own attacker")
OLDER = ("2018", "v2", "v2-svhn")
DIVERSE = ("l2l-da", "l2l-da-cifar10")  # the other recipes are measured as ICLR 2020 measures


def protocol(version: str) -> dict[str, Solver | None]:
    """The white-box attacks of an older version by label (its section 3); v2-svhn is v2 on SVHN.

    ε is 0.03, in v2-svhn 0.05. PGM-10 starts at zero, with step size ε/10 in 2018 and 0.01 in v2,
    which adds CW with 100 iterations. ICLR 2020's are `experiments.white_box_attacks`, L2L-DA's
    `diverse.designed_attacks` and `diverse.generators`.
    """
    epsilon = 0.05 if version == "v2-svhn" else 0.03
    step_size = epsilon / 10 if version == "2018" else 0.01
    pgm = PGM(epsilon=epsilon, steps=10, step_size=step_size, start="zero")
    attacks: dict[str, Solver | None] = {
        "Clean": None,
        "FGSM": FGSM(epsilon=epsilon),
        "PGM-10": pgm,
    }
    return attacks if version == "2018" else attacks | {"CW": CW(epsilon=epsilon)}


def compare(store: Store, names: Sequence[str], train: bool = False) -> pd.DataFrame:
    """White box: a row for every named recipe and attack of its version, published or not.

    Columns recipe, defence, table and dataset (of the published number), attack, published,
    published_deviation, measured (mean over seeds), deviation (n − 1), worst (seed), statistic
    ("mean" or "worst": the one that the version prints), seeds ("2 of 3 (1 collapsed)"),
    difference. A version without numbers for the store's dataset shows those for CIFAR-10 (v2-svhn
    for SVHN, l2l-da for MNIST), as `dataset` says. L2L-DA's generators attack where they have been
    trained. Models that are not there are not trained, unless `train`.
    """
    frames = []
    for name in dict.fromkeys(store.recipe(n).name for n in names):
        raw, seeds = _measure(store, RECIPES[name], train)
        frames.append(_beside(RECIPES[name], raw, seeds, store.dataset))
    return pd.concat(frames, ignore_index=True)


def compare_recorded(rows: Sequence[dict], dataset: str) -> pd.DataFrame:
    """What `compare` gives, for measurements that were kept: `rows` with recipe, seed, status,
    attack and accuracy (in [0, 1]), made on that dataset."""
    frames = []
    for name, raw in pd.DataFrame(rows).groupby("recipe", sort=False):
        status = raw.drop_duplicates("seed").status
        seeds = f"{(status == 'ok').sum()} of {len(status)}"
        frames.append(_beside(RECIPES[str(name)], raw, seeds, dataset))
    return pd.concat(frames, ignore_index=True)


def _beside(recipe: Recipe, raw: pd.DataFrame, seeds: str, dataset: str) -> pd.DataFrame:
    version = recipe.name.split("/")[0]
    paper = "l2l-da" if version in DIVERSE else version.removesuffix("-svhn")
    statistic = published.STATISTIC.get(paper, "worst")
    printed = _white_box(dataset, recipe)
    rows = []
    for attack in _attacks(recipe):
        accuracy = 100 * raw[(raw.attack == attack) & (raw.status == "ok")].accuracy
        row = {
            "recipe": recipe.name,
            "defence": recipe.defence,
            "table": "",
            "dataset": "",
            "attack": attack,
            "published": float("nan"),
            "published_deviation": float("nan"),
            "measured": accuracy.mean(),
            "deviation": accuracy.std(),
            "worst": accuracy.min(),
            "statistic": statistic,
            "seeds": seeds,
        }
        rows.append(row | printed.get(attack, {}))
    frame = pd.DataFrame(rows)
    chosen = frame["measured"] if statistic == "mean" else frame["worst"]
    return frame.assign(difference=_difference(dataset, frame, chosen))


def _attacks(recipe: Recipe) -> list[str]:
    version = recipe.name.split("/")[0]
    if version in OLDER:
        return list(protocol(version))
    if version in DIVERSE:
        return [*diverse.TABLE_2, "Min"]
    own = isinstance(recipe.attack, Maker) and recipe.attack.general
    return [a for a in ATTACKS if a != "Own attacker" or own]


def _white_box(dataset: str, recipe: Recipe) -> dict[str, dict]:
    """The recipe's cells in the papers' tables, by attack."""
    version = recipe.name.split("/")[0]
    frame = published.load()
    frame = frame[
        frame.recipe.str.startswith(f"{version}/")
        & (frame.surrogate == "")
        & (frame.unit == "%")
        & frame.table.str.startswith("Table")
    ]
    own = {"v2-svhn": "svhn", "l2l-da": "mnist"}
    frame = _on(dataset, frame, own.get(version, "cifar10"))
    return {
        row.attack: {
            "table": row.table,
            "dataset": row.dataset,
            "published": row.value,
            "published_deviation": row.deviation,
        }
        for row in frame[frame.recipe == recipe.name].itertuples()
    }


def _on(dataset: str, frame: pd.DataFrame, otherwise: str) -> pd.DataFrame:
    return frame[frame.dataset == (dataset if dataset in set(frame.dataset) else otherwise)]


def _measure(store: Store, recipe: Recipe, train: bool) -> tuple[pd.DataFrame, str]:
    """Rows (seed, status, attack, accuracy) of the recipe's models, and how many seeds count."""
    version = recipe.name.split("/")[0]
    seeds = [s for s in store.seeds if train or store.finished(recipe.name, s)]
    raw = pd.DataFrame(columns=["seed", "status", "attack", "accuracy"])
    if seeds and version in OLDER:
        rows = []
        for seed in seeds:
            model = store.model(recipe.name, seed)
            right = store.correct(model, protocol(version), store.profile.eval_images)
            rows += [
                {"seed": seed, "status": model.status, "attack": a, "accuracy": r.mean()}
                for a, r in right.items()
            ]
        raw = pd.DataFrame(rows)
    elif seeds and version in DIVERSE:
        row = store.recipe(recipe.name)
        full = store.recipe(f"{version}/full")
        tuned = diverse.generators(store, row, full).values()
        there = train or all(store.finished(r, s) for r in tuned for s in seeds)
        attacks = diverse.TABLE_2 if there else diverse.DESIGNED
        raw = diverse.white_box(store, [row], seeds, attacks, full)
    elif seeds:
        raw = experiments.white_box(store, [recipe.name], seeds)
    status = raw.drop_duplicates("seed").status.value_counts().to_dict()
    counted = f"{status.pop('ok', 0)} of {len(store.seeds)}"
    if len(seeds) < len(store.seeds):
        status["not trained"] = len(store.seeds) - len(seeds)
    note = ", ".join(f"{n} {what}" for what, n in status.items())
    return raw, counted + (note and f" ({note})")


def _difference(dataset: str, frame: pd.DataFrame, measured: pd.Series) -> pd.Series:
    return (measured - frame["published"]).where(frame["dataset"] == dataset)


def compare_black_box(store: Store, frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of `experiments.black_box` beside ICLR 2020, Tables 4 to 6 (CIFAR-10's for a
    dataset that has none): columns defence, surrogate, table, dataset, attack, published,
    measured, difference.

    Those tables train L2L with the slim attackers on CIFAR, "Grad L2L (S)", and with the wide ones
    on SVHN, "Grad L2L (W)": "Grad L2L" itself has no published number in them. One run is
    published; of several measured seeds this is the mean.
    """
    keys = ["defence", "surrogate", "attack"]
    fine = frame.assign(accuracy=100 * frame.accuracy.where(frame.status == "ok"))
    measured = fine.groupby(keys, sort=False).accuracy.mean().rename("measured")
    printed = published.select(version="iclr2020")
    printed = _on(store.dataset, printed[printed.surrogate != ""], "cifar10")
    printed = printed.assign(defence=_defences(printed)).set_index(keys)
    printed = printed[["table", "dataset", "value"]].rename(columns={"value": "published"})
    every = measured.index.append(printed.index.difference(measured.index, sort=False))
    both = printed.reindex(every).join(measured).reset_index()
    both = both.fillna({"table": "", "dataset": ""})
    both["difference"] = _difference(store.dataset, both, both["measured"])
    return both[
        [
            "defence",
            "surrogate",
            "table",
            "dataset",
            "attack",
            "published",
            "measured",
            "difference",
        ]
    ]


def compare_transfer(rows: Sequence[dict]) -> pd.DataFrame:
    """L2L-DA's Table 3 beside the rows of `diverse.black_box`: columns defence, surrogate, attack,
    published, measured (mean over the rows' seeds), both in %."""
    frame = pd.DataFrame(rows)
    measured = 100 * frame.groupby(["defence", "surrogate", "attack"], sort=False).accuracy.mean()
    printed = published.select(version="l2l-da", table="Table 3")
    printed = printed.rename(columns={"method": "defence", "value": "published"})
    keys = ["defence", "surrogate", "attack"]
    return (
        measured.rename("measured")
        .reset_index()
        .merge(printed[[*keys, "published"]], on=keys, how="left")[[*keys, "published", "measured"]]
    )


def _defences(printed: pd.DataFrame) -> pd.Series:
    """The recipes' names of the defences, which tell (S) from (W)."""
    return printed.recipe.map(lambda name: RECIPES[name].defence)


def compare_times(log: pd.DataFrame) -> pd.DataFrame:
    """Seconds an epoch, a row a defence: measured median, and all relative to PGM Net.

    `log` is `experiments.training_logs`'. Columns defence, seconds, relative, and the published
    ratios 2018 (Table 2), v2 (Table 4), iclr2020 (Table 3, with Appendix B's time for the slim
    attacker), all on CIFAR-10. Ratios carry over between machines, seconds do not.
    """
    times = published.select(attack="epoch time")
    times = times[times.dataset != "cifar100"]
    times = times.assign(defence=_defences(times))
    times = times.drop_duplicates(["version", "defence"])  # Table 3 stands before Appendix B
    ratios = times.pivot(index="defence", columns="version", values="value")
    ratios /= ratios.loc["PGM Net"]
    seconds = log.groupby("defence", sort=False).seconds.median()
    every = seconds.index.append(pd.Index(times.defence.unique())).unique()
    seconds = seconds.reindex(every)
    pgm = seconds["PGM Net"]
    return (
        pd.DataFrame({"seconds": seconds, "relative": seconds / pgm})
        .join(ratios[["2018", "v2", "iclr2020"]])
        .rename_axis("defence")
        .reset_index()
    )


def show(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of `compare` or `compare_black_box` to read: a row a defence, and for each attack
    the columns published, measured and difference, as text with one decimal, "" where there is
    nothing. Measured is the statistic that the row names, in the black box the mean."""
    records = frame.to_dict("records")
    texts = frame.assign(
        published=[_text(r["published"], r.get("published_deviation")) for r in records],
        measured=[
            _text(r["worst"])
            if r.get("statistic") == "worst"
            else _text(r["measured"], r.get("deviation"))
            for r in records
        ],
        difference=[_text(r["difference"], sign="+") for r in records],
    )
    if "surrogate" in frame:
        texts["attack"] = frame.attack + " from " + frame.surrogate
    source = (frame.table + ", " + frame.dataset).where(frame.table != "", "")
    texts["published in"] = source.groupby(frame.get("recipe", frame.defence)).transform("max")
    index = [c for c in ("recipe", "defence", "published in", "statistic", "seeds") if c in texts]
    known = [a for a in ATTACKS if a in set(texts.attack)]
    attacks = dict.fromkeys([*known, *texts.attack])
    columns = ["published", "measured", "difference"]
    wide = texts.pivot(index=index, columns="attack", values=columns).swaplevel(axis=1)
    return wide.reindex(
        index=pd.MultiIndex.from_frame(texts[index].drop_duplicates()),
        columns=pd.MultiIndex.from_product([attacks, columns]),
    ).fillna("")


def _text(value: float, deviation: float | None = None, sign: str = "") -> str:
    if pd.isna(value):
        return ""
    spread = "" if deviation is None or pd.isna(deviation) else f" ± {deviation:.1f}"
    return f"{value:{sign}.1f}{spread}"
