"""What the papers print, cell by cell: `published.csv`, transcribed once and never computed with.

Versions: `2018` (first version), `v2` (second), `iclr2020`, and `l2l-da` (the ICCV 2019 successor);
`independent` are numbers that others measured on the authors' weights. A row is a number, with the
columns

    version, table    "Table 2", or "section 3" where only the text has the number
    dataset           cifar10, cifar100, svhn, mnist; empty where the text names none
    method, network   the defence, and the attacker it learned with: 2018, slim, wide, iclr2020
    surrogate         the model a transferred attack was made on; empty in the white box
    attack            l2lkit's label (l2l-da: the paper's), or "epoch time"
    value, deviation  as printed, and the printed standard deviation, if any
    unit              % (accuracy), s or loss
    recipe            the l2lkit recipe that answers the row, as printed; empty if there is none
    note              what a reader has to know about this number

A cell that the paper leaves empty has no row. Numbers that two versions print: all of ICLR 2020's
Tables 4 to 6 are v2's Tables 3, 6 and 7, and so the recipes that answer them are v2's; of the 60
cells that v2's Tables 3 and 6 share with 2018's Table 1, 46 are the same, all of Naive L2L's among
them, although its attacker is another. ICLR 2020's PGM-20 in Table 8 is mostly v2's PGM-10.
"""

import math
from functools import cache
from importlib.resources import files

import pandas as pd

from l2lkit.errors import InputError
from l2lkit.names import printed

# What a printed accuracy is: the mean of 10 runs (2018); of 5 runs (v2; one run of CW, though the
# tables print its deviation, and of the black box); the worst of 5 runs (iclr2020). l2l-da names
# no number of runs.
RUNS = {"2018": 10, "v2": 5, "iclr2020": 5}
STATISTIC = {"2018": "mean", "v2": "mean", "iclr2020": "worst", "l2l-da": "mean"}

NUMBERS = ("value", "deviation")


@cache
def _read() -> pd.DataFrame:
    with (files("l2lkit.results") / "published.csv").open(encoding="utf-8") as file:
        frame = pd.read_csv(file, dtype=str, keep_default_na=False)
    return frame.assign(**{c: pd.to_numeric(frame[c]) for c in NUMBERS})


def load() -> pd.DataFrame:
    """All published numbers, in the order they are printed: a copy of the cached file."""
    return _read().copy()


def select(frame: pd.DataFrame | None = None, **wanted: str | None) -> pd.DataFrame:
    """The rows of `frame` (default: all) whose columns have the wanted values; None is no wish.

    `select(version="v2", attack="CW")`; "" wants an empty cell, table "2" means "Table 2", and a
    recipe without a version means iclr2020's. The numbers of a row stand for all its recipes:
    `grad`, `grad@code`, `iclr2020/grad`. The wishes narrow the rows in turn: InputError, with the
    choices left, for a value that none of the rows left has.
    """
    frame = load() if frame is None else frame
    for column, value in wanted.items():
        if column not in frame:
            raise InputError(f"There is no column '{column}': choose {', '.join(frame.columns)}.")
        if value is None:
            continue
        if column == "recipe" and value:
            value = printed(value if "/" in value else f"iclr2020/{value}")
        if column == "table" and value[:1].isdigit():
            value = f"Table {value}"
        chosen = frame[frame[column] == value]
        if chosen.empty:
            choices = ", ".join(map(str, filter(None, frame[column].unique())))
            raise InputError(
                f"No published number chosen so far has the {column} '{value}': "
                f"{f'choose {choices}' if choices else f'leave the {column} out'}."
            )
        frame = chosen
    return frame


def answers() -> pd.DataFrame:
    """A row for every recipe: recipe, defence, setting (the text it follows), datasets and tables
    (whose printed numbers stand beside it, "" for none), attacker (network, for learned ones), ε.
    A row's recipes as printed, as coded and as recommended have the same tables."""
    from l2lkit.recipes import RECIPES  # with torch, which the numbers do without

    numbers, rows = load(), []
    for recipe in RECIPES.values():
        mine = numbers[numbers.recipe == printed(recipe.name)]
        attack = recipe.key()["attack"]
        settings = attack["settings"] if attack else {}
        rows.append(
            {
                "recipe": recipe.name,
                "defence": recipe.defence,
                "attacker": settings.get("network", ""),
                "epsilon": settings.get("epsilon"),
                "setting": recipe.source,
                "datasets": ", ".join(dict.fromkeys(filter(None, mine.dataset))),
                "tables": ", ".join(dict.fromkeys(mine.version + " " + mine.table)),
            }
        )
    return pd.DataFrame(rows)


def text(frame: pd.DataFrame) -> str:
    """The rows as a plain table with at most three decimals, empty where there is nothing."""
    return frame.round(3).fillna(math.nan).to_string(index=False, na_rep="")  # None too
