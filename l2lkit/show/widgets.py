"""Controls for notebooks. Each explorer redraws one picture in place: no flicker, no pile of plots.

Without a kernel the sliders do nothing; `show.cards.page`, part of the report, is the explorer
that works without one.
"""

from collections.abc import Sequence
from typing import Any

import ipywidgets as widgets
import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from traitlets import Unicode

from l2lkit.checks.attacks import EPSILON
from l2lkit.errors import InputError
from l2lkit.game import toy
from l2lkit.game.fixed import PGM
from l2lkit.game.solver import Solver
from l2lkit.recipes import DEFENCES
from l2lkit.results import experiments, tables
from l2lkit.runs.store import Store
from l2lkit.show import cards, plots
from l2lkit.show.blit import Blitted

WRAP = widgets.Layout(flex_flow="row wrap", align_items="center")


class Described(widgets.Image):
    """An image whose `tooltip` says what it shows: its title, and its name to a screen reader.
    ipywidgets asks for a description before it shows one, which its own Image lacks."""

    description = Unicode("").tag(sync=True)


class Marked(Blitted):
    """A figure with a line across `axes` at a place that changes; the figure is closed."""

    def __init__(self, fig: Figure, axes: Sequence[Axes]):
        for ax in axes:
            ax.set_xlim(ax.get_xlim())
        self.lines = [ax.axvline(ax.get_xlim()[0], color="0.1", lw=2, ls="--") for ax in axes]
        plt.close(fig)
        super().__init__(fig, self.lines)

    def at(self, x: float) -> bytes:
        """PNG bytes of the figure with the line at x."""
        for line in self.lines:
            line.set_xdata([x, x])
        return self.png()


def toggles(names: Sequence[str], chosen: Sequence[str]) -> list[widgets.ToggleButton]:
    layout = widgets.Layout(width="auto")
    return [
        widgets.ToggleButton(value=name in chosen, description=name, layout=layout)
        for name in names
    ]


# The game in two numbers -----------------------------------------------------------------------


def limiting_cycle_explorer() -> widgets.Widget:
    """Method, step size, number of steps and start of the two-number game: its path on the field
    of update directions, and its radius.

    ICLR 2020 version, Appendix D. A path that leaves the range of floats is reported in words.
    """
    method = widgets.Dropdown(options=[*toy.METHODS, "learned"], description="method")
    step = widgets.FloatLogSlider(
        value=0.1, base=10, min=-3, max=0, step=0.05, readout_format=".3f", description="step size"
    )
    steps = widgets.IntSlider(value=300, min=10, max=5000, step=10, description="steps")
    x, y = (
        widgets.FloatSlider(value=v, min=-2, max=2, step=0.1, description=f"start {name}")
        for name, v in (("x", 1.0), ("y", 0.0))
    )
    result, image = widgets.HTML(), Described(format="png", width=900)

    def draw(_: Any = None) -> None:
        start = (x.value, y.value)
        try:
            if method.value == "learned":
                path, _coefficients = toy.play_learned(step.value, steps.value, start=start)
            else:
                path = toy.play(method.value, step.value, steps.value, start)
        except InputError as error:
            result.value = str(error)
            return
        r = toy.radius(path)
        with mpl.rc_context({"figure.constrained_layout.use": False}):  # it takes a third longer
            fig = plots.cycle({method.value: path}, step.value)
        fig.subplots_adjust(left=0.08, right=0.98, bottom=0.2, top=0.97)
        image.value = Blitted(fig).png()
        plt.close(fig)
        words = f"Distance from the equilibrium: {r[0]:.3f} → {r[-1]:.3g}"
        result.value = words
        image.tooltip = f"Path of {method.value} steps of {step.value:.3g}. {words}"

    controls = (method, step, steps, x, y)
    for control in controls:
        control.observe(draw, names="value")
    draw()
    return widgets.VBox([widgets.HBox(controls, layout=WRAP), result, image])


# Accuracy against ε and steps ------------------------------------------------------------------


def robustness_explorer(store: Store, names: Sequence[str] = DEFENCES) -> widgets.Widget:
    """Accuracy against ε (FGSM, PGM-10) or against the steps of PGM, on the measured points: a
    line follows the slider, and a table has the exact values there, in %, mean ± deviation over
    seeds, beside what the papers print for that attack at ε = 0.031.
    """
    radii = experiments.against_epsilon(store, names)
    steps = experiments.against_steps(store, names)
    curves = {
        f"{attack} against ε": radii[radii.attack == attack].rename(columns={"epsilon": "ε"})
        for attack in ("FGSM", "PGM-10")
    }
    curves["PGM-T against T"] = steps.rename(columns={"steps": "T"})
    printed = tables.compare(store, names)
    attack = widgets.Dropdown(options=list(curves), index=2, description="attack")
    place = widgets.SelectionSlider(options=[0], description="ε", layout={"width": "360px"})
    methods = toggles(list(dict.fromkeys(radii.defence)), list(dict.fromkeys(radii.defence)))
    image, table = Described(format="png", width=800), widgets.HTML()
    p = store.profile
    tested = {"ε": len(store.images(p.curve_images)[0]), "T": len(store.images(p.eval_images)[0])}
    drawn: list[Marked] = []

    def chosen() -> tuple[pd.DataFrame, str]:
        frame = curves[attack.value]
        return frame[frame.defence.isin([m.description for m in methods if m.value])], (
            "T" if "T" in frame else "ε"
        )

    def redraw(_: Any = None) -> None:
        frame, x = chosen()
        fine = frame[frame.status == "ok"]
        xlabel = "PGM steps T, ε = 0.031" if x == "T" else "ε"
        fig = plots.accuracy_curves(fine, x, xlabel=xlabel)
        drawn[:] = [Marked(fig, fig.axes)]
        options = sorted(curves[attack.value][x].unique().tolist())
        if list(place.options) != options:
            place.unobserve(move, names="value")
            near = EPSILON if x == "ε" else 20
            place.options, place.description = options, x
            place.value = min(options, key=lambda v: abs(v - near))
            place.observe(move, names="value")
        move()

    def move(_: Any = None) -> None:
        frame, x = chosen()
        here = frame[frame[x] == place.value].assign(attack=attack.value)
        image.value = drawn[0].at(place.value)
        image.tooltip = f"Accuracy under {attack.value}, with a line at {x} = {place.value}"
        measured = experiments.summary(here, [attack.value])
        measured.columns = [f"measured at {x} = {place.value} (%)", "seeds"]
        family = attack.value.split()[0].replace("-T", f"-{place.value}")
        paper = printed[printed.attack == family].set_index("defence")
        if x == "ε" and place.value != EPSILON:
            paper = paper.iloc[:0]
        measured["published (%)"] = paper.published.reindex(measured.index)
        source = (paper.table + ", " + paper.dataset).where(paper.table != "", "")
        measured["published in"] = source.reindex(measured.index)
        table.value = (
            f"<style>{cards.STYLE}</style>"
            + measured.reset_index().to_html(
                index=False, border=0, na_rep="not printed", classes="l2l-table"
            )
            + f"<p>{store.caption(images=tested[x])} Published: the worst of five runs at "
            "ε = 0.031, large networks; another experiment, for comparison only.</p>"
        )

    place.observe(move, names="value")
    for control in (attack, *methods):
        control.observe(redraw, names="value")
    redraw()
    rows = [widgets.HBox([attack, place], layout=WRAP), widgets.HBox(methods, layout=WRAP)]
    return widgets.VBox([*rows, image, table])


# Training, epoch by epoch ----------------------------------------------------------------------


def training_replay(store: Store, names: Sequence[str] = DEFENCES) -> widgets.Widget:
    """Scrub through the epochs of a finished training (the store's first seed): its losses and
    accuracies with a line at the epoch, and one test image under PGM-20 and under the attacker
    that was learning, as the players were then. The players come from `Store.epoch`."""
    labels = {store.recipe(name).defence: name for name in names}
    start = "grad" if "grad" in names else names[0]
    defence = widgets.Dropdown(options=labels, value=start, description="defence")
    epoch = widgets.IntSlider(value=1, min=1, max=1, description="epoch")
    image, deck = Described(format="png", width=800), cards.Deck()
    index = experiments.example(store)
    label, x = int(store.data.test_labels[index]), store.data.test_images[index].float() / 255
    drawn: list[Marked] = []

    def choose(_: Any = None) -> None:
        model = store.model(defence.value, store.seed)
        frame = model.log.assign(defence=model.defence, seed=store.seed)
        fig = plots.training_curves(frame)
        drawn[:] = [Marked(fig, fig.axes)]
        epoch.max = len(model.log)
        if epoch.value == len(model.log):
            move()
        epoch.value = len(model.log)

    def move(_: Any = None) -> None:
        then = store.epoch(defence.value, epoch.value)
        image.value = drawn[0].at(epoch.value)
        row = then.log.iloc[-1]
        image.tooltip = (
            f"Training of {then.defence}; after epoch {epoch.value}: clean accuracy "
            f"{row.clean_accuracy:.0%}, under PGM-10 {row.adv_accuracy:.0%}"
        )
        attacks: dict[str, Solver] = {"PGM-20": PGM(epsilon=EPSILON)}
        if then.own_attack:
            attacks["own attacker"] = then.own_attack
        shown = []
        for name, attack in attacks.items():
            with store.computing():
                attacked = cards.attack_image(then.classifier, attack, x, label, index)
            shown.append((f"{name}, after epoch {epoch.value}", name, attacked))
        deck.show(store.data, index, shown)

    defence.observe(choose, names="value")
    epoch.observe(move, names="value")
    choose()
    return widgets.VBox([widgets.HBox([defence, epoch], layout=WRAP), image, deck])
