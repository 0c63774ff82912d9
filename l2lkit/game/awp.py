"""Adversarial weight perturbation (Wu et al. 2020): a third player, who moves θ against the loss.

    min over θ  max over |v_l| ≤ γ |θ_l|  of  ℓ(f(x + δ; θ + v), y),  for each layer l

It is a way to take the step of θ, like the orders of `orders`, and goes with any solver of δ.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l2lkit.game.solver import Play
from l2lkit.game.step import Players, Step, autocast, total_loss

GAMMA = 0.01  # the size of v for adversarial training in the paper


def step_with_awp(players: Players, x: Tensor, y: Tensor, weight: float = 1.0) -> Step:
    """One step of the game with Algorithm 1's of θ: v is one step of gradient ascent from 0 on the
    adversarial batch, each layer's brought to γ times the length of the layer's weights; the
    gradient of θ, and of φ where the solver learns, is that at θ + v; then v is taken back.

    v's gradient comes from a copy of the classifier, so that batch statistics move once a step. On
    several processes each has the v of its own share of the batch."""
    recipe, f, solver = players.recipe, players.classifier, players.attack
    players.prepare(*players.optimisers)
    with autocast(recipe, x.device):
        f.eval()
        batch, labels, delta, _ = (
            solver.play(f, x, y) if solver else Play(x, y, torch.zeros_like(x))
        )
        f.train()
        against = ascent(f, batch + delta.detach(), labels)
    with shifted(f, against), autocast(recipe, x.device):
        logits = f(batch + delta)
        loss = F.cross_entropy(logits, labels)
        total = total_loss(recipe, loss, logits, f, x, y)
        (weight * total).backward()
    for optimiser in players.optimisers.values():
        optimiser.step()
    return loss.detach(), logits.detach()[: len(x)], delta.detach()[: len(x)]


def layers(classifier: nn.Module) -> list[nn.Parameter]:
    """The parameters that v moves: matrices and kernels, and neither norms nor biases."""
    return [p for p in classifier.parameters() if p.ndim > 1]


def ascent(classifier: nn.Module, images: Tensor, labels: Tensor, gamma: float = GAMMA) -> list:
    """v of each of the layers: γ ‖θ_l‖ ∇_l / ‖∇_l‖, where ∇_l is the gradient of the mean
    cross-entropy on these images (N, C, H, W) with these labels."""
    proxy = copy.deepcopy(classifier)
    loss = F.cross_entropy(proxy(images), labels)
    gradients = torch.autograd.grad(loss, layers(proxy))
    pairs = zip(layers(classifier), gradients, strict=True)
    return [gamma * p.detach().norm() * g / g.norm().clamp(min=1e-30) for p, g in pairs]


@contextmanager
def shifted(classifier: nn.Module, by: Sequence[Tensor]) -> Iterator[None]:
    """Inside, the classifier's layers are `by` further; afterwards they are what they were."""
    before = [p.detach().clone() for p in layers(classifier)]
    with torch.no_grad():
        for parameter, v in zip(layers(classifier), by, strict=True):
            parameter.add_(v)
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(layers(classifier), before, strict=True):
                parameter.copy_(value)
