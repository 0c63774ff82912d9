"""LAS-AT: its attack, its reward and its policy gradient against calculations by hand."""

import pytest
import torch
import torch.nn.functional as F
from test_loop import batch, change, play, players, tiny
from torch import nn

from l2lkit.errors import InputError
from l2lkit.game.fixed import PGM
from l2lkit.game.strategy import Strategy, StrategyAttacker

EPSILON = 0.08  # an eighth of which is 0.01


def linear(seed=3):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 5))


def images(count=5):
    torch.manual_seed(1)
    return 0.3 + 0.4 * torch.rand(count, 3, 32, 32), torch.arange(count) % 5


@pytest.fixture
def strategist():
    torch.manual_seed(2)
    return StrategyAttacker("lenet-5", 3, 32, EPSILON, every=5)


def test_each_image_has_its_own_attack(strategist):
    f, (x, y) = linear(), images()
    chosen = [torch.tensor(v) for v in ([0, 2, 12, 0, 3], [1, 1, 0, 4, 4], [0, 0, 11, 5, 0])]
    radius, size, count = strategist.settings(chosen)
    torch.testing.assert_close(radius.flatten(), torch.tensor([0.03, 0.05, 0.15, 0.03, 0.06]))
    torch.testing.assert_close(size.flatten(), torch.tensor([0.02, 0.02, 0.01, 0.05, 0.05]))
    assert count.flatten().tolist() == [3, 3, 14, 8, 3]
    start = EPSILON * (2 * torch.rand_like(x) - 1)
    delta = strategist.climbed(f, x, y, [radius, size, count], start)
    assert (delta.abs().amax((1, 2, 3)) <= radius.flatten() + 1e-6).all()
    for i in range(len(x)):  # each alone, by hand
        one, at = start[i : i + 1], x[i : i + 1]
        for _ in range(int(count[i])):
            moved = (at + one).requires_grad_()
            gradient = torch.autograd.grad(F.cross_entropy(f(moved), y[i : i + 1]), moved)[0]
            bound = float(radius[i])
            one = (one + size[i] * gradient.sign()).clamp(-bound, bound)
            one = (at + one).clamp(0, 1) - at
        torch.testing.assert_close(delta[i : i + 1], one)


def test_as_an_attack_it_keeps_to_epsilon_and_repeats(strategist):
    f, (x, y) = linear(), images()
    rng = [[torch.Generator().manual_seed(i) for i in range(5)] for _ in range(2)]
    first, again = (strategist.eval()(f, x, y, generators) for generators in rng)
    assert torch.equal(first, again)
    assert first.abs().max() <= EPSILON + 1e-6
    assert (x + first).min() >= 0 and (x + first).max() <= 1


def test_the_reward_is_the_loss_now_and_what_is_right_one_step_later(strategist):
    f, (x, y) = linear(), images()
    strategist.rate = 0.1
    delta = 0.02 * torch.randn_like(x)
    before = [p.detach().clone() for p in f.parameters()]
    torch.manual_seed(5)
    reward = strategist.reward(f, x, y, delta)
    assert all(torch.equal(p, b) for p, b in zip(f.parameters(), before, strict=True))
    now = F.cross_entropy(f(x + delta), y, reduction="none")
    descent = torch.optim.SGD(f.parameters(), lr=0.1)
    F.cross_entropy(f(x + delta), y).backward()
    descent.step()
    torch.manual_seed(5)
    attacked = x + PGM(epsilon=EPSILON, steps=10, step_size=EPSILON / 4)(f, x, y)
    robust, clean = ((f(z).argmax(1) == y).float() for z in (attacked, x))
    assert 0 < robust.sum() + clean.sum() < 10  # neither all nor nothing
    wanted = now + 4 * robust + 2 * clean
    torch.testing.assert_close(reward, (wanted - wanted.mean()).detach())


def test_phi_learns_on_every_fifth_batch(strategist, monkeypatch):
    f, (x, y) = linear(), images()
    reward = torch.tensor([1.0, -2.0, 0.5, 0.25, 0.25])
    monkeypatch.setattr(strategist, "reward", lambda *_: reward)
    phi = list(strategist.parameters())
    for count in range(1, 11):
        found = torch.autograd.grad(strategist.play(f, x, y).value, phi)
        assert any(g.any() for g in found) == (count in (5, 10))


def test_the_policy_gradient_is_that_of_the_expected_reward(strategist, monkeypatch):
    """The same image 6,000 times and two radii to choose from, of which the first is worth 1 and
    the second 3: the expected reward is p₁ + 3 p₂, whose gradient torch can take."""
    f, (x, y) = linear(), images(1)
    strategist.choices = (torch.tensor([0.01, 0.02]), torch.tensor([0.01]), torch.tensor([1]))
    strategist.network = nn.Sequential(nn.AvgPool2d(32), nn.Flatten(), nn.Linear(3, 4))
    strategist.every, worth, phi = 1, torch.tensor([1.0, 3.0]), list(strategist.parameters())
    probability = strategist.heads(x)[0].probs[0]
    wanted = torch.autograd.grad((probability * worth).sum(), phi)
    x, y = x.expand(6000, -1, -1, -1), y.expand(6000)
    played: list = []
    settings = strategist.settings
    monkeypatch.setattr(strategist, "settings", lambda at: played.append(at) or settings(at))
    monkeypatch.setattr(strategist, "climbed", lambda f, x, *_: torch.zeros(1))
    monkeypatch.setattr(strategist, "reward", lambda *_: worth[played[-1][0]])
    torch.manual_seed(7)
    found = torch.autograd.grad(strategist.play(f, x, y).value, phi)
    largest = max(w.abs().max() for w in wanted)
    for f, w in zip(found, wanted, strict=True):
        torch.testing.assert_close(f, w, rtol=0, atol=0.2 * float(largest))


def test_a_game_of_it_moves_both_players(colours):
    game = players(tiny("grad", attack=Strategy(network="wrn-10-1-stride2", every=1)), colours)
    x, y = batch(colours)
    before = [[p.detach().clone() for p in m.parameters()] for m in game.modules().values()]
    _, _, delta = play(game, x, y)
    assert 0 < delta.abs().max() <= 15 / 8 * 0.031 + 1e-6
    for module, was in zip(game.modules().values(), before, strict=True):
        assert change(module.parameters(), was) > 0


def test_a_batch_count_that_is_none_is_refused():
    for every in (0, -1, 2.5):
        with pytest.raises(InputError, match="every must be"):
            Strategy(every=every)
