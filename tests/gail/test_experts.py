"""The experts: what shaping pays, which iterate is kept, and the command that trains them."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from l2lkit.__main__ import main
from l2lkit.gail import experts
from l2lkit.gail.agent import Rollout
from l2lkit.gail.demonstrations import load, record

from .conftest import SMALL


def test_shaping_pays_the_same_for_every_way_to_the_goal():
    """Discounted, the shaping of an episode that arrives sums to −Φ(start) (Ng et al. 1999)."""
    shown, gamma = load("MountainCar-v0"), 0.99
    for start, end in zip([0, *shown.ends], shown.ends, strict=False):
        states = shown.observations[start:end, None]
        done = np.zeros((end - start, 1), bool)
        done[-1] = True
        actions, rewards = np.zeros(done.shape, np.int64), np.full(done.shape, -1, np.float32)
        never_cut = np.empty((0, 2), np.int64), np.empty((0, 2), np.float32)
        run = Rollout(states, actions, rewards, done, states[0], *never_cut)
        extra = experts.shaped(run, experts.mountain_car_energy, gamma) - run.rewards
        total = (extra[:, 0] * gamma ** np.arange(end - start)).sum()
        assert total == pytest.approx(-experts.mountain_car_energy(states[0])[0], abs=1e-3)


def test_an_expert_is_the_best_of_its_iterates_and_its_seeds():
    seen = []
    settings = replace(SMALL, pairs=2000)
    expert = experts.train_expert(
        "CartPole-v1", 0, 5, settings, on_iteration=lambda i, r: seen.append((i, r))
    )
    shown = record(expert, episodes=3, seed=4)
    assert [i for i, _ in seen] == [1, 2, 3, 4, 5]
    assert len(shown.ends) == 3 and shown.expert > 3 * shown.chance
    again = record(experts.train_expert("CartPole-v1", 0, 5, settings), 3, seed=4)
    assert again.fingerprint == shown.fingerprint


def test_the_command_trains_records_and_says_whether_the_bar_is_met(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(experts, "ITERATIONS", 5)
    small = partial(experts.train_expert, settings=replace(SMALL, pairs=2000))
    monkeypatch.setattr(experts, "train_expert", small)
    words = ["demonstrations", "--environment", "CartPole-v1", "--output", str(tmp_path)]
    assert main(words) == 0
    written = load("CartPole-v1", tmp_path / "CartPole-v1.npz")
    said = capsys.readouterr().out
    assert f"mean return {written.expert:.1f} over 100 episodes (BELOW 500)" in said
    assert f"{len(written.actions)} pairs in {tmp_path}" in said
    assert main([*words, "--seed", "0"]) == 0
    again = load("CartPole-v1", tmp_path / "CartPole-v1.npz")
    assert again.fingerprint == written.fingerprint


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--environment", "NoSuchThing-v0"], "cannot make"),
        (["--environment", "CartPole-v1", "--environment", "Pendulum-v1"], "continuous actions"),
        (["--seed", "-1"], "must be 0 or more"),
        (["--output", __file__], "Cannot write"),
    ],
)
def test_the_command_refuses_before_it_trains(words, said, monkeypatch, capsys):
    monkeypatch.setattr(experts, "train_expert", lambda *_, **__: pytest.fail("it trains"))
    assert main(["demonstrations", *words]) == 2
    assert said in capsys.readouterr().err
