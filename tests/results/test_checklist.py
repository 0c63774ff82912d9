"""The checklist can say "fails": classifiers whose gradients are masked, quantised or noisy, beside
the same classifier without the mask."""

import json
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from masked import EPSILON, Linear, Quantised, images, robust

from l2lkit import checks, recipes
from l2lkit.checks import items
from l2lkit.checks.attacks import all_attacks, white_box_attacks
from l2lkit.checks.evidence import KINDS
from l2lkit.data import Dataset
from l2lkit.errors import InputError
from l2lkit.game import autoattack
from l2lkit.game import evaluate as evaluation
from l2lkit.game.autoattack import AutoAttack
from l2lkit.game.fixed import PGM
from l2lkit.results import checklist, plan
from l2lkit.runs.model import Model
from l2lkit.runs.store import Store
from l2lkit.show import plots

TINY = recipes.Profile(
    name="smoke", seeds=1, eval_images=24, curve_images=20, random_draws=5, epochs=1
)
VICES = {
    "plain": Linear,
    "fgsm": Linear,
    "pgm": Linear,
    "naive": lambda: Linear(scale=1e6),  # the loss is flat in float32
    "grad": Quantised,
    "2step": lambda: Linear(noise=0.03),
    "grad-slim": Linear,
}


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """Opens a store whose models are the classifiers of VICES."""

    def model(self, name, seed=None):
        recipe = self.recipe(name) if isinstance(name, str) else name
        short = recipes.printed(recipe.name).removeprefix("iclr2020/")
        kind = VICES.get(short, Linear)
        log = pd.DataFrame({"seconds": [1.0, 2.0]})
        attack = PGM(steps=2) if short == "pgm" else None
        return Model(
            replace(recipe, attack=attack),
            seed or 0,
            kind().eval(),
            attack,
            log,
            {"id": f"{short}-{seed}", "status": "ok"},
        )

    def open_store(classes=4):
        store = Store("smoke", dataset="tiny", device="cpu", output=tmp_path)
        x, y = images(32, classes)
        vars(store)["data"] = Dataset(
            "tiny", "tiny", tuple("abcd"[:classes]), x, y, x, y, augment=False
        )
        return store

    monkeypatch.setitem(recipes.PROFILES, "smoke", TINY)
    monkeypatch.setattr(Store, "model", model)
    return open_store


def failing(table, defence):
    return set(table[(table.defence == defence) & (table.verdict == "fails")]["item"])


def test_the_list_fails_what_masks_and_holds_what_does_not(tiny):
    numbers = checklist.evidence(tiny())
    table = checks.verdicts(numbers)
    assert failing(table, "PGM Net") == set()
    assert failing(table, "FGSM Net") == set()
    masked = failing(table, "Naive L2L")
    assert masked >= {
        "white box beats black box",
        "unbounded attacks reach 100 %",
        "diverse attacks",
        "differentiable, with gradients",
        "the loss climbs along its gradient",
    }
    assert "not randomised" not in masked
    quantised = failing(table, "Grad L2L")
    assert quantised >= {"white box beats black box", "differentiable, with gradients"}
    assert failing(table, "2-Step L2L") >= {"not randomised", "differentiable, with gradients"}

    # The numbers behind it, by other means.
    value = numbers.set_index(["defence", "quantity"]).value
    x, y = tiny().images(24)
    honest, flat = Linear().eval(), Linear(scale=1e6).eval()
    right = evaluation.correct(honest, {"PGM-100": PGM(steps=100)}, x, y)["PGM-100"]
    assert value["PGM Net", "PGM-100"] == pytest.approx(right.float().mean().item())
    assert value["PGM Net", "AutoAttack"] == robust(honest, x, y, EPSILON)[:20].double().mean()
    certain = flat(x[:20]).softmax(1).max(1).values == 1
    assert value["Naive L2L", "flat"] == certain.sum()
    assert value["Naive L2L", "FGSM"] == value["Naive L2L", "Clean"]  # nowhere to go
    assert value["Naive L2L", "CW"] == value["PGM Net", "CW"]  # the margin is not masked
    # Accuracy and clean accuracy on the first 20 of 24 images at no perturbation at all.
    clean = (honest(x).argmax(1) == y).double()
    assert value["PGM Net", "ε zero"] == clean[:20].mean()


def test_measured_once(tiny, monkeypatch):
    first = checklist.evidence(tiny(), ["pgm"])
    monkeypatch.setattr(evaluation, "trajectory", None)
    monkeypatch.setattr(evaluation, "perturb", None)
    pd.testing.assert_frame_equal(checklist.evidence(tiny(), ["pgm"]), first)


def test_one_model_is_measured_without_the_others(tiny, monkeypatch):
    seen, model = set(), Store.model
    monkeypatch.setattr(
        Store, "model", lambda self, name, seed=None: seen.add(name) or model(self, name, seed)
    )
    plan.measure(tiny(), "grad-slim", 0)
    assert seen == {"grad-slim"}


def test_without_autoattack_its_cells_are_empty(tiny, monkeypatch):
    monkeypatch.setattr(checks.attacks, "autoattack_installed", lambda: False)
    monkeypatch.setattr(autoattack, "autoattack_installed", lambda: False)
    store = tiny()
    numbers = checklist.evidence(store, ["pgm"])
    assert "AutoAttack" not in set(numbers.quantity)
    table = checks.verdicts(numbers).set_index("item")
    row = table.loc["AutoAttack finds little more"]
    assert row.verdict == row.figure == ""
    assert table.loc["diverse attacks"].verdict == "holds"
    frame = checklist.robust_accuracy(store, ["pgm"])
    assert frame.AutoAttack.isna().all() and (frame.accuracy == frame.Worst).all()
    x, y = store.images(2)
    with pytest.raises(InputError, match="pip install"):
        AutoAttack()(Linear(), x, y)


def test_models_that_all_failed_leave_empty_cells_and_pictures(tiny, monkeypatch):
    model = Store.model

    def collapsed(self, name, seed=None):
        found = model(self, name, seed)
        return replace(found, record=found.record | {"status": "collapsed"})

    monkeypatch.setattr(Store, "model", collapsed)
    store, names = tiny(), ["pgm", "naive"]
    table = checks.verdicts(checklist.evidence(store, names))
    assert len(table) == 2 * len(checks.ITEMS) and set(table.verdict) == {""}
    assert checks.about(table, items.PRICE).empty
    for fig in (
        plots.convergence(checklist.long_run(store, names)),
        plots.loss_surfaces(checklist.loss_surface(store, names, points=3)),
        plots.worth_it(checklist.robust_accuracy(store, names)),
    ):
        (ax,) = fig.axes
        assert "nothing to draw" in ax.texts[0].get_text()
        plt.close(fig)


def test_robust_accuracy_is_the_worst_of_all_image_by_image(tiny, monkeypatch):
    store = tiny()
    x, y = store.images(20)
    right = evaluation.correct(Linear(), white_box_attacks(store.budget), x, y)
    worst = np.logical_and.reduce([right[a].numpy() for a in ("PGM-20", "PGM-100", "CW")])

    def fool(classifier, attack, images, labels, **options):
        # Invent a stronger attack: it fools the first image it is shown.
        assert torch.equal(images, x[worst]) and isinstance(attack, AutoAttack)
        delta = torch.zeros_like(images)
        delta[0] = 1 - 2 * images[0]
        return delta

    monkeypatch.setattr(evaluation, "perturb", fool)
    (row,) = checklist.robust_accuracy(store, ["pgm"]).to_dict("records")
    assert row["Worst"] == worst.mean()
    assert row["accuracy"] == row["AutoAttack"] == (worst.sum() - 1) / 20
    assert row["clean"] == right["Clean"].double().mean()
    assert row["seconds"] == row["start_seconds"] == 3.0


def test_attack_by_attack_on_the_fewer_images(tiny):
    store = tiny()
    rows = checklist.under_each(store, ["fgsm"]).set_index("attack").accuracy
    assert list(rows.index) == ["Clean", "PGM-20", "PGM-100", "CW", "AutoAttack"]
    (x, y), f = store.images(20), store.model("fgsm").classifier
    assert rows["Clean"] == pytest.approx((f(x).argmax(1) == y).float().mean().item())
    (row,) = checklist.robust_accuracy(store, ["fgsm"]).to_dict("records")
    assert rows["AutoAttack"] == row["accuracy"] <= min(rows[["PGM-20", "PGM-100", "CW"]])


def test_the_long_run_begins_as_pgm_100_does(tiny):
    store = tiny()
    run = checklist.long_run(store, ["pgm"])
    x, y = store.images(5)  # a quarter of 20
    short = evaluation.trajectory(Linear(), PGM(steps=100), x, y)
    assert list(run.steps) == [0, 1, 2, 5, 10, 20, 50, 100, 200, 500] and set(run.images) == {5}
    upto = run[run.steps <= 100]
    expected = short.loss[list(upto.steps)].mean(1)
    np.testing.assert_allclose(upto.loss, expected, rtol=1e-6)


def test_the_loss_surface_of_a_linear_classifier(tiny):
    store = tiny()
    images, labels = store.images(None)
    faint = F.cross_entropy(Linear()(images), labels, reduction="none")
    index = int(faint.argmax())  # of a sure one, the loss would be all rounding
    plane = checklist.loss_surface(store, ["pgm", "naive"], index=index, points=5)
    assert len(plane) == 50 and set(plane.a) == {-1, -0.5, 0, 0.5, 1} == set(plane.b)
    flat = plane[plane.defence == "Naive L2L"]
    x, y = (t[index : index + 1] for t in store.images(None))
    centre = plane[(plane.a == 0) & (plane.b == 0)].set_index("defence").loss
    loss = F.cross_entropy(Linear()(x), y).item()
    assert centre["PGM Net"] == pytest.approx(loss, rel=1e-4)
    # Up the gradient the loss rises; where it is masked there is no direction to go.
    straight = plane[(plane.b == 0) & (plane.defence == "PGM Net")].sort_values("a").loss
    assert straight.is_monotonic_increasing and straight.iloc[-1] > loss + 1
    assert flat.groupby("b").loss.nunique().max() == 1
    fig = plots.loss_surfaces(plane)
    assert [ax.get_title().split("\n")[0] for ax in fig.axes[:2]] == ["PGM Net", "Naive L2L"]
    plt.close(fig)


def test_every_attack_is_described_so_that_it_can_be_made_again(tiny):
    store = tiny()
    table = checklist.described(store)
    assert {"FGSM", "PGM-100", "PGM-500", "CW", "Random"} <= set(table.attack)
    assert table.attack.is_unique and any(table.attack.str.startswith("AutoAttack"))
    kinds = {kind.__name__: kind for kind in KINDS}
    made = [eval(line, kinds) for line in table.settings]
    assert made == list(all_attacks(store.budget).values())
    ends = json.dumps([repr(a) for a in made])
    assert "steps=500" in ends and "epsilon=1.0" in ends


def test_every_item_is_measured_and_shown(tiny):
    """Each item's template finds its numbers; the two papers' items are all there."""
    table = checks.verdicts(checklist.evidence(tiny(), ["fgsm", "pgm"]))
    shown = table[table.figure != ""]
    without = {"adaptive attacks"}  # none of these has an attacker of its own
    assert {i.name for i in checks.ITEMS} - set(shown["item"]) == without
    counts = pd.Series([i.source for i in checks.ITEMS]).value_counts()
    assert counts["Athalye et al. 2018"] == 5
    # 15 in Appendix E.2; convergence and the attack's settings have two rows in place of two.
    assert counts["Carlini et al. 2019"] == 16 and counts["not in the papers"] == 2


def test_what_decides_is_an_item_a_row(tiny):
    table = checks.verdicts(checklist.evidence(tiny(), ["fgsm", "pgm"]))
    wide = checklist.decided(table, items.STRONG)
    measured = table[(table.topic == items.STRONG) & (table.verdict != "")]
    assert set(wide.index) == set(measured["item"])
    for row in measured.to_dict("records"):
        value, allowed = row["decides"].removesuffix(" allowed)").split(" (")
        told = value if row["verdict"] == "holds" else f"{value} {row['verdict']}"
        assert wide.loc[row["item"], row["defence"]] == told
        assert wide.loc[row["item"], "allowed"] == allowed


# Is it worth it ----------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=8, unique=True)
)
def test_the_front_is_what_nothing_dominates(points):
    cost, value = (pd.Series(v) for v in zip(*points, strict=True))
    undominated = {
        (c, v)
        for c, v in points
        if not any(d <= c and w >= v and (d, w) != (c, v) for d, w in points)
    }
    assert set(plots.front(cost, value).items()) == undominated


def test_the_picture_shows_every_defence_that_trained():
    about = {"start_seconds": 10.0, "status": "ok"}
    rows = [
        about | {"defence": name, "seed": s, "accuracy": a + 0.01 * s, "seconds": t + s}
        for name, t, a in (("Plain Net", 1, 0.0), ("PGM Net", 90, 0.6), ("Grad L2L", 40, 0.6))
        for s in (0, 1)
    ]
    rows.append(rows[0] | {"defence": "Free", "status": "collapsed", "accuracy": 1.0})
    fig = plots.worth_it(pd.DataFrame(rows))
    (ax,) = fig.axes
    named = {line.get_label(): line for line in ax.lines}
    for name, place in (("Plain Net", (11.5, 0.005)), ("PGM Net", (100.5, 0.605))):
        np.testing.assert_allclose(named[name].get_xydata(), [place])
    assert "Free" not in named and ax.get_ylim()[0] == 0
    (line,) = [line for line in ax.lines if line.get_label() == "best for its time"]
    assert line.get_xydata().tolist() == [[11.5, 0.005], [50.5, 0.605], [100.5, 0.605]]
    plt.close(fig)
