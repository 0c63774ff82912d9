"""Gymnasium's environments, many copies at a time.

CartPole and the Mountain Car step as arrays, all copies in one go; any other environment with a
finite choice of actions steps copy by copy. All restart in the step that ends an episode
(AutoresetMode.SAME_STEP): `info["final_obs"]` then has the observations before the restart.
"""

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.envs.classic_control.mountain_car import MountainCarEnv
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from l2lkit.errors import InputError

ENVIRONMENTS = ("CartPole-v1", "MountainCar-v0")

Floats = NDArray[np.float32]
Actions = NDArray[np.integer[Any]]
Step = tuple[Floats, Floats, NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]


class CartPole(CartPoleVectorEnv):
    """Gymnasium's own vectorised CartPole, with the restart in the step that ends an episode.

    Its own is in the step after, which takes an action and ignores it: a pair that no policy made.
    """

    metadata = CartPoleVectorEnv.metadata | {"autoreset_mode": AutoresetMode.SAME_STEP}

    def step(self, action: Actions) -> Step:
        state, reward, terminated, truncated, info = super().step(action)
        if self.prev_done.any():
            assert self.state is not None
            info = {"final_obs": state.copy()}
            fresh = self.np_random.uniform(self.low, self.high, (4, int(self.prev_done.sum())))
            self.state[:, self.prev_done] = fresh
            state[self.prev_done] = fresh.T
            self.steps[self.prev_done] = 0
            self.prev_done[:] = False
        return state, reward, terminated, truncated, info


class MountainCar(VectorEnv):
    """Gymnasium's Mountain Car, `num_envs` copies as arrays: it ships CartPole so, but not this."""

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}

    def __init__(self, num_envs: int, max_episode_steps: int):
        self.num_envs, self.max_episode_steps = num_envs, max_episode_steps
        self.single = MountainCarEnv()
        self.single_action_space = self.single.action_space
        self.single_observation_space = self.single.observation_space
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Floats, dict]:
        super().reset(seed=seed)
        self.state = self._starts(self.num_envs)
        self.steps = np.zeros(self.num_envs, np.int64)
        return self.state.astype(np.float32), {}

    def _starts(self, count: int) -> NDArray[np.float64]:
        return np.stack([self.np_random.uniform(-0.6, -0.4, count), np.zeros(count)], 1)

    def step(self, action: Actions) -> Step:
        car = self.single
        position, velocity = self.state.T
        velocity = velocity + (action - 1) * car.force - np.cos(3 * position) * car.gravity
        velocity = velocity.clip(-car.max_speed, car.max_speed)
        position = (position + velocity).clip(car.min_position, car.max_position)
        velocity[(position == car.min_position) & (velocity < 0)] = 0
        self.state, self.steps = np.stack([position, velocity], 1), self.steps + 1
        terminated = (position >= car.goal_position) & (velocity >= car.goal_velocity)
        truncated = self.steps >= self.max_episode_steps
        info, over = {}, terminated | truncated
        if over.any():
            info["final_obs"] = self.state.astype(np.float32)
            self.state[over] = self._starts(int(over.sum()))
            self.steps[over] = 0
        rewards = np.full(self.num_envs, -1, np.float32)
        return self.state.astype(np.float32), rewards, terminated, truncated, info


Arrays = Callable[[int, int], VectorEnv]  # of so many copies, with so many steps at most
ARRAYS: dict[str, Arrays] = {"CartPole-v1": CartPole, "MountainCar-v0": MountainCar}


def make(environment: str, count: int) -> VectorEnv:
    """`count` copies of a Gymnasium environment that step together and restart by themselves.

    Raises InputError for a name Gymnasium does not know and for an environment whose actions are
    not a finite choice, whose observations are no vector or whose episodes have no time limit.
    """
    if environment in ARRAYS:
        return ARRAYS[environment](count, horizon(environment))
    restart = {"autoreset_mode": AutoresetMode.SAME_STEP}
    try:
        envs = gymnasium.make_vec(environment, count, "sync", vector_kwargs=restart)
    except (gymnasium.error.Error, ImportError) as error:
        raise InputError(
            f"Gymnasium cannot make '{environment}' ({error}): name one it has, such as "
            f"{' or '.join(ENVIRONMENTS)}."
        ) from None
    if not isinstance(envs.single_action_space, spaces.Discrete):
        raise InputError(
            f"{environment} has continuous actions ({envs.single_action_space}): GAIL here needs "
            f"a finite choice of actions, as in {' or '.join(ENVIRONMENTS)}."
        )
    shape = envs.single_observation_space.shape
    if not isinstance(envs.single_observation_space, spaces.Box) or len(shape or ()) != 1:
        raise InputError(f"{environment} has no vector observations: choose one that has.")
    if horizon(environment) is None:
        raise InputError(f"{environment} has no time limit: register it with max_episode_steps.")
    return envs


def horizon(environment: str) -> int:
    """The number of steps after which an episode is cut off."""
    return gymnasium.spec(environment).max_episode_steps  # type: ignore[return-value]  # see make


def sizes(environment: VectorEnv) -> tuple[int, int]:
    """The length of an observation and the number of actions."""
    space = environment.single_action_space
    assert isinstance(space, spaces.Discrete) and environment.single_observation_space.shape
    return environment.single_observation_space.shape[0], int(space.n)
