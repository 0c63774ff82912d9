"""Notebook 09's classifiers and tables: each cheat is what it says, and alarms are counted by
hand."""

import json
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from masked import Linear, images
from scripts import load

import l2lkit as l2l
from l2lkit.checks.examination import ACCURACY, BEFORE
from l2lkit.checks.items import MASKED, STRONG
from l2lkit.results import cheats

X, Y = images(24)
X = X / 255


@pytest.mark.parametrize(
    ("name", "item"),
    [
        ("quantised", "gradients reach the image"),
        ("noisy", "the same answer twice"),
        ("saturated", "unbounded attacks reach 100 %"),
        ("cut off", "gradients reach the image"),
    ],
)
def test_each_cheat_is_caught(name, item):
    scale = 100 if name == "saturated" else 1  # the pattern's logits are small
    found = l2l.check(cheats.AROUND[name](Linear(scale=scale)).eval(), X, Y, draws=5)
    assert item in set(found[found.verdict == "fails"]["item"])


def test_what_stands_around_a_classifier_keeps_its_answers_to_clean_images():
    for name in ("saturated", "quantised"):
        logits = cheats.AROUND[name](Linear())(X)
        shades = (15 * X).round() / 15 if name == "quantised" else X
        assert torch.equal(logits.argmax(1), Linear()(shades).argmax(1))


def rows(*entries):
    columns = ["classifier", "seed", "group", "item", "verdict", "value"]
    return pd.DataFrame(entries, columns=columns)


FRAME = rows(
    ("noisy", 0, BEFORE, "twice", "fails", None),
    ("noisy", 0, STRONG, "starts", "fails", None),
    ("noisy", 1, BEFORE, "twice", "fails", None),
    ("noisy", 1, STRONG, "starts", "holds", None),
    ("noisy", 0, ACCURACY, "clean", "", 0.9),
    ("noisy", 0, ACCURACY, "worst", "", 0.125),
    ("PGM Net", 0, BEFORE, "twice", "holds", None),
    ("PGM Net", 0, BEFORE, cheats.KNOWS_NOTHING, "fails", None),
    ("PGM Net", 1, BEFORE, "twice", "holds", None),
    ("PGM Net", 0, STRONG, "starts", "holds", None),
    ("PGM Net", 1, STRONG, "starts", "fails", None),
    ("PGM Net", 0, ACCURACY, "clean", "", 0.8),
    ("PGM Net", 0, ACCURACY, "worst", "", 0.5),
)


def test_alarms_by_hand():
    table = cheats.alarms(FRAME).set_index("classifier")
    assert table.loc["noisy"].to_dict() == {
        "cheats": True,
        "accused": 2,
        "of masked gradients": 2,
        "seeds": 2,
        "items that fail, mean": 1.5,
    }
    assert table.loc["PGM Net"].to_dict() == {
        "cheats": False,
        "accused": 1,
        "of masked gradients": 0,
        "seeds": 2,
        "items that fail, mean": 0.5,
    }
    caught = cheats.catches(FRAME)
    assert caught.loc[(BEFORE, "twice")].to_dict() == {"noisy": 2, "PGM Net": 0}
    assert caught.loc[(STRONG, "starts")].to_dict() == {"noisy": 1, "PGM Net": 1}
    assert MASKED not in caught.index.get_level_values(0)
    shown = cheats.accuracies(FRAME)
    assert shown["noisy"].to_dict() == {"clean": 90.0, "worst": 12.5}
    assert list(shown.columns) == ["noisy", "PGM Net"]


def test_alarms_are_recorded_as_plain_data(folder, tmp_path):
    store = l2l.Store("smoke", dataset="tiny", data=folder, device="cpu", output=tmp_path / "out")
    content = load("alarms").record(store, FRAME)
    assert json.loads(json.dumps(content)) == content
    assert [(row["classifier"], row["accused"]) for row in content["table"]] == [
        ("noisy", 2),
        ("PGM Net", 1),
    ]
    row = {"group": STRONG, "item": "starts", "noisy": 1, "PGM Net": 1}
    assert row in content["items"]


def test_what_is_measured_is_kept_until_the_cheat_changes(folder, tmp_path, monkeypatch):
    class Other(cheats.CutOff):
        def forward(self, x):
            return super().forward(x / 2)

    store = l2l.Store("smoke", dataset="tiny", data=folder, device="cpu", output=tmp_path / "out")
    model = SimpleNamespace(classifier=Linear().eval())
    monkeypatch.setattr(store, "model", lambda recipe, seed: model)
    monkeypatch.setattr(store, "images", lambda count: (X[:8], Y[:8]))
    kept = []
    for cheat in (cheats.CutOff, cheats.CutOff, Other):
        monkeypatch.setitem(cheats.AROUND, "cut off", cheat)
        assert cheats.examined(store, "cut off", 0).failed
        kept.append(len([*(store.runs / "measurements" / "tiny").iterdir()]))
    assert kept[0] == kept[1] and kept[2] == 2 * kept[0]


def test_the_collapsed_classifier_sees_fgsm_alone():
    store = l2l.Store("quick", device="cpu")
    recipe = cheats.collapsed(store)
    assert recipe.attack == l2l.FGSM(epsilon=cheats.LARGE) and not recipe.trades
    assert recipe.warm_start.attack is None and recipe.optimiser.weight_decay == 0
