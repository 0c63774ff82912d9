"""Figures: what is drawn, and how it is saved; and the experiments that fill them."""

import json
from dataclasses import replace
from io import BytesIO
from types import SimpleNamespace

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.patches import FancyArrowPatch
from PIL import Image

from l2lkit import Store, attacks, evaluation, experiments, figures, minimax, recipes, training
from l2lkit import widgets as controls
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


def test_a_notebook_shows_the_caption_below_and_as_the_pictures_text(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(figures, "get_ipython", lambda: SimpleNamespace(kernel=None))
    monkeypatch.setattr(figures, "display", lambda what, **more: shown.append((what, more)))
    fig = curve()
    figures.save(fig, tmp_path, "one", "A line. ", {})
    (picture, more), (words, _) = shown
    assert picture is fig and more["metadata"] == {"image/png": {"alt": "A line. "}}
    assert words.data == "*A line.*" and not plt.get_fignums()


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


LEARNED = [name for name in figures.DEFENCE_COLOURS if name.endswith("L2L")]
SIZED = [f"{name} ({size})" for name in LEARNED for size in "SW"]


def test_styles_tell_names_apart_without_colour():
    attackers = [f"{name} attacker" for name in (*LEARNED, *SIZED)]
    looks = figures.styles(
        [*figures.DEFENCE_COLOURS, *SIZED, *attackers, "L2L-DA", "AdvGAN Net", "GAP Net"]
    )
    shapes = {(s["marker"], s["fillstyle"], s["ls"]) for s in looks.values()}
    assert len(shapes) == len(looks) == 10 + 6 + 9 + 3
    assert len({s["color"] for s in looks.values()}) == 13
    assert {"Free", "FGSM-RS", "TRADES"} <= set(figures.DEFENCE_COLOURS)
    for name in SIZED:
        same = looks[name[:-4]]
        assert looks[name]["color"] == same["color"] and looks[name]["marker"] == same["marker"]


def sweep(accuracies, attack="PGM-10", x=(0.0, 0.031)) -> pd.DataFrame:
    """Rows of {(defence, seed): accuracy at each x}."""
    return pd.DataFrame(
        {"defence": d, "seed": s, "attack": attack, "epsilon": e, "accuracy": a}
        for (d, s), values in accuracies.items()
        for e, a in zip(x, values, strict=True)
    )


def test_a_difference_is_to_the_same_seed_attack_and_epsilon():
    pgm = sweep({("PGM Net", 0): (0.9, 0.5), ("PGM Net", 1): (0.8, 0.3)})
    grad = sweep({("Grad L2L", 1): (0.7, 0.4), ("Grad L2L", 0): (0.95, 0.4)})
    alone = sweep({("Grad L2L", 2): (0.6, 0.6)})  # no PGM Net of this seed
    fgsm = sweep({("PGM Net", 0): (0.9, 0.6), ("Grad L2L", 0): (0.9, 0.7)}, attack="FGSM")
    frame = pd.concat([grad, alone, fgsm, pgm], ignore_index=True)
    found = experiments.relative(frame, "epsilon")
    pd.testing.assert_frame_equal(found.drop(columns="difference"), frame)
    by = found.set_index(["attack", "defence", "seed", "epsilon"]).difference
    assert by["PGM-10", "Grad L2L", 0, 0.031] == pytest.approx(-10)
    assert by["PGM-10", "Grad L2L", 1, 0.031] == pytest.approx(10)
    assert by["PGM-10", "Grad L2L", 1, 0.0] == pytest.approx(-10)
    assert by["FGSM", "Grad L2L", 0, 0.031] == pytest.approx(10)
    assert np.isnan(by["PGM-10", "Grad L2L", 2, 0.0])
    assert (found[found.defence == "PGM Net"].difference == 0).all()


@given(st.lists(st.floats(-0.5, 0.5), min_size=2, max_size=2), st.randoms())
def test_what_all_defences_share_of_a_seed_cancels(shifts, order):
    values = {("PGM Net", s): (0.6, 0.4 - 0.1 * s) for s in (0, 1)}
    values |= {("Grad L2L", s): (0.5, 0.5) for s in (0, 1)}
    shifted = {(d, s): tuple(a + shifts[s] for a in v) for (d, s), v in values.items()}
    keys = ["defence", "seed", "epsilon"]
    rows = list(sweep(shifted).index)
    order.shuffle(rows)
    moved = experiments.relative(sweep(shifted).loc[rows], "epsilon").set_index(keys)
    plain = experiments.relative(sweep(values), "epsilon").set_index(keys)
    np.testing.assert_allclose(moved.difference.loc[plain.index], plain.difference, atol=1e-9)


def test_relative_curves_show_absolute_and_difference_side_by_side():
    fgsm = sweep({("PGM Net", 0): (0.9, 0.6), ("Grad L2L", 0): (0.9, 0.7)}, attack="FGSM")
    pgm = sweep(
        {("PGM Net", 0): (0.9, 0.5), ("PGM Net", 1): (0.8, 0.3), ("Grad L2L", 0): (0.95, 0.4),
         ("Grad L2L", 1): (0.7, 0.4), ("Plain Net", 0): (1.0, 0.0)}
    )  # fmt: skip
    frame = experiments.relative(pd.concat([fgsm, pgm]), "epsilon")
    fig = figures.relative_curves(frame, "epsilon", "ε")
    titles = [ax.get_title() for ax in fig.axes]
    assert titles[::2] == ["FGSM", "PGM-10"] and all("PGM Net" in t for t in titles[1::2])
    left, right = fig.axes[2:]
    assert [line.get_label() for line in left.lines] == ["PGM Net", "Grad L2L", "Plain Net"]
    zero, grad, _plain = right.lines  # PGM Net is the line at 0
    assert set(zero.get_ydata()) == {0} and zero.get_color() == left.lines[0].get_color()
    np.testing.assert_allclose(grad.get_ydata(), [(5 - 10) / 2, (-10 + 10) / 2], atol=1e-9)
    band = right.collections[0].get_paths()[0].vertices[:, 1]
    assert band.max() == pytest.approx(np.std([-10, 10], ddof=1))
    assert right.get_ylim() == (-30, 30)  # Plain Net's −50 points are on the left only
    assert right.get_xlabel() == "ε" and "1 or 2 seeds" in fig.legends[0].get_title().get_text()


def test_without_the_baseline_the_absolute_picture_remains():
    frame = experiments.relative(sweep({("Grad L2L", 0): (0.9, 0.4)}), "epsilon")
    left, right = figures.relative_curves(frame, "epsilon").axes
    np.testing.assert_allclose(left.lines[0].get_ydata(), [0.9, 0.4])
    assert all(np.isnan(line.get_ydata()).all() for line in right.lines[1:])


def boxes(fig, letter: str) -> list[str]:
    """The labels of the boxes of the network f or g."""
    texts = [t.get_text() for ax in fig.axes for t in ax.texts]
    return [t for t in texts if f"${letter}(" in t]


@pytest.mark.parametrize("steps", [0, 1, 2, 4])
def test_the_game_diagram_has_a_box_for_every_pass_of_a_training_step(colours, steps):
    recipe = recipes.at_scale(recipes.recipe("iclr2020/grad"), recipes.profile("smoke"))
    recipe = replace(recipe, attack=replace(recipe.attack, steps=steps))
    players = training.Players.build(recipe, colours, torch.device("cpu"))
    passes = []
    players.classifier.register_forward_hook(lambda *_: passes.append("f"))
    players.attack.network.register_forward_hook(lambda *_: passes.append("g"))
    training.play(players, colours.train_images[:4].float() / 255, colours.train_labels[:4])

    fig = figures.game_diagram(steps)
    drawn = {int(t.split()[1]): "f" for t in boxes(fig, "f")}
    drawn |= {int(t.split()[1]): "g" for t in boxes(fig, "g")}
    assert [drawn[i + 1] for i in range(len(drawn))] == passes
    dashed = [a for a in fig.axes[0].patches if isinstance(a, FancyArrowPatch)]
    assert sum(a.get_linestyle() == "--" for a in dashed) == steps  # the gradient queries


def test_the_attacker_diagram_has_a_row_for_each_number_of_steps():
    fig = figures.attacker_diagram((0, 1, 3))
    assert [ax.get_title("left").split(":")[0] for ax in fig.axes] == [
        "Naive L2L", "Grad L2L", "3-Step L2L",
    ]  # fmt: skip
    assert len(boxes(fig, "f")) == 0 + 1 + 3 and len(boxes(fig, "g")) == 1 + 1 + 3


def test_diagrams_refuse_what_no_attacker_does():
    with pytest.raises(InputError, match="0 steps or more"):
        figures.game_diagram(-1)
    with pytest.raises(InputError, match="0 steps or more"):
        figures.attacker_diagram((1, -2))
    with pytest.raises(InputError, match="at least one"):
        figures.attacker_diagram(())


def white_box_rows(accuracies) -> pd.DataFrame:
    """Rows of {(defence, attack): accuracy of seed 0, 1, …}."""
    return pd.DataFrame(
        {"defence": d, "seed": s, "status": "ok", "attack": attack, "accuracy": a}
        for (d, attack), values in accuracies.items()
        for s, a in enumerate(values)
    )


def test_verdicts_pair_by_seed_and_need_every_seed():
    frame = white_box_rows(
        {
            ("Plain Net", "PGM-20"): (0.0, 0.0), ("Naive L2L", "PGM-20"): (0.0, 0.11),
            ("FGSM Net", "PGM-20"): (0.3, 0.2), ("PGM Net", "PGM-20"): (0.4, 0.5),
            ("Grad L2L", "PGM-20"): (0.4, 0.6), ("2-Step L2L", "PGM-20"): (0.3, 0.5),
        }
    )  # fmt: skip
    found = experiments.verdicts(frame).set_index("claim")
    assert set(found.under) == {"PGM-20"}
    assert found.verdict.to_dict() == {
        "Naive L2L ≈ Plain Net": "mixed",  # 0 and 11 points apart
        "Naive L2L > Plain Net": "mixed",  # a tie is not more
        "FGSM Net > Naive L2L": "holds",
        "PGM Net > FGSM Net": "holds",
        "Grad L2L ≥ PGM Net": "holds",  # a tie is as good
        "2-Step L2L ≥ Grad L2L": "does not hold",
        "2-Step L2L ≥ PGM Net": "mixed",
    }
    assert found.difference["PGM Net > FGSM Net"] == "20.0 ± 14.1"
    assert found["seeds that agree"]["2-Step L2L ≥ PGM Net"] == "1 of 2"
    frame.loc[(frame.defence == "Plain Net") & (frame.seed == 1), "status"] = "collapsed"
    found = experiments.verdicts(frame).set_index("claim")
    assert found["seeds that agree"]["Naive L2L ≈ Plain Net"] == "1 of 1"
    none = experiments.verdicts(frame.assign(status="collapsed"))
    assert none.empty and list(none) == list(found.reset_index())


def test_the_order_is_checked_pair_by_pair_under_each_strong_attack():
    order = ("Plain Net", "Naive L2L", "FGSM Net", "PGM Net", "Grad L2L", "2-Step L2L")
    attack_names = ("PGM-20", "PGM-100", "Worst")
    rising = {(d, a): (0.1 * i,) for i, d in enumerate(order) for a in attack_names}
    found = experiments.verdicts(white_box_rows(rising))
    for worse, better in zip(order, order[1:], strict=False):
        of_pair = found[found.claim.isin([f"{better} > {worse}", f"{better} ≥ {worse}"])]
        assert list(of_pair.under) == list(attack_names) and set(of_pair.verdict) == {"holds"}


def test_the_example_is_of_the_first_class_the_data_have(colours):
    store = SimpleNamespace(data=colours)  # classes r, g, b, y in turn
    assert experiments.example(store, ("cat", "b", "g")) == 2
    assert experiments.example(store) == 0


@pytest.fixture
def store(folder, tmp_path):
    return Store("smoke", dataset="tiny", data=folder, device="cpu", output=tmp_path)


def test_accuracy_against_epsilon_is_that_of_each_attack(store):
    frame = experiments.against_epsilon(store, ["plain"], epsilons=(0.0, 0.031, 1.0))
    model, (x, y) = store.model("plain"), store.images(store.profile.curve_images)
    by = frame.set_index(["attack", "epsilon"]).accuracy
    clean = (model.classifier(x).argmax(1) == y).float().mean().item()
    assert by["FGSM", 0.0] == by["PGM-10", 0.0] == pytest.approx(clean)
    pgm = attacks.PGM(steps=10, step_size=0.007)
    given_ones = {"FGSM": attacks.FGSM(), "PGM-10": pgm}
    for name, right in evaluation.correct(model.classifier, given_ones, x, y).items():
        assert by[name, 0.031] == pytest.approx(right.float().mean().item())
    assert len(by) == 6


def test_black_box_takes_any_family(store):
    frame = experiments.black_box(store, targets=["grad", "grad-slim"], surrogates=["plain"])
    assert list(frame.defence) == 2 * ["Grad L2L", "Grad L2L (S)"]
    assert list(frame.attack) == 2 * ["FGSM"] + 2 * ["PGM-10"]
    x, y = store.images(store.profile.eval_images)
    made = x + attacks.FGSM()(store.model("plain", seed=1).classifier, x, y)
    right = store.model("grad-slim").classifier(made).argmax(1) == y
    assert frame.accuracy[1] == pytest.approx(right.float().mean().item())


def test_perturbations_are_those_named_on_those_named(store):
    shown = experiments.perturbations(store, 3, ("fgsm", "grad-slim"), ("PGM-20", "FGSM"))
    assert [(p.column, p.row) for p in shown] == [
        ("FGSM Net", "PGM-20"), ("FGSM Net", "FGSM"),
        ("Grad L2L (S)", "PGM-20"), ("Grad L2L (S)", "FGSM"),
    ]  # fmt: skip
    x, y = store.images(4)
    delta = attacks.FGSM()(store.model("fgsm").classifier, x[3:], y[3:])[0]
    np.testing.assert_allclose(shown[1].perturbation, delta, atol=1e-6)


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
        lambda table: figures.relative_curves(table, "epsilon"),
    ],
)
def test_tables_without_their_columns_are_refused(draw):
    with pytest.raises(InputError, match="lacks"):
        draw(pd.DataFrame({"epoch": [1]}))


def test_a_table_without_rows_gives_a_picture_that_says_so():
    empty = experiments.relative(sweep({("PGM Net", 0): (1, 0)}).iloc[:0], "epsilon")
    for fig in (
        figures.training_curves(training_log().iloc[:0]),
        figures.relative_curves(empty, "epsilon"),
    ):
        assert "nothing to draw" in fig.axes[0].texts[0].get_text()


def test_cycle_thins_long_paths_and_saves_small(tmp_path):
    paths = {"simultaneous": minimax.play("simultaneous", 1e-3, 50_000)}
    fig = figures.cycle(paths, 1e-3)
    assert len(fig.axes[0].lines[0].get_xdata()) < 5000
    assert figures.save(fig, tmp_path, "cycle", "", {}).stat().st_size < 600_000


def test_explorer_redraws_one_picture_and_puts_errors_in_words():
    box = controls.limiting_cycle_explorer()
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
    marked = controls.Marked(fig, [ax])
    assert not plt.get_fignums()
    for x in (2, 9, 2):
        pixels = np.asarray(Image.open(BytesIO(marked.at(x))).convert("L"))
        dark = np.argwhere(pixels < 100)[:, 1]
        centre = ax.transData.transform((x, 0))[0]
        assert len(dark) and abs(dark - centre).max() < 4


def test_picture_closes_its_figure():
    assert controls.picture(curve()).startswith(b"\x89PNG")
    assert not plt.get_fignums()
