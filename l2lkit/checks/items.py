"""The items of the checklist, and the verdict that each measured number gives."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from string import Formatter
from typing import NamedTuple

import pandas as pd

# Every number that an item may show or be decided by.
_NAMES = """
    Clean; FGSM; CW; Random; Own attacker; Worst; own alone; only PGM; only FGSM; only CW;
    only random; only own; any; PGM-100 misses; one step ahead; random alone; FGSM alone;
    rise over T; Worst there; AutoAttack; AutoAttack alone; largest δ; outside; beyond; different;
    flat; random climbs; turns; error; no gradient; attacks; not rebuilt; ε zero; ε papers; ε one;
    rise over ε; ε zero is not clean; unfooled; PGM-20 there; best step; worst step; better step;
    loss after 100; loss after 500; long PGM-100; long PGM-500; after 100; one start; all starts;
    restarts gain; trained on; trained on ahead; cost; gain; cost beyond gain; PGM Net;
    behind PGM Net; seconds; PGM Net seconds; transferred FGSM; transferred PGM-10;
    white box behind; best without gradients; Worst behind; PGM-1; PGM-2; PGM-5; PGM-10; PGM-20;
    PGM-50; PGM-100; ε; smallest step; restored; lost; unsteady; gradients; Square; Square alone;
    by step size
"""
QUANTITIES = frozenset(name.strip() for name in _NAMES.split(";"))


class Quantity(NamedTuple):
    """A measured number by its name, one of QUANTITIES, and on how many images."""

    name: str
    value: float
    images: int


def none(images: int) -> float:
    return 0


def slack(images: int) -> float:
    """One image, or one in 200 where that is more: what chance moves."""
    return max(1, images // 200)


def twentieth(images: int) -> float:
    """What a careful evaluation may miss: one image in 20, and as many more as come by chance on so
    few images (the 95th percentile of the binomial distribution: 5 of 48, 33 of 500); at least
    one."""
    most, below = -1, 0.0
    while below < 0.95:
        most += 1
        ways = math.lgamma(images + 1) - math.lgamma(most + 1) - math.lgamma(images - most + 1)
        below += math.exp(ways + most * math.log(0.05) + (images - most) * math.log(0.95))
    return max(1, most)


def rounding(images: int) -> float:
    return 1e-5


@dataclass(frozen=True)
class Item:
    """One item: what it is about, what should hold, who asks for it, the numbers shown (a template
    over the means of quantities), the quantity that decides, how large it may be, given the number
    of images, and what it means if it is larger."""

    topic: str
    name: str
    source: str
    figure: str
    decides: str
    allowed: Callable[[int], float]
    otherwise: str

    def __post_init__(self) -> None:
        shown = {name for _, name, _, _ in Formatter().parse(self.figure) if name}
        unknown = shown | {self.decides}
        unknown -= QUANTITIES
        assert not unknown, f"{self.name}: nothing measures {unknown}"


ATHALYE, CARLINI, OURS = "Athalye et al. 2018", "Carlini et al. 2019", "not in the papers"
MASKED, SOUND, STRONG, PRICE = "masked gradients", "sound measurement", "strong attacks", "price"
ITEMS = (
    Item(MASKED, "iterative attacks beat one step", ATHALYE,
         "FGSM {FGSM:.1%}, PGM-20 {PGM-20:.1%}, PGM-100 {PGM-100:.1%}", "one step ahead", slack,
         "One step fools more images than a hundred: after it the gradient misleads."),
    Item(MASKED, "white box beats black box", ATHALYE,
         "FGSM {FGSM:.1%}, transferred {transferred FGSM:.1%}; "
         "PGM-10 {PGM-10:.1%}, transferred {transferred PGM-10:.1%}", "white box behind", slack,
         "An attack made on another model does better than one made on this: the gradient hides "
         "the way."),
    Item(MASKED, "unbounded attacks reach 100 %", ATHALYE,
         "PGM-10 at ε = 1 leaves {ε one:.1%}; PGM-100 too leaves {unfooled:.3g} images",
         "unfooled", none,
         "Images survive an attack that may paint any picture: the attack does not work here."),
    Item(MASKED, "random search finds nothing new", ATHALYE,
         "random search {Random:.1%}; it alone, and not PGM-100, fools {random alone:.3g} images",
         "random alone", slack,
         "Blind draws fool images that PGM does not: the gradient does not lead to what is near."),
    Item(MASKED, "a larger ε never helps the defender", ATHALYE,
         "{ε papers:.1%} at ε = {ε:.3g}; largest rise {rise over ε:.3g} images",
         "rise over ε", slack,
         "More room makes the attack weaker: it loses its way."),
    Item(MASKED, "not randomised", CARLINI,
         "two passes: {different:.3g} images with other logits", "different", none,
         "One image gets several answers: attack the mean over draws (EOT), and report that."),
    Item(MASKED, "differentiable, with gradients", CARLINI,
         "autograd and differences: error {error:.0e}; {flat:.3g} images with zero gradient",
         "no gradient", slack,
         "Autograd's gradient is zero or not the slope: replace the step that breaks it on the "
         "way back (BPDA)."),
    Item(MASKED, "the loss climbs along its gradient", OURS,
         "random direction as high on {random climbs:.3g} images; turns back inside on {turns:.3g}",
         "random climbs", twentieth,
         "Random directions raise the loss as high as the gradient's: it does not point uphill."),
    Item(SOUND, "precise threat model", CARLINI,
         "largest |δ| {largest δ:.6f} ε; x + δ leaves [0, 1] by {outside:.1g}",
         "beyond", rounding,
         "An attack leaves the ball or [0, 1]: the numbers are about another threat model."),
    Item(SOUND, "attacks are described", CARLINI,
         "{attacks:.0f} attacks; {not rebuilt:.0f} that their printed settings do not rebuild",
         "not rebuilt", none,
         "The settings that are printed for an attack do not make it again."),
    Item(SOUND, "sanity: more steps never help the defender", CARLINI,
         "clean {Clean:.1%}, PGM-1 {PGM-1:.1%}, PGM-10 {PGM-10:.1%}, PGM-100 {PGM-100:.1%}; "
         "largest rise {rise over T:.3g} images", "rise over T", slack,
         "More steps fool fewer images: the attack is unstable here."),
    Item(SOUND, "success against budget starts at clean", CARLINI,
         "{ε zero:.1%} at ε = 0, {ε papers:.1%} at {ε:.3g}, {ε one:.1%} at 1",
         "ε zero is not clean", none,
         "At ε = 0 the accuracy is not the clean one: the classifier does not answer twice "
         "alike."),
    Item(STRONG, "more than FGSM", CARLINI,
         "FGSM {FGSM:.1%}, Worst {Worst:.1%}; FGSM alone fools {FGSM alone:.3g} images",
         "FGSM alone", slack,
         "FGSM fools images that PGM and CW do not: these are not at their best."),
    Item(STRONG, "attacks not seen in training", CARLINI,
         "trained on {trained on:.1%}, Worst {Worst there:.1%}", "trained on ahead", slack,
         "The attack of its training is stronger than the evaluation's: use stronger ones."),
    Item(STRONG, "adaptive attacks", CARLINI,
         "own attacker {Own attacker:.1%}, Worst {Worst:.1%}; it alone fools {own alone:.3g} "
         "images", "own alone", slack,
         "An attack made for this classifier fools what the others do not: count it in."),
    Item(STRONG, "adaptive beats black box and brute force", CARLINI,
         "Worst {Worst:.1%}, best without gradients {best without gradients:.1%}",
         "Worst behind", slack,
         "Attacks without the gradient do as well as those with it: the gradient is of little "
         "use here."),
    Item(STRONG, "diverse attacks", CARLINI,
         "PGM-100 {PGM-100:.1%}, all kinds {any:.1%}; images that one kind alone fools: PGM "
         "{only PGM:.3g}, CW {only CW:.3g}, FGSM {only FGSM:.3g}, random {only random:.3g}",
         "PGM-100 misses", twentieth,
         "Other kinds of attack fool what PGM does not: count the worst of all, and try more "
         "kinds."),
    Item(STRONG, "converged: more steps", CARLINI,
         "PGM-100 {long PGM-100:.1%}, PGM-500 {long PGM-500:.1%}; loss {loss after 100:.3g}, "
         "{loss after 500:.3g}", "after 100", slack,
         "More steps still fool images: the accuracy after 100 is too high."),
    Item(STRONG, "converged: more starts", CARLINI,
         "PGM-20 {one start:.1%}, worst of 5 starts {all starts:.1%}",
         "restarts gain", twentieth,
         "More random starts still fool images: the accuracy from one start is too high."),
    Item(STRONG, "the attack's step size", CARLINI,
         "PGM-20 with {smallest step:.3g} {PGM-20 there:.1%}; with {smallest step:.3g} to {ε:.3g} "
         "{best step:.1%} to {worst step:.1%}", "better step", twentieth,
         "Another step size fools more: the accuracy under this one is too high."),
    Item(STRONG, "AutoAttack finds little more", OURS,
         "Worst {Worst there:.1%}, with AutoAttack {AutoAttack:.1%}",
         "AutoAttack alone", twentieth,
         "AutoAttack fools images that PGM and CW do not: count it in."),
    Item(PRICE, "clean accuracy and its price", CARLINI,
         "clean {Clean:.1%}: costs {cost:.1%}, gains {gain:.1%} under Worst",
         "cost beyond gain", none,
         "It loses more on clean images than it gains under attack."),
    Item(PRICE, "against prior work", CARLINI,
         "Worst {Worst:.1%}, PGM Net {PGM Net:.1%}; trained {seconds:.3g} s, {PGM Net seconds:.3g}"
         " s", "behind PGM Net", none,
         "PGM training withstands more."),
)  # fmt: skip  # a list that reads in rows


def verdicts(frame: pd.DataFrame, items: Iterable[Item] = ITEMS) -> pd.DataFrame:
    """Each item for each defence, from the rows of `evidence`.

    Columns topic, item, source, defence, figure (the means over seeds that the item is about),
    decides (the largest deciding value of any seed, and what is allowed), seeds (how many agree)
    and verdict: "holds" if the deciding quantity is within its tolerance for every seed, "fails" if
    for none, else "mixed"; empty where it was not measured. Models that collapsed or diverged are
    left out.
    """
    rows = []
    for item in items:
        for defence, group in frame.groupby("defence", sort=False):
            fine = group[group.status == "ok"]
            values = fine.pivot(index="seed", columns="quantity", values="value")
            decides = fine[fine.quantity == item.decides]
            row = {
                "topic": item.topic,
                "item": item.name,
                "source": item.source,
                "defence": defence,
                "figure": "",
                "decides": "",
                "seeds": "",
                "verdict": "",
            }
            if len(decides):
                allowed = decides.images.map(item.allowed)
                agree = int((decides.value <= allowed).sum())
                row["figure"] = item.figure.format_map(values.loc[decides.seed].mean())
                row["decides"] = f"{decides.value.max():.3g} ({allowed.iloc[0]:.3g} allowed)"
                row["seeds"] = f"{agree} of {len(decides)}"
                row["verdict"] = {len(decides): "holds", 0: "fails"}.get(agree, "mixed")
            rows.append(row)
    return pd.DataFrame(rows)


def overview(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of `verdicts` with an item a row and a defence a column."""
    keys = ["topic", "item", "source"]
    wide = table.pivot(index=keys, columns="defence", values="verdict")
    order = pd.MultiIndex.from_frame(table[keys].drop_duplicates())
    return wide.reindex(index=order, columns=table.defence.unique())


def about(table: pd.DataFrame, topic: str) -> pd.DataFrame:
    """The rows of `verdicts` on one topic that were measured, to read."""
    rows = table[(table.topic == topic) & (table.verdict != "")]
    return rows.set_index(["item", "defence"])[["figure", "decides", "seeds", "verdict"]]
