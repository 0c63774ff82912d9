"""The same two moves in other orders than `step`'s: the papers', and that of the authors' code."""

import torch
import torch.nn.functional as F
from torch import Tensor

from l2lkit.game.solver import Attacker, Play
from l2lkit.game.step import Players, Step, autocast, total_loss


def step_as_printed(players: Players, x: Tensor, y: Tensor, weight: float = 1.0) -> Step:
    """One step of the game in the order that the papers print (Algorithms 1 and 2 of 2018,
    Algorithm 2 of the later versions): θ moves against δ, then φ on the new θ against the same δ,
    whose gradient query is that of the old θ. A recipe with a clean loss has a step of θ for it
    first; a learned attacker has asked for its gradient by then, a designed one attacks what that
    step left. The texts name no modes: they are those of `step`."""
    recipe, f, solver = players.recipe, players.classifier, players.attack
    clean, learns = recipe.clean_weight * weight, "attacker" in players.optimisers
    if clean and not learns:
        _descend(players, x, y, clean)
    with autocast(recipe, x.device):
        f.eval()
        batch, labels, delta, _ = (
            solver.play(f, x, y) if solver else Play(x, y, torch.zeros_like(x))
        )
    if clean and learns:
        _descend(players, x, y, clean)
    loss, logits = _descend(players, batch + delta.detach(), labels, weight)
    if learns:
        players.prepare("attacker")
        with autocast(recipe, x.device):
            f.eval()
            ascent = F.cross_entropy(f(batch + delta), labels)
        (weight * ascent).backward(inputs=list(players.modules()["attacker"].parameters()))
        players.optimisers["attacker"].step()
    return loss, logits[: len(x)], delta.detach()[: len(x)]


def _descend(players: Players, x: Tensor, y: Tensor, weight: float) -> tuple[Tensor, Tensor]:
    """A step of θ down `weight` times the loss on these images: the loss () and logits there."""
    players.prepare("classifier")
    with autocast(players.recipe, x.device):
        logits = players.classifier.train()(x)
        loss = F.cross_entropy(logits, y)
    (weight * loss).backward()
    players.optimisers["classifier"].step()
    return loss.detach(), logits.detach()


def step_in_turns(players: Players, x: Tensor, y: Tensor, weight: float = 1.0) -> Step:
    """One step of the game as the authors' code takes it: the classifier's turn, then the
    attacker's on the new θ, with passes of its own and in the modes of that code."""
    recipe, f, g = players.recipe, players.classifier, players.attack
    assert isinstance(g, Attacker)  # a recipe of this update has one
    players.prepare("classifier")
    with autocast(recipe, x.device):
        f.train(), g.eval()
        with torch.no_grad():
            delta = g.play(f, x, y).delta
        logits = f(x + delta)
        loss = F.cross_entropy(logits, y)
        total = total_loss(recipe, loss, logits, f, x, y)
    (weight * total).backward()
    players.optimisers["classifier"].step()
    players.prepare("attacker")
    with autocast(recipe, x.device):
        f.eval(), g.train()
        ascent = F.cross_entropy(f(x + g.play(f, x, y).delta), y)
    (weight * ascent).backward(inputs=list(g.parameters()))
    players.optimisers["attacker"].step()
    return loss.detach(), logits.detach(), delta
