"""Adversarial interpolation: its parts by hand, and a step of the game."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from test_loop import PLAIN_SGD, batch, players, same, step, tiny
from torch import nn

from l2lkit.errors import InputError
from l2lkit.game import interpolation
from l2lkit.game import step as game_step
from l2lkit.game.classifiers import make_classifier
from l2lkit.game.interpolation import Interpolation, LearnedInterpolation

NAMES = ["wrn-10-1", "resnet-18", "resnet-20", "lenet-5"]


@pytest.mark.parametrize("name", NAMES)
def test_features_are_what_the_last_layer_turns_into_logits(name):
    f, x = make_classifier(name, 4, 3, 32).eval(), torch.rand(2, 3, 32, 32)
    last = [m for m in f.modules() if isinstance(m, nn.Linear)][-1]
    seen = interpolation.features(f, x)
    assert seen.ndim == 2
    torch.testing.assert_close(last(seen), f(x))
    assert not last._forward_pre_hooks  # nothing is left behind


def test_a_classifier_without_a_linear_layer_is_refused():
    f = nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten())
    with pytest.raises(InputError, match="linear layer"):
        interpolation.features(f, torch.rand(2, 3, 8, 8))


def test_the_cosine_distance():
    f = nn.Sequential(nn.Flatten(), nn.Linear(2, 3))
    x = torch.tensor([[3.0, 4.0], [1.0, 0.0], [2.0, 2.0]]).view(3, 2, 1, 1)
    targets = torch.tensor([[3.0, 4.0], [0.0, 2.0], [-1.0, -1.0]])
    torch.testing.assert_close(interpolation.distance(f, x, targets), torch.tensor([0.0, 1.0, 2.0]))


def test_soft_labels_lean_away_from_the_other_class():
    """Four classes, λ = 0.3: 0.7 for one's own, 0.1 for each class but the other image's."""
    like = torch.zeros(1, dtype=torch.float64)
    soft = interpolation.soft_labels(torch.tensor([0, 1, 3]), 4, 0.3, like)
    wanted = [[0.8, 0.1, 0.1, 0.0], [0.1, 0.7, 0.1, 0.1], [0.0, 0.1, 0.1, 0.8]]
    torch.testing.assert_close(soft, torch.tensor(wanted, dtype=torch.float64))


def start(x, epsilon):
    """The uniform start that generators 0, 1, … draw."""
    rng = [torch.Generator().manual_seed(i) for i in range(len(x))]
    noise = torch.stack([torch.rand(x.shape[1:], generator=g) for g in rng]).double()
    return [torch.Generator().manual_seed(i) for i in range(len(x))], epsilon * (2 * noise - 1)


def descent(f, at, x):
    """The gradient of the cosine distances to the mirrored batch's features."""
    at = at.clone().requires_grad_()
    a, b = interpolation.features(f, at), interpolation.features(f, x.flip(0)).detach()
    cosine = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
    return torch.autograd.grad((1 - cosine).sum(), at)[0]


def test_one_designed_step_by_hand(colours):
    game, (x, y) = players(tiny("plain"), colours), batch(colours)
    f = game.classifier.eval()
    rng, noise = start(x, 0.1)
    delta = noise - 0.1 * descent(f, x + noise, x).sign()
    wanted = (x + delta.clamp(-0.1, 0.1)).clamp(0, 1) - x
    found = Interpolation(epsilon=0.1)(f, x, y, rng)
    torch.testing.assert_close(found, wanted)
    towards = interpolation.features(f, x.flip(0)).detach()
    apart = [interpolation.distance(f, x + d, towards).mean() for d in (0, found)]
    assert apart[1] < apart[0]


@pytest.mark.parametrize("steps", [1, 2])
def test_learned_steps_by_hand(colours, steps):
    attack = LearnedInterpolation(epsilon=0.1, network="2018", width=1 / 8, steps=steps)
    game, (x, y) = players(tiny("grad", attack=attack), colours), batch(colours)
    f, g = game.classifier.eval(), game.attack.eval()
    rng, delta = start(x, 0.1)
    for _ in range(steps):
        gradient = descent(f, x + delta, x)
        gradient = gradient / gradient.abs().max()
        delta = delta + 0.1 * g.network(torch.cat([x + delta, gradient], 1)).tanh()
        delta = (x + delta.clamp(-0.1, 0.1)).clamp(0, 1) - x
    torch.testing.assert_close(g(f, x, y, rng), delta)


def test_a_step_of_the_game_by_hand(colours):
    """φ goes down the distance, θ down the loss on soft labels, from one perturbation."""
    attack = LearnedInterpolation(epsilon=0.1, network="2018", width=1 / 8, weight=0.5)
    game, (x, y) = players(tiny("grad", attack=attack), colours), batch(colours)
    f, g = deepcopy(game.classifier).eval(), deepcopy(game.attack)
    torch.manual_seed(3)
    delta = g(f, x, y)
    towards = interpolation.features(f, x.flip(0)).detach()
    phi = step(g, interpolation.distance(f, x + delta, towards).mean(), -0.02)
    soft = interpolation.soft_labels(y, 4, 0.5, x)
    f.train()
    logits = f(x + delta.detach())
    loss = -(soft * logits.log_softmax(1)).sum(1).mean()
    theta = step(f, loss, -0.05)

    torch.manual_seed(3)
    got = game_step.step(game, x, y)
    torch.testing.assert_close(got[0], loss.detach())
    same(game.classifier.parameters(), theta)
    same(game.attack.parameters(), phi)


def test_the_designed_one_plays_with_soft_labels(colours):
    game = players(tiny("plain", attack=Interpolation(epsilon=0.1)), colours)
    x, y = batch(colours)
    played = game.attack.play(game.classifier.eval(), x, y)
    assert played.value is None and played.labels.shape == (16, 4)
    torch.testing.assert_close(played.labels.sum(1), torch.ones(16, dtype=torch.float64))
    before = F.cross_entropy(game.classifier(played.images + played.delta), played.labels)
    game_step.step(game, x, y)
    assert F.cross_entropy(game.classifier.eval()(x + played.delta), played.labels) < before


def test_it_takes_both_players_of_one_pass(colours):
    turns = tiny("grad", attack=LearnedInterpolation(width=1 / 16), update="alternating")
    with pytest.raises(InputError, match="climbs a value of its own"):
        players(replace(turns, optimiser=PLAIN_SGD), colours)
