"""GAIL: its objective against closed forms, Algorithm 3 against finite differences, sampling and
TRPO's part against Gymnasium and formulas by hand, and runs that stop and go on."""

import json
import math
from dataclasses import replace
from functools import partial
from io import BytesIO
from types import SimpleNamespace

import gymnasium
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from scipy.stats import ks_2samp

import l2lkit
from l2lkit import environments, experts, gail, gail_networks, gail_views, pipeline
from l2lkit.__main__ import main
from l2lkit.errors import InputError
from l2lkit.experts import Agent, Demonstrations, PolicySettings
from l2lkit.store import Store

SMALL = PolicySettings(pairs=500, hidden=(16,))


def tiny(method="GAIL", environment="CartPole-v1", **options):
    settings = {"iterations": 4, "hidden": (4, 4), "policy": SMALL}
    return gail.Recipe(environment=environment, method=method, **(settings | options))


@pytest.fixture(scope="module")
def cartpole():
    return experts.load("CartPole-v1")


# The objective ----------------------------------------------------------------------------------

# How often the policy and the expert visit each of three states with each of two actions.
POLICY = torch.tensor([[6, 2], [1, 3], [4, 4]])
EXPERT = torch.tensor([[2, 1], [5, 4], [1, 7]])


def pairs(counts):
    states, actions = counts.nonzero().repeat_interleave(counts[counts > 0], 0).T
    return torch.eye(3)[states], actions


@pytest.fixture
def game(cartpole):
    """A game whose discriminator sees the two discrete distributions above."""

    def build(method, **options):
        torch.manual_seed(0)
        made = gail.Game.build(tiny(method, **options), cartpole, 0)
        made.expert = pairs(EXPERT)
        made.discriminator = gail_networks.Discriminator(3, 2, (8,))
        if method == "L2L GAIL":
            m = sum(p.numel() for p in made.discriminator.parameters())
            made.updater = gail_networks.Updater(m)
        learner = made.updater or made.discriminator
        made.optimiser = torch.optim.Adam(learner.parameters(), made.recipe.rate, maximize=True)
        return made

    return build


def test_the_discriminator_climbs_to_its_closed_form(game):
    played = game("GAIL", lr=0.05)
    for _ in range(1500):
        value, accuracy = gail.ascend(played, pairs(POLICY))
    states, actions = torch.eye(3).repeat_interleave(2, 0), torch.tensor([0, 1] * 3)
    on_policy, on_expert = POLICY / POLICY.sum(), EXPERT / EXPERT.sum()
    best = on_policy / (on_policy + on_expert)
    with torch.no_grad():
        found = torch.sigmoid(played.discriminator(states, actions)).view(3, 2)
    torch.testing.assert_close(found, best, atol=5e-3, rtol=0)
    optimum = (on_policy * best.log() + on_expert * (1 - best).log()).sum()
    assert value == pytest.approx(optimum.item(), abs=1e-3)
    right = on_policy[best > 0.5].sum() + on_expert[best < 0.5].sum()
    assert accuracy == pytest.approx(right.item() / 2, abs=1e-6)


@given(arrays(np.float64, 5, elements=st.floats(-20, 20)), st.floats(-20, 20))
def test_objective_and_rewards_are_equation_4_of_d(logits, expert):
    d, e = 1 / (1 + np.exp(-logits)), 1 / (1 + math.exp(-expert))
    x = torch.from_numpy(logits)
    value = gail.objective(x, torch.tensor([expert], dtype=torch.float64))
    assert value.item() == pytest.approx(np.log(d).mean() + math.log(1 - e), abs=1e-6)
    np.testing.assert_allclose(gail.reward(x, "survive"), -np.log(d), atol=1e-7)
    np.testing.assert_allclose(gail.reward(x, "finish"), np.log(1 - d), atol=1e-7)


def test_the_policy_is_paid_for_pairs_that_look_like_the_experts(game):
    played = game("GAIL", lr=0.05)
    for _ in range(100):
        gail.ascend(played, pairs(POLICY))
    seldom, often = torch.eye(3)[[0, 1]], torch.tensor([0, 0])  # 6 against 2, 1 against 4
    with torch.no_grad():
        logits = played.discriminator(seldom, often)
    for kind in ("survive", "finish"):
        worse, better = gail.reward(logits, kind)
        assert better > worse


# The updater ------------------------------------------------------------------------------------


@pytest.mark.parametrize("m", [1, 3, 10])
def test_parameter_count_is_what_torch_counts(m):
    updater = gail_networks.Updater(m)
    assert sum(p.numel() for p in updater.parameters()) == gail_networks.parameter_count(m)
    sizes = [layer.weight.shape for layer in updater.net if isinstance(layer, torch.nn.Linear)]
    assert [tuple(s) for s in sizes] == [(8 * m, 2 * m), (4 * m, 8 * m), (m, 4 * m)]


def test_the_papers_updater_has_over_300_million_parameters():
    m = sum(p.numel() for p in gail_networks.Discriminator(4, 2).parameters())
    assert m == 6 * 64 + 64 + 64 * 32 + 32 + 32 + 1 == 2561
    assert gail_networks.parameter_count(m) > 300e6


@pytest.mark.parametrize("method", gail.METHODS[1:])
def test_algorithm_3_moves_theta_by_u_and_u_up_the_objective(game, method):
    played = game(method, updater_lr=1e-3)
    assert (played.updater.m == 1) == method.endswith("(shared)")
    with torch.no_grad():
        for weight in played.updater.parameters():
            weight.add_((0.3 if played.updater.m == 1 else 0.05) * torch.randn_like(weight))
    d, updater, seen = played.discriminator, played.updater, pairs(POLICY)
    theta = torch.cat([p.detach().flatten() for p in d.parameters()])

    def value_at(vector):
        torch.nn.utils.vector_to_parameters(vector, d.parameters())
        with torch.no_grad():
            return gail.objective(d(*seen), d(*played.expert)).item()

    d.zero_grad()
    gail.objective(d(*seen), d(*played.expert)).backward()
    gradient = torch.cat([p.grad.flatten() for p in d.parameters()])
    before = {name: p.detach().clone() for name, p in updater.named_parameters()}

    def moved():
        with torch.no_grad():
            inputs = torch.stack([theta, gradient])
            inputs = inputs.T if updater.m == 1 else inputs.reshape(-1)
            return theta + updater.net(inputs).flatten()

    expected = moved()
    slopes = {}
    for name, weight in updater.named_parameters():
        flat, h = weight.data.view(-1), 1e-2
        flat[0] += h
        up = value_at(moved())
        flat[0] -= 2 * h
        slopes[name] = (up - value_at(moved())) / (2 * h)
        flat[0] += h
    torch.nn.utils.vector_to_parameters(theta, d.parameters())
    gail.ascend(played, seen)
    new = torch.cat([p.detach().flatten() for p in d.parameters()])
    torch.testing.assert_close(new, expected)
    checked = 0
    for name, weight in updater.named_parameters():
        if abs(slopes[name]) > 1e-3:  # Adam's first step has the rate's size and the slope's sign
            change = (weight.detach() - before[name]).flatten()[0].item()
            assert change == pytest.approx(math.copysign(1e-3, slopes[name]), rel=1e-2)
            checked += 1
    assert checked >= 3


@pytest.mark.parametrize("method", gail.METHODS[1:])
def test_a_learned_optimiser_starts_as_the_identity_and_learns_to_climb(game, method):
    played = game(method, updater_lr=1e-4)
    values = [gail.ascend(played, pairs(POLICY))[0] for _ in range(8)]
    assert values[0] == values[1] == pytest.approx(-2 * math.log(2))
    assert (np.diff(values[1:]) > 0).all()


# Sampling and TRPO ------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=gail.ENVIRONMENTS)
def agent(request):
    shown = experts.load(request.param)
    mean, std = shown.observations.mean(0), shown.observations.std(0)
    return Agent(request.param, replace(SMALL, pairs=1000), mean, std, seed=0)


def replayed(environment, state):
    """One copy of Gymnasium's own environment, put into a state (float64)."""
    env = gymnasium.make(environment).unwrapped
    env.reset()
    env.state = np.array(state, dtype=np.float64)
    return env


@given(st.data())
@settings(max_examples=30, deadline=None)
@pytest.mark.parametrize("environment", gail.ENVIRONMENTS)
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


def test_fresh_episodes_start_as_gymnasiums_do():
    """Two-sample Kolmogorov-Smirnov against single environments, coordinate by coordinate."""
    for environment in gail.ENVIRONMENTS:
        ours, _ = environments.make(environment, 400).reset(seed=1)
        env = gymnasium.make(environment)
        theirs = np.array([env.reset(seed=s)[0] for s in range(400)])
        for a, b in zip(ours.T, theirs.T, strict=True):
            assert ks_2samp(a, b).pvalue > 0.01


def test_actions_are_drawn_with_the_policys_chances(agent):
    for weight in agent.actor.parameters():
        torch.nn.init.uniform_(weight, -1, 1)  # a new policy is all but indifferent
    state = np.repeat(agent.mean[None] + agent.std, 20_000, 0).astype(np.float32)
    drawn = np.bincount(agent.player(np.random.default_rng(0))(state), minlength=agent.actions)
    chances = torch.from_numpy(agent.logits(state[:1])[0]).softmax(0).numpy()
    np.testing.assert_allclose(drawn / len(state), chances, atol=0.015)
    assert (agent.player()(state) == chances.argmax()).all()


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
    found = agent.trpo.rollout_buffer.advantages.reshape(-1)  # flattened, copy after copy, by train
    np.testing.assert_allclose(found, expected.T.reshape(-1), atol=1e-4)
    assert (rewards == rewards_before).all()


def test_a_step_keeps_to_the_trust_region_and_entropy_is_worth_its_lambda():
    shown = experts.load("MountainCar-v0")  # where chance never arrives, all episodes are as long
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
    shown = experts.load("CartPole-v1")
    settings = replace(SMALL, hidden=(3,))
    agent = Agent("CartPole-v1", settings, shown.observations.mean(0), shown.observations.std(0), 0)
    rollout = agent.sample((0, 0))
    found = {}

    def spy(params, grad_kl, vector, retain_graph=True):
        product = hessian_vector_product(params, grad_kl, vector, retain_graph)
        found.setdefault("pair", (vector.clone(), product.clone()))
        found["weights"] = found.get("weights") or [p.detach().clone() for p in params]
        return product

    hessian_vector_product = agent.trpo.hessian_vector_product
    agent.trpo.hessian_vector_product = spy
    agent.improve(rollout, rollout.rewards, 0, (0, 0))
    weights, (vector, product) = found["weights"], found["pair"]
    few = torch.from_numpy(agent.standardised(rollout.observations[::10, 0]))  # one copy: in order

    def logits(*w):
        return torch.tanh(few @ w[0].T + w[1]) @ w[2].T + w[3]

    jacobian = torch.autograd.functional.jacobian(logits, tuple(weights))
    j = torch.cat([part.flatten(2) for part in jacobian], 2)
    p = logits(*weights).softmax(1)
    metric = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    fisher = torch.einsum("nai,nab,nbj->ij", j, metric, j) / len(few)
    torch.testing.assert_close(product, fisher @ vector + 0.1 * vector, atol=1e-6, rtol=1e-3)


# Demonstrations and experts ---------------------------------------------------------------------


@pytest.mark.parametrize(("environment", "least"), [("CartPole-v1", 499), ("MountainCar-v0", -110)])
def test_shipped_demonstrations_replay_in_gymnasium(environment, least):
    shown = experts.load(environment)
    assert shown.expert > least > shown.chance
    assert len(shown.expert_returns) == 100
    assert (experts.SHIPPED / f"{environment}.npz").stat().st_size < 300_000
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


def test_shaping_pays_the_same_for_every_way_to_the_goal():
    """Discounted, the shaping of an episode that arrives sums to −Φ(start) (Ng et al. 1999)."""
    shown, gamma = experts.load("MountainCar-v0"), 0.99
    for start, end in zip([0, *shown.ends], shown.ends, strict=False):
        states = shown.observations[start:end, None]
        done = np.zeros((end - start, 1), bool)
        done[-1] = True
        run = experts.Rollout(
            states, np.zeros((end - start, 1), np.int64), np.full((end - start, 1), -1, np.float32),
            done, states[0], np.empty((0, 2), np.int64), np.empty((0, 2), np.float32),
        )  # fmt: skip
        extra = experts.shaped(run, experts.mountain_car_energy, gamma) - run.rewards
        total = (extra[:, 0] * gamma ** np.arange(end - start)).sum()
        assert total == pytest.approx(-experts.mountain_car_energy(states[0])[0], abs=1e-3)


def test_an_expert_is_the_best_of_its_iterates_and_its_seeds():
    seen = []
    settings = replace(SMALL, pairs=2000)
    expert = experts.train_expert(
        "CartPole-v1", 0, 5, settings, on_iteration=lambda i, r: seen.append((i, r))
    )
    shown = experts.record(expert, episodes=3, seed=4)
    assert [i for i, _ in seen] == [1, 2, 3, 4, 5]
    assert len(shown.ends) == 3 and shown.expert > 3 * shown.chance
    again = experts.record(experts.train_expert("CartPole-v1", 0, 5, settings), 3, seed=4)
    assert again.fingerprint == shown.fingerprint


def test_the_command_trains_records_and_says_whether_the_bar_is_met(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(experts, "ITERATIONS", 5)
    small = partial(experts.train_expert, settings=replace(SMALL, pairs=2000))
    monkeypatch.setattr(experts, "train_expert", small)
    words = ["demonstrations", "--environment", "CartPole-v1", "--output", str(tmp_path)]
    assert main(words) == 0
    written = experts.load("CartPole-v1", tmp_path / "CartPole-v1.npz")
    said = capsys.readouterr().out
    assert f"mean return {written.expert:.1f} over 100 episodes (BELOW 500)" in said
    assert f"{len(written.actions)} pairs in {tmp_path}" in said
    assert main([*words, "--seed", "0"]) == 0
    again = experts.load("CartPole-v1", tmp_path / "CartPole-v1.npz")
    assert again.fingerprint == written.fingerprint


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--environment", "NoSuchThing-v0"], "cannot make"),
     (["--environment", "CartPole-v1", "--environment", "Pendulum-v1"], "continuous actions"),
     (["--seed", "-1"], "must be 0 or more"),
     (["--output", __file__], "Cannot write")],
)  # fmt: skip
def test_the_command_refuses_before_it_trains(words, said, monkeypatch, capsys):
    monkeypatch.setattr(experts, "train_expert", lambda *_, **__: pytest.fail("it trains"))
    assert main(["demonstrations", *words]) == 2
    assert said in capsys.readouterr().err


def test_demonstrations_survive_the_file(tmp_path, cartpole):
    cartpole.save(tmp_path / "mine.npz")
    again = experts.load("CartPole-v1", tmp_path / "mine.npz")
    assert again.fingerprint == cartpole.fingerprint
    assert (again.returns == cartpole.returns).all()


def test_score_puts_chance_at_zero_and_the_expert_at_one():
    shown = experts.load("MountainCar-v0")
    np.testing.assert_allclose(shown.score(np.array([shown.chance, shown.expert])), [0, 1])


# Bad input --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "words"),
    [("NoSuchThing-v0", "cannot make 'NoSuchThing-v0'"), ("Pendulum-v1", "continuous actions"),
     ("FrozenLake-v1", "no vector observations"), ("CartPole-v99", "cannot make")],
)  # fmt: skip
def test_environments_that_do_not_fit_are_refused(environment, words):
    for attempt in (lambda: experts.load(environment), lambda: experts.train_expert(environment)):
        with pytest.raises(InputError, match=words):
            attempt()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"observations": np.empty((0, 4)), "actions": np.empty(0), "ends": np.empty(0, int)},
         "empty"),
        ({"observations": np.zeros((5000, 3))}, r"shape \(M, 4\)"),
        ({"observations": np.zeros((10, 4))}, r"shape \(M, 4\)"),
        ({"observations": np.full((5000, 4), np.nan)}, "not finite"),
        ({"actions": np.full(5000, 2)}, "from 0 to 1"),
        ({"actions": np.full(5000, 0.5)}, "from 0 to 1"),
        ({"ends": np.array([100, 50, 5000])}, "must rise"),
        ({"returns": np.array([500.0])}, "one return each"),
        ({"expert_returns": np.empty(0)}, "expert and of chance"),
    ],
)  # fmt: skip
def test_demonstrations_that_do_not_fit_are_refused(cartpole, change, words):
    with pytest.raises(InputError, match=words):
        replace(cartpole, **change)


def test_files_that_are_no_demonstrations_are_refused(tmp_path, cartpole):
    with pytest.raises(InputError, match="no demonstrations at .*l2lkit demonstrations"):
        experts.load("CartPole-v1", tmp_path / "absent.npz")
    (tmp_path / "text.npz").write_text("nothing")
    np.savez(tmp_path / "other.npz", x=1)
    whole = (experts.SHIPPED / "CartPole-v1.npz").read_bytes()
    (tmp_path / "half.npz").write_bytes(whole[: len(whole) // 2])
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 255
    (tmp_path / "flipped.npz").write_bytes(flipped)
    for name in ("text", "other", "half", "flipped"):
        with pytest.raises(InputError, match="holds no demonstrations"):
            experts.load("CartPole-v1", tmp_path / f"{name}.npz")
    cartpole.save(tmp_path / "mine.npz")
    with pytest.raises(InputError, match="are for CartPole-v1, not MountainCar-v0"):
        experts.load("MountainCar-v0", tmp_path / "mine.npz")
    with pytest.raises(InputError, match="the recipe on MountainCar-v0"):
        gail.train(tiny(environment="MountainCar-v0"), cartpole, seed=0)


@pytest.mark.parametrize(
    "setting", [{"method": "PPO"}, {"reward": "none"}, {"lr": 0}, {"updater_lr": math.nan},
                {"entropy": -1}, {"iterations": 0}],
)  # fmt: skip
def test_recipes_that_make_no_sense_are_refused(setting):
    with pytest.raises(InputError, match=str(next(iter(setting)))):
        tiny(**setting)


def test_a_run_that_memory_cannot_hold_is_refused_before_it_starts(cartpole, monkeypatch):
    free = SimpleNamespace(available=10e9)
    monkeypatch.setattr(gail_networks.psutil, "virtual_memory", lambda: free)
    with pytest.raises(InputError, match=r"needs 11\.6 GB of memory, and 10\.0 GB are free"):
        gail.train(gail.recipe("CartPole-v1", "L2L GAIL", "paper"), cartpole, seed=0)
    for fits in ((2561, 12e9), (1, 1e6), (257, 0.2e9)):
        free.available = fits[1]
        gail_networks.check_memory(fits[0])


# Runs -------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setitem(gail.SCALES, "smoke", {"iterations": 4, "hidden": (4, 4), "policy": SMALL})
    return l2lkit.Store("smoke", device="cpu", output=tmp_path, seeds=2)


@pytest.mark.parametrize("method", gail.METHODS)
def test_a_run_that_is_stopped_ends_as_if_it_had_not_been(store, cartpole, method):
    recipe = tiny(method)
    whole, log = gail.train(recipe, cartpole, seed=1)

    def stop(what, share):
        if "iteration 2/4" in what:
            raise KeyboardInterrupt

    store.on_progress = stop
    with pytest.raises(KeyboardInterrupt):
        gail.trained(store, recipe, 1)
    heard = []
    store.on_progress = lambda what, share: heard.append(what)
    run = gail.trained(store, recipe, 1)
    assert heard == [f"{method}, CartPole-v1, seed 1, iteration {i}/4" for i in (3, 4)]
    seconds = ["seconds"]
    assert run.log.drop(columns=seconds).equals(log.drop(columns=seconds))
    for name, a, b in (("policy", run.game.agent.actor, whole.agent.actor),
                       ("D", run.game.discriminator, whole.discriminator)):  # fmt: skip
        for key, value in a.state_dict().items():
            assert (value == b.state_dict()[key]).all(), (name, key)
    heard.clear()
    directory = gail.where(store, recipe, cartpole, 1)
    (kept,) = directory.glob("*.pt")  # one checkpoint, without the moments
    assert "optimiser" not in torch.load(kept, weights_only=True)["game"]
    again = gail.trained(store, recipe, 1)  # from the checkpoint alone
    states = cartpole.observations[:200]
    assert not heard and list(again.snapshots) == [1, 2, 3, 4]
    assert (again.game.agent.logits(states) == whole.agent.logits(states)).all()
    for one, other in ((None, None), (np.random.default_rng(0), np.random.default_rng(0))):
        drawn = again.game.agent.player(one)(states)
        assert (drawn == whole.agent.player(other)(states)).all()


def test_a_run_whose_discriminator_outgrows_the_floats_ends_there(store, cartpole):
    recipe = tiny("L2L GAIL", iterations=40, updater_lr=1e5)
    run = gail.trained(store, recipe, 0)
    assert 1 < len(run.log) < 40 and run.log["reward"].isna().iloc[-1]
    assert run.log["reward"].iloc[:-1].notna().all()
    record = json.loads((gail.where(store, recipe, cartpole, 0) / "record.json").read_text())
    assert record["status"] == "diverged" and record["versions"]["sb3-contrib"]
    assert np.isfinite(run.game.agent.logits(cartpole.observations)).all()
    assert len(gail.trained(store, recipe, 0).log) == len(run.log)


def test_gail_learns_to_balance(cartpole):
    recipe = tiny(iterations=20, hidden=(16, 8), policy=PolicySettings(pairs=2000))
    _, log = gail.train(recipe, cartpole, seed=0)
    assert log["return"][0] < 60 and log["return"].iloc[-5:].mean() > 200
    assert log.columns.tolist() == [
        "iteration", "return", "objective", "accuracy", "reward", "steps", "seconds"
    ]  # fmt: skip
    assert (log["steps"] == 2000).all()
    assert log["objective"][0] == pytest.approx(-2 * math.log(2), abs=1e-6)


def test_curves_hold_every_run_once_with_a_score(store):
    table = gail_views.curves(store, methods=gail.METHODS[:2])
    runs = table.groupby(["environment", "defence", "seed"]).size()
    assert len(runs) == 2 * 2 * 2
    assert (runs["CartPole-v1"] == 4).all() and (runs["MountainCar-v0"] == 8).all()
    car = table[table["environment"] == "MountainCar-v0"]
    assert (car["return"] == -200).all() and car["score"].abs().max() < 0.01
    numbers = gail_views.summary(table)
    assert len(numbers) == 8 and numbers["worst_drop"].isna().all()  # nothing learnt so soon
    store.on_progress = lambda *_: pytest.fail("a finished run was played again")
    assert gail_views.curves(store, methods=gail.METHODS[:2]).equals(table)
    with pytest.raises(InputError, match="One seed comes twice"):
        gail_views.curves(store, which=[0, 1, 0])


def test_the_paper_profile_plays_five_seeds_of_the_papers_networks(tmp_path):
    assert gail.seeds(l2lkit.Store("paper", device="cpu", output=tmp_path)) == [0, 1, 2, 3, 4]
    recipe = gail.recipe("CartPole-v1", "L2L GAIL", "paper")
    assert recipe.hidden == recipe.policy.hidden == (64, 32) and recipe.policy.pairs == 5000
    assert gail.recipe("MountainCar-v0", "GAIL", "paper").reward == "finish"


# Figure 6 in numbers ----------------------------------------------------------------------------


def test_a_record_of_returns_gives_the_numbers_of_the_runs_themselves(store):
    table = gail_views.curves(store, methods=gail.METHODS[:2])
    rows = [
        {"environment": e, "method": m, "seed": s, "returns": run["return"].tolist()}
        for (e, m, s), run in table.groupby(["environment", "defence", "seed"], sort=False)
    ]
    again = gail_views.unpacked(json.loads(json.dumps(rows)))
    pd.testing.assert_frame_equal(gail_views.summary(again), gail_views.summary(table))
    pd.testing.assert_frame_equal(again, table[again.columns])


def test_stability_of_curves_drawn_by_hand():
    rise = np.linspace(0, 1, 11)
    steady = gail_views.stability([*rise, *[1.0] * 9])
    assert steady == {"final": 1, "reached": 11, "worst_drop": 0, "below": 0}
    falls = gail_views.stability([*rise, 1, 1.1, 0.3, 0.79, 0.8, 1, 1, 1, 0.9])
    assert falls["reached"] == 11 and falls["worst_drop"] == pytest.approx(0.8)
    assert falls["below"] == pytest.approx(2 / 10) and falls["final"] == pytest.approx(0.95)
    never = gail_views.stability([0.2, 0.94, 0.1])
    assert never["final"] == 0.1
    assert all(math.isnan(never[k]) for k in ("reached", "worst_drop", "below"))
    early = gail_views.stability([0.96, 0.5, 0.7])  # a fall counts from the best, not step by step
    assert early["worst_drop"] == pytest.approx(0.46) and early["below"] == pytest.approx(2 / 3)


@given(arrays(np.float64, st.integers(1, 40), elements=st.floats(-1, 1.5)))
def test_stability_against_brute_force(curve):
    found = gail_views.stability(curve)
    reached = [t for t, score in enumerate(curve) if score >= 0.95]
    if not reached:
        assert math.isnan(found["worst_drop"])
        return
    first = reached[0]
    falls = [curve[i] - curve[j] for i in range(first, len(curve)) for j in range(i, len(curve))]
    assert found["worst_drop"] == pytest.approx(max(falls))
    assert found["below"] == pytest.approx(np.mean([s < 0.8 for s in curve[first:]]))


@pytest.mark.parametrize("curve", [[], [[1.0]], [1.0, math.nan]])
def test_stability_refuses_what_is_no_curve(curve):
    with pytest.raises(InputError, match="row of finite numbers"):
        gail_views.stability(curve)


# Pictures ---------------------------------------------------------------------------------------


def test_pictures_show_every_run_and_the_slider_moves_without_training(store):
    table = gail_views.curves(store, methods=gail.METHODS[:2])
    bands, single = gail_views.learning_curves(table), gail_views.seed_curves(table)
    assert [ax.get_title() for ax in bands.axes] == list(gail.ENVIRONMENTS)
    labels = [line.get_label() for line in bands.axes[0].lines]
    assert labels == ["GAIL", "L2L GAIL", "expert", "chance"]
    assert [len(ax.lines) for ax in single.axes] == [2 + 2] * 4  # two seeds, expert and chance
    explorer = gail_views.explorer(store, "MountainCar-v0")
    store.on_progress = lambda *_: pytest.fail("the slider trains")
    controls, image = explorer.children
    last = image.value
    controls.children[2].value = 1
    assert image.value != last
    controls.children[2].value = 8
    assert image.value == last


def test_the_state_space_is_drawn_anew_as_it_would_be_drawn_at_first(store):
    run = gail.trained(store, gail.recipe("MountainCar-v0", "GAIL", "smoke"), 0)
    drawn = gail_views.StateSpace(run.at(1), "one")
    first = drawn.png()
    with torch.no_grad():
        run.at(8).game.discriminator.net[-1].bias.add_(1)
    drawn.show(run, "two")
    fresh = gail_views.StateSpace(run, "two").png()
    assert drawn.png() != first
    a, b = (np.array(Image.open(BytesIO(png))) for png in (drawn.png(), fresh))
    assert (a == b).all()
    push, doubt = (np.asarray(image.get_array()) for image in drawn.images)
    state = np.array([[-1.2 + 1.8 * 40 / 60, -0.07 + 0.14 * 10 / 60]], np.float32)
    chances = torch.from_numpy(run.game.agent.logits(state)).softmax(1)[0]
    assert push[10, 40] == pytest.approx((chances[2] - chances[0]).item(), abs=1e-5)
    seen = torch.from_numpy(run.game.agent.standardised(state)).repeat(3, 1)
    d = torch.sigmoid(run.game.discriminator(seen, torch.arange(3)))
    assert doubt[10, 40] == pytest.approx((chances * d).sum().item(), abs=1e-5)


def test_the_film_shows_each_episode_to_its_end(agent):
    rolling = np.linspace(-1, 1, 90)[:, None] * np.array([1, 0, 0.2, 0])
    short, long = rolling[:30], rolling
    film = Image.open(BytesIO(gail_views.film({"a": short, "b": long}, "CartPole-v1")))
    assert film.size == (480, 170) and film.n_frames == 91  # the last one stays
    frames = []
    for i in (20, 29, 45, 89):
        film.seek(i)
        frames.append(np.array(film.convert("L"))[45:])
    left, right = ([frame[:, half] for frame in frames] for half in (slice(240), slice(240, 480)))
    assert (left[0] != left[1]).any() and (left[1] == left[3]).all()
    assert (right[1] != right[2]).any() and (right[2] != right[3]).any()
    with pytest.raises(InputError, match="Nothing here draws Acrobot-v1"):
        gail_views.film({"a": short}, "Acrobot-v1")
    assert len(gail_views.episode(agent, seed=3)) == abs(agent.evaluate(1, seed=3)[0])


def test_other_environments_with_a_choice_of_actions_can_be_played():
    assert environments.horizon("Acrobot-v1") == 500
    chance = experts.by_chance("Acrobot-v1", 2, [0])
    ends = np.array([500, 1000])
    shown = Demonstrations(
        "Acrobot-v1", chance.observations.swapaxes(0, 1).reshape(-1, 6),
        chance.actions.T.reshape(-1), ends, chance.returns, chance.returns, chance.returns,
    )  # fmt: skip
    _, log = gail.train(tiny(environment="Acrobot-v1", iterations=1), shown, seed=0)
    assert len(log) == 1


def test_the_paper_profile_says_at_once_that_memory_is_short(tmp_path, monkeypatch):
    """The discriminator (s, a) -> 64 -> 32 -> 1 on CartPole: (6 + 1)64 + 65 · 32 + 33 numbers."""
    recipe = gail.recipe("CartPole-v1", "L2L GAIL", "paper")
    assert gail.updated(recipe) == 7 * 64 + 65 * 32 + 33 == 2561
    assert gail.updated(gail.recipe("CartPole-v1", "GAIL", "paper")) == 0
    little = SimpleNamespace(available=10**9)
    monkeypatch.setattr(gail_networks.psutil, "virtual_memory", lambda: little)
    with pytest.raises(InputError, match="needs 11.6 GB of memory, and 1.0 GB are free"):
        pipeline.imitation_tasks(Store("paper", device="cpu", output=tmp_path))
    assert len(pipeline.imitation_tasks(Store("smoke", device="cpu", output=tmp_path))) == 6
