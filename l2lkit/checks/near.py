"""What the papers' lists lack and a classifier of unknown make needs: an attack's success that is
none, answers that change near the image, a query attack beside the gradients, a loss that turns
back before the edge of the ball, and step sizes measured against the worst of all attacks."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from l2lkit.checks import measures
from l2lkit.checks.attacks import STEP_SIZES, Budget, white_box_attacks
from l2lkit.checks.items import CARLINI, MASKED, OURS, STRONG, Item, Quantity, slack, twentieth
from l2lkit.checks.subject import Subject
from l2lkit.game import evaluate
from l2lkit.game.autoattack import AutoAttack, autoattack_installed
from l2lkit.game.solver import uniform
from l2lkit.game.survives import survives

POINTS = 8  # looked at near each image
QUERIES = 300  # of Square
ITEMS = (
    Item(MASKED, "fooled images stay fooled", OURS,
         "{restored:.3g} images that PGM-20 fooled are right when they are shown again",
         "restored", slack,
         "An attack's success is luck here: the image it made is answered right the next time."),
    Item(MASKED, "answers are steady near the image", OURS,
         "{unsteady:.3g} images with another answer at one of 8 random points within ε/4",
         "unsteady", twentieth,
         "The answer changes without any attack: robustness to attacks means little here."),
    Item(MASKED, "a query attack finds little more than gradients", OURS,
         "PGM-100 and CW {gradients:.1%}, and Square {Square:.1%}; Square alone fools "
         "{Square alone:.3g} images", "Square alone", twentieth,
         "An attack that asks for answers alone beats those that ask for gradients: they are "
         "masked."),
    Item(MASKED, "the loss does not turn back inside the ball", OURS,
         "turns back before ε on {turns:.3g} images", "turns", twentieth,
         "The loss falls again on the way of the gradient's signs, as after training on one step: "
         "FGSM's accuracy says nothing."),
    Item(STRONG, "other step sizes find little more", CARLINI,
         "PGM-20 with steps up to {ε:.3g} fools {by step size:.3g} images that PGM-20, PGM-100 and "
         "CW leave", "by step size", twentieth,
         "Another step size fools more than all of these: count it in."),
    Item(STRONG, "no success is lost on the way", OURS,
         "{lost:.3g} images that some step of PGM-20 fooled count as withstanding it",
         "lost", twentieth,
         "The last step decides, and earlier ones fooled more: count an image as soon as it is "
         "fooled."),
)  # fmt: skip  # a list that reads in rows


def quantities(subject: Subject, budget: Budget) -> Iterator[Quantity]:
    """The numbers behind ITEMS but for `turns`, which `evidence` has."""
    count = subject.count(budget.fewer)
    (x, y), f, pgm = subject.first(budget.fewer), subject.classifier, budget.pgm()

    def look() -> dict[str, Any]:
        before = evaluate.trajectory(f, None, x, y).correct[0]
        delta = evaluate.perturb(f, pgm, x, y, seed=subject.seed)
        again = evaluate.trajectory(f, None, (x + delta).clamp(0, 1), y).correct[0]
        ever = survives(f, pgm, x, y, seed=subject.seed)
        steady = torch.ones_like(before)
        for k in range(POINTS):
            rng = [torch.Generator().manual_seed(1009 * k + i) for i in range(len(x))]
            near = (x + uniform(x, budget.epsilon / 4, rng)).clamp(0, 1)
            steady &= evaluate.trajectory(f, None, near, y).correct[0] == before
        return {"again": again.tolist(), "ever": ever.tolist(), "unsteady": int((~steady).sum())}

    seen = subject.measured("near", [pgm.key(), count, POINTS], look)
    table = white_box_attacks(budget)
    gradients = subject.correct({k: table[k] for k in ("PGM-20", "PGM-100", "CW")}, count)
    last = torch.from_numpy(gradients["PGM-20"])
    again, ever = torch.tensor(seen["again"]), torch.tensor(seen["ever"])
    sizes = {str(s): budget.pgm(step_size=s) for s in STEP_SIZES[1:]}
    alive = np.logical_and.reduce([*gradients.values()])
    others = np.logical_and.reduce([*subject.correct(sizes, count).values()])
    yield Quantity("by step size", int((alive & ~others).sum()), count)
    yield Quantity("restored", int((~last & again).sum()), count)
    yield Quantity("lost", int((last & ~ever).sum()), count)
    yield Quantity("unsteady", seen["unsteady"], count)
    if autoattack_installed():
        standing = torch.from_numpy(gradients["PGM-100"] & gradients["CW"])
        left = standing.nonzero().flatten().tolist()
        square = AutoAttack(epsilon=budget.epsilon, attacks=("square",), queries=QUERIES)
        right = measures.after(subject, square, left)["right"]
        yield Quantity("gradients", standing.float().mean().item(), count)
        yield Quantity("Square", sum(right) / count, count)
        yield Quantity("Square alone", len(left) - sum(right), count)
