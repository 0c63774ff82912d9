"""Who acts: a TRPO agent on Gymnasium's environments.

An `Agent` is sb3-contrib's TRPO with its own sampling: all environments step together, each
iteration starts fresh episodes, and the rewards are the caller's, so that GAIL can hand in those
of its discriminator and an expert those of the environment.
"""

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

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

from l2lkit.gail.environments import Floats, horizon, make, sizes


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


def scale_of(observations: Floats) -> tuple[Floats, Floats]:
    """Mean and deviation (d,) of observations (n, d), to standardise others by. A feature that
    never changes has its magnitude in the place of its deviation, or 1."""
    largest = np.abs(observations).max(0)
    constant = observations.max(0) == observations.min(0)
    std = observations.std(0) + np.float32(1e-8)
    return observations.mean(0), np.where(constant, np.where(largest > 0, largest, 1), std)


Policy = Callable[[Floats], NDArray[np.int64]]  # observations (n, d) -> actions (n,)


@dataclass(frozen=True, kw_only=True)
class PolicySettings:
    """What TRPO takes. Where Ho and Ermon's released code names a value it is the default: GAE with
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
        thinned = torch.from_numpy(self.rollout_buffer.observations[:: self.fisher_every])
        with torch.no_grad():
            before = copy.copy(self.policy.get_distribution(thinned))
        divergence = kl_divergence(self.policy.get_distribution(thinned), before).mean()
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
        copies, pairs = self.envs.num_envs, self.steps * self.envs.num_envs
        with seeded([seed]):
            self.trpo = SubsampledTRPO(
                "MlpPolicy",
                gymnasium.make(environment),
                n_steps=pairs,
                gamma=settings.gamma,
                gae_lambda=settings.gae_lambda,
                target_kl=settings.max_kl,
                cg_damping=settings.damping,
                cg_max_steps=settings.cg_steps,
                n_critic_updates=settings.critic_epochs,
                learning_rate=settings.critic_lr,
                batch_size=min(settings.critic_batch, pairs),
                policy_kwargs={"net_arch": list(settings.hidden)},
                device="cpu",
            )
        self.trpo.fisher_every = settings.fisher_every
        self.trpo.set_logger(Logger(None, []))
        seen, chosen = self.envs.single_observation_space, self.envs.single_action_space
        gae = settings.gae_lambda, settings.gamma
        self.trpo.rollout_buffer = RolloutBuffer(self.steps, seen, chosen, "cpu", *gae, copies)

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

    def policy(self, rng: np.random.Generator | None = None) -> Policy:
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
        return roll_out(self.envs, self.steps, self.policy(np.random.default_rng(seed)), seed)

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
                rewards[tuple(rollout.cut.T)] += (
                    trpo.gamma * policy.predict_values(ahead).flatten().numpy()
                )
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
        return roll_out(envs, self.steps, self.policy(rng), [seed]).returns

    def state(self) -> dict:
        """All tensors of the agent, for a checkpoint."""
        policy, scale = self.trpo.policy, {"mean": self.mean, "std": self.std}
        parts = {"policy": policy.state_dict(), "optimiser": policy.optimizer.state_dict()}
        return parts | {name: torch.from_numpy(value) for name, value in scale.items()}

    def load(self, state: dict) -> None:
        self.trpo.policy.load_state_dict(state["policy"])
        self.trpo.policy.optimizer.load_state_dict(state["optimiser"])
        self.mean, self.std = state["mean"].numpy(), state["std"].numpy()

    def copy(self) -> "Agent":
        """Another agent with these weights, environments and networks of its own."""
        other = Agent(self.environment, self.settings, self.mean, self.std, seed=0)
        other.load(self.state())
        return other


def roll_out(envs: VectorEnv, steps: int, act: Policy, seed: Sequence[int]) -> Rollout:
    """`steps` steps of the policy `act` in all environments, from starts that `seed` decides."""
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
    last, ended = np.array(state, np.float32), np.array(cut, np.int64).reshape(-1, 2)
    ended_at = np.array(cut_at, np.float32).reshape(-1, state.shape[1])
    return Rollout(observations, actions, rewards, done, last, ended, ended_at)


def by_chance(environment: str, count: int, seed: Sequence[int]) -> Rollout:
    """`count` copies played by uniformly random actions for a horizon's steps."""
    envs, rng = make(environment, count), np.random.default_rng(seed)
    choices = sizes(envs)[1]
    return roll_out(envs, horizon(environment), lambda s: rng.integers(0, choices, len(s)), seed)
