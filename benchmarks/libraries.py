"""PGM and CW here against foolbox and torchattacks: same model, images and settings.

    python benchmarks/libraries.py [--images 1000] [--output DIR]

Each library is installed in an environment of its own, made by uv beside this one; they see the
torch of this environment, so that all run the same kernels. The models are PGM Net and Plain Net
of the profile `quick`. PGM starts at the image, so that no random number differs, and there are two
definitions of success: the final iterate decides (the papers', and both libraries'), or any iterate
does (`evaluation.survives`, which leaves an image alone once it is fooled). Every row is kept under
--output when it is done, and the same command goes on where it stopped; at the end the table is
printed and written with its provenance to results/recorded/libraries.json. 1,000 images take about
ten minutes of one core.

CW is timed for the batch against a loop over its images. On a CPU that gains 3 to 4 times at most,
not 20: the loop makes the same passes, and one image's pass forward and back through this
classifier takes 1.4 to 2 ms alone and 0.5 ms in a batch of 50 (one thread, float32). Where images
leave the batch early, because they are fooled, it gains less still.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from l2lkit import Store, evaluation
from l2lkit.attacks import CW, PGM, Attack, CWTanh
from l2lkit.store import ROOT, Model, write_json

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


def row(
    store: Store, by: str, model: Model, attack: str, success: str, images: int,
    attacked: Callable[[], torch.Tensor],
) -> dict:  # fmt: skip
    """Seconds and robust accuracy of `attacked`, which says of each image whether the model is
    right; kept in the store."""

    def compute() -> dict:
        began = time.perf_counter()
        right = attacked()
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "robust": right.float().mean().item()}

    print(f"{by}: {attack} on {model.defence}, {success}", file=sys.stderr, flush=True)
    found = store.measured("libraries", [by, model.id, attack, success, images], compute)
    return {"by": by, "model": model.defence, "attack": attack, "success": success,
            "images": images} | found  # fmt: skip


def theirs(library: str, output: str, images: int) -> list[dict]:
    """In the library's environment: PGM on every model."""
    store, rows = Store("quick", output=output, device="cpu"), []
    x, y = store.images(images)
    by = f"{library} {version(library)}"
    for name in MODELS:
        model = store.model(name, 0)
        f = model.classifier.eval()
        for steps in STEPS:
            if library == "foolbox":
                import foolbox

                bounded = foolbox.PyTorchModel(f, bounds=(0, 1), device="cpu")
                pgd = foolbox.attacks.LinfPGD(abs_stepsize=STEP, steps=steps, random_start=False)
                attack = partial(_foolbox, pgd, bounded)
            else:
                import torchattacks

                attack = torchattacks.PGD(
                    f, eps=EPSILON, alpha=STEP, steps=steps, random_start=False
                )
            attacked = partial(_right, f, attack, x, y)
            rows.append(row(store, by, model, f"PGM-{steps}", "final iterate", images, attacked))
    return rows


def _foolbox(pgd, model, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return pgd(model, images, labels, epsilons=EPSILON)[1]


def _right(f: nn.Module, attack: Callable, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    parts = []
    for a, b in zip(x.split(BATCH), y.split(BATCH), strict=True):
        attacked = attack(a, b)
        with torch.no_grad():
            parts.append(f(attacked).argmax(1) == b)
    return torch.cat(parts)


def ours(output: str, images: int) -> list[dict]:
    store, rows = Store("quick", output=output, device="cpu"), []
    x, y = store.images(images)
    for name in MODELS:
        model = store.model(name, 0)
        f = model.classifier
        for steps in STEPS:
            pgm = PGM(epsilon=EPSILON, steps=steps, step_size=STEP, start="zero")
            ways = {
                "final iterate": partial(_correct, f, pgm, x, y, BATCH),
                "any iterate": partial(evaluation.survives, f, pgm, x, y, batch_size=BATCH),
            }
            for success, attacked in ways.items():
                rows.append(row(store, "l2lkit", model, f"PGM-{steps}", success, images, attacked))
    return rows


def _correct(
    f: nn.Module, attack: Attack, x: torch.Tensor, y: torch.Tensor, size: int
) -> torch.Tensor:
    return evaluation.correct(f, {"it": attack}, x, y, batch_size=size)["it"]


def in_a_loop(output: str, count: int) -> list[dict]:
    """CW over a batch and image by image, the same images."""
    store, rows = Store("quick", output=output, device="cpu"), []
    x, y = store.images(count)
    for name in MODELS:
        model = store.model(name, 0)
        for attack in (CW(epsilon=EPSILON), CWTanh(epsilon=EPSILON)):
            for way, size in (("a batch", count), ("one by one", 1)):
                attacked = partial(_correct, model.classifier, attack, x, y, size)
                by = f"l2lkit, {way}"
                rows.append(row(store, by, model, attack.label, "final", count, attacked))
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
    store = Store("quick", output=args.output, device="cpu")
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
    rows += in_a_loop(args.output, min(BATCH, args.images))
    table = pd.DataFrame(rows)
    print(table.round(3).to_string(index=False))
    write_json(
        ROOT / "results" / "recorded" / "libraries.json",
        {"images": args.images, "epsilon": EPSILON, "step_size": STEP, "batch_size": BATCH,
         "rows": rows, "provenance": store.provenance()},
    )  # fmt: skip


if __name__ == "__main__":
    main()
