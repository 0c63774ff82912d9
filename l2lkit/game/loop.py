"""The training of every defence: `step` over a dataset, epoch by epoch, with its log."""

import math
import time
from collections.abc import Callable

import pandas as pd
import torch
from torch import nn

from l2lkit import distributed
from l2lkit.data import Dataset, batches
from l2lkit.errors import InputError
from l2lkit.game.awp import step_with_awp
from l2lkit.game.evaluate import trajectory
from l2lkit.game.fixed import PGM
from l2lkit.game.guard import own_settings
from l2lkit.game.orders import step_as_printed, step_in_turns
from l2lkit.game.recipe import Recipe
from l2lkit.game.solver import is_right
from l2lkit.game.step import Players, step

WATCHED, WATCHED_ATTACKED = 500, 64  # test images looked at after each epoch


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
    steps = {
        "simultaneous": step,
        "printed": step_as_printed,
        "alternating": step_in_turns,
        "awp": step_with_awp,
    }
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
