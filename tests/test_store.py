"""The store: computed once, resumed after a kill, suspicious of damage, and written with where it
came from."""

import json
import math
import os
import platform
import re
import resource
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from l2lkit import evaluation, recipes, training
from l2lkit.attacks import FGSM, PGM
from l2lkit.errors import InputError
from l2lkit.store import (
    Store,
    fingerprint,
    has_bfloat16,
    load_checkpoint,
    pick_device,
    processor,
    save_checkpoint,
    write_atomically,
)

TINY = recipes.Profile(
    name="smoke", seeds=2, eval_images=8, curve_images=4, random_draws=2, train_images=24,
    test_images=8, width=1 / 32, epochs=3, batch_size=8, precision="float32",
)  # fmt: skip


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
    steps, play = [], training.play
    monkeypatch.setattr(
        training, "play", lambda game, x, y: steps.append(game.recipe.name) or play(game, x, y)
    )
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
    assert plays == ["iclr2020/plain"] * 3 + ["iclr2020/grad"] * 9
    assert first.model("grad") is model and first.model("iclr2020/grad") is model
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
        ("iclr2020/plain", 5), ("iclr2020/plain", 6), ("iclr2020/fgsm", 5), ("iclr2020/fgsm", 6)
    ]  # fmt: skip
    assert len({m.id for m in models}) == 4


KILLED = """
import os, signal, sys
import torch
from l2lkit import recipes, store, training

folder, out, where = sys.argv[1:]
torch.set_num_threads(1)
recipes.PROFILES["smoke"] = {profile!r}
count = 0

def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)

if where == "in an epoch":
    play = training.play

    def play_or_die(game, x, y):
        global count
        count += game.recipe.name.endswith("grad")
        if count == 8:  # the second of three batches of the third epoch
            kill()
        return play(game, x, y)

    training.play = play_or_die
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
    assert plays == ["iclr2020/grad"] * left
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
def test_a_damaged_checkpoint_is_refused_by_name_and_the_model_trained_again(
    store, plays, damage
):
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
    assert record["recipe"]["name"] == "iclr2020/grad"
    assert record["recipe"]["attack"]["epsilon"] == 0.031
    assert record["recipe"]["attack_kind"] == "Learned"
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
    [({"avx2": True, "avx512_bf16": True}, True), ({"amx_bf16": True}, True),
     ({"avx2": True, "avx512_f": True, "avx512_bf16": False}, False),
     ({"neon": True, "bf16": True}, False)],
)  # fmt: skip
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
    other = recipes.at_scale(recipes.recipe("iclr2020/grad"), replace(TINY, precision="bfloat16"))
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

    monkeypatch.setattr(recipes.Optimiser, "build", build)
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
        {"defence": "Plain Net", "accuracy": 0.5}, {"defence": "PGM Net", "accuracy": None}
    ]  # fmt: skip
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
        "Clean": ((6,), np.bool_), "PGM": ((6,), np.bool_)
    }  # fmt: skip
    x, y = one.images(6)
    expected = (model.classifier(x).argmax(1) == y).numpy()
    assert (first["Clean"] == expected).all()

    two = store()
    again = two.correct(two.model("plain"), attacks, 6)
    assert len(measurements) == 1
    assert all((again[k] == first[k]).all() for k in first)

    for other in (({"Clean": None, "PGM": PGM(steps=3)}, 6), (attacks, 5),
                  ({"Clean": None, "PGM": PGM(steps=2, epsilon=0.1)}, 6)):  # fmt: skip
        two.correct(two.model("plain"), *other)
    two.correct(two.model("plain", 1), attacks, 6)
    assert len(measurements) == 5
    two.correct(two.model("plain"), attacks, None)
    assert len(two.correct(two.model("plain"), attacks, None)["Clean"]) == 8


@pytest.mark.parametrize("damage", [truncate, lambda p: p.write_text("{}"),
                                    lambda p: p.write_bytes(b"\xff\xfe\x00")])  # fmt: skip
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


def test_a_learned_attack_is_named_by_its_model(store):
    one = store()
    model = one.model("naive")
    assert one.describe(model.attack) == f"the attacker of {model.id}"
    assert one.describe(PGM(steps=7)) != one.describe(PGM(steps=8))
    with pytest.raises(InputError, match="one of the store's models"):
        one.describe(nn.Identity())


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
from l2lkit.store import keep_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        torch.ones(2**21)  # 8 MB, 2048 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
print(faults(), keep_memory(), faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep as they like")
def test_memory_that_is_kept_is_not_fetched_page_by_page_again():
    # glibc itself raises its limit as blocks are freed, but gives the heap's end back.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072"}
    printed = subprocess.check_output([sys.executable, "-c", FAULTS], env=environment, text=True)
    given_back, _, kept = printed.split()
    assert int(kept) < 5 * 2048 < 25 * 2048 < int(given_back)
