"""The tables of docs/results.md: every defence of a profile under every attack.

    python benchmarks/white_box.py [--profile NAME] [--dataset NAME] [--data DIR|ZIP]
                                   [--device NAME] [--seeds N] [--rows A,B] [--output DIR]
                                   [--retrain]

Trains and measures what an earlier run has not, a model a core, and goes on where it stopped.
Prints accuracy (mean ± deviation over seeds) and the papers' orderings, and writes both with their
provenance to results/recorded/ as white_box-<profile>-<dataset>.json, orderings-… and by_seed-…;
the name of the profile `quick` is left out.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from l2lkit import Store
from l2lkit.files import write_json
from l2lkit.recipes import INTERPOLATION
from l2lkit.results import checklist, experiments
from l2lkit.results.plan import ROWS, rows
from l2lkit.runs.workers import work_off

RECORDED = Path(__file__).resolve().parents[1] / "results" / "recorded"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--profile", default="quick")
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--data")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seeds", type=int, default=5, help="how many (default: 5)")
    parser.add_argument("--rows", help="only these recipes, as grad,pgm (default: all)")
    parser.add_argument("--output", help="where the models are, or go (default: the project)")
    parser.add_argument("--retrain", action="store_true", help="make anew what other code made")
    args = parser.parse_args()
    names = args.rows.split(",") if args.rows else [*ROWS, *INTERPOLATION]
    store = Store(
        args.profile,
        args.dataset,
        args.data,
        args.device,
        seeds=args.seeds,
        output=args.output,
        retrain=args.retrain,
    )
    work_off(store, rows(store, names), store.workers())
    by_seed = checklist.by_seed(store, names)
    table, orderings = checklist.table(by_seed), experiments.verdicts(by_seed)
    print(table.to_string(), orderings.to_string(index=False), sep="\n\n")
    about = store.caption(images=len(store.images(store.profile.eval_images)[0]))
    words = "Accuracy in %, mean ± standard deviation over seeds, at ε = 0.031. Worst: the image "
    words += "survives PGM-20, PGM-100 and CW; the last two columns are on the profile's fewer "
    words += f"images, the last adds {store.budget.autoattack or 'nothing'}. "
    records = {
        "white_box": (words, table.reset_index()),
        "orderings": ("The papers' order, pair by pair, seed by seed. ", orderings),
        "by_seed": ("Accuracy in [0, 1] of every seed, with its training's seconds. ", by_seed),
    }
    for name, (caption, frame) in records.items():
        content = {"caption": caption + about, "rows": frame.fillna("").to_dict("records")}
        content |= {"provenance": store.provenance()}
        if name == "by_seed":
            content["seconds"] = seconds(store, names)
        scale = "" if args.profile == "quick" else f"-{args.profile}"
        write_json(RECORDED / f"{name}{scale}-{store.dataset}.json", content)


def seconds(store: Store, names: Sequence[str]) -> list[dict]:
    """What the training of each model took, epoch by epoch in the mean, and on what."""
    return [
        {
            "recipe": model.recipe.name,
            "seed": model.seed,
            "seconds": round(model.log["seconds"].sum(), 1),
            "epochs": len(model.log),
            "device": model.record["device"],
            "commit": model.record["commit"],
        }
        for model in store.models([*names, "plain"])
    ]


if __name__ == "__main__":
    main()
