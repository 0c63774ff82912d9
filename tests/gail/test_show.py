"""Pictures of GAIL: every run is in them, and what moves is drawn where it belongs."""

from io import BytesIO

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

from l2lkit.errors import InputError
from l2lkit.gail.environments import ENVIRONMENTS
from l2lkit.gail.game import METHODS, gail_recipe
from l2lkit.results.gail import curves, trained
from l2lkit.show import gail as views
from l2lkit.show.blit import Blitted


def test_pictures_show_every_run_and_the_slider_moves_without_training(store):
    table = curves(store, methods=METHODS[:2])
    bands, single = views.learning_curves(table), views.seed_curves(table)
    assert [ax.get_title() for ax in bands.axes] == list(ENVIRONMENTS)
    labels = [text.get_text() for text in bands.legends[0].get_texts()]
    assert labels == ["GAIL", "L2L GAIL", "expert", "chance"]
    assert [len(ax.lines) for ax in bands.axes] == [2 * (1 + 2) + 2] * 2  # means, seeds, marks
    for ax, (_, runs) in zip(
        single.axes, table.groupby(["environment", "defence"], sort=False), strict=False
    ):
        scores = runs.pivot(index="seed", columns="iteration", values="score")
        np.testing.assert_array_equal(ax.images[0].get_array(), scores)
    cells = views.seed_curves(table, cells=2).axes[0].images[0].get_array()
    run = table[(table["environment"] == ENVIRONMENTS[0]) & (table["defence"] == "GAIL")]
    half = run[(run["seed"] == 0) & (run["iteration"] <= -(-run["iteration"].max() // 2))]
    assert cells[0, 0] == half["score"].min()
    explorer = views.explorer(store, "MountainCar-v0")
    store.on_progress = lambda *_: pytest.fail("the slider trains")
    controls, image = explorer.children
    last = image.value
    controls.children[2].value = 1
    assert image.value != last
    controls.children[2].value = 8
    assert image.value == last


def test_the_state_space_is_drawn_anew_as_it_would_be_drawn_at_first(store):
    whole = trained(store, gail_recipe("MountainCar-v0", "GAIL", "smoke"), 0)
    drawn, run = views.StateSpace(whole.at(1), "one"), whole.at(8)
    first = drawn.png()
    with torch.no_grad():
        run.game.discriminator.net[-1].bias.add_(1)
    drawn.show(run, "two")
    fresh = views.StateSpace(run, "two").png()
    assert drawn.png() != first
    a, b = (np.array(Image.open(BytesIO(png))) for png in (drawn.png(), fresh))
    assert (a == b).all()
    push, doubt = (np.asarray(image.get_array()) for image in drawn.images)
    state = np.array([[-1.2 + 1.8 * 40 / 60, -0.07 + 0.14 * 10 / 60]], np.float32)
    chances = torch.from_numpy(run.game.agent.logits(state)).softmax(1)[0]
    assert push[10, 40] == pytest.approx((chances[2] - chances[0]).item(), abs=1e-5)
    seen = torch.from_numpy(run.game.agent.standardised(state)).repeat(3, 1)
    d = torch.sigmoid(run.game.discriminator(seen, torch.arange(3)))
    assert doubt[10, 40] == pytest.approx((chances * d).sum().item(), abs=1e-5)


def test_a_picture_that_moves_is_saved_whole_all_the_same():
    fig, ax = plt.subplots()
    ax.set(xlim=(0, 10), ylim=(0, 1), frame_on=False, xticks=[], yticks=[])
    ax.grid(False)
    (line,) = ax.plot([2, 2], [0, 1], "k")
    moving, saved = Blitted(fig, [line]), BytesIO()
    first = moving.png()
    line.set_xdata([7, 7])
    assert moving.png() != first
    fig.savefig(saved, format="png", dpi=100)
    for png in (BytesIO(moving.png()), saved):
        columns = np.argwhere(np.array(Image.open(png).convert("L")) < 100)[:, 1]
        assert len(columns) and abs(columns - ax.transData.transform((7, 0))[0]).max() < 4
    plt.close(fig)


def test_the_film_shows_each_episode_to_its_end(agent):
    rolling = np.linspace(-1, 1, 90)[:, None] * np.array([1, 0, 0.2, 0])
    short, long = rolling[:30], rolling
    film = Image.open(BytesIO(views.film({"a": short, "b": long}, "CartPole-v1")))
    assert film.size == (480, 170) and film.n_frames == 91  # the last one stays
    frames = []
    for i in (20, 29, 45, 89):
        film.seek(i)
        frames.append(np.array(film.convert("L"))[45:])
    left, right = ([frame[:, half] for frame in frames] for half in (slice(240), slice(240, 480)))
    assert (left[0] != left[1]).any() and (left[1] == left[3]).all()
    assert (right[1] != right[2]).any() and (right[2] != right[3]).any()
    with pytest.raises(InputError, match="Nothing here draws Acrobot-v1"):
        views.film({"a": short}, "Acrobot-v1")
    assert len(views.episode(agent, seed=3)) == abs(agent.evaluate(1, seed=3)[0])
