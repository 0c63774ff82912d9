"""One call for a classifier of anybody's: `check` looks at it, attacks it, and gives a verdict on
each item, in one frame."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from torch import Tensor, nn

from l2lkit.checks import evidence, items, measures, near
from l2lkit.checks.attacks import EPSILON, Budget, auto_attack
from l2lkit.checks.items import MASKED, SOUND, STRONG, Quantity
from l2lkit.checks.preflight import Finding, interval, prepare
from l2lkit.checks.subject import Remember, Right, Subject
from l2lkit.errors import InputError
from l2lkit.game import evaluate
from l2lkit.game.autoattack import INSTALL
from l2lkit.game.fixed import FGSM
from l2lkit.game.identity import fingerprint, weights
from l2lkit.game.solver import Solver, check_epsilon

BEFORE, ACCURACY, MISSING = "before any attack", "accuracy", "not measured"
GROUPS = (BEFORE, ACCURACY, MASKED, STRONG, SOUND, MISSING)
COLUMNS = ("group", "item", "verdict", "figure", "value", "allowed", "images", "meaning", "source")
# Passes there and back of all attacks together, to guess the time from: for each image that nothing
# fools, AutoAttack small or standard, and for each of the few on which attacks are run once more.
PASSES, STANDARD, FEW = 1340, 4890, 240
NUMBERS = ("value", "allowed", "images")
NOT_MEASURED = {  # why, by the quantity that decides an item
    "white box behind": "needs a surrogate: another classifier of the same data",
    "Worst behind": "needs a surrogate: another classifier of the same data",
    "own alone": "needs an attacker of its own",
    "trained on ahead": "needs to know the attack of its training",
    "AutoAttack alone": INSTALL,
    "Square alone": INSTALL,
    "cost beyond gain": "needs the same classifier trained without a defence",
    "behind PGM Net": "needs the same classifier trained with PGM",
}


@dataclass
class Examination:
    """Everything that was measured of one classifier: the frame that `check` returns, the numbers
    behind it (quantity, value, images), the subject to measure more on, and the seconds that each
    kind of measurement took."""

    frame: pd.DataFrame
    numbers: pd.DataFrame
    subject: Subject
    budget: Budget
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def failed(self) -> list[str]:
        """The items that fail."""
        return self.frame.loc[self.frame.verdict == "fails", "item"].tolist()


def check(
    classifier: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor, **options: Any
) -> pd.DataFrame:
    """Is this classifier's robustness real? Every item of the checklist with its verdict.

    `classifier`: any callable from images (N, C, H, W) in [0, 1] to logits (N, classes);
    `labels`: int64 (N,). `options` are those of `full_check`, `epsilon` first of all.

    A row an item, in groups: what is looked at before any attack, accuracies with Wilson's interval
    of 95%, signs of masked gradients, strength of the attacks, soundness of the measurement, and
    what was not measured. Columns: group, item, verdict ("holds", "fails", or empty for a number),
    figure (what was seen), value (the number that decides) and what is allowed, images, meaning
    (where it fails, what that means), source. Raises InputError as `preflight.prepare` does.
    """
    return full_check(classifier, images, labels, **options).frame


def full_check(
    classifier: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float = EPSILON,
    attacker: Solver | None = None,
    trained_on: Solver | None = None,
    surrogate: nn.Module | None = None,
    standard: bool = False,
    draws: int = 100,
    seed: int = 0,
    remember: Remember | None = None,
    on_ready: Callable[[pd.DataFrame, float], None] | None = None,
) -> Examination:
    """`check`, with the numbers behind its frame.

    `epsilon`: the radius of the ball in ℓ∞, as a fraction of the pixel range. `attacker`: an attack
    made for this classifier; `trained_on`: the attack of its training. `surrogate`: another
    classifier of the same data, for the black box. `standard`: the standard AutoAttack, thousands
    of passes an image, in the place of a small one. `draws`: of random search. `seed` decides every
    random number. `remember` is as `Subject` takes it. `on_ready` is given the rows of the look
    before any attack, and about how many seconds all else will take where nothing fools it.
    """
    check_epsilon(epsilon)
    if not epsilon:
        raise InputError("ε must be above 0: with 0 there is nothing to attack with.")
    ready = prepare(classifier, images, labels)
    before = _before(ready.findings)
    x, y = ready.images, ready.labels
    subject = Subject(ready.classifier, x, y, seed=seed, remember=remember)
    seconds: dict[str, float] = {}
    subject.measured = _timed(subject.measured, seconds)
    strongest = auto_attack(standard, ready.classes, epsilon)
    budget = Budget(None, None, draws, strongest, epsilon)
    if on_ready:
        all_of_them = (STANDARD if standard else PASSES) * _pace(subject, budget, None)
        longest = all_of_them + FEW * _pace(subject, budget, evidence.CHECKED)
        on_ready(pd.DataFrame(before, columns=COLUMNS), longest)
    numbers = [*evidence.quantities(subject, budget, own=attacker, trained_on=trained_on)]
    numbers += near.quantities(subject, budget)
    right = measures.survival(subject, budget, attacker)
    if surrogate is not None:
        numbers += _black_box(prepare(surrogate, x, y).classifier, subject, budget, right)
    frame = pd.DataFrame(
        [
            *before,
            *_accuracies(subject, budget, right),
            *_verdicts(numbers),
        ],
        columns=COLUMNS,
    )
    order = frame.group.map(GROUPS.index)
    frame = frame.iloc[order.argsort(kind="stable")].reset_index(drop=True)
    return Examination(frame, evidence.as_frame(numbers), subject, budget, seconds)


def _pace(subject: Subject, budget: Budget, count: int | None) -> float:
    """The seconds of one step of PGM on so many images."""
    (x, y), steps = subject.first(count), 3
    begun = time.perf_counter()
    evaluate.perturb(subject.classifier, budget.pgm(steps), x, y)
    return (time.perf_counter() - begun) / steps


def _timed(measured: Remember, seconds: dict[str, float]) -> Remember:
    def remember(what: str, settings: object, compute: Callable[[], Any]) -> Any:
        begun = time.perf_counter()
        result = measured(what, settings, compute)
        seconds[what] = seconds.get(what, 0.0) + time.perf_counter() - begun
        return result

    return remember


def _black_box(
    surrogate: nn.Module, subject: Subject, budget: Budget, right: Right
) -> list[Quantity]:
    """Beside FGSM and PGM-10 made on the surrogate."""
    other = Subject(surrogate, subject.images, subject.labels, remember=subject.measured)
    key = fingerprint("surrogate", weights(surrogate))
    attacks = {"FGSM": FGSM(epsilon=budget.epsilon), "PGM-10": budget.pgm(10)}
    target = {"": subject.classifier}
    transfers = {
        name: measures.transferred(other, attack, target, key, None, subject.seed)[""]
        for name, attack in attacks.items()
    }
    return [*evidence.black_box(right, transfers)]


def _row(group: str, item: str, **others: Any) -> dict[str, Any]:
    empty: dict[str, Any] = dict.fromkeys(COLUMNS, "")
    return empty | dict.fromkeys(NUMBERS) | {"group": group, "item": item} | others


def _before(findings: list[Finding]) -> list[dict]:
    return [
        _row(
            BEFORE,
            finding.item,
            verdict=finding.verdict,
            figure=finding.figure,
            meaning=finding.otherwise if finding.verdict == "fails" else "",
        )
        for finding in findings
    ]


def _accuracies(subject: Subject, budget: Budget, right: Right) -> list[dict]:
    """Under each attack, under the worst of the table, and with AutoAttack."""
    names = {"Clean": "clean", "Random": f"random search ({budget.draws} draws)"}
    counts = {
        names.get(name, name): int(alive.sum()) for name, alive in right.items() if name != "Worst"
    }
    counts["the worst of PGM-20, PGM-100 and CW"] = int(right["Worst"].sum())
    worst, strongest = measures.survivors(subject, budget)
    rows = []
    if strongest is not None and budget.autoattack is not None:
        counts[f"and {budget.autoattack.label}"] = int(strongest.sum())
        left = worst.nonzero()[0].tolist()
        said = measures.after_autoattack(subject, budget, left)["flags"]
        words = "; ".join(said) or "none"
        source = "Croce and Hein 2020"
        rows.append(_row(STRONG, "AutoAttack's own flags", figure=words, source=source))
    n = len(subject.labels)
    for name, count in counts.items():
        low, high = interval(count, n)
        figure = f"{count / n:.1%} ({low:.1%} to {high:.1%})"
        rows.append(_row(ACCURACY, name, figure=figure, value=count / n, images=n))
    return rows


def _verdicts(numbers: list[Quantity]) -> list[dict]:
    """Of the checklist all but PGM-20's own step size: here the worst of all attacks counts, and
    `near` asks whether another step size does better than that."""
    frame = evidence.as_frame(numbers).assign(defence="", seed=0, status="ok")
    values = frame.set_index("quantity")
    rows = []
    every = [i for i in (*items.ITEMS, *near.ITEMS) if i.decides != "better step"]
    for item, (_, verdict) in zip(every, items.verdicts(frame, every).iterrows(), strict=True):
        if item.decides not in values.index:
            why = NOT_MEASURED[item.decides]
            rows.append(_row(MISSING, item.name, figure=why, source=item.source))
            continue
        decides = values.loc[item.decides]
        rows.append(
            _row(
                item.topic,
                item.name,
                verdict=verdict.verdict,
                figure=verdict.figure,
                value=float(decides.value),
                allowed=float(item.allowed(int(decides.images))),
                images=int(decides.images),
                meaning=item.otherwise if verdict.verdict == "fails" else "",
                source=item.source,
            )
        )
    return rows
