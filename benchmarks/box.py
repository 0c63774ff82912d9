"""Remake the box: the run of profile quick on digits that comes with the package.

    python benchmarks/box.py [--output DIR]

Packs what `./run_all.sh` made (in DIR, default: the project) into l2lkit/box/quick-digits.zip, see
`l2lkit.runs.box`. Run it after `./run_all.sh --publish`, on a processor without bfloat16 or with
it: the card says which, and who opens the box plays on in that precision.
"""

import argparse

from l2lkit import Store
from l2lkit.errors import InputError
from l2lkit.results import checklist
from l2lkit.results.plan import ROWS
from l2lkit.runs import box

NOT_FOR = (
    "A small network on drawn digits, to look at and to try attacks on. It says nothing about "
    "CIFAR-10 or the papers' numbers, and protects no real system."
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", help="where the finished run is (default: the project)")
    store = Store("quick", device="cpu", output=parser.parse_args().output)
    missing = [name for name in ROWS if not store.finished(name, store.seed)]
    if missing:
        raise SystemExit(f"error: not trained yet: {', '.join(missing)}; ./run_all.sh does it.")
    table = checklist.table(checklist.by_seed(store, ROWS)).reset_index()
    about = store.provenance() | {
        "seed": store.seed,
        "precision": store.recipe("plain").precision,
        "code": store.code,
        "accuracy in %": table.to_dict("records"),
        "not for": NOT_FOR,
    }
    target = box.BOXES / f"{store.profile.name}-{store.dataset}.zip"
    try:
        box.pack(store.runs, target, about)
    except InputError as error:
        raise SystemExit(f"error: {error}") from error
    size = target.stat().st_size / 1e6
    print(f"{target}: {size:.1f} MB, {len(box.card(target)['files'])} files")


if __name__ == "__main__":
    main()
