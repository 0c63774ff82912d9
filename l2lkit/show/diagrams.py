"""The learned attackers and one training step, as boxes and arrows."""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch
from matplotlib.patches import FancyBboxPatch as Box

from l2lkit.errors import InputError
from l2lkit.show.style import PALETTE

_FORWARD = {"color": "0.15", "ls": "-", "lw": 1.5, "label": "forward"}
_QUERY = {"color": PALETTE[0], "ls": "--", "lw": 1.8}
_QUERY["label"] = "backward to the image: $\\nabla_x\\ell$, a constant to the attacker"
_BACKWARD = {"color": PALETTE[3], "ls": ":", "lw": 2.2}
_BACKWARD["label"] = "backward from the adversarial loss, to both players' weights"
_CLASSIFIER, _ATTACKER = "#d6e6f2", "#fbe8cc"
_F, _G = "$f(\\cdot\\,;\\theta)$", "$g(\\cdot\\,;\\phi)$"


def attacker_diagram(steps: Sequence[int] = (0, 1, 2)) -> Figure:
    """The learned attackers unrolled, a row for each number of steps K: 0 sees the image alone
    (Naive L2L), K ≥ 1 queries the classifier's gradient K times (Grad L2L is 1) and uses the same
    network each time. ICLR 2020, Figure 2. Raises InputError for no rows or a negative K."""
    if not steps:
        raise InputError("Name at least one number of steps to draw, as (0, 1, 2).")
    heights = [2.9 if k else 2.0 for k in steps]
    width = 3 * max(*steps, 1) + 1.5
    fig = plt.figure(figsize=(1.15 * width, 1.1 * sum(heights) + 0.8))
    rows = fig.subplots(len(steps), squeeze=False, height_ratios=heights)[:, 0]
    for ax, k, height in zip(rows, steps, heights, strict=True):
        _unroll(ax, k)
        name = {0: "Naive L2L: no query", 1: "Grad L2L: one query"}.get(k)
        ax.set_title(name or f"{k}-Step L2L: {k} queries", loc="left", fontweight="bold")
        ax.set(xlim=(-0.7, width - 0.8), ylim=(-0.5, height - 0.5))
    _legend(fig, [_FORWARD, _QUERY] if any(steps) else [_FORWARD])
    return fig


def game_diagram(steps: int = 1) -> Figure:
    """One training step of L2L whose attacker takes `steps` steps: every pass through a network
    as a box, in the order of time, and the way of the adversarial loss's gradient back to the
    weights θ and φ. ICLR 2020, Figure 3 (`steps` = 1: three passes). InputError if negative."""
    end = 3 * max(steps, 1)
    fig, ax = plt.subplots(figsize=(1.15 * (end + 3.4), 6.6))
    boxes = _unroll(ax, steps, "pass {}\n")
    image, passes = boxes[end, 1], steps + end // 3 + 1
    last = boxes[end + 1, 2] = _box(ax, end + 1, 2, f"pass {passes}\n{_F}", _CLASSIFIER)
    loss = _box(ax, end + 2.3, 1, "$\\ell$", width=0.6)
    x, width = end / 2 + 1, end + 1.2
    theta = _box(ax, x, 3.4, "$\\theta$, the classifier: steps down", _CLASSIFIER, width)
    phi = _box(ax, x, -1.4, "$\\phi$, the attacker: steps up", _ATTACKER, width)
    for y, weights in ((2, 3.4), (0, -1.4)):
        ax.vlines([x for x, row in boxes if row == y], y, weights, color="0.6", lw=1, zorder=0)
    _arrow(ax, image, last, _FORWARD)
    _arrow(ax, last, loss, _FORWARD)
    _arrow(ax, loss, last, _BACKWARD, 0.35)
    _arrow(ax, last, theta, _BACKWARD, right=0.25)
    _arrow(ax, last, image, _BACKWARD, 0.35)
    for k in range(0, end, 3):
        before, attacker, after = boxes[k, 1], boxes[k + 2, 0], boxes[k + 3, 1]
        _arrow(ax, after, attacker, _BACKWARD, 0.35)
        _arrow(ax, attacker, phi, _BACKWARD, right=0.25)
        if k:  # x itself needs no gradient
            _arrow(ax, after, before, _BACKWARD, 0.2)
            _arrow(ax, attacker, before, _BACKWARD, 0.35)
    ax.set(xlim=(-0.7, end + 2.8), ylim=(-2, 4))
    _legend(fig, [_FORWARD, _QUERY, _BACKWARD] if steps else [_FORWARD, _BACKWARD])
    return fig


def _unroll(ax: Axes, steps: int, words: str = "") -> dict[tuple[float, float], Box]:
    """Draw an attacker's passes from left to right: the images x, x + δ, …, the classifier's
    gradient queries above them and the attacker's passes below. `words` may number the passes.
    The boxes by their centres: images at (0, 1), (3, 1), …, the networks between them."""
    if steps < 0:
        raise InputError(f"An attacker takes 0 steps or more, not {steps}.")
    ax.set_aspect("equal")
    ax.axis("off")
    boxes = {(0.0, 1.0): _box(ax, 0, 1, "$x$", width=0.7)}
    for k in range(1, max(steps, 1) + 1):
        x, before, turn = 3 * k, boxes[3 * k - 3, 1], f"^{{({k})}}" if steps > 1 else ""
        after = boxes[x, 1] = _box(ax, x, 1, f"$x+\\delta{turn}$", width=0.95)
        number = words.format(2 * k if steps else 1)
        attacker = boxes[x - 1, 0] = _box(ax, x - 1, 0, number + _G, _ATTACKER)
        _arrow(ax, before, after, _FORWARD)
        _arrow(ax, before, attacker, _FORWARD)
        _arrow(ax, attacker, after, _FORWARD)
        if steps:
            number = words.format(2 * k - 1)
            query = boxes[x - 2, 2] = _box(ax, x - 2, 2, number + _F, _CLASSIFIER)
            _arrow(ax, before, query, _FORWARD)
            _arrow(ax, query, attacker, _QUERY)
            ax.text(x - 1.6, 1.4, "$\\nabla_x\\ell$", color=PALETTE[0])
    return boxes


def _box(ax: Axes, x: float, y: float, text: str, colour: str = "white", width: float = 1) -> Box:
    ax.text(x, y, text, ha="center", va="center", fontsize=11)
    shape = "round,pad=0.03,rounding_size=0.1"
    box = Box((x - width / 2, y - 0.3), width, 0.6, shape, facecolor=colour, edgecolor="0.2")
    ax.add_patch(box)
    return box


def _arrow(ax: Axes, start: Box, end: Box, look: dict, bend: float = 0, right: float = 0) -> None:
    """An arrow between two boxes, bent to its right by `bend`; with `right`, an upright one that
    far right of the start's centre."""
    (x, y), (to_x, to_y) = (box.get_bbox().get_points().mean(axis=0) for box in (start, end))
    if right:
        x = to_x = x + right
    look = {"arrowstyle": "-|>", "mutation_scale": 13, "shrinkA": 1, "shrinkB": 1} | look
    look |= {"patchA": start, "patchB": end, "connectionstyle": f"arc3,rad={bend}"}
    ax.add_patch(FancyArrowPatch((x, y), (to_x, to_y), **look))


def _legend(fig: Figure, looks: Sequence[dict[str, Any]]) -> None:
    handles = [Line2D([], [], **look) for look in looks]
    fig.legend(handles=handles, loc="outside lower center", frameon=False)
