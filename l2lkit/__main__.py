"""Command line: `python -m l2lkit COMMAND`, with run, train, evaluate, table, check, attack,
demonstrations, recipes and published."""

import argparse
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from l2lkit import files, names
from l2lkit.errors import InputError, fraction
from l2lkit.own import options

if TYPE_CHECKING:
    import pandas as pd

PUBLISHED = {  # the filters of `published`, columns of its file
    "version": "2018, v2, iclr2020, l2l-da or independent",
    "table": '2, 1a, "section 3", "Appendix B"',
    "dataset": "cifar10, cifar100, svhn or mnist",
    "method": 'a defence by the paper\'s name, as "Grad L2L"',
    "attack": 'Clean, FGSM, PGM-10, PGM-20, PGM-100, CW, "epoch time", …',
    "recipe": "the recipe that answers the number, of whichever kind; grad means iclr2020/grad",
}


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m l2lkit",
        description="Learning to defend by learning to attack: train, evaluate, show.",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    shared = argparse.ArgumentParser(add_help=False)
    add = shared.add_argument
    add("--profile", default="quick", metavar="NAME", help="smoke, quick (default), night or paper")
    names = "digits (default), cifar10, cifar100, svhn, mnist, or any name for what --data has"
    add("--dataset", default="digits", metavar="NAME", help=names)
    place = (
        "torchvision's layout, or a folder or zip split/class/image; default: $L2LKIT_DATA or data/"
    )
    add("--data", metavar="DIR|ZIP", help=place)
    add("--device", default="auto", metavar="NAME", help="auto (default), cpu or cuda")
    add("--seed", type=int, default=0, metavar="N", help="first seed (default 0)")
    add("--seeds", type=int, metavar="N", help="how many seeds (default: the profile's number)")
    place = "where runs/ and figures/ go (default: the project's checkout, else the current folder)"
    add("--output", metavar="DIR", help=place)
    anew = "make anew what other code than this made; without it a sentence says so"
    add("--retrain", action="store_true", help=anew)

    words = "the main job: models, measurements, notebooks, report; resumes what was interrupted"
    add = commands.add_parser("run", parents=[shared], help=words).add_argument
    add("--only", metavar="NN,NN", help="only these notebooks, as 01,05")
    names = "train and measure these rows alone, as grad,pgm, and print their table; no notebooks"
    add("--only-rows", metavar="A,B", help=names)
    add("--plan", action="store_true", help="print what is left to do and how long; do nothing")
    words = "put executed notebooks back in notebooks/, figures in figures/published/"
    add("--publish", action="store_true", help=words)

    words = "train one recipe at the profile's scale and print its log"
    train = commands.add_parser("train", parents=[shared], help=words)
    add = train.add_argument
    names = (
        "a name from `recipes`: iclr2020/grad as printed, grad@code as the authors' code has it, "
        "grad as recommended (iclr2020/grad@ours); with --recipe the SPEC of your own classifier: "
    )
    add("recipe", metavar="RECIPE|SPEC", help=names + options.SPEC)
    options.add_training(train)
    own = "your own attacker, any callable (shape, classes) -> l2lkit.Attacker, for the recipe's"
    add("--attacker", metavar="FILE.py:NAME", help=own)

    words = "accuracy of recipes under attacks"
    add = commands.add_parser("evaluate", parents=[shared], help=words).add_argument
    add("recipes", nargs="+", metavar="recipe")
    some = "clean,fgsm,pgm-20,cw"
    names = f"from clean, fgsm, pgm-T, cw, cw-tanh, autoattack, random-N (default {some})"
    add("--attacks", default=some, metavar="A,B", help=names)
    radius = "radius of the ball, as a fraction of the pixel range, as 8/255 (default 0.031)"
    add("--epsilon", type=fraction, default=0.031, metavar="E", help=radius)
    add("--images", type=int, metavar="N", help="first N test images only")

    words = "accuracy of recipes beside the published; empty where nothing is trained"
    table = commands.add_parser("table", parents=[shared], help=words)
    table.add_argument("recipes", nargs="*", metavar="recipe", help="default: all of `recipes`")
    table.add_argument("--train", action="store_true", help="train the models that are not there")
    words = "attacks made on surrogates of another seed, in place of the white box"
    table.add_argument("--black-box", action="store_true", help=words)

    options.add_commands(commands)

    words = "train the experts of notebook 08 and record their demonstrations again"
    add = commands.add_parser("demonstrations", help=words).add_argument
    names = "a Gymnasium environment with a finite choice of actions; may come more than once "
    names += "(default: CartPole-v1 and MountainCar-v0)"
    add("--environment", action="append", metavar="NAME", help=names)
    add("--seed", type=int, default=0, metavar="N", help="the expert's (default 0, as shipped)")
    add("--output", metavar="DIR", help="where NAME.npz goes (default: over the shipped ones)")

    words = "the recipes, and the rows of the papers' tables that they answer"
    listed = commands.add_parser("recipes", help=words)
    words = "the numbers that the papers print, and the recipes that answer them"
    printed = commands.add_parser("published", help=words)
    for column, words in PUBLISHED.items():
        printed.add_argument(f"--{column}", metavar="NAME", help=words)
    for command in (table, listed, printed):
        command.add_argument("--json", action="store_true", help="as JSON")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status (0 fine, 1 a notebook or an item of `check` failed, 2
    bad input, 130 interrupted by Ctrl-C, 143 by SIGTERM)."""
    args = parser().parse_args(argv)
    try:
        main_thread = threading.current_thread() is threading.main_thread()
        if main_thread and "WORLD_SIZE" not in os.environ:  # torchrun ends its processes itself
            signal.signal(signal.SIGTERM, _terminate)
        _check(args)
        return _command(args)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        word, status = interrupt.args or ("Interrupted", 130)
        kept = args.command in ("run", "train", "evaluate", "table")
        goes_on = " The same command goes on from here." if kept else ""
        print(f"\n{word}.{goes_on}", file=sys.stderr)
        return status
    except BrokenPipeError:  # as in `… | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _terminate(*_: object) -> NoReturn:
    raise KeyboardInterrupt("Terminated", 143)


def _check(args: argparse.Namespace) -> None:
    """Raise InputError for what is wrong with the words alone. Those who take them say the same,
    but after torch has been imported, which takes seconds."""
    own = args.command in ("check", "attack")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and args.command != "train":
        raise InputError(f"torchrun is for `train`: start `{args.command}` as one process.")
    if args.command in ("recipes", "published", "demonstrations"):
        return
    names.check_device(args.device)
    if not own:
        names.check_profile(args.profile)
        names.check_dataset(args.dataset)
        names.check_seeds(args.seed, args.seeds)
        if "" in (args.data, args.output):
            raise InputError("--data and --output are empty: name a place, or leave them out.")
        if args.output:
            files.check_place(Path(os.path.expanduser(args.output)))
    if args.data:
        names.check_data(args.dataset, Path(os.path.expanduser(args.data)))
    if args.command == "run" and args.only is not None:
        names.select_notebooks(args.only)
    for name in getattr(args, "recipes", []):
        names.recipe(name)
    if args.command == "train":
        names.recipe(args.own or args.recipe)
    if args.command == "evaluate":
        for name in args.attacks.split(","):
            names.check_attack(name.strip())
    if args.command == "attack":
        names.check_attack(args.attack)
    if args.command in ("evaluate", "check", "attack"):
        names.check_epsilon(args.epsilon)
        names.check_images(args.images)
    if own or args.command == "train":
        options.check_files(args)


def _command(args: argparse.Namespace) -> int:
    # Imported here so that --help and a refusal answer at once.
    if args.command == "published":
        from l2lkit.results import published

        _print(published.select(**{c: getattr(args, c) for c in PUBLISHED}), args.json)
        return 0
    if args.command == "demonstrations":
        return _demonstrations(args)
    from l2lkit import distributed
    from l2lkit.results import published
    from l2lkit.runs.machine import pick_device

    if args.command == "recipes":
        _print(published.answers(), args.json)
        return 0
    if args.command == "train" and args.own:
        from l2lkit.own import training

        return training.train(args)
    if args.command in ("check", "attack"):
        from l2lkit.own import commands

        return (commands.check if args.command == "check" else commands.attack)(args)
    with distributed.group(pick_device(args.device)) as device:
        return _work(args, str(device))


def _work(args: argparse.Namespace, device: str) -> int:
    from tqdm import tqdm

    from l2lkit import distributed, recipes
    from l2lkit.files import check_place, check_writable
    from l2lkit.game.search import attack_by_name
    from l2lkit.results import tables
    from l2lkit.runs.store import Store

    store = Store(
        args.profile,
        dataset=args.dataset,
        data=args.data,
        device=device,
        seed=args.seed,
        seeds=args.seeds,
        output=args.output,
        retrain=args.retrain,
    )
    if args.command == "run":
        from l2lkit import job

        if args.only_rows:
            if args.only or args.publish:
                raise InputError("--only-rows runs no notebooks: leave out --only and --publish.")
            some = [name.strip() for name in args.only_rows.split(",") if name.strip()]
            return job.run_rows(store, some, args.plan)
        return 1 if job.run(store, args.only, args.publish, args.plan) else 0
    rows = [args.recipe] if args.command == "train" else args.recipes or list(recipes.RECIPES)
    chosen = [store.recipe(name) for name in rows]
    if args.command == "train" and args.attacker:
        from l2lkit.own.training import own_attacker, rehearse

        chosen = [own_attacker(recipe, args.attacker) for recipe in chosen]
    if args.command == "evaluate":
        asked = [name.strip() for name in args.attacks.split(",")]
        attacks = {name: attack_by_name(name, args.epsilon) for name in asked}
    check_place(store.output)
    if args.command != "table" or args.train:
        store.data  # noqa: B018  # what is wrong with them is said before anything is written
    if args.command == "train" and args.attacker:
        rehearse(chosen[0], store.data, args.attacker)
    store.prepare()
    check_writable(store.runs, store.figures)
    silent = distributed.rank() > 0 or None  # None: wherever no terminal looks on
    with tqdm(disable=silent, bar_format="{desc}", leave=False) as bar:
        store.on_progress = lambda what, share: bar.set_description_str(what)
        if args.command == "table":
            compare = tables.black_box if args.black_box else tables.compare
            if args.black_box and not args.recipes:  # those of L2L-DA have a notebook of their own
                rows = [n for n in rows if n.split("/")[0] not in tables.DIVERSE]
            table = compare(store, rows, args.train)
            bar.clear()
            _print(table, args.json)
            return 0
        for recipe in chosen:
            model = store.model(recipe)
            if args.command == "train" and distributed.rank() == 0:
                tqdm.write(model.log.round(4).to_string(index=False))
                tqdm.write(f"{model.defence}: {model.status}; {store.where(recipe, args.seed)}")
                if store.other_code():
                    tqdm.write(store.other_code())
            if args.command == "evaluate":
                right = store.correct(model, attacks, args.images)
                cells = "  ".join(f"{a} {100 * r.mean():.1f}%" for a, r in right.items())
                tqdm.write(f"{recipe.name}, seed {args.seed} ({model.status}): {cells}")
    return 0


def _demonstrations(args: argparse.Namespace) -> int:
    from l2lkit.gail import environments

    chosen = args.environment or environments.ENVIRONMENTS
    for name in chosen:
        environments.make(name, 1)
    from tqdm import tqdm

    from l2lkit.gail import experts  # with torch

    for name in chosen:
        with tqdm(total=experts.ITERATIONS, desc=f"expert on {name}", disable=None) as bar:

            def report(iteration: int, back: float, bar: tqdm = bar) -> None:
                bar.set_postfix_str(f"return {back:.0f}", refresh=False)
                bar.update()

            shown, path = experts.remake(name, args.seed, args.output, report)
        goal = experts.BARS.get(name)
        words = "at least" if goal is not None and shown.expert >= goal else "BELOW"
        met = "" if goal is None else f" ({words} {goal:g})"
        print(
            f"{name}, seed {args.seed}: mean return {shown.expert:.1f} over "
            f"{len(shown.expert_returns)} episodes{met}; by chance {shown.chance:.1f}; "
            f"{len(shown.ends)} episodes, {len(shown.actions)} pairs in {path}"
        )
    return 0


def _print(frame: "pd.DataFrame", as_json: bool) -> None:
    from l2lkit.results import published

    if as_json:  # NaN becomes null
        text = frame.to_json(orient="records", indent=1, force_ascii=False)
    else:
        text = published.text(frame)
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
