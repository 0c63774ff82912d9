"""One training loop for every defence: the classifier steps down, a learned attacker steps up.

    min over θ  max over φ  of  mean ℓ(f(x + g(x, ∇ₓℓ; φ); θ), y)        (ICLR 2020, equation 3)

The inner solver is exchangeable: nothing (Plain Net), a fixed attack (FGSM, PGM and CW Net) or a
learned one (Naive, Grad, 2-Step L2L, L2L-DA). `play` is the whole game; everything else here keeps
books.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l2lkit import distributed
from l2lkit.attacks import PGM
from l2lkit.classifiers import make_classifier
from l2lkit.data import Dataset, batches
from l2lkit.errors import InputError
from l2lkit.evaluation import trajectory
from l2lkit.recipes import Free, Player, Recipe

PROBE_CLEAN, PROBE_ATTACKED = 500, 64  # test images watched after each epoch


@dataclass
class Players:
    """The classifier f(·; θ), the attack on it, and an optimiser for each that has parameters.

    On several processes each plays its share of a batch. `weight` is what a mean over the share
    counts in the mean of all processes, and `averaged` has DDP for each player that learns.
    """

    recipe: Recipe
    classifier: nn.Module
    attack: Callable | None
    optimisers: dict[str, torch.optim.Optimizer]
    weight: float = 1.0
    averaged: dict[str, Callable[[], None]] = field(default_factory=dict)

    @classmethod
    def build(
        cls, recipe: Recipe, data: Dataset, device: torch.device, learn: bool = True
    ) -> "Players":
        """New players for the data's classes, channels and size; torch's seed decides weights.
        Who is not to `learn` has no optimisers, the first of which takes two seconds to import."""
        size = data.train_images.shape[-1]
        classifier = _placed(
            make_classifier(recipe.classifier, data.num_classes, data.channels, size), device
        )
        optimisers = {}
        if recipe.optimiser and learn:
            theta = classifier.parameters()
            optimisers["classifier"] = recipe.optimiser.build(theta, ascend=False)
        if not recipe.optimiser:
            classifier.requires_grad_(False)
        if not isinstance(recipe.attack, Player):
            return cls(recipe, classifier, recipe.attack, optimisers)
        # A last image that would be alone joins the batch before it.
        channels, *plane = data.train_images.shape[1:]
        shape = (recipe.batch_size + 1, channels, plane[0], plane[1])
        attacker = _placed(recipe.attack.build(shape, data.num_classes), device)
        if learn:
            phi = attacker.parameters()
            optimisers["attacker"] = recipe.attack.optimiser.build(phi, ascend=True)
        return cls(recipe, classifier, attacker, optimisers)

    def state(self) -> dict:
        """All tensors of the game, for a checkpoint."""
        return {name: part.state_dict() for name, part in self._parts()}

    def load(self, state: dict) -> None:
        for name, part in self._parts():
            part.load_state_dict(state[name])

    def join(self) -> None:
        """Play with the other processes of the group, if any, from where the first one stands."""
        if distributed.size() == 1:
            return
        if getattr(self.attack, "batch_dependent", False):
            raise InputError(
                f"The attack of {self.recipe.name} looks at the whole batch: train in one process."
            )
        for name in self.optimisers:
            player = self.classifier if name == "classifier" else self.attack
            assert isinstance(player, nn.Module)
            self.averaged[name] = distributed.averaged(player)

    def prepare(self, *names: str) -> None:
        """Before a pass that moves these players: no gradients yet, and those to come averaged."""
        for name in names:
            self.optimisers[name].zero_grad(set_to_none=True)
            if name in self.averaged:
                self.averaged[name]()

    def _parts(self) -> list[tuple[str, nn.Module | torch.optim.Optimizer]]:
        parts: list[tuple[str, nn.Module | torch.optim.Optimizer]] = [("f", self.classifier)]
        if isinstance(self.attack, nn.Module):
            parts.append(("g", self.attack))
        return parts + [(f"optimiser {name}", o) for name, o in self.optimisers.items()]


def _placed(module: nn.Module, device: torch.device) -> nn.Module:
    if distributed.size() > 1 and device.type == "cuda":
        module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
    # torch's own types for Module.to leave out the memory format alone.
    return module.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def play(players: Players, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One step of the game on a batch: the adversarial loss (), logits (N, classes) and δ; of an
    attacker that draws twice for an image, the loss over both and the rest of the first.

    Fixed attacks, and the gradient query of learned ones, see the classifier in eval mode, so
    that only the images it trains on move its batch statistics; the alternating update follows
    the authors' modes instead. In a group of processes the batch is this one's share: its `weight`
    may differ from 1, and the gradients are averaged.
    """
    recipe, f, attack = players.recipe, players.classifier, players.attack
    own = getattr(attack, "objective", None)  # where the attacker climbs more than ℓ
    if recipe.update == "alternating" and isinstance(attack, nn.Module):
        return _play_alternating(players, x, y)
    players.prepare(*players.optimisers)
    delta = torch.zeros_like(x)
    with _autocast(recipe, x.device):
        f.eval()
        if own:
            value, delta = own(f, x, y)
        elif attack is not None:
            delta = attack(f, x, y)
    if own:
        assert isinstance(attack, nn.Module)
        (players.weight * value).backward(inputs=list(attack.parameters()))
        delta = delta.detach()
    draws = len(delta) // len(x)  # L2L-DA attacks every image twice
    with _autocast(recipe, x.device):
        f.train(recipe.optimiser is not None)
        logits = f(torch.cat([x] * draws) + delta)
        loss = F.cross_entropy(logits, y.repeat(draws))
        total = _total(recipe, loss, logits, f, x, y)
    if total.requires_grad:
        (players.weight * total).backward()
    for optimiser in players.optimisers.values():
        optimiser.step()
    return loss.detach(), logits.detach()[: len(x)], delta.detach()[: len(x)]


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


def _play_alternating(players: Players, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    recipe, f, g = players.recipe, players.classifier, players.attack
    assert isinstance(g, nn.Module)
    players.prepare("classifier")
    with _autocast(recipe, x.device):
        f.train(), g.eval()
        with torch.no_grad():
            delta = g(f, x, y)
        logits = f(x + delta)
        loss = F.cross_entropy(logits, y)
        total = _total(recipe, loss, logits, f, x, y)
    (players.weight * total).backward()
    players.optimisers["classifier"].step()
    players.prepare("attacker")
    with _autocast(recipe, x.device):
        f.eval(), g.train()
        ascent = F.cross_entropy(f(x + g(f, x, y)), y)
    (players.weight * ascent).backward(inputs=list(g.parameters()))
    players.optimisers["attacker"].step()
    return loss.detach(), logits.detach(), delta


def _autocast(recipe: Recipe, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16")


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
    cuda = [device] if device.type == "cuda" else []
    _check_shares(recipe, len(data.train_images))
    with torch.random.fork_rng(devices=cuda):
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
    players.classifier.eval()
    if isinstance(players.attack, nn.Module):
        players.attack.eval()
    return players, pd.DataFrame(log), status


def _check_shares(recipe: Recipe, images: int) -> None:
    n, rest = distributed.size(), images % recipe.batch_size
    if min(recipe.batch_size, images) < n or 1 < rest < n:  # one left over joins another batch
        raise InputError(
            f"{n} processes cannot share {images:,} images in batches of {recipe.batch_size}, "
            f"{rest} in the last: start fewer."
        )


def _epoch(players: Players, data: Dataset, seed: int, epoch: int) -> dict:
    recipe, started = players.recipe, time.perf_counter()
    draw = torch.Generator().manual_seed(seed * 100_003 + epoch)
    torch.manual_seed(seed * 100_003 + epoch + 50_000 + distributed.rank() * 10**15)
    rates = {}
    if recipe.optimiser:
        rates["classifier"] = recipe.optimiser.lr_at(epoch, recipe.epochs)
    if isinstance(recipe.attack, Player):
        rates["attacker"] = recipe.attack.optimiser.lr_at(epoch, recipe.epochs)
    for name, rate in rates.items():
        for group in players.optimisers[name].param_groups:
            group["lr"] = rate
    players.classifier.train()
    if isinstance(players.attack, nn.Module):
        players.attack.train()
    sums = torch.zeros(3, device=data.train_images.device, dtype=torch.float64)
    replays = recipe.attack.replays if isinstance(recipe.attack, Free) else 1
    for x, y in batches(
        data.train_images, data.train_labels, recipe.batch_size, draw, data.augment
    ):
        whole, x, y = len(x), distributed.share(x), distributed.share(y)
        players.weight = distributed.size() * len(x) / whole
        x = x.contiguous(memory_format=torch.channels_last)
        for _ in range(replays):
            loss, logits, delta = play(players, x, y)
            right = (logits.argmax(1) == y).sum()
            sums += torch.stack([loss * len(x), right, delta.abs().mean() * len(x)])
    # The only time that the epoch waits for the device.
    total_loss, right_count, total_delta = distributed.summed(sums).tolist()
    seen = replays * len(data.train_labels)
    seconds = time.perf_counter() - started
    epsilon = getattr(recipe.attack, "epsilon", None)
    return {
        "epoch": epoch + 1,
        "train_loss": total_loss / seen,
        "train_accuracy": right_count / seen,
        "delta": total_delta / seen / epsilon if epsilon else 0.0,
        **probe(players.classifier, data, epsilon or 0.031),
        "lr": rates.get("classifier", 0.0),
        "attacker_lr": rates.get("attacker", 0.0),
        "seconds": seconds,
    }


def probe(classifier: nn.Module, data: Dataset, epsilon: float) -> dict[str, float]:
    """Loss and accuracy on the first test images, clean and under PGM-10: a watch, no result."""
    images = data.test_images[:PROBE_CLEAN].float() / 255
    labels = data.test_labels[:PROBE_CLEAN]
    pgm = PGM(epsilon=epsilon, steps=10, step_size=max(epsilon, 1e-9) / 4)
    clean = trajectory(classifier, None, images, labels)
    few = slice(PROBE_ATTACKED)
    attacked = trajectory(classifier, pgm, images[few], labels[few], at=[10])
    return {
        "clean_loss": clean.loss.mean().item(),
        "clean_accuracy": clean.correct.float().mean().item(),
        "adv_loss": attacked.loss.mean().item(),
        "adv_accuracy": attacked.correct.float().mean().item(),
    }


def _status(log: list[dict], classes: int) -> str:
    if not log:
        return "ok"
    last = pd.Series(log[-1])[["train_loss", "clean_loss"]]
    if not last.map(lambda v: v == v and abs(v) < float("inf")).all():
        return "diverged"
    guessing = min(1.5 / classes, 1 / classes + 0.05)
    return "collapsed" if log[-1]["clean_accuracy"] < guessing else "ok"
