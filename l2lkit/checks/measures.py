"""Single measurements of a subject, each one call that the subject remembers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from l2lkit.checks.attacks import EPSILON, LONG, WORST, Budget, pgm_at, white_box_attacks
from l2lkit.checks.subject import Right, Subject
from l2lkit.game import evaluate
from l2lkit.game.autoattack import AutoAttack, flags
from l2lkit.game.fixed import FGSM, PGM
from l2lkit.game.solver import Solver, input_gradient, uniform

RESTARTS = 5


def survival(subject: Subject, budget: Budget, own: Solver | None = None) -> Right:
    """Whether the classifier is right on each image of the table, attack by attack. "Own attacker"
    is the network it was trained with, where there is one; "Worst" counts an image only if it
    survives PGM-20, PGM-100 and CW, one by one."""
    attacks = white_box_attacks(budget) | ({"Own attacker": own} if own else {})
    right = subject.correct(attacks, budget.images)
    return right | {"Worst": np.logical_and.reduce([right[a] for a in WORST])}


def against_epsilon(
    subject: Subject, epsilons: Sequence[float], count: int | None
) -> dict[tuple[str, float], float]:
    """Accuracy under FGSM and PGM-10 against ε in [0, 1], PGM with a step size in proportion (0.007
    at 0.031): (attack, ε) -> accuracy."""
    attacks: dict[str, Solver | None] = {f"FGSM {e}": FGSM(epsilon=e) for e in epsilons}
    for e in epsilons:
        step_size = max(e, 1e-3) * 0.007 / EPSILON
        attacks[f"PGM-10 {e}"] = PGM(epsilon=e, steps=10, step_size=step_size)
    right = subject.correct(attacks, count)
    places = [(attack, e) for attack in ("FGSM", "PGM-10") for e in epsilons]
    return {(a, e): float(right[f"{a} {e}"].mean()) for a, e in places}


def survivors(
    subject: Subject, budget: Budget, own: Solver | None = None
) -> tuple[NDArray[np.bool_], NDArray[np.bool_] | None]:
    """Whether the classifier is right on each of the fewer images under PGM-20, PGM-100 and CW, and
    under these and AutoAttack, which is run on the images they leave. The second is None without
    AutoAttack."""
    worst = survival(subject, budget, own)["Worst"][: subject.count(budget.fewer)]
    if budget.autoattack is None:
        return worst, None
    left = np.flatnonzero(worst).tolist()
    strongest = worst.copy()
    strongest[left] = np.array(after_autoattack(subject, budget, left)["right"], dtype=bool)
    return worst, strongest


def after_autoattack(subject: Subject, budget: Budget, left: list[int]) -> dict[str, Any]:
    """The budget's AutoAttack on these of the images, as in `after`."""
    assert budget.autoattack is not None
    return after(subject, budget.autoattack, left)


def after(subject: Subject, attack: AutoAttack, left: list[int]) -> dict[str, Any]:
    """AutoAttack on these of the images: `right` on each, the largest |δ|, how far x + δ leaves
    [0, 1], and what its own checks say of the classifier (`flags`)."""

    def compute() -> dict[str, Any]:
        if not left:
            return {"right": [], "size": 0.0, "outside": 0.0, "flags": []}
        x, y = subject.images[left], subject.labels[left]
        with flags() as said:
            delta = evaluate.perturb(subject.classifier, attack, x, y, seed=subject.seed)
        attacked = (x + delta).clamp(0, 1)
        right = evaluate.trajectory(subject.classifier, None, attacked, y).correct[0]
        return {"right": right.int().tolist(), "flags": said} | bounds(x, delta)

    return subject.measured("autoattack", [attack.key(), left], compute)


def bounds(images: torch.Tensor, delta: torch.Tensor) -> dict[str, float]:
    """The largest |δ| and how far x + δ leaves [0, 1]."""
    attacked = images + delta
    outside = max(0.0, -attacked.min().item(), attacked.max().item() - 1)
    return {"size": delta.abs().max().item(), "outside": outside}


def long_run(subject: Subject, budget: Budget, count: int) -> dict[str, list[float]]:
    """One run of PGM-500: loss (mean over images) and accuracy at each of the steps `LONG`."""
    attack, (x, y) = budget.pgm(LONG[-1]), subject.first(count)

    def compute() -> dict[str, list[float]]:
        f = subject.classifier
        run = evaluate.trajectory(f, attack, x, y, at=LONG, seed=subject.seed)
        loss, accuracy = run.loss.mean(1), run.correct.float().mean(1)
        return {"loss": loss.tolist(), "accuracy": accuracy.tolist()}

    return subject.measured("long-run", [attack.key(), LONG, count], compute)


def from_other_starts(subject: Subject, budget: Budget) -> NDArray[np.bool_]:
    """Whether the classifier is right under PGM-20 from other random starts (RESTARTS − 1, N)."""
    (x, y), pgm = subject.first(budget.fewer), budget.pgm()

    def compute() -> list[list[int]]:
        starts = [subject.seed + 1000 * i for i in range(1, RESTARTS)]
        f = subject.classifier
        runs = [evaluate.correct(f, {"PGM-20": pgm}, x, y, seed=s)["PGM-20"] for s in starts]
        return [right.int().tolist() for right in runs]

    settings = [pgm.key(), RESTARTS, len(x)]
    return np.array(subject.measured("restarts", settings, compute), dtype=bool)


def unbounded(subject: Subject, count: int) -> Right:
    """Whether the classifier is right at ε = 1, under PGM-10 and PGM-100."""
    return subject.correct({"PGM-10": pgm_at(1), "PGM-100": pgm_at(1, 100)}, count)


def loss_surface(
    subject: Subject, index: int, points: int = 25, epsilon: float = EPSILON
) -> dict[str, NDArray]:
    """The loss on a plane through one image: a ε sign ∇ₓℓ + b ε r with a and b in [−1, 1] and r
    random signs, pixels kept in [0, 1]: `a`, `b` and `loss`, each (points²,)."""
    x, y = subject.images[index : index + 1], subject.labels[index : index + 1]
    grid = np.linspace(-1, 1, points)
    b, a = np.meshgrid(grid, grid)

    def compute() -> list[float]:
        f, rng = subject.classifier, [torch.Generator().manual_seed(index)]
        with evaluate.evaluating(f, labels=y) as f:
            sign, signs = input_gradient(f, x, y).sign(), uniform(x, 1.0, rng).sign()
            across, along = (torch.from_numpy(g).to(x).view(-1, 1, 1, 1) for g in (b, a))
            plane = x + epsilon * (along * sign + across * signs)
            losses = [evaluate.losses(f, part, y.expand(len(part))) for part in plane.split(128)]
        return torch.cat(losses).tolist()

    loss = subject.measured("surface", [index, points, epsilon], compute)
    return {"a": a.ravel(), "b": b.ravel(), "loss": np.array(loss)}


def step_losses(subject: Subject, attack: Solver, count: int | None) -> list[dict[str, float]]:
    """Loss over an attack's steps: a row a step with step, loss (mean over images), deviation (over
    images) and accuracy."""

    def compute() -> list[dict[str, float]]:
        run = evaluate.trajectory(
            subject.classifier, attack, *subject.first(count), seed=subject.seed
        )
        return [
            {
                "step": step,
                "loss": loss.mean().item(),
                "deviation": loss.std().item(),
                "accuracy": right.float().mean().item(),
            }
            for step, loss, right in zip(run.steps, run.loss, run.correct, strict=True)
        ]

    return subject.measured("losses", [attack.key(), count], compute)


def highest_losses(
    subject: Subject, attack: Solver, draws: int, count: int | None
) -> list[dict[str, float]]:
    """How high the best of several attempts gets, step by step: a row a step with step, loss (the
    largest of each image's attempts, mean over images) and deviation (over attempts)."""

    def compute() -> list[dict[str, float]]:
        f, (x, y) = subject.classifier, subject.first(count)
        seeds = [100 * subject.seed + i for i in range(draws)]
        runs = [evaluate.trajectory(f, attack, x, y, seed=seed) for seed in seeds]
        losses = torch.stack([run.loss for run in runs])  # (draws, steps, images)
        highest, deviation = losses.amax(0).mean(1), losses.std(0).mean(1)
        return [
            {"step": step, "loss": highest[i].item(), "deviation": deviation[i].item()}
            for i, step in enumerate(runs[0].steps)
            if step > 0
        ]

    return subject.measured("highest-losses", [attack.key(), draws, count], compute)


def roughness(subject: Subject, attack: Solver, count: int | None) -> float:
    """How fast perturbations vary: the squared differences between neighbouring pixels, down and
    across, summed and divided by 4 Σδ², mean over images. About 1 for independent signs, 0 for a
    constant."""

    def compute() -> float:
        x, y = subject.first(count)
        delta = evaluate.perturb(subject.classifier, attack, x, y, seed=subject.seed)
        down, across = delta.diff(dim=2).square(), delta.diff(dim=3).square()
        fast = down.sum((1, 2, 3)) + across.sum((1, 2, 3))
        return (fast / (4 * delta.square().sum((1, 2, 3))).clamp(min=1e-12)).mean().item()

    return subject.measured("roughness", [attack.key(), count], compute)


def transferred(
    surrogate: Subject,
    attack: Solver,
    targets: Mapping[str, nn.Module],
    keys: object,
    count: int | None,
    seed: int,
) -> dict[str, float]:
    """Accuracy of every target on what `attack` made of the surrogate; `keys` tells the targets
    from others."""

    def compute() -> dict[str, float]:
        x, y = surrogate.first(count)
        right = evaluate.transfer(surrogate.classifier, attack, targets, x, y, seed=seed)
        return {name: r.float().mean().item() for name, r in right.items()}

    return surrogate.measured("transfer", [attack.key(), count, keys, seed], compute)
