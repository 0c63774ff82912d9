"""The measurements of notebook 07, on networks of a few channels and images of four colours."""

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from l2lkit import recipes
from l2lkit.game import loop as training
from l2lkit.game.evaluate import perturb
from l2lkit.results import diverse, experiments
from l2lkit.runs.store import Store
from l2lkit.show import pictures, plots


@pytest.fixture(scope="module")
def store(tmp_path_factory, request):
    """Two seeds of tiny models on 8×8 images; whether they learn anything does not matter."""
    from conftest import coloured
    from PIL import Image

    root = tmp_path_factory.mktemp("diverse")
    for split, count, seed in (("train", 24, 0), ("test", 8, 1)):
        images, labels = coloured(count, 8, seed)
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            path = root / "images" / split / "rgby"[label] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.transpose(1, 2, 0)).save(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "_status", lambda log, classes: "ok")
        one = Store("smoke", "tiny", root / "images", "cpu", seeds=2, output=root / "out")
        one.profile = replace(one.profile, plain_epochs=1, epochs=1, batch_size=8)
        yield one


@pytest.fixture(scope="module")
def full(store):
    return store.recipe("l2l-da-cifar10/full")


def test_grey_images_have_the_recipes_of_mnist(store, monkeypatch):
    assert diverse.games(store)[-1] == "l2l-da-cifar10/full"
    grey = replace(
        store.data,
        train_images=store.data.train_images[:, :1],
        test_images=store.data.test_images[:, :1],
    )
    monkeypatch.setitem(vars(store), "data", grey)
    assert diverse.family(store) == "l2l-da"
    assert set(diverse.games(store)) <= set(recipes.RECIPES)


def test_generators_are_trained_against_a_classifier_that_stays(store, full):
    tuned = diverse.generators(store, store.recipe("pgm"), 0)
    assert tuple(tuned) == diverse.GENERATORS
    pgm = store.model("pgm", 0)
    for recipe in tuned.values():
        model = store.model(recipe, 0)
        assert model.attack.epsilon == pytest.approx(8 / 255)
        for name, value in pgm.classifier.state_dict().items():
            assert torch.equal(model.classifier.state_dict()[name], value)
    afresh = [tuned[name].attack for name in ("AdvGAN", "GAP")]
    assert {(a.width, a.network) for a in afresh} == {(full.attack.width, full.attack.network)}
    longer = diverse.generators(store, full, 0, replace(full, epochs=10))
    assert {r.epochs for r in longer.values()} == {1}


def test_the_generator_goes_on_from_the_one_it_was_trained_with(store, full):
    """Before its first step of fine-tuning it attacks as that one does."""
    own = store.model(full, 1).attack
    tuned = diverse.generators(store, store.recipe("pgm"), 1, full)["L2L-DA"]
    start = tuned.solver((8, 3, 8, 8), 4)
    x, y = store.images(4)
    classifier = store.model("pgm", 1).classifier
    one, two = (perturb(classifier, g, x, y, seed=0) for g in (own, start.eval()))
    assert torch.equal(one, two)
    moved = store.model(tuned, 1).attack
    assert not torch.equal(one, perturb(classifier, moved, x, y, seed=0))


def test_another_classifier_is_another_generator(store):
    """The parent is part of the identity, also when a recipe object is passed for its name; and so
    is the generator from which one goes on."""
    pgm = store.recipe("pgm")
    for name in ("GAP", "L2L-DA"):
        one, two = (diverse.generators(store, r, 0)[name] for r in (pgm, replace(pgm, epochs=2)))
        assert one.name == two.name and store.where(one, 0) != store.where(two, 0)
        assert pgm.name == one.key()["warm_start"]
    one, two = (diverse.generators(store, pgm, seed)["L2L-DA"] for seed in (0, 1))
    assert store.where(one, 0) != store.where(two, 0)


def test_the_table_has_the_papers_minimum_and_the_image_wise_one(store, full, monkeypatch):
    alive = {
        "Clean": np.array([1, 1, 1, 1], bool),
        "FGSM": np.array([1, 1, 1, 0], bool),
        "GAP": np.array([0, 1, 1, 1], bool),
    }
    monkeypatch.setattr(diverse, "survival", lambda *args: alive)
    frame = diverse.white_box(store, [full], [1]).set_index("attack")
    assert frame.accuracy.to_dict() == {
        "Clean": 1,
        "FGSM": 0.75,
        "GAP": 0.75,
        "Min": 0.75,
        "Worst": 0.5,
    }
    assert set(frame.seed) == {1} and set(frame.recipe) == {full.name}


def test_survival_meets_every_attack_of_table_2(store, full):
    """Its nine columns before "Min", in its order (section 5.1)."""
    right = diverse.survival(store, full, 0)
    assert list(right) == [
        "Clean",
        "FGSM",
        "PGD-10",
        "PGD-100",
        "C&W-100",
        "C&W-1000",
        "AdvGAN",
        "GAP",
        "L2L-DA",
    ]
    assert all(r.shape == (8,) for r in right.values())
    cheap = diverse.survival(store, full, 0, diverse.DESIGNED)
    assert list(cheap) == list(right)[:5]
    assert all(np.array_equal(cheap[a], right[a]) for a in cheap)


def test_restarts_by_hand(store, full):
    """PGD-10 on one model: ten runs of another start, the largest loss of each image."""
    star = "l2l-da-cifar10/l2l-star"
    frame = diverse.restarts(store, ["pgm"], star, full, [1])
    assert set(frame.attack) == {"PGD", "L2L", "L2L-DA"}
    steps = frame.groupby("attack").step.agg(list).to_dict()
    assert steps["PGD"] == steps["L2L"] == list(range(1, 11))
    assert steps["L2L-DA"] == list(range(1, full.attack.steps + 1))
    assert (frame.deviation >= 0).all() and (frame[frame.attack == "PGD"].deviation > 0).all()

    model = store.model("pgm", 1)
    x, y = store.images(store.profile.curve_images)
    pgd = diverse.designed_attacks(8 / 255)["PGD-10"]
    with torch.no_grad():
        losses = torch.stack(
            [
                F.cross_entropy(
                    model.classifier(x + perturb(model.classifier, pgd, x, y, seed=100 + i)),
                    y,
                    reduction="none",
                )
                for i in range(10)
            ]
        )
    last = frame[(frame.attack == "PGD") & (frame.step == 10)].iloc[0]
    assert last.loss == pytest.approx(losses.amax(0).mean().item(), abs=1e-5)
    assert last.deviation == pytest.approx(losses.std(0).mean().item(), abs=1e-5)


def test_transfer_comes_from_another_seed(store, full):
    frame = diverse.black_box(
        store, [store.recipe("pgm"), full], [store.recipe("plain")], full, (0, 1)
    )
    assert list(frame.attack.unique()) == ["L2L-DA", "PGD-10", "PGD-100"]
    assert len(frame) == 6 and set(frame.seed) == {0} and set(frame.surrogate) == {"Plain Net"}
    x, y = store.images(store.profile.eval_images)
    surrogate, target = store.model("plain", 1), store.model("pgm", 0)
    delta = perturb(surrogate.classifier, diverse.designed_attacks(8 / 255)["PGD-10"], x, y, seed=0)
    with torch.no_grad():
        wanted = (target.classifier((x + delta).clamp(0, 1)).argmax(1) == y).float().mean().item()
    cell = frame[(frame.defence == "PGM Net") & (frame.attack == "PGD-10")].accuracy.item()
    assert cell == pytest.approx(wanted)


def test_draws_of_one_image(store, full):
    image, deltas, answers = diverse.draws(store, full, 3, count=4, seed=0)
    assert image.shape == (3, 8, 8) and deltas.shape == (4, 3, 8, 8) and len(answers) == 4
    assert set(answers) <= set(store.data.class_names)
    assert len({tuple(d.flatten().tolist()) for d in deltas}) == 4


def test_diversity_by_hand():
    same = torch.full((3, 1, 2, 2), 0.1)
    assert diverse.diversity(same, 0.1) == 0
    opposite = torch.stack([torch.full((1, 2, 2), s) for s in (0.1, -0.1)])
    assert diverse.diversity(opposite, 0.1) == pytest.approx(1)
    third = torch.cat([opposite, torch.zeros(1, 1, 2, 2)])  # 0.2, 0.1 and 0.1 apart
    assert diverse.diversity(third, 0.1) == pytest.approx(4 / 3 / 2)


def test_everything_has_the_attacks_of_both_papers(store):
    frame = diverse.everything(store, ["grad", "l2l-da-cifar10/full"])
    attacks = frame.groupby("recipe", sort=False).attack.agg(list)
    generators = {"AdvGAN", "GAP", "L2L-DA"}  # at a small profile on two rows of the table
    assert generators.isdisjoint(attacks["iclr2020/grad@ours"])
    assert generators <= set(attacks["l2l-da-cifar10/full"])
    for found in attacks:
        assert len(set(found)) == len(found)
        assert {
            "Clean",
            "FGSM",
            "PGM-20",
            "PGM-100",
            "CW",
            "Random",
            "Own attacker",
            "PGD-10",
            "PGD-100",
            "C&W-100",
            "Min",
        } <= set(found)
    for _, group in frame.groupby("recipe"):
        cells = group.set_index("attack").accuracy
        assert cells["Min"] == cells.drop(["Clean", "Min"]).min()
    ours = frame[frame.recipe == "iclr2020/grad@ours"].set_index("attack").accuracy
    theirs = experiments.white_box(store, ["grad"], [0]).set_index("attack").accuracy
    assert ours["PGM-100"] == theirs["PGM-100"]


def test_effects_are_paired_by_seed():
    """Recursion without diversity: +10 and +20 points on two seeds; a third has collapsed."""
    rows = [
        ("no-d", 0, 0.6, "ok"),
        ("no-r-no-d", 0, 0.5, "ok"),
        ("no-d", 1, 0.6, "ok"),
        ("no-r-no-d", 1, 0.4, "ok"),
        ("no-d", 2, 0.1, "collapsed"),
        ("no-r-no-d", 2, 0.4, "ok"),
    ]
    frame = pd.DataFrame(
        {
            "recipe": f"l2l-da/{key}",
            "seed": seed,
            "status": status,
            "attack": attack,
            "accuracy": accuracy,
        }
        for key, seed, accuracy, status in rows
        for attack in ("PGD-100", "Worst")
    )
    found = diverse.effects(frame, ["PGD-100", "Worst"])
    first = found[(found.adding == "recursion") & (found[""] == "without diversity")]
    assert list(first.points) == ["15.0 ± 7.1"] * 2
    assert list(first["seeds that gain"]) == ["2 of 2"] * 2
    assert list(first.published) == ["+6.11", ""]  # Table 1a: 93.97 − 87.86; no such column
    assert set(found[found.adding == "diversity"].points) == {""}
    wide = diverse.effects_table(found)
    row = wide.loc[("recursion", "without diversity")]
    assert list(row) == ["15.0 ± 7.1 (2 of 2)", "15.0 ± 7.1 (2 of 2)", "+6.11"]


def test_pictures(store, full):
    table = diverse.restarts(store, ["pgm"], "l2l-da-cifar10/l2l-star", full, [0])
    fig = plots.restart_curves(table)
    assert [ax.get_title() for ax in fig.axes] == ["attacks on PGM Net"]
    image, deltas, answers = diverse.draws(store, full, 0, count=3, seed=0)
    fig = pictures.draws_view(image, deltas, answers, 8 / 255, "3")
    shown = [ax.images[0].get_array() for ax in fig.axes if ax.images]
    assert len(shown) == 5
    np.testing.assert_allclose(shown[0], image.permute(1, 2, 0), atol=1e-6)
    np.testing.assert_allclose(
        shown[2], (0.5 + 30 * deltas[0].permute(1, 2, 0)).clip(0, 1), atol=1e-5
    )
    plt.close("all")
