"""Hand-designed attacks: solvers of the inner problem max over δ of ℓ(f(x + δ; θ), y).

Every attack is one call,

    perturbation = attack(classifier, images, labels)

with images (N, C, H, W) in [0, 1], labels (N,) and a perturbation of the images' shape that keeps
|δ| ≤ ε and 0 ≤ x + δ ≤ 1. The learned attackers of `l2lkit.attackers` answer the same call. The
iterative ones also have `iterates(...)`, which yields δ after every step. An attack uses the
classifier in whatever mode it finds it and leaves its parameters' `.grad` alone.

Attacks that draw random numbers take `generators`, one CPU `torch.Generator` an image, so that an
evaluation does not depend on how the images fall into batches; without it they draw from torch's
global generator.
"""

import copy
import importlib.util
import logging
import math
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l2lkit.errors import InputError

Attack = Callable[..., Tensor]
Generators = Sequence[torch.Generator] | None


WHOLE = ("steps", "inner_steps", "draws", "epochs", "batch_size", "replays")


def check_epsilon(epsilon: float) -> None:
    """Raise InputError unless ε is a finite number in [0, 1]."""
    if not (math.isfinite(epsilon) and 0 <= epsilon <= 1):
        raise InputError(
            f"ε must be between 0 and 1, as a fraction of the pixel range (8/255 is 0.031), "
            f"not {epsilon}."
        )


def check_positive(**values: float) -> None:
    """Raise InputError unless all are finite and above 0, and those that count are whole."""
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise InputError(f"{name} must be a positive number, not {value}.")
        if name in WHOLE and value % 1:
            raise InputError(f"{name} must be a whole number, not {value}.")


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


def project(delta: Tensor, images: Tensor, epsilon: float) -> Tensor:
    """The nearest perturbation in the ε-ball that keeps the image in [0, 1].

    The papers print the projection as sign(δ)∘max(|δ|, ε); clipping, hence min, is what is meant.
    """
    return (images + delta.clamp(-epsilon, epsilon)).clamp(0, 1) - images


def input_gradient(classifier: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """∇ₓ ℓ(f(x), y), each image's own cross-entropy gradient (N, C, H, W), detached. `labels` are
    classes (N,) or probabilities (N, classes)."""
    return gradient_and_logits(classifier, images, labels)[0]


def gradient_and_logits(
    classifier: nn.Module, images: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """`input_gradient` and the logits (N, classes) of the same pass, detached."""
    with torch.enable_grad():
        x = images.detach().requires_grad_()
        logits = classifier(x)
        loss = F.cross_entropy(logits, labels, reduction="sum")
        return torch.autograd.grad(loss, x)[0], logits.detach()


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


def last(perturbations: Iterator[Tensor]) -> Tensor:
    return deque(perturbations, maxlen=1).pop()


def uniform(images: Tensor, epsilon: float, generators: Generators) -> Tensor:
    if generators is None:
        return epsilon * (2 * torch.rand_like(images) - 1)
    noise = torch.stack([torch.rand(images.shape[1:], generator=g) for g in generators])
    return epsilon * (2 * noise.to(images) - 1)


def gaussian(images: Tensor, deviation: float, generators: Generators) -> Tensor:
    if generators is None:
        return deviation * torch.randn_like(images)
    noise = torch.stack([torch.randn(images.shape[1:], generator=g) for g in generators])
    return deviation * noise.to(images)


@dataclass(frozen=True, kw_only=True)
class FGSM:
    """One step of size ε along the gradient's sign (Goodfellow et al. 2014)."""

    epsilon: float = 0.031

    def __post_init__(self) -> None:
        check_epsilon(self.epsilon)

    @property
    def label(self) -> str:
        return "FGSM"

    def iterates(
        self, classifier: nn.Module, images: Tensor, labels: Tensor, generators: Generators = None
    ) -> Iterator[Tensor]:
        check_batch(images, labels)
        gradient = input_gradient(classifier, images, labels)
        yield project(self.epsilon * gradient.sign(), images, self.epsilon)

    def __call__(
        self, classifier: nn.Module, images: Tensor, labels: Tensor, generators: Generators = None
    ) -> Tensor:
        return next(self.iterates(classifier, images, labels, generators))


@dataclass(frozen=True, kw_only=True)
class PGM:
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
        if self.start not in ("uniform", "gaussian", "zero"):
            raise InputError(f"start must be uniform, gaussian or zero, not '{self.start}'.")
        if self.against not in ("labels", "prediction"):
            raise InputError(f"against must be labels or prediction, not '{self.against}'.")

    @property
    def label(self) -> str:
        return f"PGM-{self.steps}"

    def begin(
        self, classifier: nn.Module, images: Tensor, labels: Tensor, generators: Generators = None
    ) -> tuple[Tensor, Tensor]:
        """δ⁰, and the targets of the loss: classes (N,) or probabilities (N, classes)."""
        check_batch(images, labels)
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

    def __call__(
        self, classifier: nn.Module, images: Tensor, labels: Tensor, generators: Generators = None
    ) -> Tensor:
        return last(self.iterates(classifier, images, labels, generators))


@dataclass(frozen=True, kw_only=True)
class CW:
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
    def label(self) -> str:
        return "CW"

    def __call__(
        self, classifier: nn.Module, images: Tensor, labels: Tensor, generators: Generators = None
    ) -> Tensor:
        check_batch(images, labels)
        found = torch.zeros_like(images)
        left = torch.arange(len(images), device=images.device)
        x, y, delta = images, labels, found.clone()
        m, v = torch.zeros_like(x), torch.zeros_like(x)
        for step in range(self.steps + 1):
            with torch.enable_grad():
                d = delta.detach().requires_grad_()
                gap = margin(classifier(x + d), y)
                c = self.c * 10 ** (4 * step // self.steps)
                loss = d.abs().amax((1, 2, 3)) + c * gap.clamp(min=0)
                gradient = torch.autograd.grad(loss.sum(), d)[0]
            # Keep what fools and go on with the rest.
            found[left] = delta
            keep = gap.detach() >= 0
            if step == self.steps or not keep.any():
                break
            left, x, y, delta, gradient = left[keep], x[keep], y[keep], delta[keep], gradient[keep]
            m, v, direction = adam(m[keep], v[keep], gradient, step + 1)
            delta = project(delta - self.lr * direction, x, self.epsilon)
        return found


@dataclass(frozen=True, kw_only=True)
class CWTanh:
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
        check_positive(
            inner_steps=self.inner_steps, c_min=self.c_min, c_max=self.c_max, lr=self.lr
        )

    @property
    def label(self) -> str:
        return "CW (authors' code)"

    def __call__(
        self, classifier: nn.Module, images: Tensor, labels: Tensor, generators: Generators = None
    ) -> Tensor:
        check_batch(images, labels)
        found = torch.zeros_like(images)
        left = torch.arange(len(images), device=images.device)
        c = images.new_full((len(images),), self.c_min)
        tau = torch.ones_like(c)
        start = images.clone()
        with torch.no_grad():
            left = left[margin(classifier(images), labels) >= 0]  # the others need no attack
        while len(left):
            adversarial, success = self._attempt(
                classifier, images[left], labels[left], start[left], c[left], tau[left]
            )
            delta = adversarial - images[left]
            size = delta.abs().amax((1, 2, 3))
            done = success & (size < self.epsilon)
            found[left[done]] = delta[done]
            hit = left[success]
            start[hit] = adversarial[success]
            tau[hit] = 0.9 * torch.minimum(tau[hit], size[success])
            c[left[~success]] *= 10
            left = left[~done & (c[left] <= self.c_max * 1.001)]
        return project(found, images, self.epsilon)

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
                gradient = torch.autograd.grad((c[going] * gap.clamp(0) + total).sum(), w_)[0]
            hit = (gap.detach() < 0) & (total.detach() <= 0)
            best[going[hit]] = adversarial.detach()[hit]
            success[going[hit]] = True
            going, gradient = going[~hit], gradient[~hit]
            if not len(going):
                break
            m[going], v[going], direction = adam(m[going], v[going], gradient, step)
            w[going] -= self.lr * direction
        return best, success


@dataclass(frozen=True, kw_only=True)
class RandomSearch:
    """`draws` uniform perturbations in the ε-ball (10,000 in the ICLR 2020 version); the first
    that fools is kept, else the last one."""

    epsilon: float = 0.031
    draws: int = 10_000

    def __post_init__(self) -> None:
        check_epsilon(self.epsilon)
        check_positive(draws=self.draws)

    @property
    def label(self) -> str:
        return f"Random ({self.draws:,})"

    @torch.no_grad()
    def __call__(
        self, classifier: nn.Module, images: Tensor, labels: Tensor, generators: Generators = None
    ) -> Tensor:
        check_batch(images, labels)
        found = torch.zeros_like(images)
        left = torch.arange(len(images), device=images.device)
        left = left[classifier(images).argmax(1) == labels]
        for _ in range(self.draws):
            if not len(left):
                break
            chosen = None if generators is None else [generators[i] for i in left.tolist()]
            x = images[left]
            delta = project(uniform(x, self.epsilon, chosen), x, self.epsilon)
            found[left] = delta
            left = left[classifier(x + delta).argmax(1) == labels[left]]
        return found


INSTALL = "AutoAttack is not installed: pip install 'l2lkit[autoattack]' adds it."


@dataclass(frozen=True, kw_only=True)
class AutoAttack:
    """AutoAttack (Croce and Hein 2020): attacks without a step size to tune, each on the images
    that the ones before it left. The defaults are its standard version.

    The algorithm is the authors' own, as the library `pyautoattack` packages it (it needs torch
    alone; ART's version has DeepFool in the place of FAB, and torchattacks insists on an old
    requests). `attacks`: any of apgd-ce, apgd-dlr, apgd-t, fab, fab-t and square, in this order of
    running; `targets`: classes tried by the targeted ones (at most all others are); `queries`: of
    Square, which uses no gradients. Images are float32. Numbers are drawn for the whole batch from
    one seed, which the first image's generator gives, so an evaluation runs on batches of 100.

    Raises InputError if the library is missing, and for the DLR losses (apgd-dlr, apgd-t), which
    compare three and four logits, on a classifier with fewer.
    """

    epsilon: float = 0.031
    attacks: tuple[str, ...] = ("apgd-ce", "apgd-t", "fab-t", "square")
    targets: int = 9
    queries: int = 5000
    batch_dependent: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_epsilon(self.epsilon)
        check_positive(targets=self.targets, queries=self.queries)
        known = ("apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square")
        if not self.attacks or set(self.attacks) - set(known):
            raise InputError(f"attacks must be some of {', '.join(known)}, not {self.attacks}.")

    @property
    def label(self) -> str:
        """AutoAttack, and in brackets what differs from its standard version."""
        if replace(self, epsilon=0.031) == AutoAttack():
            return "AutoAttack"
        cost = {"apgd-t": f" ×{self.targets}", "fab-t": f" ×{self.targets}",
                "square": f" ×{self.queries}"}  # fmt: skip
        return f"AutoAttack ({', '.join(a + cost.get(a, '') for a in self.attacks)})"

    def __call__(
        self, classifier: nn.Module, images: Tensor, labels: Tensor, generators: Generators = None
    ) -> Tensor:
        check_batch(images, labels)
        if images.dtype != torch.float32:
            raise InputError(f"AutoAttack needs float32 images, not {images.dtype}.")
        if not autoattack_installed():
            raise InputError(INSTALL)
        import pyautoattack

        with torch.no_grad():
            classes = classifier(images[:1]).shape[1]
        for attack, least in (("apgd-dlr", 3), ("apgd-t", 4)):
            if attack in self.attacks and classes < least:
                raise InputError(
                    f"AutoAttack's {attack} needs {least} classes and there are {classes}: leave "
                    "it out of `attacks`; fab-t does without."
                )
        first = generators[0] if generators else None
        seed = int(torch.randint(2**31, (), generator=first))
        # A copy: FAB writes into the parameters' .grad.
        frozen = copy.deepcopy(classifier).requires_grad_(False)
        trace = sys.gettrace()  # the library takes it away
        cuda = [images.device] if images.is_cuda else []
        with torch.random.fork_rng(devices=cuda):
            adversary = pyautoattack.AutoAttack(
                frozen, attacks=list(self.attacks), device=images.device, eps=self.epsilon,
                seed=seed, version="custom",
            )  # fmt: skip
            adversary.verbose = False
            adversary.apgd.n_restarts = adversary.fab.n_restarts = 1
            adversary.apgd_targeted.n_target_classes = min(self.targets, classes - 1)
            adversary.fab.n_target_classes = min(self.targets, classes - 1)
            adversary.square.n_queries = self.queries
            logging.getLogger("auto-attack").setLevel(logging.ERROR)
            try:
                adversarial, _ = adversary.run_standard_evaluation(
                    images, labels, batch_size=len(images)
                )
            finally:
                sys.settrace(trace)
        return project(adversarial - images, images, self.epsilon)


def autoattack_installed() -> bool:
    """Whether the library that AutoAttack needs is installed."""
    return importlib.util.find_spec("pyautoattack") is not None


def attack_by_name(name: str, epsilon: float = 0.031) -> Attack | None:
    """`clean` (None), `fgsm`, `pgm-T` (step size 0.003, uniform start), `cw`, `cw-tanh`,
    `autoattack` or `random-N`, at the given ε. InputError lists the names for any other."""
    check_epsilon(epsilon)
    kind, _, number = name.partition("-")
    if name == "clean":
        return None
    if name == "fgsm":
        return FGSM(epsilon=epsilon)
    if kind == "pgm" and number.isdecimal():
        return PGM(epsilon=epsilon, steps=int(number))
    if name == "cw":
        return CW(epsilon=epsilon)
    if name == "cw-tanh":
        return CWTanh(epsilon=epsilon)
    if name == "autoattack":
        if not autoattack_installed():
            raise InputError(INSTALL)
        return AutoAttack(epsilon=epsilon)
    if kind == "random" and number.isdecimal():
        return RandomSearch(epsilon=epsilon, draws=int(number))
    raise InputError(
        f"Unknown attack '{name}': choose clean, fgsm, pgm-T (as pgm-20), cw, cw-tanh, "
        "autoattack or random-N."
    )
