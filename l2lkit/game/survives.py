"""The stricter success: any iterate of PGM decides, and not only the last."""

import torch
from torch import Tensor

from l2lkit.game.evaluate import evaluating, in_batches
from l2lkit.game.fixed import PGM
from l2lkit.game.guard import Classifier
from l2lkit.game.solver import gradient_and_logits, is_right


def survives(
    classifier: Classifier,
    attack: PGM,
    images: Tensor,
    labels: Tensor,
    *,
    seed: int = 0,
    batch_size: int | None = None,
) -> Tensor:
    """Whether the classifier is right on each clean image, at the start of PGM and on every
    iterate (N,). Images leave the attack as soon as they are fooled, which changes no other
    image's iterates; who is fooled is told by the passes that give the gradients."""
    first = 0
    with evaluating(classifier, labels=labels) as f:
        right = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        for x, y, rng in in_batches(attack, images, labels, seed, batch_size):
            left = torch.arange(first, first + len(x), device=x.device)
            first += len(x)
            if attack.start != "zero":
                keep = is_right(f(x), y)
                rng = [g for g, kept in zip(rng, keep.tolist(), strict=True) if kept]
                x, y, left = x[keep], y[keep], left[keep]
            if not len(left):
                continue
            delta, targets = attack.begin(f, x, y, rng)
            for _ in range(attack.steps):
                if not len(left):
                    break
                gradient, logits = gradient_and_logits(f, x + delta, targets)
                keep = is_right(logits, y)
                x, y, left = x[keep], y[keep], left[keep]
                targets, delta, gradient = targets[keep], delta[keep], gradient[keep]
                delta = attack.step(delta, gradient, x)
            if len(left):
                right[left[is_right(f(x + delta), y)]] = True
    return right
