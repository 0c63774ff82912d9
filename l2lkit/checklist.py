"""The robustness checklist of ICLR 2020, Appendix E, measured: every item is a verdict.

Appendix E goes through the five signs of masked gradients of Athalye et al. 2018 (section 3.1) and
the fifteen recommendations of Carlini et al. 2019, and answers each with a sentence or a reference.
Here each item of `ITEMS` has one number that decides it, nearly always a count of images, and a
tolerance; AutoAttack and the loss surface around the images are added, which the papers lack.

    evidence(store) -> numbers      verdicts(numbers) -> "holds", "fails", "mixed" per defence

Everything is kept by the store and shares what the white-box table has measured.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l2lkit import evaluation, experiments
from l2lkit.attacks import (
    CW,
    FGSM,
    PGM,
    Attack,
    AutoAttack,
    RandomSearch,
    autoattack_installed,
    input_gradient,
    uniform,
)
from l2lkit.experiments import EPSILON
from l2lkit.recipes import DEFENCES, SLIM, TODAY, Free, Learned
from l2lkit.store import Model, Store

LARGE = (0.25, 0.5, 0.75, 1.0)  # ε, beyond those of experiments.EPSILONS (ICLR 2020, Figure 9)
STEP_SIZES = (0.003, 0.007, 0.015, 0.031)  # of PGM-20; the papers' is the first
LONG = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500)  # steps at which one run of PGM-500 is looked at
RESTARTS = 5
FEW = 8  # images on which every attack's ball is checked, and every classifier's derivative


def auto_attack(store: Store) -> AutoAttack:
    """AutoAttack as the store's profile can afford it: the standard version for `paper`, else
    two targets, 100 queries of Square and no FAB; its label says so. With fewer than four
    classes FAB takes the place of the targeted APGD."""
    attack = AutoAttack(epsilon=EPSILON)
    if store.profile.name != "paper":
        attack = replace(attack, attacks=("apgd-ce", "apgd-t", "square"), targets=2, queries=100)
    if store.data.num_classes < 4:
        attack = replace(attack, attacks=("apgd-ce", "fab-t", "square"))
    return attack


# Measuring -------------------------------------------------------------------------------------


def _pgm(epsilon: float, steps: int = 10) -> PGM:
    """With the step of experiments.against_epsilon, 0.226 ε: ten of them go 2.26 ε, so that every
    corner of the ball is in reach of every start in it."""
    return PGM(epsilon=epsilon, steps=steps, step_size=epsilon * 0.007 / 0.031)


def attacks(store: Store) -> dict[str, Attack]:
    """Every attack of the checklist that is the same for all models, by label, with its settings:
    those of the white-box table, PGM with other steps, radii and step sizes, and AutoAttack."""
    found = {k: a for k, a in experiments.white_box_attacks(store).items() if a is not None}
    found["PGM-500"] = PGM(epsilon=EPSILON, steps=LONG[-1])
    found |= {f"PGM-20, step {s:g}": PGM(epsilon=EPSILON, step_size=s) for s in STEP_SIZES}
    found |= {f"PGM-10, ε = {e:g}": _pgm(e) for e in (*experiments.EPSILONS[1:], *LARGE)}
    found["PGM-100, ε = 1"] = _pgm(1, 100)
    if autoattack_installed():
        found[auto_attack(store).label] = auto_attack(store)
    return found


def described(store: Store) -> pd.DataFrame:
    """`attacks` as a table: columns attack and settings, the line that makes the attack."""
    return pd.DataFrame([{"attack": k, "settings": repr(a)} for k, a in attacks(store).items()])


def _rebuilt(attack: Attack) -> bool:
    kinds = {kind.__name__: kind for kind in (FGSM, PGM, CW, RandomSearch, AutoAttack)}
    return eval(repr(attack), kinds) == attack


def _images(store: Store, share: int = 1) -> tuple[Tensor, Tensor]:
    x, y = store.images(store.profile.curve_images)
    return store.images(max(1, len(x) // share))


def survivors(store: Store, name: str, seed: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Whether the model is right on each of the first images under PGM-20, PGM-100 and CW, and
    under these and AutoAttack, which is run on the images they leave. The second is None where
    AutoAttack is not installed."""
    count = len(_images(store)[0])
    worst = experiments.survival(store, name, seed)["Worst"][:count]
    if not autoattack_installed():
        return worst, None
    left = np.flatnonzero(worst).tolist()
    found = _auto_attack(store, store.model(name, seed), left)
    strongest = worst.copy()
    strongest[left] = np.array(found["right"], dtype=bool)
    return worst, strongest


def _auto_attack(store: Store, model: Model, left: list[int]) -> dict[str, Any]:
    attack = auto_attack(store)

    def compute() -> dict[str, Any]:
        if not left:
            return {"right": [], "size": 0.0, "outside": 0.0}
        x, y = (t[left] for t in _images(store))
        delta = evaluation.perturb(model.classifier, attack, x, y, seed=model.seed)
        attacked = (x + delta).clamp(0, 1)
        right = evaluation.trajectory(model.classifier, None, attacked, y).correct[0]
        return {"right": right.int().tolist()} | _bounds(x, delta)

    return store.measured("autoattack", [model.id, repr(attack), left], compute)


def _bounds(images: Tensor, delta: Tensor) -> dict[str, float]:
    """The largest |δ| and how far x + δ leaves [0, 1]."""
    attacked = images + delta
    outside = max(0.0, -attacked.min().item(), attacked.max().item() - 1)
    return {"size": delta.abs().max().item(), "outside": outside}


def long_run(
    store: Store, names: Sequence[str] = DEFENCES, seeds: Sequence[int] | None = None
) -> pd.DataFrame:
    """One run of PGM-500 on a quarter of the first images: columns defence, seed, status, steps,
    loss (mean over images), accuracy, images; a row for each of the steps `LONG`."""
    attack, (x, y) = PGM(epsilon=EPSILON, steps=LONG[-1]), _images(store, 4)
    frames = []
    for name in names:
        for seed in seeds or store.seeds:
            model = store.model(name, seed)

            def compute(model: Model = model) -> dict[str, list[float]]:
                f = model.classifier
                run = evaluation.trajectory(f, attack, x, y, at=LONG, seed=model.seed)
                loss, accuracy = run.loss.mean(1), run.correct.float().mean(1)
                return {"loss": loss.tolist(), "accuracy": accuracy.tolist()}

            found = store.measured("long-run", [model.id, repr(attack), LONG, len(x)], compute)
            about = {"defence": model.defence, "seed": seed, "status": model.status}
            frames.append(pd.DataFrame({**about, "steps": LONG, **found, "images": len(x)}))
    return pd.concat(frames, ignore_index=True)


def large_epsilon(
    store: Store, names: Sequence[str] = DEFENCES, seeds: Sequence[int] | None = None
) -> pd.DataFrame:
    """Accuracy under PGM-10 for ε from 0 to 1: columns defence, seed, status, epsilon, accuracy.

    ICLR 2020, Figure 9. Its step size is illegible in the text at hand; here it is 0.226 ε, that of
    `experiments.against_epsilon`. Ten steps of ε/10 would reach the edge from the middle of the
    ball, but from a random start no further than half-way across: at ε = 0.062 such a PGM-10 left
    a PGM Net of the quick profile 64 % of the images, and this one 33 %. Both reach 0.
    """
    ranges = (experiments.EPSILONS, LARGE)
    frame = pd.concat([experiments.against_epsilon(store, names, seeds, e) for e in ranges])
    return frame[frame.attack == "PGM-10"].reset_index(drop=True)


def _restarts(store: Store, model: Model) -> np.ndarray:
    """Whether the model is right under PGM-20 from other random starts (RESTARTS − 1, N)."""
    x, y = _images(store)
    pgm = {"PGM-20": PGM(epsilon=EPSILON)}

    def compute() -> list[list[int]]:
        starts = [model.seed + 1000 * i for i in range(1, RESTARTS)]
        runs = [evaluation.correct(model.classifier, pgm, x, y, seed=s)["PGM-20"] for s in starts]
        return [right.int().tolist() for right in runs]

    settings = [model.id, repr(pgm), RESTARTS, len(x)]
    return np.array(store.measured("restarts", settings, compute), dtype=bool)


def gradient_errors(
    classifier: nn.Module, images: Tensor, *, directions: int = 8, seed: int = 0
) -> Tensor:
    """Autograd against central differences (N,): the relative error, over random directions of
    signs, of the slope of a random combination of the logits, in float64.

    About 1e-8 for a differentiable classifier, 1 where either finds no slope or the other way
    round, as behind a quantised input. The combination of logits, unlike the loss, has a slope
    where the classifier is sure of itself.
    """
    f = copy.deepcopy(classifier).double().eval()
    rng = torch.Generator().manual_seed(seed)
    x = images.double()
    with torch.no_grad():
        weights = torch.randn(f(x[:1]).shape[1], generator=rng, dtype=x.dtype).to(x.device)
    with torch.enable_grad():
        at = x.detach().requires_grad_()
        gradient = torch.autograd.grad((f(at) @ weights).sum(), at)[0]
    h = 1e-7  # small enough to meet next to no kink of a ReLU
    slopes, differences = [], []
    with torch.no_grad():
        for _ in range(directions):
            u = torch.randint(2, x.shape, generator=rng).to(x) * 2 - 1
            slopes.append((gradient * u).sum((1, 2, 3)))
            differences.append((f(x + h * u) - f(x - h * u)) @ weights / (2 * h))
    a, b = torch.stack(slopes), torch.stack(differences)
    error = (a - b).norm(dim=0) / torch.maximum(a.norm(dim=0), b.norm(dim=0))
    return error.nan_to_num(1.0, 1.0)  # no slope at all is no gradient to follow


def _probe(store: Store, model: Model) -> dict[str, Any]:
    """Cheap looks at one classifier: is it deterministic, has it gradients, do all attacks stay
    in the ball, and does the loss climb where its gradient points."""
    x, y = _images(store)
    table: dict[str, Any] = experiments.white_box_attacks(store)
    chosen = {k: table[k] for k in ("FGSM", "PGM-100", "CW", "Random")}
    if isinstance(model.recipe.attack, Learned):
        chosen["Own attacker"] = model.attack

    def compute() -> dict[str, Any]:
        f = model.classifier
        rng = [torch.Generator().manual_seed(i) for i in range(len(x))]
        with evaluation.evaluating(f), torch.no_grad():
            parts = [slice(i, i + 100) for i in range(0, len(x), 100)]
            seen = torch.cat([_look(f, x[part], y[part], rng[part]) for part in parts], 1)
        different, flat, climbs, turns = seen.sum(1).tolist()
        near = (x[:FEW] + uniform(x[:FEW], EPSILON, rng[:FEW])).clamp(0.001, 0.999)
        errors = gradient_errors(f, near, seed=model.seed)
        bounds = [
            _bounds(x[:FEW], evaluation.perturb(f, a, x[:FEW], y[:FEW], seed=model.seed))
            for a in chosen.values()
        ]
        return {
            "different": different, "flat": flat, "random climbs": climbs, "turns": turns,
            "error": errors.max().item(), "wrong": int((errors > 0.01).sum()),
            "size": max(b["size"] for b in bounds), "outside": max(b["outside"] for b in bounds),
        }  # fmt: skip

    settings = [model.id, {k: store.describe(a) for k, a in chosen.items()}, len(x), FEW]
    return store.measured("probe", settings, compute)


def _look(f: nn.Module, x: Tensor, y: Tensor, rng: Sequence[torch.Generator]) -> Tensor:
    """Of each image (4, N): do its logits differ between two passes, is the loss's gradient zero,
    does the loss climb no higher towards x + ε sign ∇ₓℓ than towards x + ε r, with r random signs,
    and does it on the first way turn back before the end."""
    gradient = input_gradient(f, x, y)
    ways = []
    for direction in (gradient.sign(), uniform(x, 1.0, rng).sign()):
        steps = [EPSILON * i / 8 for i in range(1, 9)]
        ways.append(torch.stack([_loss(f, x + s * direction, y) for s in steps]))
    along, across = ways
    return torch.stack([
        (f(x) != f(x)).any(1), ~gradient.flatten(1).any(1),
        along.amax(0) <= across.amax(0), along[-1] < 0.99 * along.amax(0),
    ])  # fmt: skip


def _loss(classifier: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(classifier(images.clamp(0, 1)), labels, reduction="none")


def loss_surface(
    store: Store,
    names: Sequence[str] = DEFENCES,
    seed: int | None = None,
    index: int | None = None,
    points: int = 25,
) -> pd.DataFrame:
    """The loss on a plane through one test image: a ε sign ∇ₓℓ + b ε r with a and b in [−1, 1] and
    r random signs, pixels kept in [0, 1]. Columns defence, seed, status, a, b, loss; `points`
    values of a and of b. The image is `experiments.example`'s without an `index`."""
    seed = store.seed if seed is None else seed
    index = experiments.example(store) if index is None else index
    x, y = (t[index : index + 1] for t in store.images(None))
    grid = np.linspace(-1, 1, points)
    b, a = np.meshgrid(grid, grid)
    frames = []
    for name in names:
        model = store.model(name, seed)

        def compute(model: Model = model) -> list[float]:
            f, rng = model.classifier, [torch.Generator().manual_seed(index)]
            with evaluation.evaluating(f), torch.no_grad():
                sign, signs = input_gradient(f, x, y).sign(), uniform(x, 1.0, rng).sign()
                across, along = (torch.from_numpy(g).to(x).view(-1, 1, 1, 1) for g in (b, a))
                plane = x + EPSILON * (along * sign + across * signs)
                losses = [_loss(f, part, y.expand(len(part))) for part in plane.split(128)]
            return torch.cat(losses).tolist()

        loss = store.measured("surface", [model.id, index, points], compute)
        about = {"defence": model.defence, "seed": seed, "status": model.status}
        frames.append(pd.DataFrame({"a": a.ravel(), "b": b.ravel(), "loss": loss, **about}))
    return pd.concat(frames, ignore_index=True)


# Evidence --------------------------------------------------------------------------------------

Quantity = tuple[str, float, int]  # its name, its value, and on how many images


def measure(store: Store, name: str, seed: int) -> None:
    """All that the checklist wants to know of one model, so that it is on disk."""
    list(_quantities(store, name, seed))


def evidence(
    store: Store, names: Sequence[str] = DEFENCES, seeds: Sequence[int] | None = None
) -> pd.DataFrame:
    """The numbers behind the verdicts: columns defence, seed, status, quantity, value, images.

    Shares are in [0, 1], counts in images. A quantity that a model does not have (an attacker of
    its own, a black-box result of another seed than the first, AutoAttack where it is not
    installed) has no row. Comparisons with Plain Net and PGM Net are with the same seed's.
    """
    rows = []
    transfers = experiments.black_box(store)
    for name in names:
        for seed in seeds or store.seeds:
            model = store.model(name, seed)
            found = [*_quantities(store, name, seed), *_comparisons(store, name, seed)]
            mine = transfers[(transfers.defence == model.defence) & (transfers.seed == seed)]
            if len(mine):
                found += _black_box(experiments.survival(store, name, seed), mine)
            about = {"defence": model.defence, "seed": seed, "status": model.status}
            rows += [
                about | {"quantity": q, "value": float(v), "images": n} for q, v, n in found
            ]
    return pd.DataFrame(rows)


def _quantities(store: Store, name: str, seed: int) -> Iterator[Quantity]:
    model = store.model(name, seed)
    right = experiments.survival(store, name, seed)
    yield from _from_table(right)
    probe = _probe(store, model)
    count, size, outside = len(_images(store)[0]), probe["size"], probe["outside"]
    few = min(FEW, count)

    worst, strongest = survivors(store, name, seed)
    yield "Worst there", worst.mean(), count
    if strongest is not None:
        yield "AutoAttack", strongest.mean(), count
        yield "AutoAttack alone", (worst & ~strongest).sum(), count
        bounds = _auto_attack(store, model, np.flatnonzero(worst).tolist())
        size, outside = max(size, bounds["size"]), max(outside, bounds["outside"])
    yield "largest δ", size / EPSILON, few
    yield "outside", outside, few
    yield "beyond", max(size / EPSILON - 1, outside), few
    for q in ("different", "flat", "random climbs", "turns"):
        yield q, probe[q], count
    yield "error", probe["error"], few
    yield "no gradient", max(probe["wrong"], probe["flat"]), count
    everything = attacks(store).values()
    yield "attacks", len(everything), count
    yield "not rebuilt", sum(not _rebuilt(a) for a in everything), count

    yield from _from_sweeps(store, name, model, right)
    run = long_run(store, [name], [seed]).set_index("steps")
    n = int(run.images[500])
    for t in (100, 500):
        yield f"loss after {t}", run.loss[t], n
        yield f"long PGM-{t}", run.accuracy[t], n
    yield "after 100", round(n * (run.accuracy[100] - run.accuracy[500])), n
    single = right["PGM-20"][:count]
    best = single & _restarts(store, model).all(0)
    yield "one start", single.mean(), count
    yield "all starts", best.mean(), count
    yield "restarts gain", (single & ~best).sum(), count

    if model.attack is not None and not isinstance(model.recipe.attack, Free):
        if isinstance(model.recipe.attack, Learned):
            trained = right["Own attacker"][:count]
        else:
            trained = store.correct(model, {"Trained on": model.attack}, count)["Trained on"]
        yield "trained on", trained.mean(), count
        yield "trained on ahead", worst.sum() - trained.sum(), count


def _from_table(right: dict[str, np.ndarray]) -> Iterator[Quantity]:
    n = len(right["Clean"])
    for attack, found in right.items():
        yield attack, found.mean(), n
    steps = [right[f"PGM-{t}"].sum() for t in experiments.STEPS]
    kinds = {"PGM": right["PGM-100"] & right["PGM-20"], "FGSM": right["FGSM"],
             "CW": right["CW"], "random": right["Random"]}  # fmt: skip
    if "Own attacker" in right:
        kinds["own"] = right["Own attacker"]
        yield "own alone", (right["Worst"] & ~kinds["own"]).sum(), n
    for kind, found in kinds.items():
        others = np.logical_and.reduce([r for k, r in kinds.items() if k != kind])
        yield f"only {kind}", (others & ~found).sum(), n
    every = np.logical_and.reduce(list(kinds.values()))
    yield "any", every.mean(), n
    yield "PGM-100 misses", (right["PGM-100"] & ~every).sum(), n
    yield "one step ahead", right["PGM-100"].sum() - right["FGSM"].sum(), n
    yield "random alone", (right["PGM-100"] & ~right["Random"]).sum(), n
    yield "FGSM alone", (right["Worst"] & ~right["FGSM"]).sum(), n
    yield "rise over T", max(np.diff([right["Clean"].sum(), *steps])), n


def _from_sweeps(
    store: Store, name: str, model: Model, right: dict[str, np.ndarray]
) -> Iterator[Quantity]:
    curve = large_epsilon(store, [name], [model.seed])
    n = len(_images(store)[0])
    accuracy = curve.set_index("epsilon").accuracy
    for label, epsilon in (("ε zero", 0.0), ("ε papers", EPSILON), ("ε one", 1.0)):
        yield label, accuracy[epsilon], n
    yield "rise over ε", round(n * accuracy.diff().max()), n
    yield "ε zero is not clean", abs(round(n * accuracy[0.0]) - right["Clean"][:n].sum()), n
    left = round(n * accuracy[1.0])
    if left:
        both = store.correct(model, {"PGM-10": _pgm(1), "PGM-100": _pgm(1, 100)}, n).values()
        left = np.logical_and.reduce(list(both)).sum()
    yield "unfooled", left, n
    sizes = {str(s): PGM(epsilon=EPSILON, step_size=s) for s in STEP_SIZES if s != 0.003}
    tried = store.correct(model, sizes, n) | {"0.003": right["PGM-20"][:n]}
    counts = [found.sum() for found in tried.values()]
    yield "PGM-20 there", tried["0.003"].mean(), n
    yield "best step", min(counts) / n, n
    yield "worst step", max(counts) / n, n
    yield "better step", tried["0.003"].sum() - min(counts), n


def _comparisons(store: Store, name: str, seed: int) -> Iterator[Quantity]:
    mine = experiments.survival(store, name, seed)
    n = len(mine["Clean"])
    if name != "plain":
        plain = experiments.survival(store, "plain", seed)
        cost = plain["Clean"].sum() - mine["Clean"].sum()
        gain = mine["Worst"].sum() - plain["Worst"].sum()
        yield "cost", cost / n, n
        yield "gain", gain / n, n
        yield "cost beyond gain", cost - gain, n
    if name != "pgm":
        pgm = experiments.survival(store, "pgm", seed)["Worst"]
        yield "PGM Net", pgm.mean(), n
        yield "behind PGM Net", pgm.sum() - mine["Worst"].sum(), n
        yield "seconds", training_seconds(store, name, seed)[0], n
        yield "PGM Net seconds", training_seconds(store, "pgm", seed)[0], n


def _black_box(right: dict[str, np.ndarray], transfers: pd.DataFrame) -> Iterator[Quantity]:
    n = len(right["Clean"])
    best = transfers.groupby("attack").accuracy.min()
    behind = [n * (right[str(attack)].mean() - a) for attack, a in best.items()]
    for attack, accuracy in best.items():
        yield f"transferred {attack}", accuracy, n
    yield "white box behind", round(max(behind)), n
    blind = min(best.min(), right["Random"].mean())
    yield "best without gradients", blind, n
    yield "Worst behind", round(n * (right["Worst"].mean() - blind)), n


def training_seconds(store: Store, name: str, seed: int) -> tuple[float, float]:
    """How long the model trained, and the model it starts from (0 where it starts afresh)."""
    model = store.model(name, seed)
    start = model.recipe.warm_start
    first = float(store.model(start, seed).log["seconds"].sum()) if start else 0.0
    return float(model.log["seconds"].sum()), first


# Verdicts --------------------------------------------------------------------------------------


def none(images: int) -> float:
    return 0


def slack(images: int) -> float:
    """One image, or one in 200 where that is more: what chance moves."""
    return max(1, images // 200)


def twentieth(images: int) -> float:
    """One image in 20, at least one: what a careful evaluation may miss."""
    return max(1, images // 20)


def rounding(images: int) -> float:
    return 1e-5


@dataclass(frozen=True)
class Item:
    """One item: what it is about, what should hold, who asks for it, the numbers shown (a template
    over the means of quantities), the quantity that decides and how large it may be, given the
    number of images."""

    topic: str
    name: str
    source: str
    figure: str
    decides: str
    allowed: Callable[[int], float]


ATHALYE, CARLINI, OURS = "Athalye et al. 2018", "Carlini et al. 2019", "not in the papers"
MASKED, SOUND, STRONG, PRICE = "masked gradients", "sound measurement", "strong attacks", "price"
ITEMS = (
    Item(MASKED, "iterative attacks beat one step", ATHALYE,
         "FGSM {FGSM:.1%}, PGM-20 {PGM-20:.1%}, PGM-100 {PGM-100:.1%}", "one step ahead", slack),
    Item(MASKED, "white box beats black box", ATHALYE,
         "FGSM {FGSM:.1%}, transferred {transferred FGSM:.1%}; "
         "PGM-10 {PGM-10:.1%}, transferred {transferred PGM-10:.1%}", "white box behind", slack),
    Item(MASKED, "unbounded attacks reach 100 %", ATHALYE,
         "PGM-10 at ε = 1 leaves {ε one:.1%}; PGM-100 too leaves {unfooled:.3g} images",
         "unfooled", none),
    Item(MASKED, "random search finds nothing new", ATHALYE,
         "random search {Random:.1%}; it alone, and not PGM-100, fools {random alone:.3g} images",
         "random alone", slack),
    Item(MASKED, "a larger ε never helps the defender", ATHALYE,
         "{ε papers:.1%} at ε = 0.031; largest rise {rise over ε:.3g} images",
         "rise over ε", slack),
    Item(MASKED, "not randomised", CARLINI,
         "two passes: {different:.3g} images with other logits", "different", none),
    Item(MASKED, "differentiable, with gradients", CARLINI,
         "autograd and differences: error {error:.0e}; {flat:.3g} images with zero gradient",
         "no gradient", slack),
    Item(MASKED, "the loss climbs along its gradient", OURS,
         "random direction as high on {random climbs:.3g} images; turns back inside on {turns:.3g}",
         "random climbs", twentieth),
    Item(SOUND, "precise threat model", CARLINI,
         "largest |δ| {largest δ:.6f} ε; x + δ leaves [0, 1] by {outside:.1g}",
         "beyond", rounding),
    Item(SOUND, "attacks are described", CARLINI,
         "{attacks:.0f} attacks; {not rebuilt:.0f} that their printed settings do not rebuild",
         "not rebuilt", none),
    Item(SOUND, "sanity: more steps never help the defender", CARLINI,
         "clean {Clean:.1%}, PGM-1 {PGM-1:.1%}, PGM-10 {PGM-10:.1%}, PGM-100 {PGM-100:.1%}; "
         "largest rise {rise over T:.3g} images", "rise over T", slack),
    Item(SOUND, "success against budget starts at clean", CARLINI,
         "{ε zero:.1%} at ε = 0, {ε papers:.1%} at 0.031, {ε one:.1%} at 1",
         "ε zero is not clean", none),
    Item(STRONG, "more than FGSM", CARLINI,
         "FGSM {FGSM:.1%}, Worst {Worst:.1%}; FGSM alone fools {FGSM alone:.3g} images",
         "FGSM alone", slack),
    Item(STRONG, "attacks not seen in training", CARLINI,
         "trained on {trained on:.1%}, Worst {Worst there:.1%}", "trained on ahead", slack),
    Item(STRONG, "adaptive attacks", CARLINI,
         "own attacker {Own attacker:.1%}, Worst {Worst:.1%}; it alone fools {own alone:.3g} "
         "images", "own alone", slack),
    Item(STRONG, "adaptive beats black box and brute force", CARLINI,
         "Worst {Worst:.1%}, best without gradients {best without gradients:.1%}",
         "Worst behind", slack),
    Item(STRONG, "diverse attacks", CARLINI,
         "PGM-100 {PGM-100:.1%}, all kinds {any:.1%}; images that one kind alone fools: PGM "
         "{only PGM:.3g}, CW {only CW:.3g}, FGSM {only FGSM:.3g}, random {only random:.3g}",
         "PGM-100 misses", twentieth),
    Item(STRONG, "converged: more steps", CARLINI,
         "PGM-100 {long PGM-100:.1%}, PGM-500 {long PGM-500:.1%}; loss {loss after 100:.3g}, "
         "{loss after 500:.3g}", "after 100", slack),
    Item(STRONG, "converged: more starts", CARLINI,
         "PGM-20 {one start:.1%}, worst of 5 starts {all starts:.1%}",
         "restarts gain", twentieth),
    Item(STRONG, "the attack's step size", CARLINI,
         "PGM-20 with 0.003 {PGM-20 there:.1%}; with 0.003 to 0.031 {best step:.1%} to "
         "{worst step:.1%}", "better step", twentieth),
    Item(STRONG, "AutoAttack finds little more", OURS,
         "Worst {Worst there:.1%}, with AutoAttack {AutoAttack:.1%}",
         "AutoAttack alone", twentieth),
    Item(PRICE, "clean accuracy and its price", CARLINI,
         "clean {Clean:.1%}: costs {cost:.1%}, gains {gain:.1%} under Worst",
         "cost beyond gain", none),
    Item(PRICE, "against prior work", CARLINI,
         "Worst {Worst:.1%}, PGM Net {PGM Net:.1%}; trained {seconds:.3g} s, {PGM Net seconds:.3g}"
         " s", "behind PGM Net", none),
)  # fmt: skip


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
            row = {"topic": item.topic, "item": item.name, "source": item.source,
                   "defence": defence, "figure": "", "decides": "", "seeds": "",
                   "verdict": ""}  # fmt: skip
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


def robust_accuracy(
    store: Store,
    names: Sequence[str] = (*DEFENCES, *SLIM, *TODAY),
    seeds: Sequence[int] | None = None,
) -> pd.DataFrame:
    """What each defence withstands and what its training took: columns defence, seed, status,
    accuracy (of images that survive PGM-20, PGM-100, CW and AutoAttack one by one), Worst (without
    AutoAttack), AutoAttack (as accuracy; empty where it is not installed, and then accuracy is
    Worst), clean, seconds (of training) and start_seconds (of the Plain Net it starts from)."""
    rows = []
    for name in names:
        for seed in seeds or store.seeds:
            model = store.model(name, seed)
            worst, strongest = survivors(store, name, seed)
            seconds, start = training_seconds(store, name, seed)
            rows.append(
                {
                    "defence": model.defence,
                    "seed": seed,
                    "status": model.status,
                    "clean": experiments.survival(store, name, seed)["Clean"][: len(worst)].mean(),
                    "Worst": worst.mean(),
                    "AutoAttack": np.nan if strongest is None else strongest.mean(),
                    "accuracy": (worst if strongest is None else strongest).mean(),
                    "seconds": seconds,
                    "start_seconds": start,
                }
            )
    return pd.DataFrame(rows)
