"""The smallest games, and players for them."""

from dataclasses import replace

import gymnasium
import numpy as np
import pytest

from l2lkit.gail import game
from l2lkit.gail.agent import Agent, PolicySettings
from l2lkit.gail.demonstrations import load
from l2lkit.gail.environments import ENVIRONMENTS
from l2lkit.runs.store import Store

SMALL = PolicySettings(pairs=500, hidden=(16,))


def tiny(method="GAIL", environment="CartPole-v1", **options):
    settings = {"iterations": 4, "hidden": (4, 4), "policy": SMALL} | options
    return game.GailRecipe(environment=environment, method=method, **settings)


def replayed(environment, state):
    """One copy of Gymnasium's own environment, put into a state (float64)."""
    env = gymnasium.make(environment).unwrapped
    env.reset()
    env.state = np.array(state, dtype=np.float64)
    return env


@pytest.fixture(scope="session")
def cartpole():
    return load("CartPole-v1")


@pytest.fixture(scope="module", params=ENVIRONMENTS)
def agent(request):
    shown = load(request.param)
    mean, std = shown.observations.mean(0), shown.observations.std(0)
    return Agent(request.param, replace(SMALL, pairs=1000), mean, std, seed=0)


@pytest.fixture
def store(tmp_path, monkeypatch):
    scale = {"iterations": 4, "hidden": (4, 4), "policy": SMALL}
    monkeypatch.setitem(game.SCALES, "smoke", scale)
    return Store("smoke", device="cpu", output=tmp_path, seeds=2)
