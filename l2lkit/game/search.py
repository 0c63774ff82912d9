"""Random search, the attack that asks for no gradient, and every attack by its name."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from l2lkit.errors import InputError, check_positive
from l2lkit.game.autoattack import AutoAttack, require_autoattack
from l2lkit.game.cw import CW, CWTanh
from l2lkit.game.fixed import FGSM, PGM
from l2lkit.game.solver import Generators, Solver, check_epsilon, is_fooled, project, uniform


@dataclass(frozen=True, kw_only=True)
class RandomSearch(Solver):
    """`draws` uniform perturbations in the ε-ball (10,000 in the ICLR 2020 version); the first
    that fools is kept, else the last one."""

    epsilon: float = 0.031
    draws: int = 10_000
    stochastic = True

    def __post_init__(self) -> None:
        check_epsilon(self.epsilon)
        check_positive(draws=self.draws)

    @property
    def label(self) -> str:
        return f"Random ({self.draws:,})"

    @property
    def passes(self) -> int:
        return self.draws + 1

    def iterates(
        self, classifier: nn.Module, images: Tensor, labels: Tensor, generators: Generators = None
    ) -> Iterator[Tensor]:
        yield self._search(classifier, images, labels, generators)

    @torch.no_grad()
    def _search(self, f: nn.Module, images: Tensor, labels: Tensor, rng: Generators) -> Tensor:
        kept = torch.zeros_like(images)
        left = torch.arange(len(images), device=images.device)
        left = left[~is_fooled(f(images), labels)]
        for _ in range(self.draws):
            if not len(left):
                break
            x, own = images[left], None if rng is None else [rng[i] for i in left.tolist()]
            delta = project(uniform(x, self.epsilon, own), x, self.epsilon)
            kept[left] = delta
            left = left[~is_fooled(f(x + delta), labels[left])]
        return kept


def attack_by_name(name: str, epsilon: float = 0.031) -> Solver | None:
    """`clean` (None), `fgsm`, `pgm-T` (step size 0.003, uniform start), `cw`, `cw-tanh`,
    `autoattack` or `random-N`, at the given ε. InputError lists the names for any other."""
    check_epsilon(epsilon)
    if name == "clean":
        return None
    simple: dict[str, type[FGSM | CW | CWTanh | AutoAttack]] = {
        "fgsm": FGSM,
        "cw": CW,
        "cw-tanh": CWTanh,
        "autoattack": AutoAttack,
    }
    if name == "autoattack":
        require_autoattack()
    if name in simple:
        return simple[name](epsilon=epsilon)
    kind, _, number = name.partition("-")
    if kind == "pgm" and number.isdecimal():
        return PGM(epsilon=epsilon, steps=int(number))
    if kind == "random" and number.isdecimal():
        return RandomSearch(epsilon=epsilon, draws=int(number))
    raise InputError(
        f"Unknown attack '{name}': choose clean, fgsm, pgm-T (as pgm-20), cw, cw-tanh, "
        "autoattack or random-N."
    )
