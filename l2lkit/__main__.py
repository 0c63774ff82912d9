"""Command line: `python -m l2lkit COMMAND`, with run, train, evaluate, table, demonstrations,
bench, recipes and published."""

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

    shown = commands.add_parser("demonstrations", help="train the experts of notebook 08 and "
                                "record their demonstrations again")  # fmt: skip
    shown.add_argument("--environment", action="append", metavar="NAME",
                       help="a Gymnasium environment with a finite choice of actions; may come "
                            "more than once (default: CartPole-v1 and MountainCar-v0)")  # fmt: skip
    shown.add_argument("--seed", type=int, default=0, metavar="N",
                       help="the expert's seed (default 0, that of the shipped ones)")  # fmt: skip
    shown.add_argument("--output", metavar="DIR",
                       help="where NAME.npz goes (default: over those that come with l2lkit)")

    timed = commands.add_parser("bench", help="time, FLOPs and memory of a training step of each "
                                "defence and of each attack on this machine; six to ten minutes "
                                "on two cores; results/bench.json is written after every round")
    timed.add_argument("--classifier", default="wrn-34-2", metavar="NAME",
                       help="as wrn-34-2 (default), resnet-18, …")  # fmt: skip
    timed.add_argument("--batch", type=int, default=32, metavar="N",
                       help="images a step (default 32)")  # fmt: skip
    timed.add_argument("--rounds", type=int, default=5, metavar="N",
                       help="how often each is timed; the median counts (default 5)")  # fmt: skip
    timed.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all)")
    timed.add_argument("--device", default="auto", metavar="NAME",
                       help="auto (default), cpu or cuda")  # fmt: skip
    timed.add_argument("--output", metavar="DIR",
                       help="where results/bench.json goes (default: the project)")  # fmt: skip

    listed = commands.add_parser("recipes", help="the recipes, and the rows of the papers' tables "
                                 "that they answer")  # fmt: skip
    printed = commands.add_parser("published", help="the numbers that the papers print, and the "
                                  "recipes that answer them")  # fmt: skip
    for column, words in PUBLISHED.items():
        printed.add_argument(f"--{column}", metavar="NAME", help=words)
    for command in (table, timed, listed, printed):
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
    from l2lkit import distributed, published
    from l2lkit.store import pick_device

    if distributed.launched() > 1 and args.command != "train":
        raise InputError(f"torchrun is for `train`: start `{args.command}` as one process.")
    if args.command == "recipes":
        _print(published.answers(), args.json)
        return 0
    if args.command == "published":
        _print(published.select(**{c: getattr(args, c) for c in PUBLISHED}), args.json)
        return 0
    if args.command == "demonstrations":
        return _demonstrations(args)
    if args.command == "bench":
        return _bench(args)
    with distributed.group(pick_device(args.device)) as device:
        return _work(args, str(device))


def _work(args: argparse.Namespace, device: str) -> int:
    from tqdm import tqdm

    from l2lkit import distributed, pipeline, recipes, tables
    from l2lkit.attacks import attack_by_name
    from l2lkit.store import Store

    store = Store(
        args.profile, dataset=args.dataset, data=args.data, device=device, seed=args.seed,
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
    silent = distributed.rank() > 0 or None  # None: wherever no terminal looks on
    with tqdm(disable=silent, bar_format="{desc}", leave=False) as bar:
        store.on_progress = lambda what, share: bar.set_description_str(what)
        if args.command == "table":
            found = tables.compare(store, names, args.train)
            bar.clear()
            _print(found, args.json)
            return 0
        for recipe in chosen:
            model = store.model(recipe)
            if args.command == "train" and distributed.rank() == 0:
                tqdm.write(model.log.round(4).to_string(index=False))
                tqdm.write(f"{model.defence}: {model.status}; {store.where(recipe, args.seed)}")
            if args.command == "evaluate":
                right = store.correct(model, attacks, args.images)
                cells = "  ".join(f"{a} {100 * r.mean():.1f}%" for a, r in right.items())
                tqdm.write(f"{recipe.name}, seed {args.seed} ({model.status}): {cells}")
    return 0


def _bench(args: argparse.Namespace) -> int:
    import pandas as pd
    import torch
    from tqdm import tqdm

    from l2lkit import bench, published
    from l2lkit.attacks import check_positive
    from l2lkit.store import Store

    check_positive(batch_size=args.batch, rounds=args.rounds, threads=args.threads or 1)
    if args.threads:
        torch.set_num_threads(args.threads)
    store = Store("paper", device=args.device, output=args.output)
    path = bench.where(store)
    look = "{percentage:3.0f}%|{bar:20}| {elapsed} {desc}"
    with tqdm(total=1, disable=None, bar_format=look, leave=False) as bar:

        def report(what: str, share: float) -> None:
            bar.update(share)
            bar.set_description_str(what)

        try:
            found = bench.run(store, args.classifier, args.batch, args.rounds, report)
        except KeyboardInterrupt:
            print(f"\nInterrupted. The rounds that were over are in {path}.", file=sys.stderr)
            return 130
    if args.json:
        _print(pd.concat(table.assign(table=name) for name, table in found.items()), True)
        return 0
    print(f"{args.classifier}, batches of {args.batch}, {store.machine()['device']}; {path}")
    for name, table in found.items():
        print(f"\n{name}\n{published.text(table)}")
    return 0


def _demonstrations(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from l2lkit import environments, experts

    names = args.environment or environments.ENVIRONMENTS
    for name in names:
        environments.make(name, 1)
    for name in names:
        with tqdm(total=experts.ITERATIONS, desc=f"expert on {name}", disable=None) as bar:

            def report(iteration: int, back: float, bar: tqdm = bar) -> None:
                bar.set_postfix_str(f"return {back:.0f}", refresh=False)
                bar.update()

            found, path = experts.remake(name, args.seed, args.output, report)
        goal = experts.BARS.get(name)
        words = "at least" if goal is not None and found.expert >= goal else "BELOW"
        met = "" if goal is None else f" ({words} {goal:g})"
        print(f"{name}, seed {args.seed}: mean return {found.expert:.1f} over "
              f"{len(found.expert_returns)} episodes{met}; by chance {found.chance:.1f}; "
              f"{len(found.ends)} episodes, {len(found.actions)} pairs in {path}")  # fmt: skip
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
