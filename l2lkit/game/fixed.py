"""Designed solvers: FGSM, PGM, random search. CW is in `cw`, AutoAttack in `autoattack`.

They are frozen dataclasses: their fields are their settings, and `repr` is the line that makes one.
"""

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from l2lkit.errors import check_choice, check_positive
from l2lkit.game.solver import (
    Generators,
    Solver,
    check_epsilon,
    gaussian,
    input_gradient,
    project,
    uniform,
)


@dataclass(frozen=True, kw_only=True)
class FGSM(Solver):
    """One step of size ε along the gradient's sign (Goodfellow et al. 2014)."""

    epsilon: float = 0.031

    def __post_init__(self) -> None:
        check_epsilon(self.epsilon)

    def iterates(
        self, classifier: nn.Module, images: Tensor, labels: Tensor, generators: Generators = None
    ) -> Iterator[Tensor]:
        gradient = input_gradient(classifier, images, labels)
        yield project(self.epsilon * gradient.sign(), images, self.epsilon)


@dataclass(frozen=True, kw_only=True)
class PGM(Solver):
    """Projected gradient method, equation 2 of every version.

    δ ← Π(δ + η sign ∇ₓℓ(f(x + δ), y)), `steps` (T) times with step size η. The defaults are the
    evaluation of the ICLR 2020 version. `start` is "uniform" in the ε-ball (as that text says),
    "gaussian" with deviation 0.001 (as the authors' code does) or "zero" (equation 2). `against`
    is "labels", or "prediction": then the loss is the distance to the classifier's own answer on
    the clean image, KL(f(x) ‖ f(x + δ)), as TRADES has it (Zhang et al. 2019, Algorithm 1).
    """

    epsilon: float = 0.031
    steps: int = 20
    step_size: float = 0.003
    start: str = "uniform"
    against: str = "labels"

    def __post_init__(self) -> None:
        check_epsilon(self.epsilon)
        check_positive(steps=self.steps, step_size=self.step_size)
        check_choice(
            start=(self.start, ("uniform", "gaussian", "zero")),
            against=(self.against, ("labels", "prediction")),
        )

    @property
    def label(self) -> str:
        return f"PGM-{self.steps}"

    @property
    def stochastic(self) -> bool:  # type: ignore[override]  # a property: it depends on the start
        return self.start != "zero"

    @property
    def passes(self) -> int:
        return self.steps + (self.against == "prediction")

    @property
    def prefix(self) -> tuple[Hashable, int]:
        return replace(self, steps=1), self.steps

    def within(self, epsilon: float) -> "PGM":
        """With a step size in the same proportion to ε."""
        check_epsilon(epsilon)
        step_size = max(epsilon, 1e-4) * self.step_size / self.epsilon
        return replace(self, epsilon=epsilon, step_size=step_size)

    def begin(
        self, classifier: nn.Module, images: Tensor, labels: Tensor, generators: Generators = None
    ) -> tuple[Tensor, Tensor]:
        """δ⁰, and the targets of the loss: classes (N,) or probabilities (N, classes)."""
        delta = torch.zeros_like(images)
        if self.start == "uniform":
            delta = project(uniform(images, self.epsilon, generators), images, self.epsilon)
        elif self.start == "gaussian":
            delta = project(gaussian(images, 0.001, generators), images, self.epsilon)
        if self.against == "labels":
            return delta, labels
        # Cross-entropy against probabilities is the KL up to a constant.
        with torch.no_grad():
            return delta, classifier(images).softmax(1)

    def step(self, delta: Tensor, gradient: Tensor, images: Tensor) -> Tensor:
        """δ after one step along the gradient at x + δ."""
        return project(delta + self.step_size * gradient.sign(), images, self.epsilon)

    def iterates(
        self, classifier: nn.Module, images: Tensor, labels: Tensor, generators: Generators = None
    ) -> Iterator[Tensor]:
        """Yield δ¹, …, δᵀ. The iterates of T steps are the first T of any longer run."""
        delta, targets = self.begin(classifier, images, labels, generators)
        for _ in range(self.steps):
            delta = self.step(delta, input_gradient(classifier, images + delta, targets), images)
            yield delta
