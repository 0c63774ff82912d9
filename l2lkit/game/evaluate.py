"""The evaluation protocol: who still answers right, under which attack.

Classifiers are measured in eval mode and float32, whatever mode they come in, and left as they
were found. Every image has its own random numbers, drawn from (seed, index), so that no result
depends on the batch size. Success is the papers': the attack's final perturbation decides, so
that an image which an earlier one fooled may count as withstood. `survives.survives` has the
stricter definition, where any iterate decides and an image that is fooled needs no more steps.

A classifier is any callable from images to logits, and is looked at through `guard.Guarded`.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l2lkit.errors import InputError
from l2lkit.game import cpu
from l2lkit.game.guard import Classifier, Guarded, check_images, exact_float32, own_settings
from l2lkit.game.solver import Solver, check_batch, is_right

BATCH = 500  # images at a time on a GPU


@contextmanager
def evaluating(
    classifier: Classifier, attack: Solver | None = None, *, labels: Tensor
) -> Iterator[Guarded]:
    """The classifier, guarded, for images of these labels. Inside, it and the attack are in eval
    mode, and no gradients are kept; afterwards each submodule has its own mode again."""
    with own_settings(gradients=False), exact_float32():
        f = Guarded(classifier, labels.clone())
        networks = [n for n in (f, attack) if isinstance(n, nn.Module)]
        modes = [(m, m.training) for n in networks for m in n.modules() if hasattr(m, "training")]
        for network in networks:
            with suppress(NotImplementedError, AttributeError):  # an exported program has no modes
                network.eval()
        try:
            yield f
        finally:
            for module, mode in modes:
                module.training = mode


@dataclass(frozen=True)
class Trajectory:
    """What an attack reached after some of its steps.

    `steps`: the step numbers (S,), 0 for the clean image. `loss`: the classifier's cross-entropy
    (S, N). `correct`: whether it still answers right (S, N). `delta`: mean |δ|/ε of each image
    (S, N), zero where ε = 0.
    """

    steps: tuple[int, ...]
    loss: Tensor
    correct: Tensor
    delta: Tensor


def trajectory(
    classifier: Classifier,
    attack: Solver | None,
    images: Tensor,
    labels: Tensor,
    *,
    at: Sequence[int] | None = None,
    seed: int = 0,
    batch_size: int | None = None,
) -> Trajectory:
    """Run `attack` once and measure the classifier at the steps `at` (all, if None).

    images (N, C, H, W) in [0, 1] and labels (N,) on the classifier's device. Step 0 is the clean
    image (all there is if `attack` is None); an attack without iterates counts as one step.

    No result depends on `batch_size`, with one exception: a learned attacker that scales gradients
    over the batch (`batch_dependent`) is run on batches of 100 whatever `batch_size` says.
    """
    epsilon = attack.epsilon if attack else 0.0
    parts: list[list[tuple[Tensor, Tensor, Tensor]]] = []
    taken: list[int] = []
    with evaluating(classifier, attack, labels=labels) as f:
        for x, y, rng in in_batches(attack, images, labels, seed, batch_size):
            rows, taken = [], []
            for step, delta in _deltas(attack, f, x, y, rng):
                if at is None or step in at:
                    logits = f(x + delta)
                    size = delta.abs().mean((1, 2, 3)) / max(epsilon, 1e-12)
                    loss = F.cross_entropy(logits, y, reduction="none")
                    rows.append((loss, is_right(logits, y), size))
                    taken.append(step)
            if at is not None and set(at) - set(taken):
                raise InputError(f"The attack has no steps {sorted(set(at) - set(taken))}.")
            parts.append(rows)
    stacked = [
        torch.stack([torch.cat([p[s][k] for p in parts]) for s in range(len(taken))])
        for k in range(3)
    ]
    return Trajectory(tuple(taken), *stacked)


def in_batches(
    attack: Solver | None, images: Tensor, labels: Tensor, seed: int, batch_size: int | None
) -> Iterator[tuple[Tensor, Tensor, list[torch.Generator]]]:
    check_batch(images, labels)
    if not len(images):
        raise InputError("There are no images to evaluate on.")
    check_images(images)
    if batch_size is None:
        batch_size = cpu.BATCH if images.device.type == "cpu" else BATCH
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, not {batch_size}.")
    if attack and attack.batch_dependent:
        batch_size = 100
    for first in range(0, len(images), batch_size):
        part = slice(first, first + batch_size)
        x, y = images[part].clone(), labels[part].clone()
        # A generator uses the low 32 bits of its seed only.
        own = [seed * 1_000_003 + first + i for i in range(len(x))]
        yield x, y, [torch.Generator().manual_seed(s) for s in own]


def _deltas(
    attack: Solver | None, f: Guarded, x: Tensor, y: Tensor, rng: list[torch.Generator]
) -> Iterator[tuple[int, Tensor]]:
    yield 0, torch.zeros_like(x)
    if attack is not None:
        yield from enumerate(attack.run(f, x, y, rng), 1)


def correct(
    classifier: Classifier,
    attacks: Mapping[str, Solver | None],
    images: Tensor,
    labels: Tensor,
    **options: Any,
) -> dict[str, Tensor]:
    """Whether the classifier is right on each image (N,) under each attack; None is no attack.

    Attacks whose iterates are prefixes of one another's (`Solver.prefix`: PGM with other numbers of
    steps) are computed as one. `options` are those of `trajectory`.
    """
    families: dict[Any, dict[str, int]] = {}
    for name, attack in attacks.items():
        family, steps = (attack and attack.prefix) or (name, -1)
        families.setdefault(family, {})[name] = steps
    results: dict[str, Tensor] = {}
    for members in families.values():
        longest = max(members, key=lambda name: members[name])
        at = sorted(set(members.values())) if members[longest] > 0 else None
        run = trajectory(classifier, attacks[longest], images, labels, at=at, **options)
        for name, steps in members.items():
            results[name] = run.correct[run.steps.index(steps) if at else -1]
    return {name: results[name] for name in attacks}


def perturb(
    classifier: Classifier,
    attack: Solver,
    images: Tensor,
    labels: Tensor,
    *,
    seed: int = 0,
    batch_size: int | None = None,
) -> Tensor:
    """The attack's perturbations (N, C, H, W) of all images, made as in `trajectory`."""
    with evaluating(classifier, attack, labels=labels) as f:
        parts = in_batches(attack, images, labels, seed, batch_size)
        return torch.cat([attack(f, x, y, rng) for x, y, rng in parts])


def transfer(
    surrogate: Classifier,
    attack: Solver,
    targets: Mapping[str, Classifier],
    images: Tensor,
    labels: Tensor,
    **options: Any,
) -> dict[str, Tensor]:
    """Black box: attack the surrogate once, and show the result to every target (ICLR 2020,
    Appendix A). Whether each target is right on each image (N,). `options` as of `perturb`."""
    adversarial = images + perturb(surrogate, attack, images, labels, **options)
    return {
        name: trajectory(target, None, adversarial.clamp(0, 1), labels, **options).correct[0]
        for name, target in targets.items()
    }


def evaluate(
    classifiers: Mapping[str, Classifier],
    attacks: Mapping[str, Solver | None],
    images: Tensor,
    labels: Tensor,
    **options: Any,
) -> pd.DataFrame:
    """Accuracy of every classifier under every attack: one row each, with columns `defence`,
    `attack`, `accuracy` (in [0, 1]), `images`."""
    rows = [
        {
            "defence": name,
            "attack": attack,
            "accuracy": right.float().mean().item(),
            "images": len(right),
        }
        for name, classifier in classifiers.items()
        for attack, right in correct(classifier, attacks, images, labels, **options).items()
    ]
    return pd.DataFrame(rows)


def losses(classifier: Classifier, images: Tensor, labels: Tensor) -> Tensor:
    """ℓ of each image (N,), which is brought back into [0, 1] first."""
    return F.cross_entropy(classifier(images.clamp(0, 1)), labels, reduction="none")
