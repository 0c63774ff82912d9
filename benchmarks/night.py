"""Collect the finished models of `l2lkit run --only-rows` from the folders of several machines.

    python benchmarks/night.py FOLDER… [--name NAME] [--weights SEED] [--seconds]
    python benchmarks/night.py --check DIR|ZIP [--name NAME]

A FOLDER is one that --output named, or a copy of it: its records, logs and measurements are read,
its checkpoints are not needed. Writes results/recorded/NAME.json (default: night-cifar10): of every
model its recipe, seed and status, accuracy under each attack with the number of images, seconds and
epochs of training, device, versions, code and commit. Of a model that two folders have, the first
counts; models that are recorded there already and in no FOLDER stay. --weights also keeps the
classifiers of one seed in half precision, as results/recorded/NAME/RECIPE.safetensors; for these
the checkpoints must be there. --seconds records how long each task took, in folders of one machine,
as results/recorded/seconds-PROFILE.json: `run --plan` tells others by it what to expect. --check
goes through the checklist with each of the kept classifiers, on the first test images of CIFAR-10
in DIR or ZIP, and writes results/recorded/NAME-checks.json.
"""

import argparse
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from l2lkit.checks.examination import check as examine
from l2lkit.data import Dataset, load
from l2lkit.files import load_checkpoint, write_atomically, write_json
from l2lkit.game.classifiers import make_classifier
from l2lkit.recipes import RECIPES
from l2lkit.recipes.scales import profile
from l2lkit.runs.machine import hardware, versions

RECORDED = Path(__file__).resolve().parents[1] / "results" / "recorded"
WORST = ("PGM-20", "PGM-100", "CW")
CHECKED = 100  # test images that the checklist looks at


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
            accuracy[f"Worst, first {fewer}"] = sum(worst[:fewer]) / fewer
            images |= dict.fromkeys(("AutoAttack", f"Worst, first {fewer}"), fewer)
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


def keep_weights(folder: Path, seed: int, target: Path) -> None:
    """The classifiers of this seed under `folder`, as safetensors in half precision; the recipe,
    seed, data, device and commit go into the files."""
    for path in sorted(folder.glob(f"runs/*/models/*/*/seed-{seed}/record.json")):
        record, kept = json.loads(path.read_text()), load_checkpoint(path.parent, "checkpoint")
        if kept is None:
            raise SystemExit(f"error: {path.parent} has no checkpoint: copy it too.")
        recipe, state = record["recipe"], kept["players"]["f"]
        halves = {k: (t.half() if t.is_floating_point() else t) for k, t in state.items()}
        about = {k: str(record[k]) for k in ("seed", "dataset", "profile", "device", "commit")}
        about |= {"recipe": recipe["name"], "classifier": recipe["classifier"]}
        name = recipe["name"].split("/")[1].split("@")[0]
        tensors = {k: t.contiguous() for k, t in halves.items()}
        save = partial(save_file, tensors, metadata=about)
        write_atomically(target / f"{name}.safetensors", save)


def record_seconds(folders: list[Path]) -> None:
    """How long each task took in these folders, and a step of the Plain Net, which tells how fast
    the machine is; what is recorded of other tasks stays."""
    for path in (path for folder in folders for path in sorted(folder.glob("runs/*/seconds.json"))):
        target = RECORDED / f"seconds-{path.parent.name}.json"
        about = json.loads(path.read_text())
        record = json.loads(next(path.parent.glob("models/*/*/*/record.json")).read_text())
        origin = {key: record[key] for key in ("device", "versions", "commit")}
        known = json.loads(target.read_text()) if target.exists() else {"provenance": origin}
        if not about["step"] or known["provenance"]["device"] != origin["device"]:
            raise SystemExit(f"error: {path} is of another machine, or names no step.")
        seconds = known.get("seconds", {}) | about["seconds"]
        write_json(target, {"step": about["step"], "seconds": seconds, "provenance": origin})


def check(weights: Path, data: Dataset) -> Iterator[dict[str, Any]]:
    """A row an item of the checklist, as `l2lkit.check` has them, of every classifier kept in this
    folder."""
    x, y = data.test(CHECKED)
    for path in tqdm(sorted(weights.glob("*.safetensors"))):
        with safe_open(path, "pt") as kept:
            recipe = RECIPES[kept.metadata()["recipe"]]
            classifier = make_classifier(
                kept.metadata()["classifier"], data.num_classes, data.channels, x.shape[-1]
            )
        classifier.load_state_dict(load_file(path))
        for row in examine(classifier.eval(), x, y).to_dict("records"):
            shown = {key: row[key] for key in ("group", "item", "verdict", "figure")}
            yield {"recipe": recipe.name, "defence": recipe.defence} | shown


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER")
    parser.add_argument(
        "--name", default="night-cifar10", help="of the record (default: %(default)s)"
    )
    parser.add_argument("--weights", type=int, metavar="SEED", help="keep this seed's classifiers")
    parser.add_argument("--seconds", action="store_true", help="record how long each task took")
    parser.add_argument("--check", metavar="DIR|ZIP", help="the checklist, with kept classifiers")
    args = parser.parse_args()
    if bool(args.check) == bool(args.folders):
        parser.error("name folders to collect from, or --check DIR|ZIP.")
    if args.check:
        data = load("cifar10", args.check)
        rows = [*check(RECORDED / args.name, data)]
        about = {"dataset": data.title, "images": CHECKED, "versions": versions()}
        about["device"] = hardware(torch.device("cpu"), None)
        write_json(RECORDED / f"{args.name}-checks.json", {"about": about, "rows": rows})
        return
    path, finished = RECORDED / f"{args.name}.json", dict[tuple[str, int], dict[str, Any]]()
    recorded = json.loads(path.read_text())["rows"] if path.exists() else []
    for row in [*(row for folder in args.folders for row in models(folder)), *recorded]:
        finished.setdefault((row["recipe"], row["seed"]), row)
    order = [*RECIPES]
    rows = [finished[key] for key in sorted(finished, key=lambda k: (order.index(k[0]), k[1]))]
    caption = (
        "Accuracy in [0, 1] at ε = 0.031 on the first test images, per recipe and seed; AutoAttack "
        "counts, of the first 200, the images that also survive PGM-20, PGM-100 and CW. Worst: all "
        "of these three."
    )
    write_json(path, {"caption": caption, "rows": rows})
    if args.weights is not None:
        for folder in args.folders:
            keep_weights(folder, args.weights, RECORDED / args.name)
    if args.seconds:
        record_seconds(args.folders)
    accuracy = pd.DataFrame([row["accuracy"] for row in rows]) * 100
    columns = ["Clean", "FGSM", "PGM-20", "PGM-100", "CW", "Worst", "AutoAttack"]
    about = pd.DataFrame(rows)[["recipe", "seed", "status", "seconds"]]
    print(about.join(accuracy.reindex(columns=columns).round(1)).to_string(index=False))


if __name__ == "__main__":
    main()
