"""The Carlini-Wagner attack, as the second version's text has it and as the authors run it."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from l2lkit.errors import check_positive
from l2lkit.game.solver import Generators, Solver, check_epsilon, finite, project


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """f_y − max over t ≠ y of f_t for each image (N,): positive where the answer is right."""
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return logits.gather(1, labels[:, None])[:, 0] - others.amax(1)


def adam(m: Tensor, v: Tensor, gradient: Tensor, t: int) -> tuple[Tensor, Tensor, Tensor]:
    """Adam's moments after step t = 1, 2, …, and its direction. torch's own optimiser keeps one
    state a tensor; here images leave the batch when they are done, and take theirs along."""
    m = 0.9 * m + 0.1 * gradient
    v = 0.999 * v + 0.001 * gradient.square()
    return m, v, (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)


@dataclass(frozen=True, kw_only=True)
class CW(Solver):
    """The Carlini-Wagner attack as the second version defines it (its equation 4).

    From δ = 0, minimise ‖δ‖∞ + c · (margin)₊ inside the ε-ball and stop for an image as soon as
    the classifier errs on it, or after `steps` iterations. The text leaves the rule that tunes c
    to an implementation it cites; here c starts at `c` and grows tenfold after each quarter of
    the steps, and the minimiser is Adam with learning rate `lr`, projected. The equation's penalty
    is printed with the sign of a hinge on errors; it is meant, and here is, the hinge on correct
    answers.
    """

    epsilon: float = 0.031
    steps: int = 100
    c: float = 1.0
    lr: float = 0.005

    def __post_init__(self) -> None:
        check_epsilon(self.epsilon)
        check_positive(steps=self.steps, c=self.c, lr=self.lr)

    @property
    def passes(self) -> int:
        return self.steps + 1

    def iterates(
        self, classifier: nn.Module, images: Tensor, labels: Tensor, generators: Generators = None
    ) -> Iterator[Tensor]:
        kept = torch.zeros_like(images)
        left = torch.arange(len(images), device=images.device)
        x, y, delta = images, labels, kept.clone()
        m, v = torch.zeros_like(x), torch.zeros_like(x)
        for step in range(self.steps + 1):
            with torch.enable_grad():
                d = delta.detach().requires_grad_()
                gap = margin(classifier(x + d), y)
                c = self.c * 10 ** (4 * step // self.steps)
                loss = d.abs().amax((1, 2, 3)) + c * gap.clamp(min=0)
                gradient = finite(torch.autograd.grad(loss.sum(), d)[0])
            # Keep what fools and go on with the rest; a gap that is no number fools nobody.
            kept[left] = delta
            keep = ~(gap.detach() < 0)
            if step == self.steps or not keep.any():
                break
            left, x, y, delta, gradient = left[keep], x[keep], y[keep], delta[keep], gradient[keep]
            m, v, direction = adam(m[keep], v[keep], gradient, step + 1)
            delta = project(delta - self.lr * direction, x, self.epsilon)
        yield kept


@dataclass(frozen=True, kw_only=True)
class CWTanh(Solver):
    """The Carlini-Wagner ℓ∞ attack as the authors run it, for a whole batch at once.

    In tanh space, Adam (rate `lr`) minimises c · (margin)₊ + Σ(|δ| − τ)₊ for at most
    `inner_steps` iterations. An image on which that fails goes on with c ten times larger, from
    `c_min` up to `c_max`; one on which it succeeds goes on with τ = 0.9 · min(τ, ‖δ‖∞), from the
    perturbation it has, until ‖δ‖∞ < ε. Only then does the attack count: the perturbation returned
    is zero where it never got so far. Every image has its own c, τ and Adam state, so the outcome
    is that of a loop over the images.
    """

    epsilon: float = 0.031
    inner_steps: int = 50
    c_min: float = 1e-5
    c_max: float = 100.0
    lr: float = 0.005

    def __post_init__(self) -> None:
        check_epsilon(self.epsilon)
        check_positive(inner_steps=self.inner_steps, c_min=self.c_min, c_max=self.c_max, lr=self.lr)

    @property
    def label(self) -> str:
        return "CW (authors' code)"

    @property
    def passes(self) -> int:
        rounds = round(math.log10(self.c_max / self.c_min)) + 1
        return 1 + rounds * self.inner_steps  # more where it succeeds, and tries a smaller ball

    def iterates(
        self, classifier: nn.Module, images: Tensor, labels: Tensor, generators: Generators = None
    ) -> Iterator[Tensor]:
        kept = torch.zeros_like(images)
        left = torch.arange(len(images), device=images.device)
        c = images.new_full((len(images),), self.c_min)
        tau = torch.ones_like(c)
        start = images.clone()
        with torch.no_grad():
            left = left[~(margin(classifier(images), labels) < 0)]  # the others need no attack
        while len(left):
            adversarial, success = self._attempt(
                classifier, images[left], labels[left], start[left], c[left], tau[left]
            )
            delta = adversarial - images[left]
            size = delta.abs().amax((1, 2, 3))
            done = success & (size < self.epsilon)
            kept[left[done]] = delta[done]
            hit = left[success]
            start[hit] = adversarial[success]
            tau[hit] = 0.9 * torch.minimum(tau[hit], size[success])
            c[left[~success]] *= 10
            left = left[~done & (c[left] <= self.c_max * 1.001)]
        yield project(kept, images, self.epsilon)

    def _attempt(
        self, classifier: nn.Module, x: Tensor, y: Tensor, start: Tensor, c: Tensor, tau: Tensor
    ) -> tuple[Tensor, Tensor]:
        """One inner minimisation: the images reached (N, C, H, W), and for each whether it fools
        within τ. Anything less is no success: τ would shrink for ever around an image that only
        fools outside the ball."""
        w = torch.atanh((start * 2 - 1) * 0.999999)
        m, v = torch.zeros_like(w), torch.zeros_like(w)
        best, success = start.clone(), torch.zeros(len(x), dtype=torch.bool, device=x.device)
        going = torch.arange(len(x), device=x.device)
        for step in range(1, self.inner_steps + 1):
            with torch.enable_grad():
                w_ = w[going].detach().requires_grad_()
                adversarial = (torch.tanh(w_) + 1) / 2
                gap = margin(classifier(adversarial), y[going])
                excess = ((adversarial - x[going]).abs() - tau[going, None, None, None]).clamp(0)
                total = excess.sum((1, 2, 3))
                loss = c[going] * gap.clamp(0) + total
                gradient = finite(torch.autograd.grad(loss.sum(), w_)[0])
            hit = (gap.detach() < 0) & (total.detach() <= 0)
            best[going[hit]] = adversarial.detach()[hit]
            success[going[hit]] = True
            going, gradient = going[~hit], gradient[~hit]
            if not len(going):
                break
            m[going], v[going], direction = adam(m[going], v[going], gradient, step)
            w[going] -= self.lr * direction
        return best, success
