"""True and false alarms of the checklist: five classifiers that cheat and two that do not.

    python benchmarks/alarms.py [--dataset NAME] [--data DIR|ZIP] [--profile NAME] [--seed N]
                                [--seeds N] [--output DIR]

Trains what notebook 09 looks at on five seeds, runs `l2lkit.check` on each of them, prints which
items accuse whom, and writes the table with its provenance to
results/recorded/alarms-<dataset>.json, or alarms-<dataset>-from-<seed>.json where the first seed is
not 0. Models and measurements are kept under --output, and the same command goes on where it
stopped.
"""

import argparse
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from l2lkit import Store
from l2lkit.files import write_json
from l2lkit.results import cheats

ROOT = Path(__file__).resolve().parents[1]


def one_seed(parameters: dict, seed: int) -> pd.DataFrame:
    return cheats.verdicts(Store(**parameters), seed=seed)


def record(store: Store, rows: pd.DataFrame) -> dict:
    """The tables with their provenance, of the rows of `cheats.verdicts` on all seeds."""
    images = store.profile.curve_images
    return {
        "caption": "Seeds on which an item fails. " + store.caption(images=images),
        "table": cheats.alarms(rows).to_dict("records"),
        "items": cheats.catches(rows).reset_index().to_dict("records"),
        "provenance": store.provenance(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--data")
    parser.add_argument("--profile", default="quick")
    parser.add_argument("--seed", type=int, default=0, help="the first (default: 0)")
    parser.add_argument("--seeds", type=int, default=5, help="how many (default: 5)")
    parser.add_argument("--output", help="where the models are, or go (default: the project)")
    args = parser.parse_args()
    store = Store(
        args.profile,
        args.dataset,
        args.data,
        seed=args.seed,
        seeds=args.seeds,
        output=args.output,
    )
    jobs = [store.parameters()] * args.seeds, store.seeds
    with ProcessPoolExecutor(store.workers(), get_context("spawn")) as pool:
        rows = pd.concat(tqdm(pool.map(one_seed, *jobs), total=args.seeds), ignore_index=True)
    content = record(store, rows)
    print(pd.DataFrame(content["table"]).to_string(index=False))
    print(pd.DataFrame(content["items"]).set_index(["group", "item"]).to_string())
    name = f"alarms-{args.dataset}" + (f"-from-{args.seed}" if args.seed else "")
    write_json(ROOT / "results" / "recorded" / f"{name}.json", content)


if __name__ == "__main__":
    main()
