"""The benchmark: what it counts, and that every ratio is one of the same round."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

from l2lkit import bench
from l2lkit.__main__ import main

CPU = torch.device("cpu")


def step(name, **changes):
    (found,) = [
        s for s in bench.steps([name], "wrn-10-1", 2) if s.recipe.precision == "float32"
    ]
    return bench.Step(bench.replace(found.recipe, **changes))


def test_the_flops_of_a_plain_step_by_hand():
    # WRN-10-1 on 32×32: channels in, channels out, kernel, pixels out.
    stem = (3, 16, 9, 1024)
    convolutions = [
        stem, (16, 16, 9, 1024), (16, 16, 9, 1024),
        (16, 32, 9, 256), (32, 32, 9, 256), (16, 32, 1, 256),
        (32, 64, 9, 64), (64, 64, 9, 64), (32, 64, 1, 64),
    ]  # fmt: skip
    first = 2 * 3 * 16 * 9 * 1024  # no gradient goes on to the images
    forward = sum(2 * a * b * k * pixels for a, b, k, pixels in convolutions) + 2 * 64 * 10
    frame = bench.measure([step("iclr2020/plain")], CPU, 1, lambda what: None)
    assert frame.gflop[0] == pytest.approx(2 * (3 * forward - first) / 1e9, rel=1e-9)
    assert frame.seconds[0] > 0
    # FGSM adds a pass forward and one back to the images.
    frame = bench.measure([step("iclr2020/fgsm")], CPU, 1, lambda what: None)
    assert frame.gflop[0] == pytest.approx(2 * (5 * forward - first) / 1e9, rel=1e-9)


def test_the_reference_is_alternating_float32_and_contiguous():
    found = bench.steps(bench.ROWS, "wrn-10-1", 2, bench.REFERENCES)
    labels = [(s.names["row"], s.names["precision"]) for s in found]
    assert len(set(labels)) == len(labels) == 2 * len(bench.ROWS) + 2
    assert labels[-2:] == [(f"{d} (reference)", "float32") for d in ("Grad L2L", "2-Step L2L")]
    ours, theirs = (
        step("iclr2020/grad", update=update).prepare(CPU)
        for update in ("simultaneous", "alternating")
    )
    for once, fast in ((ours, True), (theirs, False)):
        players, x, _ = once.args
        weights = [m.weight for m in players.attack.modules() if isinstance(m, nn.Conv2d)]
        for tensor in (x, weights[1]):
            assert tensor.is_contiguous(memory_format=torch.channels_last) == fast
            assert tensor.is_contiguous() != fast


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells")
def test_peak_memory_is_what_a_call_holds_at_once():
    def twice_in_turn():
        for _ in range(2):
            torch.ones(25_000_000)

    assert bench.peak_memory(twice_in_turn, CPU) == pytest.approx(100, rel=0.1)


def test_a_ratio_is_taken_within_a_round():
    rows = [
        {"row": row, "precision": "float32", "round": i, "seconds": s, "gflop": g, "peak_mb": 0}
        for row, times, g in (("Grad L2L", (2.0, 6.0, 9.0), 8), ("PGM Net", (4.0, 6.0, 90.0), 32))
        for i, s in enumerate(times)
    ]
    pair = ("Grad L2L", "float32", "PGM Net", "float32")
    (found,) = bench.ratios(pd.DataFrame(rows), [pair]).to_dict("records")
    assert (found["ratio"], found["low"], found["high"]) == (0.5, 0.1, 1.0)
    assert found["flop_ratio"] == 0.25 and found["published"] == pytest.approx(0.47, abs=0.002)
    table = bench.summary(pd.DataFrame(rows), {"float32": 16.0}, batch_size=500)
    grad = table.set_index("row").loc["Grad L2L"]
    assert (grad.seconds, grad.low, grad.high) == (6, 2, 9)
    assert grad.epoch_minutes == 6 * 100 / 60
    assert grad.gflop_per_second == 8 / 6 and grad.share_of_limit == 8 / 6 / 16


def test_the_command_prints_and_saves_all_tables(tmp_path, monkeypatch, capsys):
    def measured(tasks, device, repeats, on_progress):
        return pd.DataFrame(
            task.names | {"round": i, "seconds": 1.0, "gflop": 2.0, "peak_mb": 7.0}
            for task in tasks for i in range(repeats)
        )  # fmt: skip

    monkeypatch.setattr(bench, "measure", measured)
    options = ["--classifier", "wrn-10-1", "--batch", "2", "--repeats", "2"]
    assert main(["bench", *options, "--device", "cpu", "--output", str(tmp_path), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    saved = json.loads((tmp_path / "results" / "bench.json").read_text())
    assert {row["table"] for row in printed} == set(saved["tables"])
    assert sum(map(len, saved["tables"].values())) == len(printed)
    assert {r["peak_mb"] for r in saved["tables"]["training"]} == {7.0}
    assert {"FGSM", "PGM-20"} < {row["row"] for row in saved["tables"]["attacks"]}
    assert saved["machine"]["device"].startswith("cpu, ")


@pytest.mark.parametrize("option", ["--batch", "--repeats", "--threads"])
def test_what_is_not_positive_is_refused(option, capsys):
    assert main(["bench", option, "-1"]) == 2
    assert "must be a positive number, not -1" in capsys.readouterr().err
