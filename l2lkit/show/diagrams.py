"""The learned attackers, their parts and one training step, as boxes and arrows."""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch
from matplotlib.patches import FancyBboxPatch as Box
from torch import nn

from l2lkit.errors import InputError
from l2lkit.game.networks import ResBlock
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
        name = {0: "Naive L2L: no query", 1: "Grad L2L: one query", 2: "2-Step L2L: two queries"}
        words = name.get(k, f"{k}-Step L2L: {k} queries")
        ax.set_title(words, loc="left", fontweight="bold")
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


def block_diagram(cin: int = 128, cout: int = 256) -> Figure:
    """The attackers' residual block, read off the module that plays (ICLR 2020, Figure 7)."""
    block = ResBlock(cin, cout)
    words = ["$h$", *(_layer(m) for m in block.body), "$+$", "$h'$"]
    end = 1.5 * (len(words) - 1)
    fig, ax = plt.subplots(figsize=(0.95 * end + 1, 3))
    _canvas(ax, (-0.8, end + 0.8), (-0.6, 2.1))
    boxes = [_box(ax, 1.5 * i, 0, text, width=1.15) for i, text in enumerate(words)]
    for before, after in zip(boxes, boxes[1:], strict=False):
        _arrow(ax, before, after, _FORWARD)
    skip = _box(ax, end / 2 - 0.75, 1.6, _layer(block.skip), width=1.15)
    _arrow(ax, boxes[0], skip, _FORWARD, -0.2)
    _arrow(ax, skip, boxes[-2], _FORWARD, -0.2)
    return fig


def _layer(module: nn.Module) -> str:
    """A layer in a few words, two lines where it has sizes."""
    if isinstance(module, nn.Conv2d):
        k, c = module.kernel_size[0], module.out_channels
        return f"conv {k}×{k}\n{c}"
    if isinstance(module, nn.Identity):
        return "as it is"
    return {"BatchNorm2d": "batch norm"}.get(type(module).__name__, type(module).__name__)


def generator_diagram() -> Figure:
    """The attacker of L2L beside the generator of L2L-DA (its Figure 1): what each sees, and that
    the second one's answer is among its next inputs."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.9), width_ratios=(3.4, 4.4))
    for ax, inputs, out, title in (
        (left, ("$x$",), "$\\delta$", "(a) L2L: once"),
        (
            right,
            ("$x$", "$y$", "$z\\sim\\mathcal{N}(0, I)$"),
            "$\\delta^{(t+1)}$",
            "(b) L2L-DA: T times",
        ),
    ):
        recursive = len(inputs) > 1
        _canvas(ax, (-1.2, 5.3 if recursive else 4.5), (-2.6, 2.7))
        ax.set_title(title, loc="left", fontweight="bold")
        f, g = _box(ax, 1.2, 2, _F, _CLASSIFIER), _box(ax, 1.8, 0, _G, _ATTACKER)
        seen = [
            _box(ax, -0.2, -1.1 * i, text, width=1.7 if "sim" in text else 0.7)
            for i, text in enumerate(inputs)
        ]
        answer = _box(ax, 3.8, 0, out, width=0.95)
        for box in seen:
            _arrow(ax, box, g, _FORWARD)
        _arrow(ax, seen[0], f, _FORWARD)
        _arrow(ax, f, g, _QUERY)
        _arrow(ax, g, answer, _FORWARD)
        ax.text(1.75, 1, "$\\nabla_x\\ell$", color=PALETTE[0])
        if recursive:
            _arrow(ax, answer, f, _FORWARD, 0.3)
            _arrow(ax, answer, g, _FORWARD, -0.6)
            ax.text(3.4, -1.3, "$\\delta^{(t)}$: the next time round", ha="center")
    _legend(fig, [_FORWARD, _QUERY])
    return fig


def _canvas(ax: Axes, x: tuple[float, float], y: tuple[float, float]) -> None:
    ax.set_aspect("equal")
    ax.axis("off")
    ax.set(xlim=x, ylim=y)


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
