"""L2L-DA on MNIST, for real: its Tables 1, 2, 3 and Figure 2 with LeNet-5, on a CPU.

    python benchmarks/diverse_mnist.py --data DIR [--output DIR] [--help]

Everything is the paper's (section 5.1: ε = 0.3, T = 10, batches of 100, SGD) but for the length of
the game, the number of training images and the generator's width, which the options set. What is
trained and measured is kept under --output, and the same command goes on where it stopped; at the
end the tables are written to results/recorded/l2l_da-mnist.json.
"""

import argparse
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from functools import partial
from pathlib import Path

from tqdm import tqdm

from l2lkit.diverse.generator import Diverse
from l2lkit.files import write_json
from l2lkit.game.learned import Learned
from l2lkit.game.recipe import Recipe
from l2lkit.results import diverse
from l2lkit.runs.store import Store

ROOT = Path(__file__).resolve().parents[1]
SEVERAL = ("plain", "pgd10", "l2l-star", "no-r-no-d", "no-r", "no-d", "full")  # with every seed
TABLE_1B = ("no-y", "no-delta", "no-delta-no-y", "no-norm")
ONCE = ("fgsm", "pgd100", "cw100", *TABLE_1B)  # with the first
TABLE_2 = ("plain", "pgd10", "pgd100", "cw100", "l2l-star", "full")
SURROGATES = ("plain", "fgsm", "pgd10")


def open_store(args: argparse.Namespace) -> Store:
    store = Store("paper", "mnist", args.data, "cpu", seeds=args.seeds, output=args.output)
    images, tested = args.images, args.test_images
    profile = replace(store.profile, train_images=images, eval_images=tested, curve_images=tested)
    store.profile = replace(profile, attacker_lr=1e-3, threads=1)
    return store


def recipe(store: Store, args: argparse.Namespace, name: str) -> Recipe:
    row = store.recipe(f"l2l-da/{name}")
    if isinstance(row.attack, Diverse | Learned):
        row = replace(row, attack=replace(row.attack, width=args.width))
    if name == "plain":
        return row
    return replace(row, epochs=args.epochs, warm_start=store.recipe("l2l-da/plain"))


def work(args: argparse.Namespace, what: str, name: str, seed: int) -> str:
    store = open_store(args)
    row, full = recipe(store, args, name), recipe(store, args, "full")
    if what == "train":
        store.model(row, seed)
    elif what == "attack":
        diverse.survival(store, row, seed, diverse.DESIGNED, full)
    else:
        diverse.survival(store, row, seed, diverse.TABLE_2, full)
    return f"{what} {name}, seed {seed}"


def collect(args: argparse.Namespace) -> dict:
    """The tables, of all that is on disk or cheap."""
    store = open_store(args)
    rows = {name: recipe(store, args, name) for name in (*SEVERAL, *ONCE)}
    full, seeds = rows["full"], store.seeds
    several = [rows[n] for n in SEVERAL]
    once = [rows[n] for n in ONCE]
    everywhere = diverse.white_box(store, several, seeds, diverse.DESIGNED, full)
    first = diverse.white_box(store, once, seeds[:1], diverse.DESIGNED, full)
    targets, surrogates = ([rows[n] for n in names] for names in (TABLE_2, SURROGATES))
    table_2 = diverse.white_box(store, targets, seeds[:1], diverse.TABLE_2, full)
    table_3 = diverse.black_box(store, targets, surrogates, full, (seeds[0], seeds[0] + 1))
    figure_2 = diverse.restarts(store, [rows["pgd10"], full], rows["l2l-star"], full, seeds)
    frames = {"designed": [everywhere, first], "table_2": [table_2]}
    frames |= {"table_3": [table_3], "figure_2": [figure_2]}
    return {
        "what": "L2L-DA on MNIST with LeNet-5 (ICCV 2019), shortened",
        "settings": {k: v for k, v in vars(args).items() if k not in ("data", "output", "workers")},
        "recipes": {name: row.key() for name, row in rows.items()},
        **{k: [r for f in fs for r in f.to_dict("records")] for k, fs in frames.items()},
        "provenance": store.provenance(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True, help="folder that holds MNIST/raw/")
    parser.add_argument("--output", default=str(ROOT), help="where runs/ goes")
    parser.add_argument("--images", type=int, default=15_000, help="training images")
    parser.add_argument("--test-images", type=int, default=300)
    parser.add_argument("--epochs", type=int, default=5, help="length of the game")
    parser.add_argument("--width", type=float, default=1 / 16, help="of the generators")
    parser.add_argument("--seeds", type=int, default=3, help="of the rows of Table 1a")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()

    def jobs(what: str, names: Sequence[str], seed: int) -> list[Callable[[], str]]:
        return [partial(work, args, what, name, seed) for name in names]

    stages = []
    for seed in range(args.seeds):
        rows = (*reversed(SEVERAL), *ONCE) if seed == 0 else tuple(reversed(SEVERAL))
        stages += [jobs("train", ["plain"], seed), jobs("train", rows, seed)]
        stages.append(jobs("attack", rows, seed))
        if seed == 0:
            stages.append(jobs("everything on", TABLE_2, seed))
    context = multiprocessing.get_context("spawn")
    with (
        tqdm(total=sum(map(len, stages))) as bar,
        ProcessPoolExecutor(args.workers, context) as pool,
    ):
        for stage in stages:
            for done in as_completed([pool.submit(job) for job in stage]):
                tqdm.write(done.result())
                bar.update()
    path = ROOT / "results" / "recorded" / "l2l_da-mnist.json"
    write_json(path, collect(args))
    print(path)


if __name__ == "__main__":
    main()
