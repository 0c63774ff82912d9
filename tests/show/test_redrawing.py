"""Explorers redraw one picture in place."""

from io import BytesIO

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from l2lkit.show import widgets


def test_explorer_redraws_one_picture_and_puts_errors_in_words():
    box = widgets.limiting_cycle_explorer()
    (method, step, steps, x, y), result, image = box.children[0].children, *box.children[1:]
    first = bytes(image.value)
    assert first.startswith(b"\x89PNG")
    step.value = 0.5
    assert image.value != first and "1.000 →" in result.value
    for name in method.options:
        method.value = name
        assert "Distance" in result.value and name in image.tooltip
    x.value, y.value = -0.6, 0.8
    assert "1.000 →" in result.value
    y.value = 2
    assert "2.088 →" in result.value  # the root of 0.36 + 4
    x.value, y.value = 1, 0
    method.value, step.value = "simultaneous", 1.0
    last = bytes(image.value)
    steps.value = 5000
    assert "range of floats" in result.value and image.value == last
    assert not plt.get_fignums()


def test_a_moving_line_is_drawn_where_it_is_asked_for():
    fig, ax = plt.subplots()
    ax.plot([0, 10], [0, 0], alpha=0)
    ax.set(xlim=(0, 10), frame_on=False, xticks=[], yticks=[])
    ax.grid(False)
    marked = widgets.Marked(fig, [ax])
    assert not plt.get_fignums()
    for x in (2, 9, 2):
        pixels = np.asarray(Image.open(BytesIO(marked.at(x))).convert("L"))
        dark = np.argwhere(pixels < 100)[:, 1]
        centre = ax.transData.transform((x, 0))[0]
        assert len(dark) and abs(dark - centre).max() < 4
