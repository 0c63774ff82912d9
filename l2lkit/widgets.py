"""Controls for notebooks. Each explorer redraws one picture in place: no flicker, no pile of plots.

Without a live front end the sliders do nothing, so notebooks also show a fixed figure.
"""

from io import BytesIO
from typing import Any

import ipywidgets as widgets
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from l2lkit import figures, minimax
from l2lkit.errors import InputError


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

    for control in (method, step, steps):
        if control is not method:
            control.continuous_update = False
        control.observe(draw, names="value")
    draw()
    return widgets.VBox([widgets.HBox([method, step, steps]), result, image])
