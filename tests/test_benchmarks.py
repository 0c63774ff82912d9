"""The scripts of benchmarks/ that train and compare: what they compare, and how they subtract."""

import importlib.util
import math
from pathlib import Path

import pandas as pd
import torch

from l2lkit.store import Store


def load(name):
    path = Path(__file__).parents[1] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


choices, libraries = load("choices"), load("libraries")


def test_fast_step_changes_update_and_precision_alone():
    found = choices.fast_step(Store("quick", device="cpu"))
    assert len(found) == 4
    for name in ("Grad L2L", "2-Step L2L"):
        fast = found[name].as_dict()
        theirs = found[f"{name}, authors' procedure"].as_dict()
        changed = {k: (fast[k], theirs[k]) for k in fast if fast[k] != theirs[k]}
        assert changed == {
            "update": ("simultaneous", "alternating"), "precision": ("bfloat16", "float32")
        }  # fmt: skip


def test_differences_are_paired_by_seed_and_leave_out_what_failed():
    accuracy = {"Grad L2L": (0.50, 0.70, 0.90), "Grad L2L, authors' procedure": (0.40, 0.72, 0.10)}
    frame = pd.DataFrame(
        {"defence": name, "seed": seed, "attack": attack, "accuracy": value,
         "status": "collapsed" if value == 0.10 else "ok"}
        for name, values in accuracy.items()
        for seed, value in enumerate(values)
        for attack in ("Clean", "PGM-20", "PGM-100", "CW")
    )  # fmt: skip
    row = choices.differences(frame).loc["Grad L2L, difference"]
    mean, deviation = (10 - 2) / 2, (10 - -2) / math.sqrt(2)
    assert row["PGM-100"] == f"{mean:.1f} ± {deviation:.1f}" and row["seeds"] == "2"
    assert choices.differences(frame[frame.defence == "Grad L2L"]).empty


def test_a_row_of_the_libraries_is_measured_once(tmp_path, colours):
    store = Store("smoke", device="cpu", output=tmp_path)
    store.data = colours
    calls = []

    class Model:
        id, defence = "a-model", "A Net"

    def attacked():
        calls.append(1)
        return torch.tensor([True, False, True, True])

    first, again = (
        libraries.row(store, "somebody", Model, "PGM-20", "final iterate", 4, attacked)
        for _ in range(2)
    )
    assert first == again and len(calls) == 1 and first["robust"] == 0.75
    other = libraries.row(store, "somebody", Model, "PGM-100", "final iterate", 4, attacked)
    assert len(calls) == 2 and other["attack"] == "PGM-100"
