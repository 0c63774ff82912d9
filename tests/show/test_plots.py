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


def test_accuracy_curve_is_the_mean_and_deviation_over_seeds():
    fig = plots.accuracy_curves(training_log(), "epoch")
    line = fig.axes[0].lines[0]
    np.testing.assert_allclose(line.get_ydata(), [0.9 - 0.5 / e - 0.01 for e in range(1, 5)])
    band = fig.axes[0].collections[0].get_paths()[0].vertices[:, 1]
    assert band.max() - 0.765 == pytest.approx(0.02 / 2**0.5)  # two seeds, 0.02 apart
    assert "2 seeds" in fig.legends[0].get_title().get_text()
    assert line.get_color() == style.DEFENCES["PGM Net"][0]


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
    left, right = plots.relative_curves(frame, "epsilon").axes
    np.testing.assert_allclose(left.lines[0].get_ydata(), [0.9, 0.4])
    assert all(np.isnan(line.get_ydata()).all() for line in right.lines[1:])


def test_loss_curves_one_picture_per_defence():
    table = pd.DataFrame(
        {"step": k, "loss": k, "deviation": 0.5, "attack": attack, "defence": defence}
        for k in range(3)
        for attack in ("PGM", "2-Step L2L")
        for defence in ("PGM Net", "Grad L2L", "2-Step L2L")
    )
    fig = plots.loss_curves(table)
    assert [ax.get_title() for ax in fig.axes] == ["PGM Net", "Grad L2L", "2-Step L2L"]
    assert [len(ax.lines) for ax in fig.axes] == [2, 2, 2]
    assert len({ax.get_ylim() for ax in fig.axes}) == 1
    plain = plots.loss_curves(table.drop(columns="deviation"))
    assert not plain.axes[0].collections


def test_training_curves():
    fig = plots.training_curves(training_log())
    assert [len(ax.lines) for ax in fig.axes] == [2, 2, 2, 2]


PLOTS = [
    plots.accuracy_bars,
    partial(plots.accuracy_curves, x="epsilon"),
    partial(plots.relative_curves, x="epsilon"),
    plots.loss_curves,
    plots.training_curves,
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
