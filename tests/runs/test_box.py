"""The shipped run: packed and unpacked without loss, used where nothing was trained, and never
mixed with what was."""

import hashlib
import json
import shutil
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from conftest import image_folder
from scripts import load

from l2lkit import InputError, recipes
from l2lkit.gail.agent import Agent, PolicySettings
from l2lkit.game import evaluate, loop
from l2lkit.results import diverse, experiments
from l2lkit.runs import box
from l2lkit.runs.store import Store

ABOUT = {"precision": "float32", "commit": "0123abc"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of two trained and measured models, and of the images."""
    root = tmp_path_factory.mktemp("run")
    image_folder(root / "images")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(recipes.PROFILES, "smoke", replace(tiny.TINY, epochs=2))
        patch.setenv("L2LKIT_DATA", str(root / "images"))
        made = Store("smoke", "tiny", device="cpu", output=root / "made")
        experiments.white_box(made, ["grad"])
    return root


@pytest.fixture
def packed(run, tmp_path, monkeypatch):
    """A box of that run, and the store that made it: a copy for each test."""
    monkeypatch.setitem(recipes.PROFILES, "smoke", replace(tiny.TINY, epochs=2))
    monkeypatch.setattr(box, "BOXES", tmp_path / "boxes")
    monkeypatch.setenv("L2LKIT_DATA", str(run / "images"))
    shutil.copytree(run / "made", tmp_path / "made")
    made = Store("smoke", "tiny", device="cpu", output=tmp_path / "made")
    box.pack(made.runs, box.BOXES / "smoke-tiny.zip", ABOUT)
    return made


def fresh(place, **settings):
    return Store("smoke", "tiny", device="cpu", output=place, box=True, **settings)


@pytest.fixture
def no_training(packed, monkeypatch):
    monkeypatch.setattr(loop, "_epoch", lambda *_: pytest.fail("an epoch was played"))
    compute = "l2lkit.game.evaluate.trajectory"
    monkeypatch.setattr(compute, lambda *_, **__: pytest.fail("something was measured"))


def test_what_comes_out_is_what_went_in(packed, no_training, tmp_path):
    there = fresh(tmp_path / "new")
    old, new = packed.model("grad"), there.model("grad")
    for a, b in ((old.classifier, new.classifier), (old.attack, new.attack)):
        assert a.state_dict().keys() == b.state_dict().keys()
        assert all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())
    assert new.log.equals(old.log) and new.key == old.key
    assert experiments.white_box(there, ["grad"]).equals(experiments.white_box(packed, ["grad"]))
    assert "Made at commit 0123abc; comes with l2lkit." in there.caption()
    assert "comes with" not in packed.caption()


def test_the_replay_of_the_first_seed_comes_along(packed, no_training, tmp_path):
    then, now = (s.epoch("grad", 1) for s in (packed, fresh(tmp_path / "new")))
    for k, v in then.classifier.state_dict().items():
        assert torch.equal(v, now.classifier.state_dict()[k])


def test_a_generator_stays_at_home_and_what_it_did_comes_along(packed, tmp_path, monkeypatch):
    """Its answers are there without its training, and those of other models are not."""
    rows, full = [packed.recipe("plain")], packed.recipe("l2l-da-cifar10/full")
    right = diverse.survival(packed, rows[0], 0, diverse.SMALL, full)
    diverse.survival(packed, packed.recipe("grad"), 0, diverse.SMALL, full)
    wanted = {packed.where(recipe, 0) for recipe in (*rows, full)}
    box.pack(packed.runs, box.BOXES / "smoke-tiny.zip", ABOUT, wanted)
    files = box.card(box.BOXES / "smoke-tiny.zip")["files"]
    models = {name.split("/")[2].rsplit("-", 1)[0] for name in files if name.startswith("models")}
    assert models == {"iclr2020-plain", "l2l-da-cifar10-full"}
    monkeypatch.setattr(loop, "_epoch", lambda *_: pytest.fail("an epoch was played"))
    monkeypatch.setattr(
        "l2lkit.game.evaluate.trajectory", lambda *_, **__: pytest.fail("something was measured")
    )
    again = diverse.survival(fresh(tmp_path / "new"), rows[0], 0, diverse.SMALL, full)
    assert {name: alive.tolist() for name, alive in again.items()} == {
        name: alive.tolist() for name, alive in right.items()
    }
    with zipfile.ZipFile(box.BOXES / "smoke-tiny.zip") as there:
        assert not any(b'"model": "iclr2020-grad' in there.read(name) for name in files)


def test_an_agent_of_gail_can_be_loaded_and_optimisers_of_what_is_over_stay_out():
    settings = PolicySettings(hidden=(4,), pairs=500)
    agent, other = (
        Agent("CartPole-v1", settings, np.full(4, seed), np.ones(4), seed) for seed in (0, 1)
    )
    over = {"optimiser": {"lr": 0.1}}
    state = {"game": {"agent": agent.state()} | over, "optimisers": over}
    kept = box._unpacked(box._packed(state))
    assert set(kept) == {"game"} and set(kept["game"]) == {"agent"}
    other.load(kept["game"]["agent"])
    greedy = [a.evaluate(episodes=3, seed=5).tolist() for a in (agent, other)]
    assert greedy[0] == greedy[1]


def test_it_is_used_only_where_nothing_was_trained(packed, tmp_path):
    assert fresh(packed.output).boxed is None and fresh(packed.output).runs == packed.runs
    for asked in ({"seed": 1}, {"seeds": 2}, {"data": tmp_path / "images"}):
        assert fresh(tmp_path / "new", **asked).boxed is None
    assert Store("smoke", "tiny", device="cpu", output=tmp_path / "new").boxed is None
    assert not (tmp_path / "new").exists()
    there = fresh(tmp_path / "new")
    assert there.boxed and there.runs.parent == tmp_path / "new" / "runs"
    assert there.runs.name.startswith("smoke-box-")
    again = Store(**there.parameters())  # as a notebook's kernel or a worker opens it
    assert again.runs == there.runs and again.boxed == there.boxed


def test_its_precision_holds_whatever_this_machine_would_train_in(packed, tmp_path, monkeypatch):
    monkeypatch.setattr("l2lkit.runs.machine.has_bfloat16", lambda _: True)
    assert fresh(tmp_path / "new").recipe("grad").precision == "float32"


@pytest.mark.parametrize("change", ["a digest", "a name", "no card", "no zip"])
def test_a_damaged_box_is_refused_in_one_sentence(packed, tmp_path, change):
    path = box.BOXES / "smoke-tiny.zip"
    with zipfile.ZipFile(path) as there:
        contents = {name: there.read(name) for name in there.namelist()}
    card = json.loads(contents["card.json"])
    if change == "a digest":
        contents["layout"] = b"3"
    if change == "a name":
        card["files"]["../outside"] = hashlib.sha256(b"x").hexdigest()
        contents["../outside"] = b"x"
    contents["card.json"] = json.dumps(card).encode()
    if change == "no card":
        del contents["card.json"]
    with zipfile.ZipFile(path, "w") as there:
        for name, content in contents.items():
            there.writestr(name, content)
    if change == "no zip":
        path.write_bytes(b"not a zip")
    with pytest.raises(InputError, match="smoke-tiny.zip is damaged"):
        fresh(tmp_path / "new")
    assert not (tmp_path / "new" / "runs" / "outside").exists()


@pytest.mark.slow
def test_the_shipped_box_fits_the_code(tmp_path):
    """What a run trains and measures for the notebooks is there under today's keys, and answers as
    was recorded."""
    maker = load("box")
    store = maker.Finished("quick", device="cpu", output=tmp_path, box=True)
    assert store.boxed, "python benchmarks/box.py makes the box"
    maker.check(store)
    attacks = {"Clean": None, "PGM-20": store.budget.pgm(20)}
    for name in ("plain", "pgm", "2step"):
        model, (x, y) = store.model(name), store.images(16)
        now = evaluate.correct(model.classifier, attacks, x, y, seed=model.seed)
        recorded = experiments.survival(store, model)
        for attack in attacks:
            agree = torch.from_numpy(recorded[attack][:16]) == now[attack]
            assert agree.float().mean() > 0.9, f"{name} under {attack}: remake the box"
