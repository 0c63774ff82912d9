"""The scripts of benchmarks/ that train and compare: what they compare, and how they subtract."""

import json
import math
from dataclasses import replace

import pandas as pd
import pytest
import tiny
import torch
from safetensors.torch import load_file
from scripts import load

from l2lkit.data import Dataset
from l2lkit.errors import InputError
from l2lkit.files import write_json
from l2lkit.recipes import PROFILES, RECIPES
from l2lkit.results import checklist, diverse, experiments, plan
from l2lkit.runs.store import Store
from l2lkit.runs.workers import work_off

choices, libraries, diverse_mnist = load("choices"), load("libraries"), load("diverse_mnist")
night, box = load("night"), load("box")
FULL = "L2L-DA (full), authors' code"


def test_fast_step_changes_update_and_precision_alone(monkeypatch):
    monkeypatch.setattr("l2lkit.runs.machine.has_bfloat16", lambda device: True)
    recipes = choices.fast_step(Store("quick", device="cpu"))
    assert len(recipes) == 4
    for name in ("Grad L2L", "2-Step L2L"):
        fast, theirs = recipes[name].key(), recipes[f"{name}, authors' procedure"].key()
        changed = {k: (fast[k], theirs[k]) for k in fast if fast[k] != theirs[k]}
        update, precision = ("simultaneous", "alternating"), ("bfloat16", "float32")
        assert changed == {"update": update, "precision": precision}


def test_the_kinds_of_a_row_are_compared_with_the_recommended_one():
    recipes = choices.recipes(Store("quick", device="cpu"))
    assert [r.name for r in recipes.values()] == [
        f"iclr2020/{row}{kind}" for row in ("grad", "2step") for kind in ("@ours", "@code", "")
    ]
    frame = pd.DataFrame(
        {"defence": name, "seed": 0, "attack": attack, "accuracy": 0.1 * i, "status": "ok"}
        for i, name in enumerate(recipes)
        for attack in ("Clean", "PGM-20", "PGM-100", "CW")
    )
    gaps = choices.differences(frame)
    assert list(gaps.index) == [
        f"{name} above {name}{kind}"
        for name in ("Grad L2L", "2-Step L2L")
        for kind in (", authors' code", ", as printed")
    ]
    assert gaps["CW"].tolist() == ["-10.0", "-20.0", "-10.0", "-20.0"]


def test_differences_are_paired_by_seed_and_leave_out_what_failed():
    accuracy = {"Grad L2L": (0.50, 0.70, 0.90), "Grad L2L, authors' procedure": (0.40, 0.72, 0.10)}
    status = {0.10: "collapsed"}
    rows = [
        (name, seed, attack, value, status.get(value, "ok"))
        for name, values in accuracy.items()
        for seed, value in enumerate(values)
        for attack in ("Clean", "PGM-20", "PGM-100", "CW")
    ]
    frame = pd.DataFrame(rows, columns=["defence", "seed", "attack", "accuracy", "status"])
    row = choices.differences(frame).loc["Grad L2L, difference"]
    mean, deviation = (10 - 2) / 2, (10 - -2) / math.sqrt(2)
    assert row["PGM-100"] == f"{mean:.1f} ± {deviation:.1f}" and row["seeds"] == "2"
    assert choices.differences(frame[frame.defence == "Grad L2L"]).empty
    # Without authors' procedures, the first one is compared with each of the others.
    settings = frame.assign(defence=frame.defence.replace(f"Grad L2L{choices.AUTHORS}", "slow"))
    paired = choices.differences(settings)
    assert list(paired.index) == ["Grad L2L above slow"]
    assert paired.loc["Grad L2L above slow"].to_dict() == row.to_dict()


def test_libraries_take_turns_batch_by_batch_and_are_measured_once(colours, tmp_path):
    store = Store("smoke", dataset="colours", device="cpu", output=tmp_path)
    store.data = replace(
        colours, test_images=colours.train_images, test_labels=colours.train_labels
    )
    asked = []

    class Pretended:
        def __init__(self, by, seconds, wrong):
            self.by, self.seconds, self.wrong = by, seconds, wrong

        def attack(self, name, steps, success, first, end):
            asked.append((self.by, success, first, end))
            right = [int(i != self.wrong) for i in range(first, end)]
            return self.seconds * (2 if first else 1), right

    class Model:
        key, defence = {"model": "a-model"}, "A Net"

    both = [Pretended("ours 1", 2.0, 7), Pretended("theirs 2", 3.0, 55)]
    rows, again = (libraries.in_turn(store, both, Model, "a", 20, 60) for _ in range(2))
    assert rows == again
    ways = [("ours 1", "final iterate"), ("theirs 2", "final iterate"), ("ours 1", "any iterate")]
    parts = [(0, 2), (0, 50), (50, 60)]  # the first for loading the model, not counted
    assert asked == [(*way, *part) for part in parts for way in ways]
    assert [(r["by"], r["success"]) for r in rows] == ways
    assert [r["seconds"] for r in rows] == [6.0, 9.0, 6.0]
    assert [r["times ours"] for r in rows] == [1.0, 1.5, 1.0]
    assert [r["other verdicts"] for r in rows] == [0, 2, 0]
    assert {r["robust"] for r in rows} == {59 / 60}


def flat(key, path=()):
    """The leaves of a recipe's key, by their path."""
    if not isinstance(key, dict):
        return {path: key}
    return {p: v for name, part in key.items() for p, v in flat(part, (*path, name)).items()}


def test_every_difference_of_l2l_da_is_taken_back_alone():
    full = RECIPES["l2l-da/full@code"]
    settings = {
        "sees x + δ, δ clipped with the image": {("attack", "class"), ("attack", "source")},
        "the text's U-Net": {("attack", "settings", "network")},
        "means over the steps": {("attack", "settings", "objective")},
        "θ's gradient not clipped": {("optimiser", "clip")},
        "φ's gradient not clipped": {("attacker_optimiser", "clip")},
        "ℓ(x) + ℓ(x_adv)": {("attack", "settings", "with_clean"), ("clean_weight",)},
        "longer clean training": {("warm_start",)},
    }
    before = flat(full.key())
    changed = diverse_mnist.changes(full, RECIPES["l2l-da/plain"])
    assert changed.keys() == settings.keys()
    for what, recipe in changed.items():
        after = flat(recipe.key())
        moved = {p for p in before.keys() | after.keys() if before.get(p) != after.get(p)}
        assert moved == settings[what] | {("defence",)}


def test_the_former_generator_saw_x_and_delta_together():
    torch.manual_seed(0)
    g = diverse_mnist.Moved(epsilon=0.3, width=1 / 16, steps=3)((2, 1, 8, 8), 10)
    seen = []
    g.network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    classifier = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    x, y = torch.rand(2, 1, 8, 8), torch.tensor([3, 4])
    delta = g(classifier, x, y)
    for first, _, accumulated in (inputs.chunk(3, 1) for inputs in seen):
        torch.testing.assert_close(first, x + accumulated)
        assert (x + accumulated).min() >= 0 and (x + accumulated).max() <= 1
    assert accumulated.any() and delta.any()


MNIST = "--images 40 --batch 20 --iterations 4 --plain-iterations 2 --start-iterations 2 "


def mnist(output, options):
    """The benchmark with these options, and a store of 40 images of noise for it."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randint(256, (48, 1, 28, 28), generator=draw, dtype=torch.uint8)
    y = torch.arange(48) % 10
    options = ["--data", "none", "--test-images", "8", *(MNIST + options).split()]
    bench = diverse_mnist.Benchmark(diverse_mnist.arguments().parse_args(options))
    store = Store("smoke", device="cpu", output=output, seeds=bench.args.seeds)
    names = tuple("0123456789")
    store.data = Dataset("noise", "noise", names, x[:40], y[:40], x[40:], y[40:], False)
    return bench, bench.ready(store)


def test_a_stopped_game_is_measured_where_it_stands(tmp_path):
    bench, store = mnist(tmp_path, "--seeds 1")
    store.model(bench.plain, 0)

    def stop(what, share):
        if "full" in what and share >= 0.5:
            raise KeyboardInterrupt

    store.on_progress = stop
    with pytest.raises(KeyboardInterrupt):
        store.model(bench.rows["full"], 0)
    rows = pd.DataFrame(bench.stopped(store)["rows"]).set_index("defence")
    assert rows.epoch.to_dict() == {"Plain": 1, "Plain, 1,000 iterations": 1, FULL: 1}
    assert rows.loc[FULL, ["iterations", "of"]].tolist() == [2, 2]
    right = diverse.survival(store, bench.plain, 0, diverse.DESIGNED, bench.rows["full"])
    assert rows.loc["Plain", [*right]].to_dict() == {a: r.mean() for a, r in right.items()}


def test_some_rows_of_mnist_alone_at_a_rate_that_holds(tmp_path):
    bench, store = mnist(tmp_path, "--seeds 2 --only no-r,fgsm --falls-at 1")
    trained = {(recipe.name, seed) for recipe, seed in bench.trained(store)}
    assert trained == {
        *(("l2l-da/no-r@code", seed) for seed in (0, 1)),
        *(("l2l-da/start@code", seed) for seed in (0, 1)),
        ("l2l-da/fgsm", 0),  # of the rows that are played once
        ("l2l-da/plain", 0),
    }
    kinds = [task.name.split("/")[0] for task in bench.tasks(store)]
    assert sorted(kinds) == ["attack"] * 3 + ["train"] * 6
    record = bench.collect(store)
    rates = {model.log.lr.nunique() for model in store.models([bench.rows["no-r"]])}
    assert rates == {1} and len(store.model(bench.rows["no-r"]).log) == 2
    rows = pd.DataFrame(record["designed"])
    assert [*rows.groupby(["recipe", "seed"]).groups] == [
        ("l2l-da/fgsm", 0),
        ("l2l-da/no-r@code", 0),
        ("l2l-da/no-r@code", 1),
    ]
    assert not any(record[part] for part in ("table_2", "table_3", "figure_2", "autoattack"))
    assert record["recipes"].keys() == {"fgsm", "no-r"}
    assert len(record["trained on"]) == 1
    halved, _ = mnist(tmp_path, "--seeds 1")
    assert halved.rows["full"].optimiser.milestones == (0.5,)


def test_the_black_box_of_mnist_can_be_left_out(tmp_path, monkeypatch, capsys):
    bench, store = mnist(tmp_path, "--seeds 2 --without transfer")
    tasks = [task.name for task in bench.tasks(store)]
    assert "transfer" not in tasks and {"restarts", f"generators/{FULL}/0"} <= {*tasks}
    assert "train/FGSM/1" not in tasks  # a surrogate
    assert "train/FGSM/1" in [t.name for t in mnist(tmp_path, "--seeds 2")[0].tasks(store)]
    for options, told in (
        ("--only nothing", "--only nothing: choose of plain, pgd10"),
        ("--without more", "--without more: choose of generators"),
        ("--falls-at 0", "--falls-at 0: a share of the game"),
    ):
        monkeypatch.setattr("sys.argv", ["diverse_mnist.py", "--data", "none", *options.split()])
        with pytest.raises(SystemExit):
            diverse_mnist.main()
        assert told in capsys.readouterr().err


def test_a_night_is_collected_from_the_folders(monkeypatch, folder, tmp_path):
    monkeypatch.setitem(PROFILES, "smoke", replace(tiny.TINY, seeds=2))
    stores = [
        Store("smoke", "tiny", folder, "cpu", seed=seed, seeds=1, output=tmp_path / str(seed))
        for seed in (0, 1)
    ]
    for store in stores:
        work_off(store, plan.rows(store, ["grad"]), 1)
    both = stores[0].output
    night.keep_weights(both, 0, tmp_path / "weights")
    kept = load_file(tmp_path / "weights" / "grad.safetensors")
    exact = stores[0].model("grad", 0).classifier.state_dict()
    assert kept.keys() == exact.keys()
    for name, tensor in kept.items():
        torch.testing.assert_close(tensor.to(exact[name]), exact[name], rtol=1e-3, atol=1e-6)
    shown = []

    def examine(classifier, x, y):  # the list itself has its tests
        shown.append((classifier(x), x, y))
        return pd.DataFrame([{"group": "g", "item": "i", "verdict": "holds", "figure": "f"}])

    monkeypatch.setattr(night, "examine", examine)
    rows = [*night.check(tmp_path / "weights", stores[0].data)]
    assert [row["recipe"] for row in rows] == ["iclr2020/grad@ours", "iclr2020/plain"]
    assert rows[0]["defence"] == "Grad L2L" and rows[0]["verdict"] == "holds"
    logits, x, y = shown[0]
    torch.testing.assert_close((x, y), stores[0].data.test(night.CHECKED))
    exactly = stores[0].model("grad", 0).classifier(x)
    torch.testing.assert_close(logits, exactly, rtol=1e-2, atol=1e-2)
    for checkpoint in both.rglob("*.pt"):
        checkpoint.unlink()
    with pytest.raises(SystemExit, match="has no checkpoint: copy it too"):
        night.keep_weights(both, 0, tmp_path / "weights")
    rows = [*night.models(both), *night.models(stores[1].output)]
    assert [(row["recipe"], row["seed"]) for row in rows] == [
        ("iclr2020/grad@ours", 0),
        ("iclr2020/grad@ours", 1),
    ]
    measured = experiments.white_box(stores[1], ["grad"]).set_index("attack").accuracy
    assert rows[1]["accuracy"]["Worst"] == measured["Worst"]
    assert rows[1]["accuracy"]["PGM-20"] == measured["PGM-20"]
    few = ("AutoAttack", "Worst, first 4")
    assert rows[1]["images"] == {a: 4 if a in few else 8 for a in rows[1]["accuracy"]}
    strongest = checklist.robust_accuracy(stores[1], ["grad"]).AutoAttack[0]
    assert rows[1]["accuracy"]["AutoAttack"] == strongest <= rows[1]["accuracy"]["Worst, first 4"]
    # One folder after the other gives the record of both together.
    monkeypatch.setattr(night, "RECORDED", tmp_path)
    for name, folders in {"both": [0, 1], "anew": [0], "anew ": [1]}.items():
        places = [str(stores[i].output) for i in folders]
        monkeypatch.setattr("sys.argv", ["night.py", *places, "--name", name.strip(), "--seconds"])
        night.main()
    both, anew = ((tmp_path / f"{n}.json").read_text() for n in ("both", "anew"))
    assert both == anew
    seconds = json.loads((tmp_path / "seconds-smoke.json").read_text())
    own = [json.loads((store.runs / "seconds.json").read_text()) for store in stores]
    assert seconds["seconds"] == own[0]["seconds"] | own[1]["seconds"]
    assert {"train/iclr2020/plain/0", "row/iclr2020/grad@ours/1"} <= seconds["seconds"].keys()
    assert seconds["step"] == own[1]["step"] > 0
    write_json(stores[0].runs / "seconds.json", own[0] | {"step": 0.0})
    with pytest.raises(SystemExit, match="another machine, or names no step"):
        night.record_seconds([stores[0].output])


def test_a_box_is_not_made_of_half_a_run(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["box.py", "--output", str(tmp_path)])
    with pytest.raises(SystemExit, match="executed 00_overview.ipynb is missing: ./run_all.sh"):
        box.main()


def test_who_makes_a_box_trains_and_measures_nothing(tmp_path):
    finished = box.Finished("smoke", output=tmp_path)
    with pytest.raises(InputError, match="the model iclr2020/plain, seed 0, is missing"):
        finished.model("plain")
    with pytest.raises(InputError, match="the measurement correct is missing"):
        finished.measured("correct", [], lambda: pytest.fail("it was measured"))
    with pytest.raises(InputError, match="is missing"):
        box.check(finished)
