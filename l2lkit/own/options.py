"""The options of the commands on a classifier of one's own. Nothing heavy is imported, so that
--help answers at once."""

import argparse
import os
from pathlib import Path

from l2lkit.errors import InputError, fraction

SPEC = (
    "file.py:function, package.module:function (returns a torch module), torchvision:NAME, or a "
    "saved TorchScript (.pt) or torch.export (.pt2) program"
)


def numbers(text: str) -> list[float]:
    """Numbers between commas, each as `fraction`."""
    return [fraction(part) for part in text.split(",")]


def check_file(path: str | Path, takes: str) -> None:
    """Raise InputError unless the file is there; `takes` says what is wanted."""
    if not os.path.isfile(path):
        raise InputError(f"There is no file {path}: {takes}.")


def attacker_at(place: str) -> tuple[str, str]:
    """The file and the name of --attacker. InputError if it is none, or no file is there."""
    path, _, name = place.rpartition(":")
    if not path.endswith(".py"):
        raise InputError(f"--attacker takes FILE.py:NAME, as mine.py:Universal, not '{place}'.")
    check_file(path, "--attacker takes FILE.py:NAME")
    return path, name


def check_files(args: argparse.Namespace) -> None:
    """Raise InputError for a file of one's own that is named and not there."""
    for spec in (getattr(args, "spec", None), getattr(args, "surrogate", None)):
        place = (spec or "").rpartition(":")[0]
        if spec and (not place or place.endswith(".py")):
            check_file(place or spec, f"a classifier is {SPEC}")
    for weights in (args.weights, getattr(args, "surrogate_weights", None)):
        if weights:
            check_file(weights, "--weights takes a state dict")
    if getattr(args, "attacker", None):
        attacker_at(args.attacker)


def add_classifier(parser: argparse._ActionsContainer) -> None:
    """How a classifier is loaded."""
    add = parser.add_argument
    words = (
        "state dict that the classifier gets: .safetensors, or of torch.save; no code in it runs"
    )
    add("--weights", metavar="FILE", help=words)
    words = "images are normalised first: (x - mean) / std, a number a channel, as 0.49,0.48,0.45"
    add("--mean", type=numbers, metavar="M", help=words)
    add("--std", type=numbers, metavar="S", help="see --mean")


def add_training(parser: argparse.ArgumentParser) -> None:
    """`train` of a classifier of one's own."""
    own = parser.add_argument_group("a classifier of your own")
    words = "train the SPEC by this recipe; it starts from --weights, else from clean training"
    own.add_argument("--recipe", dest="own", metavar="RECIPE", help=words)
    add_classifier(own)
    own.add_argument("--epochs", type=int, metavar="N", help="default: the profile's")
    own.add_argument("--batch-size", type=int, metavar="N", help="default: the profile's")
    words = "first N test images of the check at the end (default 100)"
    own.add_argument("--images", type=int, default=100, metavar="N", help=words)


def add_commands(commands: argparse._SubParsersAction) -> None:
    """`check` and `attack`."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("spec", metavar="SPEC", help=SPEC)
    add_classifier(shared)
    add = shared.add_argument
    place = (
        "folder or zip split/class/image, or torchvision's layout with --dataset; the test images "
        "are taken. Class folders named by whole numbers are these classes of the classifier"
    )
    add("--data", metavar="DIR|ZIP", help=place)
    add("--dataset", metavar="NAME", help="digits (default without --data), cifar10, …")
    words = "radius of the ball as a fraction of the pixel range, also as 8/255 (default 0.031)"
    add("--epsilon", type=fraction, default=0.031, metavar="E", help=words)
    add("--seed", type=int, default=0, metavar="N", help="decides every random number (default 0)")
    add("--device", default="auto", metavar="NAME", help="auto (default), cpu or cuda")

    words = "is a classifier's robustness real? Every item of the checklist, measured on yours"
    about = "Exit status: 0 if no item fails, 1 if one does, 2 for bad input."
    check = commands.add_parser("check", parents=[shared], help=words, description=about)
    add = check.add_argument
    add("--images", type=int, default=100, metavar="N", help="first N test images (default 100)")
    add("--surrogate", metavar="SPEC", help="another classifier of the same data: black box")
    add("--surrogate-weights", metavar="FILE", help="its weights; --mean and --std are shared")
    words = "your own attack: an l2lkit.Solver, or what makes one without arguments"
    add("--attacker", metavar="FILE.py:NAME", help=words)
    words = "AutoAttack's standard version, thousands of passes an image, in place of a small one"
    add("--standard", action="store_true", help=words)
    add("--json", action="store_true", help="as JSON")
    add("--html", metavar="FILE", help="also write one page with figures")

    words = "adversarial examples of yours: PNGs, exact perturbations, a sheet at 1×, 5× and 30×"
    attack = commands.add_parser("attack", parents=[shared], help=words)
    add = attack.add_argument
    words = "one of fgsm, pgm-T, cw, cw-tanh, autoattack, random-N (default pgm-20)"
    add("--attack", default="pgm-20", metavar="NAME", help=words)
    add("--images", type=int, default=20, metavar="N", help="first N test images (default 20)")
    add("--output", required=True, metavar="DIR", help="a new folder for what is made")
