"""Bad input by a generator: one sentence, exit status 2, and nothing changed on the disk."""

import contextlib
import io
import math
import re
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from conftest import image_folder
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import nn

from l2lkit import recipes
from l2lkit.__main__ import main
from l2lkit.data import load
from l2lkit.diverse.generator import Diverse
from l2lkit.errors import InputError
from l2lkit.game.autoattack import AutoAttack
from l2lkit.game.cw import CW, CWTanh
from l2lkit.game.fixed import FGSM, PGM
from l2lkit.game.free import Free
from l2lkit.game.learned import Learned
from l2lkit.game.recipe import Optimiser, Recipe
from l2lkit.game.search import RandomSearch

many = settings(
    max_examples=250, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
# What a shell can hand over: any text without NUL.
text = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30)
path = st.one_of(
    text.map(lambda t: f"nowhere/{t}"),
    text.map(lambda t: f"{t}.zip"),
    st.sampled_from(["/dev/null", "x" * 5000, "~nobody/x.zip", "/proc/self/mem", "../nowhere"]),
)
number = st.one_of(
    st.floats(max_value=-1e-9), st.just(math.nan), st.just(math.inf), st.just("a"), st.none()
)
names = st.one_of(text, st.sampled_from(["..", "../x", "a/b", "a\\b", ".", "", "plain\n", "-1"]))
OPTIONS = {
    "--profile": names,
    "--dataset": names,
    "--device": names,
    "--seed": st.one_of(text, st.integers(max_value=-1).map(str), st.integers(2**31).map(str)),
    "--seeds": st.one_of(text, st.integers(max_value=0).map(str), st.integers(1001).map(str)),
    "--data": path,
    "--output": path.map(lambda p: f"/dev/null/{p}"),
}
OF_COMMANDS = {
    "run": {"--only": names},
    "train": {"--attacker": st.one_of(names, path.map(lambda p: f"{p}:Mine"))},
    "evaluate": {
        "--attacks": st.one_of(names, text.map(lambda t: f"clean,{t}")),
        "--epsilon": st.one_of(text, (st.floats(1.001) | st.floats(max_value=-1e-9)).map(str)),
        "--images": st.one_of(text, st.integers(max_value=0).map(str)),
    },
}
GOOD = re.compile(r"\s*(smoke|quick|paper|night|auto|cpu|cuda\S*|0*\d+|grad|plain)\s*")


@st.composite
def command_lines(draw):
    """A command that is right but for one option, or but for the recipe's name."""
    command = draw(st.sampled_from([*OF_COMMANDS]))
    options = OPTIONS | OF_COMMANDS[command]
    words = {"run": [], "train": ["grad"], "evaluate": ["plain"]}[command]
    if words and draw(st.integers(0, 7)) == 0:
        name = draw(names)
        assume(not name.startswith("-") and name not in recipes.RECIPES)
        assume(f"iclr2020/{name}" not in recipes.RECIPES)
        return [command, name], {}
    option = draw(st.sampled_from([*options]))
    value = draw(options[option])
    assume(not GOOD.fullmatch(value) or option in ("--epsilon", "--images"))
    return [command, *words], {option: value}


def files(root):
    return {p: p.read_bytes() if p.is_file() else None for p in Path(root).rglob("*")}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("bad")
    image_folder(place / "images")
    return place


@pytest.mark.slow
@many
@given(command_lines())
def test_the_command_line(place, line):
    words, bad = line
    options = {
        "--profile": "smoke",
        "--dataset": "tiny",
        "--data": str(place / "images"),
        "--device": "cpu",
        "--output": str(place / "out"),
    } | bad
    given_options = [f"{option}={value}" for option, value in options.items()]
    before, out, err = files(place), io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main([*words, *given_options])
        except SystemExit as stop:  # argparse's
            status = stop.code
    said = err.getvalue()
    assert status == 2 and out.getvalue() == "" and "Traceback" not in said, (line, said)
    assert re.match(r"(error: |usage: )", said) and said.count("error: ") >= 1
    assert files(place) == before


SETTINGS = [
    (FGSM, ("epsilon",)),
    (PGM, ("epsilon", "steps", "step_size")),
    (CW, ("epsilon", "steps", "c", "lr")),
    (CWTanh, ("epsilon", "inner_steps", "c_min", "c_max", "lr")),
    (RandomSearch, ("epsilon", "draws")),
    (AutoAttack, ("epsilon", "targets", "queries")),
    (Learned, ("epsilon",)),
    (Free, ("epsilon", "replays")),
    (Diverse, ("epsilon", "width", "steps", "latent", "diversity")),
    (Optimiser, ("lr", "decay", "momentum", "weight_decay")),
]


@pytest.mark.slow
@many
@given(st.data())
def test_settings_of_solvers_and_optimisers(data):
    kind, names = data.draw(st.sampled_from(SETTINGS))
    name = data.draw(st.sampled_from(names))
    value = data.draw(number)
    with pytest.raises(InputError):
        kind(**({"steps": 1} if kind is Learned else {}) | {name: value})


CHOICES = [
    (PGM, "start"),
    (PGM, "against"),
    (Learned, "network"),
    (Learned, "gradient"),
    (Diverse, "gradient"),
    (Optimiser, "kind"),
    (Recipe, "update"),
    (Recipe, "precision"),
    (Recipe, "epochs"),
    (Recipe, "batch_size"),
    (Recipe, "clean_weight"),
    (Recipe, "trades"),
]


@pytest.mark.slow
@many
@given(st.sampled_from(CHOICES), text, number)
def test_settings_of_recipes(choice, word, value):
    kind, name = choice
    assert name in [f.name for f in fields(kind)]
    base = {Recipe: {"name": "a", "defence": "a", "source": "", "attack": None}}.get(kind, {})
    base |= {"steps": 1} if kind is Learned else {}
    bad = value if name in ("epochs", "batch_size", "clean_weight", "trades") else word
    with pytest.raises(InputError):
        kind(**base | {name: bad})


@st.composite
def batches(draw):
    """Images and labels for a classifier of four classes, with one thing wrong."""
    x, y = torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 2])
    wrong = draw(st.integers(0, 7))
    place = draw(st.integers(0, 2))
    if wrong == 0:
        x[place] = draw(st.floats(1.5, 1e30) | st.floats(-1e30, -0.5) | st.just(math.nan))
    elif wrong == 1:
        y[place] = draw(st.integers(4, 2**40) | st.integers(-(2**40), -1))
    elif wrong == 2:
        x = x.to(draw(st.sampled_from([torch.uint8, torch.int64, torch.bool])))
    elif wrong == 3:
        y = y.to(draw(st.sampled_from([torch.int32, torch.float32, torch.bool])))
    elif wrong == 4:
        x = x.flatten(draw(st.integers(0, 2)))
    elif wrong == 5:
        y = y[: draw(st.integers(0, 2))]
    elif wrong == 6:
        x = torch.rand(3, 1, draw(st.integers(3, 9)), 2)
    else:
        y = nn.functional.one_hot(y, 4)
    return x, y


@pytest.mark.slow
@many
@given(batches(), st.sampled_from([FGSM(), PGM(steps=2), CW(steps=2), RandomSearch(draws=2)]))
def test_batches(batch, attack):
    x, y = batch
    kept = x.clone(), y.clone()
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 4))
    with pytest.raises(InputError):
        attack(net, x, y)
    assert torch.equal(x.nan_to_num(), kept[0].nan_to_num()) and torch.equal(y, kept[1])


@st.composite
def spoilt(draw):
    """A file or folder to put into an image folder, with which it cannot be read."""
    split, label = draw(st.sampled_from(["train", "test"])), draw(st.sampled_from(["r", "b"]))
    name = draw(st.from_regex(r"[a-z]{1,8}", fullmatch=True))
    kind = draw(st.integers(0, 3))
    if kind == 0:
        return f"{split}/{label}/{name}.png", draw(st.binary(max_size=200))
    if kind == 1:
        ending = draw(st.sampled_from(["txt", "csv", "json", "npz", "png.bak", "mp4"]))
        return f"{split}/{label}/{name}.{ending}", b"1"
    if kind == 2:
        return f"{split}/{label}/{name}/1.png", b""
    return f"test/new{name}/1.png", b""


@pytest.mark.slow
@many
@given(spoilt())
def test_image_folders(place, spoilt):
    path, content = place / "images" / spoilt[0], spoilt[1]
    made = not path.parent.exists()
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    before = files(place)
    try:
        with pytest.raises(InputError):
            load("tiny", place / "images")
        assert files(place) == before
    finally:
        path.unlink()
        if made:
            path.parent.rmdir()
