"""Measured beside published: whose numbers, which statistic, and what stays empty."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import tiny
import torch

from l2lkit import recipes
from l2lkit.errors import InputError
from l2lkit.game import evaluate as evaluation
from l2lkit.game import loop as training
from l2lkit.game.cw import CW, CWTanh
from l2lkit.game.fixed import FGSM, PGM
from l2lkit.game.learned import Learned
from l2lkit.recipes import RECIPES
from l2lkit.results import diverse, experiments, tables
from l2lkit.results.recorded import recorded
from l2lkit.runs.store import Store

TINY = replace(tiny.TINY, seeds=2)


@pytest.fixture(autouse=True)
def profile(monkeypatch):
    monkeypatch.setitem(recipes.PROFILES, "smoke", TINY)


@pytest.fixture
def store(folder, tmp_path, monkeypatch):
    """Opens a store of the tiny images; other names of datasets are never loaded. Whether so short
    a training counts as collapsed depends on the machine, so here none does."""
    monkeypatch.setattr(training, "_status", lambda log, classes: "ok")

    def open_store(dataset="tiny", **options):
        return Store("smoke", dataset, folder, "cpu", output=tmp_path / "out", **options)

    return open_store


@pytest.fixture
def results(store, monkeypatch):
    """A store whose models have the given accuracies: {seed: (status, {attack: accuracy})}, the
    other seeds untrained."""

    def make(given, dataset="cifar10", seeds=3):
        one = store(dataset, seeds=seeds)
        model = {
            s: SimpleNamespace(defence="", seed=s, status=status)
            for s, (status, _) in given.items()
        }
        monkeypatch.setattr(one, "finished", lambda name, seed: seed in given)
        monkeypatch.setattr(one, "model", lambda name, seed: model[seed])

        def correct(model, attacks, count):
            shares = given[model.seed][1]
            return {a: np.arange(1000) < 1000 * shares.get(a, 0.25) for a in attacks}

        def white_box(store, names, seeds):
            return pd.DataFrame(
                {
                    "defence": names[0],
                    "seed": s,
                    "status": given[s][0],
                    "attack": a,
                    "accuracy": share,
                }
                for s in seeds
                for a, share in given[s][1].items()
            )

        monkeypatch.setattr(one, "correct", correct)
        monkeypatch.setattr(experiments, "white_box", white_box)
        return one

    return make


def cell(frame, attack, recipe=None):
    found = frame[(frame.attack == attack) & (frame.recipe == (recipe or frame.recipe.iloc[0]))]
    return found.iloc[0] if len(found) == 1 else pytest.fail(f"{len(found)} rows for {attack}")


# Protocols ---------------------------------------------------------------------------------


def test_the_protocols_are_those_of_the_texts():
    assert tables.protocol("2018") == {
        "Clean": None,
        "FGSM": FGSM(epsilon=0.03),
        "PGM-10": PGM(epsilon=0.03, steps=10, step_size=0.003, start="zero"),
    }
    for version, epsilon in (("v2", 0.03), ("v2-svhn", 0.05)):
        assert tables.protocol(version) == {
            "Clean": None,
            "FGSM": FGSM(epsilon=epsilon),
            "PGM-10": PGM(epsilon=epsilon, steps=10, step_size=0.01, start="zero"),
            "CW": CW(epsilon=epsilon, steps=100),
        }


def test_the_authors_code_starts_next_to_the_image():
    """PGM of 0.003 a step from N(0, 0.001), 20 and 100 steps, and CW in tanh space."""
    assert tables.protocol("code") == {
        "Clean": None,
        "PGM-20": PGM(epsilon=0.031, steps=20, step_size=0.003, start="gaussian"),
        "PGM-100": PGM(epsilon=0.031, steps=100, step_size=0.003, start="gaussian"),
        "CW": CWTanh(epsilon=0.031),
    }


def test_a_version_is_played_as_often_as_it_averages(store):
    """At profile paper, where no number was asked for: 2018 "averaged over 10 runs", v2 5, ICLR
    2020 "5 runs … the worst"."""
    paper, asked = (Store("paper", device="cpu", seed=3, seeds=n) for n in (None, 2))
    counts = {
        v: len(tables._seeds(paper, v)) for v in ("2018", "v2", "v2-svhn", "iclr2020", "today")
    }
    assert counts == {"2018": 10, "v2": 5, "v2-svhn": 5, "iclr2020": 5, "today": 5}
    assert tables._seeds(paper, "2018")[0] == 3
    assert tables._seeds(asked, "2018") == asked.seeds == [3, 4]
    assert tables._seeds(store(), "2018") == [0, 1]


@pytest.mark.parametrize("name", [n for n in RECIPES if n.split("/")[0] in tables.OLDER])
def test_a_defence_is_attacked_within_the_ball_it_trained_in(name):
    attack = RECIPES[name].attack
    fgsm = tables.protocol(name.split("/")[0])["FGSM"]
    assert attack is None or attack.epsilon == fgsm.epsilon


# The white box -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "table", "published", "deviation"),
    [("2018/grad", "Table 1", 89.09, np.nan), ("v2/grad-wide", "Table 2", 86.92, 0.35)],
)
def test_the_older_versions_print_the_mean(results, name, table, published, deviation):
    one = results({s: ("ok", {"Clean": share}) for s, share in enumerate((0.9, 0.5, 0.7))})
    row = cell(tables.compare(one, [name]), "Clean")
    assert (row.defence, row.table, row.dataset) == (RECIPES[name].defence, table, "cifar10")
    assert (row.published, row.statistic) == (published, "mean")
    assert row.published_deviation == pytest.approx(deviation, nan_ok=True)
    assert (row.measured, row.deviation, row.worst) == pytest.approx((70, 20, 50))
    assert row.difference == pytest.approx(70 - published)
    assert row.seeds == "3 of 3"


def test_iclr2020_prints_the_worst(results):
    one = results({s: ("ok", {"PGM-20": share}) for s, share in enumerate((0.9, 0.5, 0.7))})
    row = cell(tables.compare(one, ["2step"]), "PGM-20")
    assert (row.recipe, row.table, row.published) == ("iclr2020/2step@ours", "Table 2", 54.32)
    assert (row.measured, row.worst, row.statistic) == pytest.approx((70, 50, "worst"))
    assert row.difference == pytest.approx(50 - 54.32)


@pytest.mark.parametrize("status", ["collapsed", "diverged"])
def test_a_seed_that_failed_does_not_count(results, status):
    given = {0: ("ok", {"Clean": 0.8}), 1: (status, {"Clean": 0.1}), 2: ("ok", {"Clean": 0.6})}
    for name in ("grad", "2018/grad"):
        row = cell(tables.compare(results(given), [name]), "Clean")
        assert (row.measured, row.worst) == pytest.approx((70, 60))
        assert row.seeds == f"2 of 3 (1 {status})"


def test_nothing_is_left_where_every_seed_failed(results):
    one = results({0: ("collapsed", {"Clean": 0.1}), 1: ("diverged", {"Clean": 0.1})})
    for name in ("grad", "2018/grad"):
        row = cell(tables.compare(one, [name]), "Clean")
        assert row[["measured", "deviation", "worst", "difference"]].isna().all()
        assert row.published > 80
        assert row.seeds == "0 of 3 (1 collapsed, 1 diverged, 1 not trained)"


def test_one_seed_has_no_deviation(results):
    row = cell(tables.compare(results({0: ("ok", {"Clean": 0.8})}), ["grad"]), "Clean")
    assert (row.measured, row.worst) == (80, 80) and np.isnan(row.deviation)
    assert row.seeds == "1 of 3 (2 not trained)"


def test_a_measured_zero_is_a_zero(results):
    one = results({0: ("ok", {"PGM-20": 0.0})})
    row = cell(tables.compare(one, ["naive"]), "PGM-20")
    assert (row.measured, row.worst) == (0, 0) and row.difference == pytest.approx(-0.01)
    shown = tables.show(tables.compare(one, ["naive"])).iloc[0]
    assert shown["PGM-20"] == "0.0 (0.0)" and shown["CW"] == ""


@pytest.mark.parametrize(
    ("dataset", "name", "shown", "published"),
    [
        ("cifar10", "2018/grad", "cifar10", 89.09),
        ("cifar100", "2018/grad", "cifar100", 64.15),
        ("digits", "2018/grad", "cifar10", 89.09),
        ("svhn", "2018/grad", "cifar10", 89.09),
        ("svhn", "v2-svhn/grad-wide", "svhn", 92.62),
        ("digits", "v2-svhn/grad-wide", "svhn", 92.62),
        ("cifar10", "pgm", "cifar10", 87.30),  # the text's PGM Net is Madry et al.'s there
        ("cifar100", "pgm", "cifar100", 62.68),
        ("digits", "naive-slim", "cifar10", 94.41),
    ],
)
def test_the_published_number_is_that_of_the_dataset(results, dataset, name, shown, published):
    one = results({0: ("ok", {"Clean": 0.5})}, dataset)
    row = cell(tables.compare(one, [name]), "Clean")
    assert (row.dataset, row.published, row.measured) == (shown, published, 50)
    if shown == dataset:
        assert row.difference == pytest.approx(50 - published)
    else:
        assert np.isnan(row.difference)


def test_a_defence_without_a_number_on_a_papers_dataset_has_none(results):
    """ICLR 2020 has CIFAR-100 numbers, but not for Naive L2L: CIFAR-10's must not stand in."""
    frame = tables.compare(results({0: ("ok", {"Clean": 0.5})}, "cifar100"), ["naive"])
    assert frame.published.isna().all() and set(frame.dataset) == {""}
    assert cell(frame, "Clean").measured == 50


def test_recipes_that_no_paper_has_are_rows_too(results):
    one = results({0: ("ok", {"Clean": 0.5, "PGM-20": 0.25})})
    frame = tables.compare(one, ["today/free", "cw"])
    assert list(dict.fromkeys(frame.defence)) == ["Free", "CW Net"]
    assert frame[["published", "difference"]].isna().all(axis=None)
    assert set(frame.table) == {""}
    assert cell(frame, "PGM-20", "today/free").worst == 25


def test_a_row_for_every_attack_of_the_version(results):
    one = results({})
    expected = {
        "2018/grad": ["Clean", "FGSM", "PGM-10"],
        "v2/grad-slim": ["Clean", "FGSM", "PGM-10", "CW"],
        "iclr2020/grad": list(tables.ATTACKS),
        "iclr2020/grad@code": ["Clean", "PGM-20", "PGM-100", "CW", "Own attacker"],
        "iclr2020/pgm": list(tables.ATTACKS[:-1]),  # PGM Net has no learned attacker
    }
    frame = tables.compare(one, [*expected, "iclr2020/grad"])  # twice the same recipe is once
    assert frame.groupby("recipe", sort=False).attack.agg(list).to_dict() == expected


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100", "svhn", "mnist"])
def test_no_published_cell_is_lost(results, dataset):
    """Counted from the tables' shapes: the white-box cells of our recipes on the dataset."""
    frame = tables.compare(results({}, dataset), [n for n in RECIPES if "@" not in n])
    on = frame[frame.dataset == dataset].published.notna().sum()
    cells = {
        # 2018: 5 × 3. v2: 9 × 4 less a dash. ICLR: Table 8's 12, and of Table 2 the lines and
        # clean cells: 14 + 6 less two quoted rows of two, on CIFAR-100 9 + 3. L2L-DA's Table 2:
        # 6 × 10; on MNIST also three models of five cells in either half of Table 1.
        "cifar10": 15 + 35 + 12 + 16 + 60,
        "cifar100": 15 + 35 + 12 + 12,
        "svhn": 36,
        "mnist": 60 + 15 + 15,
    }
    assert on == cells[dataset]


def test_an_unknown_recipe_is_refused(store):
    with pytest.raises(InputError, match="Unknown recipe 'iclr2020/grat'"):
        tables.compare(store(), ["grat"])


# With models --------------------------------------------------------------------------------


def test_nothing_is_trained_unless_asked(store, monkeypatch):
    trained = []
    train = training.train

    def spy(recipe, data, **options):
        trained.append((recipe.name, options["seed"]))
        return train(recipe, data, **options)

    monkeypatch.setattr(training, "train", spy)
    one = store()
    frame = tables.compare(one, ["plain", "2018/plain"])
    assert trained == [] and not one.runs.exists()
    assert frame[["measured", "deviation", "worst", "difference"]].isna().all(axis=None)
    assert set(frame.seeds) == {"0 of 2 (2 not trained)"}
    assert cell(frame, "Clean", "2018/plain").published == 95.22

    one.model("2018/plain", 1)
    frame = tables.compare(one, ["plain", "2018/plain"])
    assert trained == [("2018/plain", 1)]
    assert set(frame[frame.recipe == "2018/plain"].seeds) == {"1 of 2 (1 not trained)"}
    assert cell(frame, "Clean", "2018/plain").measured >= 0
    tables.compare(one, ["2018/plain"], train=True)
    assert trained == [("2018/plain", 1), ("2018/plain", 0)]


def test_the_measured_numbers_are_the_models(store):
    """By hand: each model under each attack of v2, on the images of the table."""
    one = store()
    frame = tables.compare(one, ["v2/plain"], train=True)
    assert set(frame.seeds) == {"2 of 2"}
    x, y = one.images(TINY.eval_images)
    attacks = {
        "FGSM": FGSM(epsilon=0.03),
        "PGM-10": PGM(epsilon=0.03, steps=10, step_size=0.01, start="zero"),
        "CW": CW(epsilon=0.03),
    }
    for label in ("Clean", *attacks):
        shares = []
        for model in one.models(["v2/plain"]):
            delta = attacks[label](model.classifier, x, y) if label in attacks else 0
            with torch.no_grad():
                right = model.classifier(x + delta).argmax(1) == y
            shares.append(100 * right.float().mean().item())
        row = cell(frame, label)
        assert (row.measured, row.worst) == pytest.approx((np.mean(shares), min(shares)))


def test_iclr2020_shares_its_measurements_with_the_notebooks(store, monkeypatch):
    one = store(seeds=1)
    shares = experiments.white_box(one, ["grad"]).set_index("attack").accuracy
    monkeypatch.setattr(evaluation, "correct", lambda *_, **__: pytest.fail("measured twice"))
    frame = tables.compare(one, ["grad"])
    assert set(frame.seeds) == {"1 of 1"}
    for attack in tables.ATTACKS:
        assert cell(frame, attack).measured == pytest.approx(100 * shares[attack])


# The black box -----------------------------------------------------------------------------


def transfers(*rows):
    return pd.DataFrame(rows, columns=["defence", "status", "surrogate", "attack", "accuracy"])


def test_transfer_beside_the_published_tables(store):
    frame = tables.compare_black_box(
        store("cifar10"),
        transfers(
            ("Grad L2L", "ok", "Plain Net", "FGSM", 0.5),
            ("Grad L2L (S)", "ok", "Plain Net", "FGSM", 0.8),
            ("PGM Net", "ok", "PGM Net", "PGM-10", 0.0),
            ("FGSM Net", "collapsed", "PGM Net", "PGM-10", 0.1),
        ),
    )
    found = frame.set_index(["defence", "surrogate", "attack"])
    assert len(found) == 36 + 1 and found.index.is_unique
    assert set(frame.table) == {"Table 4", ""}
    slim = found.loc["Grad L2L (S)", "Plain Net", "FGSM"]
    assert (slim.published, slim.measured) == (86.10, 80)
    assert slim.difference == pytest.approx(-6.1)
    main = found.loc["Grad L2L", "Plain Net", "FGSM"]  # the tables have no such network
    assert main.measured == 50 and np.isnan(main.published) and np.isnan(main.difference)
    pgm = found.loc["PGM Net", "PGM Net", "PGM-10"]
    assert (pgm.measured, pgm.difference) == (0, pytest.approx(-65.54))
    failed = found.loc["FGSM Net", "PGM Net", "PGM-10"]
    assert failed.published == 63.89 and np.isnan(failed.measured)
    assert found.measured.notna().sum() == 3  # the rest is published only


@pytest.mark.parametrize(
    ("dataset", "table", "defence", "published"),
    [
        ("cifar100", "Table 5", "Grad L2L (S)", 41.15),
        ("svhn", "Table 6", "Grad L2L (W)", 58.71),
        ("digits", "Table 4", "Grad L2L (S)", 69.95),
    ],
)
def test_transfer_on_other_datasets(store, dataset, table, defence, published):
    raw = transfers(
        (defence, "ok", "PGM Net", "PGM-10", 0.3), (defence, "ok", "PGM Net", "PGM-10", 0.5)
    )
    frame = tables.compare_black_box(store(dataset), raw)
    row = frame.iloc[0]
    assert (row.table, row.published) == (table, published)
    assert row.measured == pytest.approx(40)  # of two seeds the mean
    assert np.isnan(row.difference) == (dataset == "digits")


def test_real_transfers_join(store):
    one = store(seeds=1)
    raw = experiments.black_box(one, surrogates=["plain"])
    frame = tables.compare_black_box(one, raw)
    assert set(raw.status) == {"ok"} and frame.measured.notna().sum() == len(raw)
    for row in raw.itertuples():
        same = frame[
            (frame.defence == row.defence)
            & (frame.surrogate == row.surrogate)
            & (frame.attack == row.attack)
        ]
        assert same.measured.item() == pytest.approx(100 * row.accuracy)


@pytest.mark.parametrize(
    ("name", "dataset", "table", "cells"),
    [
        (
            "2018/grad",
            "cifar10",
            "Table 1",
            {("PGM Net", "FGSM"): 70.62, ("Grad L2L", "PGM-10"): 65.13},
        ),
        ("v2/grad-slim@ours", "cifar100", "Table 6", {("Plain Net", "FGSM"): 57.63}),
        ("v2-svhn/grad-wide", "svhn", "Table 7", {("PGM Net", "PGM-10"): 58.71}),
        ("iclr2020/grad-slim", "cifar10", "", {}),  # its table is v2's, in v2's setting
    ],
)
def test_each_black_box_is_that_of_its_version(results, name, dataset, table, cells):
    frame = tables.black_box(results({}, dataset), [name])
    assert set(frame.table) == {table} and set(frame.recipe) == {name}
    assert len(frame) == 2 * (4 if name == "2018/grad" else 3)
    assert frame.measured.isna().all() and (frame.published.notna().all() == bool(cells))
    for (surrogate, attack), value in cells.items():
        row = frame[(frame.surrogate == surrogate) & (frame.attack == attack)]
        assert row.published.item() == value


def test_a_black_box_is_measured_with_its_versions_attacks(store):
    """By hand: the surrogate of the last seed is attacked, the target of the first one sees it."""
    one = store()
    assert tables.black_box(one, ["2018/naive"]).measured.isna().all() and not one.runs.exists()
    frame = tables.black_box(one, ["2018/naive"], train=True)
    x, y = one.images(TINY.eval_images)
    target = one.model("2018/naive", 0).classifier
    pgm = PGM(epsilon=0.03, steps=10, step_size=0.003, start="zero")
    for name, label in (("2018/pgm", "PGM Net"), ("2018/grad", "Grad L2L")):
        delta = pgm(one.model(name, 1).classifier, x, y)
        right = target(x + delta).argmax(1) == y
        row = frame[(frame.surrogate == label) & (frame.attack == "PGM-10")]
        assert row.measured.item() == pytest.approx(100 * right.float().mean().item())
    assert tables.show(frame).shape == (1, 8)


def test_l2l_da_has_its_black_box_elsewhere(results):
    with pytest.raises(InputError, match="notebook 07"):
        tables.black_box(results({}), ["l2l-da/full"])


# Times ---------------------------------------------------------------------------------------


def times(**seconds):
    return pd.DataFrame(
        [
            {"defence": d, "epoch": i + 1, "seconds": s}
            for d, values in seconds.items()
            for i, s in enumerate(values)
        ]
    )


def test_times_are_relative_to_pgm_net():
    log = times(**{"PGM Net": [9, 4, 4], "Grad L2L": [1, 1, 8], "Free": [6], "Grad L2L (S)": [3]})
    frame = tables.compare_times(log).set_index("defence")
    assert list(frame.index[:4]) == ["PGM Net", "Grad L2L", "Free", "Grad L2L (S)"]
    assert frame.index.is_unique
    assert frame.seconds["Grad L2L"] == 1 and frame.relative["Grad L2L"] == 0.25
    assert (frame.loc["PGM Net", ["relative", "2018", "v2", "iclr2020"]] == 1).all()
    assert frame.loc["Grad L2L", "2018"] == pytest.approx(120.48 / 421.56)
    assert frame.loc["Grad L2L", "iclr2020"] == pytest.approx(617.5 / 1310.8)
    assert frame.loc["Grad L2L (S)", "v2"] == pytest.approx(120.48 / 421.56)
    assert frame.loc["Grad L2L (S)", "iclr2020"] == pytest.approx(480 / 1310.8)
    assert frame.loc["2-Step L2L (W)", "v2"] == pytest.approx(290.61 / 421.56)
    assert frame.loc["Free", ["2018", "v2", "iclr2020"]].isna().all()
    assert frame.loc["Naive L2L", ["seconds", "relative"]].isna().all()  # published only


def test_without_pgm_net_nothing_is_relative():
    frame = tables.compare_times(times(**{"Grad L2L": [2.0]})).set_index("defence")
    assert frame.seconds["Grad L2L"] == 2 and frame.relative.isna().all()


# To read -------------------------------------------------------------------------------------


def test_show_is_a_row_a_defence(results):
    accuracies = [
        {"Clean": 0.90, "PGM-10": 0.5, "PGM-20": 0.4, "Own attacker": 0.45},
        {"Clean": 0.80, "PGM-10": 0.3, "PGM-20": 0.2, "Own attacker": 0.55},
    ]
    one = results({s: ("ok", a) for s, a in enumerate(accuracies)}, seeds=2)
    shown = tables.show(tables.compare(one, ["2018/grad", "grad", "today/trades"]))
    assert list(shown.index.get_level_values("recipe")) == [
        "2018/grad",
        "iclr2020/grad@ours",
        "today/trades",
    ]
    assert list(shown.index.get_level_values("published in")) == [
        "Table 1, cifar10",
        "Table 2, cifar10",
        "",
    ]
    assert list(shown.columns) == list(tables.ATTACKS)
    old, new, today = (shown.iloc[i] for i in range(3))
    assert old["Clean"] == "85.0 ± 7.1 (89.1)"
    assert old["PGM-10"] == "40.0 ± 14.1 (50.0)"
    assert old["PGM-20"] == ""  # not part of that version
    assert new["PGM-20"] == "20.0 (51.2)"  # the worst seed
    assert new["PGM-10"] == "30.0"
    assert new["Own attacker"] == "45.0 (49.7)"
    assert today["Clean"] == "80.0"
    assert all(isinstance(text, str) for text in shown.to_numpy().ravel())


def test_l2l_da_is_compared_with_the_table_of_its_dataset(results):
    """Table 2, row "L2L-DA (full)": on MNIST 95.15 under PGD-100 and 94.61 at least."""
    frame = tables.compare(results({}, "mnist"), ["l2l-da/full", "l2l-da/no-r"])
    assert cell(frame, "PGD-100", "l2l-da/full").published == 95.15
    assert cell(frame, "Min", "l2l-da/full").published == 94.61
    assert cell(frame, "Min", "l2l-da/no-r").published == 90.45  # Table 1a
    assert set(frame.statistic) == {"mean"} and set(frame.dataset) == {"mnist", ""}


def test_show_prints_published_deviations(results):
    shown = tables.show(tables.compare(results({}), ["v2/pgm"]))
    assert shown.iloc[0]["PGM-10"] == "(40.7 ± 0.6)"


def test_show_tells_surrogates_apart(store):
    raw = transfers(("PGM Net", "ok", "Plain Net", "FGSM", 0.5))
    shown = tables.show(tables.compare_black_box(store("cifar10"), raw))
    assert len(shown) == 6 and len(shown.columns) == 6
    row = shown.iloc[0]
    assert row.name[0] == "PGM Net"
    assert row["FGSM from Plain Net"] == "50.0 (83.8)"
    assert row["PGM-10 from FGSM Net"] == "(85.3)"


def test_only_the_l2l_recipes_have_an_attacker_of_their_own(results):
    frame = tables.compare(results({}), [n for n in RECIPES if n.startswith("iclr2020/")])
    own = set(frame[frame.attack == "Own attacker"].recipe)
    assert own == {
        n for n, r in RECIPES.items() if n.startswith("iclr2020/") and isinstance(r.attack, Learned)
    }
    # Naive, Grad and 2-Step, wide and slim, as printed and as recommended; four as coded.
    assert len(own) == 6 + 6 + 4


def test_the_kinds_of_a_row_stand_beside_the_same_published_numbers(results):
    kinds = ["iclr2020/grad", "grad@code", "grad"]
    frame = tables.compare(results({}), kinds)
    for attack, value in (("Clean", 85.84), ("PGM-20", 51.17), ("PGM-100", 47.72), ("CW", 53.5)):
        assert frame[frame.attack == attack].published.tolist() == [value] * 3
    assert list(dict.fromkeys(frame.defence)) == [
        "Grad L2L, as printed",
        "Grad L2L, authors' code",
        "Grad L2L",
    ]


def test_the_authors_l2l_da_is_measured_as_its_paper_measures(results):
    frame = tables.compare(results({}, "mnist"), ["l2l-da/full", "l2l-da/full@code"])
    columns = ["attack", "published", "table"]
    printed, code = (rows[columns].values.tolist() for _, rows in frame.groupby("recipe"))
    assert [row[0] for row in code] == [*diverse.TABLE_2, "Min"] and str(code) == str(printed)
    record = recorded("l2l_da-mnist")
    frame = tables.compare_recorded(record["designed"], "mnist").set_index(["recipe", "attack"])
    rows = pd.DataFrame(record["designed"])
    for name in rows.recipe.unique():
        right = rows[(rows.recipe == name) & (rows.attack == "PGD-100")].accuracy
        assert frame.measured[name, "PGD-100"] == pytest.approx(100 * right.mean())


def test_the_recorded_black_box_stands_beside_table_3():
    record = recorded("l2l_da-mnist-former")
    frame = tables.compare_transfer(record["table_3"]).set_index(["defence", "surrogate"])
    assert frame.loc[("Plain", "PGD-10"), "published"].notna().all()
    shown = tables.show(frame.reset_index())
    assert shown.shape == (frame.index.get_level_values("defence").nunique(), 9)
    told = {row["defence"] for row in record["table_3"]}
    assert set(frame.index.get_level_values("defence")) <= told | {"L2L-DA"}
