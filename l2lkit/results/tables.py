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

from l2lkit.errors import InputError
from l2lkit.game.cw import CW, CWTanh
from l2lkit.game.fixed import FGSM, PGM
from l2lkit.game.recipe import Recipe
from l2lkit.game.solver import Maker, Solver
from l2lkit.recipes import RECIPES, printed, recommended
from l2lkit.results import diverse, experiments, published
from l2lkit.results.experiments import row_of
from l2lkit.runs.store import Store

ATTACKS = ("Clean", "FGSM", "PGM-10", "PGM-20", "PGM-100", "CW", "Random", "Own attacker")
OLDER = ("2018", "v2", "v2-svhn")
BLACK_BOX = ["defence", "surrogate", "table", "dataset", "attack"]
BLACK_BOX += ["published", "measured", "difference"]
DIVERSE = ("l2l-da", "l2l-da-cifar10")  # the other recipes are measured as ICLR 2020 measures


def protocol(version: str) -> dict[str, Solver | None]:
    """The white-box attacks of an older version by label (its section 3); v2-svhn is v2 on SVHN,
    "code" is the authors' code.

    ε is 0.03, in v2-svhn 0.05. PGM-10 starts at zero, with step size ε/10 in 2018 and 0.01 in v2,
    which adds CW with 100 iterations. The code has ICLR 2020's ε and PGM, started next to the
    image, and CW in tanh space. ICLR 2020's are `experiments.white_box_attacks`, L2L-DA's
    `diverse.designed_attacks` and `diverse.generators`.
    """
    if version == "code":
        pgm = {f"PGM-{t}": PGM(steps=t, start="gaussian") for t in (20, 100)}
        return {"Clean": None, **pgm, "CW": CWTanh()}
    epsilon = 0.05 if version == "v2-svhn" else 0.03
    step_size = epsilon / 10 if version == "2018" else 0.01
    attacks: dict[str, Solver | None] = {
        "Clean": None,
        "FGSM": FGSM(epsilon=epsilon),
        "PGM-10": PGM(epsilon=epsilon, steps=10, step_size=step_size, start="zero"),
    }
    return attacks if version == "2018" else attacks | {"CW": CW(epsilon=epsilon)}


def _own_protocol(recipe: Recipe) -> str | None:
    """The `protocol` of a recipe, None where it is measured as ICLR 2020 or L2L-DA measures."""
    version = recipe.name.split("/")[0]
    if recipe.name.endswith("@code") and version not in DIVERSE:
        return "code"
    return version if version in OLDER else None


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
        raw = _measure(store, RECIPES[name], train)
        seeds = _seeds(store, name.split("/")[0])
        frames.append(_beside(RECIPES[name], raw, seeds, store.dataset))
    return pd.concat(frames, ignore_index=True)


def compare_recorded(rows: Sequence[dict], dataset: str) -> pd.DataFrame:
    """What `compare` gives, for measurements that were kept: `rows` with recipe, seed, status,
    attack and accuracy (in [0, 1]), made on that dataset."""
    frames = []
    for name, raw in pd.DataFrame(rows).groupby("recipe", sort=False):
        frames.append(_beside(RECIPES[str(name)], raw, raw.seed.unique(), dataset))
    return pd.concat(frames, ignore_index=True)


def _beside(recipe: Recipe, raw: pd.DataFrame, seeds: Sequence[int], dataset: str) -> pd.DataFrame:
    """The rows of `compare` for the measured rows (seed, status, attack, accuracy) of a recipe."""
    version = recipe.name.split("/")[0]
    paper = "l2l-da" if version in DIVERSE else version.removesuffix("-svhn")
    statistic = published.STATISTIC.get(paper, "worst")
    fine = raw[raw.status == "ok"].pivot(index="seed", columns="attack", values="accuracy") * 100
    measured = {"measured": fine.mean(), "deviation": fine.std(), "worst": fine.min()}
    attacks = pd.DataFrame({"attack": _attacks(recipe)})
    frame = _white_box(dataset, recipe).merge(attacks, on="attack", how="right")
    frame = frame.join(pd.DataFrame(measured), on="attack").fillna({"table": "", "dataset": ""})
    frame.insert(0, "recipe", recipe.name)
    frame.insert(1, "defence", recipe.defence)
    status = raw.drop_duplicates("seed").set_index("seed").status
    status = status.reindex(seeds, fill_value="not trained")
    chosen = frame["measured"] if statistic == "mean" else frame["worst"]
    return frame.assign(
        statistic=statistic,
        seeds=experiments.seeds_that_count(status),
        difference=_difference(dataset, frame, chosen),
    )


def _attacks(recipe: Recipe) -> list[str]:
    version, own = recipe.name.split("/")[0], _own_protocol(recipe)
    if own:
        return [*protocol(own), *(["Own attacker"] if own == "code" else [])]
    if version in DIVERSE:
        return [*diverse.TABLE_2, "Min"]
    learned = isinstance(recipe.attack, Maker) and recipe.attack.general
    return [a for a in ATTACKS if a != "Own attacker" or learned]


def _white_box(dataset: str, recipe: Recipe) -> pd.DataFrame:
    """The recipe's cells in the papers' tables: columns table, dataset, attack, published and
    published_deviation. Of an attack that stands in two tables, the last."""
    version = recipe.name.split("/")[0]
    frame = published.load().query("surrogate == '' and unit == '%'")
    frame = frame[frame.recipe.str.startswith(f"{version}/") & frame.table.str.startswith("Table")]
    own = {"v2-svhn": "svhn", "l2l-da": "mnist"}
    frame = _on(dataset, frame, own.get(version, "cifar10"))
    frame = frame[frame.recipe == printed(recipe.name)].drop_duplicates("attack", keep="last")
    frame = frame[["table", "dataset", "attack", "value", "deviation"]]
    return frame.rename(columns={"value": "published", "deviation": "published_deviation"})


def _on(dataset: str, frame: pd.DataFrame, otherwise: str) -> pd.DataFrame:
    return frame[frame.dataset == (dataset if dataset in set(frame.dataset) else otherwise)]


def _measure(store: Store, recipe: Recipe, train: bool) -> pd.DataFrame:
    """Rows (seed, status, attack, accuracy) of the recipe's models."""
    version, own = recipe.name.split("/")[0], _own_protocol(recipe)
    seeds = [s for s in _seeds(store, version) if train or store.finished(recipe.name, s)]
    if not seeds:
        columns = ["seed", "status", "attack", "accuracy"]
        return pd.DataFrame(columns=columns).astype({"accuracy": float})
    if own:
        rows = []
        for model in store.models([recipe.name], seeds):
            attacks = protocol(own)
            if own == "code":
                attacks["Own attacker"] = model.attack
            right = store.correct(model, attacks, store.profile.eval_images)
            rows += [
                row_of(model) | {"attack": attack, "accuracy": alive.mean()}
                for attack, alive in right.items()
            ]
        return pd.DataFrame(rows)
    if version in DIVERSE:
        row, variant = store.recipe(recipe.name), recipe.name.removeprefix(printed(recipe.name))
        full = store.recipe(f"{version}/full{variant}")
        there = train or all(
            store.finished(full, s)
            and all(store.finished(r, s) for r in diverse.generators(store, row, s, full).values())
            for s in seeds
        )
        names = diverse.TABLE_2 if there else diverse.DESIGNED
        return diverse.white_box(store, [row], seeds, names, full)
    return experiments.white_box(store, [recipe.name], seeds)


def _seeds(store: Store, version: str) -> list[int]:
    """The store's seeds; at profile paper, where no number was asked for, as many as the version's
    statistic is taken over."""
    runs = published.RUNS.get(version.removesuffix("-svhn"), store.profile.seeds)
    if store.profile.name != "paper" or store.asked_seeds:
        return store.seeds
    return list(range(store.seed, store.seed + runs))


def _difference(dataset: str, frame: pd.DataFrame, measured: pd.Series) -> pd.Series:
    return (measured - frame["published"]).where(frame["dataset"] == dataset)


def compare_black_box(store: Store, frame: pd.DataFrame, version: str = "iclr2020") -> pd.DataFrame:
    """The rows of `experiments.black_box` beside a version's black-box tables (CIFAR-10's for a
    dataset that has none): columns defence, surrogate, table, dataset, attack, published,
    measured, difference.

    ICLR 2020's Tables 4 to 6 are v2's Tables 3, 6 and 7, in v2's setting, whoever is measured
    beside them. They train L2L with the slim attackers on CIFAR, "Grad L2L (S)", and with the wide
    ones on SVHN, "Grad L2L (W)": "Grad L2L" itself has no published number in them. One run is
    published; of several measured seeds this is the mean.
    """
    keys = ["defence", "surrogate", "attack"]
    fine = frame.assign(accuracy=100 * frame.accuracy.where(frame.status == "ok"))
    measured = fine.groupby(keys, sort=False).accuracy.mean().rename("measured")
    numbers = published.select(version=version)
    numbers = _on(store.dataset, numbers[numbers.surrogate != ""], "cifar10")
    numbers = numbers.assign(defence=_defences(numbers)).set_index(keys)
    numbers = numbers[["table", "dataset", "value"]].rename(columns={"value": "published"})
    every = measured.index.append(numbers.index.difference(measured.index, sort=False))
    both = numbers.reindex(every).join(measured).reset_index()
    both = both.fillna({"table": "", "dataset": ""})
    both["difference"] = _difference(store.dataset, both, both["measured"])
    return both[BLACK_BOX]


def black_box(store: Store, names: Sequence[str], train: bool = False) -> pd.DataFrame:
    """Black box: a row for every named recipe, surrogate of its version (trained from another
    seed) and attack, FGSM and PGM-10 of that version. Columns recipe, defence, surrogate, table,
    dataset (of the published number), attack, published, measured, difference.

    2018 attacks from Grad L2L too. Surrogates are of the recipe's kind, as printed or as
    recommended. Nothing is trained unless `train`, and measured only where all models are there.
    InputError for L2L-DA's rows, whose Table 3 notebook 07 shows.
    """
    chosen = dict.fromkeys(store.recipe(n).name for n in names)
    both = pd.concat([_black_box(store, name, train) for name in chosen], ignore_index=True)
    both = both.fillna({"table": "", "dataset": ""})
    both["difference"] = _difference(store.dataset, both, both["measured"])
    return both[["recipe", *BLACK_BOX]]


def _black_box(store: Store, name: str, train: bool) -> pd.DataFrame:
    """The rows of `black_box` of one recipe, without their difference."""
    version = name.split("/")[0]
    if version in DIVERSE:
        raise InputError(f"{name}: the black box of L2L-DA's rows is in notebook 07.")
    home = "iclr2020" if version == "today" else version
    ours = version == "today" or name.endswith("@ours")
    rows = [f"{home}/{row}" for row in experiments.SURROGATES]
    rows += ["2018/grad"] if home == "2018" else []
    labels = {row: RECIPES[recommended(row)].defence for row in rows}  # as the tables name them
    surrogates = [recommended(row) if ours else row for row in rows]
    known = protocol(home) if home in OLDER else experiments.TRANSFERRED
    attacks = {a: attack for a in experiments.TRANSFERRED if (attack := known[a])}
    frame = pd.DataFrame(
        [(s, a) for s in labels.values() for a in attacks], columns=["surrogate", "attack"]
    ).assign(recipe=name, defence=RECIPES[name].defence)
    other = experiments.surrogate_seed(store)
    there = [store.finished(name, store.seed), *(store.finished(s, other) for s in surrogates)]
    measured = pd.DataFrame(columns=["surrogate", "attack", "measured"]).astype({"measured": float})
    if train or all(there):
        raw = experiments.black_box(store, [name], surrogates, attacks)
        named = {RECIPES[s].defence: labels[printed(s)] for s in surrogates}
        measured = raw.assign(
            surrogate=raw.surrogate.map(named),
            measured=100 * raw.accuracy.where(raw.status == "ok"),
        )[list(measured)]
    numbers = published.load().query("surrogate != ''").rename(columns={"value": "published"})
    numbers = numbers[numbers.recipe == printed(name)]
    numbers = numbers[numbers.version == home.removesuffix("-svhn")]
    numbers = _on(store.dataset, numbers, "svhn" if home == "v2-svhn" else "cifar10")
    numbers = numbers[["surrogate", "attack", "table", "dataset", "published"]]
    keys = ["surrogate", "attack"]
    return frame.merge(measured, "left", keys).merge(numbers, "left", keys)


def compare_transfer(rows: Sequence[dict]) -> pd.DataFrame:
    """L2L-DA's Table 3 beside the rows of `diverse.black_box`: columns defence, surrogate, attack,
    published, measured (mean over the rows' seeds), both in %."""
    keys = ["defence", "surrogate", "attack"]
    every = RECIPES.values()  # a recipe that no text has is its own row
    named = {r.defence: RECIPES.get(printed(r.name), r).defence for r in every}
    frame = pd.DataFrame(rows).replace({"defence": named})
    measured = 100 * frame.groupby(keys, sort=False).accuracy.mean()
    paper = published.select(version="l2l-da", table="Table 3")
    paper = paper.rename(columns={"method": "defence", "value": "published"})
    both = measured.rename("measured").reset_index().merge(paper, on=keys, how="left")
    return both[[*keys, "published", "measured"]]


def _defences(numbers: pd.DataFrame) -> pd.Series:
    """The recipes' names of the defences, which tell (S) from (W)."""
    return numbers.recipe.map(lambda name: RECIPES[recommended(name)].defence)


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
    ratios = ratios.loc[times.defence.unique(), ["2018", "v2", "iclr2020"]]
    seconds = log.groupby("defence", sort=False).seconds.median()
    relative = seconds / seconds.get("PGM Net", float("nan"))
    measured = pd.DataFrame({"seconds": seconds, "relative": relative})
    return pd.concat([measured, ratios], axis=1).rename_axis("defence").reset_index()


def show(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of `compare`, `compare_black_box` or `compare_transfer` to read: a row a defence and
    a column an attack, as text, "measured (published)" in %, "(published)" where nothing was
    measured and "" where there is neither. Measured is the statistic that the row names, in the
    black box the mean. What was published stands in the tables that the index names."""
    records = frame.to_dict("records")
    for row in records:
        if row.get("statistic") == "worst":
            row |= {"measured": row["worst"], "deviation": None}
    texts = frame.assign(text=[_side_by_side(row) for row in records])
    if "surrogate" in frame:
        texts["attack"] = frame.attack + " from " + frame.surrogate
    index = [c for c in ("recipe", "defence", "seeds") if c in texts]
    if "table" in frame:
        source = (frame.table + ", " + frame.dataset).where(frame.table != "", "")
        texts["published in"] = source.groupby(frame.get("recipe", frame.defence)).transform("max")
        index.insert(-1 if "seeds" in index else len(index), "published in")
    known = [a for a in ATTACKS if a in set(texts.attack)]
    wide = texts.pivot(index=index, columns="attack", values="text")
    rows = texts[index].drop_duplicates()
    rows = pd.Index(rows[index[0]]) if len(index) == 1 else pd.MultiIndex.from_frame(rows)
    return wide.reindex(index=rows, columns=[*dict.fromkeys([*known, *texts.attack])]).fillna("")


def _side_by_side(row: dict) -> str:
    told = _text(row["published"], row.get("published_deviation"))
    return f"{_text(row['measured'], row.get('deviation'))} {told and f'({told})'}".strip()


def _text(value: float, deviation: float | None = None) -> str:
    if pd.isna(value):
        return ""
    spread = "" if deviation is None or pd.isna(deviation) else f" ± {deviation:.1f}"
    return f"{value:.1f}{spread}"
