"""Demonstrations: the shipped ones replay in Gymnasium, files come back whole or are refused."""

from dataclasses import replace

import gymnasium
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from l2lkit.errors import InputError
from l2lkit.gail.agent import scale_of
from l2lkit.gail.demonstrations import SHIPPED, load
from l2lkit.gail.game import train

from .conftest import tiny


@pytest.mark.parametrize(("environment", "least"), [("CartPole-v1", 499), ("MountainCar-v0", -110)])
def test_shipped_demonstrations_replay_in_gymnasium(environment, least):
    shown = load(environment)
    assert shown.expert > least > shown.chance
    assert len(shown.expert_returns) == 100
    assert (SHIPPED / f"{environment}.npz").stat().st_size < 300_000
    env = gymnasium.make(environment)
    for start, end, paid in zip([0, *shown.ends], shown.ends, shown.returns, strict=False):
        env.reset()
        total = 0.0
        for t in range(start, end):
            env.unwrapped.state = shown.observations[t].astype(np.float64)
            state, earned, terminated, truncated, _ = env.step(int(shown.actions[t]))
            total += earned
            assert (terminated or truncated) == (t + 1 == end)
            if t + 1 < end:
                np.testing.assert_allclose(state, shown.observations[t + 1], atol=1e-6)
        assert total == paid


def test_demonstrations_survive_the_file(tmp_path, cartpole):
    cartpole.save(tmp_path / "mine.npz")
    again = load("CartPole-v1", tmp_path / "mine.npz")
    assert again.fingerprint == cartpole.fingerprint
    assert (again.returns == cartpole.returns).all()


def test_score_puts_chance_at_zero_and_the_expert_at_one():
    shown = load("MountainCar-v0")
    np.testing.assert_allclose(shown.score(np.array([shown.chance, shown.expert])), [0, 1])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"observations": np.empty((0, 4)), "actions": np.empty(0)}, "empty"),
        ({"observations": np.zeros((5000, 3))}, r"shape \(M, 4\)"),
        ({"observations": np.zeros((10, 4))}, r"shape \(M, 4\)"),
        ({"observations": np.full((5000, 4), np.nan)}, "not finite"),
        ({"actions": np.full(5000, 2)}, "from 0 to 1"),
        ({"actions": np.full(5000, 0.5)}, "from 0 to 1"),
        ({"ends": np.array([100, 50, 5000])}, "must rise"),
        ({"returns": np.array([500.0])}, "one return each"),
        ({"expert_returns": np.empty(0)}, "expert and of chance"),
        ({"actions": np.array(["left"] * 5000)}, "actions must be an array of numbers"),
        ({"ends": np.array([100.5, 5000])}, "must rise"),
        ({"actions": 1}, r"shape \(M, 4\)"),
    ],
)
def test_demonstrations_that_do_not_fit_are_refused(cartpole, change, words):
    with pytest.raises(InputError, match=words):
        replace(cartpole, **change)


def test_files_that_are_no_demonstrations_are_refused(tmp_path, cartpole):
    with pytest.raises(InputError, match="no demonstrations at .*l2lkit demonstrations"):
        load("CartPole-v1", tmp_path / "absent.npz")
    (tmp_path / "text.npz").write_text("nothing")
    np.savez(tmp_path / "other.npz", x=1)
    whole = (SHIPPED / "CartPole-v1.npz").read_bytes()
    (tmp_path / "half.npz").write_bytes(whole[: len(whole) // 2])
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 255
    (tmp_path / "flipped.npz").write_bytes(flipped)
    for name in ("text", "other", "half", "flipped"):
        with pytest.raises(InputError, match="holds no demonstrations"):
            load("CartPole-v1", tmp_path / f"{name}.npz")
    cartpole.save(tmp_path / "mine.npz")
    with pytest.raises(InputError, match="are for CartPole-v1, not MountainCar-v0"):
        load("MountainCar-v0", tmp_path / "mine.npz")
    with pytest.raises(InputError, match="the recipe on MountainCar-v0"):
        train(tiny(environment="MountainCar-v0"), cartpole, seed=0)


@pytest.mark.parametrize("kind", [np.int32, np.int8, np.uint8, np.float32, list])
def test_numbers_of_other_types_are_converted_and_played_with(cartpole, kind):
    def other(values):
        return values.tolist() if kind is list else values.astype(kind)

    mine = replace(
        cartpole,
        actions=other(cartpole.actions),
        observations=cartpole.observations.astype(np.float64),
        ends=cartpole.ends.tolist() if kind is list else cartpole.ends.astype(np.int32),
    )
    assert mine.fingerprint == cartpole.fingerprint
    train(tiny("GAIL", iterations=1), mine, seed=0)


@given(value=st.floats(-1e6, 1e6, width=32))
def test_a_feature_that_never_changes_is_not_blown_up(value):
    """Standardised, another value is as far away as it is, in units of the constant one."""
    rng = np.random.default_rng(0)
    seen = np.stack([rng.normal(3, 2, 500), np.full(500, value)], 1).astype(np.float32)
    mean, std = scale_of(seen)
    np.testing.assert_allclose(std[0], seen[:, 0].std(), rtol=1e-6)
    unit = abs(np.float32(value)) or 1
    standardised = (seen + np.float32([0, unit]) - mean) / std
    assert np.abs(standardised[:, 1]).max() < 1.01
