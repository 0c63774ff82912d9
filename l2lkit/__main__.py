"""Command line: `python -m l2lkit run | train | evaluate | table | recipes | published`."""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from l2lkit.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

PUBLISHED = {  # the filters of `published`, columns of its file
    "version": "2018, v2, iclr2020 or l2l-da",
    "table": "2, 1a, \"section 3\", \"Appendix B\"",
    "dataset": "cifar10, cifar100, svhn or mnist",
    "method": "a defence by the paper's name, as \"Grad L2L\"",
    "attack": "Clean, FGSM, PGM-10, PGM-20, PGM-100, CW, \"epoch time\", …",
    "recipe": "the recipe that answers the number; grad means iclr2020/grad",
}

def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m l2lkit",
        description="Learning to defend by learning to attack: train, evaluate, show.",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--profile", default="quick", metavar="NAME",
                        help="smoke, quick (default) or paper")  # fmt: skip
    shared.add_argument("--dataset", default="digits", metavar="NAME",
                        help="digits (default), cifar10, cifar100, svhn, mnist, or any name for "
                             "a folder or zip given with --data")  # fmt: skip
    shared.add_argument("--data", metavar="DIR|ZIP",
                        help="where the images are: torchvision's layout, or split/class/image; "
                             "default: $L2LKIT_DATA or data/")  # fmt: skip
    shared.add_argument("--device", default="auto", metavar="NAME",
                        help="auto (default), cpu or cuda")  # fmt: skip
    shared.add_argument("--seed", type=int, default=0, metavar="N",
                        help="first seed (default 0)")  # fmt: skip
    shared.add_argument("--seeds", type=int, metavar="N",
                        help="how many seeds (default: the profile's number)")  # fmt: skip
    shared.add_argument("--output", metavar="DIR",
                        help="where runs/ and figures/ go (default: the project)")  # fmt: skip

    run = commands.add_parser("run", parents=[shared], help="the main job: models, measurements, "
                              "notebooks, report; resumes what was interrupted")  # fmt: skip
    run.add_argument("--only", metavar="NN,NN", help="only these notebooks, as 01,05")
    run.add_argument("--publish", action="store_true",
                     help="put the executed notebooks in place of those of notebooks/")  # fmt: skip

    train = commands.add_parser("train", parents=[shared], help="train one recipe at the "
                                "profile's scale and print its log")  # fmt: skip
    train.add_argument("recipe", help="a name from `recipes`; grad means iclr2020/grad")

    evaluate = commands.add_parser("evaluate", parents=[shared],
                                   help="accuracy of recipes under attacks")  # fmt: skip
    evaluate.add_argument("recipes", nargs="+", metavar="recipe")
    evaluate.add_argument("--attacks", default="clean,fgsm,pgm-20,cw", metavar="A,B",
                          help="from clean, fgsm, pgm-T, cw, cw-tanh, autoattack, random-N "
                               "(default clean,fgsm,pgm-20,cw)")  # fmt: skip
    evaluate.add_argument("--epsilon", type=float, default=0.031, metavar="E",
                          help="radius of the ball, as a fraction of the pixel range "
                               "(default 0.031)")  # fmt: skip
    evaluate.add_argument("--images", type=int, metavar="N", help="first N test images only")

    table = commands.add_parser("table", parents=[shared], help="white-box accuracy of recipes "
                                "beside the published; empty where nothing is trained")  # fmt: skip
    table.add_argument("recipes", nargs="*", metavar="recipe", help="default: all of `recipes`")
    table.add_argument("--train", action="store_true", help="train the models that are not there")

    listed = commands.add_parser("recipes", help="the recipes, and the rows of the papers' tables "
                                 "that they answer")  # fmt: skip
    printed = commands.add_parser("published", help="the numbers that the papers print, and the "
                                  "recipes that answer them")  # fmt: skip
    for column, words in PUBLISHED.items():
        printed.add_argument(f"--{column}", metavar="NAME", help=words)
    for command in (table, listed, printed):
        command.add_argument("--json", action="store_true", help="as JSON")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status (0 fine, 1 a notebook failed, 2 bad input, 130
    interrupted)."""
    args = parser().parse_args(argv)
    try:
        return _command(args)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nInterrupted. The same command goes on from here.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # as in `… | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _command(args: argparse.Namespace) -> int:
    # Imported here so that --help answers at once.
    from tqdm import tqdm

    from l2lkit import pipeline, published, recipes, tables
    from l2lkit.attacks import attack_by_name
    from l2lkit.store import Store

    if args.command == "recipes":
        _print(published.answers(), args.json)
        return 0
    if args.command == "published":
        _print(published.select(**{c: getattr(args, c) for c in PUBLISHED}), args.json)
        return 0
    store = Store(
        args.profile, dataset=args.dataset, data=args.data, device=args.device, seed=args.seed,
        seeds=args.seeds, output=args.output,
    )  # fmt: skip
    if args.command == "run":
        return 1 if pipeline.run(store, args.only, args.publish) else 0
    names = [args.recipe] if args.command == "train" else args.recipes or list(recipes.RECIPES)
    chosen = [store.recipe(name) for name in names]
    if args.command == "evaluate":
        attacks = {name: attack_by_name(name, args.epsilon) for name in args.attacks.split(",")}
        if args.images is not None and args.images < 1:
            raise InputError(f"--images must be at least 1, not {args.images}.")
    pipeline.check_output(store)
    with tqdm(disable=None, bar_format="{desc}", leave=False) as bar:
        store.on_progress = lambda what, share: bar.set_description_str(what)
        if args.command == "table":
            found = tables.compare(store, names, args.train)
            bar.clear()
            _print(found, args.json)
            return 0
        for recipe in chosen:
            model = store.model(recipe)
            if args.command == "train":
                tqdm.write(model.log.round(4).to_string(index=False))
                tqdm.write(f"{model.defence}: {model.status}; {store.where(recipe, args.seed)}")
            else:
                right = store.correct(model, attacks, args.images)
                cells = "  ".join(f"{a} {100 * r.mean():.1f}%" for a, r in right.items())
                tqdm.write(f"{recipe.name}, seed {args.seed} ({model.status}): {cells}")
    return 0


def _print(frame: "pd.DataFrame", as_json: bool) -> None:
    from l2lkit import published

    if as_json:  # NaN becomes null
        text = frame.to_json(orient="records", indent=1, force_ascii=False)
    else:
        text = published.text(frame)
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
