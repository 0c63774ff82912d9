"""L2L-DA on MNIST, for real: its Tables 1, 2, 3 and Figure 2 with LeNet-5; and what each difference
between the text, the authors' code and our rendering is worth.

    python benchmarks/diverse_mnist.py --data DIR [--plan] [--output DIR] [--help]

The rows are the recipes `l2l-da/…` of one variant (`--variant`: what the text prints, or what the
authors ran) but for the length of the game, the batches, the number of training images and the
generator's width, which the options set. What is trained and measured is kept under --output, and
the same command goes on where it stopped, from the last epoch of each game; `--plan` says what is
left and how long it takes here. At the end the tables are written there, to
results/recorded/l2l_da-mnist.json. `--stopped` trains nothing: it measures each game of an
interrupted run where it stands, and writes results/recorded/l2l_da-mnist-stopped.json.
"""

import argparse
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from l2lkit.diverse.generator import Diverse, DiverseAttacker
from l2lkit.files import load_checkpoint, write_json
from l2lkit.game.autoattack import AutoAttack
from l2lkit.game.evaluate import evaluate
from l2lkit.game.learned import Learned
from l2lkit.game.recipe import Recipe
from l2lkit.game.solver import Shape
from l2lkit.game.step import Players, step
from l2lkit.recipes import RECIPES
from l2lkit.results import diverse, experiments
from l2lkit.runs.store import Store
from l2lkit.runs.workers import Durations, Task, work_off

ROOT = Path(__file__).resolve().parents[1]
SEVERAL = ("plain", "pgd10", "l2l-star", "no-r-no-d", "no-r", "no-d", "full")  # with every seed
TABLE_1B = ("no-y", "no-delta", "no-delta-no-y", "no-norm")
ONCE = ("fgsm", "pgd100", "cw100", *TABLE_1B)  # with the first
TABLE_2 = ("plain", "pgd10", "pgd100", "cw100", "l2l-star", "full")
HUNDRED = ("pgd100", "cw100")  # whose iterations take as long as many of the others
SURROGATES = ("plain", "fgsm", "pgd10")
AUTOATTACKED = ("pgd10", "full")  # with the first


class SeesMoved(DiverseAttacker):
    """A generator that is shown x + δ in the place of x, and whose δ keeps the image in [0, 1]."""

    def step(
        self, x: Tensor, y: Tensor, delta: Tensor, gradient: Tensor, mixed: list[Tensor]
    ) -> Tensor:
        moved = super().step(x + delta, y, delta, gradient, mixed)
        return (x + moved).clamp(0, 1) - x


class Moved(Diverse):
    def __call__(self, shape: Shape, classes: int) -> DiverseAttacker:
        made = super().__call__(shape, classes)
        made.__class__ = SeesMoved
        return made


def changes(full: Recipe, plain: Recipe) -> dict[str, Recipe]:
    """The authors' `full` with one of its differences from the text or from our former rendering
    taken back at a time."""
    attack, theta = full.attack, full.optimiser
    assert isinstance(attack, Diverse) and theta
    settings = {f.name: getattr(attack, f.name) for f in fields(attack)}
    separate = replace(attack, with_clean=False)
    changed = {
        "sees x + δ, δ clipped with the image": replace(full, attack=Moved(**settings)),
        "the text's U-Net": replace(full, attack=replace(attack, network="unet")),
        "means over the steps": replace(full, attack=replace(attack, objective="mean")),
        "θ's gradient not clipped": replace(full, optimiser=replace(theta, clip=0.0)),
        "φ's gradient not clipped": replace(
            full, attacker_optimiser=replace(full.attacker_optimiser, clip=0.0)
        ),
        "ℓ(x) + ℓ(x_adv)": replace(full, attack=separate, clean_weight=1.0),
        "longer clean training": replace(full, warm_start=plain),
    }
    return {what: replace(row, defence=what) for what, row in changed.items()}


class Benchmark:
    """The rows at the length and size that the options set, and the work on them."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.suffix = "" if args.variant == "printed" else f"@{args.variant}"
        self.plain = self.row("plain")
        self.start = self.row("start") if f"l2l-da/start{self.suffix}" in RECIPES else self.plain
        self.rows = {name: self.row(name) for name in (*SEVERAL, *ONCE)}
        self.changes = changes(self.rows["full"], self.plain) if args.differences else {}

    def row(self, name: str) -> Recipe:
        args, full = self.args, f"l2l-da/{name}{self.suffix}"
        recipe = RECIPES[full if full in RECIPES else f"l2l-da/{name}"]
        if isinstance(recipe.attack, Diverse | Learned):
            recipe = replace(recipe, attack=replace(recipe.attack, width=args.width))
        iterations = {"plain": args.plain_iterations, "start": args.start_iterations}
        iterations |= dict.fromkeys(HUNDRED, args.hundred_iterations or args.iterations)
        length = iterations.get(name, args.iterations) * args.batch / args.images
        recipe = replace(recipe, batch_size=args.batch, epochs=max(1, round(length)))
        if recipe.warm_start:
            own = isinstance(recipe.attack, Diverse)
            recipe = replace(recipe, warm_start=self.start if own else self.plain)
        return recipe

    def ready(self, store: Store) -> Store:
        """The store at the size of this benchmark."""
        images, tested = self.args.images, self.args.test_images
        store.profile = replace(
            store.profile,
            train_images=images,
            eval_images=tested,
            curve_images=tested,
            attacker_lr=1e-3,
            threads=1,
        )
        return store

    # The work, task by task ------------------------------------------------------------------

    def train(self, store: Store, recipe: Recipe, seed: int) -> None:
        self.ready(store).model(recipe, seed)

    def attack(self, store: Store, recipe: Recipe, seed: int, attacks: Sequence[str]) -> None:
        diverse.survival(self.ready(store), recipe, seed, attacks, self.rows["full"])

    def autoattack(self, store: Store, recipe: Recipe, seed: int) -> dict:
        model = self.ready(store).model(recipe, seed)
        attack = {"AutoAttack": AutoAttack(epsilon=diverse.epsilon_of(self.rows["full"]))}
        right = store.correct(model, attack, store.profile.eval_images)["AutoAttack"]
        row = {"recipe": recipe.name} | experiments.row_of(model)
        return row | {"attack": "AutoAttack", "accuracy": float(right.mean())}

    def transfer(self, store: Store) -> pd.DataFrame:
        targets, surrogates = ([self.rows[n] for n in names] for names in (TABLE_2, SURROGATES))
        seed, full = store.seeds[0], self.rows["full"]
        return diverse.black_box(self.ready(store), targets, surrogates, full, (seed, seed + 1))

    def restarts(self, store: Store) -> pd.DataFrame:
        pgd10, star, full = (self.rows[name] for name in ("pgd10", "l2l-star", "full"))
        return diverse.restarts(self.ready(store), [pgd10, full], star, full, store.seeds)

    def trained(self, store: Store) -> list[tuple[Recipe, int]]:
        """Every model, those that others start from first."""
        first, games = store.seeds[0], list[tuple[Recipe, int]]()
        for seed in store.seeds:
            names = (*SEVERAL, *ONCE) if seed == first else SEVERAL
            games += [(self.plain, seed), (self.start, seed)]
            games += [(self.rows[n], seed) for n in reversed(names)]
        games += [(row, first) for row in self.changes.values()]
        other = first + 1  # of the surrogates of Table 3, and of the generator that attacks them
        games += [(self.plain, other), (self.start, other)]
        games += [(self.rows[n], other) for n in (*SURROGATES, "full")]
        return list({name_of("train", *game): game for game in games}.values())

    def tasks(self, store: Store) -> list[Task]:
        tasks, first = [], store.seeds[0]
        for recipe, seed in self.trained(store):
            if not store.finished(recipe, seed):
                start = recipe.warm_start
                assert not isinstance(start, str)
                needs = frozenset({name_of("train", start, seed)} if start else ())
                tasks.append(_task("train", partial(self.train), recipe, seed, needs))
        several, rows = [self.rows[n] for n in SEVERAL], [*self.rows.values()]
        for recipe, seed in self.trained(store):
            needs = frozenset({name_of("train", recipe, seed)})
            measured = [*rows, *self.changes.values()] if seed == first else several
            if seed not in store.seeds or recipe not in measured:
                continue
            attacks = partial(self.attack, attacks=diverse.DESIGNED)
            tasks.append(_task("attack", attacks, recipe, seed, needs))
            if seed == first and recipe in [self.rows[n] for n in AUTOATTACKED]:
                tasks.append(_task("autoattack", self.autoattack, recipe, seed, needs))
            if seed == first and recipe in [self.rows[n] for n in TABLE_2]:
                needs |= {name_of("train", self.rows["full"], seed)}
                attacks = partial(self.attack, attacks=diverse.TABLE_2)
                tasks.append(_task("generators", attacks, recipe, seed, needs))
        every = frozenset(t.name for t in tasks if t.name.startswith("train/"))
        tasks.append(Task("transfer", "Table 3", partial(_kept, work=self.transfer), every))
        tasks.append(Task("restarts", "Figure 2", partial(_kept, work=self.restarts), every))
        return tasks

    def stopped(self, store: Store) -> dict:
        """Every game where it stands, finished or not: accuracy under the designed attacks."""
        self.ready(store)
        full, count, rows = self.rows["full"], self.args.test_images, list[dict]()
        attacks = diverse.designed_attacks(diverse.epsilon_of(full))
        for recipe, seed in tqdm(self.trained(store)):
            kept = load_checkpoint(store.where(recipe, seed), "checkpoint")
            if not kept:
                continue
            players = Players.build(recipe, store.data, store.device, learn=False)
            players.load(kept["players"])
            right = evaluate(
                {recipe.defence: players.classifier.eval()},
                {name: attacks[name] for name in diverse.DESIGNED},
                *store.images(count),
            ).set_index("attack")
            iterations = round(kept["epoch"] * self.args.images / self.args.batch)
            about = {"recipe": recipe.name, "defence": recipe.defence, "seed": seed}
            about |= {"iterations": iterations, "epoch": kept["epoch"], "of": recipe.epochs}
            rows.append(about | right.accuracy.to_dict())
        return {
            "what": f"L2L-DA on MNIST, games stopped before their end, {count} test images",
            "settings": self.settings(),
            "rows": rows,
            "provenance": store.provenance(),
        }

    # The tables ------------------------------------------------------------------------------

    def settings(self) -> dict:
        apart = ("data", "output", "device", "workers", "plan", "stopped")
        return {name: value for name, value in vars(self.args).items() if name not in apart}

    def collect(self, store: Store) -> dict:
        """The tables, of what is on disk."""
        full, seeds = self.rows["full"], store.seeds
        several, once, table_2 = (
            [self.rows[n] for n in names] for names in (SEVERAL, ONCE, TABLE_2)
        )
        measure = partial(diverse.white_box, self.ready(store), full=full)
        frames = {
            "designed": [
                measure(several, seeds, diverse.DESIGNED),
                measure(once, seeds[:1], diverse.DESIGNED),
            ],
            "table_2": [measure(table_2, seeds[:1], diverse.TABLE_2)],
            "table_3": [self.transfer(store)],
            "figure_2": [self.restarts(store)],
            "autoattack": [
                pd.DataFrame(
                    [self.autoattack(store, self.rows[name], seeds[0]) for name in AUTOATTACKED]
                )
            ],
            "differences": [measure([full, *self.changes.values()], seeds[:1], diverse.DESIGNED)]
            if self.changes
            else [],
        }
        return {
            "what": "L2L-DA on MNIST with LeNet-5 (ICCV 2019), shortened",
            "settings": self.settings(),
            "recipes": {name: row.key() for name, row in self.rows.items()},
            **{k: [r for f in fs for r in f.to_dict("records")] for k, fs in frames.items()},
            "provenance": store.provenance(),
        }


def name_of(kind: str, recipe: Recipe, seed: int) -> str:
    return f"{kind}/{recipe.defence}/{seed}"


def _task(kind: str, work: Callable, recipe: Recipe, seed: int, needs: frozenset[str]) -> Task:
    job = partial(_kept, work=partial(work, recipe=recipe, seed=seed))
    return Task(name_of(kind, recipe, seed), f"{kind} {recipe.defence}, seed {seed}", job, needs)


def _kept(store: Store, work: Callable) -> None:
    """Do the work, which the store remembers."""
    work(store)


# What is left ---------------------------------------------------------------------------------

# Passes through the classifier of one measurement of one image: PGD and C&W with their 100 and
# 1,000, ten restarts of ten steps, AutoAttack where the image survives it.
PASSES = {"attack": 220, "generators": 1200, "autoattack": 8000, "transfer": 330, "restarts": 600}


def estimate(bench: Benchmark, store: Store, tasks: Sequence[Task]) -> dict[str, float]:
    """Seconds for each task in one process on this machine: the iterations left, by the time of
    two of them now, and the passes of the measurements."""
    images = store.data.train_images[: bench.args.batch].float() / 255
    labels = store.data.train_labels[: bench.args.batch]
    x = images.contiguous(memory_format=torch.channels_last)

    def seconds(recipe: Recipe) -> float:
        players = Players.build(recipe, store.data, store.device)
        step(players, x, labels)[0].item()  # waits for the device
        began = time.perf_counter()
        step(players, x, labels)[0].item()
        return time.perf_counter() - began

    every, rates = math.ceil(bench.args.images / bench.args.batch), dict[str, float]()
    left = {task.name for task in tasks}
    times = {}
    for recipe, seed in bench.trained(store):
        name = name_of("train", recipe, seed)
        if name in left:
            rates.setdefault(recipe.defence, seconds(recipe))
            kept = load_checkpoint(store.where(recipe, seed), "checkpoint")
            epochs = recipe.epochs - (kept["epoch"] if kept else 0)
            times[name] = epochs * every * rates[recipe.defence]
    full, tested = bench.rows["full"], bench.args.test_images
    one = seconds(bench.plain) * tested / bench.args.batch
    tuning = max(1, full.epochs // 10) * every * seconds(full)
    for task in tasks:
        kind = task.name.split("/")[0]
        if kind in PASSES:
            generators = {"generators": 1.5, "transfer": len(SURROGATES)}.get(kind, 0)
            seeds = len(store.seeds) if kind == "restarts" else 1
            times[task.name] = one * PASSES[kind] * seeds + generators * tuning
    return times


def plan(times: dict[str, float], workers: int) -> str:
    """The tasks left and how long they take, and all together."""
    lines = [f"{seconds / 60:7.1f} min  {name}" for name, seconds in times.items()]
    total = sum(times.values()) / 3600
    alone = f"{total:.1f} hours of one process, {total / workers:.1f} of {workers}"
    return "\n".join([*lines, alone])


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    add = parser.add_argument
    add("--data", required=True, help="folder that holds MNIST/raw/")
    add("--output", default=str(ROOT), help="where runs/ and results/ go (default: the checkout)")
    add("--plan", action="store_true", help="only say what is left, and how long it takes")
    add("--stopped", action="store_true", help="measure the games as they stand; train nothing")
    add("--variant", default="code", choices=("printed", "code"), help="of the recipes")
    add("--differences", action="store_true", help="also the full method with one change at a time")
    add("--images", type=int, default=16_000, help="training images")
    add("--test-images", type=int, default=300)
    add("--batch", type=int, default=32, help="images in a batch")
    add("--iterations", type=int, default=3000, help="length of the games")
    add("--hundred-iterations", type=int, help="of PGD-100 and C&W-100 (default: as the games)")
    add("--plain-iterations", type=int, default=2000, help="length of the training of Plain")
    add("--start-iterations", type=int, default=1000, help="clean training before the code's games")
    add("--width", type=float, default=1 / 16, help="of the generators")
    add("--seeds", type=int, default=3, help="of the rows of Table 1a")
    add("--device", default="cpu", help="cpu or cuda")
    add("--workers", type=int, default=2, help="processes, each on one core or all on the GPU")
    return parser


def main() -> None:
    parser = arguments()
    args = parser.parse_args()
    if args.differences and args.variant != "code":
        parser.error("--differences are those from what the authors ran: --variant code.")
    bench = Benchmark(args)
    store = Store("paper", "mnist", args.data, args.device, seeds=args.seeds, output=args.output)
    bench.ready(store)
    recorded = Path(args.output) / "results" / "recorded"
    if args.stopped:
        content = bench.stopped(store)
        print(pd.DataFrame(content["rows"]).to_string(index=False))
        write_json(recorded / "l2l_da-mnist-stopped.json", content)
        return
    tasks = bench.tasks(store)
    with store.computing():
        times = estimate(bench, store, tasks)
    print(plan(times, args.workers), flush=True)
    if args.plan:
        return
    store.prepare()
    durations = Durations(store)
    for task in tasks:
        durations.known[task.name] = 0.0
        durations.keep(task, times[task.name])
    work_off(store, tasks, args.workers)
    path = recorded / "l2l_da-mnist.json"
    write_json(path, bench.collect(store))
    print(path)


if __name__ == "__main__":
    main()
