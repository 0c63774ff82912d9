"""Adversarial weight perturbation: v and a step of θ by hand."""

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from test_loop import batch, perturb, players, same, tiny

from l2lkit.errors import InputError
from l2lkit.game.awp import ascent, layers, shifted, step_with_awp
from l2lkit.game.fixed import FGSM
from l2lkit.recipes import recipe


def shifts(f, x, y, gamma):
    """v by hand: the gradient of each parameter with two dimensions or more, at γ times the
    parameter's length."""
    loss = F.cross_entropy(f(x), y)
    names = [n for n, p in f.named_parameters() if p.ndim > 1]
    parameters = dict(f.named_parameters())
    gradients = torch.autograd.grad(loss, [parameters[n] for n in names])
    return {
        n: gamma * (parameters[n].norm() / g.norm() * g).detach()
        for n, g in zip(names, gradients, strict=True)
    }


def test_v_has_the_length_of_its_layer_times_gamma_and_climbs(colours):
    game, (x, y) = players(tiny("plain"), colours), batch(colours)
    f = game.classifier.train()
    before = deepcopy(f.state_dict())
    v = ascent(f, x, y, gamma=0.05)
    for parameter, shift in zip(layers(f), v, strict=True):
        assert (shift.norm() / parameter.norm()).item() == pytest.approx(0.05)
    assert all(torch.equal(t, before[n]) for n, t in f.state_dict().items())  # also its statistics
    losses = [F.cross_entropy(deepcopy(f)(x), y)]
    with shifted(f, v):
        losses.append(F.cross_entropy(deepcopy(f)(x), y))
    assert losses[1] > losses[0]
    assert all(torch.equal(t, before[n]) for n, t in f.state_dict().items())


@pytest.mark.parametrize("kind", ["plain", "fgsm", "grad"])
def test_a_step_by_hand(colours, kind):
    """θ, and φ where there is one, move along the gradient at θ + v, from where they were."""
    made = tiny("plain" if kind == "fgsm" else kind, update="awp")
    if kind == "fgsm":
        made = tiny("plain", attack=FGSM(epsilon=0.1), update="awp")
    game, (x, y) = players(made, colours), batch(colours)
    twin = players(made, colours)
    f, g = twin.classifier, twin.attack
    f.eval()
    delta = torch.zeros_like(x)
    if kind == "grad":
        delta = perturb(g, f, x, y)
    elif kind == "fgsm":
        delta = g(f, x, y)
    f.train()
    v = shifts(deepcopy(f), (x + delta).detach(), y, 0.01)
    moved = {n: (p + v[n] if n in v else p) for n, p in f.named_parameters()}
    logits = torch.func.functional_call(f, moved, x + delta)
    loss = F.cross_entropy(logits, y)
    theta = list(f.parameters())
    phi = list(g.parameters()) if kind == "grad" else []
    gradients = torch.autograd.grad(loss, theta + phi)
    wanted = [(p - 0.05 * d).detach() for p, d in zip(theta, gradients, strict=False)]
    climbed = [(p + 0.02 * d).detach() for p, d in zip(phi, gradients[len(theta) :], strict=True)]

    found, answers, _ = step_with_awp(game, x, y)

    same(game.classifier.parameters(), wanted)
    if kind == "grad":
        same(game.attack.parameters(), climbed)
    torch.testing.assert_close(found, loss.detach())
    torch.testing.assert_close(answers, logits.detach())
    for name, statistics in f.named_buffers():  # they moved once
        torch.testing.assert_close(game.classifier.get_buffer(name), statistics)


def test_it_does_not_go_with_trades():
    with pytest.raises(InputError, match="TRADES has one step"):
        tiny("plain", attack=recipe("today/trades").attack, trades=1.0, update="awp")
