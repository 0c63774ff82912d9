"""Controls for notebooks. Each explorer redraws one picture in place: no flicker, no pile of plots.

Without a live front end the sliders do nothing, so notebooks also show a fixed figure.
"""

from io import BytesIO
from typing import Any

import ipywidgets as widgets
import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure

from l2lkit import experiments, figures, minimax
from l2lkit.errors import InputError
from l2lkit.recipes import DEFENCES
from l2lkit.store import Store


def picture(fig: Figure) -> bytes:
    """The figure as PNG bytes (100 dpi), for `ipywidgets.Image.value`; the figure is closed."""
    buffer = BytesIO()
    fig.savefig(buffer, format="png", dpi=100)
    plt.close(fig)
    return buffer.getvalue()


def limiting_cycle_explorer() -> widgets.Widget:
    """Method, step size and number of steps of the two-number game: its path and its radius.

    ICLR 2020 version, Appendix D. A path that leaves the range of floats is reported in words.
    """
    method = widgets.Dropdown(options=[*minimax.METHODS, "learned"], description="method")
    step = widgets.FloatLogSlider(
        value=0.1, base=10, min=-3, max=0, step=0.05, readout_format=".3f", description="step size"
    )
    steps = widgets.IntSlider(value=300, min=10, max=5000, step=10, description="steps")
    result, image = widgets.HTML(), widgets.Image(format="png", width=900)

    def draw(_: Any = None) -> None:
        try:
            if method.value == "learned":
                path, _coefficients = minimax.play_learned(step.value, steps.value)
            else:
                path = minimax.play(method.value, step.value, steps.value)
        except InputError as error:
            result.value = str(error)
            return
        r = minimax.radius(path)
        image.value = picture(figures.cycle({method.value: path}, step.value))
        result.value = f"Distance from the equilibrium: {r[0]:.3f} → {r[-1]:.3g}"

    step.continuous_update = steps.continuous_update = False
    for control in (method, step, steps):
        control.observe(draw, names="value")
    draw()
    return widgets.VBox([widgets.HBox([method, step, steps]), result, image])


def perturbation_explorer(store: Store) -> widgets.Widget:
    """One test image under attack: choose image, classifier, attack, ε and magnification.

    Shows the clean image, the adversarial one, the perturbation magnified (grey is zero) and the
    classifier's probabilities before and after. ICLR 2020 version, Figure 5 and Figure 9's ε.
    """
    names = {store.recipe(name).defence: name for name in DEFENCES}
    index = widgets.IntSlider(
        value=experiments.example(store), max=len(store.data.test_images) - 1, description="image"
    )
    defence = widgets.Dropdown(options=names, value="2step", description="classifier")
    labels = list(experiments.named_attacks(store, store.seed))
    attack = widgets.Dropdown(options=labels, value="PGM-20", description="attack")
    epsilon = widgets.FloatSlider(
        value=experiments.EPSILON, max=0.1, step=0.001, readout_format=".3f", description="ε"
    )
    times = widgets.ToggleButtons(options=[("1×", 1), ("5×", 5), ("30×", 30)], value=30)
    image = widgets.Image(format="png", width=900)

    def draw(_: Any = None) -> None:
        model = store.model(defence.value, store.seed)
        attacks = experiments.named_attacks(store, store.seed, epsilon.value)
        shown = experiments.panel(store, model, attack.value, attacks[attack.value], index.value)
        with torch.no_grad():
            pair = torch.stack([shown.image, shown.image + shown.perturbation])
            chances = model.classifier(pair).softmax(1)
        image.value = picture(
            figures.perturbation_view(shown, times.value, chances, store.data.class_names)
        )

    index.continuous_update = epsilon.continuous_update = False
    for control in (index, defence, attack, epsilon, times):
        control.observe(draw, names="value")
    draw()
    rows = [widgets.HBox([defence, attack, index]), widgets.HBox([epsilon, times])]
    return widgets.VBox([*rows, image])
