"""The arrays of environments against Gymnasium, copy by copy."""

import gymnasium
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import ks_2samp

from l2lkit.errors import InputError
from l2lkit.gail import environments
from l2lkit.gail.demonstrations import load
from l2lkit.gail.environments import ENVIRONMENTS
from l2lkit.gail.experts import train_expert

from .conftest import replayed


@given(st.data())
@settings(max_examples=30, deadline=None)
@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_arrays_step_as_gymnasium_does_copy_by_copy(environment, data):
    """From any state, walls and ends included, and with episodes anywhere near the time limit."""
    count, horizon = 6, environments.horizon(environment)
    envs = environments.make(environment, count)
    envs.reset(seed=0)
    space, columns = envs.single_observation_space, environment == "CartPole-v1"
    reach = np.minimum(space.high, 3) if columns else space.high
    low = -reach if columns else space.low
    shares = st.sampled_from([0, 0.3, 0.77, 1]) | st.floats(0, 1)
    states = low + data.draw(arrays(np.float64, (count, len(low)), elements=shares)) * (reach - low)
    choices = st.integers(0, envs.single_action_space.n - 1)
    actions = data.draw(arrays(np.int64, count, elements=choices))
    ages = st.sampled_from([0, horizon - 2, horizon - 1])
    steps = data.draw(arrays(np.int64, count, elements=ages))
    envs.state, envs.steps = (states.T if columns else states).copy(), steps.copy()
    after, rewards, terminated, truncated, info = envs.step(actions)
    final = info["final_obs"] if (terminated | truncated).any() else after
    for i in range(count):
        expected, paid, over, *_ = replayed(environment, states[i]).step(int(actions[i]))
        np.testing.assert_allclose(final[i], expected, rtol=1e-6, atol=1e-7)
        assert (rewards[i], terminated[i]) == (paid, over)
        assert truncated[i] == (steps[i] + 1 >= horizon)
        if over or truncated[i]:
            assert envs.steps[i] == 0
            start = np.abs(after[i] - [0, 0, 0, 0] if columns else after[i] - [-0.5, 0])
            assert (start <= (0.05 if columns else [0.1, 0])).all()
        else:
            assert envs.steps[i] == steps[i] + 1 and (after[i] == final[i]).all()


def test_fresh_episodes_start_as_gymnasiums_do():
    """Two-sample Kolmogorov-Smirnov against single environments, coordinate by coordinate."""
    for environment in ENVIRONMENTS:
        ours, _ = environments.make(environment, 400).reset(seed=1)
        env = gymnasium.make(environment)
        theirs = np.array([env.reset(seed=s)[0] for s in range(400)])
        for a, b in zip(ours.T, theirs.T, strict=True):
            assert ks_2samp(a, b).pvalue > 0.01


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ("NoSuchThing-v0", "cannot make 'NoSuchThing-v0'"),
        ("Pendulum-v1", "continuous actions"),
        ("FrozenLake-v1", "no vector observations"),
        ("CartPole-v99", "cannot make"),
    ],
)
def test_environments_that_do_not_fit_are_refused(environment, words):
    for attempt in (load, train_expert):
        with pytest.raises(InputError, match=words):
            attempt(environment)
