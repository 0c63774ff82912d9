"""L2L-DA on MNIST, for real: its Tables 1, 2, 3 and Figure 2 with LeNet-5; and what each difference
between the text, the authors' code and our rendering is worth.

    python benchmarks/diverse_mnist.py --data DIR [--plan] [--output DIR] [--help]

The rows are the recipes `l2l-da/…` of one variant (`--variant`: what the text prints, or what the
authors ran) but for the length of the game, the batches, the number of training images and the
generator's width, which the options set. What is trained and measured is kept under --output, and
the same command goes on where it stopped, from the last epoch of each game; `--plan` says what is
left and how long it takes here. At the end the tables are written there, to
results/recorded/l2l_da-mnist.json (`--name` names another). `--without` leaves out what takes
long: the generators of Table 2, those of the black box, the restarts, AutoAttack; `--only` all rows
but those named and all but the designed attacks. `--stopped` trains nothing: it measures each game
of an interrupted run where it stands, and writes results/recorded/l2l_da-mnist-stopped.json.
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
PARTS = ("generators", "transfer", "restarts", "autoattack")  # beside the designed attacks


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
        self.parts = () if args.only else [part for part in PARTS if part not in args.without]

    def row(self, name: str) -> Recipe:
        args, full = self.args, f"l2l-da/{name}{self.suffix}"
        recipe = RECIPES[full if full in RECIPES else f"l2l-da/{name}"]
        if isinstance(recipe.attack, Diverse | Learned):
            recipe = replace(recipe, attack=replace(recipe.attack, width=args.width))
        iterations = {"plain": args.plain_iterations, "start": args.start_iterations}
        iterations |= dict.fromkeys(HUNDRED, args.hundred_iterations or args.iterations)
        length = iterations.get(name, args.iterations) * args.batch / args.images
        recipe = replace(recipe, batch_size=args.batch, epochs=max(1, round(length)))
        if args.falls_at is not None and recipe.optimiser and name not in iterations:
            falls = (args.falls_at,) if args.falls_at < 1 else ()
            recipe = replace(recipe, optimiser=replace(recipe.optimiser, milestones=falls))
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

    def measured(self, store: Store, seed: int) -> list[Recipe]:
        """The rows that are measured with this seed, the longest games first."""
        names = (*SEVERAL, *ONCE) if seed == store.seeds[0] else SEVERAL
        return [self.rows[n] for n in reversed(names) if not self.args.only or n in self.args.only]

    def trained(self, store: Store) -> list[tuple[Recipe, int]]:
        """Every model, each after the one it starts from."""
        first = store.seeds[0]
        games = [(row, seed) for seed in store.seeds for row in self.measured(store, seed)]
        games += [(row, first) for row in self.changes.values()]
        if "transfer" in self.parts:  # surrogates, and the generator that is tuned to them
            games += [(self.rows[n], first + 1) for n in (*SURROGATES, "full")]
        starts = [
            (start, seed) for row, seed in games if isinstance(start := row.warm_start, Recipe)
        ]
        return list({name_of("train", *game): game for game in [*starts, *games]}.values())

    def has(self, part: str, names: Sequence[str], recipe: Recipe) -> bool:
        """Whether this part is measured, on the rows of these names, the recipe's among them."""
        return part in self.parts and recipe in [self.rows[n] for n in names]

    def tasks(self, store: Store) -> list[Task]:
        tasks, first = [], store.seeds[0]
        for recipe, seed in self.trained(store):
            if not store.finished(recipe, seed):
                start = recipe.warm_start
                assert not isinstance(start, str)
                needs = frozenset({name_of("train", start, seed)} if start else ())
                tasks.append(_task("train", partial(self.train), recipe, seed, needs))
        for recipe, seed in self.trained(store):
            needs = frozenset({name_of("train", recipe, seed)})
            changed = self.changes.values() if seed == first else ()
            if seed not in store.seeds or recipe not in [*self.measured(store, seed), *changed]:
                continue
            attacks = partial(self.attack, attacks=diverse.DESIGNED)
            tasks.append(_task("attack", attacks, recipe, seed, needs))
            if seed == first and self.has("autoattack", AUTOATTACKED, recipe):
                tasks.append(_task("autoattack", self.autoattack, recipe, seed, needs))
            if seed == first and self.has("generators", TABLE_2, recipe):
                needs |= {name_of("train", self.rows["full"], seed)}
                attacks = partial(self.attack, attacks=diverse.TABLE_2)
                tasks.append(_task("generators", attacks, recipe, seed, needs))
        every = frozenset(t.name for t in tasks if t.name.startswith("train/"))
        for part, words, work in (
            ("transfer", "Table 3", self.transfer),
            ("restarts", "Figure 2", self.restarts),
        ):
            if part in self.parts:
                tasks.append(Task(part, words, partial(_kept, work=work), every))
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
        apart = ("data", "output", "device", "workers", "plan", "stopped", "name")
        return {name: value for name, value in vars(self.args).items() if name not in apart}

    def collect(self, store: Store) -> dict:
        """The tables, of what is on disk."""
        full, first = self.rows["full"], store.seeds[0]
        measure = partial(diverse.white_box, self.ready(store), full=full)
        parts: dict[str, Callable[[], pd.DataFrame]] = {
            "generators": lambda: measure(
                [self.rows[n] for n in TABLE_2], [first], diverse.TABLE_2
            ),
            "transfer": lambda: self.transfer(store),
            "restarts": lambda: self.restarts(store),
            "autoattack": lambda: pd.DataFrame(
                [self.autoattack(store, self.rows[name], first) for name in AUTOATTACKED]
            ),
        }
        made = {part: [parts[part]()] if part in self.parts else [] for part in PARTS}
        rows = {seed: self.measured(store, seed)[::-1] for seed in store.seeds}
        frames = {
            "designed": [measure(rows[seed], [seed], diverse.DESIGNED) for seed in store.seeds],
            "table_2": made["generators"],
            "table_3": made["transfer"],
            "figure_2": made["restarts"],
            "autoattack": made["autoattack"],
            "differences": [measure([full, *self.changes.values()], [first], diverse.DESIGNED)]
            if self.changes
            else [],
        }
        games = [store.model(*game) for game in self.trained(store)]
        return {
            "what": "L2L-DA on MNIST with LeNet-5 (ICCV 2019), shortened",
            "settings": self.settings(),
            "recipes": {name: row.key() for name, row in self.rows.items() if row in rows[first]},
            **{k: [r for f in fs for r in f.to_dict("records")] for k, fs in frames.items()},
            "trained on": sorted({game.record["device"] for game in games}),
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


def _several(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    add = parser.add_argument
    add("--data", required=True, help="folder that holds MNIST/raw/")
    add("--output", default=str(ROOT), help="where runs/ and results/ go (default: the checkout)")
    add("--plan", action="store_true", help="only say what is left, and how long it takes")
    add("--stopped", action="store_true", help="measure the games as they stand; train nothing")
    add("--variant", default="code", choices=("printed", "code"), help="of the recipes")
    add("--differences", action="store_true", help="also the full method with one change at a time")
    add("--without", type=_several, default=[], metavar="A,B", help=", ".join(PARTS))
    add("--only", type=_several, default=[], metavar="A,B", help="these rows alone, as full,pgd10")
    add("--name", default="l2l_da-mnist", help="of the record (default: %(default)s)")
    add("--images", type=int, default=16_000, help="training images")
    add("--test-images", type=int, default=300)
    add("--batch", type=int, default=32, help="images in a batch")
    add("--iterations", type=int, default=3000, help="length of the games")
    add("--hundred-iterations", type=int, help="of PGD-100 and C&W-100 (default: as the games)")
    add("--plain-iterations", type=int, default=2000, help="length of the training of Plain")
    add("--start-iterations", type=int, default=1000, help="clean training before the code's games")
    add("--width", type=float, default=1 / 16, help="of the generators")
    add("--falls-at", type=float, help="share of a game after which θ's rate falls (1: never)")
    add("--seeds", type=int, default=3, help="of the rows of Table 1a")
    add("--device", default="cpu", help="cpu or cuda")
    add("--workers", type=int, default=2, help="processes, each on one core or all on the GPU")
    return parser


def main() -> None:
    parser = arguments()
    args = parser.parse_args()
    if args.differences and args.variant != "code":
        parser.error("--differences are those from what the authors ran: --variant code.")
    for option, names in (("without", PARTS), ("only", (*SEVERAL, *ONCE))):
        if unknown := set(getattr(args, option)) - set(names):
            parser.error(f"--{option} {', '.join(sorted(unknown))}: choose of {', '.join(names)}.")
    if args.falls_at is not None and not 0 < args.falls_at <= 1:
        parser.error(f"--falls-at {args.falls_at:g}: a share of the game, above 0 and at most 1.")
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
    path = recorded / f"{args.name}.json"
    write_json(path, bench.collect(store))
    print(path)


if __name__ == "__main__":
    main()
