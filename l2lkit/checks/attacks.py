"""What an examination attacks with, and how much it may cost."""

from dataclasses import dataclass, replace

from l2lkit.game.autoattack import AutoAttack, autoattack_installed
from l2lkit.game.cw import CW
from l2lkit.game.fixed import FGSM, PGM
from l2lkit.game.search import RandomSearch
from l2lkit.game.solver import Solver

EPSILON = 0.031  # ICLR 2020, section 3
STEPS = (1, 2, 5, 10, 20, 50, 100)
EPSILONS = (0.0, 0.008, 0.016, 0.031, 0.047, 0.062, 0.125)
LARGE = (0.25, 0.5, 0.75, 1.0)  # ε, beyond those (ICLR 2020, Figure 9)
STEP_SIZES = (0.003, 0.007, 0.015, 0.031)  # of PGM-20; the papers' is the first
LONG = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500)  # steps at which one run of PGM-500 is looked at
WORST = ("PGM-20", "PGM-100", "CW")


@dataclass(frozen=True)
class Budget:
    """How many images the tables and the sweeps take (None: all), how many draws random search
    has, which AutoAttack is run (None: none), and the ε of the threat model, which radii and step
    sizes follow in proportion."""

    images: int | None = None
    fewer: int | None = None
    draws: int = 10_000
    autoattack: AutoAttack | None = None
    epsilon: float = EPSILON

    def pgm(self, steps: int = 20, step_size: float = 0.003) -> PGM:
        """PGM with this step size at 0.031."""
        return PGM(epsilon=self.epsilon, steps=steps, step_size=self.scaled(step_size))

    def scaled(self, length: float) -> float:
        """What `length` at 0.031 is at this ε, at most 1."""
        return self.epsilon if length == EPSILON else min(length * (self.epsilon / EPSILON), 1.0)

    @property
    def radii(self) -> tuple[float, ...]:
        """ε from 0 to four times that of the threat model."""
        return tuple(self.scaled(e) for e in EPSILONS)

    @property
    def large(self) -> tuple[float, ...]:
        """ε beyond these, up to 1."""
        return tuple(e for e in LARGE if e > self.radii[-1])

    @property
    def step_sizes(self) -> tuple[float, ...]:
        return tuple(self.scaled(s) for s in STEP_SIZES)


def auto_attack(standard: bool, classes: int, epsilon: float = EPSILON) -> AutoAttack | None:
    """AutoAttack's standard version, or a small one with two targets, 100 queries of Square and no
    FAB, which its label says. With fewer than four classes FAB takes the place of the targeted
    APGD. None where the library is not installed."""
    if not autoattack_installed():
        return None
    attack = AutoAttack(epsilon=epsilon)
    if not standard:
        attack = replace(attack, attacks=("apgd-ce", "apgd-t", "square"), targets=2, queries=100)
    if classes < 4:
        attack = replace(attack, attacks=("apgd-ce", "fab-t", "square"))
    return attack


def white_box_attacks(budget: Budget) -> dict[str, Solver | None]:
    """Clean, FGSM, PGM for every number of steps, CW and random search, at the budget's ε."""
    e = budget.epsilon
    pgm = {f"PGM-{t}": budget.pgm(t) for t in STEPS}
    last = {"CW": CW(epsilon=e), "Random": RandomSearch(epsilon=e, draws=budget.draws)}
    return {"Clean": None, "FGSM": FGSM(epsilon=e), **pgm, **last}


def pgm_at(epsilon: float, steps: int = 10) -> PGM:
    """PGM with a step size of 0.226 ε (0.007 at 0.031): ten of them go 2.26 ε, so that every
    corner of the ball is in reach of every start in it."""
    return PGM(epsilon=epsilon, steps=steps, step_size=epsilon * 0.007 / 0.031)


def all_attacks(budget: Budget) -> dict[str, Solver]:
    """Every attack of the checklist that is the same for all models, by label: those of the
    white-box table, PGM with other steps, radii and step sizes, and AutoAttack."""
    table = {name: attack for name, attack in white_box_attacks(budget).items() if attack}
    table["PGM-500"] = budget.pgm(LONG[-1])
    table |= {f"PGM-20, step {budget.scaled(s):g}": budget.pgm(step_size=s) for s in STEP_SIZES}
    table |= {f"PGM-10, ε = {e:g}": pgm_at(e) for e in (*budget.radii[1:], *budget.large)}
    table["PGM-100, ε = 1"] = pgm_at(1, 100)
    if budget.autoattack:
        table[budget.autoattack.label] = budget.autoattack
    return table
