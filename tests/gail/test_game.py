"""GAIL's objective against closed forms, Algorithm 3 against finite differences."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from l2lkit.errors import InputError
from l2lkit.gail import environments, networks
from l2lkit.gail.agent import PolicySettings, by_chance
from l2lkit.gail.demonstrations import Demonstrations
from l2lkit.gail.game import METHODS, Game, ascend, gail_recipe, objective, reward, train

from .conftest import tiny

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
        made = Game.build(tiny(method, **options), cartpole, 0)
        made.expert = pairs(EXPERT)
        made.discriminator = networks.Discriminator(3, 2, (8,))
        if method == "L2L GAIL":
            m = sum(p.numel() for p in made.discriminator.parameters())
            made.updater = networks.Updater(m)
        learner = made.updater or made.discriminator
        made.optimiser = torch.optim.Adam(learner.parameters(), made.recipe.rate, maximize=True)
        return made

    return build


def test_the_discriminator_climbs_to_its_closed_form(game):
    played = game("GAIL", lr=0.05)
    for _ in range(1500):
        value, accuracy = ascend(played, pairs(POLICY))
    states, actions = torch.eye(3).repeat_interleave(2, 0), torch.tensor([0, 1] * 3)
    on_policy, on_expert = POLICY / POLICY.sum(), EXPERT / EXPERT.sum()
    best = on_policy / (on_policy + on_expert)
    with torch.no_grad():
        d = torch.sigmoid(played.discriminator(states, actions)).view(3, 2)
    torch.testing.assert_close(d, best, atol=5e-3, rtol=0)
    optimum = (on_policy * best.log() + on_expert * (1 - best).log()).sum()
    assert value == pytest.approx(optimum.item(), abs=1e-3)
    right = on_policy[best > 0.5].sum() + on_expert[best < 0.5].sum()
    assert accuracy == pytest.approx(right.item() / 2, abs=1e-6)


@given(arrays(np.float64, 5, elements=st.floats(-20, 20)), st.floats(-20, 20))
def test_objective_and_rewards_are_equation_4_of_d(logits, expert):
    d, e = 1 / (1 + np.exp(-logits)), 1 / (1 + math.exp(-expert))
    x = torch.from_numpy(logits)
    value = objective(x, torch.tensor([expert], dtype=torch.float64))
    assert value.item() == pytest.approx(np.log(d).mean() + math.log(1 - e), abs=1e-6)
    np.testing.assert_allclose(reward(x, "survive"), -np.log(d), atol=1e-7)
    np.testing.assert_allclose(reward(x, "finish"), np.log(1 - d), atol=1e-7)


def test_the_policy_is_paid_for_pairs_that_look_like_the_experts(game):
    played = game("GAIL", lr=0.05)
    for _ in range(100):
        ascend(played, pairs(POLICY))
    seldom, often = torch.eye(3)[[0, 1]], torch.tensor([0, 0])  # 6 against 2, 1 against 4
    with torch.no_grad():
        logits = played.discriminator(seldom, often)
    for kind in ("survive", "finish"):
        worse, better = reward(logits, kind)
        assert better > worse


@pytest.mark.parametrize("m", [1, 3, 10])
def test_parameter_count_is_what_torch_counts(m):
    updater = networks.Updater(m)
    assert sum(p.numel() for p in updater.parameters()) == networks.parameter_count(m)
    sizes = [layer.weight.shape for layer in updater.net if isinstance(layer, torch.nn.Linear)]
    assert [tuple(s) for s in sizes] == [(8 * m, 2 * m), (4 * m, 8 * m), (m, 4 * m)]


def test_the_papers_updater_has_over_300_million_parameters():
    m = sum(p.numel() for p in networks.Discriminator(4, 2).parameters())
    assert m == 6 * 64 + 64 + 64 * 32 + 32 + 32 + 1 == 2561
    assert networks.parameter_count(m) > 300e6


@pytest.mark.parametrize("method", METHODS[1:])
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
            return objective(d(*seen), d(*played.expert)).item()

    d.zero_grad()
    objective(d(*seen), d(*played.expert)).backward()
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
    ascend(played, seen)
    new = torch.cat([p.detach().flatten() for p in d.parameters()])
    torch.testing.assert_close(new, expected)
    checked = 0
    for name, weight in updater.named_parameters():
        if abs(slopes[name]) > 1e-3:  # Adam's first step has the rate's size and the slope's sign
            change = (weight.detach() - before[name]).flatten()[0].item()
            assert change == pytest.approx(math.copysign(1e-3, slopes[name]), rel=1e-2)
            checked += 1
    assert checked >= 3


@pytest.mark.parametrize("method", METHODS[1:])
def test_a_learned_optimiser_starts_as_the_identity_and_learns_to_climb(game, method):
    played = game(method, updater_lr=1e-4)
    values = [ascend(played, pairs(POLICY))[0] for _ in range(8)]
    assert values[0] == values[1] == pytest.approx(-2 * math.log(2))
    assert (np.diff(values[1:]) > 0).all()


@pytest.mark.parametrize(
    ("setting", "value"),
    [("method", "PPO"), ("reward", "none"), ("lr", 0), ("updater_lr", math.nan), ("entropy", -1)]
    + [("iterations", 0)],
)
def test_recipes_that_make_no_sense_are_refused(setting, value):
    with pytest.raises(InputError, match=setting):
        tiny(**{setting: value})


def test_a_run_that_memory_cannot_hold_is_refused_before_it_starts(cartpole, monkeypatch):
    free = SimpleNamespace(available=10e9)
    monkeypatch.setattr(networks.psutil, "virtual_memory", lambda: free)
    with pytest.raises(InputError, match=r"needs 11\.6 GB of memory, and 10\.0 GB are free"):
        train(gail_recipe("CartPole-v1", "L2L GAIL", "paper"), cartpole, seed=0)
    for fits in ((2561, 12e9), (1, 1e6), (257, 0.2e9)):
        free.available = fits[1]
        networks.check_memory(fits[0])


def test_gail_learns_to_balance(cartpole):
    recipe = tiny(iterations=20, hidden=(16, 8), policy=PolicySettings(pairs=2000))
    _, log = train(recipe, cartpole, seed=0)
    assert log["return"][0] < 60 and log["return"].iloc[-5:].mean() > 200
    columns = ["iteration", "return", "objective", "accuracy", "reward", "steps", "seconds"]
    assert log.columns.tolist() == columns
    assert (log["steps"] == 2000).all()
    assert log["objective"][0] == pytest.approx(-2 * math.log(2), abs=1e-6)


def test_other_environments_with_a_choice_of_actions_can_be_played():
    assert environments.horizon("Acrobot-v1") == 500
    chance = by_chance("Acrobot-v1", 2, [0])
    observations = chance.observations.swapaxes(0, 1).reshape(-1, 6)
    pairs = observations, chance.actions.T.reshape(-1), np.array([500, 1000])
    shown = Demonstrations("Acrobot-v1", *pairs, *[chance.returns] * 3)
    _, log = train(tiny(environment="Acrobot-v1", iterations=1), shown, seed=0)
    assert len(log) == 1
