"""The tables of docs/results.md: every defence of a profile under every attack.

    python benchmarks/white_box.py [--profile NAME] [--dataset NAME] [--data DIR|ZIP] [--seeds N]
                                   [--output DIR]

Trains and measures what an earlier run has not, a model a core, and goes on where it stopped.
Prints accuracy (mean ± deviation over seeds) and the papers' orderings, and writes both with their
provenance to results/recorded/ as white_box-<profile>-<dataset>.json and orderings-…; the name of
the profile `quick` is left out.
"""

import argparse
from pathlib import Path

import pandas as pd

from l2lkit import Store
from l2lkit.files import write_json
from l2lkit.results import checklist, experiments
from l2lkit.results.plan import ROWS, defences
from l2lkit.runs.workers import work_off

RECORDED = Path(__file__).resolve().parents[1] / "results" / "recorded"
COLUMNS = ["Clean", "FGSM", "PGM-20", "PGM-100", "CW", "Random", "Own attacker", "Worst"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--profile", default="quick")
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--data")
    parser.add_argument("--seeds", type=int, default=5, help="how many (default: 5)")
    parser.add_argument("--output", help="where the models are, or go (default: the project)")
    args = parser.parse_args()
    store = Store(args.profile, args.dataset, args.data, seeds=args.seeds, output=args.output)
    wanted = ("train/", "measure/")
    work_off(store, [t for t in defences(store) if t.name.startswith(wanted)], store.workers())
    raw = experiments.white_box(store, ROWS)
    few = len(store.images(store.budget.fewer)[0])
    names = {"Worst": f"Worst, first {few}", "AutoAttack": "with AutoAttack"}
    fewer = checklist.robust_accuracy(store, ROWS).drop(columns="accuracy").rename(columns=names)
    keys = ["defence", "seed", "status"]
    fewer = fewer.melt(keys, [*names.values()], "attack", "accuracy").dropna()
    columns = [*COLUMNS, *fewer.attack.unique()]
    table = experiments.summary(pd.concat([raw, fewer]), columns)
    orderings = experiments.verdicts(raw)
    print(table.to_string(), orderings.to_string(index=False), sep="\n\n")
    about = store.caption(images=len(store.images(store.profile.eval_images)[0]))
    words = "Accuracy in %, mean ± standard deviation over seeds, at ε = 0.031. Worst: the image "
    words += "survives PGM-20, PGM-100 and CW; the last two columns are on the profile's fewer "
    words += f"images, the last adds {store.budget.autoattack or 'nothing'}. "
    records = {
        "white_box": (words, table.reset_index()),
        "orderings": ("The papers' order, pair by pair, seed by seed. ", orderings),
    }
    for name, (caption, frame) in records.items():
        content = {"caption": caption + about, "rows": frame.fillna("").to_dict("records")}
        content |= {"provenance": store.provenance()}
        scale = "" if args.profile == "quick" else f"-{args.profile}"
        write_json(RECORDED / f"{name}{scale}-{store.dataset}.json", content)


if __name__ == "__main__":
    main()
