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
    has, and which AutoAttack is run (None: none)."""

    images: int | None = None
    fewer: int | None = None
    draws: int = 10_000
    autoattack: AutoAttack | None = None


def auto_attack(standard: bool, classes: int) -> AutoAttack | None:
    """AutoAttack's standard version, or a small one with two targets, 100 queries of Square and no
    FAB, which its label says. With fewer than four classes FAB takes the place of the targeted
    APGD. None where the library is not installed."""
    if not autoattack_installed():
        return None
    attack = AutoAttack(epsilon=EPSILON)
    if not standard:
        attack = replace(attack, attacks=("apgd-ce", "apgd-t", "square"), targets=2, queries=100)
    if classes < 4:
        attack = replace(attack, attacks=("apgd-ce", "fab-t", "square"))
    return attack


def white_box_attacks(budget: Budget) -> dict[str, Solver | None]:
    """Clean, FGSM, PGM for every number of steps, CW and random search, at ε = 0.031."""
    pgm = {f"PGM-{t}": PGM(epsilon=EPSILON, steps=t) for t in STEPS}
    last = {"CW": CW(epsilon=EPSILON), "Random": RandomSearch(epsilon=EPSILON, draws=budget.draws)}
    return {"Clean": None, "FGSM": FGSM(epsilon=EPSILON), **pgm, **last}


def pgm_at(epsilon: float, steps: int = 10) -> PGM:
    """PGM with a step size of 0.226 ε (0.007 at 0.031): ten of them go 2.26 ε, so that every
    corner of the ball is in reach of every start in it."""
    return PGM(epsilon=epsilon, steps=steps, step_size=epsilon * 0.007 / 0.031)


def all_attacks(budget: Budget) -> dict[str, Solver]:
    """Every attack of the checklist that is the same for all models, by label: those of the
    white-box table, PGM with other steps, radii and step sizes, and AutoAttack."""
    table = {name: attack for name, attack in white_box_attacks(budget).items() if attack}
    table["PGM-500"] = PGM(epsilon=EPSILON, steps=LONG[-1])
    table |= {f"PGM-20, step {s:g}": PGM(epsilon=EPSILON, step_size=s) for s in STEP_SIZES}
    table |= {f"PGM-10, ε = {e:g}": pgm_at(e) for e in (*EPSILONS[1:], *LARGE)}
    table["PGM-100, ε = 1"] = pgm_at(1, 100)
    if budget.autoattack:
        table[budget.autoattack.label] = budget.autoattack
    return table
