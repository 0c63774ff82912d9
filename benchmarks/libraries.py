"""PGM and CW here against foolbox and torchattacks: same model, images and settings.

    python benchmarks/libraries.py [--images 1000] [--output DIR]

Each library is installed in an environment of its own, made by uv beside this one; they see the
torch of this environment, so that all run the same kernels. The models are PGM Net and Plain Net
of the profile `quick`. PGM starts at the image, so that no random number differs, and there are two
definitions of success: the final iterate decides (the papers', and both libraries'), or any iterate
does (`survives`, which leaves an image alone once it is fooled). All take turns, batch
after batch of 50, one thread each; "times ours" is the median over batches of their seconds over
those of our final iterate, "other verdicts" counts the images judged otherwise. What is done is
kept under --output, and the same command goes on where it stopped; at the end the table is printed
and written with its provenance to results/recorded/libraries.json. 1,000 images take about ten
minutes of one core.

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
from operator import ne, truediv
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from l2lkit import Store
from l2lkit.files import write_json
from l2lkit.game import evaluate
from l2lkit.game.cw import CW, CWTanh
from l2lkit.game.fixed import PGM
from l2lkit.game.solver import Solver
from l2lkit.game.survives import survives
from l2lkit.runs.model import Model

ROOT = Path(__file__).resolve().parents[1]
EPSILON, STEP = 0.031, 0.003
# What each needs beside torch, numpy, scipy, tqdm and requests.
LIBRARIES = {
    "foolbox": ["foolbox", "eagerpy", "gitpython", "gitdb", "smmap", "setuptools"],
    "torchattacks": ["torchattacks"],
}
MODELS = ("pgm", "plain")
STEPS = (20, 100)
BATCH = 50
Verdict = Callable[[Tensor, Tensor], Tensor]  # of images and labels: is the model right on each?


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


class Library:
    """A library, or this project, at work in a process of its own: batches go in, seconds and
    verdicts come out."""

    def __init__(self, name: str, python: Path, output: str):
        command = [os.fspath(python), __file__, "--library", name, "--output", output]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.by = self.ask(None)

    def ask(self, question: object) -> Any:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit("A library's process ended: its message stands above.")
        return json.loads(answer)

    def attack(
        self, name: str, steps: int, success: str, first: int, end: int
    ) -> tuple[float, list[int]]:
        return tuple(self.ask([name, steps, success, first, end]))


def serve(library: str, output: str) -> None:
    """In the library's process: its name and version first, then an answer a question."""
    store = Store("quick", output=output, device="cpu")
    torch.set_num_threads(1)
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        question = json.loads(line)
        if question is None:
            answer: Any = f"{library} {version(library)}"
        else:
            name, steps, success, first, end = question
            x, y = (t[first:end] for t in store.images(None))
            answer = timed(_attack(library, store.model(name, 0).classifier, steps, success), x, y)
        print(json.dumps(answer), file=answers, flush=True)


def _attack(library: str, f: nn.Module, steps: int, success: str) -> Verdict:
    f.eval()
    if library == "l2lkit":
        pgm = PGM(epsilon=EPSILON, steps=steps, step_size=STEP, start="zero")
        if success == "any iterate":
            return partial(survives, f, pgm, batch_size=BATCH)
        return partial(_correct, f, pgm, size=BATCH)
    if library == "foolbox":
        import foolbox

        bounded = foolbox.PyTorchModel(f, bounds=(0, 1), device="cpu")
        pgd = foolbox.attacks.LinfPGD(abs_stepsize=STEP, steps=steps, random_start=False)
        return partial(_right, f, lambda x, y: pgd(bounded, x, y, epsilons=EPSILON)[1])
    import torchattacks

    pgd = torchattacks.PGD(f, eps=EPSILON, alpha=STEP, steps=steps, random_start=False)
    return partial(_right, f, pgd)


def _right(f: nn.Module, attack: Callable, x: Tensor, y: Tensor) -> Tensor:
    attacked = attack(x, y)
    with torch.no_grad():
        return f(attacked).argmax(1) == y


def timed(attacked: Verdict, x: Tensor, y: Tensor) -> tuple[float, list[int]]:
    """Seconds, and whether the model is right on each image."""
    began = time.perf_counter()
    right = attacked(x, y)
    return time.perf_counter() - began, right.int().tolist()


def in_turn(
    store: Store, libraries: list[Library], model: Model, name: str, steps: int, images: int
) -> list[dict]:
    """PGM of that many steps by everyone, batch after batch, so that all meet the same machine."""
    images = len(store.images(images)[0])
    turns = [(library, "final iterate") for library in libraries] + [(libraries[0], "any iterate")]
    ways = {(a.by, success): partial(a.attack, name, steps, success) for a, success in turns}

    def compute() -> list[dict]:
        seconds: dict[tuple[str, str], list[float]] = {way: [] for way in ways}
        right: dict[tuple[str, str], list[int]] = {way: [] for way in ways}
        for once in ways.values():
            once(0, 2)  # the first call loads the model
        what = f"PGM-{steps} on {model.defence}"
        for first in tqdm(range(0, images, BATCH), desc=what, disable=None):
            for way, once in ways.items():
                took, verdicts = once(first, min(first + BATCH, images))
                seconds[way].append(took)
                right[way] += verdicts
        ours = libraries[0].by, "final iterate"
        rows = []
        for way in ways:
            row: dict[str, Any] = {"by": way[0], "model": model.defence, "attack": f"PGM-{steps}"}
            row |= {"success": way[1], "images": images, "seconds": sum(seconds[way])}
            row["robust"] = sum(right[way]) / images
            row["times ours"] = median(map(truediv, seconds[way], seconds[ours]))
            rows.append(row | {"other verdicts": sum(map(ne, right[way], right[ours]))})
        return rows

    known = [library.by for library in libraries]
    return store.measured("libraries", [known, model.key, steps, images, BATCH], compute)


def _correct(f: nn.Module, attack: Solver, x: Tensor, y: Tensor, size: int) -> Tensor:
    return evaluate.correct(f, {"it": attack}, x, y, batch_size=size)["it"]


def in_a_loop(store: Store, count: int) -> list[dict]:
    """CW over a batch and image by image, the same images."""
    x, y = store.images(count)
    rows = []
    for name in MODELS:
        model = store.model(name, 0)
        attacks: tuple[Solver, ...] = (CW(epsilon=EPSILON), CWTanh(epsilon=EPSILON))
        for attack in attacks:
            for way, size in (("a batch", count), ("one by one", 1)):
                once = partial(_correct, model.classifier, attack, size=size)
                print(f"{attack.label} on {model.defence}, {way}", file=sys.stderr, flush=True)
                took, right = store.measured(
                    "libraries", [way, model.key, attack.key(), count], partial(timed, once, x, y)
                )
                row = {"by": f"l2lkit, {way}", "model": model.defence, "attack": attack.label}
                numbers = {"images": count, "seconds": took, "robust": sum(right) / count}
                rows.append({**row, "success": "final", **numbers})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--output", default=os.fspath(ROOT), help="where the models are, or go")
    parser.add_argument("--library", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.library:
        serve(args.library, args.output)
        return
    store = Store("quick", output=args.output, device="cpu")
    rows = []
    with tempfile.TemporaryDirectory() as where:
        pythons = {"l2lkit": Path(sys.executable)}
        pythons |= {name: environment(name, Path(where)) for name in LIBRARIES}
        models = {name: store.model(name, 0) for name in MODELS}
        libraries = [Library(name, python, args.output) for name, python in pythons.items()]
        for name, model in models.items():
            for steps in STEPS:
                rows += in_turn(store, libraries, model, name, steps, args.images)
        for library in libraries:
            library.process.kill()
    with store.computing():
        rows += in_a_loop(store, min(BATCH, args.images))
    table = pd.DataFrame(rows)
    print(table.round(3).to_string(index=False))
    content = {"images": args.images, "epsilon": EPSILON, "step_size": STEP, "batch_size": BATCH}
    content |= {"rows": rows, "provenance": store.provenance()}
    write_json(ROOT / "results" / "recorded" / "libraries.json", content)


if __name__ == "__main__":
    main()
