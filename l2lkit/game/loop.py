"""One training loop for every defence: the classifier steps down, a learned attacker steps up.

    min over θ  max over φ  of  mean ℓ(f(x + g(x, ∇ₓℓ; φ); θ), y)        (ICLR 2020, equation 3)

The inner solver is exchangeable: nothing (Plain Net), a designed attack (FGSM, PGM and CW Net) or a
learned one (Naive, Grad, 2-Step L2L, L2L-DA). `step` is the whole game; everything else here keeps
books.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l2lkit import distributed
from l2lkit.data import Dataset, batches
from l2lkit.errors import InputError
from l2lkit.game.classifiers import make_classifier
from l2lkit.game.evaluate import trajectory
from l2lkit.game.fixed import PGM
from l2lkit.game.guard import own_settings
from l2lkit.game.recipe import Recipe
from l2lkit.game.solver import Attacker, Play, Solver, is_right

WATCHED, WATCHED_ATTACKED = 500, 64  # test images looked at after each epoch
Step = tuple[Tensor, Tensor, Tensor]  # adversarial loss (), logits (N, classes), δ (N, C, H, W)


@dataclass
class Players:
    """The classifier f(·; θ), the solver that attacks it, and an optimiser for each that learns.

    On several processes each plays its share of a batch, and `averaged` readies the gradients of
    a player to be the means over all of them.
    """

    recipe: Recipe
    classifier: nn.Module
    attack: Solver | None
    optimisers: dict[str, torch.optim.Optimizer]
    averaged: dict[str, Callable[[], None]] = field(default_factory=dict)

    @classmethod
    def build(
        cls, recipe: Recipe, data: Dataset, device: torch.device, learn: bool = True
    ) -> "Players":
        """New players for the data's classes, channels and size; torch's seed decides weights.
        Who is not to `learn` has no optimisers, the first of which takes two seconds to import."""
        channels, *plane = data.train_images.shape[1:]
        name = recipe.classifier
        make = name if callable(name) else partial(make_classifier, name)
        classifier = _placed(make(data.num_classes, channels, plane[1]), device)
        players = cls(recipe, classifier, None, {})
        if recipe.optimiser and learn:
            theta = classifier.parameters()
            players.optimisers["classifier"] = recipe.optimiser.build(theta, ascend=False)
        if not recipe.optimiser:
            classifier.requires_grad_(False)
        # A last image that would be alone joins the batch before it.
        shape = (recipe.batch_size + 1, channels, plane[0], plane[1])
        players.attack = recipe.solver(shape, data.num_classes)
        if isinstance(players.attack, nn.Module):
            players.attack = _placed(players.attack, device)
            if learn:
                phi = players.attack.parameters()
                climb = recipe.attacker_optimiser.build(phi, ascend=True)
                players.optimisers["attacker"] = climb
        return players

    def modules(self) -> dict[str, nn.Module]:
        """The players that are networks, by the name of their optimiser."""
        players = {"classifier": self.classifier, "attacker": self.attack}
        return {name: m for name, m in players.items() if isinstance(m, nn.Module)}

    def state(self) -> dict:
        """All tensors of the game, for a checkpoint: f, g and the optimisers'."""
        return {name: part.state_dict() for name, part in self._parts()}

    def load(self, state: dict) -> None:
        for name, part in self._parts():
            part.load_state_dict(state[name])

    def _parts(self) -> list[tuple[str, nn.Module | torch.optim.Optimizer]]:
        short = {"classifier": "f", "attacker": "g"}
        return [(short[name], m) for name, m in self.modules().items()] + [
            (f"optimiser {name}", o) for name, o in self.optimisers.items()
        ]

    def join(self) -> None:
        """Play with the other processes of the group, if any, from where the first one stands."""
        if distributed.size() == 1:
            return
        if self.attack and self.attack.batch_dependent:
            raise InputError(
                f"The attack of {self.recipe.name} looks at the whole batch: train in one process."
            )
        for name in self.optimisers:
            self.averaged[name] = distributed.averaged(self.modules()[name])

    def prepare(self, *names: str) -> None:
        """Before a pass that moves these players: no gradients yet, and those to come averaged."""
        for name in names:
            self.optimisers[name].zero_grad(set_to_none=True)
            if name in self.averaged:
                self.averaged[name]()


def _placed(module: Any, device: torch.device) -> Any:
    """The module on the device, its images channels last, which is what convolutions want."""
    if distributed.size() > 1 and device.type == "cuda":
        module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
    return module.to(device).to(memory_format=torch.channels_last)


def step(players: Players, x: Tensor, y: Tensor, weight: float = 1.0) -> Step:
    """One step of the game on a batch, both players from one pass.

    Designed attacks, and the gradient query of learned ones, see the classifier in eval mode, so
    that only the images it trains on move its batch statistics. `weight` is what the mean over
    this batch counts in the mean over all processes.
    """
    recipe, f, solver = players.recipe, players.classifier, players.attack
    players.prepare(*players.optimisers)
    with _autocast(recipe, x.device):
        f.eval()
        batch, labels, delta, own = (
            solver.play(f, x, y) if solver else Play(x, y, torch.zeros_like(x))
        )
    if own is not None:  # the solver climbs a value of its own, and not the classifier's loss
        (weight * own).backward(inputs=list(players.modules()["attacker"].parameters()))
        delta = delta.detach()
    with _autocast(recipe, x.device):
        f.train(recipe.optimiser is not None)
        logits = f(batch + delta)
        loss = F.cross_entropy(logits, labels)
        total = _total(recipe, loss, logits, f, x, y)
    if total.requires_grad:
        (weight * total).backward()  # ∇θ to step down and ∇φ to step up, from the same pass
    for optimiser in players.optimisers.values():
        optimiser.step()
    return loss.detach(), logits.detach()[: len(x)], delta.detach()[: len(x)]


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
    with _autocast(recipe, x.device):
        f.eval()
        batch, labels, delta, _ = (
            solver.play(f, x, y) if solver else Play(x, y, torch.zeros_like(x))
        )
    if clean and learns:
        _descend(players, x, y, clean)
    loss, logits = _descend(players, batch + delta.detach(), labels, weight)
    if learns:
        players.prepare("attacker")
        with _autocast(recipe, x.device):
            f.eval()
            ascent = F.cross_entropy(f(batch + delta), labels)
        (weight * ascent).backward(inputs=list(players.modules()["attacker"].parameters()))
        players.optimisers["attacker"].step()
    return loss, logits[: len(x)], delta.detach()[: len(x)]


def _descend(players: Players, x: Tensor, y: Tensor, weight: float) -> tuple[Tensor, Tensor]:
    """A step of θ down `weight` times the loss on these images: the loss () and logits there."""
    players.prepare("classifier")
    with _autocast(players.recipe, x.device):
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
    with _autocast(recipe, x.device):
        f.train(), g.eval()
        with torch.no_grad():
            delta = g.play(f, x, y).delta
        logits = f(x + delta)
        loss = F.cross_entropy(logits, y)
        total = _total(recipe, loss, logits, f, x, y)
    (weight * total).backward()
    players.optimisers["classifier"].step()
    players.prepare("attacker")
    with _autocast(recipe, x.device):
        f.eval(), g.train()
        ascent = F.cross_entropy(f(x + g.play(f, x, y).delta), y)
    (weight * ascent).backward(inputs=list(g.parameters()))
    players.optimisers["attacker"].step()
    return loss.detach(), logits.detach(), delta


def _total(
    recipe: Recipe, loss: Tensor, logits: Tensor, f: nn.Module, x: Tensor, y: Tensor
) -> Tensor:
    """What the players move on: the adversarial loss, with what a recipe adds to it."""
    if recipe.clean_weight:
        loss = loss + recipe.clean_weight * F.cross_entropy(f(x), y)
    if recipe.trades:
        clean = f(x)
        distance = F.kl_div(logits.log_softmax(1), clean.softmax(1), reduction="batchmean")
        loss = F.cross_entropy(clean, y) + recipe.trades * distance
    return loss


def _autocast(recipe: Recipe, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16")


@own_settings()
def train(
    recipe: Recipe,
    data: Dataset,
    *,
    seed: int,
    start_from: dict | None = None,
    resume: dict | None = None,
    on_epoch: Callable[[dict], None] | None = None,
) -> tuple[Players, pd.DataFrame, str]:
    """Play `recipe` on `data` (on the data's device) and return players, log and status.

    `start_from` is a classifier state to warm-start from; `resume` what `on_epoch` was last
    given, {"epoch", "log", "players"}, and saved: the tensors change as the game goes on. A
    resumed run goes on after that epoch and ends exactly as if it had never stopped, since every
    epoch draws its random numbers from (seed, epoch). Players of a game that is over come back
    without optimisers.

    The log has one row an epoch. On the batches as trained: `train_loss`, `train_accuracy`,
    `delta` (mean |δ|/ε; 0 for Plain Net). On the first test images, in eval mode: `clean_loss`,
    `clean_accuracy`, and under PGM-10 at the recipe's ε (0.031 for Plain Net) `adv_loss`,
    `adv_accuracy`. Then `lr`, `attacker_lr` and `seconds`, without the time of the watch.

    The status is "ok", "collapsed" (the classifier ends no better than guessing) or "diverged"
    (a loss was not finite; training stops at that epoch's end).

    In a group of processes (`distributed.group`) all call this, and share every batch; the first
    one's `on_epoch` is called. A run may be resumed in a group of another size.

    Raises InputError if the recipe wants a warm start and gets none, or if several processes
    cannot play it: an attack that looks at the whole batch, or a batch with fewer images.
    """
    if recipe.warm_start and start_from is None and resume is None:
        start = recipe.warm_start
        raise InputError(
            f"Recipe {recipe.name} starts from {start if isinstance(start, str) else start.name}: "
            "pass its classifier's state as start_from."
        )
    device = data.train_images.device
    _check_shares(recipe, len(data.train_images))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        log: list[dict] = list(resume["log"]) if resume else []
        status = _status(log, data.num_classes)
        over = status == "diverged" or len(log) == recipe.epochs
        players = Players.build(recipe, data, device, learn=not over)
        if start_from is not None:
            players.classifier.load_state_dict(start_from)
        if resume is not None:
            players.load(resume["players"])
        players.join()
        for epoch in range(len(log), recipe.epochs):
            if status == "diverged":
                break
            log.append(distributed.first(_epoch(players, data, seed, epoch)))
            status = _status(log, data.num_classes)
            if on_epoch and distributed.rank() == 0:
                on_epoch({"epoch": epoch + 1, "log": log, "players": players.state()})
    for module in players.modules().values():
        module.eval()
    return players, pd.DataFrame(log), status


def _check_shares(recipe: Recipe, images: int) -> None:
    n, rest = distributed.size(), images % recipe.batch_size
    if min(recipe.batch_size, images) < n or 1 < rest < n:  # one left over joins another batch
        raise InputError(
            f"{n} processes cannot share {images:,} images in batches of {recipe.batch_size}, "
            f"{rest} in the last: start fewer."
        )


def _epoch(players: Players, data: Dataset, seed: int, epoch: int) -> dict:
    recipe, solver, started = players.recipe, players.attack, time.perf_counter()
    steps = {"simultaneous": step, "printed": step_as_printed, "alternating": step_in_turns}
    one_step = steps[recipe.update]
    draw = torch.Generator().manual_seed(seed * 100_003 + epoch)
    torch.manual_seed(seed * 100_003 + epoch + 50_000 + distributed.rank() * 10**15)
    rates = {"classifier": 0.0, "attacker": 0.0}
    for name, optimiser in players.optimisers.items():
        setting = recipe.attacker_optimiser if name == "attacker" else recipe.optimiser
        assert setting is not None  # else the player would have no optimiser
        rates[name] = setting.lr_at(epoch, recipe.epochs)
        for group in optimiser.param_groups:
            group["lr"] = rates[name]
    for module in players.modules().values():
        module.train()
    sums = torch.zeros(3, device=data.train_images.device, dtype=torch.float64)
    replays = solver.replays if solver else 1
    for x, y in batches(
        data.train_images, data.train_labels, recipe.batch_size, draw, data.augment
    ):
        whole, x, y = len(x), distributed.share(x), distributed.share(y)
        x = x.contiguous(memory_format=torch.channels_last)
        for _ in range(replays):
            loss, logits, delta = one_step(players, x, y, distributed.size() * len(x) / whole)
            right = is_right(logits, y).sum()
            sums += torch.stack([loss * len(x), right, delta.abs().mean() * len(x)])
    # The only time that the epoch waits for the device.
    total_loss, right_count, total_delta = distributed.summed(sums).tolist()
    seen, epsilon = replays * len(data.train_labels), solver.epsilon if solver else 0.0
    seconds = time.perf_counter() - started
    return {
        "epoch": epoch + 1,
        "train_loss": total_loss / seen,
        "train_accuracy": right_count / seen,
        "delta": total_delta / seen / epsilon if epsilon else 0.0,
        **watch(players.classifier, data, epsilon or 0.031),
        "lr": rates["classifier"],
        "attacker_lr": rates["attacker"],
        "seconds": seconds,
    }


def watch(classifier: nn.Module, data: Dataset, epsilon: float) -> dict[str, float]:
    """Loss and accuracy on the first test images, clean and under PGM-10: a watch, no result."""
    images, labels = data.test(WATCHED)
    pgm = PGM(epsilon=epsilon, steps=10, step_size=max(epsilon, 1e-9) / 4)
    clean = trajectory(classifier, None, images, labels)
    part = slice(WATCHED_ATTACKED)
    attacked = trajectory(classifier, pgm, images[part], labels[part], at=[10])
    return {
        "clean_loss": clean.loss.mean().item(),
        "clean_accuracy": clean.correct.float().mean().item(),
        "adv_loss": attacked.loss.mean().item(),
        "adv_accuracy": attacked.correct.float().mean().item(),
    }


def _status(log: list[dict], classes: int) -> str:
    if not log:
        return "ok"
    if not all(math.isfinite(log[-1][loss]) for loss in ("train_loss", "clean_loss")):
        return "diverged"
    guessing = min(1.5 / classes, 1 / classes + 0.05)
    return "collapsed" if log[-1]["clean_accuracy"] < guessing else "ok"
