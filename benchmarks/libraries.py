"""PGM and CW here against foolbox and torchattacks: same model, images and settings.

    python benchmarks/libraries.py [--images 1000] [--output DIR]

Each library is installed in an environment of its own, made by uv beside this one; they see the
torch of this environment, so that all run the same kernels. The models are PGM Net and Plain Net
of the profile `quick`. PGM starts at the image, so that no random number differs, and there are two
definitions of success: the final iterate decides (the papers', and both libraries'), or any iterate
does (`evaluation.survives`, which leaves an image alone once it is fooled). CW is timed for the
batch against a loop over its images. Prints the table and writes it with its provenance to
results/recorded/libraries.json.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import pandas as pd
import torch

from l2lkit import Store, evaluation
from l2lkit.attacks import CW, PGM, Attack, CWTanh
from l2lkit.store import ROOT, write_json

EPSILON, STEP = 0.031, 0.003
# What each needs beside torch, numpy, scipy, tqdm and requests.
LIBRARIES = {
    "foolbox": ["foolbox", "eagerpy", "gitpython", "gitdb", "smmap", "setuptools"],
    "torchattacks": ["torchattacks"],
}
MODELS = ("pgm", "plain")
STEPS = (20, 100)
BATCH = 50


def environment(library: str, where: Path) -> Path:
    """An environment with the library, and with this one's packages behind its own; its python."""
    python = where / library / "bin" / "python"
    run = partial(subprocess.run, check=True, stdout=sys.stderr)
    uv = [sys.executable, "-m", "uv", "--quiet"]
    run([*uv, "venv", "--python", sys.executable, os.fspath(where / library)])
    run([*uv, "pip", "install", "--python", os.fspath(python), "--no-deps", *LIBRARIES[library]])
    (packages,) = (where / library / "lib").glob("python*/site-packages")
    here = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "zz-behind.pth").write_text(
        "".join(f"import site; site.addsitedir({path!r})\n" for path in here)
    )
    return python


def theirs(library: str, output: str, images: int) -> list[dict]:
    """In the library's environment: seconds and robust accuracy under PGM on every model."""
    store, rows = Store("quick", output=output), []
    x, y = store.images(images)
    for name in MODELS:
        f = store.model(name, 0).classifier.eval()
        for steps in STEPS:
            if library == "foolbox":
                import foolbox

                model = foolbox.PyTorchModel(f, bounds=(0, 1), device="cpu")
                pgd = foolbox.attacks.LinfPGD(abs_stepsize=STEP, steps=steps, random_start=False)
                attack = partial(_foolbox, pgd, model)
            else:
                import torchattacks

                attack = torchattacks.PGD(
                    f, eps=EPSILON, alpha=STEP, steps=steps, random_start=False
                )
            right, began = 0, time.perf_counter()
            for a, b in zip(x.split(BATCH), y.split(BATCH), strict=True):
                attacked = attack(a, b)
                with torch.no_grad():
                    right += int((f(attacked).argmax(1) == b).sum())
            rows.append({"by": library, "model": name, "attack": f"PGM-{steps}",
                         "success": "final iterate", "seconds": time.perf_counter() - began,
                         "robust": right / len(x)})  # fmt: skip
    return rows


def _foolbox(pgd, model, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return pgd(model, images, labels, epsilons=EPSILON)[1]


def ours(output: str, images: int) -> list[dict]:
    store, rows = Store("quick", output=output), []
    x, y = store.images(images)
    for name in MODELS:
        f = store.model(name, 0).classifier
        for steps in STEPS:
            pgm = PGM(epsilon=EPSILON, steps=steps, step_size=STEP, start="zero")
            ways = {
                "final iterate": lambda a=pgm, f=f: evaluation.correct(
                    f, {"pgm": a}, x, y, batch_size=BATCH
                )["pgm"],
                "any iterate": lambda a=pgm, f=f: evaluation.survives(f, a, x, y, batch_size=BATCH),
            }
            for success, attack in ways.items():
                began = time.perf_counter()
                right = attack()
                rows.append({"by": "l2lkit", "model": name, "attack": f"PGM-{steps}",
                             "success": success, "seconds": time.perf_counter() - began,
                             "robust": right.float().mean().item()})  # fmt: skip
    return rows


def in_a_loop(output: str, count: int = 16) -> list[dict]:
    """CW over a batch and image by image, the same images: seconds and success rate."""
    store, rows = Store("quick", output=output), []
    x, y = store.images(count)
    attacks: dict[str, Attack] = {"CW": CW(epsilon=EPSILON), "CW (authors' code)": CWTanh()}
    for name in MODELS:
        f = store.model(name, 0).classifier
        for label, attack in attacks.items():
            for way, size in (("a batch", count), ("one by one", 1)):
                began = time.perf_counter()
                right = evaluation.correct(f, {label: attack}, x, y, batch_size=size)[label]
                rows.append({"by": f"l2lkit, {way}", "model": name, "attack": label,
                             "success": f"{count} images", "seconds": time.perf_counter() - began,
                             "robust": right.float().mean().item()})  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--output", default=os.fspath(ROOT), help="where the models are, or go")
    parser.add_argument("--library", choices=LIBRARIES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.library:
        print(json.dumps(theirs(args.library, args.output, args.images)))
        return
    store = Store("quick", output=args.output)
    for name in MODELS:
        store.model(name, 0)
    rows = []
    with tempfile.TemporaryDirectory() as where:
        for library in LIBRARIES:
            python = environment(library, Path(where))
            command = [python, __file__, "--library", library, "--images", str(args.images),
                       "--output", args.output]  # fmt: skip
            found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            rows += json.loads(found.stdout)
    rows += ours(args.output, args.images)
    rows += in_a_loop(args.output)
    table = pd.DataFrame(rows)
    print(table.round(3).to_string(index=False))
    write_json(
        ROOT / "results" / "recorded" / "libraries.json",
        {"images": args.images, "epsilon": EPSILON, "step_size": STEP, "batch_size": BATCH,
         "threads": torch.get_num_threads(), "rows": rows, "provenance": store.provenance()},
    )  # fmt: skip


if __name__ == "__main__":
    main()
