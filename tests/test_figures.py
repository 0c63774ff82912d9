"""Figures: what is drawn, and how it is saved."""

import json

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from l2lkit import figures, minimax, widgets
from l2lkit.errors import InputError

mpl.use("Agg")


@pytest.fixture(autouse=True)
def style():
    with mpl.rc_context():
        figures.use_style()
        yield
    plt.close("all")


def training_log(defences=("PGM Net", "Grad L2L"), seeds=(0, 1)) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "defence": defence,
            "seed": seed,
            "epoch": epoch,
            "clean_loss": 1 / epoch,
            "clean_accuracy": 1 - 0.5 / epoch - 0.01 * seed,
            "adv_loss": 2 / epoch,
            "adv_accuracy": 0.5 - 0.2 / epoch + 0.02 * seed,
            "delta": 0.8,
        }
        for defence in defences
        for seed in seeds
        for epoch in range(1, 5)
    )


def panels(channels=3, columns=("PGM Net", "2-Step L2L")) -> list[figures.Panel]:
    image = torch.rand(channels, 8, 8, generator=torch.Generator().manual_seed(0))
    return [
        figures.Panel(row, column, image, image.sign() * 0.03, "cat", predicted, 0.9)
        for row, predicted in (("FGSM", "cat"), ("PGM-20", "dog"))
        for column in columns
    ]


def curve() -> plt.Figure:
    fig, ax = plt.subplots()
    ax.plot([0, 1], [1, 0])
    ax.set_title("ε = 0.031")
    return fig


def test_save_writes_picture_vector_and_caption(tmp_path):
    path = figures.save(curve(), tmp_path / "new" / "place", "one", "A line, ε ± 0.", {"seed": 3})
    assert path == tmp_path / "new" / "place" / "one.png"
    assert sorted(p.name for p in path.parent.iterdir()) == ["one.json", "one.png", "one.svg"]
    about = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    assert about == {"caption": "A line, ε ± 0.", "provenance": {"seed": 3}}
    assert json.loads(Image.open(path).info["Description"]) == about
    assert path.stat().st_size < 600_000
    assert "A line, ε ± 0." in path.with_suffix(".svg").read_text(encoding="utf-8")


def test_saving_twice_gives_the_same_bytes(tmp_path):
    for place in ("a", "b", "b"):  # the second "b" writes over the first
        figures.save(curve(), tmp_path / place, "one", "A line.", {"seed": 3})
    for ending in ("png", "svg", "json"):
        first, second = (tmp_path / d / f"one.{ending}" for d in "ab")
        assert first.read_bytes() == second.read_bytes()


def test_unwritable_directory_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="file"):
        figures.save(curve(), tmp_path / "file", "one", "", {})
    with pytest.raises(InputError, match="plain file name"):
        figures.save(curve(), tmp_path, "../one", "", {})


def test_a_failed_write_keeps_the_old_file_and_leaves_no_scrap(tmp_path, monkeypatch):
    path = figures.save(curve(), tmp_path, "one", "first", {})
    before = path.read_bytes()

    def fails(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(figures.os, "replace", fails)
    with pytest.raises(InputError, match="No space left"):
        figures.save(curve(), tmp_path, "one", "second", {})
    assert path.read_bytes() == before
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".json", ".png", ".svg"]


def test_magnify_by_hand():
    shown = figures.magnify(torch.tensor([0.0, 0.01, -0.01, 0.031, -0.031]), 30)
    np.testing.assert_allclose(shown, [0.5, 0.8, 0.2, 1.0, 0.0], atol=1e-6)
    np.testing.assert_allclose(figures.magnify(np.array([0.031]), 5), [0.655], atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_has_a_block_of_columns_per_classifier(channels):
    given = panels(channels)
    fig = figures.perturbation_grid(given)
    assert len(fig.axes) == 2 * 2 * 3
    shown = [im for ax in fig.axes for im in ax.images]
    assert len(shown) == 12 and {im.get_clim() for im in shown} == {(0, 1)}
    adversarial = np.clip(np.asarray(given[0].image) + 0.03, 0, 1).transpose(1, 2, 0).squeeze()
    np.testing.assert_allclose(fig.axes[0].images[0].get_array(), adversarial, atol=1e-6)
    words = [ax.get_xlabel() for ax in fig.axes]
    assert words.count("cat 90%\ncorrect") == words.count("dog 90%\nfooled (is cat)") == 2


def test_grid_leaves_a_missing_pair_blank():
    fig = figures.perturbation_grid(panels()[:3], magnifications=(1, 30))
    assert len(fig.axes) == 2 * 2 * 2
    assert sum(bool(ax.images) for ax in fig.axes) == 6


def test_grid_refuses_what_it_cannot_show():
    with pytest.raises(InputError, match="at least one"):
        figures.perturbation_grid([])
    bad = figures.Panel("FGSM", "PGM Net", np.zeros((8, 8)), np.zeros((8, 8)), "a", "a", 1.0)
    with pytest.raises(InputError, match="C, H, W"):
        figures.perturbation_grid([bad])


def test_accuracy_curve_is_the_mean_and_deviation_over_seeds():
    log = training_log()
    fig = figures.accuracy_curves(log, "epoch", y="adv_accuracy")
    line = fig.axes[0].lines[0]
    np.testing.assert_allclose(line.get_ydata(), [0.5 - 0.2 / e + 0.01 for e in range(1, 5)])
    band = fig.axes[0].collections[0].get_paths()[0].vertices[:, 1]
    assert band.max() - 0.46 == pytest.approx(0.02 / 2**0.5)  # two seeds, 0.02 apart
    assert "2 seeds" in fig.legends[0].get_title().get_text()
    assert line.get_color() == figures.DEFENCE_COLOURS["PGM Net"]


def test_one_seed_is_said_and_claims_no_deviation():
    fig = figures.accuracy_curves(training_log(seeds=(0,)), "epoch", y="adv_accuracy")
    assert fig.legends[0].get_title().get_text() == "1 seed"


def test_styles_tell_names_apart_without_colour():
    looks = figures.styles([*figures.DEFENCE_COLOURS, "L2L-DA", "AdvGAN Net", "GAP Net"])
    assert len({(s["marker"], s["ls"]) for s in looks.values()}) == len(looks) == 10
    assert len({s["color"] for s in looks.values()}) == 10


def test_loss_curves_one_picture_per_defence():
    table = pd.DataFrame(
        {"step": k, "loss": k, "deviation": 0.5, "attack": attack, "defence": defence}
        for k in range(3)
        for attack in ("PGM", "2-Step L2L")
        for defence in ("PGM Net", "Grad L2L", "2-Step L2L")
    )
    fig = figures.loss_curves(table)
    assert [ax.get_title() for ax in fig.axes] == ["PGM Net", "Grad L2L", "2-Step L2L"]
    assert [len(ax.lines) for ax in fig.axes] == [2, 2, 2]
    assert len({ax.get_ylim() for ax in fig.axes}) == 1
    plain = figures.loss_curves(table.drop(columns="deviation"))
    assert not plain.axes[0].collections


def test_training_curves():
    fig = figures.training_curves(training_log())
    assert [len(ax.lines) for ax in fig.axes] == [2, 2, 2, 2]


@pytest.mark.parametrize(
    "draw",
    [
        figures.loss_curves,
        figures.training_curves,
        lambda table: figures.accuracy_curves(table, "epsilon"),
    ],
)
def test_tables_without_their_columns_are_refused(draw):
    with pytest.raises(InputError, match="lacks"):
        draw(pd.DataFrame({"epoch": [1]}))


def test_a_table_without_rows_gives_a_picture_that_says_so():
    (ax,) = figures.training_curves(training_log().iloc[:0]).axes
    assert "nothing to draw" in ax.texts[0].get_text()


def test_cycle_thins_long_paths_and_saves_small(tmp_path):
    paths = {"simultaneous": minimax.play("simultaneous", 1e-3, 50_000)}
    fig = figures.cycle(paths, 1e-3)
    assert len(fig.axes[0].lines[0].get_xdata()) < 5000
    assert figures.save(fig, tmp_path, "cycle", "", {}).stat().st_size < 600_000


def test_explorer_redraws_one_picture_and_puts_errors_in_words():
    box = widgets.limiting_cycle_explorer()
    (method, step, steps), result, image = box.children[0].children, *box.children[1:]
    first = bytes(image.value)
    assert first.startswith(b"\x89PNG")
    step.value = 0.5
    assert image.value != first and "1.000 →" in result.value
    for name in method.options:
        method.value = name
        assert "Distance" in result.value
    method.value, step.value = "simultaneous", 1.0
    last = bytes(image.value)
    steps.value = 5000
    assert "range of floats" in result.value and image.value == last
    assert not plt.get_fignums()


def test_picture_closes_its_figure():
    assert widgets.picture(curve()).startswith(b"\x89PNG")
    assert not plt.get_fignums()
