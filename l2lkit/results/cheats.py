"""Five classifiers that cheat, for notebook 09 and its benchmark: none is robust, and some attack
or other says that it is."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l2lkit.checks.attacks import EPSILON
from l2lkit.checks.examination import ACCURACY, BEFORE, Examination, full_check
from l2lkit.checks.items import MASKED
from l2lkit.game.classifiers import make_classifier
from l2lkit.game.fixed import FGSM
from l2lkit.game.identity import identity, source
from l2lkit.game.recipe import Optimiser, Recipe
from l2lkit.runs.store import Store

HONEST = {"PGM Net": "pgm", "TRADES": "today/trades"}


class Cheat(nn.Module):
    """A classifier with something put around it."""

    def __init__(self, classifier: nn.Module):
        super().__init__()
        self.classifier = classifier


class Quantised(Cheat):
    """Sees 16 shades. Rounding has no slope, so no gradient gets through it."""

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier((15 * x).round() / 15)


class Noisy(Cheat):
    """Adds noise to what it is shown, also at test time: no two answers are alike."""

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(x + 0.05 * torch.randn_like(x))


class Saturated(Cheat):
    """Logits times 10,000: the same answers, and a softmax so sure that its loss is zero."""

    def forward(self, x: Tensor) -> Tensor:
        return 1e4 * self.classifier(x)


class CutOff(Cheat):
    """Smooths the image with numbers that autograd does not see."""

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(F.avg_pool2d(x.detach(), 3, 1, 1))


AROUND = {"quantised": Quantised, "noisy": Noisy, "saturated": Saturated, "cut off": CutOff}
COLLAPSED = "collapsed FGSM"
NAMES = (*HONEST, *AROUND, COLLAPSED)
KNOWS_NOTHING = "clean accuracy above chance"  # the item that then fails
LARGE = 0.1  # the ε at which FGSM training collapses on `digits`; at 0.031 it did not


def small(classes: int, channels: int, size: int) -> nn.Module:
    """LeNet-5, which looks at images of any size as 32×32."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(32), make_classifier("lenet-5", classes, channels))


def collapsed(store: Store) -> Recipe:
    """LeNet-5 against FGSM alone, clean images beside the attacked ones as Goodfellow et al. 2014
    have it, at an ε that is more than it can withstand: it learns to read the label off the
    perturbation (label leaking: Kurakin et al. 2017)."""
    plain = Recipe(
        name="cheats/plain",
        defence="LeNet-5",
        source="ours",
        attack=None,
        classifier=small,
        epochs=store.profile.plain_epochs,
        batch_size=64,
        optimiser=Optimiser(kind="adam", lr=2e-3, weight_decay=0),
    )
    return replace(
        plain,
        name="cheats/fgsm",
        defence="FGSM Net, collapsed",
        attack=FGSM(epsilon=LARGE),
        clean_weight=1.0,
        epochs=4 * store.profile.epochs,
        warm_start=plain,
    )


def base(store: Store, name: str) -> Recipe:
    """The recipe of the model that one of NAMES is, or stands around."""
    return collapsed(store) if name == COLLAPSED else store.recipe(HONEST.get(name, "plain"))


def examined(store: Store, name: str, seed: int) -> Examination:
    """`l2lkit.check` of one of NAMES at the ε of its training, on as many test images as the
    profile's sweeps take; remembered."""
    network, around = store.model(base(store, name), seed).classifier, AROUND.get(name)
    if around:
        network = around(network).eval()
    epsilon = LARGE if name == COLLAPSED else EPSILON
    x, y = store.images(store.profile.curve_images)
    key = [identity(network), source(around) if around else None, len(y)]

    def remember(what: str, settings: object, compute: Callable[[], Any]) -> Any:
        return store.measured(what, [*key, settings], compute)

    draws = store.profile.random_draws
    with store.computing(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # for the noise
        return full_check(network, x, y, epsilon=epsilon, seed=seed, draws=draws, remember=remember)


def verdicts(store: Store, names: Sequence[str] = NAMES, seed: int | None = None) -> pd.DataFrame:
    """The rows of `l2lkit.check` for each of them: its columns, classifier and seed."""
    seed = store.seed if seed is None else seed
    frames = [
        examined(store, name, seed).frame.assign(classifier=name, seed=seed) for name in names
    ]
    return pd.concat(frames, ignore_index=True)


def accuracies(rows: pd.DataFrame) -> pd.DataFrame:
    """Accuracy in % under each attack: a row an attack, a column a classifier."""
    shown = rows[rows.group == ACCURACY]
    wide = shown.pivot(index="item", columns="classifier", values="value").astype(float)
    return (100 * wide.loc[shown["item"].unique(), rows.classifier.unique()]).round(1)


def catches(rows: pd.DataFrame) -> pd.DataFrame:
    """On how many seeds an item fails: a row an item that fails for any, a column a classifier."""
    failed = rows[rows.verdict == "fails"]
    sizes = failed.groupby(["group", "item", "classifier"], sort=False).size()
    return sizes.unstack(fill_value=0).reindex(columns=rows.classifier.unique(), fill_value=0)


def alarms(rows: pd.DataFrame) -> pd.DataFrame:
    """True and false alarms: for each classifier the number of seeds, on how many it is accused,
    since an item fails, and on how many of masked gradients. That it knows nothing of the images,
    as after a very short training, is no accusation."""
    table = []
    for name, part in rows.groupby("classifier", sort=False):
        failed = part[(part.verdict == "fails") & (part["item"] != KNOWS_NOTHING)]
        masked = failed[failed.group.isin((BEFORE, MASKED))]
        seeds = part.seed.nunique()
        table.append(
            {
                "classifier": name,
                "cheats": name not in HONEST,
                "seeds": seeds,
                "accused": failed.seed.nunique(),
                "of masked gradients": masked.seed.nunique(),
                "items that fail, mean": round(len(failed) / seeds, 1),
            }
        )
    return pd.DataFrame(table)
