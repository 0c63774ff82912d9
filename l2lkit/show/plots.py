"""Plots of measurements: accuracy, loss, training, what it costs, and the game in two numbers.

They return a pyplot figure: a notebook shows it at the end of its cell. They number nothing and
name no dataset; captions do that, in `style.save`. Tables are data frames, a measurement a row.
Up to `style.FEW` seeds are drawn one by one, as dots beside their mean; more of them as a band of
one standard deviation. The legend says which.
Each raises InputError for a missing column; without rows to draw, the picture says so.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, PercentFormatter
from numpy.typing import NDArray

from l2lkit.errors import InputError
from l2lkit.game import toy
from l2lkit.results.experiments import STRONG
from l2lkit.show.style import FEW, PALETTE, styles

SWEPT = ("epsilon", "ε", "steps", "T")  # columns that double from one measured value to the next


def accuracy_bars(table: pd.DataFrame, attacks: Sequence[str] = STRONG) -> Figure:
    """Bars of accuracy, a group a defence, a bar an attack: the mean over seeds, which is written
    on it, with the seeds as dots or one standard deviation as a line. table: columns defence,
    seed, status (failed models are left out), attack, accuracy."""
    table = _usable(table, "defence", "seed", "status", "attack", "accuracy")
    table = table[table["attack"].isin(attacks)]
    if table.empty:
        return _nothing()
    attacks = [attack for attack in attacks if attack in set(table["attack"])]
    defences, width = table["defence"].unique(), 0.84 / len(attacks)
    many = table.groupby("defence")["seed"].nunique().max() > FEW
    fig, ax = plt.subplots(figsize=(9, 4))
    looks = (PALETTE[9], ""), (PALETTE[0], "//"), (PALETTE[3], "xx")
    for k, (attack, (colour, hatch)) in enumerate(zip(attacks, looks, strict=False)):
        of_attack = table[table["attack"] == attack]
        seeds = of_attack.groupby("defence")["accuracy"].agg([list, "mean", "std"])
        seeds = seeds.reindex([d for d in defences if d in seeds.index])
        x = np.flatnonzero(np.isin(defences, seeds.index)) + (k - (len(attacks) - 1) / 2) * width
        ax.bar(x, seeds["mean"], width, color=colour, hatch=hatch, ec="white", label=attack)
        if many:
            ax.errorbar(x, seeds["mean"], seeds["std"], color="0.15", ls="", capsize=2)
        for place, (values, mean, deviation) in zip(x, seeds.to_numpy(), strict=True):
            if not many and len(values) > 1:
                ax.plot([place] * len(values), values, **_DOTS, color="white", mec="0.15")
            top = place, mean + deviation if many else max(values)
            ax.annotate(f"{100 * mean:.0f}", top, (0, 4), textcoords="offset points", ha="center")
    ax.set(xticks=range(len(defences)), xticklabels=defences, ylabel="accuracy", ylim=(0, 1.1))
    ax.grid(axis="x", visible=False)
    ax.set_yticks([0, 0.25, 0.5, 0.75, 1])
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    _legend(fig, _seeds(table))
    return fig


def accuracy_curves(table: pd.DataFrame, x: str, xlabel: str = "") -> Figure:
    """Accuracy against x, a line a defence, over seeds. table: columns defence, seed, x, accuracy
    in [0, 1]. As Figure 4, ICLR 2020."""
    if (table := _usable(table, "defence", "seed", x, "accuracy")).empty:
        return _nothing()
    fig, ax = plt.subplots(figsize=(9, 4.2))
    _lines(ax, table, x, "accuracy")
    ax.set(xlabel=xlabel or x, ylabel="accuracy")
    _legend(fig, _seeds(table))
    return fig


def relative_curves(table: pd.DataFrame, x: str, xlabel: str = "", base: str = "PGM Net") -> Figure:
    """Accuracy against x, absolute (left) and as the difference to the defence `base` (right); a
    row of pictures an attack, over seeds. table: columns defence, seed, attack, x, accuracy in
    [0, 1] and difference, in percentage points, as `experiments.relative` adds it. The right
    pictures end at ± 30 points: what falls so far behind is on the left. ICLR 2020, Figure 4;
    second version, Figures 3 and 4."""
    if (table := _usable(table, "defence", "seed", "attack", x, "accuracy", "difference")).empty:
        return _nothing()
    fig, grid = _multiples(2 * table["attack"].nunique(), 2, (10, 3.1, 0.5), sharey="col")
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
    logarithmic (from step 1 on), since the learned attackers take one step or two. These end at a
    marker; the dotted line leads from it to where it meets the first attack of the table, PGM.
    table: columns step, loss, attack and defence. Rows that share all three keys (seeds) are
    averaged."""
    if (table := _usable(table, "step", "loss", "attack", "defence")).empty:
        return _nothing()
    defences, looks = table["defence"].unique(), styles(table["attack"])
    fig, grid = _multiples(len(defences), 2, (9.5, 3, 0.4), sharey=True)
    for ax, defence in zip(grid.flat, defences, strict=False):
        part = table[table["defence"] == defence]
        means = part.groupby(["attack", "step"], sort=False)["loss"].mean()
        first = part["attack"].iloc[0]
        for attack in part["attack"].unique():
            mean, longest = means[attack], means[first]
            end = {"markevery": [len(mean) - 1], "ms": 9, "clip_on": False}
            end |= {"ls": "-", "marker": ""} if attack == first else {}
            ax.plot(mean.index, mean, label=attack, **(looks[str(attack)] | end))
            reached = longest.index[longest >= mean.iloc[-1]]
            last = max(reached.min() if len(reached) else longest.index[-1], mean.index[-1])
            dotted = {"color": looks[str(attack)]["color"], "ls": ":", "lw": 1.2}
            ax.plot([mean.index[-1], last], [mean.iloc[-1]] * 2, **dotted)
        ax.set(title=f"attacks on {defence}", yscale="log")
        _doubling(ax, table["step"])
        _decades(ax.yaxis, (1, 3))
    plt.setp(_lowest(grid, len(defences)), xlabel="attack step")
    plt.setp(grid[:, 0], ylabel="loss (nats)")
    _legend(fig, "mean over images\nand seeds")
    return fig


def training_losses(log: pd.DataFrame) -> Figure:
    """A picture a defence of its loss under the attack that it trains with and under PGM-10 on
    test images, on one logarithmic axis: the gap is what its attack does not reach. log: columns
    defence, seed, epoch, train_loss and adv_loss (nats)."""
    if (log := _usable(log, "defence", "seed", "epoch", "train_loss", "adv_loss")).empty:
        return _nothing()
    defences = log["defence"].unique()
    fig, grid = _multiples(len(defences), 3, (9.5, 2.7, 0.4), sharey=True)
    kinds = {
        "adv_loss": ("PGM-10, test images", "--"),
        "train_loss": ("the attack of training", "-"),
    }
    for ax, defence in zip(grid.flat, defences, strict=False):
        look = styles([str(defence)])[str(defence)]
        for column, (_, dashes) in kinds.items():
            part = log[log["defence"] == defence].rename(columns={column: "loss"})
            _spread(ax, part.groupby("epoch")["loss"], look | {"ls": dashes})
        ax.set(title=defence, yscale="log")
        _decades(ax.yaxis, (1, 3))
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
    plt.setp(grid[:, 0], ylabel="loss (nats)")
    plt.setp(_lowest(grid, len(defences)), xlabel="epoch")
    lines = [
        Line2D([], [], color="0.2", ls=dashes, label=label) for label, dashes in kinds.values()
    ]
    fig.legend(handles=lines, title=_seeds(log), loc="outside lower center", ncols=2)
    return fig


def training_curves(log: pd.DataFrame) -> Figure:
    """How training went, with lines as in `accuracy_curves`. log: columns defence, seed, epoch,
    clean_accuracy and adv_accuracy (in [0, 1]), adv_loss (nats) and delta (mean |δ|/ε)."""
    titles = {"clean_accuracy": "clean accuracy", "adv_accuracy": "accuracy under PGM-10"}
    titles |= {"adv_loss": "loss under PGM-10 (nats)", "delta": "mean $|\\delta|\\,/\\,\\epsilon$"}
    return small_multiples(log, "epoch", titles)


def small_multiples(table: pd.DataFrame, x: str, titles: Mapping[str, str]) -> Figure:
    """Pictures, two a row, of the columns that `titles` names, against x, by defence, over
    seeds."""
    if (table := _usable(table, "defence", "seed", x, *titles)).empty:
        return _nothing()
    fig, grid = _multiples(len(titles), 2, (9.5, 2.8, 0.4))
    for ax, (column, title) in zip(grid.flat, titles.items(), strict=False):
        _lines(ax, table, x, column)
        ax.set(title=title, ylabel="")
        if x not in SWEPT:
            ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    plt.setp(_lowest(grid, len(titles)), xlabel=x)
    _legend(fig, _seeds(table))
    return fig


def convergence(table: pd.DataFrame) -> Figure:
    """Loss and accuracy against the steps of an attack, from the rows of `checklist.long_run`."""
    if (table := _usable(table, "status", "defence", "seed", "steps", "loss", "accuracy")).empty:
        return _nothing()
    titles = {"loss": "loss under PGM-T (nats)", "accuracy": "accuracy under PGM-T"}
    fig = small_multiples(table, "steps", titles)
    plt.setp(fig.axes, xlabel="steps T")
    fig.axes[0].set_yscale("log")
    _decades(fig.axes[0].yaxis, (1, 3))
    return fig


def restart_curves(table: pd.DataFrame) -> Figure:
    """L2L-DA's Figure 2: the highest loss of ten attempts against the attack's step, a picture a
    classifier. table: the rows of `diverse.restarts`; the lower bars are the deviation over the
    attempts, lines are means over seeds."""
    if (table := _usable(table, "classifier", "attack", "step", "loss", "deviation")).empty:
        return _nothing()
    classifiers, attacks = table["classifier"].unique(), list(table["attack"].unique())
    size = (4.2 * len(classifiers) + 1, 3.4, 0)
    fig, (axes,) = _multiples(len(classifiers), len(classifiers), size, sharey=True)
    for ax, classifier in zip(axes, classifiers, strict=True):
        part = table[table["classifier"] == classifier]
        for attack, rows in part.groupby("attack", sort=False):
            i, mean = attacks.index(attack), rows.groupby("step")[["loss", "deviation"]].mean()
            bars = {"yerr": [mean["deviation"], 0 * mean["deviation"]], "elinewidth": 0.8}
            look = {"color": PALETTE[i], "marker": "osD"[i], "ls": ("-", "--", ":")[i]}
            ax.errorbar(mean.index, mean["loss"], label=attack, capsize=2, **bars, **look)
        ax.set(title=f"attacks on {classifier}", xlabel="attack step", xticks=[1, 2, 4, 6, 8, 10])
    axes[0].set_ylabel("highest loss of 10 (nats)")
    axes[0].set_ylim(0, None)
    _legend(fig, "10 attempts each;\nbars: their s.d.")
    return fig


def loss_surfaces(table: pd.DataFrame) -> Figure:
    """A contour picture a defence of the rows of `checklist.loss_surface`: the loss against the
    gradient's direction (up) and a random one, in one scale of colours. The cross is the image
    itself; each picture has contour lines of its own, in equal ratios. Failed models are left
    out."""
    if (table := _usable(table, "status", "defence", "a", "b", "loss")).empty:
        return _nothing()
    defences, columns = table["defence"].unique(), 4
    fig, grid = _multiples(len(defences), min(columns, len(defences)), (9.5, 2.4, 0.3), sharey=True)
    ends = min(max(table["loss"].max(), 2e-6), 30)  # a masked softmax may lose millions
    norm = LogNorm(max(table["loss"][table["loss"] > 0].min(), 1e-4 * ends, 1e-6), ends)
    for ax, defence in zip(grid.flat, defences, strict=False):
        plane = table[table["defence"] == defence].pivot(index="a", columns="b", values="loss")
        low, high = max(0.0, plane.min().min()), plane.max().max()  # rounding gives -0
        words = f"loss {low:.2g} to {high:.2g}" if high > low else f"loss {low:.2g}: no slope"
        ax.set_title(f"{defence}\n{words}", fontsize=11)
        surface = plane.columns, plane.index, plane.clip(norm.vmin, norm.vmax)
        look = {"norm": norm, "cmap": "cividis", "shading": "gouraud"}
        drawn = ax.pcolormesh(*surface, **look, rasterized=True)  # megabytes as an SVG's paths
        if high > low:
            levels = np.geomspace(max(low, 1e-9), high, 9)[1:-1]
            ax.contour(plane.columns, plane.index, plane, levels=levels, colors="w", linewidths=0.8)
        ax.plot(0, 0, "P", color="white", mec="black", ms=9, zorder=5)
        ax.set(aspect="equal", xticks=(-1, 0, 1), yticks=(-1, 0, 1))
        ax.grid(False)
    plt.setp(grid[:, 0], ylabel="gradient's signs (× ε)")
    fig.supxlabel("random signs (× ε)", fontsize=11)
    fig.colorbar(drawn, ax=fig.axes, label="loss (nats)", shrink=0.8, extend="both")
    return fig


def front(cost: pd.Series, value: pd.Series) -> pd.Series:
    """The Pareto front: the best value for each cost, against cost, where nothing that costs no
    more is at least as good."""
    best = value.groupby(cost).max()
    return best[~(best <= best.cummax().shift())]


def worth_it(table: pd.DataFrame) -> Figure:
    """Robust accuracy against seconds of training, with those of the Plain Net a defence starts
    from, from the rows of `checklist.robust_accuracy`: the mean over seeds, with the seeds as dots
    or one standard deviation both ways. The line is the Pareto front, `front`; the legend goes
    from the best to the worst. Failed models are left out."""
    columns = ("status", "defence", "seed", "accuracy", "seconds", "start_seconds")
    if (table := _usable(table, *columns)).empty:
        return _nothing()
    table = table.assign(seconds=table["seconds"] + table["start_seconds"])
    groups = table.groupby("defence", sort=False)[["seconds", "accuracy"]]
    mean, deviation = groups.mean(), groups.std()
    best = front(mean["seconds"], mean["accuracy"])
    fig, ax = plt.subplots(figsize=(9, 4.8))
    times, heights = [*best.index, mean["seconds"].max()], [*best, best.max()]
    ax.step(times, heights, where="post", color="0.8", lw=5, zorder=0, label="best for its time")
    looks = styles(mean.index)
    for name, (x, y) in mean.sort_values("accuracy", ascending=False, kind="stable").iterrows():
        look, seeds = looks[str(name)] | {"ls": "", "clip_on": False}, groups.get_group(name)
        if len(seeds) > FEW:
            bars = {"ecolor": look["color"], "elinewidth": 1.2, "fmt": "none", "capsize": 3}
            ax.errorbar(x, y, *deviation.loc[name][::-1], **bars)
        else:
            for seed in seeds.to_numpy():
                ax.plot(*zip((x, y), seed, strict=True), color=look["color"], lw=0.8, zorder=1)
            ax.plot(*seeds.to_numpy().T, **_DOTS, color=look["color"], clip_on=False)
        ax.plot(x, y, ms=10, label=name, **look)
    ax.set_xscale("log")
    _decades(ax.xaxis, (1, 1.5, 2, 3, 4, 6, 8))
    ax.set(xlabel="seconds of training, Plain Net's included", ylabel="robust accuracy")
    ax.set_ylim(0, min(1, 1.1 * table["accuracy"].max() + 0.1))
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    _legend(fig, _seeds(table))
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
    for ax in _lowest(grid, n):
        ax.tick_params(labelbottom=True)
    return fig, grid


def _lowest(grid: NDArray, n: int) -> list[Axes]:
    """The last axes of each column, where the first n are in use."""
    return list(grid.flat[max(0, n - grid.shape[1]) : n])


def _lines(ax: Axes, table: pd.DataFrame, x: str, y: str) -> None:
    """A line a defence: the mean of y over seeds, and these. Shares, whose column is named
    accuracy, are in percent."""
    for name, look in styles(table["defence"]).items():
        seeds = table[table["defence"] == name].groupby(x)[y]
        _spread(ax, seeds, look | {"label": name}, (0, 1) if "accuracy" in y else None)
    if "accuracy" in y:
        ax.yaxis.set_major_formatter(PercentFormatter(1))
        ax.set_ylim(-0.03, 1.03)
    if x in SWEPT:
        _doubling(ax, table[x])


_DOTS: dict[str, Any] = {"ls": "", "marker": "o", "ms": 4, "alpha": 0.6, "mew": 0.6}


def _spread(ax: Axes, seeds: Any, look: dict, ends: tuple[float, float] | None = None) -> None:
    """The mean of grouped values as a line; few seeds as dots, more as a band of one standard
    deviation, cut at `ends`, without them at the lowest and the highest value."""
    mean, count = seeds.mean(), seeds.size().max()
    ax.plot(mean.index, mean, **look)
    if count > FEW:
        sd, (low, high) = seeds.std(), ends or (seeds.min().min(), seeds.max().max())
        band = (mean - sd).clip(lower=low), (mean + sd).clip(upper=high)
        ax.fill_between(mean.index, *band, alpha=0.15, color=look["color"])
    elif count > 1:
        for place, values in seeds:
            ax.plot([place] * len(values), values, **_DOTS, color=look["color"])


def _seeds(table: pd.DataFrame) -> str:
    """What the legend says about seeds."""
    counts = sorted(set(table.groupby("defence")["seed"].nunique()))
    if counts == [1]:
        return "1 seed"
    spread = "mean ± s.d." if counts[-1] > FEW else "mean; a dot a seed"
    return f"{spread},\n{' or '.join(map(str, counts))} seeds"


def _legend(fig: Figure, title: str | None = None) -> None:
    """One for all axes, beside them, with one entry a label."""
    entries: dict[str, Any] = {}
    for ax in fig.axes:
        handles, labels = ax.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    fig.legend(entries.values(), entries.keys(), title=title, loc="outside right upper")


def _doubling(ax: Axes, values: pd.Series) -> None:
    """An axis that begins at 0 and is logarithmic from the first positive value on, with ticks at
    the values, each about twice the last."""
    ticks: list[float] = []
    for value in sorted(set(values)):
        if not ticks or value >= 1.9 * ticks[-1]:
            ticks.append(value)
    first = min((v for v in ticks if v > 0), default=1)
    ax.set_xscale("symlog", base=2, linthresh=first, linscale=0.5)
    every = 1 if len(ticks) <= 8 else 2  # more labels would overlap
    last = len(ticks) - 1
    ax.set_xticks(ticks, [f"{t:g}" if (last - i) % every == 0 else "" for i, t in enumerate(ticks)])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlim(-0.15 * first, 1.1 * values.max() or 1)


def _decades(axis: Axis, ticks: Sequence[float]) -> None:
    axis.set_major_locator(LogLocator(subs=ticks))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())
