"""The robustness checklist of ICLR 2020, Appendix E, measured: every item is a verdict.

Appendix E goes through the five signs of masked gradients of Athalye et al. 2018 (section 3.1) and
the fifteen recommendations of Carlini et al. 2019, and answers each with a sentence or a reference.
Here each item of `items.ITEMS` has one number that decides it, nearly always a count of images, and
a tolerance; AutoAttack and the loss surface around the images are added, which the papers lack.

Everything takes a `Subject`: a classifier, images and labels, and no store.

    subject = Subject(classifier, images, labels)
    numbers = examine(subject, Budget(images=1000, fewer=200))
    verdicts(numbers)                       "holds", "fails", "mixed", item by item
    check(classifier, images, labels)       all of it, and a look before any attack, in one frame
"""

from l2lkit.checks.attacks import Budget
from l2lkit.checks.evidence import examine
from l2lkit.checks.examination import Examination, check, full_check
from l2lkit.checks.items import ITEMS, about, overview, verdicts
from l2lkit.checks.subject import Subject

__all__ = [
    "ITEMS",
    "Budget",
    "Examination",
    "Subject",
    "about",
    "check",
    "examine",
    "full_check",
    "overview",
    "verdicts",
]
