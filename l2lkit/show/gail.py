"""What is shown of GAIL: Figure 6, the state space, an explorer of a training, a film."""

import math
from collections.abc import Mapping
from io import BytesIO
from typing import Any

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from l2lkit.errors import InputError
from l2lkit.gail.agent import Agent, roll_out
from l2lkit.gail.demonstrations import load
from l2lkit.gail.environments import make
from l2lkit.gail.game import METHODS, gail_recipe
from l2lkit.results.gail import Run, seeds, trained
from l2lkit.runs.store import Store
from l2lkit.show.blit import Blitted
from l2lkit.show.style import FEW, PALETTE
from l2lkit.show.widgets import WRAP, Described

LOOKS: dict[str, dict[str, Any]] = {
    method: {"color": PALETTE[i], "ls": ("-", "--", "-.")[i]} for i, method in enumerate(METHODS)
}


def learning_curves(table: pd.DataFrame) -> Figure:
    """Figure 6: return against iteration, a picture an environment. Thick, the mean over seeds and
    over the last twentieth of all iterations; thin, up to `style.FEW` seeds, or a band from the
    lowest to the highest. Black, the expert and chance. `table` as of `curves`."""
    environments = list(dict.fromkeys(table["environment"]))
    size = (4.4 * len(environments) + 1, 4)
    fig, axes = plt.subplots(1, len(environments), squeeze=False, figsize=size)
    window = max(1, table["iteration"].max() // 20)
    for ax, environment in zip(axes[0], environments, strict=True):
        part = table[table["environment"] == environment]
        for method, runs in part.groupby("defence", sort=False):
            wide = runs.pivot(index="iteration", columns="seed", values="return")
            smooth, look = wide.rolling(window, min_periods=1).mean(), LOOKS[str(method)]
            ax.plot(smooth.mean(axis=1), label=method, lw=2.5, **look)
            if wide.shape[1] > FEW:
                ends = smooth.min(axis=1), smooth.max(axis=1)
                ax.fill_between(smooth.index, *ends, alpha=0.15, color=look["color"])
            elif wide.shape[1] > 1:
                ax.plot(smooth, lw=0.8, alpha=0.7, **look)
        shown = load(environment)
        ax.axhline(shown.expert, color="0.1", ls=(0, (6, 2)), lw=1.2, label="expert", zorder=1)
        ax.axhline(shown.chance, color="0.1", ls=(0, (1, 1)), lw=1.2, label="chance", zorder=1)
        ax.set(title=environment, xlabel="iteration", ylabel="return")
    count = table["seed"].nunique()
    spread = "thin: the seeds" if count <= FEW else "band: their range"
    title = f"mean of {count} seeds;\n{spread}" if count > 1 else "1 seed"
    fig.legend(*axes[0][0].get_legend_handles_labels(), title=title, loc="outside right upper")
    return fig


def seed_curves(table: pd.DataFrame, cells: int = 200) -> Figure:
    """Every single run: a row an environment, a column a method, a strip a seed, its colour the
    score at each iteration, from chance (0) to the expert (1). A mean hides what Figure 6 is about,
    a run that drops while the others hold. A strip has up to `cells` cells, each the *lowest* of
    the iterations it covers, so that no drop is averaged away."""
    environments = list(dict.fromkeys(table["environment"]))
    methods = list(dict.fromkeys(table["defence"]))
    seeds = sorted(table["seed"].unique())
    rows, columns = len(environments), len(methods)
    size = (9.5, (0.25 * len(seeds) + 0.9) * rows + 0.5)
    fig, grid = plt.subplots(rows, columns, squeeze=False, sharex="row", sharey=True, figsize=size)
    for axes, environment in zip(grid, environments, strict=True):
        part = table[table["environment"] == environment]
        every = -(-int(part["iteration"].max()) // cells)
        part = part.assign(cell=(part["iteration"] - 1) // every)
        for ax, method in zip(axes, methods, strict=True):
            runs = part[part["defence"] == method]
            strips = runs.pivot_table(index="seed", columns="cell", values="score", aggfunc="min")
            place = {"extent": (0, every * strips.shape[1], len(seeds) - 0.5, -0.5)}
            look: dict[str, Any] = {"aspect": "auto", "interpolation": "nearest", "cmap": "cividis"}
            drawn = ax.imshow(strips.reindex(seeds), vmin=0, vmax=1, **place, **look)
            ax.set(title=f"{environment}: {method}", yticks=range(len(seeds)), yticklabels=seeds)
            ax.hlines(np.arange(0.5, len(seeds) - 1), *ax.get_xlim(), color="w", lw=2)
            ax.title.set_fontsize(10)
            ax.xaxis.set_major_locator(MaxNLocator(4, integer=True, prune="upper"))
            ax.grid(False)
        axes[0].set_ylabel("seed")
    plt.setp(grid[-1], xlabel="iteration")
    words = "score" if every == 1 else f"score, lowest of {every} iterations"
    bar = fig.colorbar(drawn, ax=grid, label=words, extend="both")
    bar.set_ticks([0, 0.5, 1], labels=["0: chance", "0.5", "1: expert"])
    return fig


# What a picture of the state space spans: two coordinates, their names and their ranges;
# CartPole's cart stands still in the middle.
Range = tuple[float, float]
POLE = ("angle of the pole (rad)", "angular velocity")
PLANES: dict[str, tuple[tuple[int, int], tuple[str, str], Range, Range]] = {
    "CartPole-v1": ((2, 3), POLE, (-0.21, 0.21), (-2, 2)),
    "MountainCar-v0": ((0, 1), ("position", "velocity"), (-1.2, 0.6), (-0.07, 0.07)),
}


class StateSpace(Blitted):
    """Where the policy pushes and what the discriminator thinks of it, on a plane of states.

    Left: the mean push, from −1 (left) to 1 (right). Right: the mean D over the policy's actions,
    the probability that it is not the expert who acts. Dots are states of the expert's. `figure` is
    drawn for `run` and `title`; `show` draws the same game at another moment into it.
    Raises InputError for an environment that PLANES has no plane of.
    """

    def __init__(self, run: Run, title: str = "", points: int = 61):
        environment, self.points = run.game.agent.environment, points
        if environment not in PLANES:
            raise InputError(f"No plane of {environment} to draw: add one to show.gail.PLANES.")
        (i, j), names, *ranges = PLANES[environment]
        expert = run.game.expert[0].cpu().numpy() * run.game.agent.std + run.game.agent.mean
        dotted = expert[:: max(1, len(expert) // 300)]
        plane = np.meshgrid(*(np.linspace(*ends, points) for ends in ranges))
        self.states = np.zeros((points * points, expert.shape[1]), np.float32)
        self.states[:, i], self.states[:, j] = (a.ravel() for a in plane)
        figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharex=True, sharey=True)
        looks = (("mean push of the policy", "PuOr", -1), ("mean D of its actions", "cividis", 0))
        self.title, self.images = figure.suptitle(title), []
        moving: list[Artist] = [self.title]
        blank = np.zeros((points, points))
        place: dict[str, Any] = {"extent": (*ranges[0], *ranges[1]), "origin": "lower"}
        for ax, (name, colours, low) in zip(axes, looks, strict=True):
            image = ax.imshow(blank, cmap=colours, vmin=low, vmax=1, aspect="auto", **place)
            x, y = dotted[:, i], dotted[:, j]
            dots = ax.scatter(x, y, s=6, c="k", edgecolors="w", linewidths=0.4)
            ax.set(title=name, xlabel=names[0], xlim=ranges[0], ylim=ranges[1])
            ax.grid(False)
            figure.colorbar(image, ax=ax)
            self.images.append(image)
            moving += [image, dots]
        axes[0].set_ylabel(names[1])
        super().__init__(figure, moving)
        self.show(run, title)

    def show(self, run: Run, title: str = "") -> None:
        """Put the players of `run` into the picture; `png` then draws only what changes."""
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
        self.title.set_text(title)


def explorer(store: Store, environment: str) -> widgets.Widget:
    """Scrub through a finished training: method, seed and iteration; nothing is trained again."""
    method = widgets.Dropdown(options=METHODS, description="method")
    seed = widgets.Dropdown(options=seeds(store), description="seed")
    moment = widgets.SelectionSlider(options=[0], description="iteration")
    image = Described(format="png", width=900)
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
        setting = gail_recipe(environment, method.value, store.profile.name)
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
    run = roll_out(envs, agent.steps, agent.policy(), [seed])
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
