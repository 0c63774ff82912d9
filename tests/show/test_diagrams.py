"""The diagrams show what the code does: a box for every pass."""

from dataclasses import replace

import pytest
import torch
from matplotlib.patches import FancyArrowPatch

from l2lkit import recipes
from l2lkit.errors import InputError
from l2lkit.game.step import Players, step
from l2lkit.show import diagrams

pytestmark = pytest.mark.usefixtures("theme")


def boxes(fig, letter: str) -> list[str]:
    """The labels of the boxes of the network f or g."""
    texts = [t.get_text() for ax in fig.axes for t in ax.texts]
    return [t for t in texts if f"${letter}(" in t]


@pytest.mark.parametrize("steps", [0, 1, 2, 4])
def test_the_game_diagram_has_a_box_for_every_pass_of_a_training_step(colours, steps):
    recipe = recipes.at_scale(recipes.recipe("grad"), recipes.profile("smoke"))
    recipe = replace(recipe, attack=replace(recipe.attack, steps=steps))
    players = Players.build(recipe, colours, torch.device("cpu"))
    passes = []
    players.classifier.register_forward_hook(lambda *_: passes.append("f"))
    players.attack.network.register_forward_hook(lambda *_: passes.append("g"))
    step(players, colours.train_images[:4].float() / 255, colours.train_labels[:4])

    fig = diagrams.game_diagram(steps)
    drawn = {int(t.split()[1]): "f" for t in boxes(fig, "f")}
    drawn |= {int(t.split()[1]): "g" for t in boxes(fig, "g")}
    assert [drawn[i + 1] for i in range(len(drawn))] == passes
    dashed = [a for a in fig.axes[0].patches if isinstance(a, FancyArrowPatch)]
    assert sum(a.get_linestyle() == "--" for a in dashed) == steps  # the gradient queries


def test_the_attacker_diagram_has_a_row_for_each_number_of_steps():
    fig = diagrams.attacker_diagram((0, 1, 3))
    names = [ax.get_title("left").split(":")[0] for ax in fig.axes]
    assert names == ["Naive L2L", "Grad L2L", "3-Step L2L"]
    assert len(boxes(fig, "f")) == 0 + 1 + 3 and len(boxes(fig, "g")) == 1 + 1 + 3


@pytest.mark.parametrize(
    ("channels", "skip"), [((128, 256), "conv 1×1\n256"), ((64, 64), "as it is")]
)
def test_the_block_is_that_of_the_figure(channels, skip):
    """ICLR 2020, Figure 7: norm, PReLU and convolution, twice, and the way past them."""
    texts = [t.get_text() for t in diagrams.block_diagram(*channels).axes[0].texts]
    half = ["batch norm", "PReLU", f"conv 3×3\n{channels[1]}"]
    assert texts == ["$h$", *half, *half, "$+$", "$h'$", skip]


def test_the_generators_see_what_their_equations_say():
    """L2L-DA, equations 4 and 5: x and the gradient; x, y, z, δ and the gradient, and again."""
    fig = diagrams.generator_diagram()
    arrows = [sum(isinstance(p, FancyArrowPatch) for p in ax.patches) for ax in fig.axes]
    assert arrows == [4, 8]  # of them into g: 2 and 5
    assert [t.get_text() for t in fig.axes[1].texts if "sim" in t.get_text()]


def test_diagrams_refuse_what_no_attacker_does():
    with pytest.raises(InputError, match="0 steps or more"):
        diagrams.game_diagram(-1)
    with pytest.raises(InputError, match="0 steps or more"):
        diagrams.attacker_diagram((1, -2))
    with pytest.raises(InputError, match="at least one"):
        diagrams.attacker_diagram(())
