"""Every figure's look, and saving it with its caption and provenance.

The plotting functions return a pyplot figure: a notebook shows it at the end of its cell. They
number nothing and name no dataset; captions do that, in `save`.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from IPython.core.getipython import get_ipython
from IPython.display import Markdown, display
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.text import Text
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, PercentFormatter
from numpy.typing import ArrayLike, NDArray

from l2lkit import minimax
from l2lkit.data import Dataset
from l2lkit.errors import InputError

_PALETTE = [mpl.colors.to_hex(c) for c in sns.color_palette("colorblind")]
_DEFENCES = (
    "Plain Net", "FGSM Net", "PGM Net", "CW Net", "Naive L2L", "Grad L2L", "2-Step L2L",
    "Free", "FGSM-RS", "TRADES",
)  # fmt: skip
_COLOURS = [_PALETTE[i] for i in (7, 4, 0, 9, 1, 2, 3, 5)] + ["#332288", "#882255"]
DEFENCE_COLOURS = dict(zip(_DEFENCES, _COLOURS, strict=True))
DEFENCE_MARKERS = dict(zip(_DEFENCES, "osD^vPX<>*", strict=True))
_SIZES = {"": ("full", "-"), " (S)": ("none", ":"), " (W)": ("left", "-.")}
_FREE_COLOURS = ("#000000", _PALETTE[6], _PALETTE[8], "#999933")


def use_style() -> None:
    """Set the theme: white, labels of 10 pt and up, colour-blind-safe, matplotlib's own font."""
    sns.set_theme(
        style="whitegrid",
        palette="colorblind",
        rc={
            "figure.constrained_layout.use": True,
            "figure.facecolor": "white",
            "font.sans-serif": ["DejaVu Sans"],
            "axes.titlesize": 12,
            "legend.title_fontsize": 11,
        },
    )


def styles(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Line colour, marker, filling and dashes for each name, as keywords of `Axes.plot`.

    The known defences have their own for good. "… (S)" and "… (W)", trained with a slim and with
    a wide attacker network, keep the colour and the marker, which is hollow and half filled; the
    learned attacker of a defence, "… attacker", is dashed. Other names get the colours and markers
    that the defences leave, in order of appearance.
    """
    looks: dict[str, dict[str, Any]] = {}
    unknown = 0
    for name in dict.fromkeys(names):
        defence = name.removesuffix(" attacker")
        base, size = (defence[:-4], defence[-4:]) if defence[-4:] in _SIZES else (defence, "")
        fill, dashes = _SIZES[size]
        if base in DEFENCE_COLOURS:
            colour, marker = DEFENCE_COLOURS[base], DEFENCE_MARKERS[base]
        else:
            colour, marker = _FREE_COLOURS[unknown % 4], "phd8H"[unknown % 5]
            unknown += 1
        dashes = "--" if base not in DEFENCE_COLOURS or defence != name else dashes
        looks[name] = {"color": colour, "marker": marker, "fillstyle": fill, "ls": dashes}
    return looks


def save(
    fig: Figure, directory: Path, name: str, caption: str, provenance: Mapping[str, Any]
) -> Path:
    """Write name.png (150 dpi), name.svg and name.json under directory; return the PNG's path. In
    a notebook, also show the figure and its caption, which is the picture's alternative text too.

    The JSON is {"caption", "provenance"}; the image files carry both as their Description. Each
    file appears whole or not at all, and the same figure gives the same bytes. Raises InputError
    for a name that is no plain file name and for a directory that cannot be written.
    """
    if not name or Path(name).name != name:
        raise InputError(f"A figure's name must be a plain file name, not {name!r}.")
    about = {"caption": caption, "provenance": dict(provenance)}
    text = json.dumps(about, indent=2, ensure_ascii=False, sort_keys=True, default=str)
    description = {"Title": name, "Description": text}
    png, svg = BytesIO(), BytesIO()
    with mpl.rc_context({"svg.hashsalt": name}):
        fig.savefig(png, format="png", dpi=150, metadata=description)
        fig.savefig(svg, format="svg", metadata=description | {"Date": None})
    files = {"png": png.getvalue(), "svg": svg.getvalue(), "json": (text + "\n").encode()}
    try:
        Path(directory).mkdir(parents=True, exist_ok=True)
        for ending, content in files.items():
            _replace(Path(directory) / f"{name}.{ending}", content)
    except OSError as error:
        raise InputError(
            f"Cannot write figures to {directory} ({error.strerror}): name a writable directory."
        ) from error
    if hasattr(get_ipython(), "kernel"):
        display(fig, metadata={"image/png": {"alt": caption}})
        display(Markdown(f"*{caption.strip()}*"))
        plt.close(fig)
    return Path(directory) / f"{name}.png"


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink()


def magnify(perturbation: ArrayLike | torch.Tensor, m: float) -> NDArray[np.float32]:
    """A perturbation as a picture in [0, 1], same shape: clip(0.5 + m * perturbation, 0, 1).

    Grey is zero; beyond +-0.5 / m the picture saturates. ICLR 2020 version, Figure 5 (m = 5, 30).
    """
    return np.clip(0.5 + m * _array(perturbation), 0, 1)


@dataclass(frozen=True)
class Panel:
    """One attacked image: row names the attack, column the classifier (as in Figure 5).

    image: the clean image, (C, H, W) in [0, 1] with C 1 or 3; perturbation: same shape, same
    units; label and predicted: class names before and after; confidence: in [0, 1], of predicted.
    """

    row: str
    column: str
    image: torch.Tensor
    perturbation: torch.Tensor
    label: str
    predicted: str
    confidence: float


def perturbation_grid(
    panels: Sequence[Panel], magnifications: Sequence[float] = (1, 5, 30)
) -> Figure:
    """Figure 5 of the ICLR 2020 version: a row per attack, a block of columns per classifier.

    Magnification 1 shows the adversarial image itself, the others `magnify` of the perturbation.
    Under each first picture: the class predicted, its confidence, and whether it was fooled.
    Raises InputError for no panels or images of another shape.
    """
    if not panels:
        raise InputError("The perturbation grid is empty: give it at least one Panel.")
    rows = list(dict.fromkeys(p.row for p in panels))
    blocks = list(dict.fromkeys(p.column for p in panels))
    n, m = len(rows), len(magnifications)
    fig = plt.figure(figsize=((1.65 * m + 0.4) * len(blocks), 2.0 * n + 0.7))
    grids = {}
    for block, sub in zip(blocks, fig.subfigures(1, len(blocks), squeeze=False)[0], strict=True):
        sub.suptitle(block, fontweight="bold")
        grids[block] = sub.subplots(n, m, squeeze=False)
        for ax in grids[block].flat:
            ax.set(xticks=[], yticks=[], frame_on=False)
        for ax, times in zip(grids[block][0], magnifications, strict=True):
            ax.set_title("adversarial" if times == 1 else f"$\\delta$ × {times:g}", fontsize=11)
        for ax, row in zip(grids[block][:, 0], rows, strict=True):
            ax.set_ylabel(row)
    for p in panels:
        image, delta = _array(p.image), _array(p.perturbation)
        if image.ndim != 3 or image.shape[0] not in (1, 3) or image.shape != delta.shape:
            raise InputError(
                "A panel needs image and perturbation of one shape (C, H, W) with C 1 or 3, not "
                f"{image.shape} and {delta.shape}."
            )
        axes = grids[p.column][rows.index(p.row)]
        for ax, times in zip(axes, magnifications, strict=True):
            shown = np.clip(image + delta, 0, 1) if times == 1 else magnify(delta, times)
            ax.imshow(shown.transpose(1, 2, 0).squeeze(), cmap="gray", vmin=0, vmax=1)
        verdict = "correct" if p.predicted == p.label else f"fooled (is {p.label})"
        axes[0].set_xlabel(f"{p.predicted} {p.confidence:.0%}\n{verdict}", fontsize=10)
    return fig


def image_grid(data: Dataset, rows: int = 4, columns: int = 10) -> Figure:
    """The first test images of the first classes, a column each."""
    classes = range(min(columns, data.num_classes))
    fig, grid = plt.subplots(
        rows, len(classes), squeeze=False, figsize=(1.05 * len(classes), 1.1 * rows + 0.3)
    )
    for label, axes in zip(classes, grid.T, strict=True):
        found = data.test_images[data.test_labels == label][:rows]
        for ax in axes:
            ax.set(xticks=[], yticks=[], frame_on=False)
        for ax, image in zip(axes, found, strict=False):
            ax.imshow(_array(image).transpose(1, 2, 0).squeeze() / 255, cmap="gray")
        axes[0].set_title(data.class_names[label], fontsize=11)
    return fig


def drops(table: pd.DataFrame, attacks: Sequence[str] = ("PGM-20", "PGM-100", "Worst")) -> Figure:
    """Bars of accuracy, a group a defence, a bar an attack: mean and one standard deviation over
    seeds. table: columns defence, status, attack, accuracy in [0, 1]; failed runs are left out."""
    _need(table, "defence", "status", "attack", "accuracy")
    shown = table[(table["status"] == "ok") & table["attack"].isin(attacks)]
    if shown.empty:
        return _nothing()
    fig, ax = plt.subplots(figsize=(9, 4))
    sns.barplot(
        shown, x="defence", y="accuracy", hue="attack", hue_order=attacks, errorbar="sd", ax=ax,
        palette=[_PALETTE[i] for i in (9, 0, 3)], err_kws={"linewidth": 1.5},
    )  # fmt: skip
    for bars, hatch in zip(ax.containers, ("", "//", "xx"), strict=False):
        for bar in bars:
            bar.set_hatch(hatch)
    ax.set(xlabel="", ylabel="accuracy", ylim=(0, 1))
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    sns.move_legend(ax, "upper left", bbox_to_anchor=(1, 1), title="attack")
    return fig


def accuracy_curves(
    table: pd.DataFrame, x: str, y: str = "accuracy", hue: str = "defence", xlabel: str = ""
) -> Figure:
    """Accuracy against x, one line per hue: mean and +- one standard deviation over seeds.

    table: one row per x, hue and seed; y is a share in [0, 1] (or a difference of shares), drawn
    in percent. A single seed gives no band. As Figure 4 of the ICLR 2020 version.
    Raises InputError for a missing column; no rows give a picture that says so.
    """
    if not _need(table, x, y, hue, "seed"):
        return _nothing()
    fig, ax = plt.subplots(figsize=(8, 4.2))
    _lines(ax, table, x, y, hue)
    ax.set(xlabel=xlabel or x, ylabel=y)
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    _legend(fig, ax, table, hue)
    return fig


def relative_curves(
    table: pd.DataFrame, x: str, xlabel: str = "", base: str = "PGM Net", limit: float = 0.3
) -> Figure:
    """Accuracy against x, absolute (left) and as the difference to the defence `base` (right); a
    row of pictures an attack. Mean and one standard deviation over seeds.

    table: columns defence, seed, attack, x, accuracy in [0, 1] and difference, in percentage
    points, as `experiments.relative` adds it. The right pictures end at ± limit (a share): what
    falls so far behind is on the left. ICLR 2020, Figure 4; second version, Figures 3 and 4.
    Raises InputError for a missing column; no rows give a picture that says so.
    """
    if not _need(table, "defence", "seed", "attack", x, "accuracy", "difference"):
        return _nothing()
    attacks = list(dict.fromkeys(table["attack"]))
    fig, grid = plt.subplots(
        len(attacks), 2, sharex=True, sharey="col", squeeze=False,
        figsize=(10.5, 3.1 * len(attacks) + 0.5),
    )  # fmt: skip
    for (left, right), attack in zip(grid, attacks, strict=True):
        part = table[table["attack"] == attack]
        _lines(left, part, x, "accuracy", "defence")
        left.set(title=attack, ylabel="accuracy")
        right.axhline(0, color=DEFENCE_COLOURS.get(base, "0.3"), lw=1.5)
        _lines(right, part[part["defence"] != base], x, "difference", "defence")
        right.set(title=f"{attack}: difference to {base}", ylabel="percentage points")
    grid[0][0].yaxis.set_major_formatter(PercentFormatter(1))
    most = 1.1 * table["difference"].abs().max()
    reach = max(1, min(100 * limit, most))  # NaN, where no row has a difference, leaves the limit
    grid[0][1].set_ylim(-reach, reach)
    grid[0][1].yaxis.set_major_formatter(lambda points, _: f"{points:+g}" if points else "0")
    for ax in grid[-1]:
        ax.set_xlabel(xlabel or x)
    _legend(fig, grid[0][0], table, "defence")
    return fig


def loss_curves(table: pd.DataFrame) -> Figure:
    """Loss against attack steps: one picture per defence, one line per attack, shared axes, both
    logarithmic (from step 1 on), since the learned attackers take one step or two.

    table: columns step, loss, attack, defence and, where known, deviation: one standard deviation
    over images, drawn as a band. Rows that share all three keys (seeds) are averaged. Raises
    InputError for a missing column; no rows give a picture that says so.
    """
    if not _need(table, "step", "loss", "attack", "defence"):
        return _nothing()
    defences, look = list(dict.fromkeys(table["defence"])), styles(table["attack"])
    rows = (len(defences) + 1) // 2
    fig, grid = plt.subplots(
        rows, 2, sharex=True, sharey=True, squeeze=False, figsize=(9.5, 2.8 * rows + 0.4)
    )
    floor = max(table["loss"].min() / 2, 1e-3)
    for ax, defence in zip(grid.flat, defences, strict=False):
        part = table[table["defence"] == defence]
        for attack, group in part.groupby("attack", sort=False):
            line = group.groupby("step").mean(numeric_only=True)
            drawn = look[str(attack)]
            ax.plot(line.index, line["loss"], label=attack, markevery=0.1, **drawn)
            if "deviation" in line:
                low, high = line["loss"] - line["deviation"], line["loss"] + line["deviation"]
                ax.fill_between(
                    line.index, low.clip(lower=floor), high, alpha=0.15, color=drawn["color"]
                )
        ax.set(title=defence, yscale="log", ylim=(floor, None))
        ax.set_xscale("symlog", linthresh=1)
        ax.set_xticks([0, 1, 2, 5, 10, 20], labels=["0", "1", "2", "5", "10", "20"])
    for ax in grid.flat[len(defences) :]:
        ax.remove()
    for ax in grid[-1]:
        ax.set_xlabel("attack step")
    for ax in grid[:, 0]:
        ax.set_ylabel("loss")
    handles = {a.get_label(): a for ax in grid.flat for a in ax.lines}
    title = "mean ± one s.d.\nover images" if "deviation" in table else "mean"
    fig.legend(handles.values(), handles.keys(), title=title, loc="outside right upper")
    return fig


def training_curves(log: pd.DataFrame) -> Figure:
    """How training went: clean and adversarial accuracy, adversarial loss, mean |δ|/ε.

    log: columns defence, seed, epoch, clean_accuracy and adv_accuracy (in [0, 1]), adv_loss (nats)
    and delta (mean |perturbation| / epsilon, in [0, 1]). Lines as in `accuracy_curves`.
    """
    names = {
        "clean_accuracy": "clean accuracy",
        "adv_accuracy": "accuracy under PGM-10",
        "adv_loss": "loss under PGM-10",
        "delta": "mean $|\\delta|\\,/\\,\\epsilon$",
    }
    return lines(log, "epoch", names)


def lines(log: pd.DataFrame, x: str, y: Mapping[str, str]) -> Figure:
    """Small multiples, two a row, of the columns `y` (name -> title) against x, by defence: mean
    and one standard deviation over seeds."""
    if not _need(log, "defence", "seed", x, *y):
        return _nothing()
    rows = (len(y) + 1) // 2
    fig, grid = plt.subplots(rows, 2, sharex=True, squeeze=False, figsize=(9.5, 2.8 * rows + 0.4))
    for ax, (column, name) in zip(grid.flat, y.items(), strict=False):
        _lines(ax, log, x, column, "defence")
        ax.set(title=name, xlabel=x if ax in grid[-1] else "", ylabel="")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if "accuracy" in column:
            ax.yaxis.set_major_formatter(PercentFormatter(1))
    _legend(fig, grid[0][0], log, "defence")
    return fig


def cycle(paths: Mapping[str, NDArray[np.float64]], step: float, extent: float = 3.0) -> Figure:
    """Paths of the two-number game, name -> (n, 2): in the plane, and their radius over turns.

    Left: arrows are the update direction, the dashed circle is the start's, the view ends at
    extent at the latest. Right: one turn is 2 pi / step steps; a logarithmic radius where it spans
    more than a factor of 20. As Figure 8 of the ICLR 2020 version (Appendix D).
    """
    fig, (plane, over) = plt.subplots(1, 2, figsize=(10, 5))
    r = {name: minimax.radius(path) for name, path in paths.items()}
    top = max(v.max() for v in r.values())
    view = min(1.15 * top, extent) or 1.0
    plane.quiver(*minimax.field(0.9 * view, 11), color="0.75", zorder=0)
    start = next(iter(paths.values()))[0]
    plane.add_patch(mpl.patches.Circle((0, 0), np.hypot(*start), fill=False, ls="--", color="0.4"))
    order = list(dict.fromkeys([*minimax.METHODS, "learned", *paths]))  # a colour for good
    for name, path in paths.items():
        every = max(len(path) // 4000, 1)
        turns = np.arange(len(path)) * step / (2 * np.pi)
        i = order.index(name)
        drawn: dict[str, Any] = {"color": _PALETTE[i % 10], "ls": ("-", "--", "-.", ":")[i % 4]}
        plane.plot(path[::every, 0], path[::every, 1], lw=1.4, **drawn)
        over.plot(turns[::every], r[name][::every], label=name, **drawn)
    plane.plot(*start, "k*", ms=11)
    plane.plot(0, 0, "k+", ms=11)
    plane.set(xlim=(-view, view), ylim=(-view, view), aspect="equal", xlabel="x", ylabel="y")
    over.set(xlabel="turns", ylabel="distance from equilibrium")
    if top > 20 * min(v.min() for v in r.values()):
        over.set_yscale("log")
        over.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
        over.yaxis.set_major_formatter("{x:g}")
        over.yaxis.set_minor_formatter("{x:g}")
    else:
        over.ticklabel_format(useOffset=False)
    fig.legend(loc="outside lower center", title=f"step {step:g}", ncols=len(paths))
    return fig


_FORWARD: dict[str, Any] = {"color": "0.15", "ls": "-", "lw": 1.5}
_QUERY: dict[str, Any] = {"color": _PALETTE[0], "ls": "--", "lw": 1.8}
_BACKWARD: dict[str, Any] = {"color": _PALETTE[3], "ls": ":", "lw": 2.2}
_ARROWS = {
    "forward": _FORWARD,
    "backward to the image: $\\nabla_x\\ell$, a constant to the attacker": _QUERY,
    "backward from the adversarial loss, to both players' weights": _BACKWARD,
}
_CLASSIFIER, _ATTACKER = "#d6e6f2", "#fbe8cc"
_F, _G = "$f(\\cdot\\,;\\theta)$", "$g(\\cdot\\,;\\phi)$"


def attacker_diagram(steps: Sequence[int] = (0, 1, 2)) -> Figure:
    """The learned attackers unrolled, a row for each number of steps K: 0 sees the image alone
    (Naive L2L), K ≥ 1 queries the classifier's gradient K times (Grad L2L is 1) and uses the same
    network each time. ICLR 2020, Figure 2. Raises InputError for no rows or a negative K."""
    if not steps:
        raise InputError("Name at least one number of steps to draw, as (0, 1, 2).")
    heights = [2.0 if k == 0 else 2.9 for k in steps]
    wide = 3 * max(*steps, 1) + 1.5
    fig, rows = plt.subplots(
        len(steps), 1, squeeze=False, height_ratios=heights,
        figsize=(1.15 * wide, 1.1 * sum(heights) + 0.8),
    )  # fmt: skip
    for ax, k, height in zip(rows[:, 0], steps, heights, strict=True):
        _unroll(ax, k, "")
        name = {0: "Naive L2L: no query", 1: "Grad L2L: one query"}.get(k)
        ax.set_title(name or f"{k}-Step L2L: {k} queries", loc="left", fontweight="bold")
        ax.set(xlim=(-0.7, wide - 0.8), ylim=(-0.5, height - 0.5), aspect="equal")
        ax.axis("off")
    _arrow_legend(fig, [_FORWARD, _QUERY] if max(steps) else [_FORWARD])
    return fig


def game_diagram(steps: int = 1) -> Figure:
    """One training step of L2L whose attacker takes `steps` steps: every pass through a network
    as a box, in the order of time, and the way of the adversarial loss's gradient back to the
    weights θ and φ. ICLR 2020, Figure 3 (`steps` = 1: three passes). InputError if negative."""
    end = 3 * max(steps, 1)
    fig, ax = plt.subplots(figsize=(1.15 * (end + 3.4), 6.6))
    images, queries, attackers = _unroll(ax, steps, "pass {}\n")
    passes = len(queries) + len(attackers) + 1
    last = _box(ax, (end + 1, 2), f"pass {passes}\n{_F}", _CLASSIFIER)
    loss = _box(ax, (end + 2.3, 1), "$\\ell$", "white", width=0.6)
    theta = _box(
        ax, (end / 2 + 1, 3.4), "$\\theta$, the classifier: steps down", _CLASSIFIER, end + 1.2
    )
    phi = _box(ax, (end / 2 + 1, -1.4), "$\\phi$, the attacker: steps up", _ATTACKER, end + 1.2)
    _arrow(ax, images[-1], last, _FORWARD)
    _arrow(ax, last, loss, _FORWARD)
    for weights, boxes in ((theta, [*queries, last]), (phi, attackers)):
        for box in boxes:
            x, y = _centre(box)
            edge = _centre(weights)[1]
            ax.plot([x, x], [y, edge], color="0.6", lw=1, zorder=0)
    _arrow(ax, loss, last, _BACKWARD, 0.35)
    _arrow(ax, last, theta, _BACKWARD, straight=0.25)
    _arrow(ax, last, images[-1], _BACKWARD, 0.35)
    for k in range(len(attackers)):
        _arrow(ax, images[k + 1], attackers[k], _BACKWARD, 0.35)
        _arrow(ax, attackers[k], phi, _BACKWARD, straight=0.25)
        if k:
            _arrow(ax, images[k + 1], images[k], _BACKWARD, 0.2)
            _arrow(ax, attackers[k], images[k], _BACKWARD, 0.35)
    ax.set(xlim=(-0.7, end + 2.8), ylim=(-2, 4), aspect="equal")
    ax.axis("off")
    _arrow_legend(fig, [_FORWARD, _QUERY, _BACKWARD] if steps else [_FORWARD, _BACKWARD])
    return fig


def _unroll(
    ax: Axes, steps: int, words: str
) -> tuple[list[FancyBboxPatch], list[FancyBboxPatch], list[FancyBboxPatch]]:
    """Draw an attacker's passes from left to right: the images x, x + δ, …, the classifier's
    gradient queries above them and the attacker's passes below. `words` may number the passes."""
    if steps < 0:
        raise InputError(f"An attacker takes 0 steps or more, not {steps}.")
    images = [_box(ax, (0, 1), "$x$", "white", 0.7)]
    queries, attackers = [], []
    for k in range(1, max(steps, 1) + 1):
        x = 3 * k
        if steps:
            queries.append(_box(ax, (x - 2, 2), words.format(2 * k - 1) + _F, _CLASSIFIER))
        number = len(queries) + k
        attackers.append(_box(ax, (x - 1, 0), words.format(number) + _G, _ATTACKER))
        turn = f"^{{({k})}}" if steps > 1 else ""
        images.append(_box(ax, (x, 1), f"$x+\\delta{turn}$", "white", 0.95))
        before, after = images[-2:]
        _arrow(ax, before, after, _FORWARD)
        _arrow(ax, before, attackers[-1], _FORWARD)
        _arrow(ax, attackers[-1], after, _FORWARD)
        if steps:
            _arrow(ax, before, queries[-1], _FORWARD)
            _arrow(ax, queries[-1], attackers[-1], _QUERY)
            ax.text(x - 1.6, 1.4, "$\\nabla_x\\ell$", color=_PALETTE[0])
    return images, queries, attackers


def _box(
    ax: Axes, centre: tuple[float, float], text: str, colour: str, width: float = 1.0
) -> FancyBboxPatch:
    x, y = centre
    box = FancyBboxPatch(
        (x - width / 2, y - 0.3), width, 0.6, boxstyle="round,pad=0.03,rounding_size=0.1",
        facecolor=colour, edgecolor="0.2",
    )  # fmt: skip
    ax.add_patch(box)
    ax.text(x, y, text, ha="center", va="center", fontsize=11)
    return box


def _centre(box: FancyBboxPatch) -> tuple[float, float]:
    return box.get_x() + box.get_width() / 2, box.get_y() + box.get_height() / 2


def _arrow(
    ax: Axes, start: FancyBboxPatch, end: FancyBboxPatch, look: Mapping[str, Any],
    bend: float = 0.0, straight: float | None = None,
) -> None:  # fmt: skip
    """An arrow between two boxes, bent to its right by `bend`; with `straight`, an upright one
    that far right of the start's centre."""
    a, b = _centre(start), _centre(end)
    if straight is not None:
        a = (a[0] + straight, a[1])
        b = (a[0], b[1])
    arrow = FancyArrowPatch(
        a, b, patchA=start, patchB=end, shrinkA=1, shrinkB=1, arrowstyle="-|>",
        mutation_scale=13, connectionstyle=f"arc3,rad={bend}", **look,
    )  # fmt: skip
    ax.add_patch(arrow)


def _arrow_legend(fig: Figure, looks: Sequence[Mapping[str, Any]]) -> None:
    handles = [Line2D([], [], label=name, **k) for name, k in _ARROWS.items() if k in looks]
    fig.legend(handles=handles, loc="outside lower center", frameon=False)


def convergence(table: pd.DataFrame) -> Figure:
    """Loss and accuracy against the steps of an attack, from the rows of
    `checklist.long_run`."""
    names = {"loss": "loss under PGM-T", "accuracy": "accuracy under PGM-T"}
    fig = lines(table[table.status == "ok"], "steps", names)
    for ax in fig.axes:
        ax.set_xscale("symlog", linthresh=1)
        ax.set_xticks([0, 1, 10, 100, 500], ["0", "1", "10", "100", "500"])
        ax.set_xlabel("steps T")
        if ax.get_title() == names["loss"]:
            ax.set_yscale("log")
            _decades(ax.yaxis, (1, 2, 5))
    return fig


def loss_surfaces(table: pd.DataFrame) -> Figure:
    """A contour picture a defence of the rows of `checklist.loss_surface`: the loss against the
    gradient's direction (up) and a random one. The cross is the image itself; each picture has
    levels of its own, in equal ratios, which its title and its lines name. Failed models are left
    out."""
    table = table[table.status == "ok"]
    if table.empty:
        return _nothing()
    names = list(dict.fromkeys(table.defence))
    rows = (len(names) + 2) // 3
    fig, grid = plt.subplots(
        rows, 3, squeeze=False, sharex=True, sharey=True, figsize=(10.5, 3.4 * rows + 0.3)
    )
    for ax, name in zip(grid.flat, names, strict=False):
        plane = table[table.defence == name].pivot(index="a", columns="b", values="loss")
        low, high = plane.min().min(), plane.max().max()
        ax.set_title(f"{name}\nloss {low:.2g} to {high:.2g}")
        if high > max(low, 1e-6):  # else it is flat
            levels = np.geomspace(max(low, 1e-6), high, 13)
            norm = LogNorm(levels[0], levels[-1] * (levels[-1] / levels[0]) ** 0.6)  # light ones
            where = plane.columns, plane.index, plane.clip(lower=levels[0])
            ax.contourf(*where, levels=levels, norm=norm, cmap="Blues")
            lines = ax.contour(*where, levels=levels[2:-1:3], colors="black", linewidths=1)
            ax.clabel(lines, fmt="%.2g", fontsize=10)
        ax.plot(0, 0, "P", color="white", mec="black", ms=10, zorder=5)
        ax.set(aspect="equal")
    for ax in grid.flat[len(names) :]:
        ax.remove()
    for ax in grid[:, 0]:
        ax.set_ylabel("gradient's signs (× ε)")
    fig.supxlabel("random signs (× ε)", fontsize=11)
    return fig


def front(cost: pd.Series, value: pd.Series) -> pd.Series:
    """The Pareto front: the best value for each cost, against cost, where nothing that costs no
    more is at least as good."""
    best = value.groupby(cost).max()
    return best[~(best <= best.cummax().shift())]


def worth_it(table: pd.DataFrame) -> Figure:
    """Robust accuracy against seconds of training, with those of the Plain Net a defence starts
    from, from the rows of
    `checklist.robust_accuracy`: mean and one standard deviation over seeds.

    The line is the Pareto front: no other defence is both faster and more robust than those on
    it. Failed models are left out.
    """
    fine = table[table.status == "ok"].assign(total=lambda t: t.seconds + t.start_seconds)
    if fine.empty:
        return _nothing()
    points = fine.groupby("defence", sort=False)[["total", "accuracy"]].agg(["mean", "std"])
    fig, ax = plt.subplots(figsize=(9, 5.5))
    x, y = points["total", "mean"], points["accuracy", "mean"]
    best = front(x, y)
    ax.step(
        [*best.index, x.max()], [*best, best.max()], where="post", color="0.6", zorder=0,
        label="best for its time",
    )  # fmt: skip
    for name, look in styles(points.index).items():
        ax.errorbar(
            x[name], y[name], xerr=points.loc[name, ("total", "std")],
            yerr=points.loc[name, ("accuracy", "std")], capsize=3, ms=9, **(look | {"ls": ""}),
        )  # fmt: skip
    ax.set_xscale("log")
    _decades(ax.xaxis, (1, 1.5, 2, 3, 4, 6, 8))
    ax.set(xlabel="seconds of training, Plain Net's included", ylabel="robust accuracy")
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.margins(0.12)
    ax.legend(loc="best")
    _label(fig, ax, {str(name): (x[name], y[name]) for name in points.index})
    return fig


def restart_curves(table: pd.DataFrame) -> Figure:
    """L2L-DA's Figure 2: the highest loss of ten attempts against the attack's step, a picture a
    classifier. table: the rows of `diverse.restarts`; the lower bars are the deviation over the
    attempts, lines are means over seeds."""
    if not _need(table, "classifier", "attack", "step", "loss", "deviation"):
        return _nothing()
    classifiers = list(dict.fromkeys(table["classifier"]))
    fig, axes = plt.subplots(
        1, len(classifiers), sharex=True, squeeze=False, figsize=(4.2 * len(classifiers) + 1, 3.4)
    )
    looks = {
        a: {"color": _PALETTE[i], "marker": "osD"[i], "ls": ("-", "--", ":")[i]}
        for i, a in enumerate(dict.fromkeys(table["attack"]))
    }
    for ax, classifier in zip(axes[0], classifiers, strict=True):
        part = table[table["classifier"] == classifier]
        for attack, group in part.groupby("attack", sort=False):
            line = group.groupby("step")[["loss", "deviation"]].mean()
            below = np.stack([line["deviation"], np.zeros(len(line))])
            ax.errorbar(
                line.index, line["loss"], yerr=below, label=attack, capsize=2, elinewidth=0.8,
                **looks[attack],
            )  # fmt: skip
        ax.set(title=f"attacks on {classifier}", xlabel="attack step")
    axes[0][0].set_ylabel("highest loss of 10")
    fig.legend(*axes[0][0].get_legend_handles_labels(), loc="outside right upper")
    return fig


def draws_view(
    image: torch.Tensor, perturbations: torch.Tensor, answers: Sequence[str], epsilon: float,
    times: float = 30,
) -> Figure:  # fmt: skip
    """Several perturbations (K, C, H, W) of one image (C, H, W), magnified (grey is zero), each
    with the classifier's answer; first the image, then the deviation of each pixel over the draws
    (mean over channels), from black at 0 to white at ε, the most it can be."""
    rows = 2
    columns = -(-(len(perturbations) + 2) // rows)
    fig, grid = plt.subplots(rows, columns, figsize=(1.5 * columns, 1.75 * rows))
    deviation = perturbations.std(0, correction=0).mean(0)
    shown: list[tuple[Any, str, dict[str, Any]]] = [
        (_array(image), "image", {}),
        (deviation.numpy(), "deviation", {"cmap": "gray", "vmin": 0, "vmax": epsilon}),
    ]
    for delta, answer in zip(perturbations, answers, strict=True):
        shown.append((magnify(delta, times), f"“{answer}”", {}))
    for ax, (picture, title, how) in zip(grid.flat, shown, strict=False):
        if picture.ndim == 3:
            picture = picture.transpose(1, 2, 0).squeeze()
        ax.imshow(picture, **({"cmap": "gray", "vmin": 0, "vmax": 1} | how))
        ax.set_title(title, fontsize=9)
    for ax in grid.flat:
        ax.axis("off")
    return fig


def _decades(axis: Axis, ticks: Sequence[float]) -> None:
    axis.set_major_locator(LogLocator(subs=ticks))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())


def _label(fig: Figure, ax: Axes, points: dict[str, tuple[float, float]]) -> None:
    """Names beside the points: of the places around each, the nearest that covers the least."""
    fig.draw_without_rendering()
    marks = [ax.transData.transform(point) for point in points.values()]
    places = [
        (r * np.cos(turn), r * np.sin(turn))
        for r in (14, 26, 38, 50)
        for turn in np.deg2rad([45, -45, 135, -135, 0, 180, 90, -90])
    ]
    taken: list = []
    for name, point in points.items():
        tried = []
        for x, y in places:
            text = ax.annotate(
                name, point, (x, y), textcoords="offset points", va="center",
                ha="center" if abs(x) < 1 else "left" if x > 0 else "right",
                arrowprops={"arrowstyle": "-", "color": "0.5", "lw": 0.8, "shrinkB": 4},
            )  # fmt: skip
            text.get_window_extent()  # places it; this extent has the arrow in it
            box = Text.get_window_extent(text).padded(2)
            covers = sum(box.overlaps(other) for other in taken)
            covers += sum(box.contains(*mark) for mark in marks)
            covers += not all(ax.bbox.contains(*corner) for corner in box.corners())
            tried.append((covers, text, box))
        best = min(tried, key=lambda t: t[0])
        for _, text, _ in tried:
            if text is not best[1]:
                text.remove()
        taken.append(best[2])


def _array(value: ArrayLike | torch.Tensor) -> NDArray[np.float32]:
    return torch.as_tensor(value).detach().cpu().float().numpy()


def _need(table: pd.DataFrame, *columns: str) -> bool:
    missing = [c for c in columns if c not in table]
    if missing:
        raise InputError(
            f"The table needs the columns {', '.join(columns)}; it lacks {', '.join(missing)}."
        )
    return not table.empty


def _nothing() -> Figure:
    fig, ax = plt.subplots(figsize=(6, 1.5))
    ax.axis("off")
    ax.text(0.5, 0.5, "No model trained to better than guessing:\nnothing to draw.", ha="center")
    return fig


def _lines(ax: Axes, table: pd.DataFrame, x: str, y: str, hue: str) -> None:
    for name, look in styles(table[hue]).items():
        seeds = table[table[hue] == name].groupby(x)[y].agg(["mean", "std"])
        ax.plot(seeds.index, seeds["mean"], label=name, **look)
        low, high = seeds["mean"] - seeds["std"], seeds["mean"] + seeds["std"]
        if "accuracy" in y and table[y].min() >= 0:  # a share ends at 0 and 1, and so its band
            low, high = low.clip(lower=0), high.clip(upper=1)
        ax.fill_between(seeds.index, low, high, alpha=0.15, color=look["color"])


def _legend(fig: Figure, ax: Axes, table: pd.DataFrame, hue: str) -> None:
    counts = sorted(set(table.groupby(hue)["seed"].nunique()))
    title = "1 seed" if counts == [1] else f"mean ± s.d.,\n{' or '.join(map(str, counts))} seeds"
    fig.legend(*ax.get_legend_handles_labels(), title=title, loc="outside right upper")
