"""The benchmark: what it counts, that every ratio is one of the same round, what it saves when."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch
from scripts import load
from torch import nn

from l2lkit.game import step as game_step
from l2lkit.game.learned import Learned
from l2lkit.game.orders import step_in_turns
from l2lkit.runs.machine import processor

bench = load("bench")
CPU = torch.device("cpu")


def narrow(task):
    """The step with an attacker of an eighth of the width."""
    attack = task.recipe.attack
    if isinstance(attack, Learned):
        attack = replace(attack, width=1 / 8)
    return replace(task, recipe=replace(task.recipe, attack=attack))


def step(name, **changes):
    (lean,) = bench.steps([name], "wrn-10-1", 2, precisions=["float32"])
    move = step_in_turns if changes.get("update") == "alternating" else game_step.step
    return narrow(bench.Step(replace(lean.recipe, **changes), move))


def once(task):
    (frame,) = bench.measure([task], CPU, 1, lambda what: None)
    return frame


def test_the_flops_of_a_plain_step_by_hand():
    # WRN-10-1 on 32×32: channels in, channels out, kernel, pixels out.
    stem, first_block = [(3, 16, 9, 1024)], [(16, 16, 9, 1024)] * 2
    second_block = [(16, 32, 9, 256), (32, 32, 9, 256), (16, 32, 1, 256)]
    third_block = [(32, 64, 9, 64), (64, 64, 9, 64), (32, 64, 1, 64)]
    convolutions = [*stem, *first_block, *second_block, *third_block]
    first = 2 * 3 * 16 * 9 * 1024  # no gradient goes on to the images
    forward = sum(2 * a * b * k * pixels for a, b, k, pixels in convolutions) + 2 * 64 * 10
    frame = once(step("iclr2020/plain"))
    assert frame.gflop[0] == pytest.approx(2 * (3 * forward - first) / 1e9, rel=1e-9)
    assert frame.seconds[0] > 0
    # FGSM adds a pass forward and one back to the images.
    frame = once(step("iclr2020/fgsm"))
    assert frame.gflop[0] == pytest.approx(2 * (5 * forward - first) / 1e9, rel=1e-9)


def test_the_references_are_alternating_float32_contiguous_and_have_torchs_prelu():
    found = bench.steps(bench.ROWS, "wrn-10-1", 2, bench.REFERENCES)
    labels = [(s.names["row"], s.names["precision"]) for s in found]
    assert len(set(labels)) == len(labels) == 2 * len(bench.ROWS) + 4
    assert labels[-4:] == [
        (f"{defence} ({kind})", "float32")
        for kind in ("reference", "alternating")
        for defence in ("Grad L2L", "2-Step L2L")
    ]
    assert {s.move for s in found[-4:-2]} == {bench.authors_step}
    ours, theirs = (
        step("iclr2020/grad@ours", update=update).prepare(CPU)
        for update in ("simultaneous", "alternating")
    )
    for once, fast in ((ours, True), (theirs, False)):
        players, x, _ = once.args
        slopes = [m for m in players.attack.modules() if isinstance(m, nn.PReLU)]
        assert len(slopes) == 6 and all((type(m) is nn.PReLU) != fast for m in slopes)
        learnt = players.optimisers["attacker"].param_groups[0]["params"]
        assert {id(p) for p in players.attack.parameters()} == {id(p) for p in learnt}
        weights = [m.weight for m in players.attack.modules() if isinstance(m, nn.Conv2d)]
        for tensor in (x, weights[1]):
            assert tensor.is_contiguous(memory_format=torch.channels_last) == fast
            assert tensor.is_contiguous() != fast


@pytest.mark.slow
@pytest.mark.parametrize("name", bench.REFERENCES)
def test_the_authors_step_moves_the_players_as_ours_does_for_twice_the_flops(name):
    theirs, lean = (
        bench.Step(replace(step(name).recipe, update="alternating"), move)
        for move in (bench.authors_step, step_in_turns)
    )
    once_theirs, once_lean = theirs.prepare(CPU), lean.prepare(CPU)
    for _ in range(2):
        once_theirs(), once_lean()
    ended = [once.args[0].state() for once in (once_theirs, once_lean)]
    started = theirs.prepare(CPU).args[0].state()
    for part in ("f", "g"):
        for key, value in ended[0][part].items():
            torch.testing.assert_close(value, ended[1][part][key], rtol=1e-3, atol=1e-5)
        assert any((ended[0][part][k] != started[part][k]).any() for k in started[part])
    fast, reference, least = (
        found.gflop[0] for found in (once(step(name)), once(theirs), once(lean))
    )
    assert reference == pytest.approx(2 * fast, rel=1e-9)
    assert fast < least < reference


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
    pair = next(p for p in bench.PUBLISHED if (p.row, p.over) == ("Grad L2L", "PGM Net"))
    other = replace(pair, target="≥ 0.5", published=None)
    found, aim = bench.ratios(pd.DataFrame(rows), [pair, other]).to_dict("records")
    assert (found["ratio"], found["low"], found["high"], found["rounds"]) == (0.5, 0.1, 1.0, 3)
    assert found["flop_ratio"] == 0.25 and found["published"] == pytest.approx(0.47, abs=0.002)
    assert (found["target"], found["met"], aim["met"]) == ("≤ 0.30", False, True)
    table = bench.summary(pd.DataFrame(rows), {"float32": 16.0}, batch_size=500)
    grad = table.set_index("row").loc["Grad L2L"]
    assert (grad.seconds, grad.low, grad.high, grad.rounds) == (6, 2, 9, 3)
    assert grad.epoch_minutes == 6 * 100 / 60
    assert grad.gflop_per_second == 8 / 6 and grad.share_of_limit == 8 / 6 / 16


def test_the_ratios_of_the_paper_are_those_of_its_table_3():
    printed = {(p.row, p.over): round(p.published, 2) for p in bench.PUBLISHED}
    over_pgm = {("Grad L2L", "PGM Net"): 0.47, ("2-Step L2L", "PGM Net"): 0.61}
    assert printed == over_pgm | {("Grad L2L", "Plain Net"): 5.80}


def pretend(stop=None):
    """In place of `bench.measure`: every step takes a second; interrupted after `stop` rounds."""

    def measure(tasks, device, rounds, on_progress):
        for done in range(1, rounds + 1):
            on_progress("round")
            yield pd.DataFrame(
                task.names | {"round": i, "seconds": 1.0, "gflop": 2.0, "peak_mb": 7.0}
                for task in tasks
                for i in range(done)
            )
            if done == stop:
                raise KeyboardInterrupt

    return measure


def pretended_limits(device, rounds, precisions):
    return dict.fromkeys(precisions, 16.0)


OPTIONS = ["--classifier", "wrn-10-1", "--batch", "2", "--rounds", "3", "--device", "cpu"]


def test_the_command_prints_and_saves_all_tables(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "measure", pretend())
    monkeypatch.setattr(bench, "limits", pretended_limits)
    assert bench.main([*OPTIONS, "--output", str(tmp_path), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    saved = json.loads((tmp_path / "results" / "bench.json").read_text())
    assert {row["table"] for row in printed} == set(saved["tables"])
    assert sum(map(len, saved["tables"].values())) == len(printed)
    assert {r["peak_mb"] for r in saved["tables"]["training"]} == {7.0}
    assert all(r["rounds"] == 3 for rows in saved["tables"].values() for r in rows)
    assert [r["row"] for r in saved["tables"]["attacks"]] == list(bench.ATTACKS)
    assert saved["machine"]["device"].startswith(f"{processor()}, ")


def test_what_is_interrupted_keeps_the_rounds_that_were_over(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "measure", pretend(stop=2))
    assert bench.main([*OPTIONS, "--output", str(tmp_path)]) == 130
    path = tmp_path / "results" / "bench.json"
    assert str(path) in capsys.readouterr().err
    tables = json.loads(path.read_text())["tables"]
    assert set(tables) == {"training", "ratios"}
    assert {r["rounds"] for r in tables["training"]} == {2}


def test_a_device_without_bfloat16_is_timed_in_float32_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "measure", pretend())
    monkeypatch.setattr(bench, "limits", pretended_limits)
    monkeypatch.setattr(bench.machine, "has_bfloat16", lambda device: False)
    assert bench.main([*OPTIONS, "--output", str(tmp_path), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["precision"] for row in rows} == {"float32"}
    assert {row["its_precision"] for row in rows if row["table"] == "ratios"} == {"float32"}
    pairs = [row["row"] for row in rows if row["table"] == "paper ratios"]
    assert pairs == ["Grad L2L", "2-Step L2L", "Grad L2L"]
    saved = json.loads((tmp_path / "results" / "bench.json").read_text())
    assert set(saved["limit_gflop_per_second"]) == {"float32"}


@pytest.mark.slow
def test_the_progress_names_every_step_and_ends_at_the_whole(tmp_path, monkeypatch):
    steps = bench.steps
    monkeypatch.setattr(bench, "ROWS", bench.PAPER_ROWS)
    small = partial(steps, classifier="wrn-10-1", batch_size=2, precisions=["float32"])
    monkeypatch.setattr(bench, "steps", lambda names, *_, **__: list(map(narrow, small(names))))
    monkeypatch.setattr(bench, "TO_REFERENCE", bench.PUBLISHED)
    monkeypatch.setattr(bench.machine, "has_bfloat16", lambda device: False)
    names, shares = [], []

    def note(name, share):
        names.append(name), shares.append(share)

    bench.run(tmp_path / "bench.json", CPU, "wrn-10-1", 2, 1, note)
    assert sum(shares) == pytest.approx(1)
    assert names[0] == "arithmetic limit"
    assert "wrn-10-1, round 1 of 1: 2-Step L2L, float32" in names


@pytest.mark.parametrize("option", ["--batch", "--rounds", "--threads"])
def test_what_is_not_positive_is_refused(option, capsys):
    with pytest.raises(SystemExit, match="2"):
        bench.main([option, "-1"])
    assert "must be a positive number, not -1" in capsys.readouterr().err
