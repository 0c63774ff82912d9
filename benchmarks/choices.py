"""Where paper and authors' code differ, or are silent: which choice measures better?

    python benchmarks/choices.py [--dataset NAME] [--data DIR|ZIP]

Trains Grad L2L of the profile `quick` with one setting changed at a time, on every seed; measures
PGM-20, PGM-100 and CW on the same images; prints a table and writes it with its provenance to
results/recorded/choices-<dataset>.json.
"""

import argparse
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import pandas as pd

from l2lkit import Store
from l2lkit.experiments import WORST, summary, white_box_attacks
from l2lkit.recipes import Recipe
from l2lkit.store import ROOT, write_json


def variants(store: Store) -> dict[str, Recipe]:
    grad = store.recipe("grad")
    attack = grad.attack
    slow = replace(attack, optimiser=replace(attack.optimiser, lr=1e-3))
    return {
        "Grad L2L": grad,
        "gradient: batch-max (authors' code)": replace(
            grad, attack=replace(attack, gradient="batch-max")
        ),
        "update: alternating (authors' code)": replace(grad, update="alternating"),
        "attacker rate 0.001 (ICLR 2020)": replace(grad, attack=slow),
        "twice the epochs": replace(grad, epochs=2 * grad.epochs),
        "PGM Net": store.recipe("pgm"),
    }


def measure(parameters: dict, name: str, seed: int) -> list[dict]:
    store = Store(**parameters)
    model = store.model(variants(store)[name], seed)
    attacks = {a: b for a, b in white_box_attacks(store).items() if a in ("Clean", *WORST)}
    right = store.correct(model, attacks, store.profile.eval_images)
    seconds = model.log.seconds.sum()
    return [
        {"defence": name, "seed": seed, "status": model.status, "attack": attack,
         "accuracy": r.mean(), "seconds": seconds}
        for attack, r in right.items()
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--data")
    args = parser.parse_args()
    store = Store("quick", dataset=args.dataset, data=args.data)
    jobs = [(store.parameters(), name, seed) for name in variants(store) for seed in store.seeds]
    with ProcessPoolExecutor(store.workers(), get_context("spawn")) as pool:
        rows = [row for part in pool.map(measure, *zip(*jobs, strict=True)) for row in part]
    frame = pd.DataFrame(rows)
    table = summary(frame, ["Clean", *WORST])
    table["training seconds"] = frame.groupby("defence", sort=False).seconds.mean().round(0)
    print(table.to_string())
    caption = "Accuracy in %, mean ± deviation. " + store.caption(images=store.profile.eval_images)
    write_json(
        ROOT / "results" / "recorded" / f"choices-{args.dataset}.json",
        {"caption": caption, "table": table.reset_index().to_dict("records"), "rows": rows,
         "provenance": store.provenance()},
    )  # fmt: skip


if __name__ == "__main__":
    main()
