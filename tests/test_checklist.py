"""The checklist can say "fails": classifiers whose gradients are masked, quantised or noisy, beside
the same classifier without the mask; AutoAttack against a worst case known exactly."""

import json
import sys
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from l2lkit import attacks, checklist, evaluation, experiments, figures, recipes
from l2lkit.attacks import PGM, AutoAttack
from l2lkit.checklist import Item
from l2lkit.data import Dataset
from l2lkit.errors import InputError
from l2lkit.store import Model, Store

EPSILON = 0.031
SHAPE = (3, 8, 8)
QUICK = AutoAttack(attacks=("apgd-ce", "apgd-t", "square"), targets=3, queries=50)


def patterns(classes=4):
    """A pattern of signs for each class (classes, pixels)."""
    rng = np.random.default_rng(0)
    return torch.tensor(rng.choice([-1.0, 1.0], (classes, 192)), dtype=torch.float32)


def images(count, classes=4, seed=1):
    """uint8 images of a class's pattern, drawn fainter or stronger than ε, on noise."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    strength = rng.uniform(0.005, 0.06, (count, 1))
    pixels = 0.5 + strength * patterns(classes).numpy()[labels] + rng.normal(0, 0.01, (count, 192))
    x = np.rint(255 * pixels.clip(0, 1)).astype(np.uint8).reshape(count, *SHAPE)
    return torch.from_numpy(x), torch.from_numpy(labels)


class Linear(nn.Module):
    """Logits that compare the image with each pattern: a classifier without anything to hide."""

    def __init__(self, classes=4, scale=1.0, noise=0.0):
        super().__init__()
        self.weight = nn.Parameter(patterns(classes))
        self.scale, self.noise = scale, noise

    def forward(self, x):
        if self.noise:
            x = x + self.noise * torch.randn_like(x)
        return self.scale * (x - 0.5).flatten(1) @ self.weight.T


class Quantised(Linear):
    """Sees 256 shades; with `straight` its gradient pretends otherwise."""

    def __init__(self, straight=False):
        super().__init__()
        self.straight = straight

    def forward(self, x):
        shades = torch.round(255 * x) / 255
        return super().forward(x + (shades - x).detach() if self.straight else shades)


def robust(f, x, y, epsilon):
    """Whether no perturbation in the ball and the range fools the linear classifier, exactly: for
    each other class the best one is known pixel by pixel."""
    w = f.weight.detach().double()
    x = x.flatten(1).double()
    answer = torch.ones(len(x), dtype=torch.bool)
    for t in range(len(w)):
        direction = w[t] - w[y]
        delta = torch.minimum(torch.maximum(epsilon * direction.sign(), -x), 1 - x)
        gap = -(direction * (x + delta - 0.5)).sum(1)
        answer &= (gap > 0) | (y == t)
    return answer


# AutoAttack --------------------------------------------------------------------------------


def test_autoattack_finds_the_exact_worst_case_of_a_linear_classifier():
    x, y = images(60)
    x, f = x / 255, Linear()
    exact = robust(f, x, y, EPSILON)
    assert 15 < exact.sum() < 45  # the question is open
    for attack in (replace(QUICK, attacks=("apgd-ce",)), QUICK, replace(QUICK, attacks=("fab-t",))):
        found = evaluation.correct(f, {"AutoAttack": attack}, x, y)["AutoAttack"]
        assert torch.equal(found, exact), attack
    # Square has no gradients and too few queries here: it fools some of these and no others.
    square = evaluation.correct(f, {"": replace(QUICK, attacks=("square",))}, x, y)[""]
    assert exact.sum() <= square.sum() < len(x) and not (exact & ~square).any()


@settings(max_examples=10)
@given(epsilon=st.sampled_from([0.0, 0.031, 1.0]), seed=st.integers(0, 100))
def test_autoattack_stays_in_the_ball_and_never_helps(epsilon, seed):
    x, y = images(6, seed=seed)
    x[:2] = x[:2] // 128 * 255  # pixels at both ends of the range
    x, f = x / 255, Linear()
    y[0] = (f(x[:1]).argmax(1) + 1) % 4  # one that is wrong already
    before = torch.get_rng_state()
    rng = [torch.Generator().manual_seed(seed)]
    delta = replace(QUICK, epsilon=epsilon, queries=5)(f, x, y, rng)
    assert torch.equal(torch.get_rng_state(), before)
    assert delta.shape == x.shape and delta.dtype == x.dtype
    assert delta.abs().max() <= epsilon + 1e-7
    assert (x + delta).min() >= 0 and (x + delta).max() <= 1
    assert not delta[0].any()
    clean, attacked = (f(x + d).argmax(1) == y for d in (0, delta))
    assert not (attacked & ~clean).any()


def test_autoattack_leaves_no_trace_and_repeats():
    x, y = images(12)
    x, f = x / 255, Linear(noise=0.0)
    f.weight.grad = torch.ones_like(f.weight)
    attack = replace(QUICK, attacks=("apgd-ce", "fab-t", "square"))
    events = []

    def tracer(*event):
        events.append(event)

    old = sys.gettrace()
    sys.settrace(tracer)
    try:
        a, b = (evaluation.perturb(f, attack, x, y, seed=5) for _ in range(2))
        kept = sys.gettrace()
    finally:
        sys.settrace(old)
    assert kept is tracer
    assert torch.equal(a, b)
    assert not torch.equal(a, evaluation.perturb(f, attack, x, y, seed=6))
    assert torch.equal(f.weight.grad, torch.ones_like(f.weight)) and f.weight.requires_grad
    one = evaluation.perturb(f, attack, x, y, seed=5, batch_size=1)
    assert torch.equal(one, a)


def test_the_defaults_are_the_standard_version():
    import pyautoattack

    theirs = pyautoattack.AutoAttack(Linear(), eps=0.1)
    ours = AutoAttack()
    assert list(ours.attacks) == theirs.attacks_to_run
    assert ours.targets == theirs.apgd_targeted.n_target_classes == theirs.fab.n_target_classes
    assert ours.queries == theirs.square.n_queries
    assert theirs.apgd.n_restarts == theirs.fab.n_restarts == 1
    assert AutoAttack(epsilon=0.1).label == "AutoAttack"
    assert QUICK.label == "AutoAttack (apgd-ce, apgd-t ×3, square ×50)"


@pytest.mark.parametrize(
    ("options", "classes", "words"),
    [({"attacks": ("pgd",)}, 4, "must be some of"), ({"attacks": ()}, 4, "must be some of"),
     ({"epsilon": 8}, 4, "8/255"), ({"queries": 0}, 4, "positive"),
     ({"attacks": ("apgd-t",)}, 3, "apgd-t needs 4 classes and there are 3"),
     ({"attacks": ("apgd-dlr",)}, 2, "apgd-dlr needs 3 classes and there are 2")],
)  # fmt: skip
def test_what_autoattack_refuses(options, classes, words):
    x, y = images(4, classes)
    with pytest.raises(InputError, match=words):
        AutoAttack(**options)(Linear(classes), x / 255, y)


def test_autoattack_is_for_float32():
    x, y = images(4)
    with pytest.raises(InputError, match="float32"):
        AutoAttack()(Linear().double(), x.double() / 255, y)


@pytest.mark.parametrize("classes", [2, 3])
def test_two_or_three_classes_are_attacked_without_the_targeted_loss(classes, tiny):
    store = tiny(classes=classes)
    attack = checklist.auto_attack(store)
    x, y = store.images(12)
    found = evaluation.correct(Linear(classes), {"": attack}, x, y)[""]
    assert torch.equal(found, robust(Linear(classes), x, y, EPSILON))


# Gradients ---------------------------------------------------------------------------------


def test_gradients_against_finite_differences():
    x, _ = images(6)
    x = x / 255
    torch.manual_seed(0)
    smooth = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4)
    )
    for f in (Linear(), smooth.train()):
        assert checklist.gradient_errors(f, x).max() < 1e-6
        assert {p.dtype for p in f.parameters()} == {torch.float32}
    assert smooth.training and not smooth[1].running_mean.any()
    for f in (Quantised(), Quantised(straight=True), Linear(noise=0.01)):
        assert checklist.gradient_errors(f, x).min() > 0.5


def test_a_wrong_gradient_is_measured():
    """Half the slope, by hand: the relative error is a half."""

    class Halved(Linear):
        def forward(self, x):
            return super().forward((x + x.detach()) / 2)

    x, _ = images(3)
    error = checklist.gradient_errors(Halved(), x / 255)
    torch.testing.assert_close(error, torch.full((3,), 0.5, dtype=torch.float64))


# The whole list on classifiers of known vice -----------------------------------------------

TINY = recipes.Profile(
    name="smoke", seeds=1, eval_images=24, curve_images=20, random_draws=5, epochs=1
)
VICES = {
    "plain": Linear, "fgsm": Linear, "pgm": Linear,
    "naive": lambda: Linear(scale=1e6),  # the loss is flat in float32
    "grad": Quantised,
    "2step": lambda: Linear(noise=0.03),
    "grad-slim": Linear,
}  # fmt: skip


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """Opens a store whose models are the classifiers of VICES."""

    def model(self, name, seed=None):
        recipe = self.recipe(name) if isinstance(name, str) else name
        short = recipe.name.removeprefix("iclr2020/")
        kind = VICES.get(short, Linear)
        log = pd.DataFrame({"seconds": [1.0, 2.0]})
        attack = PGM(steps=2) if short == "pgm" else None
        return Model(
            replace(recipe, attack=attack), seed or 0, kind().eval(), attack, log,
            {"id": f"{short}-{seed}", "status": "ok"},
        )  # fmt: skip

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
    table = checklist.verdicts(numbers)
    assert failing(table, "PGM Net") == set()
    assert failing(table, "FGSM Net") == set()
    masked = failing(table, "Naive L2L")
    assert masked >= {
        "white box beats black box", "unbounded attacks reach 100 %", "diverse attacks",
        "differentiable, with gradients", "the loss climbs along its gradient",
    }  # fmt: skip
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
    checklist.measure(tiny(), "grad-slim", 0)
    assert seen == {"grad-slim"}


def test_without_autoattack_its_cells_are_empty(tiny, monkeypatch):
    monkeypatch.setattr(checklist, "autoattack_installed", lambda: False)
    monkeypatch.setattr(attacks, "autoattack_installed", lambda: False)
    store = tiny()
    numbers = checklist.evidence(store, ["pgm"])
    assert "AutoAttack" not in set(numbers.quantity)
    table = checklist.verdicts(numbers).set_index("item")
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
    table = checklist.verdicts(checklist.evidence(store, names))
    assert len(table) == 2 * len(checklist.ITEMS) and set(table.verdict) == {""}
    assert checklist.about(table, checklist.PRICE).empty
    for fig in (
        figures.convergence(checklist.long_run(store, names)),
        figures.loss_surfaces(checklist.loss_surface(store, names, points=3)),
        figures.worth_it(checklist.robust_accuracy(store, names)),
    ):
        (ax,) = fig.axes
        assert "nothing to draw" in ax.texts[0].get_text()
        plt.close(fig)


def test_robust_accuracy_is_the_worst_of_all_image_by_image(tiny, monkeypatch):
    store = tiny()
    x, y = store.images(20)
    right = evaluation.correct(Linear(), experiments.white_box_attacks(store), x, y)
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
    fig = figures.loss_surfaces(plane)
    assert [ax.get_title().split("\n")[0] for ax in fig.axes] == ["PGM Net", "Naive L2L"]
    plt.close(fig)


def test_every_attack_is_described_so_that_it_can_be_made_again(tiny):
    table = checklist.described(tiny())
    assert {"FGSM", "PGM-100", "PGM-500", "CW", "Random"} <= set(table.attack)
    assert table.attack.is_unique and any(table.attack.str.startswith("AutoAttack"))
    kinds = vars(checklist)
    made = [eval(line, {k: kinds[k] for k in ("FGSM", "PGM", "CW", "RandomSearch", "AutoAttack")})
            for line in table.settings]  # fmt: skip
    assert made == list(checklist.attacks(tiny()).values())
    ends = json.dumps([repr(a) for a in made])
    assert "steps=500" in ends and "epsilon=1.0" in ends


# Verdicts ----------------------------------------------------------------------------------


def test_counts_of_a_table_by_hand():
    """Ten images, and who still gets which right."""
    rights = {
        "Clean": range(10), "FGSM": (0, 1, 2, 3), "PGM-1": range(8), "PGM-2": range(9),
        "PGM-5": range(9), "PGM-10": range(8), "PGM-20": range(7), "PGM-50": range(6),
        "PGM-100": range(6), "CW": (0, 1, 2, 4, 5), "Random": (0, 2, 3, 4, 5, 6, 7),
        "Own attacker": (1, 2, 3, 4, 5), "Worst": (0, 1, 2, 4, 5),
    }  # fmt: skip
    table = {k: np.isin(np.arange(10), list(images)) for k, images in rights.items()}
    found = {name: (value, n) for name, value, n in checklist._from_table(table)}
    assert all(n == 10 for _, n in found.values())
    counts = {name: value for name, (value, _) in found.items() if name not in rights}
    assert counts == {
        "one step ahead": 2,  # 6 against 4: the sign of a mask
        "random alone": 1,  # image 1; PGM-100 has 8 and 9 itself
        "FGSM alone": 2,  # 4 and 5 of the worst
        "own alone": 1,  # 0
        "rise over T": 1,  # from PGM-1 to PGM-2
        "PGM-100 misses": 5,  # all but 2 of 0 to 5
        "any": 0.1,
        # Image 3 falls to CW only, 1 to random, 0 to the own attacker; 4 and 5 to FGSM.
        "only PGM": 0, "only CW": 1, "only random": 1, "only own": 1, "only FGSM": 2,
    }  # fmt: skip
    assert found["FGSM"] == (0.4, 10)


SHOWN = "share {share:.0%}, {count:.3g} images"
RULE = Item("topic", "rule", "us", SHOWN, "count", checklist.slack)


def frame(rows):
    """defence, seed, status, count, images; half as share."""
    made = []
    for defence, seed, status, count, n in rows:
        about = {"defence": defence, "seed": seed, "status": status, "images": n}
        if count is not None:
            made.append(about | {"quantity": "count", "value": count})
        made.append(about | {"quantity": "share", "value": 0.5 + seed / 10})
    return pd.DataFrame(made)


def test_verdicts_by_hand():
    table = checklist.verdicts(
        frame([
            ("all", 0, "ok", 0, 150), ("all", 1, "ok", 1, 150),
            ("no", 0, "ok", 2, 150), ("no", 1, "ok", 9, 150),
            ("some", 0, "ok", -3, 150), ("some", 1, "ok", 2, 150),
            ("failed run", 0, "ok", 0, 150), ("failed run", 1, "collapsed", 100, 150),
            ("unmeasured", 0, "ok", None, 150),
            ("measured once", 0, "ok", 5, 150), ("measured once", 1, "ok", None, 150),
            ("larger", 0, "ok", 5, 1000), ("larger still", 0, "ok", 6, 1000),
        ]), [RULE],
    ).set_index("defence")  # fmt: skip
    assert table.verdict.to_dict() == {
        "all": "holds", "no": "fails", "some": "mixed", "failed run": "holds", "unmeasured": "",
        "measured once": "fails", "larger": "holds", "larger still": "fails",
    }  # fmt: skip
    assert table.seeds["some"] == "1 of 2" and table.seeds["failed run"] == "1 of 1"
    assert table.figure["all"] == "share 55%, 0.5 images"  # means over seeds
    assert table.figure["measured once"] == "share 50%, 5 images"  # over those that decide
    assert table.figure["unmeasured"] == table.seeds["unmeasured"] == ""
    assert table.decides["some"] == "2 (1 allowed)"  # the worst seed
    wide = checklist.overview(table.reset_index())
    assert wide.loc[("topic", "rule", "us"), "some"] == "mixed"
    assert list(wide.columns) == list(table.index)
    read = checklist.about(table.reset_index(), "topic")
    assert ("rule", "unmeasured") not in read.index and len(read) == len(table) - 1


def test_tolerances():
    assert [checklist.slack(n) for n in (16, 150, 399, 400, 10_000)] == [1, 1, 1, 2, 50]
    assert [checklist.twentieth(n) for n in (8, 39, 64, 10_000)] == [1, 1, 3, 500]


def test_every_item_is_measured_and_shown(tiny):
    """Each item's template finds its numbers; the two papers' items are all there."""
    table = checklist.verdicts(checklist.evidence(tiny(), ["fgsm", "pgm"]))
    shown = table[table.figure != ""]
    without = {"adaptive attacks"}  # none of these has an attacker of its own
    assert {i.name for i in checklist.ITEMS} - set(shown["item"]) == without
    counts = pd.Series([i.source for i in checklist.ITEMS]).value_counts()
    assert counts["Athalye et al. 2018"] == 5
    # 15 in Appendix E.2; convergence and the attack's settings have two rows in place of two.
    assert counts["Carlini et al. 2019"] == 16 and counts["not in the papers"] == 2


# Is it worth it ----------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=8, unique=True)
)
def test_the_front_is_what_nothing_dominates(points):
    cost, value = (pd.Series(v) for v in zip(*points, strict=True))
    undominated = {
        (c, v) for c, v in points
        if not any(d <= c and w >= v and (d, w) != (c, v) for d, w in points)
    }  # fmt: skip
    assert set(figures.front(cost, value).items()) == undominated


def test_the_picture_shows_every_defence_that_trained():
    about = {"start_seconds": 10.0, "status": "ok"}
    rows = [
        about | {"defence": name, "seed": s, "accuracy": a + 0.01 * s, "seconds": t + s}
        for name, t, a in (("Plain Net", 1, 0.0), ("PGM Net", 90, 0.6), ("Grad L2L", 40, 0.6))
        for s in (0, 1)
    ]
    rows.append(rows[0] | {"defence": "Free", "status": "collapsed", "accuracy": 1.0})
    fig = figures.worth_it(pd.DataFrame(rows))
    (ax,) = fig.axes
    assert [text.get_text() for text in ax.texts] == ["Plain Net", "PGM Net", "Grad L2L"]
    assert [text.xy for text in ax.texts] == [(11.5, 0.005), (100.5, 0.605), (50.5, 0.605)]
    (line,) = [line for line in ax.lines if line.get_label() == "best for its time"]
    assert line.get_xydata().tolist() == [[11.5, 0.005], [50.5, 0.605], [100.5, 0.605]]
    plt.close(fig)
