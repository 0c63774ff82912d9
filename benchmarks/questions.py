"""Why does the learned attacker lag? One question a variant of Grad L2L, each with what it costs.

    python benchmarks/questions.py [causes|seconds|queries] [--only A,B] [--plan]
                                   [--seeds N] [--seed N] [--dataset NAME] [--data DIR|ZIP]
                                   [--output DIR]

`causes` trains Grad L2L with one thing changed at a time, and the fixed rows beside it, at the
profile `quick` and for equally many epochs. `seconds` gives every row the epochs that fit into the
time of Free training. `queries` lets PGM, APGD and the attackers of `causes` climb the loss of
defences that they were not trained with, by gradient queries.
The first two measure each model clean, under PGM-20, PGM-100 and CW and in the worst case of these
(`seconds` with AutoAttack on fewer images), and time one epoch of each row in this process (CPU
seconds, one thread).
Models and measurements are kept under --output, and the same command goes on where it stopped;
--plan says what is left. Results go with their provenance to
results/recorded/questions-<dataset>.json, each question under its name.
"""

import argparse
import copy
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from l2lkit import Store
from l2lkit.checks import measures
from l2lkit.checks.attacks import WORST, white_box_attacks
from l2lkit.files import write_json
from l2lkit.game import loop
from l2lkit.game.evaluate import trajectory
from l2lkit.game.fixed import FGSM, PGM
from l2lkit.game.free import Free
from l2lkit.game.learned import GradAttacker, Learned
from l2lkit.game.networks import Folded, ResBlock, make_network, scaled, stem
from l2lkit.game.padding import at_any_size
from l2lkit.game.recipe import Optimiser, Recipe
from l2lkit.game.solver import Play, Shape, Solver, finite, input_gradient, project, uniform
from l2lkit.runs.model import Model

RECORDED = Path(__file__).resolve().parents[1] / "results" / "recorded"
COLUMNS = ("Clean", *WORST)
GAIN = 2.0  # of the sign step inside tanh: tanh 2 = 0.96
REPLAYS = 4  # of Free training at this profile

# Variants of the attacker: each is Grad L2L with another `move` or `play` -------------------------


class SeesSign(GradAttacker):
    """g sees the gradient's sign in the place of the gradient."""

    def scale(self, gradient: Tensor) -> Tensor:
        return gradient.sign()


class SeesGradientAlone(GradAttacker):
    """g sees the gradient and no image."""

    def move(self, x: Tensor, gradient: Tensor) -> Tensor:
        return super().move(torch.zeros_like(x), gradient)


class SeesLabel(GradAttacker):
    """g sees y as well: three planes a class, constant over the pixels and learned with φ."""

    def __init__(self, network: str, channels: int, epsilon: float, width: float, *others: Any):
        super().__init__(network, channels, epsilon, width, *others)
        self.network = at_any_size(make_network(network, 2 * channels + 3, channels, width))
        self.planes = nn.Embedding(1000, 3)

    def iterates(
        self, classifier: nn.Module, images: Tensor, labels: Tensor, generators: Any = None
    ) -> Iterator[Tensor]:
        gradient = self.scale(input_gradient(classifier, images, labels))
        plane = self.planes(labels)[:, :, None, None].expand(-1, -1, *images.shape[2:])
        moved = self.network(torch.cat([images, gradient, plane.to(images)], 1)).tanh()
        yield project(self.epsilon * moved, images, self.epsilon)


class SeesDelta(GradAttacker):
    """2-Step L2L whose g sees the δ so far, in units of ε, beside x + δ and the gradient."""

    def __init__(self, network: str, channels: int, epsilon: float, width: float, *others: Any):
        super().__init__(network, channels, epsilon, width, *others)
        self.network = at_any_size(make_network(network, 3 * channels, channels, width))

    def iterates(
        self, classifier: nn.Module, images: Tensor, labels: Tensor, generators: Any = None
    ) -> Iterator[Tensor]:
        delta = torch.zeros_like(images)
        for _ in range(self.steps):
            x = images + delta
            gradient = self.scale(input_gradient(classifier, x, labels))
            moved = self.network(torch.cat([x, gradient, delta / self.epsilon], 1)).tanh()
            delta = project(delta + self.epsilon * moved, images, self.epsilon)
            yield delta


class OneBlock(GradAttacker):
    """g with one residual block in the place of three."""

    widths: tuple[int, ...] = (64, 128)

    def __init__(self, network: str, channels: int, epsilon: float, width: float, *others: Any):
        super().__init__(network, channels, epsilon, width, *others)
        c = [scaled(w, 2 * width) for w in self.widths]
        blocks = [ResBlock(a, b) for a, b in zip(c, c[1:], strict=False)]
        last = nn.Conv2d(c[-1], 4 * channels, 3, padding=1)
        self.network = at_any_size(Folded(nn.Sequential(*stem(8 * channels, c[0]), *blocks, last)))


class SixBlocks(OneBlock):
    """g with six residual blocks."""

    widths = (64, 128, 256, 256, 256, 256, 128)


class TwicePlayed(GradAttacker):
    """Each batch comes twice, for players that look ahead (`Extragradient`)."""

    replays = 2


class SignOutput(GradAttacker):
    """δ = ε sign g, which the gradient passes as if it were tanh (straight through). A hair below
    ε, for at ε the projection lets no gradient through."""

    def move(self, x: Tensor, gradient: Tensor) -> Tensor:
        soft = self.network(torch.cat([x, gradient], 1)).tanh()
        return self.epsilon * (soft + (0.9999 * soft.sign() - soft).detach())


class OnSignStep(GradAttacker):
    """g corrects the sign step: δ = ε tanh(2 sign ∇ + g)."""

    def move(self, x: Tensor, gradient: Tensor) -> Tensor:
        correction = self.network(torch.cat([x, gradient], 1))
        return self.epsilon * (GAIN * gradient.sign() + correction).tanh()


class OnNoisyStep(OnSignStep):
    """The same after N-FGSM's noise, and like it not clipped in training."""

    stochastic = True

    def unclipped(self, f: nn.Module, x: Tensor, y: Tensor, generators: Any = None) -> Tensor:
        noisy = (x + uniform(x, 2 * self.epsilon, generators)).clamp(0, 1)
        gradient = self.scale(input_gradient(f, noisy, y))
        return (noisy + self.move(noisy, gradient)).clamp(0, 1) - x

    def iterates(
        self, classifier: nn.Module, images: Tensor, labels: Tensor, generators: Any = None
    ) -> Iterator[Tensor]:
        delta = self.unclipped(classifier, images, labels, generators)
        yield project(delta, images, self.epsilon)

    def play(self, classifier: nn.Module, images: Tensor, labels: Tensor) -> Play:
        return Play(images, labels, self.unclipped(classifier, images, labels))


class RandomStart(GradAttacker):
    """The learned step begins anywhere in the ball."""

    def __init__(self, *settings: Any):
        super().__init__(*settings)
        self.start = "uniform"


class SeveralSteps(GradAttacker):
    """φ takes a second step of its own before each step of both players."""

    def play(self, classifier: nn.Module, images: Tensor, labels: Tensor) -> Play:
        phi = list(self.parameters())
        if not hasattr(self, "_own"):
            self._own = torch.optim.Adam(phi, lr=5e-3, maximize=True)
        delta = super().play(classifier, images, labels).delta
        loss = F.cross_entropy(classifier(images + delta), labels)
        for parameter, gradient in zip(phi, torch.autograd.grad(loss, phi), strict=True):
            parameter.grad = gradient
        self._own.step()
        self._own.zero_grad()
        return super().play(classifier, images, labels)


class Pool(GradAttacker):
    """On every second batch in the mean, θ meets an earlier φ, drawn from one kept every twenty
    batches: the game's memory. φ then rests."""

    def play(self, classifier: nn.Module, images: Tensor, labels: Tensor) -> Play:
        past: list[dict] = self.__dict__.setdefault("_past", [])
        batch = self.__dict__["_batch"] = self.__dict__.get("_batch", 0) + 1
        if batch % 20 == 0:
            past.append(copy.deepcopy(self.state_dict()))
        if not past or torch.rand(()) < 0.5:
            return super().play(classifier, images, labels)
        now = copy.deepcopy(self.state_dict())
        self.load_state_dict(past[int(torch.randint(len(past), ()))])
        with torch.no_grad():
            delta = super().play(classifier, images, labels).delta
        self.load_state_dict(now)
        still = sum(p.sum() for p in self.parameters()) * 0  # a gradient of zero for φ
        return Play(images, labels, delta + still)


class FreeGrad(OnSignStep):
    """Free training with a learned step: each batch is played four times in a row, and g gets the
    gradient of the pass before, so that none is asked for. The first of the four has none."""

    general = False
    replays = REPLAYS

    def play(self, classifier: nn.Module, images: Tensor, labels: Tensor) -> Play:
        kept: dict[str, Tensor] = self.__dict__.setdefault("_kept", {})
        delta = gradient = torch.zeros_like(images)
        if "x" in kept and kept["x"].shape == images.shape and torch.equal(kept["x"], images):
            delta, gradient = kept["delta"], self.scale(kept["gradient"])
        delta = project(delta + self.move(images + delta, gradient), images, self.epsilon)
        kept["x"], kept["delta"] = images, delta.detach()
        delta.register_hook(lambda g: kept.__setitem__("gradient", finite(g.detach())))
        return Play(images, labels, delta)


@dataclass(frozen=True, kw_only=True)
class PerImage(Solver):
    """No φ that all images share: each training image keeps a δ of its own from one visit to the
    next, and takes a sign step of `step_size` from it (as ATTA, Zheng et al. 2020). Images must
    come unchanged, that is without augmentation. Called as an attack it knows no image, and begins
    anywhere in the ball."""

    epsilon: float = 0.031
    step_size: float = 0.031

    stochastic = True
    general = False

    def iterates(
        self, classifier: nn.Module, images: Tensor, labels: Tensor, generators: Any = None
    ) -> Iterator[Tensor]:
        start = project(uniform(images, self.epsilon, generators), images, self.epsilon)
        yield self.moved(classifier, images, labels, start)

    def moved(self, f: nn.Module, x: Tensor, y: Tensor, delta: Tensor) -> Tensor:
        step = self.step_size * input_gradient(f, x + delta, y).sign()
        return project(delta + step, x, self.epsilon)

    def play(self, classifier: nn.Module, images: Tensor, labels: Tensor) -> Play:
        kept: dict[bytes, Tensor] = self.__dict__.setdefault("_kept", {})
        names = [image.contiguous().numpy().tobytes() for image in images.cpu()]
        new = uniform(images, self.epsilon, None)
        start = torch.stack([kept.get(n, d) for n, d in zip(names, new, strict=True)])
        delta = self.moved(classifier, images, labels, project(start, images, self.epsilon))
        kept.update(zip(names, delta, strict=True))
        return Play(images, labels, delta)


@dataclass(frozen=True, kw_only=True)
class Variant(Learned):
    """Makes one of the attackers above, with the settings of Grad L2L."""

    steps: int = 1
    made: type[GradAttacker] = GradAttacker

    def __call__(self, shape: Shape, classes: int) -> GradAttacker:
        given = self.network, shape[1], self.epsilon, self.width, self.steps, self.gradient
        return self.made(*given)


@dataclass(frozen=True, kw_only=True)
class Optimistic(Optimiser):
    """Steps along 2 g_t − g_{t−1}, the optimistic gradient of notebook 01."""

    optimism: float = 1.0

    def build(self, parameters: Any, ascend: bool) -> torch.optim.Optimizer:
        made = super().build(parameters, ascend)
        last: dict[Any, Tensor] = {}

        def look_ahead(optimiser: torch.optim.Optimizer, *_: object) -> None:
            for p in (p for group in optimiser.param_groups for p in group["params"]):
                if p.grad is not None:
                    now = p.grad.clone()
                    p.grad.add_(now - last.get(p, now), alpha=self.optimism)
                    last[p] = now

        made.register_step_pre_hook(look_ahead)
        return made


@dataclass(frozen=True, kw_only=True)
class Extragradient(Optimiser):
    """Every first step is a look ahead, every second is taken from where that one began, along the
    gradient found there: the extragradient of notebook 01, for a batch that comes twice."""

    ahead: bool = True

    def build(self, parameters: Any, ascend: bool) -> torch.optim.Optimizer:
        made = super().build(parameters, ascend)
        before: dict[str, Any] = {}

        def back(optimiser: torch.optim.Optimizer, *_: object) -> None:
            moved = [p for group in optimiser.param_groups for p in group["params"]]
            if not before:
                before["values"] = [p.detach().clone() for p in moved]
                before["state"] = copy.deepcopy(optimiser.state_dict()["state"])
                return
            with torch.no_grad():
                for p, value in zip(moved, before["values"], strict=True):
                    p.copy_(value)
            settings = optimiser.state_dict()["param_groups"]
            optimiser.load_state_dict({"state": before["state"], "param_groups": settings})
            before.clear()

        made.register_step_pre_hook(back)
        return made


def extragradient(optimiser: Optimiser) -> Extragradient:
    return Extragradient(**{f.name: getattr(optimiser, f.name) for f in fields(optimiser)})


def optimistic(optimiser: Optimiser) -> Optimistic:
    return Optimistic(**{f.name: getattr(optimiser, f.name) for f in fields(optimiser)})


# The questions -----------------------------------------------------------------------------------


def causes(store: Store) -> dict[str, Recipe]:
    """For each label the recipe; all have the profile's epochs."""
    grad = store.recipe("grad")
    attack, climb = grad.attack, grad.attacker_optimiser
    assert isinstance(attack, Learned)

    def learned(
        made: type[GradAttacker] = GradAttacker, width: float = attack.width, steps: int = 1
    ) -> Recipe:
        of = Variant(
            made=made, epsilon=attack.epsilon, network=attack.network, width=width, steps=steps
        )
        return replace(grad, attack=of)

    narrow = attack.width / 4
    assert grad.optimiser
    ahead = replace(grad, optimiser=optimistic(grad.optimiser))
    twice = replace(learned(TwicePlayed), optimiser=extragradient(grad.optimiser))
    named = {
        "Grad L2L": grad,
        "FGSM Net": store.recipe("fgsm"),
        "PGM Net": store.recipe("pgm"),
        "Free": store.recipe("today/free"),
        "g corrects the sign step": learned(OnSignStep),
        "the same, g a quarter as wide": learned(OnSignStep, narrow),
        "g a quarter as wide": learned(width=narrow),
        "N-FGSM": store.recipe("today/n-fgsm"),
        "FGSM-SDI: learned start, sign step": store.recipe("today/fgsm-sdi"),
        "g sees the sign": learned(SeesSign),
        "g sees no image": learned(SeesGradientAlone),
        "g sees the label": learned(SeesLabel),
        "one block": learned(OneBlock),
        "six blocks": learned(SixBlocks),
        "output sign, straight through": learned(SignOutput),
        "random start": learned(RandomStart),
        "φ's rate 0.02": replace(grad, attacker_optimiser=replace(climb, lr=0.02)),
        "two steps of φ": learned(SeveralSteps),
        "pool of past φ": learned(Pool),
        "both players optimistic": replace(ahead, attacker_optimiser=optimistic(climb)),
        "both players extragradient": replace(twice, attacker_optimiser=extragradient(climb)),
        "no φ, each image keeps its δ": replace(store.recipe("today/fgsm-rs"), attack=PerImage()),
        "FGSM-RS": store.recipe("today/fgsm-rs"),
        "PGM-2 Net": store.recipe("today/pgm2"),
        "PGM-3 Net": store.recipe("today/pgm3"),
        "2-Step L2L": store.recipe("2step"),
        "2-Step L2L, g sees δ": learned(SeesDelta, steps=2),
        "LAS-AT": store.recipe("today/las-at"),
        "Free with a learned step": learned(FreeGrad, narrow),
        "PGM-AWP": store.recipe("today/awp"),
    }
    return {label: replace(recipe, defence=label) for label, recipe in named.items()}


def seconds(store: Store) -> dict[str, Recipe]:
    """The epochs that fit into the time of Free training, but PGM Net has four, which take twice
    that. Of the learned attackers, the best of `causes` for its time, after N-FGSM's noise, and
    Free's own step learned, which is above Free in equally many epochs. Both kinds of Free once
    more for longer."""
    rows = causes(store)
    best = rows["the same, g a quarter as wide"]
    assert isinstance(best.attack, Variant)
    noisy = replace(best, attack=replace(best.attack, made=OnNoisyStep))
    named = {
        "Free": (rows["Free"], 4),
        "N-FGSM": (rows["N-FGSM"], 9),
        "FGSM-RS": (rows["FGSM-RS"], 9),
        "PGM Net": (rows["PGM Net"], 4),
        "N-FGSM, its step corrected by g": (noisy, 6),
        "Free with a learned step": (rows["Free with a learned step"], 2),
        "Free, longer": (rows["Free"], 7),
        "Free with a learned step, longer": (rows["Free with a learned step"], 4),
    }
    return {
        label: replace(recipe, defence=label, epochs=epochs)
        for label, (recipe, epochs) in named.items()
    }


QUESTIONS: dict[str, Callable[[Store], dict[str, Recipe]]] = {"causes": causes, "seconds": seconds}
# Of `queries`: the attackers, and the defences that they climb.
CLIMBERS = ("Grad L2L", "2-Step L2L", "g corrects the sign step")
DEFENDERS = ("FGSM Net", "PGM Net", "Free")
UNROLLED = 8  # how often a learned step is taken


def measured(store: Store, model: Model, strongest: bool) -> dict[str, float]:
    """Accuracy in [0, 1] on the profile's images under each attack and in the worst case; if asked
    for the strongest, on the fewer images in the worst case, and with AutoAttack."""
    subject, budget = store.subject(model), store.budget
    known = white_box_attacks(budget)
    right = subject.correct({name: known[name] for name in COLUMNS}, budget.images)
    worst = np.logical_and.reduce([right[name] for name in WORST])
    accuracy = {name: float(right[name].mean()) for name in COLUMNS} | {
        "Worst": float(worst.mean())
    }
    if strongest and budget.autoattack:
        fewer = worst[: subject.count(budget.fewer)].copy()
        accuracy["Worst, fewer"] = float(fewer.mean())
        left = np.flatnonzero(fewer).tolist()
        fewer[left] = np.array(
            measures.after_autoattack(subject, budget, left)["right"], dtype=bool
        )
        accuracy["AutoAttack, fewer"] = float(fewer.mean())
    return accuracy


def epoch_seconds(store: Store, recipe: Recipe) -> float:
    """CPU seconds of this process for an epoch: the second of two, from the first seed's start."""
    assert recipe.warm_start  # every row has one
    start = store.model(recipe.warm_start, store.seed).classifier.state_dict()
    taken = [time.process_time()]

    def on_epoch(_: dict) -> None:
        taken.append(time.process_time())

    with store.computing():
        short = replace(recipe, epochs=2)
        loop.train(short, store.data, seed=store.seed, start_from=start, on_epoch=on_epoch)
    return round(taken[2] - taken[1], 2)


def timed(store: Store, recipes: dict[str, Recipe]) -> dict[str, float]:
    """`epoch_seconds` of every row, remembered; rows that differ in epochs alone are one."""
    cost = {}
    for label, recipe in recipes.items():
        settings = [replace(recipe, epochs=1, defence="").key(), store.device.type]
        compute = partial(epoch_seconds, store, recipe)
        cost[label] = store.measured("epoch-seconds", settings, compute)
    return cost


def rows_of(store: Store, recipes: dict[str, Recipe], strongest: bool) -> list[dict[str, Any]]:
    """A row a model with its accuracies, of the recipes that all seeds have been trained with."""
    rows = []
    for label, recipe in recipes.items():
        if all(store.finished(recipe, seed) for seed in store.seeds):
            for seed in store.seeds:
                model = store.model(recipe, seed)
                about = {"defence": label, "seed": seed, "status": model.status}
                about["learned"] = recipe.learned and not isinstance(recipe.attack, Free)
                about |= {"epochs": len(model.log), "delta": round(model.log.delta.mean(), 3)}
                rows.append(about | measured(store, model, strongest))
    return rows


def table(rows: list[dict], cost: dict[str, float], base: str) -> pd.DataFrame:
    """Mean ± deviation over the seeds in %, CPU seconds of training, and the worst case above that
    of `base` in points, paired by seed. Rows whose status is not ok are left out and counted."""
    frame = pd.DataFrame(rows)
    columns = [c for c in (*COLUMNS, "Worst", "Worst, fewer", "AutoAttack, fewer") if c in frame]
    fine = frame[frame.status == "ok"]
    worst = 100 * fine.pivot(index="seed", columns="defence", values="Worst")
    lines = {}
    for label, part in fine.groupby("defence", sort=False):
        line = {c: spread(100 * part[c]) for c in columns}
        gap = (worst[label] - worst[base]).dropna() if base in worst else pd.Series(dtype=float)
        line[f"above {base}"] = spread(gap) if label != base and len(gap) else ""
        line["CPU s"] = f"{cost[label] * part.epochs.iloc[0]:.0f}" if label in cost else ""
        line["seeds"] = f"{len(part)} of {(frame.defence == label).sum()}"
        lines[label] = line
    return pd.DataFrame.from_dict(lines, orient="index").rename_axis("defence")


def spread(values: pd.Series) -> str:
    deviation = f" ± {values.std():.1f}" if len(values) > 1 else ""
    return f"{values.mean():.1f}{deviation}"


def queries(store: Store) -> list[dict[str, Any]]:
    """Mean loss of the first images against gradient queries, on defences of each seed that were
    trained without a learned attacker: FGSM, PGM, APGD-CE, and the learned attackers of the seed,
    which take their step up to eight times."""
    recipes, rows = causes(store), []
    x, y = store.images(store.profile.curve_images)
    for seed in store.seeds:
        for defence in DEFENDERS:
            f = store.model(recipes[defence], seed).classifier
            about = {"defence": defence, "seed": seed}

            def note(attack: str, asked: int, loss: Tensor, about: dict = about) -> None:
                row = {"attack": attack, "queries": asked, "loss": round(loss.mean().item(), 4)}
                rows.append(about | row)

            note("FGSM", 1, trajectory(f, FGSM(), x, y).loss[-1])
            run = trajectory(f, PGM(steps=50, step_size=0.007), x, y, seed=seed)
            for asked, loss in zip(run.steps, run.loss, strict=True):
                note("PGM", asked, loss)
            for name in CLIMBERS:
                solver = copy.deepcopy(store.model(recipes[name], seed).attack)
                assert isinstance(solver, GradAttacker)
                solver.steps = UNROLLED
                run = trajectory(f, solver, x, y, seed=seed)
                for asked, loss in zip(run.steps, run.loss, strict=True):
                    note(name, asked, loss)
            for asked in (5, 10, 20, 50):
                delta = apgd(f, x, y, asked, seed)
                note("APGD", asked, trajectory(f, None, x + delta, y).loss)
    return rows


def apgd(f: nn.Module, x: Tensor, y: Tensor, steps: int, seed: int) -> Tensor:
    """δ (N, C, H, W) of APGD-CE after so many gradients, the best loss it has seen. The library
    takes one gradient before the first step."""
    from pyautoattack.autopgd_base import APGDAttack

    f.eval()
    settings = {"norm": "Linf", "n_restarts": 1, "loss": "ce", "device": "cpu"}
    attack = APGDAttack(f, n_iter=steps - 1, eps=0.031, seed=seed, **settings)
    attack.init_hyperparam(x)
    best = attack.attack_single_run(x, y)[0]
    return project(best.detach() - x, x, 0.031)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("question", nargs="?", choices=(*QUESTIONS, "queries"), default="causes")
    parser.add_argument("--only", help="rows whose labels contain one of these, as N-FGSM,sign")
    parser.add_argument("--plan", action="store_true", help="say what is left, and do nothing")
    parser.add_argument("--seeds", type=int, default=5, help="how many (default: 5)")
    parser.add_argument("--seed", type=int, default=0, help="the first (default: 0)")
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--data")
    parser.add_argument("--output", help="where the models are, or go (default: the project)")
    args = parser.parse_args()
    place = {"seed": args.seed, "seeds": args.seeds, "output": args.output}
    store = Store("quick", args.dataset, args.data, "cpu", **place)
    torch.set_num_threads(1)
    if args.question == "queries":
        rows = queries(store)
        frame = pd.DataFrame(rows).groupby(["defence", "attack", "queries"], sort=False).loss
        print(frame.mean().unstack("queries").to_string())
        return keep(store, "queries", {"rows": rows}, store.profile.curve_images)
    recipes = QUESTIONS[args.question](store)
    words = args.only.split(",") if args.only else [""]
    strongest = args.question == "seconds"
    chosen = [label for label in recipes if any(word in label for word in words)]
    todo = [(n, s) for n in chosen for s in store.seeds if not store.finished(recipes[n], s)]
    print(f"{len(todo)} of {len(chosen) * len(store.seeds)} models are to be trained.")
    if args.plan:
        return print("\n".join(f"{label}, seed {seed}" for label, seed in todo))
    for label, seed in tqdm([(n, s) for n in chosen for s in store.seeds]):
        measured(store, store.model(recipes[label], seed), strongest)
    rows = rows_of(store, recipes, strongest)
    cost = timed(store, {label: recipes[label] for label in {row["defence"] for row in rows}})
    base = "Grad L2L" if args.question == "causes" else "N-FGSM"
    found = table(rows, cost, base)
    print(found.to_string())
    for row in rows:
        row["cpu_seconds"] = round(cost[row["defence"]] * row["epochs"], 1)
    content = {"rows": rows, "table": found.reset_index().fillna("").to_dict("records")}
    keep(store, args.question, content, store.profile.eval_images)


def keep(store: Store, question: str, content: dict[str, Any], images: int | None) -> None:
    """Write this question's part of the record and leave the others' as they are."""
    path = RECORDED / f"questions-{store.dataset}.json"
    kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    about = {"caption": store.caption(images=images), "provenance": store.provenance()}
    kept[question] = about | content
    write_json(path, kept)


if __name__ == "__main__":
    main()
