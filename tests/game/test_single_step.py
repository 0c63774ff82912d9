"""N-FGSM and FGSM-SDI against steps written by hand."""

import pytest
import torch
import torch.nn.functional as F
from test_loop import batch, change, play, players, step, tiny

from l2lkit.game.single_step import NFGSM, SDI
from l2lkit.game.solver import Solver

EPSILON = 0.1


def gradient(f, at, y):
    at = at.clone().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(f(at), y, reduction="sum"), at)[0]


def noise(x, size):
    rng = [torch.Generator().manual_seed(i) for i in range(len(x))]
    draws = torch.stack([torch.rand(x.shape[1:], generator=g) for g in rng]).double()
    return [torch.Generator().manual_seed(i) for i in range(len(x))], size * (2 * draws - 1)


@pytest.fixture
def game(colours):
    return players(tiny("plain", attack=NFGSM(epsilon=EPSILON)), colours), batch(colours)


@pytest.mark.parametrize("k", [1.0, 2.0])
def test_n_fgsm_by_hand(game, k):
    game, (x, y) = game
    f, attack = game.classifier.eval(), NFGSM(epsilon=EPSILON, noise=k)
    rng, eta = noise(x, k * EPSILON)
    noisy = (x + eta).clamp(0, 1)
    adversarial = (noisy + EPSILON * gradient(f, noisy, y).sign()).clamp(0, 1)
    torch.testing.assert_close(attack.unclipped(f, x, y, rng), adversarial - x)
    rng, _ = noise(x, 1)
    inside = (x + (adversarial - x).clamp(-EPSILON, EPSILON)).clamp(0, 1) - x
    torch.testing.assert_close(attack(f, x, y, rng), inside)


def test_n_fgsm_leaves_the_ball_in_training_and_nowhere_else(game):
    game, (x, y) = game
    torch.manual_seed(0)
    trained_on = game.attack.play(game.classifier.eval(), x, y)
    assert trained_on.labels is y and trained_on.images is x
    largest, attacked = trained_on.delta.abs().max(), x + trained_on.delta
    assert EPSILON < largest <= 3 * EPSILON + 1e-12
    assert attacked.min() >= 0 and attacked.max() <= 1
    assert game.attack(game.classifier, x, y).abs().max() <= EPSILON + 1e-12
    _, _, delta = play(game, x, y)
    assert delta.abs().max() > EPSILON


def sdi(f, g, x, y):
    """Start and δ of FGSM-SDI: η = ε tanh g(x, sign ∇), and FGSM's step from there."""
    sign = gradient(f, x, y).sign()
    start = EPSILON * torch.tanh(g.network(torch.cat([x, sign], 1)))
    start = (x + start).clamp(0, 1) - x
    stepped = start + EPSILON * gradient(f, (x + start).detach(), y).sign()
    return start, (x + stepped.clamp(-EPSILON, EPSILON)).clamp(0, 1) - x


def sdi_game(colours):
    attack = SDI(epsilon=EPSILON, network="2018", width=1 / 8)
    return players(tiny("grad", attack=attack), colours), batch(colours)


def test_fgsm_sdi_by_hand(colours):
    game, (x, y) = sdi_game(colours)
    f, g = game.classifier.eval(), game.attack.eval()
    torch.testing.assert_close(list(g.run(f, x, y)), list(sdi(f, g, x, y)))


def test_a_step_of_fgsm_sdi_by_hand(colours):
    game, (x, y) = sdi_game(colours)
    f, g = game.classifier, game.attack
    f.eval()
    _, delta = sdi(f, g, x, y)
    loss = F.cross_entropy(f.train()(x + delta), y)
    wanted = [step(f, loss, -0.05), step(g, loss, 0.02)]
    before = [p.detach().clone() for p in g.parameters()]
    again, (x, y) = sdi_game(colours)
    play(again, x, y)
    for module, expected in zip((again.classifier, again.attack), wanted, strict=True):
        for p, e in zip(module.parameters(), expected, strict=True):
            torch.testing.assert_close(p.detach(), e, rtol=0, atol=1e-11)
    assert change(again.attack.parameters(), before) > 0  # φ does move


def test_what_they_say_of_themselves():
    attack = NFGSM()
    assert isinstance(attack, Solver) and attack.stochastic and not attack.learns
    assert attack.key() != NFGSM(noise=1.0).key()
    made = SDI(network="2018", width=1 / 8)((2, 3, 8, 8), 4)
    assert made.learns and made.general and made.passes == 2
