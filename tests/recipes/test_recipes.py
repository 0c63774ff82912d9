"""The recipes: what the texts say of each row, and that every row runs on every dataset."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_data import fake_cifar, fake_mnist, fake_svhn
from torchvision import datasets

from l2lkit.data import load
from l2lkit.game.fixed import FGSM, PGM
from l2lkit.game.free import Free
from l2lkit.game.learned import Learned
from l2lkit.game.loop import train
from l2lkit.recipes import (
    DEFENCES,
    PROFILES,
    RECIPES,
    at_scale,
    printed,
    recipe,
    recommended,
)

LEARNED = [r for r in RECIPES.values() if isinstance(r.attack, Learned)]


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """Each official dataset, from tiny files in its own format, through its own loader."""
    root = tmp_path_factory.mktemp("official")
    with pytest.MonkeyPatch.context() as patch:
        fake_cifar(patch, root, datasets.CIFAR10, "labels", [1, 0, 9, 3, 2, 2, 7, 5, 4, 8, 6, 0])
        fake_cifar(patch, root, datasets.CIFAR100, "fine_labels", [*range(88, 100)])
        fake_svhn(patch, root)
        fake_mnist(root)
        yield {name: load(name, root) for name in ("cifar10", "cifar100", "svhn", "mnist")}


@pytest.mark.parametrize(
    ("name", "dataset"),
    # Between them CIFAR-100 and MNIST have every number of channels and of classes, every size, and
    # augmentation or none.
    [(name, dataset) for name in RECIPES for dataset in ("cifar100", "mnist")]
    + [(f"iclr2020/{name}", dataset) for name in DEFENCES for dataset in ("cifar10", "svhn")],
)
def test_every_recipe_takes_a_few_steps_on_every_dataset(official, name, dataset):
    data = official[dataset].subset(3, 2)
    small = at_scale(RECIPES[name], PROFILES["smoke"])
    small = replace(small, batch_size=2, epochs=1, warm_start=None, precision="float32")
    if isinstance(small.attack, Free):
        small = replace(small, attack=replace(small.attack, replays=2))
    game, log, status = train(small, data, seed=0)
    assert status in ("ok", "collapsed")
    assert np.isfinite(log.to_numpy(dtype=float)).all()
    logits = game.classifier(data.test_images.float() / 255)
    assert logits.shape == (2, 100 if dataset == "cifar100" else 10)
    assert torch.isfinite(logits).all()


def test_every_defence_of_every_version_is_there():
    """The rows of the versions' tables (2018 Table 1, v2 Tables 2 and 5, ICLR 2020 Tables 2 and
    8), counted by hand."""
    rows = [name for name in RECIPES if "@" not in name]
    counts = {
        version: sum(name.startswith(f"{version}/") for name in rows)
        for version in ("2018", "v2", "v2-svhn", "iclr2020", "today")
    }
    # ICLR 2020: Plain, PGM, Naive, Grad, 2-Step; slim Naive, Grad, 2-Step; and FGSM Net, a
    # surrogate of its Table 4.
    assert counts == {"2018": 5, "v2": 9, "v2-svhn": 9, "iclr2020": 9, "today": 12}


def test_what_differs_between_printed_coded_and_recommended():
    """The audit's list: the gradient's scale, the order of the steps, networks and start."""
    for name, row in RECIPES.items():
        if "@" in name or name.startswith("l2l-da") or not isinstance(row.attack, Learned):
            continue
        ours = RECIPES[f"{name}@ours"]
        assert (row.update, row.attack.gradient) == ("printed", "none")
        assert (ours.update, ours.attack.gradient) == ("simultaneous", "per-image")
        assert row.defence == f"{ours.defence}, as printed"
        back = replace(ours.attack, gradient="none", network=row.attack.network)
        words = {"name": name, "defence": row.defence, "source": row.source}
        assert replace(ours, attack=back, update="printed", **words) == row
        if name.startswith("iclr2020/") and row.attack.steps:
            code = RECIPES[f"{name}@code"]
            assert (code.update, code.attack.gradient) == ("alternating", "batch-max")
            rates = [code.optimiser.lr_at(e, code.epochs) for e in (29, 30, 59, 60, 75)]
            assert code.epochs == 76
            assert rates == pytest.approx([0.1, 0.01, 0.01, 0.001, 0.001])
    networks = {
        n: RECIPES[f"iclr2020/{n}"].attack.network
        for n in ("grad", "grad@code", "grad@ours", "grad-slim", "grad-slim@code")
    }
    assert list(networks.values()) == [
        "iclr2020",
        "v2-wide",
        "iclr2020-norm",
        "iclr2020-slim",
        "code-slim",
    ]
    assert RECIPES["v2/grad-slim"].attack.network == "v2-slim"
    assert RECIPES["iclr2020/pgm"].attack.start == "zero"  # equation 2
    assert RECIPES["iclr2020/pgm@ours"].attack.start == "uniform"


def test_names_of_recipes():
    assert recipe("grad") is RECIPES["iclr2020/grad@ours"]
    assert recipe("grad@code") is RECIPES["iclr2020/grad@code"]
    assert recipe("iclr2020/grad").defence == "Grad L2L, as printed"
    assert recipe("plain") is RECIPES["iclr2020/plain"]
    assert recipe("cw") is RECIPES["iclr2020/cw@ours"]  # which no text has
    names = (
        "v2/pgm",
        "iclr2020/pgm",
        "iclr2020/grad@code",
        "l2l-da/full@code",
        "l2l-da/start@code",
    )
    assert [recommended(n) for n in names] == [
        "v2/pgm",
        "iclr2020/pgm@ours",
        "iclr2020/grad@ours",
        "l2l-da/full",
        "l2l-da/start@code",  # which has no other kind
    ]
    assert {printed(n) for n in RECIPES} - set(RECIPES) == {"iclr2020/cw", "l2l-da/start"}
    for shown in {(n.split("/")[0], r.defence) for n, r in RECIPES.items()}:
        assert len([n for n, r in RECIPES.items() if (n.split("/")[0], r.defence) == shown]) == 1


@pytest.mark.parametrize(
    ("version", "epsilon", "epochs", "batch"),
    [
        ("2018", 0.03, 40, 128),
        ("v2", 0.03, 40, 128),
        ("v2-svhn", 0.05, 40, 128),
        ("iclr2020", 0.031, 100, 128),
    ],
)
def test_epsilon_and_epochs_are_the_texts(version, epsilon, epochs, batch):
    rows = [r for n, r in RECIPES.items() if n.startswith(f"{version}/") and r.attack]
    for row in rows:
        long = 76 if row.name.endswith("@code") else epochs
        assert (row.attack.epsilon, row.epochs, row.batch_size) == (epsilon, long, batch)
        assert (row.warm_start is None) == (version == "iclr2020")
        assert row.classifier == ("wrn-34-10" if version == "iclr2020" else "wrn-34-4")


def test_pgm_of_each_version():
    steps = {v: RECIPES[f"{v}/pgm"].attack for v in ("2018", "v2", "v2-svhn", "iclr2020")}
    assert all(attack.steps == 10 for attack in steps.values())
    assert steps["2018"].step_size == pytest.approx(steps["2018"].epsilon / 10)  # η = ε/T
    assert steps["v2"].step_size == steps["v2-svhn"].step_size == 0.01
    assert steps["iclr2020"].step_size == 0.007
    assert {a.start for a in steps.values()} == {"zero"}  # δ⁰ = 0, equation 2


def test_who_trains_on_clean_images_too():
    """2018: all (its Algorithms 1 and 2); v2: FGSM and PGM Net (section 3.2); ICLR 2020: none.
    L2L-DA: all but the one that trains on nothing else (its Algorithm 1, line 10); in its authors'
    code the clean images are part of the batch."""
    both = {printed(name) for name, r in RECIPES.items() if r.clean_weight}
    diverse = {
        n for n, r in RECIPES.items() if n.startswith("l2l-da") and r.attack and "@" not in n
    }
    assert len(diverse) == 2 * 13
    assert both == diverse | {f"2018/{n}" for n in ("fgsm", "pgm", "naive", "grad")} | {
        f"{v}/{n}" for v in ("v2", "v2-svhn") for n in ("fgsm", "pgm")
    }


def test_l2l_da_is_trained_as_section_5_1_says():
    """ε of 0.3 and 8/255, steps of ε/4, batches of 100, 100,000 iterations, SGD of rate 0.01,
    momentum 0.9 and decay 1e-5 for both players; the classifier's rate falls half-way. λ and the
    size of z are the authors' code's."""
    for version, classifier, images, epsilon, diversity in (
        ("l2l-da", "lenet-5", 60_000, 0.3, 0.02),
        ("l2l-da-cifar10", "resnet-20", 50_000, 8 / 255, 0.5),
    ):
        rows = [r for n, r in RECIPES.items() if n.startswith(f"{version}/") and r.attack]
        for row in rows:
            assert row.attack.epsilon == pytest.approx(epsilon)
            assert row.classifier == classifier
            if "@" not in row.name:
                assert row.warm_start == f"{version}/plain"
            assert row.epochs * images / row.batch_size == pytest.approx(100_000, rel=0.01)
            assert row.optimiser.lr_at(row.epochs // 2 - 1, row.epochs) == 0.01
            assert row.optimiser.lr_at(row.epochs // 2 + 1, row.epochs) == pytest.approx(0.001)
            for player in [row.optimiser, *([row.attacker_optimiser] if row.learned else [])]:
                assert (player.kind, player.momentum, player.weight_decay) == ("sgd", 0.9, 1e-5)
        full = RECIPES[f"{version}/full"].attack
        assert (full.steps, full.latent, full.diversity) == (10, 8, diversity)
        attacker = full((100, 1, 28, 28), 10)
        assert attacker.step_size == pytest.approx(epsilon / 4)
        for key, steps in (("pgd10", 10), ("pgd100", 100)):
            pgd = RECIPES[f"{version}/{key}"].attack
            assert (pgd.steps, pgd.step_size) == (steps, pytest.approx(epsilon / 4))


def test_l2l_da_as_printed_and_as_its_authors_ran_it():
    """Equations 6 and 7 are means over the steps, and Algorithm 1 steps on L(x) + L(x_adv). The
    code: sums, one batch in which one image of three is clean, gradients no longer than 1, its own
    U-Net, and on MNIST a classifier that has seen 1,000 batches of clean images (two epochs are
    1,200)."""
    starts = {"l2l-da": "l2l-da/start@code", "l2l-da-cifar10": "l2l-da-cifar10/plain"}
    for version, start in starts.items():
        printed, code = (RECIPES[f"{version}/full{variant}"] for variant in ("", "@code"))
        assert (printed.attack.objective, printed.attack.with_clean) == ("mean", False)
        assert printed.clean_weight == 1 and not printed.optimiser.clip
        assert not printed.attacker_optimiser.clip
        attack = replace(printed.attack, network="unet-code", objective="sum", with_clean=True)
        assert code.attack == attack and code.clean_weight == 0
        assert code.optimiser == replace(printed.optimiser, clip=1.0)
        assert code.attacker_optimiser == replace(printed.attacker_optimiser, clip=1.0)
        assert code.warm_start == start
        assert code.epochs == printed.epochs
    clean = RECIPES["l2l-da/start@code"]
    assert clean.attack is None and clean.epochs * 600 == pytest.approx(1000, rel=0.21)


@pytest.mark.parametrize("variant", ["", "@code"])
def test_every_ingredient_of_l2l_da_is_switched_off_alone(variant):
    full = RECIPES[f"l2l-da/full{variant}"].attack
    alone = {
        "no-r": {"steps": 1},
        "no-d": {"diversity": 0.0},
        "no-y": {"labels": False},
        "no-delta": {"accumulated": False},
        "no-norm": {"gradient": "none"},
    }
    for key, changed in alone.items():
        assert RECIPES[f"l2l-da/{key}{variant}"].attack == replace(full, **changed)


def test_rates_fall_where_the_texts_say():
    """Rates after 30 of 40 epochs (2018, v2) and after 30, 60 and 90 of 100 (ICLR 2020)."""
    for name, rates in {
        "2018/grad": {0: 0.1, 29: 0.1, 30: 0.01, 39: 0.01},
        "v2/2step-slim": {0: 0.1, 29: 0.1, 30: 0.01},
        "v2/pgm": {0: 0.01, 39: 0.01},
        "v2-svhn/grad-wide": {0: 2e-4, 29: 2e-4, 30: 2e-5},
        "v2-svhn/plain": {0: 0.1, 159: 0.1},
        "iclr2020/grad": {0: 0.1, 29: 0.1, 30: 0.01, 60: 0.001, 90: 1e-4},
    }.items():
        recipe = RECIPES[name]
        for epoch, rate in rates.items():
            assert recipe.optimiser.lr_at(epoch, recipe.epochs) == pytest.approx(rate), name
    svhn = RECIPES["v2-svhn/grad-wide"]
    assert svhn.attacker_optimiser.lr_at(39, 40) == 1e-3
    assert svhn.optimiser.kind == svhn.attacker_optimiser.kind == "adam"
    assert svhn.optimiser.betas == svhn.attacker_optimiser.betas == (0.9, 0.99)


def test_todays_rows_are_their_papers():
    free, fast, trades = (RECIPES[f"today/{n}"] for n in ("free", "fgsm-rs", "trades"))
    assert free.attack.replays * free.epochs <= 100
    assert fast.attack == PGM(epsilon=0.031, steps=1, step_size=1.25 * 0.031, start="uniform")
    assert (trades.trades, trades.attack.against) == (6.0, "prediction")
    assert FGSM().epsilon == free.attack.epsilon == trades.attack.epsilon


def test_a_small_scale_changes_adams_rate_for_the_attacker_only():
    small = at_scale(RECIPES["v2-svhn/grad-wide"], PROFILES["quick"])
    assert small.optimiser.lr == 2e-4
    assert small.attacker_optimiser.lr == PROFILES["quick"].attacker_lr
    assert small.attack.epsilon == 0.05 and small.warm_start == "v2-svhn/plain"
    sgd = at_scale(RECIPES["v2/grad-wide"], PROFILES["quick"])
    assert sgd.attacker_optimiser == RECIPES["v2/grad-wide"].attacker_optimiser


def test_a_small_scale_eases_free_and_trades():
    quick = PROFILES["quick"]
    assert at_scale(RECIPES["today/free"], quick).attack.replays == quick.replays < 8
    assert at_scale(RECIPES["today/trades"], quick).trades == quick.trades < 6
    assert at_scale(RECIPES["iclr2020/pgm"], quick).trades == 0


@pytest.mark.parametrize("name", RECIPES)
def test_warm_starts_exist_and_the_paper_scale_changes_nothing(name):
    assert at_scale(RECIPES[name], PROFILES["paper"]) == RECIPES[name]
    for profile in ("smoke", "quick"):
        start = at_scale(RECIPES[name], PROFILES[profile]).warm_start
        assert start is None if RECIPES[name].attack is None else RECIPES[start].attack is None
    if RECIPES[name].warm_start:
        assert RECIPES[RECIPES[name].warm_start].attack is None


def test_words_about_a_recipe_do_not_make_another_model():
    grad = RECIPES["iclr2020/grad"]
    assert replace(grad, source="elsewhere").key() == grad.key()
    assert replace(grad, epochs=1).key() != grad.key()
