"""Remake the box: the run of profile quick on digits that comes with the package.

    python benchmarks/box.py [--output DIR]

Packs what `./run_all.sh` made (in DIR, default: the project) into l2lkit/box/quick-digits.zip, see
`l2lkit.runs.box`, and opens it to see that nothing is missing that the notebooks ask for; only then
it takes the place of the old one. Run it after `./run_all.sh --publish`, on a processor without
bfloat16 or with it: the card says which, and who opens the box plays on in that precision.
"""

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Any, NoReturn

from l2lkit import Store
from l2lkit.errors import InputError
from l2lkit.names import notebooks
from l2lkit.recipes import INTERPOLATION
from l2lkit.results import cheats, checklist, diverse, experiments, plan
from l2lkit.runs import box
from l2lkit.show.notebooks import executed

NOT_FOR = (
    "A small network on drawn digits, to look at and to try attacks on. It says nothing about "
    "CIFAR-10 or the papers' numbers, and protects no real system."
)


def missing(what: str) -> NoReturn:
    raise InputError(f"{what} is missing: ./run_all.sh makes it, and then this again.")


class Finished(Store):
    """A store that trains and measures nothing."""

    def _load_or_train(self, recipe: Any, seed: int, directory: Path) -> Any:
        if not (directory / "record.json").exists():
            missing(f"the model {recipe.name}, seed {seed},")
        return super()._load_or_train(recipe, seed, directory)

    def measured(self, what: str, settings: object, compute: Any, *rooms: Any) -> Any:
        return super().measured(what, settings, lambda: missing(f"the measurement {what}"), *rooms)


def models(store: Store) -> set[Path]:
    """The folders of the models that the notebooks show."""
    first, other = store.seed, experiments.surrogate_seed(store)
    names = [*plan.ROWS, *INTERPOLATION, *diverse.games(store), *map(str, experiments.SURROGATES)]
    collapsed = cheats.collapsed(store)
    recipes = [*map(store.recipe, names), collapsed, store.recipe(collapsed.warm_start or "plain")]
    wanted = {store.where(recipe, first) for recipe in recipes}
    return wanted | {store.where(store.recipe(n), other) for n in experiments.SURROGATES}


def check(store: Store) -> None:
    """Go through all that the plan of a run has, on a store that does nothing itself."""
    for group in plan.GROUPS.values():
        for task in group(store):
            if task.name.startswith(("train/", "play/")):
                missing(task.words)
            task.work(store)


def make(store: Store, target: Path) -> None:
    for path in notebooks():
        if not executed(store, path).is_file():
            missing(f"the executed {path.name}")
    table = checklist.table(checklist.by_seed(store, plan.ROWS)).reset_index()
    about = store.provenance() | {
        "seed": store.seed,
        "precision": store.recipe("plain").precision,
        "code": store.code,
        "accuracy in %": table.to_dict("records"),
        "not for": NOT_FOR,
    }
    with tempfile.TemporaryDirectory() as folder:
        box.BOXES = Path(folder)
        box.pack(store.runs, box.BOXES / target.name, about, models(store))
        check(Finished(store.profile.name, device="cpu", output=folder, box=True))
        shutil.copyfile(box.BOXES / target.name, target)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", help="where the finished run is (default: the project)")
    store = Finished("quick", device="cpu", output=parser.parse_args().output)
    target = box.BOXES / f"{store.profile.name}-{store.dataset}.zip"
    try:
        make(store, target)
    except InputError as error:
        raise SystemExit(f"error: {error}") from error
    size = target.stat().st_size / 1e6
    print(f"{target}: {size:.1f} MB, {len(box.card(target)['files'])} files")


if __name__ == "__main__":
    main()
