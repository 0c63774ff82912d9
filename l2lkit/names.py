"""The names and numbers that a person may give, looked at without torch, which takes seconds to
import: so the command line says at once what is wrong with them. Those who take them say the
same. `tests/test_cli.py` holds that both agree."""

import re
from pathlib import Path

from l2lkit.errors import InputError, check_positive, is_number
from l2lkit.files import repository

PROFILES = ("smoke", "quick", "night", "paper")
ATTACKS = ("clean", "fgsm", "cw", "cw-tanh", "autoattack")  # and pgm-T, random-N
_V2 = (
    "plain fgsm pgm naive-slim naive-slim@ours grad-slim grad-slim@ours 2step-slim 2step-slim@ours "
    "naive-wide naive-wide@ours grad-wide grad-wide@ours 2step-wide 2step-wide@ours"
)
_DIVERSE = (
    "plain fgsm pgd10 pgd100 cw100 l2l-star full no-r no-d no-r-no-d no-y no-delta no-delta-no-y "
    "no-norm"
)
_DIVERSE_CODE = (
    "full@code no-r@code no-d@code no-r-no-d@code no-y@code no-delta@code no-delta-no-y@code "
    "no-norm@code"
)
VERSIONS = {
    "iclr2020": "plain fgsm pgm pgm@ours cw@ours naive naive@ours grad grad@ours grad@code 2step "
    "2step@ours 2step@code naive-slim naive-slim@ours grad-slim grad-slim@ours grad-slim@code "
    "2step-slim 2step-slim@ours 2step-slim@code",
    "2018": "plain fgsm pgm naive naive@ours grad grad@ours",
    "v2": _V2,
    "v2-svhn": _V2,
    "l2l-da": f"{_DIVERSE} start@code {_DIVERSE_CODE}",
    "l2l-da-cifar10": f"{_DIVERSE} {_DIVERSE_CODE}",
    "today": "free fgsm-rs trades interpolation grad-interpolation 2step-interpolation pgm2 pgm3 "
    "n-fgsm fgsm-sdi awp las-at",
}
# Those of `recipes.RECIPES`, in its order.
RECIPES = tuple(f"{version}/{row}" for version, rows in VERSIONS.items() for row in rows.split())


def printed(name: str) -> str:
    """The name of the row that a recipe plays, whose published numbers stand beside it:
    `iclr2020/grad` for `iclr2020/grad@ours`."""
    return name.split("@")[0]


def recommended(name: str) -> str:
    """The name of what is recommended for a row: `iclr2020/grad@ours` for any of its recipes. Where
    nothing of ours is, the printed one, and without that the name itself."""
    choices = (f"{printed(name)}@ours", printed(name), name)
    return next((choice for choice in choices if choice in RECIPES), name)


def recipe(name: str) -> str:
    """The whole name of a recipe. One without a version is short for the recommended one of ICLR
    2020's: `grad` is `iclr2020/grad@ours`, `grad@code` is `iclr2020/grad@code`. InputError lists
    the names there are."""
    full = name if "/" in name else f"iclr2020/{name}"
    if full != name and "@" not in name:
        full = recommended(full)
    if full not in RECIPES:
        raise InputError(f"Unknown recipe '{full}': choose {', '.join(RECIPES)}.")
    return full


def check_attack(name: str) -> None:
    """Raise InputError, as `game.search.attack_by_name`, for an attack of no such name."""
    kind, _, number = name.partition("-")
    if kind in ("pgm", "random") and number.isdecimal():
        check_positive(**{"steps" if kind == "pgm" else "draws": int(number)})
    elif name not in ATTACKS:
        raise InputError(
            f"Unknown attack '{name}': choose clean, fgsm, pgm-T (as pgm-20), cw, cw-tanh, "
            "autoattack or random-N."
        )


def check_epsilon(epsilon: float) -> None:
    """Raise InputError unless ε is a finite number in [0, 1], as the attacks."""
    if not (is_number(epsilon) and 0 <= epsilon <= 1):
        raise InputError(
            f"ε must be between 0 and 1, as a fraction of the pixel range (8/255 is 0.031), "
            f"not {epsilon}."
        )


def check_images(count: int | None) -> None:
    """Raise InputError for a number of images below 1."""
    if count is not None and count < 1:
        raise InputError(f"--images must be at least 1, not {count}.")


def check_profile(name: str) -> None:
    if name not in PROFILES:
        raise InputError(f"Unknown profile '{name}': choose {', '.join(PROFILES)}.")


def check_device(name: str) -> None:
    """Raise InputError unless it is auto, cpu, cuda, or cuda:0 and so on."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", name):
        raise InputError(f"Unknown device '{name}': choose auto, cpu or cuda.")


def check_seeds(seed: int, seeds: int | None) -> None:
    """Raise InputError for a first seed, or a number of seeds, that no run can have."""
    if not 0 <= seed < 2**31:
        raise InputError(f"--seed must be 0 or more and below 2^31, not {seed}.")
    if seeds is not None and not 1 <= seeds <= 1000:
        raise InputError(f"--seeds must be 1 or more and at most 1,000, not {seeds}.")


def check_dataset(name: str) -> None:
    """Raise InputError unless the name can be part of a file's."""
    if not re.fullmatch(r"\w[\w .,+()-]{0,99}", name):
        raise InputError(
            f"The dataset's name must be a plain word, not '{name}': --data takes the path."
        )


def check_data(dataset: str | None, place: Path) -> None:
    """Raise InputError if there is neither a folder nor a file where data are said to be, or if the
    digits, which are drawn, are asked of a folder without a training split."""
    if not (place.is_dir() or place.is_file()):
        raise InputError(
            f"There is no folder or file {place}: see to the path's spelling, or make the folder "
            "if official files are to be downloaded into it."
        )
    if dataset == "digits" and place.is_dir():
        below = [*place.glob("*"), *place.glob("*/*")]
        if not any("train" in path.name.lower() for path in below):
            raise InputError(
                f"The digits are drawn, and {place} has no train/CLASS/IMAGE: leave --data out, or "
                "say with --dataset what is there."
            )


def notebooks() -> list[Path]:
    """The notebooks in their order. InputError outside the project's checkout."""
    root = repository()
    if root is None:
        raise InputError(
            "The notebooks are in the project's repository: clone it and call run_all.sh there."
        )
    return sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb"))


def select_notebooks(only: str | None) -> list[Path]:
    """The notebooks whose numbers `only` names, as "01,05"; all without it."""
    everything, chosen = notebooks(), []
    for number in only.split(",") if only is not None else [p.name[:2] for p in everything]:
        named = [path for path in everything if path.name[:2] == number.strip()]
        if not named:
            raise InputError(
                f"There is no notebook '{number}': --only takes the numbers of "
                f"{', '.join(path.stem for path in everything)}."
            )
        chosen += named
    return chosen
