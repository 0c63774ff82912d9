"""What a solver of the inner problem is: max over δ of ℓ(f(x + δ; θ), y), |δ| ≤ ε, x + δ in [0, 1].

Every attack, designed or learned, is a `Solver` and answers one call,

    delta = solver(classifier, images, labels)

with images (N, C, H, W) in [0, 1], labels int64 (N,) and a perturbation of the images' shape. A
solver says itself all that others need to know of it: ε, whether it draws random numbers, whether
it learns, and its `key`. A subclass writes one method, `iterates`. A solver with parameters φ is an
`Attacker`, and one of a recipe that needs the images' shape is made by a `Maker`.

A solver uses the classifier in whatever mode it finds it and leaves its parameters' `.grad` alone.
What a caller may hand to it, and in which settings of torch, is seen to in one place, `Solver.run`.
"""

import copy
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, is_dataclass, replace
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self

from l2lkit.errors import InputError, is_number
from l2lkit.game.guard import (
    Classifier,
    Guarded,
    check_images,
    frozen,
    ordinary,
    own_settings,
    within_ball,
)
from l2lkit.game.identity import identity

Shape = tuple[int, int, int, int]
Generators = Sequence[torch.Generator] | None


class Play(NamedTuple):
    """What a solver puts before the classifier in training: images (M, C, H, W), their labels (M,)
    and perturbations, and, where the solver climbs another value than ℓ, that value ()."""

    images: Tensor
    labels: Tensor
    delta: Tensor
    value: Tensor | None = None


class Solver(ABC):
    """A solver of the inner problem within the ε-ball; see the module's docstring.

    `epsilon` is a fraction of the pixel range. `stochastic` says whether two calls on one image
    may differ, `batch_dependent` whether δ depends on the other images of the batch, `general`
    whether it attacks images it has not been trained on. `own_value` says that it climbs another
    value than ℓ in training, and `replays` how many times in a row it wants to meet a batch.
    """

    epsilon: float
    stochastic: bool = False
    batch_dependent: bool = False
    general: bool = True
    own_value: bool = False
    replays: int = 1

    @abstractmethod
    def iterates(
        self, classifier: nn.Module, images: Tensor, labels: Tensor, generators: Generators = None
    ) -> Iterator[Tensor]:
        """Yield δ (N, C, H, W) after every step. `generators` has a CPU `torch.Generator` for each
        image, so that no result depends on how images fall into batches; without it random numbers
        come from torch's global generator. This is what a subclass writes; others call `run`."""

    def run(
        self, classifier: Classifier, images: Tensor, labels: Tensor, generators: Generators = None
    ) -> Iterator[Tensor]:
        """`iterates`, guarded, for every solver alike.

        `classifier` is any callable from images to logits (N, K), K at least 2; it and the solver
        get copies of the images, and gradients in x whatever mode and settings the caller has. δ is
        differentiable in φ where the caller has gradients on; it keeps to the ε-ball and the image
        range, and what is not a number in it is no change. Raises InputError for images that are
        not float (N, C, H, W) in [0, 1], labels that are not int64 (N,) in 0 to K − 1, generators
        that are not one for each image, answers that are no logits, and a δ outside the ball."""
        check_batch(images, labels)
        check_images(images)
        if generators is not None and len(generators) != len(images):
            count = len(generators)
            raise InputError(f"{count} generators for {len(images)} images: give one for each.")
        differentiable = torch.is_grad_enabled()
        with own_settings():
            solver, x, y = ordinary(self), images.detach().clone(), labels.clone()
            f = Guarded(classifier, y)
            steps = solver.iterates(f, x.clone(), y, generators)
        while True:
            with own_settings(), frozen(f, None if differentiable else solver):
                delta = next(steps, None)
                if delta is None:
                    return
                delta = within_ball(delta, x, self.epsilon, type(self).__name__)
            yield delta if differentiable else delta.detach()

    def __call__(
        self, classifier: Classifier, images: Tensor, labels: Tensor, generators: Generators = None
    ) -> Tensor:
        """The last δ (N, C, H, W) of `run`."""
        return _last(self.run(classifier, images, labels, generators))

    @property
    def label(self) -> str:
        """A short name to read. It tells nothing apart: that is what `key` is for."""
        return type(self).__name__

    @property
    def passes(self) -> int:
        """How many passes through the classifier one call takes, at most."""
        return 1

    @property
    def learns(self) -> bool:
        """Whether it has parameters φ that training moves."""
        return False

    @property
    def prefix(self) -> tuple[Hashable, int] | None:
        """(family, T), where the iterates of all of one family are the first T of its longest."""
        return None

    def key(self) -> dict[str, Any]:
        """What tells this solver from all others, as plain data: its class, its settings, a digest
        of φ, and for a class from outside this package a digest of its source."""
        return identity(self)

    def varied(self, **settings: Any) -> Self:
        """The same solver, with the same φ, with other settings."""
        if is_dataclass(self):
            return replace(self, **settings)
        other = copy.copy(self)
        for name, value in settings.items():
            if not hasattr(self, name):
                raise InputError(f"{type(self).__name__} has no setting '{name}'.")
            setattr(other, name, value)
        return other

    def within(self, epsilon: float) -> Self:
        """The same solver in the ball of another ε."""
        check_epsilon(epsilon)
        return self.varied(epsilon=epsilon)

    def play(self, classifier: nn.Module, images: Tensor, labels: Tensor) -> Play:
        """The solver's part of a training step: by default its δ for every image."""
        return Play(images, labels, _last(self.iterates(classifier, images, labels)))


class Attacker(nn.Module, Solver):
    """A learned attacker g(·; φ). φ are its parameters; the loop steps them up, and δ is
    differentiable in φ. Write `iterates`, and build the network in `__init__`."""

    def __init__(self, epsilon: float):
        super().__init__()
        check_epsilon(epsilon)
        self.epsilon = epsilon

    def forward(
        self, classifier: Classifier, images: Tensor, labels: Tensor, generators: Generators = None
    ) -> Tensor:
        return Solver.__call__(self, classifier, images, labels, generators)

    @property
    def learns(self) -> bool:
        return True


class Scale(Protocol):
    """What a small run shrinks an attacker to: see `recipes.Profile`."""

    @property
    def width(self) -> float: ...
    @property
    def steps(self) -> int: ...
    @property
    def replays(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class Maker(ABC):
    """Makes an Attacker once the shape (N, C, H, W) of a training batch and the number of classes
    are known. A recipe takes any other callable `(shape, classes) -> Attacker` too."""

    epsilon: float = 0.031
    general: ClassVar[bool] = True  # of the attackers it makes
    wants_adam: ClassVar[bool] = False  # at a small scale, whatever the recipe's optimiser is
    draws: ClassVar[int] = 1  # how many times they attack each image of a training batch

    def __post_init__(self) -> None:
        check_epsilon(self.epsilon)

    @abstractmethod
    def __call__(self, shape: Shape, classes: int) -> Attacker: ...

    def scaled(self, scale: Scale) -> Self:
        """The same at a smaller scale."""
        return self


Attack = Solver | Maker | Callable[[Shape, int], Attacker]


def going_on(trained: Attacker, shape: Shape, classes: int) -> Attacker:
    """A copy of a trained attacker, to train further: `partial(going_on, trained)` is an Attack for
    a recipe, and its weights belong to that recipe's key."""
    return copy.deepcopy(trained)


def _last(steps: Iterator[Tensor]) -> Tensor:
    kept = deque(steps, maxlen=1)
    if not kept:
        raise InputError("This solver yields no perturbation: let `iterates` yield at least one.")
    return kept.pop()


# What solvers share -------------------------------------------------------------------------


def project(delta: Tensor, images: Tensor, epsilon: float) -> Tensor:
    """The nearest perturbation in the ε-ball that keeps the image in [0, 1].

    The papers print the projection as sign(δ)∘max(|δ|, ε); clipping, hence min, is what is meant.
    """
    return (images + delta.clamp(-epsilon, epsilon)).clamp(0, 1) - images


def input_gradient(classifier: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """∇ₓ ℓ(f(x), y), each image's own cross-entropy gradient (N, C, H, W), detached. `labels` are
    classes (N,) or probabilities (N, classes). Every value is a number: see `finite`."""
    return gradient_and_logits(classifier, images, labels)[0]


def gradient_and_logits(
    classifier: nn.Module, images: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """`input_gradient` and the logits (N, classes) of the same pass, detached."""
    with torch.enable_grad():
        x = images.detach().requires_grad_()
        logits = classifier(x)
        loss = F.cross_entropy(logits, labels, reduction="sum")
        return finite(torch.autograd.grad(loss, x)[0]), logits.detach()


def finite(gradient: Tensor) -> Tensor:
    """A gradient to step along: 0 where the classifier has none (NaN), and for ±∞ a number whose
    square is still one."""
    return gradient.nan_to_num(nan=0.0, posinf=1e18, neginf=-1e18)


def is_right(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether the largest of the logits (N, K) is the label's (N,). NaN is never right."""
    return (logits.argmax(1) == labels) & ~logits.isnan().any(1)


def is_fooled(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether another logit is the largest (N,). NaN is no success of an attack."""
    return (logits.argmax(1) != labels) & ~logits.isnan().any(1)


def uniform(images: Tensor, epsilon: float, generators: Generators) -> Tensor:
    """Noise of the images' shape, uniform in [−ε, ε]."""
    if generators is None:
        return epsilon * (2 * torch.rand_like(images) - 1)
    shape, dtype = images.shape[1:], torch.float32
    noise = torch.stack([torch.rand(shape, generator=g, dtype=dtype) for g in generators])
    return epsilon * (2 * noise.to(images) - 1)


def gaussian(images: Tensor, deviation: float, generators: Generators) -> Tensor:
    """Noise of the images' shape, normal with this standard deviation."""
    if generators is None:
        return deviation * torch.randn_like(images)
    shape, dtype = images.shape[1:], torch.float32
    noise = torch.stack([torch.randn(shape, generator=g, dtype=dtype) for g in generators])
    return deviation * noise.to(images)


def check_epsilon(epsilon: float) -> None:
    """Raise InputError unless ε is a finite number in [0, 1]."""
    if not (is_number(epsilon) and 0 <= epsilon <= 1):
        raise InputError(
            f"ε must be between 0 and 1, as a fraction of the pixel range (8/255 is 0.031), "
            f"not {epsilon}."
        )


def check_batch(images: Tensor, labels: Tensor) -> None:
    """Raise InputError unless images are float (N, C, H, W) and labels int64 (N,)."""
    if images.ndim != 4 or not images.is_floating_point():
        raise InputError(
            "Images must be a float tensor (N, C, H, W) in [0, 1], not "
            f"{tuple(images.shape)} of {images.dtype}; divide uint8 images by 255."
        )
    if labels.shape != images.shape[:1] or labels.dtype != torch.int64:
        raise InputError(
            f"Labels must be int64 of shape ({len(images)},), one for each image, not "
            f"{tuple(labels.shape)} of {labels.dtype}."
        )
