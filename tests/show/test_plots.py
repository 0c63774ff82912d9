"""What the plots draw from their tables."""

from functools import partial

import numpy as np
import pandas as pd
import pytest

from l2lkit.errors import InputError
from l2lkit.game import toy
from l2lkit.results import experiments
from l2lkit.show import plots, style

pytestmark = pytest.mark.usefixtures("theme")


def training_log(defences=("PGM Net", "Grad L2L"), seeds=(0, 1)) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "defence": defence,
            "seed": seed,
            "epoch": epoch,
            "clean_loss": 1 / epoch,
            "accuracy": 0.9 - 0.5 / epoch - 0.02 * seed,
            "clean_accuracy": 1 - 0.5 / epoch - 0.01 * seed,
            "adv_loss": 2 / epoch,
            "adv_accuracy": 0.5 - 0.2 / epoch + 0.02 * seed,
            "delta": 0.8,
        }
        for defence in defences
        for seed in seeds
        for epoch in range(1, 5)
    )


def sweep(accuracies, attack="PGM-10", x=(0.0, 0.031)) -> pd.DataFrame:
    """Rows of {(defence, seed): accuracy at each x}."""
    return pd.DataFrame(
        {"defence": d, "seed": s, "attack": attack, "epsilon": e, "accuracy": a}
        for (d, s), values in accuracies.items()
        for e, a in zip(x, values, strict=True)
    )


def test_an_accuracy_curve_is_the_mean_with_few_seeds_as_dots():
    fig = plots.accuracy_curves(training_log(), "epoch")
    line, *dots = fig.axes[0].lines[:5]
    np.testing.assert_allclose(line.get_ydata(), [0.9 - 0.5 / e - 0.01 for e in range(1, 5)])
    for epoch, pair in enumerate(dots, 1):
        values = 0.9 - 0.5 / epoch, 0.88 - 0.5 / epoch
        np.testing.assert_allclose(pair.get_xydata(), [(epoch, v) for v in values])
    assert not fig.axes[0].collections and line.get_color() == style.DEFENCES["PGM Net"][0]
    assert fig.legends[0].get_title().get_text() == "mean; a dot a seed,\n2 seeds"


def test_many_seeds_are_a_band_of_one_deviation():
    fig = plots.accuracy_curves(training_log(seeds=range(5)), "epoch")
    assert len(fig.axes[0].lines) == 2  # no dots
    band = fig.axes[0].collections[0].get_paths()[0].vertices[:, 1]
    deviation = 0.02 * np.std(range(5), ddof=1)
    assert band.max() == pytest.approx(0.9 - 0.5 / 4 - 0.02 * 2 + deviation)
    assert fig.legends[0].get_title().get_text() == "mean ± s.d.,\n5 seeds"


def test_a_swept_axis_doubles_from_tick_to_tick():
    radii = (0.0, 0.008, 0.016, 0.031, 0.047, 0.062, 0.125)
    (ax,) = plots.accuracy_curves(sweep({("PGM Net", 0): [0.5] * 7}, x=radii), "epsilon").axes
    assert list(ax.get_xticks()) == [0, 0.008, 0.016, 0.031, 0.062, 0.125]  # 0.047 would crowd
    places = ax.transData.transform([(x, 0) for x in ax.get_xticks()])[:, 0]
    gaps = np.diff(places)[1:]
    assert gaps.max() < 1.1 * gaps.min()


def test_one_seed_is_said_and_claims_no_deviation():
    fig = plots.accuracy_curves(training_log(seeds=(0,)), "epoch")
    assert fig.legends[0].get_title().get_text() == "1 seed"


def test_relative_curves_show_absolute_and_difference_side_by_side():
    fgsm = sweep({("PGM Net", 0): (0.9, 0.6), ("Grad L2L", 0): (0.9, 0.7)}, attack="FGSM")
    accuracies = {("PGM Net", 0): (0.9, 0.5), ("PGM Net", 1): (0.8, 0.3)}
    accuracies |= {("Grad L2L", 0): (0.95, 0.4), ("Grad L2L", 1): (0.7, 0.4)}
    pgm = sweep(accuracies | {("Plain Net", 0): (1.0, 0.0)})
    frame = experiments.relative(pd.concat([fgsm, pgm]), "epsilon")
    fig = plots.relative_curves(frame, "epsilon", "ε")
    titles = [ax.get_title() for ax in fig.axes]
    assert titles[::2] == ["FGSM", "PGM-10"] and all("PGM Net" in t for t in titles[1::2])
    left, right = fig.axes[2:]
    named = [line for line in left.lines if not line.get_label().startswith("_")]
    assert [line.get_label() for line in named] == ["PGM Net", "Grad L2L", "Plain Net"]
    zero, grad, *dots, _plain = right.lines  # PGM Net is the line at 0
    assert set(zero.get_ydata()) == {0} and zero.get_color() == left.lines[0].get_color()
    np.testing.assert_allclose(grad.get_ydata(), [(5 - 10) / 2, (-10 + 10) / 2], atol=1e-9)
    for (x, pair), drawn in zip(((0, (5, -10)), (0.031, (-10, 10))), dots, strict=True):
        np.testing.assert_allclose(drawn.get_xydata(), [(x, v) for v in pair], atol=1e-9)
    assert right.get_ylim() == (-30, 30)  # Plain Net's −50 points are on the left only
    assert right.get_xlabel() == "ε" and "1 or 2 seeds" in fig.legends[0].get_title().get_text()


def test_without_the_baseline_the_absolute_picture_remains():
    frame = experiments.relative(sweep({("Grad L2L", 0): (0.9, 0.4)}), "epsilon")
    left, right = plots.relative_curves(frame, "epsilon").axes
    np.testing.assert_allclose(left.lines[0].get_ydata(), [0.9, 0.4])
    assert all(np.isnan(line.get_ydata()).all() for line in right.lines[1:])


def test_loss_curves_lead_from_the_learned_attack_to_the_step_of_pgm_that_it_is_worth():
    losses = {"PGM-20": (1, 2, 3, 4), "Grad L2L attacker": (1, 2.5), "2-Step L2L attacker": (1, 5)}
    table = pd.DataFrame(
        {"step": k, "loss": loss, "attack": attack, "defence": defence}
        for attack, values in losses.items()
        for k, loss in enumerate(values)
        for defence in ("PGM Net", "Grad L2L", "2-Step L2L")
    )
    fig = plots.loss_curves(table)
    titles = [ax.get_title() for ax in fig.axes]
    assert titles == [f"attacks on {name}" for name in ("PGM Net", "Grad L2L", "2-Step L2L")]
    assert len({ax.get_ylim() for ax in fig.axes}) == 1
    _, _, grad, worth, two_step, beyond = fig.axes[0].lines
    assert grad.get_markevery() == [1] and grad.get_ydata().tolist() == [1, 2.5]
    assert worth.get_xydata().tolist() == [[1, 2.5], [2, 2.5]]  # PGM's second step has 3
    assert beyond.get_xydata().tolist() == [[1, 5], [3, 5]]  # more than PGM ever reaches
    assert two_step.get_ydata().tolist() == [1, 5]


def test_training_losses_share_their_axis():
    fig = plots.training_losses(training_log().assign(train_loss=0.3))
    assert [ax.get_title() for ax in fig.axes] == ["PGM Net", "Grad L2L"]
    assert len({ax.get_ylim() for ax in fig.axes}) == 1
    tested, *_, trained = [line for line in fig.axes[0].lines if len(line.get_xdata()) == 4]
    np.testing.assert_allclose(tested.get_ydata(), [2 / e for e in range(1, 5)])
    assert set(trained.get_ydata()) == {0.3}


def test_training_curves():
    fig = plots.training_curves(training_log())
    assert [len(ax.lines) for ax in fig.axes] == [2 + 2 * 4] * 4  # lines, and dots at each epoch


PLOTS = [
    plots.accuracy_bars,
    partial(plots.accuracy_curves, x="epsilon"),
    partial(plots.relative_curves, x="epsilon"),
    plots.loss_curves,
    plots.training_curves,
    plots.training_losses,
    plots.convergence,
    plots.restart_curves,
    plots.loss_surfaces,
    plots.worth_it,
]


@pytest.mark.parametrize("draw", PLOTS)
def test_tables_without_their_columns_are_refused(draw):
    with pytest.raises(InputError, match="lacks columns to draw: give it"):
        draw(pd.DataFrame({"epoch": [1]}))


def test_failed_models_are_left_out_and_without_others_a_picture_says_so():
    rows = {"defence": ["PGM Net", "FGSM Net"], "status": ["ok", "collapsed"], "seed": 0}
    table = pd.DataFrame(rows | {"attack": "Worst", "steps": 1, "accuracy": 0.5, "loss": 1.0})
    bars = plots.accuracy_bars(table)
    assert [tick.get_text() for tick in bars.axes[0].get_xticklabels()] == ["PGM Net"]
    assert [len(ax.lines) for ax in plots.convergence(table).axes] == [1, 1]
    for draw in (plots.accuracy_bars, plots.convergence):
        (ax,) = draw(table.iloc[1:]).axes
        assert "nothing to draw" in ax.texts[0].get_text()


def test_bars_of_zero_have_their_number():
    rows = [("Plain Net", 0, 0.0), ("PGM Net", 0, 0.7), ("PGM Net", 1, 0.8)]
    table = pd.DataFrame(rows, columns=["defence", "seed", "accuracy"])
    fig = plots.accuracy_bars(table.assign(status="ok", attack="Worst"))
    (ax,) = fig.axes
    assert [text.get_text() for text in ax.texts] == ["0", "75"]
    assert ax.lines[0].get_ydata().tolist() == [0.7, 0.8]
    (handle,) = fig.legends[0].legend_handles
    assert handle.get_hatch() == ax.patches[0].get_hatch()


def test_a_table_without_rows_gives_a_picture_that_says_so():
    empty = experiments.relative(sweep({("PGM Net", 0): (1, 0)}).iloc[:0], "epsilon")
    for fig in (
        plots.training_curves(training_log().iloc[:0]),
        plots.relative_curves(empty, "epsilon"),
    ):
        assert "nothing to draw" in fig.axes[0].texts[0].get_text()


def test_cycle_thins_long_paths():
    paths = {"simultaneous": toy.play("simultaneous", 1e-3, 50_000)}
    fig = plots.cycle(paths, 1e-3)
    assert len(fig.axes[0].lines[0].get_xdata()) < 5000
