"""Games that stop and go on, that other code made, and Figure 6 in numbers."""

import json
import math
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from l2lkit.errors import InputError
from l2lkit.gail import networks
from l2lkit.gail.game import METHODS, gail_recipe, train, updated
from l2lkit.game.identity import code
from l2lkit.results import plan
from l2lkit.results.gail import (
    curves,
    played,
    seeds,
    share_of_gradient,
    stability,
    stability_table,
    trained,
    unpacked,
    where,
)
from l2lkit.runs.store import Store

from .conftest import tiny


def networks_of(game):
    return game.agent.actor, game.discriminator


@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_is_stopped_ends_as_if_it_had_not_been(store, cartpole, method):
    recipe = tiny(method)
    whole, log = train(recipe, cartpole, seed=1)

    def stop(words, share):
        if "iteration 2/4" in words:
            raise KeyboardInterrupt

    store.on_progress = stop
    with pytest.raises(KeyboardInterrupt):
        trained(store, recipe, 1)
    heard = []
    store.on_progress = lambda words, share: heard.append(words)
    run = trained(store, recipe, 1)
    assert heard == [f"{method}, CartPole-v1, seed 1, iteration {i}/4" for i in (3, 4)]
    seconds = ["seconds"]
    assert run.log.drop(columns=seconds).equals(log.drop(columns=seconds))
    for a, b in zip(networks_of(run.game), networks_of(whole), strict=True):
        for key, value in a.state_dict().items():
            assert (value == b.state_dict()[key]).all(), key
    heard.clear()
    directory = where(store, recipe, cartpole, 1)
    (kept,) = directory.glob("*.pt")  # one checkpoint, without the moments
    assert "optimiser" not in torch.load(kept, weights_only=True)["game"]
    again = trained(store, recipe, 1)  # from the checkpoint alone
    states = cartpole.observations[:200]
    assert not heard and list(again.snapshots) == [1, 2, 3, 4]
    assert (again.game.agent.logits(states) == whole.agent.logits(states)).all()
    for one, other in ((None, None), (np.random.default_rng(0), np.random.default_rng(0))):
        drawn = again.game.agent.policy(one)(states)
        assert (drawn == whole.agent.policy(other)(states)).all()


@pytest.mark.parametrize("again", [trained, played])
def test_a_run_of_other_code_is_used_with_a_sentence_or_played_anew(tmp_path, store, again):
    recipe, heard = gail_recipe("CartPole-v1", "GAIL", "smoke"), []
    path = played(store, recipe, 0) / "record.json"
    record = json.loads(path.read_text())
    assert not store.other_code() and record["code"] == code("gail")
    path.write_text(json.dumps(record | {"code": "another"}))

    def opened(**settings):
        store = Store("smoke", device="cpu", output=tmp_path, **settings)
        store.on_progress = lambda words, share: heard.append(words)
        return store

    used, anew = opened(), opened(retrain=True)
    again(used, recipe, 0)
    assert not heard and used.other_code().startswith("1 of the results used were made by other")
    again(anew, recipe, 0)
    assert [words.split("iteration ")[1] for words in heard] == ["1/4", "2/4", "3/4", "4/4"]
    assert json.loads(path.read_text())["code"] == code("gail") and not anew.other_code()
    again(anew, recipe, 0)
    assert len(heard) == 4


def test_a_moment_of_a_run_has_networks_of_its_own(store, cartpole):
    run, states = trained(store, tiny("L2L GAIL"), 0), cartpole.observations[:50]
    actions = torch.from_numpy(cartpole.actions[:50])

    def answers(moment):
        seen = torch.from_numpy(moment.game.agent.standardised(states))
        with torch.no_grad():
            return moment.game.agent.logits(states), moment.game.discriminator(seen, actions)

    end, early = answers(run), run.at(1)
    then, last = answers(early), run.at(4)
    for first, second in ((end, answers(run)), (end, answers(last)), (then, answers(early))):
        assert all((a == b).all() for a, b in zip(first, second, strict=True))
    assert (then[0] != end[0]).any()
    snapshot = run.snapshots[1]["policy"]
    for name, weight in early.game.agent.actor.state_dict().items():
        assert (weight == snapshot[name]).all()


def test_a_run_whose_discriminator_outgrows_the_floats_ends_there(store, cartpole):
    recipe = tiny("L2L GAIL", iterations=40, updater_lr=1e5)
    run = trained(store, recipe, 0)
    assert 1 < len(run.log) < 40 and run.log["reward"].isna().iloc[-1]
    assert run.log["reward"].iloc[:-1].notna().all()
    record = json.loads((where(store, recipe, cartpole, 0) / "record.json").read_text())
    assert record["status"] == "diverged" and record["versions"]["sb3-contrib"]
    assert np.isfinite(run.game.agent.logits(cartpole.observations)).all()
    assert len(trained(store, recipe, 0).log) == len(run.log)


def test_the_paper_profile_plays_five_seeds_of_the_papers_networks(tmp_path):
    assert seeds(Store("paper", device="cpu", output=tmp_path)) == [0, 1, 2, 3, 4]
    recipe = gail_recipe("CartPole-v1", "L2L GAIL", "paper")
    assert recipe.hidden == recipe.policy.hidden == (64, 32) and recipe.policy.pairs == 5000
    assert gail_recipe("MountainCar-v0", "GAIL", "paper").reward == "finish"


def test_the_paper_profile_says_at_once_that_memory_is_short(tmp_path, monkeypatch):
    """The discriminator (s, a) -> 64 -> 32 -> 1 on CartPole: (6 + 1)64 + 65 · 32 + 33 numbers."""
    recipe = gail_recipe("CartPole-v1", "L2L GAIL", "paper")
    assert updated(recipe) == 7 * 64 + 65 * 32 + 33 == 2561
    assert updated(gail_recipe("CartPole-v1", "GAIL", "paper")) == 0
    little = SimpleNamespace(available=10**9)
    monkeypatch.setattr(networks.psutil, "virtual_memory", lambda: little)
    with pytest.raises(InputError, match="needs 11.6 GB of memory, and 1.0 GB are free"):
        plan.imitation(Store("paper", device="cpu", output=tmp_path))
    assert len(plan.imitation(Store("smoke", device="cpu", output=tmp_path))) == 6


def test_curves_hold_every_run_once_with_a_score(store):
    table = curves(store, methods=METHODS[:2])
    runs = table.groupby(["environment", "defence", "seed"]).size()
    assert len(runs) == 2 * 2 * 2
    assert (runs["CartPole-v1"] == 4).all() and (runs["MountainCar-v0"] == 8).all()
    car = table[table["environment"] == "MountainCar-v0"]
    assert (car["return"] == -200).all() and car["score"].abs().max() < 0.01
    numbers = stability_table(table)
    assert len(numbers) == 8 and numbers["worst_drop"].isna().all()  # nothing learnt so soon
    store.on_progress = lambda *_: pytest.fail("a finished run was played again")
    assert curves(store, methods=METHODS[:2]).equals(table)
    with pytest.raises(InputError, match="One seed comes twice"):
        curves(store, which=[0, 1, 0])


def test_a_record_of_returns_gives_the_numbers_of_the_runs_themselves(store):
    table = curves(store, methods=METHODS[:2])
    rows = [
        {"environment": e, "method": m, "seed": s, "returns": run["return"].tolist()}
        for (e, m, s), run in table.groupby(["environment", "defence", "seed"], sort=False)
    ]
    again = unpacked(json.loads(json.dumps(rows)))
    pd.testing.assert_frame_equal(stability_table(again), stability_table(table))
    pd.testing.assert_frame_equal(again, table[again.columns])


def test_stability_of_curves_drawn_by_hand():
    rise = np.linspace(0, 1, 11)
    steady = stability([*rise, *[1.0] * 9])
    assert steady == {"final": 1, "reached": 11, "worst_drop": 0, "below": 0}
    falls = stability([*rise, 1, 1.1, 0.3, 0.79, 0.8, 1, 1, 1, 0.9])
    assert falls["reached"] == 11 and falls["worst_drop"] == pytest.approx(0.8)
    assert falls["below"] == pytest.approx(2 / 10) and falls["final"] == pytest.approx(0.95)
    never = stability([0.2, 0.94, 0.1])
    assert never["final"] == 0.1
    assert all(math.isnan(never[k]) for k in ("reached", "worst_drop", "below"))
    early = stability([0.96, 0.5, 0.7])  # a fall counts from the best, not step by step
    assert early["worst_drop"] == pytest.approx(0.46) and early["below"] == pytest.approx(2 / 3)


@given(arrays(np.float64, st.integers(1, 40), elements=st.floats(-1, 1.5)))
def test_stability_against_brute_force(curve):
    numbers = stability(curve)
    reached = [t for t, score in enumerate(curve) if score >= 0.95]
    if not reached:
        assert math.isnan(numbers["worst_drop"])
        return
    first = reached[0]
    falls = [curve[i] - curve[j] for i in range(first, len(curve)) for j in range(i, len(curve))]
    assert numbers["worst_drop"] == pytest.approx(max(falls))
    assert numbers["below"] == pytest.approx(np.mean([s < 0.8 for s in curve[first:]]))


@pytest.mark.parametrize("curve", [[], [[1.0]], [1.0, math.nan]])
def test_stability_refuses_what_is_no_curve(curve):
    with pytest.raises(InputError, match="row of finite numbers"):
        stability(curve)


def test_two_at_once_play_in_one_folder(store):
    """Two threads with a store each, who know as little of one another as two processes."""
    heard = [[], []]

    def play(which):
        mine = Store("smoke", device="cpu", output=store.output, seeds=1)
        mine.on_progress = lambda words, share: heard[which].append(words)
        return curves(mine, ["CartPole-v1"], ["GAIL"])["return"].tolist()

    with ThreadPoolExecutor(2) as both:
        one, two = both.map(play, range(2))
    assert one == two and len(one) == 4
    assert sorted(map(len, heard)) == [0, 4]  # one of them played, the other waited for it
    assert len(list(store.output.rglob("record.json"))) == 1


def test_a_game_without_its_u_is_for_looking_at(store, cartpole):
    """As the box has it: the policy is there, and what was measured of U."""
    recipe = gail_recipe("CartPole-v1", "L2L GAIL", "smoke")
    run, share = trained(store, recipe, 0), share_of_gradient(store, "L2L GAIL", 0)
    state = {part: value for part, value in run.game.state(over=True).items() if part != "U"}
    over = {"game": state, "log": [{"reward": math.nan}]}
    looked_at, _ = train(recipe, cartpole, seed=0, resume=over)
    assert looked_at.updater is None
    assert torch.equal(*(next(g.agent.actor.parameters()) for g in (run.game, looked_at)))
    again = Store("smoke", device="cpu", output=store.output, seeds=2)
    assert share_of_gradient(again, "L2L GAIL", 0) == share


@pytest.mark.parametrize(("gradients", "pushes", "share"), [(3, 0, 1), (0, 2, 0)])
def test_the_share_of_the_gradient_in_a_move(store, monkeypatch, gradients, pushes, share):
    run = trained(store, gail_recipe("CartPole-v1", "L2L GAIL", "smoke"), 0)
    run.game.updater = lambda theta, g: theta + gradients * g + pushes
    monkeypatch.setattr("l2lkit.results.gail.trained", lambda *_: run)
    assert share_of_gradient(store, "L2L GAIL", 0) == pytest.approx(share)
