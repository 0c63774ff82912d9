"""Where paper and authors' code differ, or are silent: which choice measures better?

    python benchmarks/choices.py [choices|recipes|fast_step] [--dataset NAME] [--data DIR|ZIP]
                                 [--seeds N] [--images N] [--output DIR]

`recipes` trains Grad and 2-Step L2L as recommended, as the authors' code has them and as printed,
at the profile `quick`: one recipe and seed takes one to three minutes on a core without bfloat16.
`choices` trains Grad L2L of the profile `quick` with one setting changed at a time. `fast_step`
trains Grad and 2-Step L2L with this project's step (both players from one pass, bfloat16) and with
the authors' procedure (in turns, float32), for equally many epochs: is the fast step as robust?
Either measures PGM-20, PGM-100 and CW on the same images, prints a table with the differences
paired by seed, and writes it with its provenance to
results/recorded/<question>-<dataset>.json. Models and measurements are kept under
--output, and the same command goes on where it stopped. What a step costs is for
`python benchmarks/bench.py`: here models train side by side.
"""

import argparse
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from l2lkit import Store
from l2lkit.checks.attacks import WORST, white_box_attacks
from l2lkit.files import write_json
from l2lkit.game.learned import Learned
from l2lkit.game.recipe import Recipe
from l2lkit.results.experiments import mean_deviation, row_of, summary

ROOT = Path(__file__).resolve().parents[1]
AUTHORS = ", authors' procedure"
KINDS = ("@ours", "@code", "")
OTHERS = (AUTHORS, ", authors' code", ", as printed")


def choices(store: Store) -> dict[str, Recipe]:
    grad = store.recipe("grad")
    attack = grad.attack
    assert isinstance(attack, Learned)
    batch_max, unscaled = (replace(attack, gradient=name) for name in ("batch-max", "none"))
    slow = replace(grad.attacker_optimiser, lr=1e-3)
    return {
        "Grad L2L": grad,
        "gradient: batch-max (authors' code)": replace(grad, attack=batch_max),
        "gradient: as it is (ICLR 2020)": replace(grad, attack=unscaled),
        "update: alternating (authors' code)": replace(grad, update="alternating"),
        "attacker rate 0.001 (ICLR 2020)": replace(grad, attacker_optimiser=slow),
        "twice the epochs": replace(grad, epochs=2 * grad.epochs),
        "PGM Net": store.recipe("pgm"),
    }


def recipes(store: Store) -> dict[str, Recipe]:
    rows = [
        store.recipe(f"{row}{kind}")
        for row in ("iclr2020/grad", "iclr2020/2step")
        for kind in KINDS
    ]
    return {r.defence: r for r in rows}


def fast_step(store: Store) -> dict[str, Recipe]:
    recipes = {}
    for name in ("grad", "2step"):
        fast = store.recipe(name)
        recipes[fast.defence] = fast
        recipes[fast.defence + AUTHORS] = replace(fast, update="alternating", precision="float32")
    return recipes


# The settings that each question compares, and on how many test images.
QUESTIONS: dict[str, tuple[Callable[[Store], dict[str, Recipe]], int]] = {
    "choices": (choices, 200),
    "recipes": (recipes, 200),
    "fast_step": (fast_step, 500),
}


def measure(parameters: dict, question: str, images: int, name: str, seed: int) -> list[dict]:
    store = Store(**parameters)
    model = store.model(QUESTIONS[question][0](store)[name], seed)
    known = white_box_attacks(store.budget)
    right = store.correct(model, {a: known[a] for a in ("Clean", *WORST)}, images)
    about = row_of(model) | {"defence": name}
    return [about | {"attack": attack, "accuracy": r.mean()} for attack, r in right.items()]


def differences(frame: pd.DataFrame) -> pd.DataFrame:
    """What a defence is above its other kinds or, where `frame` has none, the first one above each
    of the others: in points of accuracy, paired by seed, mean ± deviation, a column an attack.
    Seeds of which either failed are left out."""
    names = list(frame.defence.unique())
    pairs = [(name, name + kind) for name in names for kind in OTHERS if name + kind in names]
    pairs = pairs or [(names[0], other) for other in names[1:]]
    fine = frame[frame.status == "ok"]
    accuracy = 100 * fine.pivot(index="seed", columns=["defence", "attack"], values="accuracy")
    rows = {}
    for name, other in pairs:
        if {name, other} <= set(fine.defence):
            gap = (accuracy[name] - accuracy[other]).dropna()
            label = f"{name}, difference" if other == name + AUTHORS else f"{name} above {other}"
            rows[label] = {a: mean_deviation(gap[a]) for a in ("Clean", *WORST)}
            rows[label]["seeds"] = str(len(gap))
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("defence")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("question", nargs="?", choices=QUESTIONS, default="choices")
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--data")
    parser.add_argument("--seeds", type=int, default=5, help="how many (default: 5)")
    parser.add_argument("--images", type=int, help="default: 200 for choices, 500 for fast_step")
    parser.add_argument("--output", help="where the models are, or go (default: the project)")
    args = parser.parse_args()
    variants, images = QUESTIONS[args.question]
    images = args.images or images
    store = Store("quick", args.dataset, args.data, seeds=args.seeds, output=args.output)
    for seed in store.seeds:
        store.model("plain", seed)  # all start from it
    same = (store.parameters(), args.question, images)
    jobs = [(*same, name, seed) for seed in store.seeds for name in variants(store)]
    with ProcessPoolExecutor(store.workers(), get_context("spawn")) as pool:
        parts = list(tqdm(pool.map(measure, *zip(*jobs, strict=True)), total=len(jobs)))
    rows = [row for part in parts for row in part]
    frame = pd.DataFrame(rows)
    table = summary(frame, ["Clean", *WORST])
    table = pd.concat([table, differences(frame)]).fillna("")
    print(table.to_string())
    caption = "Accuracy in %, mean ± deviation. " + store.caption(images=images)
    content = {"caption": caption, "table": table.reset_index().to_dict("records")}
    content |= {"rows": rows, "provenance": store.provenance()}
    write_json(ROOT / "results" / "recorded" / f"{args.question}-{args.dataset}.json", content)


if __name__ == "__main__":
    main()
