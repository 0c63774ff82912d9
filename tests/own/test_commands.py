"""`check`, `attack` and `train SPEC` in this process: what they print, write and refuse."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from conftest import image_folder
from PIL import Image

from l2lkit import recipes
from l2lkit.__main__ import main, parser
from l2lkit.errors import InputError
from l2lkit.own.options import numbers

CODE = """
import torch
from torch import nn
import l2lkit as l2l

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                                  nn.Flatten(), nn.Linear(8, 4))
    def forward(self, x):
        return self.body(x)

class Means(nn.Module):
    '''The four colours (b, g, r, y in the order of the folders) by their mean.'''
    def forward(self, x):
        r, g, b = x.mean((2, 3)).unbind(1)
        return 9 * torch.stack([b - r, g - r, r - g, r + g - 2 * b], 1)

class Cut(Means):
    def forward(self, x):
        return super().forward(x.detach())

def attack():
    return l2l.PGM(steps=2)
"""


@pytest.fixture
def place(tmp_path):
    (tmp_path / "mine.py").write_text(CODE)
    image_folder(tmp_path / "images")
    return tmp_path


@pytest.fixture
def command(place, capsys):
    def run(name, spec, *words, data="images"):
        words = [str(w) for w in words]
        shared = [f"--data={place / data}", "--device=cpu"]
        status = main([name, f"{place / 'mine.py'}:{spec}", *shared, *words])
        out = capsys.readouterr()
        return status, out.out, out.err

    return run


def test_check_prints_every_item_and_its_status_is_the_verdict(command):
    status, out, err = command("check", "Means", "--images=8")
    assert status == 0, out
    assert "before any attack" in out and "No item fails" in out and "FAILS" not in out
    assert re.fullmatch(r"attacking: about \d+ s …\n", err)
    status, out, _ = command("check", "Cut", "--images=8")
    assert status == 1 and "FAILS  gradients reach the image: cut off" in out


def test_check_as_json_and_as_a_page(command, place):
    extra = (
        "--surrogate",
        f"{place / 'mine.py'}:Means",
        "--attacker",
        f"{place / 'mine.py'}:attack",
    )
    page = place / "page.html"
    status, out, _ = command(
        "check", "Means", "--images=8", "--epsilon=8/255", "--json", f"--html={page}", *extra
    )
    content = json.loads(out)
    assert status == 0 and content["about"]["epsilon"] == 8 / 255
    items = {row["item"]: row for row in content["items"]}
    assert items["adaptive attacks"]["verdict"] == "holds"
    assert items["white box beats black box"]["verdict"] == "holds"
    text = page.read_text()
    assert text.count("<figure>") == text.count("data:image/png;base64,") == 4
    assert "http" not in text and all(name.replace("'", "&#x27;") in text for name in items)


def test_attack_writes_pictures_and_exact_perturbations(command, place):
    out = place / "made"
    status, words, _ = command("attack", "Means", f"--output={out}", "--epsilon=0.2", "--images=6")
    assert status == 0 and re.search(r"PGM-20, ε = 0.2, 6 images: \d right, \d of these", words)
    kept = np.load(out / "perturbations.npz")
    assert kept["delta"].shape == (6, 3, 8, 8) and np.abs(kept["delta"]).max() <= 0.2 + 1e-6
    pictures = sorted(out.glob("?/*.png"))
    assert len(pictures) == 6 and (out / "sheet.png").is_file()
    for path in pictures:
        i = kept["index"].tolist().index(int(path.stem))
        shown = np.asarray(Image.open(path)).transpose(2, 0, 1) / 255
        assert np.abs(shown - kept["images"][i] - kept["delta"][i]).max() <= 0.5 / 255 + 1e-6
        assert "bgry".index(path.parent.name) == kept["labels"][i]
    again = {p: p.read_bytes() for p in out.rglob("*.png")}
    status, _, err = command("attack", "Means", f"--output={out}")
    assert status == 2 and "is there already" in err
    assert again == {p: p.read_bytes() for p in out.rglob("*.png")}


TINY = replace(tiny.TINY, plain_epochs=2)


@pytest.fixture
def train(command, place, monkeypatch):
    monkeypatch.setitem(recipes.PROFILES, "smoke", TINY)

    def run(spec, *words):
        places = ("--profile=smoke", "--dataset=tiny", f"--output={place / 'out'}", "--images=4")
        return command("train", spec, "--recipe=grad", *places, *words)

    return run


def test_train_plays_the_game_with_ones_own_classifier_and_ends_with_the_check(
    train, place, monkeypatch
):
    status, out, err = train("Net")
    assert status in (0, 1) and "Grad L2L, own: " in out and "adaptive attacks: own" in out, err
    records = {json.loads(p.read_text())["recipe"]["name"]: p for p in place.rglob("record.json")}
    assert set(records) == {"own/plain", "own/iclr2020/grad@ours"}
    record = json.loads(records["own/iclr2020/grad@ours"].read_text())
    assert record["recipe"]["classifier"]["class"] == "OwnClassifier"
    (weights,) = re.findall(r"--weights (\S+weights\.pt)", out)
    assert "body.4.bias" in torch.load(weights, weights_only=True)
    # The same command finds it; changed code is another model; its weights a start.

    def skip(*_, **__):
        raise InputError("this once without the check")

    monkeypatch.setattr("l2lkit.own.training.full_check", skip)
    before = records["own/iclr2020/grad@ours"].stat().st_mtime_ns
    train("Net")
    assert records["own/iclr2020/grad@ours"].stat().st_mtime_ns == before
    assert len(list(place.rglob("record.json"))) == 2
    train("Net", f"--weights={weights}", "--epochs=1")
    assert len(list(place.rglob("record.json"))) == 3
    (place / "mine.py").write_text(CODE + "\n# changed\n")
    train("Net", f"--weights={weights}", "--epochs=1")
    assert len(list(place.rglob("record.json"))) == 4


BAD = [
    ("check", "Nothing", (), "has no 'Nothing'"),
    ("check", "Means", ("--images=0",), "--images must be at least 1"),
    ("check", "Means", ("--epsilon=0",), "ε must be above 0"),
    ("check", "Means", ("--epsilon=8",), "8/255 is 0.031"),
    ("check", "Means", ("--mean=0.5",), "come together"),
    ("check", "Means", ("--attacker=mine.py",), "--attacker takes FILE.py:NAME"),
    ("check", "Means", ("--html=/no/such/folder/page.html",), "There is no folder"),
    ("check", "Means", ("--device=gpu",), "choose auto, cpu or cuda"),
    ("attack", "Means", ("--attack=pgd", "--output=x"), "Unknown attack 'pgd'"),
    ("attack", "Means", ("--attack=clean", "--output=x"), "no attack"),
]


@pytest.mark.parametrize(("name", "spec", "words", "says"), BAD)
def test_bad_input_is_one_line_that_names_the_fix(command, name, spec, words, says):
    status, out, err = command(name, spec, *words)
    assert (status, out) == (2, "") and re.fullmatch(r"error: [^\n]+\n", err) and says in err


def test_a_classifier_that_does_not_fit_the_pictures_is_told_before_training(train, place):
    (place / "mine.py").write_text(CODE.replace("Linear(8, 4)", "Linear(8, 3)"))
    status, _, err = train("Net")
    assert status == 2 and re.fullmatch(r"error: The classifier [^\n]+\n", err)
    assert not list(place.rglob("*.pt"))


def test_class_folders_named_by_numbers_are_these_classes(command, place):
    for label, name in zip("bgry", ("2", "10", "30", "1"), strict=True):
        for split in ("train", "test"):
            (place / "images" / split / label).rename(place / "images" / split / name)
    status, _, err = command("check", "Means", "--images=8")
    assert status == 2 and "There is the label 30, and the classifier's 4 classes" in err


def test_numbers_may_be_fractions():
    assert numbers("0.5,1/4") == [0.5, 0.25]
    for text in ("x", "1/", "", "1,,2"):
        with pytest.raises(ValueError):
            numbers(text)
    assert parser().parse_args(["check", "m:n", "--epsilon", "2/255"]).epsilon == 2 / 255
