"""What came out: two or three sentences for each notebook, computed from its own tables, so that
they change when the run does. Each function takes the frames that its notebook shows."""

from collections.abc import Iterable

import pandas as pd

from l2lkit.game import toy
from l2lkit.results import published
from l2lkit.results.experiments import mean_deviation

LEARNED = ("Grad L2L", "2-Step L2L")
FIXED = ("PGM Net", "Free", "FGSM-RS")
CORRECTED = "g corrects the sign step"  # a row of benchmarks/questions.py
NOTHING = "No model learned anything: there is nothing to compare."


def cycle(step: float = 0.1, steps: int = 314) -> str:
    """01: how far from the equilibrium each way of stepping ends, from (1, 0)."""
    ends = {name: toy.radius(toy.play(name, step, steps))[-1] for name in toy.METHODS}
    learned = toy.radius(toy.play_learned(step, 4 * steps, rate=0.1)[0])[-1]
    away = [name for name, radius in ends.items() if radius > 1.5]
    home = [name for name, radius in ends.items() if radius < 0.5]
    stay = [name for name in ends if name not in away + home]
    return (
        f"{steps} steps of {step:g} from (1, 0), at distance 1: {_radii(ends, away)} leave, "
        f"{_radii(ends, stay)} go round, {_radii(ends, home)} come home. An inner player that "
        f"learns its step ends at {learned:.3f} after {4 * steps} steps. Nothing but the way of "
        "stepping was changed."
    )


def _radii(ends: dict[str, float], names: Iterable[str]) -> str:
    return _list(f"{name} steps ({ends[name]:.3g})" for name in names)


def training(log: pd.DataFrame, times: pd.DataFrame) -> str:
    """02: what the learned attackers cost and how much of the ball they use; `log` is
    `experiments.training_logs`', `times` is `tables.compare_times`'."""
    ratios = times.set_index("defence")
    costs = [
        f"an epoch of {name} takes {row.relative:.2f} of PGM Net's time"
        + (f" (ICLR 2020: {row.iclr2020:.2f})" if pd.notna(row.iclr2020) else "")
        for name, row in ratios.reindex(LEARNED).iterrows()
        if pd.notna(row.relative)
    ]
    last = log[log.status == "ok"].groupby(["defence", "seed"], sort=False).tail(1)
    size = last.groupby("defence").delta.mean()
    sizes = [f"{name}'s {size[name]:.0%}" for name in ("PGM Net", *LEARNED) if name in size]
    failed = log[log.status != "ok"].groupby(["defence", "seed"]).ngroups
    words = [f"{_list(costs)}."] if costs else []
    words += [f"Of the ball's radius, the last epoch's δ use {_list(sizes)}."] if sizes else []
    words.append(f"{failed} of {log.groupby(['defence', 'seed']).ngroups} models failed to learn.")
    return _sentences(words)


def robustness(raw: pd.DataFrame) -> str:
    """03, and the head of 00: who withstands the worst attack, and whether the paper's order holds;
    `raw` is `experiments.white_box`'."""
    accuracy = _accuracy(raw)
    if accuracy.empty:
        return NOTHING
    worst = accuracy["Worst"].mean().sort_values()
    words = [
        f"Under the worst of PGM-20, PGM-100 and CW, {worst.index[-1]} keeps most: "
        f"{worst.iloc[-1]:.1f}%, {worst.index[0]} least: {worst.iloc[0]:.1f}%."
        if worst.iloc[-1] > worst.iloc[0]
        else f"Under the worst of PGM-20, PGM-100 and CW, all keep {worst.iloc[0]:.1f}%."
    ]
    for name in LEARNED:
        if {name, "PGM Net"} <= set(worst.index):
            gap = (accuracy["Worst", name] - accuracy["Worst", "PGM Net"]).dropna()
            words.append(
                f"{name} is {_above(gap)} PGM Net there (the paper: at least as robust), and at "
                f"least as robust on {(gap >= 0).sum()} of {len(gap)} seeds."
            )
    drops = accuracy["PGM-20"].mean() - accuracy["PGM-100"].mean()
    named = [f"{name} {drops[name]:.1f}" for name in ("PGM Net", *LEARNED) if name in drops]
    words.append(f"From PGM-20 to PGM-100, {_list(named)} points are lost.")
    return _sentences(words)


def night(rows: pd.DataFrame) -> str:
    """03: what the recorded night on real images says to the paper's order, and which rows are
    worth their seconds; `rows` is `recorded.night`'s."""
    accuracy, words = _accuracy(rows), []
    pairs = [(name, "PGM Net", attack) for name in LEARNED for attack in ("PGM-100", "Worst")]
    pairs += [("2-Step L2L", "Grad L2L", "Worst"), ("Free", "PGM Net", "Worst")]
    for name, other, attack in pairs:
        if not {(attack, name), (attack, other)} <= set(accuracy.columns):
            continue
        gap = (accuracy[attack, name] - accuracy[attack, other]).dropna()
        where = "in the worst case" if attack == "Worst" else f"under {attack}"
        words.append(f"{name} is {_above(gap)} {other} {where} ({len(gap)} seeds of both).")
    clean = accuracy["Clean"].mean()
    if {*LEARNED, "PGM Net"} <= set(clean.index):
        gains = [f"{name} {clean[name] - clean['PGM Net']:+.1f}" for name in LEARNED]
        words.append(f"Clean accuracy, from PGM Net's {clean['PGM Net']:.1f}%: {_list(gains)}.")
    words += _taken_by_autoattack(accuracy)
    return _sentences(words + _for_its_time(rows, accuracy["Worst"]))


def _taken_by_autoattack(accuracy: pd.DataFrame) -> list[str]:
    """How many of its images each of the night's rows loses to AutoAttack beyond the worst case."""
    before = [name for name in accuracy.columns.levels[0] if name.startswith("Worst, first")]
    if not before:
        return []
    taken = (accuracy[before[0]] - accuracy["AutoAttack"]).mean()
    names = [name for name in ("PGM Net", *LEARNED, *FIXED[1:]) if name in taken]
    named = [f"{name} {taken[name]:.1f}" for name in names]
    words = before[0].split(", ")[1]
    return [f"AutoAttack takes this many points more of the {words} images: {_list(named)}."]


def _for_its_time(rows: pd.DataFrame, worst: pd.DataFrame) -> list[str]:
    """Which rows no faster one is as robust as, in the mean over the seeds that all of them have
    from one device; `worst` is in %, a row a seed and a column a defence."""
    worst = worst[[name for name in (*LEARNED, *FIXED) if name in worst]].dropna()
    devices = rows[rows.defence.isin(worst.columns)].groupby("seed").device.nunique()
    worst = worst[devices.reindex(worst.index) == 1]
    if len(worst) < 2 or worst.shape[1] < 2:
        return []
    model = rows.drop_duplicates(["defence", "seed"]).pivot(
        index="seed", columns="defence", values="seconds"
    )
    cost, robust = model.loc[worst.index, worst.columns].mean(), worst.mean()
    front = [
        name
        for name in cost.sort_values().index
        if not ((cost < cost[name]) & (robust >= robust[name])).any()
    ]
    named = [f"{name} ({robust[name]:.1f}% after {cost[name]:.0f} s)" for name in front]
    rest = [f"{n} ({robust[n]:.1f}%, {cost[n]:.0f} s)" for n in cost.index if n not in front]
    seeds = _list(str(seed) for seed in worst.index)
    words = [
        f"Worst case against seconds of training, in the mean of seeds {seeds}: no faster row is "
        f"as robust as {_list(named)}."
    ]
    words += [f"A faster row is at least as robust as {_list(rest)}."] if rest else []
    return words


def loss_curves(gaps: pd.DataFrame) -> str:
    """04: how many steps of PGM a learned attacker is worth; `gaps` is
    `experiments.attack_gaps`'."""
    words = []
    for name, rows in gaps.groupby("defence", sort=False):
        steps = rows["PGM steps matched"].replace("", "21").astype(int)
        reached = "more than PGM's 20 steps" if steps.min() > 20 else f"PGM's step {steps.min()}"
        if steps.max() > steps.min():
            reached += " to " + ("beyond 20" if steps.max() > 20 else str(steps.max()))
        below = int((rows["own attacker"] < rows["PGM-20"]).sum())
        words.append(
            f"On {name}, its own attacker reaches the loss of {reached}; PGM-20 ends above it on "
            f"{below} of {len(rows)} seeds."
        )
    return _sentences(words)


def perturbations(rough: pd.DataFrame) -> str:
    """05: whose perturbations are smooth; `rough` is `experiments.roughness`'."""
    table = rough[rough.status == "ok"].pivot_table(
        index="defence", columns="attack", values="roughness", sort=False
    )
    words = []
    attack = "2-Step L2L attacker"
    for name, row in table.iterrows():
        word = "smoother than" if row[attack] < row["PGM-20"] else "no smoother than"
        words.append(
            f"On {name} the 2-Step attacker's perturbations are {word} PGM-20's: roughness "
            f"{row[attack]:.2f} against {row['PGM-20']:.2f}."
        )
    return _sentences(words)


def checklist(verdicts: pd.DataFrame) -> str:
    """06: how many items hold, and which do not; `verdicts` is `checks.verdicts`'."""
    measured = verdicts[verdicts.verdict != ""]
    words = []
    for topic, rows in measured.groupby("topic", sort=False):
        missed = rows[rows.verdict != "holds"]
        text = f"{topic}: {len(rows) - len(missed)} of {len(rows)} verdicts hold"
        if len(missed):
            names = missed.groupby("item", sort=False).defence.agg(_list)
            text += "; not " + "; ".join(f"“{item}” ({who})" for item, who in names.items())
        words.append(f"{text}.")
    return _sentences(words)


def diverse(effects: pd.DataFrame, attack: str = "PGD-100") -> str:
    """07: what recursion and diversity add; `effects` is `diverse.effects`'."""
    words = []
    for row in effects[(effects.under == attack) & (effects.points != "")].itertuples():
        points = str(row.points).removeprefix("-")
        does = "takes away" if points != row.points else "adds"
        words.append(
            f"{row.adding} {row[2]} {does} {points} points under {attack} (the paper: "
            f"{row.published}); it is a gain on {row[5]} seeds."
        )
    return _sentences(words)


def longer(games: pd.DataFrame, attack: str = "PGD-100") -> str:
    """07: what the authors' own game keeps on MNIST; `games` are rows of the record
    l2l_da-mnist-stopped, that game's first."""
    told = published.select(version="l2l-da", table="Table 1a", recipe="l2l-da/full", attack=attack)
    game, paper = games.iloc[0], told.value.item()
    return (
        f"As the authors' code plays it, on all of MNIST, L2L-DA keeps {100 * game[attack]:.1f}% "
        f"under {attack} after {game.iterations:,.0f} iterations on one seed (the paper: {paper} "
        "after 100,000)."
    )


def held(rows: pd.DataFrame, iterations: int, attack: str = "PGD-100") -> str:
    """07: what the authors' own game keeps when θ's rate never falls, beside PGD-10 training;
    `rows` are those of the record l2l_da-mnist-held."""
    told = rows[rows.attack == attack].groupby("recipe").accuracy.agg(list)
    game, pgd = (100 * pd.Series(told[name]) for name in ("l2l-da/full@code", "l2l-da/pgd10"))
    return (
        f"Smaller, and with a rate that never falls, it keeps {mean_deviation(game)}% after "
        f"{iterations:,} iterations, PGD-10 training {mean_deviation(pgd)}% ({len(game)} seeds)."
    )


def imitation(numbers: pd.DataFrame) -> str:
    """08: who reaches the expert and stays there; `numbers` is `gail.stability_table`'."""
    words = []
    for environment, rows in numbers.groupby("environment", sort=False):
        parts = []
        for method, runs in rows.groupby("method", sort=False):
            there = f"{method} reaches the expert in {runs.reached.count()} of {len(runs)} runs"
            stays = f" and is then below 80% of it in {runs.below.mean():.0%} of the iterations"
            parts.append(there + (stays if runs.reached.count() else ""))
        words.append(f"On {environment}, {_list(parts)}.")
    return _sentences(words)


def real(table: pd.DataFrame) -> str:
    """09: who is caught and who is accused in error; `table` is `cheats.alarms`'."""
    cheats, honest = table[table.cheats], table[~table.cheats]
    missed = cheats[cheats.accused < cheats.seeds]
    accused = honest[honest.accused > 0]
    words = [f"{len(cheats) - len(missed)} of {len(cheats)} classifiers that cheat are caught"]
    words[0] += f", not {_list(missed.classifier)}." if len(missed) else "."
    names = _list(accused.classifier) if len(accused) else "none"
    words.append(f"The list accuses {names} of the {len(honest)} honest ones.")
    return _sentences(words)


def lags(causes: pd.DataFrame, seconds: pd.DataFrame, base: str = "Grad L2L") -> str:
    """10: what lies behind the gap and whether a learned attacker is worth its time; the recorded
    rows of `benchmarks/questions.py`, a row a model with its worst case, and the columns learned
    and cpu_seconds. Rows of fewer than five seeds say nothing."""
    words, worst = [], _worst(causes)
    if base in worst and "FGSM Net" in worst:
        words.append(
            f"In as many epochs, FGSM Net is {_above(worst['FGSM Net'] - worst[base])} {base} in "
            "the worst case: its inner step is the sign of the gradient, with nothing learned."
        )
    if base in worst:
        gaps = worst.drop(columns=base).sub(worst[base], axis=0)
        learned = [n for n in gaps if causes.learned[causes.defence == n].all()]
        better = [n for n in learned if (gaps[n] > 0).all()]
        named = [f"“{n}” ({_above(gaps[n])})" for n in better]
        if named:
            words.append(f"Of the learned ones, better than {base} on every seed: {_list(named)}.")
        rest = [f"“{n}”" for n in learned if n not in better]
        if rest:
            words.append(f"Not better on every seed: {_list(rest)}.")
    if {CORRECTED, "FGSM Net"} <= set(worst):
        price = causes.groupby("defence").cpu_seconds.mean()
        words.append(
            f"“{CORRECTED}” is {_above(worst[CORRECTED] - worst['FGSM Net'])} FGSM Net, and takes "
            f"{price[CORRECTED] / price['FGSM Net']:.1f} times its seconds."
        )
    field = "AutoAttack, fewer"
    equal = _worst(seconds, field) if field in seconds else pd.DataFrame()
    own = [n for n in equal if seconds.learned[seconds.defence == n].all()]
    if own and len(own) < equal.shape[1]:
        fixed, best = (equal[part].mean().idxmax() for part in (equal.columns.difference(own), own))
        gap = equal[best] - equal[fixed]
        level, verdict = int((gap >= 0).sum()), "a" if (gap >= 0).all() else "no"
        words.append(
            f"In equal time and with AutoAttack, the best learned attacker (“{best}”) is "
            f"{_above(gap)} the best fixed one ({fixed}), and at least level with it on {level} of "
            f"{len(gap)} seeds: {verdict} cure, at this scale."
        )
    return _sentences(words) or "Nothing has been recorded."


def _worst(rows: pd.DataFrame, field: str = "Worst") -> pd.DataFrame:
    """This accuracy in %, a row a seed and a column a defence, of those with five good seeds."""
    if rows.empty:
        return rows
    fine = rows[rows.status == "ok"].pivot(index="seed", columns="defence", values=field)
    return 100 * fine.dropna(axis=1, thresh=5)


def _accuracy(raw: pd.DataFrame) -> pd.DataFrame:
    """Accuracy in %, a row a seed, columns (attack, defence), of the models that are ok."""
    fine = raw[raw.status == "ok"]
    return 100 * fine.pivot_table(index="seed", columns=["attack", "defence"], values="accuracy")


def _above(gap: pd.Series) -> str:
    if not gap.any():
        return "level with"
    sign, word = (1, "above") if gap.mean() >= 0 else (-1, "below")
    return f"{mean_deviation(sign * gap)} points {word}"


def _list(words: Iterable[str]) -> str:
    *head, last = words
    return f"{', '.join(head)} and {last}" if head else last


def _sentences(words: Iterable[str]) -> str:
    return " ".join(text[0].upper() + text[1:] for text in words)
