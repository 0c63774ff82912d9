"""Who acts: TRPO agents on Gymnasium's environments, experts among them, and demonstrations.

An `Agent` is sb3-contrib's TRPO with its own sampling: all environments step together, each
iteration starts fresh episodes, and the rewards are the caller's, so that GAIL can hand in those
of its discriminator and an expert those of the environment.
"""

import copy
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import gymnasium
import numpy as np
import torch
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray
from sb3_contrib import TRPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.distributions import kl_divergence
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.utils import set_random_seed
from torch import Tensor, nn

from l2lkit.environments import Floats, horizon, make, sizes
from l2lkit.errors import InputError
from l2lkit.store import fingerprint, write_atomically

SHIPPED = Path(__file__).parent / "demonstrations"


@contextmanager
def seeded(seed: Sequence[int]) -> Iterator[None]:
    """Python's, NumPy's and torch's global random numbers, which stable-baselines3 draws from,
    start at `seed`; afterwards they are what they were."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        set_random_seed(_number(seed))
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def _number(seed: Sequence[int]) -> int:
    return int(np.random.SeedSequence(list(seed)).generate_state(1)[0])


@dataclass(frozen=True)
class Rollout:
    """What T steps of N environments gave; all start a fresh episode at step 0.

    observations: (T, N, d), as the environment gave them; actions, rewards (the environment's
    own), done: (T, N). `last`: (N, d), where the steps ended. `cut`: (K, 2) step and environment
    of the episodes that the time limit ended, and `cut_at`: (K, d), the observations there.
    """

    observations: Floats
    actions: NDArray[np.int64]
    rewards: Floats
    done: NDArray[np.bool_]
    last: Floats
    cut: NDArray[np.int64]
    cut_at: Floats

    @property
    def first(self) -> NDArray[np.bool_]:
        """Which steps belong to the first episode of their environment: (T, N)."""
        return np.cumsum(self.done, axis=0) - self.done == 0

    @property
    def returns(self) -> Floats:
        """The return of each environment's first episode, (N,). Over at least a horizon's steps
        their mean has no bias; that of all finished episodes would favour short ones."""
        return (self.rewards * self.first).sum(0)


Player = Callable[[Floats], NDArray[np.int64]]  # observations (n, d) -> actions (n,)


@dataclass(frozen=True, kw_only=True)
class PolicySettings:
    """A TRPO player. Where Ho and Ermon's released code names a value it is the default: GAE with
    γ = 0.995 and λ = 0.97, KL at most 0.01, damping 0.1, 10 conjugate-gradient steps, the Fisher
    matrix of one pair in `fisher_every`, 5,000 pairs an iteration. Hidden layers of `hidden` tanh
    units, the discriminator's (ICLR 2020, Appendix C.2), in the policy and in the value function,
    which takes `critic_epochs` of Adam."""

    hidden: tuple[int, ...] = (64, 32)
    pairs: int = 5000
    gamma: float = 0.995
    gae_lambda: float = 0.97
    max_kl: float = 0.01
    damping: float = 0.1
    cg_steps: int = 10
    fisher_every: int = 10
    critic_epochs: int = 5
    critic_batch: int = 500
    critic_lr: float = 1e-3


class SubsampledTRPO(TRPO):
    """sb3-contrib's TRPO, with the search direction's Fisher matrix of one pair in `fisher_every`
    (Ho and Ermon's released code: one in ten). Gradient, trust region and line search see all."""

    fisher_every = 1

    def _compute_actor_grad(self, kl_div: Tensor, policy_objective: Tensor) -> tuple:
        few = torch.from_numpy(self.rollout_buffer.observations[:: self.fisher_every])
        with torch.no_grad():
            before = copy.copy(self.policy.get_distribution(few))
        divergence = kl_divergence(self.policy.get_distribution(few), before).mean()
        return super()._compute_actor_grad(divergence, policy_objective)


class Agent:
    """A TRPO policy and value function that see observations standardised by `mean` and `std`.

    `seed` decides the first weights. `sample` and `improve` draw from the seed they are given
    and leave the global random numbers alone.
    """

    def __init__(
        self, environment: str, settings: PolicySettings, mean: Floats, std: Floats, seed: int
    ):
        self.steps = horizon(environment)
        self.envs = make(environment, max(1, settings.pairs // self.steps))
        self.actions = sizes(self.envs)[1]
        self.environment, self.settings = environment, settings
        self.mean, self.std = mean, std
        count = self.steps * self.envs.num_envs
        with seeded([seed]):
            self.trpo = SubsampledTRPO(
                "MlpPolicy", gymnasium.make(environment), n_steps=count, device="cpu",
                gamma=settings.gamma, gae_lambda=settings.gae_lambda, target_kl=settings.max_kl,
                cg_damping=settings.damping, cg_max_steps=settings.cg_steps,
                n_critic_updates=settings.critic_epochs, learning_rate=settings.critic_lr,
                batch_size=min(settings.critic_batch, count),
                policy_kwargs={"net_arch": list(settings.hidden)},
            )  # fmt: skip
        self.trpo.fisher_every = settings.fisher_every
        self.trpo.set_logger(Logger(None, []))
        self.trpo.rollout_buffer = RolloutBuffer(
            self.steps, self.envs.single_observation_space, self.envs.single_action_space, "cpu",
            settings.gae_lambda, settings.gamma, self.envs.num_envs,
        )  # fmt: skip

    @cached_property
    def actor(self) -> nn.Sequential:
        """Standardised observations (n, d) -> logits (n, actions)."""
        policy = self.trpo.policy
        return nn.Sequential(policy.mlp_extractor.policy_net, policy.action_net)

    def standardised(self, observations: Floats) -> Floats:
        return ((observations - self.mean) / self.std).astype(np.float32)

    @torch.no_grad()
    def logits(self, observations: Floats) -> Floats:
        """(n, d) -> (n, actions), unnormalised log π(a | s)."""
        return self.actor(torch.from_numpy(self.standardised(observations))).numpy()

    def player(self, rng: np.random.Generator | None = None) -> Player:
        """The policy as it stands: takes actions drawn from π, or without `rng` the most likely.

        In NumPy, since torch spends most of the time of a batch of ten on bookkeeping.
        """
        linear = [layer for layer in self.actor.modules() if isinstance(layer, nn.Linear)]
        weights = [(m.weight.detach().numpy().T.copy(), m.bias.detach().numpy()) for m in linear]

        def act(observations: Floats) -> NDArray[np.int64]:
            x = self.standardised(observations)
            for weight, bias in weights[:-1]:
                x = np.tanh(x @ weight + bias)
            logits = x @ weights[-1][0] + weights[-1][1]
            return (logits + rng.gumbel(size=logits.shape) if rng else logits).argmax(1)

        return act

    def sample(self, seed: Sequence[int]) -> Rollout:
        """Fresh episodes, a horizon's steps in each environment, with actions drawn from π."""
        return roll_out(self.envs, self.steps, self.player(np.random.default_rng(seed)), seed)

    def improve(
        self, rollout: Rollout, rewards: Floats, entropy: float, seed: Sequence[int]
    ) -> None:
        """One TRPO step, and the value function's, on the rollout with these rewards (T, N).

        `entropy` is λ of equation 4: the policy gradient of λH(π) is that of the extra reward
        −λ log π(a | s) (Ho and Ermon 2016, Lemma A.1). Episodes cut off by the time limit, and by
        the end of the rollout, are continued by the value function.
        """
        trpo, policy = self.trpo, self.trpo.policy
        shape = rollout.actions.shape
        observations = self.standardised(rollout.observations)
        rewards = np.array(rewards, dtype=np.float32)
        with torch.no_grad():
            flat = torch.from_numpy(observations.reshape(-1, observations.shape[-1]))
            chosen = torch.from_numpy(rollout.actions.reshape(-1))
            values, log_prob, _ = policy.evaluate_actions(flat, chosen)
            values, log_prob = values.view(shape), log_prob.view(shape)
            last = policy.predict_values(torch.from_numpy(self.standardised(rollout.last)))
            if len(rollout.cut):
                ahead = torch.from_numpy(self.standardised(rollout.cut_at))
                at = tuple(rollout.cut.T)
                rewards[at] += trpo.gamma * policy.predict_values(ahead).flatten().numpy()
        rewards -= entropy * log_prob.numpy()
        buffer = trpo.rollout_buffer
        buffer.reset()
        buffer.observations, buffer.actions = observations, rollout.actions[..., None]
        buffer.rewards, buffer.values = rewards, values.numpy()
        buffer.log_probs, buffer.full = log_prob.numpy(), True
        buffer.episode_starts[1:] = rollout.done[:-1]
        buffer.compute_returns_and_advantage(last, rollout.done[-1])
        with seeded(seed):
            trpo.train()

    def evaluate(self, episodes: int = 100, seed: int = 0, greedy: bool = True) -> Floats:
        """The environment's return of `episodes` episodes, (episodes,); greedy takes the most
        likely action, else actions are drawn."""
        rng = None if greedy else np.random.default_rng((seed, 1))
        envs = make(self.environment, episodes)
        return roll_out(envs, self.steps, self.player(rng), [seed]).returns

    def state(self) -> dict:
        """All tensors of the agent, for a checkpoint."""
        policy = self.trpo.policy
        return {
            "policy": policy.state_dict(), "optimiser": policy.optimizer.state_dict(),
            "mean": torch.from_numpy(self.mean), "std": torch.from_numpy(self.std),
        }  # fmt: skip

    def load(self, state: dict) -> None:
        self.trpo.policy.load_state_dict(state["policy"])
        self.trpo.policy.optimizer.load_state_dict(state["optimiser"])
        self.mean, self.std = state["mean"].numpy(), state["std"].numpy()


def roll_out(envs: VectorEnv, steps: int, act: Player, seed: Sequence[int]) -> Rollout:
    """Let `act` play `steps` steps in all environments, from episodes that `seed` decides."""
    n = envs.num_envs
    state, _ = envs.reset(seed=_number(seed))
    observations = np.empty((steps, *state.shape), np.float32)
    actions = np.empty((steps, n), np.int64)
    rewards, done = np.empty((steps, n), np.float32), np.empty((steps, n), bool)
    cut: list[tuple[int, int]] = []
    cut_at: list[Floats] = []
    for t in range(steps):
        observations[t] = state
        actions[t] = act(observations[t])
        state, rewards[t], terminated, truncated, info = envs.step(actions[t])
        done[t] = terminated | truncated
        if truncated.any():
            for i in np.flatnonzero(truncated & ~terminated):
                cut.append((t, int(i)))
                cut_at.append(info["final_obs"][i])
    return Rollout(
        observations, actions, rewards, done, np.array(state, np.float32),
        np.array(cut, np.int64).reshape(-1, 2),
        np.array(cut_at, np.float32).reshape(-1, state.shape[1]),
    )  # fmt: skip


def by_chance(environment: str, count: int, seed: Sequence[int]) -> Rollout:
    """`count` copies played by uniformly random actions for a horizon's steps."""
    envs, rng = make(environment, count), np.random.default_rng(seed)
    choices = sizes(envs)[1]
    return roll_out(envs, horizon(environment), lambda s: rng.integers(0, choices, len(s)), seed)


# Demonstrations ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Demonstrations:
    """An expert's episodes as plain arrays.

    observations: (M, d) float32; actions: (M,) whole numbers; ends: (E,), increasing, one past
    each episode's last pair (so the last is M); returns: (E,). To place other returns by:
    `expert_returns` and `random_returns`, those of 100 further episodes of the expert and of 100
    of uniformly random actions. Raises InputError if a shape, a value or a range does not fit.
    """

    environment: str
    observations: Floats
    actions: NDArray[np.int64]
    ends: NDArray[np.int64]
    returns: Floats
    expert_returns: Floats
    random_returns: Floats

    def __post_init__(self) -> None:
        envs = make(self.environment, 1)
        pairs, episodes = len(self.actions), len(self.ends)
        width, choices = sizes(envs)
        if pairs == 0 or episodes == 0:
            raise InputError(
                "The demonstrations are empty: record at least one episode, or leave the path out "
                "to use those that come with l2lkit."
            )
        if self.observations.shape != (pairs, width) or self.actions.ndim != 1:
            raise InputError(
                f"Demonstrations on {self.environment} need observations of shape (M, {width}) "
                f"and M actions, not {self.observations.shape} and {self.actions.shape}."
            )
        if not np.isfinite(self.observations).all():
            raise InputError("The demonstrations hold observations that are not finite numbers.")
        whole = np.equal(np.mod(self.actions, 1), 0).all()
        if not whole or self.actions.min() < 0 or self.actions.max() >= choices:
            raise InputError(f"Actions on {self.environment} must be from 0 to {choices - 1}.")
        steps = np.diff(self.ends, prepend=0)
        if (steps <= 0).any() or self.ends[-1] != pairs or len(self.returns) != episodes:
            raise InputError(
                f"Episode ends must rise to the number of pairs, {pairs}, with one return each, "
                f"not {self.ends.tolist()[:5]}… with {len(self.returns)} returns."
            )
        if len(self.expert_returns) == 0 or len(self.random_returns) == 0:
            raise InputError("The demonstrations need the returns of the expert and of chance.")

    @property
    def fingerprint(self) -> str:
        """Ten hex digits that change with any pair."""
        parts = (self.observations, self.actions, self.ends)
        return fingerprint(self.environment, [a.tobytes().hex() for a in parts])

    @property
    def expert(self) -> float:
        """The expert's mean return."""
        return float(self.expert_returns.mean())

    @property
    def chance(self) -> float:
        """The mean return of uniformly random actions."""
        return float(self.random_returns.mean())

    def score(self, returns: NDArray | float) -> NDArray[np.float64]:
        """Returns on the scale where chance is 0 and the expert 1: it works for negative ones."""
        return (np.asarray(returns, dtype=np.float64) - self.chance) / (self.expert - self.chance)

    def save(self, path: Path) -> None:
        arrays = {k: v for k, v in asdict(self).items() if k != "environment"}
        name = np.array(self.environment)

        def write(p: Path) -> None:
            with p.open("wb") as file:  # a path would get .npz appended
                np.savez_compressed(file, environment=name, **arrays)

        write_atomically(path, write)


def load(environment: str, path: str | Path | None = None) -> Demonstrations:
    """The demonstrations in an .npz file, by default those that come with l2lkit.

    Raises InputError if there is no such file, it is damaged or made for another environment.
    """
    make(environment, 1).close()
    path = Path(path) if path else SHIPPED / f"{environment}.npz"
    try:
        with np.load(path) as found:
            arrays = dict(found)
        made_for = str(arrays.pop("environment"))
        demonstrations = Demonstrations(made_for, **arrays)
    except FileNotFoundError:
        raise InputError(
            f"There are no demonstrations at {path}: record some with "
            f"python -m l2lkit demonstrations --environment {environment}."
        ) from None
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{path} holds no demonstrations ({error}): make it again with "
            f"python -m l2lkit demonstrations --environment {environment}."
        ) from None
    if made_for != environment:
        raise InputError(f"The demonstrations in {path} are for {made_for}, not {environment}.")
    return demonstrations


def record(agent: Agent, episodes: int = 10, seed: int = 0) -> Demonstrations:
    """`episodes` greedy episodes of the agent, with the returns that Demonstrations needs."""
    envs = make(agent.environment, episodes)
    run = roll_out(envs, agent.steps, agent.player(), (seed, 0))
    kept = run.first.T  # episode by episode
    lengths = kept.sum(1)
    chance = by_chance(agent.environment, 100, (seed, 1))
    return Demonstrations(
        agent.environment, run.observations.swapaxes(0, 1)[kept], run.actions.T[kept],
        lengths.cumsum(), run.returns, agent.evaluate(100, seed + 1), chance.returns,
    )  # fmt: skip


# Experts ----------------------------------------------------------------------------------------


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


ITERATIONS = 120


def train_expert(
    environment: str, seed: int = 0, iterations: int = ITERATIONS,
    settings: PolicySettings = PolicySettings(gamma=0.99),
    on_iteration: Callable[[int, float], None] | None = None,
) -> Agent:  # fmt: skip
    """TRPO on the environment's reward, shaped where POTENTIALS has a potential; returns the
    iterate, of every fifth, with the best mean return over 100 greedy episodes, the last if several
    have it: one that has just learnt to balance still wobbles.

    `on_iteration` is told the iteration (from 1) and the mean return that its rollout had.
    """
    chance = by_chance(environment, 20, [seed])
    seen = chance.observations.reshape(-1, chance.observations.shape[-1])
    agent = Agent(environment, settings, seen.mean(0), seen.std(0) + 1e-8, seed)
    best, best_state = -math.inf, agent.state()
    for i in range(iterations):
        rollout = agent.sample((seed, i))
        rewards = rollout.rewards
        if environment in POTENTIALS:
            rewards = shaped(rollout, POTENTIALS[environment], settings.gamma)
        agent.improve(rollout, rewards, 0, (seed, i))
        if i % 5 == 4:
            found = float(agent.evaluate(100, seed=seed + 1000).mean())
            if found >= best:
                best, best_state = found, _copied(agent.state())
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


def _copied(state: dict) -> dict:
    return {
        key: value.clone() if isinstance(value, Tensor) else
        _copied(value) if isinstance(value, dict) else value
        for key, value in state.items()
    }  # fmt: skip


# What an expert's mean return over 100 episodes is to be: the most there is, and what Gymnasium
# calls solved.
BARS = {"CartPole-v1": 500.0, "MountainCar-v0": -110.0}


def remake(
    environment: str, seed: int = 0, directory: str | Path | None = None,
    on_iteration: Callable[[int, float], None] | None = None,
) -> tuple[Demonstrations, Path]:  # fmt: skip
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
