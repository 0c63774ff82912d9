"""`check` and `attack` on the command line; `train SPEC` is in `training`."""

import argparse
import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor, nn

from l2lkit.checks.attacks import EPSILON
from l2lkit.checks.examination import ACCURACY, BEFORE, Examination, full_check
from l2lkit.checks.preflight import interval, prepare
from l2lkit.data import Dataset
from l2lkit.errors import InputError
from l2lkit.files import check_writable, write_atomically, write_text
from l2lkit.game import evaluate
from l2lkit.game.search import attack_by_name
from l2lkit.game.solver import Solver
from l2lkit.own.loading import load_classifier, named_by
from l2lkit.own.pictures import load_pictures
from l2lkit.runs import machine

SHEET = 6  # images on the sheet


def check(args: argparse.Namespace) -> int:
    """Run the command; 1 where an item fails, else 0."""
    device = machine.pick_device(args.device)
    attacker = own_attack(args.attacker) if args.attacker else None
    data, images, labels = load_pictures(args.data, args.dataset, args.images)
    classifier = _load(args, args.spec, args.weights, data).to(device)
    surrogate = None
    if args.surrogate:
        surrogate = _load(args, args.surrogate, args.surrogate_weights, data).to(device)
    if args.html and not Path(args.html).resolve().parent.is_dir():
        raise InputError(f"There is no folder for {args.html}: make it, or name another.")

    def on_ready(seen: pd.DataFrame, seconds: float) -> None:
        if not args.json:
            print_rows(seen)
        print(f"attacking: about {_duration(seconds)} …", file=sys.stderr, flush=True)

    begun = time.perf_counter()
    result = full_check(
        classifier,
        images.to(device),
        labels.to(device),
        epsilon=args.epsilon,
        attacker=attacker,
        surrogate=surrogate,
        standard=args.standard,
        seed=args.seed,
        on_ready=on_ready,
    )
    about = {
        "classifier": args.spec,
        "weights": args.weights,
        "data": data.title,
        "images": len(result.subject.labels),
        "epsilon": args.epsilon,
        "seed": args.seed,
        "seconds": round(time.perf_counter() - begun, 1),
        "seconds by measurement": {k: round(s, 1) for k, s in result.seconds.items()},
        "device": machine.hardware(device, None),
        "versions": machine.versions(),
    }
    if args.html:
        from l2lkit.show.check_page import page

        write_text(Path(args.html), page(result, about))
    if args.json:
        rows = json.loads(result.frame.to_json(orient="records", force_ascii=False))
        print(json.dumps({"about": about, "items": rows}, indent=1, ensure_ascii=False))
    else:
        print_rows(result.frame[result.frame.group != BEFORE])
        print(summary(result))
    return 1 if result.failed else 0


def _load(args: argparse.Namespace, spec: str, weights: str | None, data: Dataset) -> nn.Module:
    return load_classifier(
        spec, classes=data.num_classes, weights=weights, mean=args.mean, std=args.std
    )


def own_attack(place: str) -> Solver:
    """The attack at FILE.py:NAME: a Solver, or what makes one without arguments."""
    thing = named_by(place, wanted := "is or makes an l2lkit.Solver")
    if not isinstance(thing, Solver):
        try:
            thing = thing()
        except Exception as error:  # a person's own code raises anything
            raise InputError(f"{place}() fails ({type(error).__name__}: {error}).") from error
    if not isinstance(thing, Solver):
        raise InputError(f"{place} is nothing that {wanted}.")
    return thing


def print_rows(frame: pd.DataFrame) -> None:
    for group, rows in frame.groupby("group", sort=False):
        print(f"\n{group}")
        for row in rows.itertuples():
            mark = {"fails": "FAILS", "holds": "holds"}.get(str(row.verdict), "     ")
            print(f"  {mark}  {row.item}: {row.figure}")
            if row.meaning:
                print(f"         {row.meaning}")
    sys.stdout.flush()


def summary(result: Examination) -> str:
    """One sentence: what it withstands, and whether to believe it."""
    rows = result.frame[result.frame.group == ACCURACY].iloc[-1]
    words = f"\nAt most {rows.figure} withstand every attack at ε = {result.budget.epsilon:.4g}. "
    if result.failed:
        return words + f"{len(result.failed)} items fail: {', '.join(result.failed)}."
    return words + "No item fails: flaws larger than the tolerances were looked for and not found."


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} minutes"


# Adversarial examples ----------------------------------------------------------------------------


def attack(args: argparse.Namespace) -> int:
    """Run the command: a folder of PNGs, exact perturbations, a sheet."""
    device, target = machine.pick_device(args.device), Path(args.output)
    solver = attack_by_name(args.attack, EPSILON)
    if solver is None:
        raise InputError("Clean images are no attack: take pgm-20, say.")
    solver = solver.within(args.epsilon)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target} is there already: --output names a new folder.")
    data, images, labels = load_pictures(args.data, args.dataset, args.images)
    classifier = _load(args, args.spec, args.weights, data).to(device)
    ready = prepare(classifier, images.to(device), labels.to(device))
    check_writable(target)
    x, y, f = ready.images, ready.labels, ready.classifier
    delta = evaluate.perturb(f, solver, x, y, seed=args.seed)
    pixels = ((x + delta).clamp(0, 1) * 255).round().to(torch.uint8)
    before, after, read = (
        _answers(f, shown, y) for shown in (x, (x + delta).clamp(0, 1), pixels.to(x.dtype) / 255)
    )
    truth = y.cpu().numpy()
    for index, picture in zip(ready.kept.tolist(), pixels.cpu().numpy(), strict=True):
        path = target / _folder(data, int(data.test_labels[index])) / f"{index:05}.png"
        image = Image.fromarray(picture.transpose(1, 2, 0).squeeze())
        write_atomically(path, partial(image.save, format="PNG"))
    arrays = {
        "images": x.cpu().numpy(), "delta": delta.cpu().numpy(), "labels": truth,
        "index": ready.kept.cpu().numpy(), "before": before, "after": after, "as_png": read,
    }  # fmt: skip  # a table

    def write(path: Path) -> None:
        with path.open("wb") as file:
            np.savez_compressed(file, **arrays)

    write_atomically(target / "perturbations.npz", write)
    _sheet(target / "sheet.png", f, x, delta, y, solver.label)
    n, right = len(truth), before == truth
    fooled, kept = int((right & (after != truth)).sum()), int((right & (read != truth)).sum())
    low, high = interval(int((after == truth).sum()), n)
    print(
        f"{solver.label}, ε = {args.epsilon:.4g}, {n} images: {right.sum()} right, {fooled} of "
        f"these fooled, {kept} still as 8-bit PNGs; accuracy {(after == truth).mean():.1%} "
        f"({low:.1%} to {high:.1%})\n{target}: CLASS/INDEX.png, perturbations.npz, sheet.png"
    )
    return 0


def _folder(data: Dataset, label: int) -> str:
    return "".join(c if c.isalnum() or c in " ._-" else "_" for c in data.class_names[label])


def _answers(f: nn.Module, x: Tensor, y: Tensor) -> Any:
    with evaluate.evaluating(f, labels=y):
        return torch.cat([f(part).argmax(1) for part in x.split(50)]).cpu().numpy()


def _sheet(path: Path, f: nn.Module, x: Tensor, delta: Tensor, y: Tensor, title: str) -> None:
    import matplotlib.pyplot as plt

    from l2lkit.results.experiments import Panel
    from l2lkit.show.pictures import perturbation_grid

    panels = []
    with evaluate.evaluating(f, labels=y):
        shown = f((x + delta).clamp(0, 1)[:SHEET]).float().softmax(1).cpu()
    for i, probabilities in enumerate(shown):
        answer = int(probabilities.argmax())
        label, sure = str(int(y[i])), float(probabilities[answer])
        panels.append(Panel(f"image {i}", title, x[i], delta[i], label, str(answer), sure))
    fig = perturbation_grid(panels)
    write_atomically(path, lambda p: fig.savefig(p, format="png", dpi=120))
    plt.close(fig)
