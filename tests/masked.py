"""Classifiers of known vice: honest, masked, quantised or noisy, and the exact worst case."""

import numpy as np
import torch
from torch import nn

from l2lkit.game.autoattack import AutoAttack

EPSILON = 0.031
SHAPE = (3, 8, 8)
QUICK = AutoAttack(attacks=("apgd-ce", "apgd-t", "square"), targets=3, queries=50)


def patterns(classes=4):
    """A pattern of signs for each class (classes, pixels)."""
    rng = np.random.default_rng(0)
    return torch.tensor(rng.choice([-1.0, 1.0], (classes, 192)), dtype=torch.float32)


def images(count, classes=4, seed=1):
    """uint8 images of a class's pattern, drawn fainter or stronger than ε, on noise."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    strength = rng.uniform(0.005, 0.06, (count, 1))
    pixels = 0.5 + strength * patterns(classes).numpy()[labels] + rng.normal(0, 0.01, (count, 192))
    x = np.rint(255 * pixels.clip(0, 1)).astype(np.uint8).reshape(count, *SHAPE)
    return torch.from_numpy(x), torch.from_numpy(labels)


class Linear(nn.Module):
    """Logits that compare the image with each pattern: a classifier without anything to hide."""

    def __init__(self, classes=4, scale=1.0, noise=0.0):
        super().__init__()
        self.weight = nn.Parameter(patterns(classes))
        self.scale, self.noise = scale, noise

    def forward(self, x):
        if self.noise:
            x = x + self.noise * torch.randn_like(x)
        return self.scale * (x - 0.5).flatten(1) @ self.weight.T


class Quantised(Linear):
    """Sees 256 shades; with `straight` its gradient pretends otherwise."""

    def __init__(self, straight=False):
        super().__init__()
        self.straight = straight

    def forward(self, x):
        shades = torch.round(255 * x) / 255
        return super().forward(x + (shades - x).detach() if self.straight else shades)


def robust(f, x, y, epsilon):
    """Whether no perturbation in the ball and the range fools the linear classifier, exactly: for
    each other class the best one is known pixel by pixel."""
    w = f.weight.detach().double()
    x = x.flatten(1).double()
    answer = torch.ones(len(x), dtype=torch.bool)
    for t in range(len(w)):
        direction = w[t] - w[y]
        delta = torch.minimum(torch.maximum(epsilon * direction.sign(), -x), 1 - x)
        gap = -(direction * (x + delta - 0.5)).sum(1)
        answer &= (gap > 0) | (y == t)
    return answer
