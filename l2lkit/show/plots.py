"""Plots of measurements: accuracy, loss, training, what it costs, and the game in two numbers.

They return a pyplot figure: a notebook shows it at the end of its cell. They number nothing and
name no dataset; captions do that, in `style.save`. Tables are data frames, a measurement a row.
Each raises InputError for a missing column; without rows to draw, the picture says so.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from matplotlib.text import Annotation, Text
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, PercentFormatter
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

from l2lkit.errors import InputError
from l2lkit.game import toy
from l2lkit.results.experiments import STRONG
from l2lkit.show.style import PALETTE, styles


def accuracy_bars(table: pd.DataFrame, attacks: Sequence[str] = STRONG) -> Figure:
    """Bars of accuracy, a group a defence, a bar an attack: mean and one standard deviation over
    seeds. table: columns defence, status (failed models are left out), attack, accuracy."""
    table = _usable(table, "defence", "status", "attack", "accuracy")
    table = table[table["attack"].isin(attacks)]
    if table.empty:
        return _nothing()
    fig, ax = plt.subplots(figsize=(9, 4))
    look = {"palette": [PALETTE[i] for i in (9, 0, 3)], "err_kws": {"linewidth": 1.5}}
    hues = {"hue": "attack", "hue_order": attacks}
    sns.barplot(table, x="defence", y="accuracy", errorbar="sd", ax=ax, **hues, **look)
    for bars, hatch in zip(ax.containers, ("", "//", "xx"), strict=False):
        plt.setp(bars, hatch=hatch)
    ax.set(xlabel="", ylabel="accuracy", ylim=(0, 1))
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    sns.move_legend(ax, "upper left", bbox_to_anchor=(1, 1), title="attack")
    return fig


def accuracy_curves(table: pd.DataFrame, x: str, xlabel: str = "") -> Figure:
    """Accuracy against x, a line a defence: mean ± one standard deviation over seeds, of which one
    gives no band. table: columns defence, seed, x, accuracy in [0, 1]. As Figure 4, ICLR 2020."""
    if (table := _usable(table, "defence", "seed", x, "accuracy")).empty:
        return _nothing()
    fig, ax = plt.subplots(figsize=(8, 4.2))
    _lines(ax, table, x, "accuracy")
    ax.set(xlabel=xlabel or x, ylabel="accuracy")
    _legend(fig, _seeds(table))
    return fig


def relative_curves(table: pd.DataFrame, x: str, xlabel: str = "", base: str = "PGM Net") -> Figure:
    """Accuracy against x, absolute (left) and as the difference to the defence `base` (right); a
    row of pictures an attack. Mean and one standard deviation over seeds. table: columns defence,
    seed, attack, x, accuracy in [0, 1] and difference, in percentage points, as
    `experiments.relative` adds it. The right pictures end at ± 30 points: what falls so far behind
    is on the left. ICLR 2020, Figure 4; second version, Figures 3 and 4."""
    if (table := _usable(table, "defence", "seed", "attack", x, "accuracy", "difference")).empty:
        return _nothing()
    fig, grid = _multiples(2 * table["attack"].nunique(), 2, (10.5, 3.1, 0.5), sharey="col")
    for (left, right), (attack, part) in zip(
        grid, table.groupby("attack", sort=False), strict=True
    ):
        _lines(left, part, x, "accuracy")
        left.set(title=attack, ylabel="accuracy")
        right.axhline(0, color=styles([base])[base]["color"], lw=1.5)
        _lines(right, part[part["defence"] != base], x, "difference")
        right.set(title=f"{attack}: difference to {base}", ylabel="percentage points")
    most = 1.1 * table["difference"].abs().max()
    reach = max(1, min(30, most))  # NaN, where no row has a difference, leaves the 30
    right.set_ylim(-reach, reach)
    right.yaxis.set_major_formatter(lambda points, _: f"{points:+g}" if points else "0")
    plt.setp(grid[-1], xlabel=xlabel or x)
    _legend(fig, _seeds(table))
    return fig


def loss_curves(table: pd.DataFrame) -> Figure:
    """Loss against attack steps: one picture per defence, one line per attack, shared axes, both
    logarithmic (from step 1 on), since the learned attackers take one step or two. table: columns
    step, loss, attack, defence and, where known, deviation: one standard deviation over images,
    drawn as a band. Rows that share all three keys (seeds) are averaged."""
    if (table := _usable(table, "step", "loss", "attack", "defence")).empty:
        return _nothing()
    defences, looks = table["defence"].unique(), styles(table["attack"])
    fig, grid = _multiples(len(defences), 2, (9.5, 2.8, 0.4), sharey=True)
    floor = max(table["loss"].min() / 2, 1e-3)
    for ax, defence in zip(grid.flat, defences, strict=False):
        part = table[table["defence"] == defence]
        for attack, rows in part.groupby("attack", sort=False):
            look, mean = looks[str(attack)], rows.groupby("step").mean(numeric_only=True)
            ax.plot(mean.index, mean["loss"], label=attack, markevery=0.1, **look)
            if "deviation" in mean:
                _band(ax, mean["loss"], mean["deviation"], look, (floor, np.inf))
        ax.set(title=defence, yscale="log", ylim=(floor, None))
        _steps(ax, (0, 1, 2, 5, 10, 20))
    plt.setp(grid[-1], xlabel="attack step")
    plt.setp(grid[:, 0], ylabel="loss")
    _legend(fig, "mean ± one s.d.\nover images" if "deviation" in table else "mean")
    return fig


def training_curves(log: pd.DataFrame) -> Figure:
    """How training went, with lines as in `accuracy_curves`. log: columns defence, seed, epoch,
    clean_accuracy and adv_accuracy (in [0, 1]), adv_loss (nats) and delta (mean |δ|/ε)."""
    titles = {"clean_accuracy": "clean accuracy", "adv_accuracy": "accuracy under PGM-10"}
    titles |= {"adv_loss": "loss under PGM-10", "delta": "mean $|\\delta|\\,/\\,\\epsilon$"}
    return small_multiples(log, "epoch", titles)


def small_multiples(table: pd.DataFrame, x: str, titles: Mapping[str, str]) -> Figure:
    """Pictures, two a row, of the columns that `titles` names, against x, by defence: mean and one
    standard deviation over seeds."""
    if (table := _usable(table, "defence", "seed", x, *titles)).empty:
        return _nothing()
    fig, grid = _multiples(len(titles), 2, (9.5, 2.8, 0.4))
    for ax, (column, title) in zip(grid.flat, titles.items(), strict=False):
        _lines(ax, table, x, column)
        ax.set(title=title, xlabel=x if ax in grid[-1] else "", ylabel="")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    _legend(fig, _seeds(table))
    return fig


def convergence(table: pd.DataFrame) -> Figure:
    """Loss and accuracy against the steps of an attack, from the rows of `checklist.long_run`."""
    if (table := _usable(table, "status", "defence", "seed", "steps", "loss", "accuracy")).empty:
        return _nothing()
    titles = {"loss": "loss under PGM-T", "accuracy": "accuracy under PGM-T"}
    fig = small_multiples(table, "steps", titles)
    for ax in fig.axes:
        _steps(ax, (0, 1, 10, 100, 500))
        ax.set_xlabel("steps T")
    fig.axes[0].set_yscale("log")
    _decades(fig.axes[0].yaxis, (1, 2, 5))
    return fig


def restart_curves(table: pd.DataFrame) -> Figure:
    """L2L-DA's Figure 2: the highest loss of ten attempts against the attack's step, a picture a
    classifier. table: the rows of `diverse.restarts`; the lower bars are the deviation over the
    attempts, lines are means over seeds."""
    if (table := _usable(table, "classifier", "attack", "step", "loss", "deviation")).empty:
        return _nothing()
    classifiers, attacks = table["classifier"].unique(), list(table["attack"].unique())
    size = (4.2 * len(classifiers) + 1, 3.4, 0)
    fig, (axes,) = _multiples(len(classifiers), len(classifiers), size)
    for ax, classifier in zip(axes, classifiers, strict=True):
        part = table[table["classifier"] == classifier]
        for attack, rows in part.groupby("attack", sort=False):
            i, mean = attacks.index(attack), rows.groupby("step")[["loss", "deviation"]].mean()
            bars = {"yerr": [mean["deviation"], 0 * mean["deviation"]], "elinewidth": 0.8}
            look = {"color": PALETTE[i], "marker": "osD"[i], "ls": ("-", "--", ":")[i]}
            ax.errorbar(mean.index, mean["loss"], label=attack, capsize=2, **bars, **look)
        ax.set(title=f"attacks on {classifier}", xlabel="attack step")
    axes[0].set_ylabel("highest loss of 10")
    _legend(fig)
    return fig


def loss_surfaces(table: pd.DataFrame) -> Figure:
    """A contour picture a defence of the rows of `checklist.loss_surface`: the loss against the
    gradient's direction (up) and a random one. The cross is the image itself; each picture has
    levels of its own, in equal ratios. Failed models are left out."""
    if (table := _usable(table, "status", "defence", "a", "b", "loss")).empty:
        return _nothing()
    defences = table["defence"].unique()
    fig, grid = _multiples(len(defences), 3, (10.5, 3.4, 0.3), sharey=True)
    for ax, defence in zip(grid.flat, defences, strict=False):
        plane = table[table["defence"] == defence].pivot(index="a", columns="b", values="loss")
        low, high = plane.min().min(), plane.max().max()
        ax.set_title(f"{defence}\nloss {low:.2g} to {high:.2g}")
        low = max(low, 1e-6)
        if high > low:  # else it is flat
            levels = np.geomspace(low, high, 13)
            norm = LogNorm(levels[0], levels[-1] * (levels[-1] / levels[0]) ** 0.6)  # light ones
            surface = plane.columns, plane.index, plane.clip(lower=levels[0])
            ax.contourf(*surface, levels=levels, norm=norm, cmap="Blues")
            lines = ax.contour(*surface, levels=levels[2:-1:3], colors="black", linewidths=1)
            ax.clabel(lines, fmt="%.2g", fontsize=10)
        ax.plot(0, 0, "P", color="white", mec="black", ms=10, zorder=5)
        ax.set(aspect="equal")
    plt.setp(grid[:, 0], ylabel="gradient's signs (× ε)")
    fig.supxlabel("random signs (× ε)", fontsize=11)
    return fig


def front(cost: pd.Series, value: pd.Series) -> pd.Series:
    """The Pareto front: the best value for each cost, against cost, where nothing that costs no
    more is at least as good."""
    best = value.groupby(cost).max()
    return best[~(best <= best.cummax().shift())]


def worth_it(table: pd.DataFrame) -> Figure:
    """Robust accuracy against seconds of training, with those of the Plain Net a defence starts
    from, from the rows of `checklist.robust_accuracy`: mean and one standard deviation over seeds.
    The line is the Pareto front, `front`. Failed models are left out."""
    if (table := _usable(table, "status", "defence", "accuracy", "seconds", "start_seconds")).empty:
        return _nothing()
    table = table.assign(seconds=table["seconds"] + table["start_seconds"])
    groups = table.groupby("defence", sort=False)[["seconds", "accuracy"]]
    mean, deviation = groups.mean(), groups.std()
    best = front(mean["seconds"], mean["accuracy"])
    fig, ax = plt.subplots(figsize=(9, 5.5))
    times, heights = [*best.index, mean["seconds"].max()], [*best, best.max()]
    ax.step(times, heights, where="post", color="0.6", zorder=0, label="best for its time")
    for name, look in styles(mean.index).items():
        (x, y), (xerr, yerr) = mean.loc[name], deviation.loc[name]
        ax.errorbar(x, y, yerr, xerr, capsize=3, ms=9, **(look | {"ls": ""}))
    ax.set_xscale("log")
    _decades(ax.xaxis, (1, 1.5, 2, 3, 4, 6, 8))
    ax.set(xlabel="seconds of training, Plain Net's included", ylabel="robust accuracy")
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.margins(0.12)
    ax.legend(loc="best")
    _label(fig, ax, mean)
    return fig


def cycle(paths: Mapping[str, NDArray[np.float64]], step: float, extent: float = 3.0) -> Figure:
    """Paths of the two-number game, name -> (n, 2). Left: in the plane, up to `extent`, with arrows
    of the update direction and the start's circle, dashed. Right: radius over turns of 2π / step
    steps, logarithmic where it spans more than a factor of 20. ICLR 2020, Figure 8."""
    fig, (plane, over) = plt.subplots(1, 2, figsize=(10, 5))
    radii = {name: toy.radius(path) for name, path in paths.items()}
    top = max(r.max() for r in radii.values())
    view = min(1.15 * top, extent) or 1.0
    plane.quiver(*toy.field(0.9 * view, 11), color="0.75", zorder=0)
    start = next(iter(paths.values()))[0]
    plane.add_patch(Circle((0, 0), np.hypot(*start), fill=False, ls="--", color="0.4"))
    order = list(dict.fromkeys([*toy.METHODS, "learned", *paths]))  # a colour for good
    for name, path in paths.items():
        i, every = order.index(name), max(len(path) // 4000, 1)
        turns = np.arange(len(path)) * step / (2 * np.pi)
        look: dict[str, Any] = {"color": PALETTE[i % 10], "ls": ("-", "--", "-.", ":")[i % 4]}
        plane.plot(*path[::every].T, lw=1.4, **look)
        over.plot(turns[::every], radii[name][::every], label=name, **look)
    plane.plot(*start, "k*", ms=11)
    plane.plot(0, 0, "k+", ms=11)
    plane.set(xlim=(-view, view), ylim=(-view, view), aspect="equal", xlabel="x", ylabel="y")
    over.set(xlabel="turns", ylabel="distance from equilibrium")
    if top > 20 * min(r.min() for r in radii.values()):
        over.set_yscale("log")
        _decades(over.yaxis, (1, 2, 5))
    else:
        over.ticklabel_format(useOffset=False)
    fig.legend(loc="outside lower center", title=f"step {step:g}", ncols=len(paths))
    return fig


def _usable(table: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """The rows to draw: all, or with "status" among the columns those of models that trained.
    Raises InputError for a missing column."""
    if missing := [c for c in columns if c not in table]:
        raise InputError(f"The table lacks columns to draw: give it {', '.join(missing)}.")
    return table[table["status"] == "ok"] if "status" in columns else table


def _nothing() -> Figure:
    fig, ax = plt.subplots(figsize=(6, 1.5))
    ax.axis("off")
    ax.text(0.5, 0.5, "No model trained to better than guessing:\nnothing to draw.", ha="center")
    return fig


def _multiples(n: int, columns: int, size: tuple[float, ...], **how: Any) -> tuple[Figure, NDArray]:
    """A grid of n axes that share x. size: the width, a row's height and what is added to all
    rows' height, in inches."""
    rows = -(-n // columns)
    figsize = (size[0], size[1] * rows + size[2])
    fig, grid = plt.subplots(rows, columns, sharex=True, squeeze=False, figsize=figsize, **how)
    for ax in grid.flat[n:]:
        ax.remove()
    return fig, grid


def _lines(ax: Axes, table: pd.DataFrame, x: str, y: str) -> None:
    """A line and a band a defence: mean and one standard deviation of y over seeds. Shares, whose
    column is named accuracy, are in percent, and their bands end at 0 and 1."""
    ends = (0, 1) if "accuracy" in y else (-np.inf, np.inf)
    for name, look in styles(table["defence"]).items():
        seeds = table[table["defence"] == name].groupby(x)[y].agg(["mean", "std"])
        ax.plot(seeds.index, seeds["mean"], label=name, **look)
        _band(ax, seeds["mean"], seeds["std"], look, ends)
    if "accuracy" in y:
        ax.yaxis.set_major_formatter(PercentFormatter(1))


def _band(ax: Axes, mean: pd.Series, sd: pd.Series, look: dict, ends: tuple[float, float]) -> None:
    low, high = (mean - sd).clip(lower=ends[0]), (mean + sd).clip(upper=ends[1])
    ax.fill_between(mean.index, low, high, alpha=0.15, color=look["color"])


def _seeds(table: pd.DataFrame) -> str:
    counts = sorted(set(table.groupby("defence")["seed"].nunique()))
    return "1 seed" if counts == [1] else f"mean ± s.d.,\n{' or '.join(map(str, counts))} seeds"


def _legend(fig: Figure, title: str | None = None) -> None:
    """One for all axes, beside them, with one entry a label."""
    entries: dict[str, Any] = {}
    for ax in fig.axes:
        handles, labels = ax.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    fig.legend(entries.values(), entries.keys(), title=title, loc="outside right upper")


def _steps(ax: Axes, ticks: Sequence[int]) -> None:
    ax.set_xscale("symlog", linthresh=1)
    ax.set_xticks(ticks, [str(tick) for tick in ticks])


def _decades(axis: Axis, ticks: Sequence[float]) -> None:
    axis.set_major_locator(LogLocator(subs=ticks))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())


def _label(fig: Figure, ax: Axes, points: pd.DataFrame) -> None:
    """Names beside the points: of the places around each, the nearest that covers the least."""
    fig.draw_without_rendering()
    marks = ax.transData.transform(points)
    turns = np.deg2rad([45, -45, 135, -135, 0, 180, 90, -90])
    places = [(r * np.cos(turn), r * np.sin(turn)) for r in (14, 26, 38, 50) for turn in turns]
    line = {"arrowstyle": "-", "color": "0.5", "lw": 0.8, "shrinkB": 4}
    look: dict[str, Any] = {"textcoords": "offset points", "va": "center", "arrowprops": line}
    taken: list[Bbox] = []
    for name, *point in points.itertuples():
        text, covered = ax.annotate(name, point, (0, 0), **look), []
        for place in places:
            box = _moved(text, *place)
            outside = ax.bbox.count_contains(box.corners()) < 4
            covered.append(box.count_overlaps(taken) + box.count_contains(marks) + outside)
        taken.append(_moved(text, *places[np.argmin(covered)]))


def _moved(text: Annotation, x: float, y: float) -> Bbox:
    """Move a text to (x, y) beside its point; the box that it then covers, with a margin."""
    text.set(position=(x, y), ha="center" if abs(x) < 1 else "left" if x > 0 else "right")
    text.get_window_extent()  # places it; this extent has the line in it
    return Text.get_window_extent(text).padded(2)
