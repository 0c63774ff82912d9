"""The command line, in this process: what it prints, and how it says no."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch

from l2lkit import names, recipes
from l2lkit.__main__ import main
from l2lkit.errors import InputError
from l2lkit.game.search import attack_by_name
from l2lkit.recipes import RECIPES

ROOT = Path(__file__).resolve().parents[1]
TINY = tiny.TINY


@pytest.fixture(autouse=True)
def profile(monkeypatch):
    monkeypatch.setitem(recipes.PROFILES, "smoke", TINY)


@pytest.fixture
def command(folder, tmp_path, capsys):
    """Runs a command on the tiny images; gives its exit status, stdout and stderr."""

    def run(name, *words, **changes):
        options = {
            "profile": "smoke",
            "dataset": "tiny",
            "data": folder,
            "device": "cpu",
            "output": tmp_path / "out",
        } | changes
        given = [f"--{key}={value}" for key, value in options.items() if value is not None]
        status = main([name, *given, *words])
        out = capsys.readouterr()
        return status, out.out, out.err

    return run


BAD = [
    (("train", "sgd"), {}, "Unknown recipe 'iclr2020/sgd': choose iclr2020/plain"),
    (("train", "2018/2step"), {}, "Unknown recipe '2018/2step': choose"),
    (("table", "plain", "grat"), {}, "Unknown recipe 'iclr2020/grat': choose"),
    (("table", "plain"), {"seeds": 0}, "--seeds must be 1 or more and at most 1,000, not 0"),
    (("evaluate", "plain", "grat"), {}, "Unknown recipe 'iclr2020/grat': choose"),
    (("train", "plain"), {"dataset": "imagenet", "data": None}, "choose one of digits, cifar10"),
    (
        ("train", "plain"),
        {"data": "/does/not/exist"},
        "There is no folder or file /does",
    ),
    (("run",), {"dataset": "imagenet", "data": None}, "choose one of digits, cifar10"),
    (("evaluate", "plain", "--attacks=pgd-20"), {}, "Unknown attack 'pgd-20': choose clean"),
    (("evaluate", "plain", "--attacks=clean,"), {}, "Unknown attack '': choose clean"),
    (("evaluate", "plain", "--attacks=pgm-0"), {}, "steps must be a positive number, not 0"),
    (("evaluate", "plain", "--epsilon", "-1"), {}, "between 0 and 1"),
    (("evaluate", "plain", "--epsilon=nan"), {}, "between 0 and 1"),
    (("evaluate", "plain", "--epsilon=8"), {}, "8/255 is 0.031"),
    (("evaluate", "plain", "--epsilon=8/0"), {}, "between 0 and 1"),
    (("evaluate", "plain", "--epsilon=255/8"), {}, "between 0 and 1"),
    (("evaluate", "plain", "--images=0"), {}, "--images must be at least 1"),
    (("train", "plain"), {"profile": "fast"}, "Unknown profile 'fast': choose smoke, quick"),
    (("train", "plain"), {"device": "gpu"}, "choose auto, cpu or cuda"),
    (("train", "plain", "--seed", "-3"), {}, "--seed must be 0 or more"),
    (("train", "plain"), {"seed": 10**20}, "--seed must be 0 or more"),
    (("run", "--only", "99"), {}, "There is no notebook '99': --only takes the numbers of 0"),
    (("run", "--only", ""), {}, "There is no notebook ''"),
    (("train", "grad", "--attacker", "mine.py"), {}, "--attacker takes FILE.py:NAME"),
    (("train", "grad", "--attacker=none.py:Mine"), {}, "--attacker takes FILE.py:NAME"),
]


@pytest.mark.parametrize(("words", "changes", "says"), BAD, ids=lambda v: str(v)[:40])
def test_bad_input_is_one_line_that_names_the_fix(command, words, changes, says, tmp_path):
    status, out, err = command(*words, **changes)
    assert status == 2 and out == ""
    assert re.fullmatch(r"error: [^\n]+\n", err)
    assert says in err
    assert not list((tmp_path / "out").rglob("*.pt"))  # no work was done


def test_a_refusal_does_not_wait_for_torch(tmp_path):
    """Each option, and each name, in a process that has imported nothing: the answer is the one
    above."""
    lines = []
    for words, changes, _ in BAD:
        if changes.get("dataset") == "imagenet":
            continue  # the default folder decides, and needs torch to be read
        lines.append([*words, *(f"--{k}={v}" for k, v in changes.items() if v is not None)])
    lines += [
        ["train", "plain", "--dataset=cifar10", "--data=/dev/null"],
        ["train", "grad", "--data=."],
        ["train", "mine.py:net", "--recipe=nosuch"],
        ["check", "mine.py:net"],
        ["check", "torchvision:resnet18", "--weights=nowhere.pt"],
        ["check", "torchvision:resnet18", "--attacker=mine.py"],
        ["attack", "torchvision:resnet18", "--output=x", "--attack=pgd"],
        ["attack", "torchvision:resnet18", "--output=x", "--images=0"],
    ]
    code = f"""
import os, sys
from l2lkit.__main__ import main
from l2lkit.errors import InputError
for words in {lines!r}:
    assert main(words) == 2, words
    assert not {{"torch", "pandas"}} & set(sys.modules), words
assert main(["published", "--version=2019"]) == main(["demonstrations", "--environment=X"]) == 2
assert "torch" not in sys.modules
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("error: ") == len(lines) + 2 and not list(tmp_path.iterdir())


def test_the_names_known_without_torch_are_those_there_are():
    assert tuple(RECIPES) == names.RECIPES and tuple(recipes.PROFILES) == names.PROFILES

    def light(name, epsilon):
        names.check_epsilon(epsilon)
        names.check_attack(name)

    for name in ("fgsm", "pgm-20", "random-5", "cw", "clean", "pgm-0", "random-0", "pgm-", "pgd"):
        for epsilon in (0.031, 0, 1, 1.01, -1, math.nan, math.inf):
            heard = []
            for look in (light, attack_by_name):
                try:
                    look(name, epsilon)
                    heard.append("")
                except InputError as error:
                    heard.append(str(error))
            assert heard[0] == heard[1]
    for name in names.ATTACKS:
        names.check_attack(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_device(command):
    status, _, err = command("train", "plain", device="cuda")
    assert status == 2
    assert err == (
        "error: No CUDA device here: use --device cpu, or --device auto to let it pick.\n"
    )


@pytest.mark.parametrize("name", [("run",), ("train", "plain"), ("evaluate", "plain")])
def test_an_output_that_cannot_be_written(command, tmp_path, name):
    (tmp_path / "file").write_text("")
    status, out, err = command(*name, output=tmp_path / "file" / "out")
    assert status == 2 and out == ""
    assert re.fullmatch(r"error: Cannot write [^\n]+--output[^\n]+\n", err)


def test_an_image_folder_with_a_damaged_file(command, folder):
    next((folder / "test" / "r").iterdir()).write_bytes(b"no image")
    status, _, err = command("train", "plain")
    assert status == 2
    assert re.fullmatch(r"error: test/r/\d+.png in [^\n]+replace or remove it.\n", err)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["fly"],
        ["train"],
        ["evaluate", "plain", "--epsilon=x"],
        ["evaluate", "plain", "--epsilon=8/"],
    ],
)
def test_a_wrong_usage_exits_with_2(words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    assert "usage: python -m l2lkit" in capsys.readouterr().err


def test_recipes_lists_all_with_the_tables_they_answer(capsys):
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[0] for line in lines] == list(RECIPES)
    assert all(
        r.defence in line and r.source in line
        for r, line in zip(RECIPES.values(), lines, strict=True)
    )
    assert main(["recipes", "--json"]) == 0
    rows = {row["recipe"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == list(RECIPES)
    assert rows["2018/grad"]["tables"] == "2018 Table 1, 2018 Table 2"
    assert rows["2018/grad"]["datasets"] == "cifar10, cifar100"
    assert rows["v2-svhn/2step-wide"]["datasets"] == "svhn"
    for kind in ("", "@code", "@ours"):
        assert (
            rows[f"iclr2020/grad-slim{kind}"]["tables"] == "iclr2020 Table 8, iclr2020 Appendix B"
        )
    assert rows["today/trades"]["tables"] == ""


def test_published_prints_and_filters(capsys):
    assert main(["published", "--recipe", "grad", "--attack", "PGM-20", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {(r["dataset"], r["value"]) for r in rows} == {("cifar10", 51.17), ("cifar100", 28.67)}
    assert main(["published", "--version", "2018", "--attack", "epoch time"]) == 0
    assert "421.56" in capsys.readouterr().out
    assert main(["published", "--version", "2019"]) == 2
    assert "has the version '2019': choose 2018, v2, iclr2020" in capsys.readouterr().err


def test_a_reader_that_stops_reading_is_no_error():
    command = f"{sys.executable} -m l2lkit published | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=120)
    assert done.stderr == "" and done.stdout.split()[:2] == ["version", "table"]


def test_table_measures_what_is_trained_and_leaves_the_rest_empty(command):
    status, out, err = command("table", "grad", "2018/plain", "--json")
    assert status == 0 and err == ""
    assert all(row["measured"] is None for row in json.loads(out))
    status, out, _ = command("table", "grad", "--train", "--json")
    (pgm,) = (r for r in json.loads(out) if r["attack"] == "PGM-20")
    assert (pgm["published"], pgm["dataset"], pgm["difference"]) == (51.17, "cifar10", None)
    assert 0 <= pgm["measured"] <= 100
    status, out, _ = command("table", "grad", "2018/plain")
    assert status == 0 and "51.17" in out and "1 of 1" in out and "0 of 1 (1 not trained)" in out


def test_train_then_evaluate(command, tmp_path):
    status, out, err = command("train", "grad")
    assert status == 0 and err == ""
    assert "train_loss" in out and re.search(r"Grad L2L: (ok|collapsed|diverged); ", out)
    (record,) = (tmp_path / "out" / "runs" / "smoke" / "models" / "tiny").glob(
        "iclr2020-grad@ours-*/seed-0/record.json"
    )
    assert str(record.parent) in out
    written = record.read_bytes()

    status, out, err = command(
        "evaluate", "grad", "plain", "--attacks=clean,fgsm,pgm-2,random-2", "--images=5"
    )
    assert status == 0 and err == ""
    grad, plain = out.splitlines()
    for line, name in ((grad, "iclr2020/grad@ours"), (plain, "iclr2020/plain")):
        assert line.startswith(f"{name}, seed 0 (")
        shown = re.findall(r"(clean|fgsm|pgm-2|random-2) (\d+\.\d)%", line)
        assert [attack for attack, _ in shown] == ["clean", "fgsm", "pgm-2", "random-2"]
        assert all(float(share) in (0, 20, 40, 60, 80, 100) for _, share in shown)  # of five
    assert record.read_bytes() == written  # not trained again
    found = list((tmp_path / "out").rglob("correct-*.json"))
    assert len(found) == 2
    assert set(json.loads(found[0].read_text())["result"]) == {"clean", "fgsm", "pgm-2", "random-2"}


def test_epsilon_as_a_fraction_and_attacks_with_spaces(command):
    words = ("evaluate", "plain", "--epsilon")
    _, plain, _ = command(*words, str(8 / 255), "--attacks=clean,fgsm,pgm-2")
    status, out, err = command(*words, "8/255", "--attacks", "clean, fgsm , pgm-2")
    assert (status, out, err) == (0, plain, "")


def test_evaluate_at_epsilon_zero_is_the_clean_accuracy(command):
    _, out, _ = command("evaluate", "plain", "--attacks=clean,fgsm,pgm-3,cw", "--epsilon=0")
    assert len(set(re.findall(r"\d+\.\d%", out))) == 1


OWN = """
import torch
from torch import nn
import l2lkit as l2l

class Universal(l2l.Attacker):
    def __init__(self, shape, classes):
        super().__init__(epsilon=0.031)
        self.pattern = nn.Parameter(torch.zeros(shape[1:]))

    def iterates(self, classifier, images, labels, generators=None):
        delta = self.epsilon * self.pattern.tanh().expand_as(images)
        yield l2l.project(delta, images, self.epsilon)

number = 3
"""


def test_an_attacker_of_ones_own_takes_the_place_of_the_recipes(command, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(OWN)
    status, out, err = command("train", "grad", f"--attacker={path}:Universal")
    assert (status, err) == (0, "") and "Grad L2L" in out
    records = [json.loads(p.read_text()) for p in (tmp_path / "out").rglob("record.json")]
    (mine,) = [r["recipe"]["attack"] for r in records if r["recipe"]["attack"]]
    assert mine["class"] == "Universal" and mine["source"]
    for name in ("number", "Nobody"):
        status, out, err = command("train", "grad", f"--attacker={path}:{name}")
        assert status == 2 and f"has no '{name}' that makes an attacker" in err
    status, out, err = command("train", "plain", f"--attacker={path}:Universal")
    assert status == 2 and "trains against no learned attacker" in err
    before = sorted((tmp_path / "out").rglob("*"))
    for line, says in (
        ("yield self.pattern.nothing", "fails on one batch (AttributeError: "),
        ("yield torch.zeros(1)", "gives (1,) for images (4, 3, 8, 8)"),
        ("yield torch.ones_like(images)", "gives a δ of 1 where ε is 0.031"),
        ("yield images", "gives a δ of"),
    ):
        (tmp_path / "broken.py").write_text(OWN.replace(OWN.splitlines()[12].strip(), line))
        status, out, err = command("train", "grad", f"--attacker={tmp_path}/broken.py:Universal")
        assert status == 2 and says in err and err.count("\n") == 1, err
    assert sorted((tmp_path / "out").rglob("*")) == before  # no Plain Net was trained for these
    path.write_text("import nothing_of_this_name")
    status, out, err = command("train", "grad", f"--attacker={path}:Universal")
    assert status == 2 and "cannot be imported (ModuleNotFoundError" in err


def test_an_interrupt_says_how_to_go_on(command, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("l2lkit.game.loop.train", interrupt)
    status, _, err = command("train", "plain")
    assert status == 130 and "The same command goes on from here." in err
