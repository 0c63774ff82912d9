"""The experiments that fill figures and tables."""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from l2lkit import Store
from l2lkit.game import evaluate, fixed
from l2lkit.results import experiments


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


def white_box_rows(accuracies) -> pd.DataFrame:
    """Rows of {(defence, attack): accuracy of seed 0, 1, …}."""
    return pd.DataFrame(
        {"defence": d, "seed": s, "status": "ok", "attack": attack, "accuracy": a}
        for (d, attack), values in accuracies.items()
        for s, a in enumerate(values)
    )


def test_verdicts_pair_by_seed_and_need_every_seed():
    accuracies = {"Plain Net": (0.0, 0.0), "Naive L2L": (0.0, 0.11), "FGSM Net": (0.3, 0.2)}
    accuracies |= {"PGM Net": (0.4, 0.5), "Grad L2L": (0.4, 0.6), "2-Step L2L": (0.3, 0.5)}
    frame = white_box_rows({(name, "PGM-20"): seeds for name, seeds in accuracies.items()})
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
    shown = experiments.verdicts_table(found.reset_index())
    assert shown.loc["PGM Net > FGSM Net", "PGM-20"] == "20.0 ± 14.1 (2 of 2): holds"
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


@pytest.mark.parametrize("flips, chosen", [((0, 1, 1, 0), 1), ((0, 0, 0, 0), 1), ((0, 0, 1, 1), 2)])
def test_the_contrast_fools_one_model_and_not_the_other(colours, monkeypatch, flips, chosen):
    """The Plain Net errs on the images that `flips` marks; the other on the last of them."""
    names = colours.class_names

    def panel(store, model, row, attack, index):
        right = not flips[index] or (model == "pgm" and index < 3)
        label, wrong = names[index], names[index - 1]
        return SimpleNamespace(label=label, predicted=label if right else wrong)

    monkeypatch.setattr(experiments, "panel", panel)
    monkeypatch.setattr(experiments, "named_attacks", lambda store, seed: {"PGM-20": None})
    monkeypatch.setattr(experiments, "example", lambda store: 1)
    store = SimpleNamespace(
        data=colours, seed=0, model=lambda name, seed: name, computing=nullcontext
    )
    assert experiments.contrast(store) == chosen


@pytest.fixture
def store(folder, tmp_path):
    return Store("smoke", dataset="tiny", data=folder, device="cpu", output=tmp_path)


def test_accuracy_against_epsilon_is_that_of_each_attack(store):
    frame = experiments.against_epsilon(store, ["plain"], epsilons=(0.0, 0.031, 1.0))
    model, (x, y) = store.model("plain"), store.images(store.profile.curve_images)
    by = frame.set_index(["attack", "epsilon"]).accuracy
    clean = (model.classifier(x).argmax(1) == y).float().mean().item()
    assert by["FGSM", 0.0] == by["PGM-10", 0.0] == pytest.approx(clean)
    pgm = fixed.PGM(steps=10, step_size=0.007)
    given_ones = {"FGSM": fixed.FGSM(), "PGM-10": pgm}
    for name, right in evaluate.correct(model.classifier, given_ones, x, y).items():
        assert by[name, 0.031] == pytest.approx(right.float().mean().item())
    assert len(by) == 6


def test_black_box_takes_any_family(store):
    frame = experiments.black_box(store, targets=["grad", "grad-slim"], surrogates=["plain"])
    assert list(frame.defence) == 2 * ["Grad L2L", "Grad L2L (S)"]
    assert list(frame.attack) == 2 * ["FGSM"] + 2 * ["PGM-10"]
    x, y = store.images(store.profile.eval_images)
    made = x + fixed.FGSM()(store.model("plain", seed=1).classifier, x, y)
    right = store.model("grad-slim").classifier(made).argmax(1) == y
    assert frame.accuracy[1] == pytest.approx(right.float().mean().item())


def test_perturbations_are_those_named_on_those_named(store):
    shown = experiments.perturbations(store, 3, ("fgsm", "grad-slim"), ("PGM-20", "FGSM"))
    assert [p.column for p in shown] == 3 * ["FGSM Net"] + 3 * ["Grad L2L (S)"]
    assert [p.row for p in shown] == 2 * ["no attack", "PGM-20", "FGSM"]
    x, y = store.images(4)
    delta = fixed.FGSM()(store.model("fgsm").classifier, x[3:], y[3:])[0]
    assert not shown[0].perturbation.any() and shown[0].label == shown[1].label
    np.testing.assert_allclose(shown[2].perturbation, delta, atol=1e-6)
