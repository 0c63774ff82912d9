"""The experts: TRPO on the environment's own reward, and the demonstrations they leave."""

import copy
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from l2lkit.errors import InputError
from l2lkit.files import write_atomically
from l2lkit.gail.agent import Agent, PolicySettings, Rollout, by_chance, scale_of
from l2lkit.gail.demonstrations import SHIPPED, Demonstrations, record
from l2lkit.gail.environments import Floats, make


def mountain_car_energy(observations: Floats) -> Floats:
    """Φ(s), (…, 2) -> (…): the car's mechanical energy, 0 for a car at rest on the goal and −50
    for one at rest in the valley. From the environment's dynamics: the slope's potential is
    0.0025 sin(3x) / 3."""
    position, velocity = observations[..., 0], observations[..., 1]
    hill = 0.0025 / 3
    goal = hill * math.sin(1.5)
    energy = velocity**2 / 2 + hill * np.sin(3 * position)
    return np.minimum(50 * (energy - goal) / (goal + hill), 0)


# A potential Φ turns the reward r into r + γΦ(s') − Φ(s): it shows the way and leaves the best
# policy what it was (Ng, Harada and Russell 1999). Only the expert's training sees it.
POTENTIALS: dict[str, Callable[[Floats], Floats]] = {"MountainCar-v0": mountain_car_energy}
# What an expert's mean return over 100 episodes is to be: the most there is, and what Gymnasium
# calls solved.
BARS = {"CartPole-v1": 500.0, "MountainCar-v0": -110.0}
ITERATIONS, SETTINGS = 120, PolicySettings(gamma=0.99)
OnIteration = Callable[[int, float], None]


def train_expert(
    environment: str,
    seed: int = 0,
    iterations: int = ITERATIONS,
    settings: PolicySettings = SETTINGS,
    on_iteration: OnIteration | None = None,
) -> Agent:
    """TRPO on the environment's reward, shaped where POTENTIALS has a potential; returns the
    iterate, of every fifth, with the best mean return over 100 greedy episodes, the last if several
    have it: one that has just learnt to balance still wobbles.

    `on_iteration` is given the iteration (from 1) and the mean return that its rollout had.
    """
    chance = by_chance(environment, 20, [seed])
    seen = chance.observations.reshape(-1, chance.observations.shape[-1])
    agent = Agent(environment, settings, *scale_of(seen), seed)
    best, best_state = -math.inf, agent.state()
    for i in range(iterations):
        rollout = agent.sample((seed, i))
        rewards = rollout.rewards
        if environment in POTENTIALS:
            rewards = shaped(rollout, POTENTIALS[environment], settings.gamma)
        agent.improve(rollout, rewards, 0, (seed, i))
        if i % 5 == 4:
            mean_return = float(agent.evaluate(100, seed=seed + 1000).mean())
            if mean_return >= best:
                best, best_state = mean_return, copy.deepcopy(agent.state())
        if on_iteration:
            on_iteration(i + 1, float(rollout.returns.mean()))
    agent.load(best_state)
    return agent


def shaped(rollout: Rollout, potential: Callable[[Floats], Floats], gamma: float) -> Floats:
    """r + γΦ(s') − Φ(s), (T, N), with Φ = 0 where an episode ends in earnest."""
    here = potential(rollout.observations)
    ahead = np.concatenate([here[1:], potential(rollout.last)[None]])
    ahead[rollout.done] = 0
    if len(rollout.cut):
        ahead[tuple(rollout.cut.T)] = potential(rollout.cut_at)
    return np.asarray(rollout.rewards + gamma * ahead - here, np.float32)


def remake(
    environment: str,
    seed: int = 0,
    directory: str | Path | None = None,
    on_iteration: OnIteration | None = None,
) -> tuple[Demonstrations, Path]:
    """Train the expert of this seed and write its demonstrations as <environment>.npz, by default
    over the shipped ones; returns them and the file. `python -m l2lkit demonstrations` does this.

    Raises InputError for an environment that does not fit and, before training, for a directory
    that cannot be written.
    """
    make(environment, 1)
    if seed < 0:
        raise InputError(f"--seed must be 0 or more, not {seed}.")
    path = Path(directory or SHIPPED) / f"{environment}.npz"
    probe = path.with_name(f".{path.name}.probe")
    write_atomically(probe, lambda p: p.touch())
    probe.unlink()
    agent = train_expert(environment, seed, ITERATIONS, on_iteration=on_iteration)
    demonstrations = record(agent, seed=seed)
    demonstrations.save(path)
    return demonstrations, path
