"""Every figure's look, and saving it with its caption and provenance."""

import ast
import json
import re
from collections.abc import Iterable
from functools import cache, partial
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from IPython.core.getipython import get_ipython
from IPython.display import Markdown, display
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from l2lkit.errors import InputError
from l2lkit.files import write_atomically, write_text
from l2lkit.game.identity import fingerprint
from l2lkit.runs.store import Store

PALETTE = [mpl.colors.to_hex(c) for c in sns.color_palette("colorblind")]
DEFENCES = {  # a colour and a marker for good
    "Plain Net": (PALETTE[7], "o"),
    "FGSM Net": (PALETTE[4], "s"),
    "PGM Net": (PALETTE[0], "D"),
    "CW Net": (PALETTE[9], "^"),
    "Naive L2L": (PALETTE[1], "v"),
    "Grad L2L": (PALETTE[2], "P"),
    "2-Step L2L": (PALETTE[3], "X"),
    "Free": (PALETTE[5], "<"),
    "FGSM-RS": ("#332288", ">"),
    "TRADES": ("#882255", "*"),
}
FEW = 4  # up to so many seeds are drawn one by one
_SIZES = {"": ("full", "-"), " (S)": ("none", ":"), " (W)": ("left", "-.")}  # filling, dashes


def use_style() -> None:
    """Set the theme: white, labels of 10 pt and up, colour-blind-safe, matplotlib's own font."""
    settings = {
        "figure.constrained_layout.use": True,
        "figure.facecolor": "white",
        "font.sans-serif": ["DejaVu Sans"],
        "axes.titlesize": 12,
        "legend.title_fontsize": 11,
    }
    sns.set_theme(style="whitegrid", palette="colorblind", rc=settings)


def styles(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Line colour, marker, filling and dashes for each name, as keywords of `Axes.plot`.

    The known defences have their own for good. "… (S)" and "… (W)", trained with a slim and with
    a wide attacker network, keep the colour and the marker, which is hollow and half filled; the
    learned attacker of a defence, "… attacker", is dashed. Other names get the colours and markers
    that the defences leave, in order of appearance, and dashes.
    """
    free = zip(cycle(["#000000", PALETTE[6], PALETTE[8], "#999933"]), cycle("phd8H"), strict=True)
    looks: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(names):
        defence = name.removesuffix(" attacker")
        size = defence[-4:] if defence[-4:] in _SIZES else ""
        base = defence.removesuffix(size)
        colour, marker = DEFENCES[base] if base in DEFENCES else next(free)
        fill, dashes = _SIZES[size]
        if base not in DEFENCES or defence != name:
            dashes = "--"
        looks[name] = {"color": colour, "marker": marker, "fillstyle": fill, "ls": dashes}
    return looks


def plain(table: pd.DataFrame, caption: str = "") -> Styler:
    """A table with its caption below, numbers with two decimals."""
    below = [{"selector": "caption", "props": "caption-side: bottom; text-align: left"}]
    shown = table.style.format(precision=2, na_rep="").set_table_styles(below)
    shown = shown.set_caption(caption).set_properties(**{"white-space": "nowrap"})
    return shown.hide() if isinstance(table.index, pd.RangeIndex) else shown


def heat(table: pd.DataFrame, caption: str = "", low: float = 0, high: float = 100) -> Styler:
    """A table to look at: the darker a cell, the higher the number that its text begins with, as
    in "75.2 ± 6.2"; verdicts that are no "holds" are marked."""

    def css(cell: object) -> str:
        text = str(cell)
        if text.endswith(("mixed", "fails", "does not hold")):
            colour = "#f7e6b0" if text.endswith("mixed") else "#f5c4a8"
        elif number := re.fullmatch(r"(-?\d+(\.\d+)?)( ± \S+)?( \(.*\))?", text):
            share = min(max((float(number[1]) - low) / (high - low), 0), 1)
            colour = mpl.colors.to_hex(mpl.colormaps["Blues"](0.6 * share))
        else:
            return ""
        return f"background-color: {colour}; color: #111"

    shown = plain(table, caption).format(precision=1, na_rep="")
    return shown.apply(lambda whole: whole.map(css), axis=None)


def save(store: Store, fig: Figure, name: str, caption: str) -> Path:
    """Write name.png (150 dpi), name.svg and name.json under figures/<profile>-<dataset>/ of the
    store; return the PNG's path. In a notebook, also show the figure and its caption, which is the
    picture's alternative text too.

    The JSON is {"caption", "provenance"}; the image files carry both as their Description. Each
    file appears whole or not at all, and the same figure gives the same bytes. Raises InputError
    for a name that is no plain file name and for a directory that cannot be written.
    """
    text = about(store, name, caption)
    description = {"Title": name, "Description": text, "Date": None}
    with mpl.rc_context({"svg.hashsalt": name}):
        for ending, dpi in (("png", 150), ("svg", "figure")):
            write = partial(fig.savefig, format=ending, dpi=dpi, metadata=description)
            write_atomically(store.figures / f"{name}.{ending}", write)
    if hasattr(get_ipython(), "kernel"):  # a terminal shows no pictures
        display(fig, metadata={"image/png": {"alt": caption}})
        display(Markdown(f"*{caption.strip()}*"))
        plt.close(fig)
    return store.figures / f"{name}.png"


def about(store: Store, name: str, caption: str) -> str:
    """Write name.json beside a figure: its caption, and what decides how it looks (the machine,
    the code behind its numbers and, as `drawing`, the code that draws). Returns its text."""
    if not name or Path(name).name != name:
        raise InputError(f"A figure's name must be a plain file name, not {name!r}.")
    provenance = store.machine() | {"code": store.code, "drawn": drawing()}
    content = {"caption": caption, "provenance": provenance}
    text = json.dumps(content, indent=2, ensure_ascii=False, sort_keys=True, default=str)
    write_text(store.figures / f"{name}.json", text + "\n")
    return text


@cache
def drawing() -> str:
    """Ten hex digits of the code that draws figures; comments and formatting do not count."""
    modules = ("diagrams", "gail", "pictures", "plots", "stills", "style")
    paths = (Path(__file__).with_name(f"{module}.py") for module in modules)
    return fingerprint(*(ast.dump(ast.parse(path.read_text(encoding="utf-8"))) for path in paths))
