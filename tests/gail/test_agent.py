"""Sampling against Gymnasium stepped one by one, TRPO's part against formulas by hand."""

from dataclasses import replace

import numpy as np
import torch

from l2lkit.gail.agent import Agent
from l2lkit.gail.demonstrations import load

from .conftest import SMALL, replayed


def test_sampling_is_gymnasium_stepped_one_by_one(agent):
    rollout = agent.sample((3, 1))
    assert rollout.actions.shape == (agent.steps, 1000 // agent.steps)
    for i in range(rollout.actions.shape[1]):
        since, total, first = 0, 0.0, True
        for t in range(agent.steps - 1):
            env = replayed(agent.environment, rollout.observations[t, i])
            state, paid, over, *_ = env.step(int(rollout.actions[t, i]))
            since += 1
            total += paid * first
            assert rollout.done[t, i] == (over or since == agent.steps)
            if rollout.done[t, i]:
                since, first = 0, False
            else:
                np.testing.assert_allclose(rollout.observations[t + 1, i], state, atol=1e-6)
        assert rollout.returns[i] == total + rollout.rewards[-1, i] * first


def test_actions_are_drawn_with_the_policys_chances(agent):
    for weight in agent.actor.parameters():
        torch.nn.init.uniform_(weight, -1, 1)  # a new policy is all but indifferent
    state = np.repeat(agent.mean[None] + agent.std, 20_000, 0).astype(np.float32)
    drawn = np.bincount(agent.policy(np.random.default_rng(0))(state), minlength=agent.actions)
    chances = torch.from_numpy(agent.logits(state[:1])[0]).softmax(0).numpy()
    np.testing.assert_allclose(drawn / len(state), chances, atol=0.015)
    assert (agent.policy()(state) == chances.argmax()).all()


def test_sampling_repeats_and_leaves_global_random_numbers_alone(agent):
    np.random.seed(5), torch.manual_seed(5)
    first, second, other = agent.sample((0, 1)), agent.sample((0, 1)), agent.sample((0, 2))
    agent.improve(first, first.rewards, 0, (0, 1))
    assert (first.actions == second.actions).all() and (first.actions != other.actions).any()
    after = np.random.rand(), torch.rand(()).item()
    np.random.seed(5), torch.manual_seed(5)
    assert after == (np.random.rand(), torch.rand(()).item())


def test_advantages_are_gae_by_hand_with_entropy_and_cut_episodes_continued(agent):
    rollout = agent.sample((1, 0))
    policy, s = agent.trpo.policy, agent.settings
    rewards = np.random.default_rng(0).normal(size=rollout.actions.shape).astype(np.float32)
    rewards_before = rewards.copy()

    def value(observations):
        with torch.no_grad():
            scaled = (observations - agent.mean) / agent.std
            return policy.predict_values(torch.from_numpy(scaled.astype(np.float32))).numpy()[:, 0]

    expected = np.zeros(rewards.shape)
    ended_by_time = {tuple(at): o for at, o in zip(rollout.cut, rollout.cut_at, strict=True)}
    for i in range(rewards.shape[1]):
        later = 0.0
        for t in reversed(range(agent.steps)):
            following = rollout.last[i] if t == agent.steps - 1 else rollout.observations[t + 1, i]
            if rollout.done[t, i]:
                following, later = ended_by_time.get((t, i)), 0.0
            ahead = 0.0 if following is None else value(following[None])[0]
            here = value(rollout.observations[t, i][None])[0]
            logits = agent.logits(rollout.observations[t, i][None])[0].astype(np.float64)
            log_chance = logits[rollout.actions[t, i]] - np.log(np.exp(logits).sum())
            paid = rewards[t, i] - 0.3 * log_chance
            later = paid + s.gamma * ahead - here + s.gamma * s.gae_lambda * later
            expected[t, i] = later
    agent.improve(rollout, rewards, 0.3, (0, 0))
    advantages = agent.trpo.rollout_buffer.advantages.reshape(
        -1
    )  # flattened, copy after copy, by train
    np.testing.assert_allclose(advantages, expected.T.reshape(-1), atol=1e-4)
    assert (rewards == rewards_before).all()


def test_a_step_keeps_to_the_trust_region_and_entropy_is_worth_its_lambda():
    shown = load("MountainCar-v0")  # where chance never arrives, all episodes are as long
    agent = Agent("MountainCar-v0", SMALL, shown.observations.mean(0), shown.observations.std(0), 0)

    def chances(rollout):
        flat = rollout.observations.reshape(-1, 2)
        return torch.from_numpy(agent.logits(flat)).softmax(1).double()

    def entropy(p):
        return -(p * p.log()).sum(1).mean().item()

    for i in range(12):  # away from the even odds of a new policy
        rollout = agent.sample((0, i))
        before = chances(rollout)
        agent.improve(rollout, rollout.actions.astype(np.float32), 0, (0, i))
        after = chances(rollout)
        divergence = (after * (after.log() - before.log())).sum(1).mean().item()
        assert 0 < divergence <= agent.settings.max_kl * 1.01
    low = entropy(after)
    for i in range(12):
        rollout = agent.sample((1, i))
        agent.improve(rollout, np.zeros(rollout.actions.shape), 0.5, (1, i))
    assert entropy(chances(rollout)) > low + 0.05


def test_the_search_direction_is_conjugate_gradients_on_a_tenth_of_the_pairs():
    """sb3-contrib's own pieces give the gradient; the Fisher matrix is built here, Jᵀ M J / n."""
    shown = load("CartPole-v1")
    settings = replace(SMALL, hidden=(3,))
    agent = Agent("CartPole-v1", settings, shown.observations.mean(0), shown.observations.std(0), 0)
    rollout = agent.sample((0, 0))
    seen = {}

    def spy(params, grad_kl, vector, retain_graph=True):
        product = hessian_vector_product(params, grad_kl, vector, retain_graph)
        seen.setdefault("pair", (vector.clone(), product.clone()))
        seen["weights"] = seen.get("weights") or [p.detach().clone() for p in params]
        return product

    hessian_vector_product = agent.trpo.hessian_vector_product
    agent.trpo.hessian_vector_product = spy
    agent.improve(rollout, rollout.rewards, 0, (0, 0))
    weights, (vector, product) = seen["weights"], seen["pair"]
    thinned = torch.from_numpy(
        agent.standardised(rollout.observations[::10, 0])
    )  # one copy: in order

    def logits(*w):
        return torch.tanh(thinned @ w[0].T + w[1]) @ w[2].T + w[3]

    jacobian = torch.autograd.functional.jacobian(logits, tuple(weights))
    j = torch.cat([part.flatten(2) for part in jacobian], 2)
    p = logits(*weights).softmax(1)
    metric = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    fisher = torch.einsum("nai,nab,nbj->ij", j, metric, j) / len(thinned)
    torch.testing.assert_close(product, fisher @ vector + 0.1 * vector, atol=1e-6, rtol=1e-3)
