"""Does `l2lkit check --standard` see what AutoAttack sees when it is run by itself?

    python benchmarks/agreement.py [--dataset NAME] [--data DIR|ZIP] [--profile NAME] [--seed N]
                                   [--rows LIST] [--images N] [--output DIR]

Checks the models of these rows with the standard AutoAttack, runs the library's own AutoAttack,
with its own settings, on the same images, and compares image by image: the check counts an image
only if PGM-20, PGM-100 and CW leave it as well. Prints a row a model and writes them with their
provenance to results/recorded/agreement-<dataset>.json. Models that are not under --output are
trained there.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pyautoattack
import torch

from l2lkit import Store
from l2lkit.checks import measures
from l2lkit.checks.attacks import EPSILON
from l2lkit.checks.examination import full_check
from l2lkit.files import write_json

ROOT = Path(__file__).resolve().parents[1]


def compared(store: Store, name: str, count: int) -> dict[str, Any]:
    """The counts of one model, and the CPU seconds of either."""
    model = store.model(name)
    x, y = store.images(count)
    began = time.process_time()
    result = full_check(model.classifier, x, y, epsilon=EPSILON, standard=True, seed=model.seed)
    checked, here = measures.survivors(result.subject, result.budget)[1], time.process_time()
    assert checked is not None
    library = pyautoattack.AutoAttack(
        model.classifier, eps=EPSILON, seed=model.seed, version="standard", device=str(x.device)
    )
    library.verbose = False
    adversarial, _ = library.run_standard_evaluation(x, y, batch_size=len(x))
    with torch.no_grad():
        alone = (model.classifier(adversarial).argmax(1) == y).cpu().numpy()
    return {
        "defence": model.recipe.defence,
        "seed": model.seed,
        "images": len(y),
        "check": int(checked.sum()),
        "AutoAttack alone": int(alone.sum()),
        "both": int((checked & alone).sum()),
        "seconds of check": round(here - began, 1),
        "seconds of AutoAttack": round(time.process_time() - here, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--data")
    parser.add_argument("--profile", default="quick")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", default="plain,pgm,grad,2step")
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--output", help="where the models are, or go (default: the project)")
    args = parser.parse_args()
    where = {"seed": args.seed, "seeds": 1, "output": args.output}
    store = Store(args.profile, args.dataset, args.data, **where)
    rows = []
    for name in args.rows.split(","):
        rows.append(compared(store, name, args.images))
        print(rows[-1], flush=True)
    print(pd.DataFrame(rows).to_string(index=False))
    caption = "Images that are still right, as `check` counts and by AutoAttack's own evaluation. "
    content = {"caption": caption + store.caption(images=args.images), "rows": rows}
    path = ROOT / "results" / "recorded" / f"agreement-{args.dataset}.json"
    write_json(path, content | {"provenance": store.provenance()})


if __name__ == "__main__":
    main()
