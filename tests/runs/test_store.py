"""The store: computed once, resumed after a kill, suspicious of damage, and written with where it
came from."""

import copy
import importlib.util
import json
import math
import os
import platform
import re
import resource
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from torch import nn

from l2lkit import recipes
from l2lkit.errors import InputError
from l2lkit.files import load_checkpoint, save_checkpoint, write_atomically
from l2lkit.game import evaluate as evaluation
from l2lkit.game import loop as training
from l2lkit.game.fixed import FGSM, PGM
from l2lkit.game.identity import code, fingerprint
from l2lkit.game.learned import Learned
from l2lkit.game.recipe import Optimiser
from l2lkit.runs.machine import has_bfloat16, pick_device, processor
from l2lkit.runs.store import Store

TINY = replace(tiny.TINY, seeds=2, epochs=3)


@pytest.fixture(autouse=True)
def profile(monkeypatch):
    monkeypatch.setitem(recipes.PROFILES, "smoke", TINY)


@pytest.fixture
def store(folder, tmp_path):
    """Opens the store of the tiny images anew, as another process would."""

    def open_store(**options):
        settings = {"dataset": "tiny", "data": folder, "device": "cpu", "output": tmp_path / "out"}
        return Store("smoke", **(settings | options))

    return open_store


@pytest.fixture
def plays(monkeypatch):
    """The recipes of all training steps taken, one entry a step."""
    steps, step = [], training.step

    def counted(players, *batch):
        steps.append(players.recipe.name)
        return step(players, *batch)

    monkeypatch.setattr(training, "step", counted)
    return steps


def weights(model):
    return {k: v.clone() for k, v in model.classifier.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def untimed(log):
    return log.drop(columns="seconds")


def directory(store, name="plain"):
    return store.where(store.recipe(name), store.seed)


def checkpoint(store, name="plain"):
    (found,) = directory(store, name).glob("checkpoint.*.pt")
    return found


# Models ------------------------------------------------------------------------------------


def test_a_model_is_trained_once(store, plays):
    first = store()
    model = first.model("grad")
    # 24 images in batches of 8: one epoch of the Plain Net it starts from, then three of its own.
    assert plays == ["iclr2020/plain"] * 3 + ["iclr2020/grad@ours"] * 9
    assert first.model("grad") is model and first.model("iclr2020/grad@ours") is model
    assert first.finished("grad", 0) and not first.finished("grad", 1)

    again = store().model("grad")
    assert len(plays) == 12
    assert same(weights(again), weights(model))
    assert same(again.attack.state_dict(), model.attack.state_dict())
    pd.testing.assert_frame_equal(again.log, model.log, check_exact=True)
    assert again.record == model.record and again.status == model.status
    assert not again.classifier.training and not again.attack.training

    store().model("grad", seed=1)
    assert len(plays) == 24


def test_a_warm_start_is_the_plain_nets_classifier(store, monkeypatch):
    given = {}
    train = training.train

    def spy(recipe, data, **options):
        if options["start_from"] is not None:
            given[recipe.name] = {k: v.clone() for k, v in options["start_from"].items()}
        return train(recipe, data, **options)

    monkeypatch.setattr(training, "train", spy)
    one = store()
    one.model("fgsm")
    assert same(given["iclr2020/fgsm"], weights(one.model("plain")))


def test_all_models_of_a_profile(store):
    models = store(seed=5).models(["plain", "fgsm"])
    assert [(m.recipe.name, m.seed) for m in models] == [
        ("iclr2020/plain", 5),
        ("iclr2020/plain", 6),
        ("iclr2020/fgsm", 5),
        ("iclr2020/fgsm", 6),
    ]
    assert len({m.id for m in models}) == 4


KILLED = """
import os, signal, sys
import torch
from l2lkit import recipes
from l2lkit.runs import store
from l2lkit.game import loop as training

folder, out, where = sys.argv[1:]
torch.set_num_threads(1)
recipes.PROFILES["smoke"] = {profile!r}
count = 0

def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)

if where == "in an epoch":
    step = training.step

    def step_or_die(players, *batch):
        global count
        count += players.recipe.name.endswith("grad@ours")
        if count == 8:  # the second of three batches of the third epoch
            kill()
        return step(players, *batch)

    training.step = step_or_die
else:
    replace = os.replace

    def replace_or_die(source, target):  # just before a checkpoint of the second epoch appears
        global count
        count += "checkpoint" in str(target)
        if count == 3:
            kill()
        replace(source, target)

    os.replace = replace_or_die
s = store.Store("smoke", dataset="tiny", data=folder, device="cpu", output=out)
s.model("grad")
"""


@pytest.mark.parametrize(("where", "left"), [("in an epoch", 3), ("in a checkpoint", 6)])
def test_a_killed_run_goes_on_and_ends_as_if_it_had_not_been(store, folder, plays, where, left):
    script = KILLED.replace("{profile!r}", repr(TINY).replace("Profile(", "recipes.Profile("))
    arguments = [sys.executable, "-c", script, str(folder), str(store().output), where]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not store().finished("grad", 0)

    resumed = store().model("grad")
    assert plays == ["iclr2020/grad@ours"] * left
    whole = store(output=store().output / "other").model("grad")
    pd.testing.assert_frame_equal(untimed(resumed.log), untimed(whole.log), check_exact=True)
    assert same(weights(resumed), weights(whole))
    assert resumed.id == whole.id
    written = pd.read_csv(directory(store(), "grad") / "log.csv")
    pd.testing.assert_frame_equal(untimed(written), untimed(whole.log))


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, flip, lambda path: path.write_bytes(b"")])
def test_a_damaged_checkpoint_is_refused_by_name_and_the_model_trained_again(store, plays, damage):
    before = store().model("plain")
    path = checkpoint(store())
    damage(path)
    damaged = path.read_bytes()
    with pytest.warns(UserWarning, match=rf"{path.name} is damaged.*moved to damaged-{path.name}"):
        after = store().model("plain")
    assert len(plays) == 6
    assert path.with_name(f"damaged-{path.name}").read_bytes() == damaged
    assert same(weights(after), weights(before))
    pd.testing.assert_frame_equal(untimed(after.log), untimed(before.log), check_exact=True)
    assert after.record["wall_seconds"] == pytest.approx(after.log.seconds.sum(), rel=1e-9)
    store().model("plain")  # the new checkpoint is sound
    assert len(plays) == 6


def test_a_damaged_checkpoint_of_an_unfinished_run_starts_it_again(store, plays):
    whole = store().model("fgsm")
    (directory(store(), "fgsm") / "record.json").unlink()
    flip(checkpoint(store(), "fgsm"))
    plays.clear()
    with pytest.warns(UserWarning, match="damaged"):
        again = store().model("fgsm")
    assert len(plays) == 9 and same(weights(again), weights(whole))


def test_checkpoints_round_trip_and_only_the_newest_stays(tmp_path):
    assert load_checkpoint(tmp_path, "checkpoint") is None
    for epoch in (1, 2):
        save_checkpoint(tmp_path, "checkpoint", {"epoch": epoch, "w": torch.full((3,), epoch)})
    found = load_checkpoint(tmp_path, "checkpoint")
    assert found["epoch"] == 2 and found["w"].tolist() == [2, 2, 2]
    assert len(list(tmp_path.iterdir())) == 1


def test_other_recipes_images_and_parents_are_other_models(store, folder):
    one = store()
    grad = one.recipe("grad")
    places = {one.where(grad, 0), one.where(grad, 1), one.where(replace(grad, epochs=4), 0)}
    learned = replace(grad.attack, epsilon=0.03)
    places.add(one.where(replace(grad, attack=learned), 0))
    places.add(one.where(replace(grad, attack=FGSM(epsilon=0.031)), 0))
    places.add(one.where(replace(grad, warm_start="2018/plain"), 0))
    assert len(places) == 6
    assert store().where(grad, 0) == one.where(grad, 0)

    picture = next((folder / "train" / "r").iterdir())
    picture.write_bytes(next((folder / "train" / "g").iterdir()).read_bytes())
    assert store().where(grad, 0) not in places


def test_a_model_of_a_changed_parent_is_another_one(store, monkeypatch):
    before = directory(store(), "grad"), directory(store(), "plain")
    monkeypatch.setitem(recipes.PROFILES, "smoke", replace(TINY, plain_epochs=2))
    assert directory(store(), "plain") != before[1]
    assert directory(store(), "grad") != before[0]  # though its own recipe is the same


def test_the_record_says_where_a_model_comes_from(store):
    one = store(seed=3)
    model = one.model("grad")
    record = json.loads((directory(one, "grad") / "record.json").read_text())
    assert record == model.record
    assert record["recipe"]["name"] == "iclr2020/grad@ours"
    assert record["recipe"]["attack"]["class"] == "Learned"
    assert record["recipe"]["attack"]["settings"]["epsilon"] == 0.031
    assert record["code"] == code("data", "diverse", "game")
    assert record["recipe"]["optimiser"]["lr"] == TINY.lr
    assert record["seed"] == 3 and record["profile"] == "smoke" and record["seeds"] == [3, 4]
    assert record["dataset"] == one.data.title == "tiny"
    assert record["data_fingerprint"] == one.data.fingerprint
    assert record["device"] == f"{processor()}, 1 threads"
    assert record["versions"]["torch"] == torch.__version__.split("+")[0] or (
        record["versions"]["torch"] == torch.__version__
    )
    assert set(record["versions"]) >= {"torch", "torchvision", "numpy", "pandas"}
    assert record["python"].split(".")[0] == str(sys.version_info.major)
    assert record["commit"]
    assert record["wall_seconds"] == pytest.approx(model.log.seconds.sum())
    assert record["status"] == model.status and record["id"] == model.id
    assert record["finished"].endswith("Z")


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="only Linux tells flags")
def test_the_processor_is_the_one_that_the_system_names():
    told = Path("/proc/cpuinfo").read_text()
    assert has_bfloat16(torch.device("cpu")) == ("avx512_bf16" in told or "amx_bf16" in told)
    for name in re.findall("^model name\\s*: (.*)$", told, re.MULTILINE):
        assert processor().startswith(f"{name} (family ")


@pytest.mark.parametrize(
    ("told", "native"),
    [
        ({"avx2": True, "avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
        ({"avx2": True, "avx512_f": True, "avx512_bf16": False}, False),
        ({"neon": True, "bf16": True}, False),
    ],
)
def test_small_profiles_train_in_bfloat16_where_there_is_arithmetic_for_it(
    store, monkeypatch, told, native
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: told)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setitem(recipes.PROFILES, "smoke", replace(TINY, precision="bfloat16"))
    one = store()
    assert one.recipe("grad").precision == ("bfloat16" if native else "float32")
    assert recipes.PROFILES["smoke"].precision == "bfloat16"
    # A model of one precision is not taken for one of the other.
    other = recipes.at_scale(recipes.recipe("grad"), replace(TINY, precision="bfloat16"))
    assert (one.where(one.recipe("grad"), 0) == one.where(other, 0)) == native
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not has_bfloat16(torch.device("cpu"))


def test_a_gpu_has_bfloat16_from_ampere_on(monkeypatch):
    for capability, native in (((7, 5), False), ((8, 0), True), ((9, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, c=capability: c)
        assert has_bfloat16(torch.device("cuda")) == native


def test_a_finished_model_comes_back_without_optimisers(store, monkeypatch):
    """They are of no more use, and the import behind torch's first one takes two seconds."""
    trained = store().model("grad")

    def build(*_, **__):
        raise AssertionError("an optimiser was built")

    monkeypatch.setattr(Optimiser, "build", build)
    again = store().model("grad")
    for part, other in ((trained.classifier, again.classifier), (trained.attack, again.attack)):
        for name, value in part.state_dict().items():
            assert torch.equal(value, other.state_dict()[name])
    with pytest.raises(AssertionError, match="optimiser"):  # the next seed has to learn
        store().model("plain", 1)


def test_progress_adds_up_to_one(store):
    said = []
    store(on_progress=lambda what, share: said.append((what, share))).model("grad")
    own = [share for what, share in said if what.startswith("Grad L2L")]
    assert len(own) == 3 and math.fsum(own) == pytest.approx(1)
    assert said[-1][0] == "Grad L2L, seed 0, epoch 3/3"


# Writing -----------------------------------------------------------------------------------


def test_an_output_below_a_file_is_bad_input(store, tmp_path):
    (tmp_path / "file").write_text("in the way")
    one = store(output=tmp_path / "file" / "out")
    with pytest.raises(InputError, match="Cannot write .*--output"):
        one.save_table(pd.DataFrame({"a": [1]}), "table", "A table.")
    with pytest.raises(InputError, match="Cannot write .*--output"):
        one.model("plain")
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_full_disk_is_bad_input_and_leaves_the_old_checkpoint(tmp_path):
    """A limit on the size of files stands in for the disk."""
    save_checkpoint(tmp_path, "checkpoint", {"epoch": 1})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(InputError, match="Cannot write"):
            save_checkpoint(tmp_path, "checkpoint", {"epoch": 2, "w": torch.zeros(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(list(tmp_path.iterdir())) == 1
    assert load_checkpoint(tmp_path, "checkpoint") == {"epoch": 1}


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail(place: Path):
        place.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match="No space left"):
        write_atomically(path, fail)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_tables_are_csv_and_json_with_provenance(store):
    one = store()
    frame = pd.DataFrame({"defence": ["Plain Net", "PGM Net"], "accuracy": [0.5, np.nan]})
    assert one.save_table(frame, "white_box", "A caption.") is frame
    place = one.runs / "tables" / "tiny"
    pd.testing.assert_frame_equal(pd.read_csv(place / "white_box.csv"), frame)
    content = json.loads((place / "white_box.json").read_text())
    assert content["caption"] == "A caption."
    assert content["rows"] == [
        {"defence": "Plain Net", "accuracy": 0.5},
        {"defence": "PGM Net", "accuracy": None},
    ]
    assert {"profile", "seeds", "device", "versions", "commit"} <= set(content["provenance"])
    assert one.data.title == "tiny"  # once the data are read, they are named too
    one.save_table(frame, "white_box", "A caption.")
    content = json.loads((place / "white_box.json").read_text())
    assert content["provenance"]["dataset"] == "tiny"
    assert content["provenance"]["data_fingerprint"] == one.data.fingerprint


def test_captions_name_data_profile_and_seeds(store):
    assert store().caption() == "tiny, profile smoke, 2 seeds."
    assert store().caption(seeds=1, images=8) == "tiny, profile smoke, 1 seed, 8 test images."


# Measurements ------------------------------------------------------------------------------


@pytest.fixture
def measurements(monkeypatch):
    calls, correct = [], evaluation.correct

    def spy(classifier, attacks, *rest, **options):
        calls.append(list(attacks))
        return correct(classifier, attacks, *rest, **options)

    monkeypatch.setattr(evaluation, "correct", spy)
    return calls


def test_a_measurement_is_made_once(store, measurements):
    attacks = {"Clean": None, "PGM": PGM(steps=2)}
    one = store()
    model = one.model("plain")
    first = one.correct(model, attacks, 6)
    assert {k: (v.shape, v.dtype) for k, v in first.items()} == {
        "Clean": ((6,), np.bool_),
        "PGM": ((6,), np.bool_),
    }
    x, y = one.images(6)
    expected = (model.classifier(x).argmax(1) == y).numpy()
    assert (first["Clean"] == expected).all()

    two = store()
    again = two.correct(two.model("plain"), attacks, 6)
    assert len(measurements) == 1
    assert all((again[k] == first[k]).all() for k in first)

    for other in (
        ({"Clean": None, "PGM": PGM(steps=3)}, 6),
        (attacks, 5),
        ({"Clean": None, "PGM": PGM(steps=2, epsilon=0.1)}, 6),
    ):
        two.correct(two.model("plain"), *other)
    two.correct(two.model("plain", 1), attacks, 6)
    assert len(measurements) == 5
    two.correct(two.model("plain"), attacks, None)
    assert len(two.correct(two.model("plain"), attacks, None)["Clean"]) == 8


@pytest.mark.parametrize(
    "damage", [truncate, lambda p: p.write_text("{}"), lambda p: p.write_bytes(b"\xff\xfe\x00")]
)
def test_a_damaged_measurement_is_made_again(store, measurements, damage):
    one = store()
    first = one.correct(one.model("plain"), {"FGSM": FGSM()}, 8)
    (path,) = (one.runs / "measurements" / "tiny").glob("correct-*.json")
    damage(path)
    with pytest.warns(UserWarning, match=rf"{path.name} is damaged"):
        again = one.correct(one.model("plain"), {"FGSM": FGSM()}, 8)
    assert len(measurements) == 2 and (again["FGSM"] == first["FGSM"]).all()
    content = json.loads(path.read_text())
    assert content["dataset"] == "tiny" and content["commit"] and content["wall_seconds"] >= 0


def test_attacks_are_told_apart_by_all_their_settings_and_never_by_their_name(store, measurements):
    one = store()
    model, naive = one.model("plain"), one.model("naive")
    for attack in (PGM(), PGM(step_size=0.01), naive.attack, naive.attack.within(0.01)):
        for _ in range(2):
            one.correct(model, {"PGM-20": attack}, 4)
    assert len(measurements) == 4


# Other code, and the user's own ---------------------------------------------------------------


def test_a_model_of_other_code_is_used_with_a_sentence_until_it_is_retrained(store, plays):
    path = directory(store(), "plain") / "record.json"
    store().model("plain")
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"code": "of another day"}))
    one = store()
    assert one.caption() == "tiny, profile smoke, 2 seeds."
    one.model("plain")
    assert len(plays) == 3
    assert one.caption() == (
        "tiny, profile smoke, 2 seeds. 1 of the results used were made by other code than this; "
        "--retrain makes them anew."
    )
    again = store(retrain=True)
    assert not again.finished("plain", 0) and store().finished("plain", 0)
    again.model("plain")
    assert len(plays) == 6 and again.finished("plain", 0) and not again.other_code()
    assert json.loads(path.read_text())["code"] == record["code"]
    store(retrain=True).model("plain")
    assert len(plays) == 6


def test_a_model_that_starts_from_one_of_other_code_is_of_other_code_too(store, plays):
    store().model("plain")
    path = directory(store(), "plain") / "record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"code": "of another day"}))
    record = store().model("grad").record
    assert record["code"] == f"of another day+{code('data', 'diverse', 'game')}"
    assert plays.count("iclr2020/grad@ours") == 9
    anew = store(retrain=True).model("grad").record  # after its start
    assert anew["code"] == code("data", "diverse", "game")
    assert plays.count("iclr2020/plain") == 6 and plays.count("iclr2020/grad@ours") == 18


def test_a_run_that_other_code_began_is_never_taken_for_this_codes(store, plays):
    states = []
    one = store(on_progress=lambda what, share: states.append(what))
    one.model("plain")
    path, saved = directory(one), load_checkpoint(directory(one), "checkpoint")
    (path / "record.json").unlink()
    save_checkpoint(path, "checkpoint", saved | {"code": ["of another day"]})
    two = store()
    record = two.model("plain").record
    assert record["code"] == f"of another day+{code('data', 'diverse', 'game')}"
    assert two.other_code()


def test_a_measurement_of_other_code_is_used_with_a_sentence_until_it_is_made_anew(
    store, measurements
):
    one = store()
    one.correct(one.model("plain"), {"FGSM": FGSM()}, 4)
    (path,) = (one.runs / "measurements" / "tiny").glob("correct-*.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"code": "of another day"}))
    two = store()
    two.correct(two.model("plain"), {"FGSM": FGSM()}, 4)
    assert len(measurements) == 1 and "1 of the results" in two.caption()
    three = store(retrain=True)
    three.correct(three.model("plain"), {"FGSM": FGSM()}, 4)
    assert len(measurements) == 2 and not three.other_code()


def test_a_measurement_is_of_the_weights_and_not_of_the_models_name(store, measurements):
    """A model that was retrained by other code has its old id, and none of its old results."""
    one = store()
    model = one.model("plain")
    one.correct(model, {"FGSM": FGSM()}, 4)
    other = replace(model, classifier=copy.deepcopy(model.classifier))
    other.classifier.linear.bias.data += 0.1
    one.correct(other, {"FGSM": FGSM()}, 4)
    assert len(measurements) == 2


MINE = """
import torch
from torch import nn
import l2lkit as l2l

SCALE = {scale}

class Mine(l2l.Attacker):
    \"\"\"A pattern.\"\"\"
    def __init__(self, shape, classes, epsilon=0.031):
        super().__init__(epsilon)
        self.pattern = nn.Parameter(torch.full(shape[1:], 0.1))

    def iterates(self, classifier, images, labels, generators=None):
        {comment}
        delta = SCALE * self.epsilon * self.pattern.tanh().expand_as(images)
        yield l2l.project(delta, images, self.epsilon)
"""


def own(folder, name="mine", scale=1.0, comment="# nothing"):
    """A module file of the user's, imported anew."""
    path = folder / f"{name}.py"
    path.write_text(MINE.format(scale=scale, comment=comment))
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Mine


def test_an_own_attacker_is_trained_against_and_again_when_its_code_changes(store, plays, tmp_path):
    one = store()
    grad = one.recipe("grad")

    def model(**changes):
        return one.model(replace(grad, attack=own(tmp_path, **changes)))

    first = model()
    assert plays.count("iclr2020/grad@ours") == 9
    assert type(first.attack).__name__ == "Mine" and first.own_attack is first.attack
    moved = first.attack.pattern.detach() - 0.1
    assert moved.abs().max() > 1e-4  # it has learnt
    about = first.record["recipe"]["attack"]
    assert about["class"] == "Mine" and len(about["source"]) == 16
    assert model(comment="# more words").id == first.id
    assert plays.count("iclr2020/grad@ours") == 9
    tenth = model(scale=0.1)  # a value that the class names, and not the class itself
    assert tenth.id != first.id and plays.count("iclr2020/grad@ours") == 18
    bound = one.model(replace(grad, attack=partial(own(tmp_path), epsilon=0.01)))
    assert bound.attack.epsilon == 0.01 and bound.id not in (first.id, tenth.id)
    assert bound.record["recipe"]["attack"]["settings"] == {"epsilon": 0.01}


def test_a_subclass_of_ours_is_known_by_its_own_name_settings_and_code(store, plays):
    one = store()
    grad = one.recipe("grad")

    def made(shrink):
        @dataclass(frozen=True, kw_only=True)
        class Mine(Learned):
            halves: int = 1

            def __call__(self, shape, classes):
                return super().__call__(shape, classes).within(shrink * self.epsilon)

        return replace(grad, attack=Mine(steps=1, width=1 / 32))

    recipes_ = [made(1.0), made(0.1)]
    keys = [r.key()["attack"] for r in recipes_]
    assert keys[0]["class"].endswith("Mine") and keys[0]["settings"]["halves"] == 1
    assert "source" in keys[0] and "source" not in grad.key()["attack"]
    model = one.model(recipes_[0])
    assert model.record["recipe"]["attack"] == keys[0]


def test_what_makes_no_attacker_is_refused_before_training(store, plays):
    one = store()
    grad = replace(one.recipe("grad"), warm_start=None)
    for attack in (lambda shape, classes: nn.Identity(), lambda shape, classes: FGSM()):
        with pytest.raises(InputError, match="must make an l2lkit.Attacker"):
            one.model(replace(grad, attack=attack))
    assert not plays


# An older store --------------------------------------------------------------------------------


def test_results_of_an_older_layout_are_refused_in_one_sentence_and_left_alone(store, tmp_path):
    old = tmp_path / "out" / "runs" / "smoke" / "models" / "digits" / "iclr2020-plain-0" / "seed-0"
    old.mkdir(parents=True)
    (old / "record.json").write_text("{}")
    with pytest.raises(InputError, match="another version of l2lkit .* move it away, or name"):
        store()
    assert (old / "record.json").read_text() == "{}"
    store(output=tmp_path / "elsewhere").model("plain")
    store(output=tmp_path / "elsewhere")  # its own layout is read


def test_settings_come_from_the_environment_where_none_are_given(monkeypatch, tmp_path):
    for name, value in {
        "PROFILE": "smoke",
        "SEED": "3",
        "SEEDS": "2",
        "OUTPUT": str(tmp_path),
        "DATASET": "",
        "DEVICE": "cpu",
    }.items():
        monkeypatch.setenv(f"L2LKIT_{name}", value)
    one = Store.here()
    assert one.seeds == [3, 4] and one.output == tmp_path and one.dataset == "digits"
    two = Store.here(seed=5, dataset="mnist")
    assert two.seeds == [5, 6] and two.dataset == "mnist"
    monkeypatch.setenv("L2LKIT_SEEDS", "two")
    with pytest.raises(InputError, match="L2LKIT_SEEDS must be a whole number, not 'two'"):
        Store.here()


# Small parts -------------------------------------------------------------------------------


def test_fingerprint_ignores_the_order_of_keys_only():
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    different = [fingerprint(p) for p in ({"a": 1}, {"a": 2}, {"b": 1}, [1, 2], [2, 1], "a")]
    assert len(set(different)) == 6


@pytest.mark.parametrize("name", ["gpu", "meta", "", "cuda:x"])
def test_an_unknown_device_is_refused(name):
    with pytest.raises(InputError, match="auto, cpu or cuda"):
        pick_device(name)


@pytest.mark.parametrize("seed", [-1, 2**31, 10**30])
def test_a_seed_out_of_range_is_refused(store, seed):
    with pytest.raises(InputError, match="--seed"):
        store(seed=seed)


def test_the_largest_seed_works(store):
    one = store(seed=2**31 - 1)
    assert one.correct(one.model("plain"), {"PGM": PGM(steps=1)}, 4)["PGM"].shape == (4,)


FAULTS = """
import resource, torch
from l2lkit.game.cpu import keep_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        torch.ones(2**21)  # 8 MB, 2048 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
first = faults()
keep_memory()
faults()  # the heap grows once
print(first, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep as they like")
def test_memory_that_is_kept_is_not_fetched_page_by_page_again():
    # glibc itself raises its limit as blocks are freed, but gives the heap's end back.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072"}
    printed = subprocess.check_output([sys.executable, "-c", FAULTS], env=environment, text=True)
    given_back, kept = printed.split()
    assert int(kept) < 5 * 2048 < 25 * 2048 < int(given_back)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_game_learns_and_goes_on_in_every_mode_of_the_caller(store, mode, monkeypatch, tmp_path):
    """Nothing learnt, and stored as finished, was what came of no_grad."""
    expected = store(output=tmp_path / "left alone").model("grad", 1).key
    keep = Store._keep_epoch

    def stop(self, directory, seed, state):
        keep(self, directory, seed, state)
        if "grad" in str(directory) and state["epoch"] == 2:
            raise KeyboardInterrupt

    with mode():
        with monkeypatch.context() as patch:
            patch.setattr(Store, "_keep_epoch", stop)
            with pytest.raises(KeyboardInterrupt):
                store().model("grad", 1)
        assert store().model("grad", 1).key == expected
