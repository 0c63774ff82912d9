"""What is shown of GAIL: Figure 6 in numbers and pictures, the state space, a film, an explorer."""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from io import BytesIO
from typing import Any

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw

from l2lkit.environments import ENVIRONMENTS, make
from l2lkit.errors import InputError
from l2lkit.experts import Agent, load, roll_out
from l2lkit.gail import METHODS, Run, played, recipe, seeds, trained
from l2lkit.store import Store
from l2lkit.widgets import WRAP

# Figure 6 in numbers ----------------------------------------------------------------------------


def stability(scores: ArrayLike) -> dict[str, float]:
    """What Figure 6 claims, for one curve (T,) on the scale where chance is 0 and the expert 1
    (`Demonstrations.score`: a share of a negative return would mean nothing).

    `final`: mean of the last tenth. `reached`: the first iteration, from 1, at 0.95 or more. From
    there on: `worst_drop`, the deepest fall below the best score since; and `below`, the share of
    iterations under 0.8. The last three are NaN where 0.95 is never reached.
    Raises InputError for a curve that is empty or not finite.
    """
    curve = np.asarray(scores, dtype=np.float64)
    if curve.ndim != 1 or not len(curve) or not np.isfinite(curve).all():
        raise InputError(f"A curve must be a row of finite numbers, not {curve!r}.")
    final = float(curve[-math.ceil(len(curve) / 10) :].mean())
    there = np.flatnonzero(curve >= 0.95)
    if not len(there):
        return {"final": final, "reached": math.nan, "worst_drop": math.nan, "below": math.nan}
    since = curve[there[0] :]
    drop = (np.maximum.accumulate(since) - since).max()
    return {
        "final": final, "reached": float(there[0] + 1), "worst_drop": float(drop),
        "below": float((since < 0.8).mean()),
    }  # fmt: skip


def curves(
    store: Store, environments: Sequence[str] = ENVIRONMENTS, methods: Sequence[str] = METHODS,
    which: Sequence[int] | None = None,
) -> pd.DataFrame:  # fmt: skip
    """The logs of all runs, one below the other, played where missing. Columns: environment,
    defence (the method), seed, those of `train`'s log, and score (chance 0, the expert 1).

    `which` are the seeds, by default `seeds(store)`. Raises InputError if one comes twice: its run
    would be counted twice and the band would be too narrow.
    """
    chosen = seeds(store) if which is None else list(which)
    if len(set(chosen)) < len(chosen):
        raise InputError(f"One seed comes twice in {chosen}: name each once.")
    parts = []
    for environment in environments:
        demonstrations = load(environment)
        for method in methods:
            for seed in chosen:
                directory = played(store, environment, method, seed)
                log = pd.read_csv(directory / "log.csv")
                log = log.assign(score=demonstrations.score(log["return"]))
                parts.append(log.assign(environment=environment, defence=method, seed=seed))
    return pd.concat(parts, ignore_index=True)


def unpacked(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The runs of a record (`benchmarks/gail.py --long`), as `curves` has them: of each row the
    environment, the method, the seed and the returns, one an iteration."""
    parts = []
    for row in rows:
        log = pd.DataFrame({"return": row["returns"]})
        log.insert(0, "iteration", log.index + 1)
        log["score"] = load(row["environment"]).score(log["return"])
        about = {"environment": row["environment"], "defence": row["method"], "seed": row["seed"]}
        parts.append(log.assign(**about))
    return pd.concat(parts, ignore_index=True)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """`stability` of every run of `curves`: a row an environment, method and seed, with the number
    of iterations played (fewer than the others': it diverged) and the return of the last tenth."""
    rows = []
    for keys, run in table.groupby(["environment", "defence", "seed"], sort=False):
        found = stability(run["score"])
        last = run["return"].iloc[-math.ceil(len(run) / 10) :].mean()
        rows.append(dict(zip(("environment", "method", "seed"), keys, strict=True))
                    | {"iterations": len(run), "final_return": last} | found)  # fmt: skip
    return pd.DataFrame(rows)


# Pictures ---------------------------------------------------------------------------------------


LOOKS: dict[str, dict[str, Any]] = {
    method: {"color": f"C{i}", "marker": "osD"[i], "ls": ("-", "--", ":")[i]}
    for i, method in enumerate(METHODS)
}


def learning_curves(table: pd.DataFrame) -> Figure:
    """Figure 6: return against iteration, a picture an environment; the mean over seeds and a band
    from the lowest to the highest. Dashed, the expert; dotted, chance. `table` as of `curves`."""
    environments = list(dict.fromkeys(table["environment"]))
    fig, axes = plt.subplots(
        1, len(environments), squeeze=False, figsize=(5 * len(environments) + 1, 4)
    )
    for ax, environment in zip(axes[0], environments, strict=True):
        part = table[table["environment"] == environment]
        for method, runs in part.groupby("defence", sort=False):
            line = runs.groupby("iteration")["return"].agg(["mean", "min", "max"])
            look = LOOKS[str(method)]
            ax.plot(line.index, line["mean"], label=method, markevery=0.1, **look)
            ax.fill_between(line.index, line["min"], line["max"], alpha=0.15, color=look["color"])
        _marks(ax, environment)
        ax.set(title=environment, xlabel="iteration")
    axes[0][0].set_ylabel("return")
    count = table["seed"].nunique()
    title = f"mean and range,\n{count} seeds" if count > 1 else "1 seed"
    fig.legend(*axes[0][0].get_legend_handles_labels(), title=title, loc="outside right upper")
    return fig


def seed_curves(table: pd.DataFrame) -> Figure:
    """Every single run: a row an environment, a column a method, a line a seed. A mean hides what
    Figure 6 is about, a run that drops while the others hold."""
    environments = list(dict.fromkeys(table["environment"]))
    methods = list(dict.fromkeys(table["defence"]))
    fig, grid = plt.subplots(
        len(environments), len(methods), squeeze=False, sharex="row", sharey="row",
        figsize=(3.4 * len(methods) + 0.5, 2.3 * len(environments) + 0.5),
    )  # fmt: skip
    for axes, environment in zip(grid, environments, strict=True):
        for ax, method in zip(axes, methods, strict=True):
            runs = table[(table["environment"] == environment) & (table["defence"] == method)]
            for i, (_, run) in enumerate(runs.groupby("seed")):
                dashes = ("-", "--", "-.", ":")[i % 4]
                ax.plot(run["iteration"], run["return"], lw=1.2, ls=dashes, color=f"C{i % 10}")
            _marks(ax, environment)
        axes[0].set_ylabel(f"{environment}\nreturn")
    for ax, method in zip(grid[0], methods, strict=True):
        ax.set_title(method)
    for ax in grid.flat:
        ax.set_xlabel("iteration")
    return fig


def _marks(ax: Axes, environment: str) -> None:
    shown = load(environment)
    ax.axhline(shown.expert, color="0.2", ls="--", lw=1.2, label="expert", zorder=1)
    ax.axhline(shown.chance, color="0.2", ls=":", lw=1.2, label="chance", zorder=1)


# What a picture of the state space spans: two coordinates, their names and their ranges;
# CartPole's cart stands still in the middle.
Range = tuple[float, float]
PLANES: dict[str, tuple[tuple[int, int], tuple[str, str], Range, Range]] = {
    "CartPole-v1": (
        (2, 3), ("angle of the pole (rad)", "angular velocity"), (-0.21, 0.21), (-2, 2)
    ),
    "MountainCar-v0": ((0, 1), ("position", "velocity"), (-1.2, 0.6), (-0.07, 0.07)),
}  # fmt: skip


class StateSpace:
    """Where the policy pushes and what the discriminator thinks of it, on a plane of states.

    Left: the mean push, from −1 (left) to 1 (right). Right: the mean D over the policy's actions,
    the probability that it is not the expert who acts. Dots are states of the expert's. `figure` is
    drawn for `run` and `title`; `show` draws the same game at another moment into it.
    Raises InputError for an environment that PLANES has no plane of.
    """

    def __init__(self, run: Run, title: str = "", points: int = 61):
        environment, self.points = run.game.agent.environment, points
        if environment not in PLANES:
            raise InputError(f"No plane of {environment} to draw: add one to gail_views.PLANES.")
        (i, j), names, *ranges = PLANES[environment]
        expert = run.game.expert[0].cpu().numpy() * run.game.agent.std + run.game.agent.mean
        few = expert[:: max(1, len(expert) // 300)]
        plane = np.meshgrid(*(np.linspace(*ends, points) for ends in ranges))
        self.states = np.zeros((points * points, expert.shape[1]), np.float32)
        self.states[:, i], self.states[:, j] = (a.ravel() for a in plane)
        self.figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharex=True, sharey=True)
        looks = (("mean push of the policy", "PuOr", -1), ("mean D of its actions", "cividis", 0))
        self.images, self.moving = [], [self.figure.suptitle(title)]
        for ax, (name, colours, low) in zip(axes, looks, strict=True):
            image = ax.imshow(
                np.zeros((points, points)), extent=(*ranges[0], *ranges[1]), origin="lower",
                aspect="auto", cmap=colours, vmin=low, vmax=1,
            )  # fmt: skip
            dots = ax.scatter(few[:, i], few[:, j], s=6, c="k", edgecolors="w", linewidths=0.4)
            ax.set(title=name, xlabel=names[0], xlim=ranges[0], ylim=ranges[1])
            ax.grid(False)
            self.figure.colorbar(image, ax=ax)
            self.images.append(image)
            self.moving += [image, dots]
        axes[0].set_ylabel(names[1])
        self.show(run, title)

    def show(self, run: Run, title: str = "") -> None:
        agent, d = run.game.agent, run.game.discriminator
        chances = torch.from_numpy(agent.logits(self.states)).softmax(1)
        push = chances @ torch.linspace(-1, 1, agent.actions)
        seen = torch.from_numpy(agent.standardised(self.states)).to(run.game.expert[0].device)
        doubt = torch.zeros(len(seen))
        with torch.no_grad():
            for a in range(agent.actions):
                chosen = torch.full((len(seen),), a, device=seen.device)
                doubt += chances[:, a] * torch.sigmoid(d(seen, chosen)).cpu()
        for image, values in zip(self.images, (push, doubt), strict=True):
            image.set_data(values.view(self.points, self.points).numpy())
        self.moving[0].set_text(title)

    @cached_property
    def _still(self) -> tuple[FigureCanvasAgg, Any]:
        """The canvas, and on it all that `show` does not change."""
        self.figure.set_dpi(100)
        canvas = FigureCanvasAgg(self.figure)
        canvas.draw()
        self.figure.set_layout_engine("none")
        for artist in self.moving:
            artist.set_visible(False)
        canvas.draw()
        for artist in self.moving:
            artist.set_visible(True)
        return canvas, canvas.copy_from_bbox(self.figure.bbox)

    def png(self) -> bytes:
        """The figure as PNG bytes, 100 dpi. Only what changes is drawn anew: a slider waits."""
        canvas, still = self._still
        canvas.restore_region(still)
        for artist in self.moving:
            self.figure.draw_artist(artist)
        buffer = BytesIO()
        pixels = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
        pixels.save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()


def explorer(store: Store, environment: str) -> widgets.Widget:
    """Scrub through a finished training: method, seed and iteration; nothing is trained again."""
    method = widgets.Dropdown(options=METHODS, description="method")
    seed = widgets.Dropdown(options=seeds(store), description="seed")
    moment = widgets.SelectionSlider(options=[0], description="iteration")
    image = widgets.Image(format="png", width=900)
    runs: list[Run] = []
    drawn: list[StateSpace] = []

    def draw(_: Any = None) -> None:
        run = runs[-1].at(moment.value)
        back = run.log["return"][moment.value - 1]
        title = f"{method.value}, iteration {moment.value}: return {back:.0f}"
        if not drawn:
            drawn.append(StateSpace(run, title))
            plt.close(drawn[0].figure)
        drawn[0].show(run, title)
        image.value, image.tooltip = drawn[0].png(), title

    def choose(_: Any = None) -> None:
        setting = recipe(environment, method.value, store.profile.name)
        runs[:] = [trained(store, setting, seed.value)]
        moment.unobserve(draw, names="value")
        moment.options = list(runs[-1].snapshots)
        moment.value = moment.options[-1]
        moment.observe(draw, names="value")
        draw()

    for control, react in ((method, choose), (seed, choose), (moment, draw)):
        control.observe(react, names="value")
    choose()
    return widgets.VBox([widgets.HBox([method, seed, moment], layout=WRAP), image])


def episode(agent: Agent, seed: int = 0) -> NDArray[np.float32]:
    """The states (T, d) of one episode in which the agent takes its most likely actions."""
    envs = make(agent.environment, 1)
    run = roll_out(envs, agent.steps, agent.player(), [seed])
    return run.observations[run.first]


def film(episodes: Mapping[str, NDArray], environment: str) -> bytes:
    """Episodes, name -> states (T, d), side by side as a GIF; one that is over stands still.

    Raises InputError for an environment that has no drawing here.
    """
    if environment not in _DRAWINGS:
        raise InputError(f"Nothing here draws {environment}: choose {' or '.join(_DRAWINGS)}.")
    longest = max(len(states) for states in episodes.values())
    frames = []
    for t in range(0, longest + 20, max(1, longest // 100)):
        frame = Image.new("P", (240 * len(episodes), 170), 0)
        frame.putpalette([255, 255, 255, 40, 40, 40, 1, 115, 178, 222, 143, 5, 200, 200, 200])
        pen = ImageDraw.Draw(frame)
        for k, (name, states) in enumerate(episodes.items()):
            _DRAWINGS[environment](pen, 240 * k, states[min(t, len(states) - 1)])
            pen.text((240 * k + 8, 4), name, fill=1, font_size=14)
            pen.text((240 * k + 8, 22), f"step {min(t, len(states))}", fill=1, font_size=12)
            pen.line([240 * k, 0, 240 * k, 170], fill=4)
        frames.append(frame)
    buffer = BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=60, loop=0)
    return buffer.getvalue()


def _draw_cart(pen: ImageDraw.ImageDraw, left: int, state: NDArray) -> None:
    x, y = left + 120 + 45 * float(state[0]), 135
    pen.line([left, y + 12, left + 240, y + 12], fill=1)
    pen.rectangle([x - 18, y - 8, x + 18, y + 8], fill=2)
    tip = (x + 75 * math.sin(state[2]), y - 8 - 75 * math.cos(state[2]))
    pen.line([(x, y - 8), tip], fill=3, width=6)


def _draw_car(pen: ImageDraw.ImageDraw, left: int, state: NDArray) -> None:
    def place(position: float) -> tuple[float, float]:
        return left + (position + 1.2) / 1.8 * 239, 150 - 45 * (math.sin(3 * position) + 1)

    pen.line([place(p) for p in np.linspace(-1.2, 0.6, 60)], fill=1, width=2)
    goal = place(0.5)
    pen.line([goal, (goal[0], goal[1] - 22)], fill=3, width=3)
    x, y = place(float(state[0]))
    pen.ellipse([x - 7, y - 15, x + 7, y - 1], fill=2)


_DRAWINGS = {"CartPole-v1": _draw_cart, "MountainCar-v0": _draw_car}
