"""Collect the finished models of `l2lkit run --only-rows` from the folders of several machines.

    python benchmarks/night.py FOLDER… [--name NAME]

A FOLDER is one that --output named, or a copy of it: its records, logs and measurements are read,
its checkpoints are not needed. Writes results/recorded/NAME.json (default: night-cifar10): of every
model its recipe, seed and status, accuracy under each attack with the number of images, seconds and
epochs of training, device, versions, code and commit. Of a model that two folders have, the first
counts.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from l2lkit.files import write_json
from l2lkit.recipes.scales import profile

RECORDED = Path(__file__).resolve().parents[1] / "results" / "recorded"
WORST = ("PGM-20", "PGM-100", "CW")


def models(folder: Path) -> Iterator[dict[str, Any]]:
    """A row a finished model under `folder` of which there is a measurement."""
    outcomes: dict[str, dict[str, list[int]]] = {}
    survivors: dict[str, list[int]] = {}
    for path in sorted(folder.glob("runs/*/measurements/*/*.json")):
        measurement = json.loads(path.read_text())
        about = measurement["settings"][0]
        if measurement["what"] == "correct":
            outcomes.setdefault(about["model"], {}).update(measurement["result"])
        if measurement["what"] == "autoattack":
            left, right = measurement["settings"][1][1], measurement["result"]["right"]
            survivors[about["model"]] = [i for i, r in zip(left, right, strict=True) if r]
    for path in sorted(folder.glob("runs/*/models/*/*/*/record.json")):
        record = json.loads(path.read_text())
        right = outcomes.get(record["id"])
        if right is None:
            continue
        log = pd.read_csv(path.with_name("log.csv"))
        accuracy = {attack: sum(r) / len(r) for attack, r in right.items()}
        images = {attack: len(r) for attack, r in right.items()}
        worst = [all(answers) for answers in zip(*(right[a] for a in WORST), strict=True)]
        accuracy["Worst"], images["Worst"] = sum(worst) / len(worst), len(worst)
        if record["id"] in survivors:
            fewer = min(profile(record["profile"]).curve_images or len(worst), len(worst))
            accuracy["AutoAttack"] = len(survivors[record["id"]]) / fewer
            images["AutoAttack"] = fewer
        kept = ("seed", "status", "dataset", "profile", "device", "versions", "code", "commit")
        yield {
            "recipe": record["recipe"]["name"],
            "defence": record["recipe"]["defence"],
            **{key: record[key] for key in kept},
            "epochs": len(log),
            "seconds": round(log["seconds"].sum(), 1),
            "accuracy": accuracy,
            "images": images,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument(
        "--name", default="night-cifar10", help="of the record (default: %(default)s)"
    )
    args = parser.parse_args()
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for folder in args.folders:
        for row in models(folder):
            found.setdefault((row["recipe"], row["seed"]), row)
    rows = [found[key] for key in sorted(found)]
    caption = (
        "Accuracy in [0, 1] at ε = 0.031 on the first test images, per recipe and seed; AutoAttack "
        "counts the images that also survive PGM-20, PGM-100 and CW. Worst: all of these three."
    )
    write_json(RECORDED / f"{args.name}.json", {"caption": caption, "rows": rows})
    accuracy = pd.DataFrame([row["accuracy"] for row in rows]) * 100
    columns = ["Clean", "FGSM", "PGM-20", "PGM-100", "CW", "Worst", "AutoAttack"]
    about = pd.DataFrame(rows)[["recipe", "seed", "status", "seconds"]]
    print(about.join(accuracy.reindex(columns=columns).round(1)).to_string(index=False))


if __name__ == "__main__":
    main()
