"""The games of notebook 08 at the store's profile, played once and with snapshots along the way,
and Figure 6 in numbers."""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from torch.nn.utils import parameters_to_vector

from l2lkit.errors import InputError
from l2lkit.files import alone, save_checkpoint
from l2lkit.gail.demonstrations import Demonstrations, load
from l2lkit.gail.environments import ENVIRONMENTS
from l2lkit.gail.game import (
    METHODS,
    SNAPSHOTS,
    GailRecipe,
    Game,
    diverged,
    gail_recipe,
    objective,
    train,
)
from l2lkit.game.identity import fingerprint
from l2lkit.runs.machine import versions
from l2lkit.runs.store import Store

ROOMS = ("gail",)  # whose code decides a game's numbers


def seeds(store: Store) -> list[int]:
    """The store's seeds; the paper profile plays at least five, since a band is the point."""
    least = 5 if store.profile.name == "paper" else 1
    return list(range(store.seed, store.seed + max(store.profile.seeds, least)))


@dataclass(frozen=True)
class Run:
    """A finished game with its log and SNAPSHOTS moments of policy and discriminator, by the
    number of iterations played: {"policy": …, "D": …}."""

    game: Game
    log: pd.DataFrame
    snapshots: dict[int, dict]

    def at(self, iteration: int) -> "Run":
        """This run with policy and discriminator as they were then, networks of its own. The value
        function and U are still the last, so it is for looking at, not for playing on."""
        agent, d = self.game.agent.copy(), copy.deepcopy(self.game.discriminator)
        agent.actor.load_state_dict(self.snapshots[iteration]["policy"])
        d.load_state_dict(self.snapshots[iteration]["D"])
        return replace(self, game=replace(self.game, agent=agent, discriminator=d))


def where(store: Store, recipe: GailRecipe, demonstrations: Demonstrations, seed: int) -> Path:
    key = fingerprint(asdict(recipe), recipe.rate, demonstrations.fingerprint)
    name = f"{recipe.method.lower().replace(' ', '-')}-{key}"
    return store.runs / "gail" / recipe.environment / name / f"seed-{seed}"


def trained(
    store: Store, recipe: GailRecipe, seed: int, demonstrations: Demonstrations | None = None
) -> Run:
    """The game of a recipe and seed; played now, or further, if it is not finished.

    A checkpoint is written with each snapshot and takes the place of the one before. With the
    paper's dense updater it has 4 GB, of which 1.4 stay when the game is over.
    """
    demonstrations = demonstrations or load(recipe.environment)
    directory = where(store, recipe, demonstrations, seed)
    store.prepare()
    with alone(directory):
        resume, made_by = store.left(directory, ROOMS)
        snapshots: dict[int, dict] = dict(resume["snapshots"]) if resume else {}
        every = max(1, recipe.iterations // SNAPSHOTS)

        def keep(game: Game, log: list[dict]) -> None:
            i = len(log)
            if i % every == 0 or i in (1, recipe.iterations) or diverged(log):
                policy, d = game.agent.actor.state_dict(), game.discriminator.state_dict()
                snapshots[i] = copy.deepcopy({"policy": policy, "D": d})
                state = game.state(over=i == recipe.iterations or diverged(log))
                content = {"game": state, "log": log, "snapshots": snapshots, "code": made_by}
                save_checkpoint(directory, "checkpoint", content)
            words = f"{recipe.method}, {recipe.environment}, seed {seed}, "
            store.on_progress(f"{words}iteration {i}/{recipe.iterations}", 1 / recipe.iterations)

        with store.computing():
            device = str(store.device)
            game, log = train(
                recipe, demonstrations, seed=seed, resume=resume, on_iteration=keep, device=device
            )
        status = "ok" if len(log) == recipe.iterations else "diverged"
        about = {"status": status, "recipe": asdict(recipe), "seed": seed}
        about |= {"wall_seconds": log["seconds"].sum()} | provenance(store)
        store.record(directory, log, about, made_by, ROOMS)
    return Run(game, log, snapshots)


def provenance(store: Store) -> dict:
    """The store's, with the versions of what plays here."""
    return store.machine() | {"versions": versions("gymnasium", "stable-baselines3", "sb3-contrib")}


def finished(store: Store, recipe: GailRecipe, seed: int) -> bool:
    directory = where(store, recipe, load(recipe.environment), seed)
    return store.has_record(directory / "record.json", ROOMS)


def played(store: Store, recipe: GailRecipe, seed: int) -> Path:
    """Where the run of this recipe and seed lies, played now if it is not finished."""
    if not finished(store, recipe, seed):
        trained(store, recipe, seed)
    return where(store, recipe, load(recipe.environment), seed)


def share_of_gradient(store: Store, method: str, seed: int) -> float:
    """How much of the move that the U of this CartPole game makes is due to the gradient it is
    given: |U(θ, g) − U(θ, 0)| / |U(θ, g) − θ|, with g of the policy's next pairs. Remembered."""
    recipe = gail_recipe("CartPole-v1", method, store.profile.name)

    def compute() -> float:
        game = trained(store, recipe, seed).game
        assert game.updater
        d, pairs = game.discriminator, game.pairs(game.agent.sample((seed, 0)))
        value = objective(d(*pairs), d(*game.expert))
        gradient = parameters_to_vector(torch.autograd.grad(value, list(d.parameters())))
        theta = parameters_to_vector(d.parameters()).detach()
        with torch.no_grad():
            move, blind = (game.updater(theta, g) - theta for g in (gradient, 0 * gradient))
        return float((move - blind).norm() / move.norm())

    name = where(store, recipe, load(recipe.environment), seed).parent.name
    return store.measured("share-of-gradient", [name, seed], compute, ROOMS)


# Figure 6 in numbers ----------------------------------------------------------------------------


def stability(scores: ArrayLike) -> dict[str, float]:
    """What Figure 6 claims, for one curve (T,) on the scale where chance is 0 and the expert 1
    (`Demonstrations.score`: a share of a negative return would mean nothing).

    `final`: mean of the last tenth. `reached`: the first iteration, from 1, at 0.95 or more. From
    there on: `worst_drop`, the deepest fall below the best score since; and `below`, the share of
    iterations under 0.8. The last three are NaN where 0.95 is never reached.
    Raises InputError for a curve that is empty or not finite.
    """
    curve = np.asarray(scores, dtype=np.float64)
    if curve.ndim != 1 or not len(curve) or not np.isfinite(curve).all():
        raise InputError(f"A curve must be a row of finite numbers, not {curve!r}.")
    final = float(curve[-math.ceil(len(curve) / 10) :].mean())
    there = np.flatnonzero(curve >= 0.95)
    if not len(there):
        return {"final": final, "reached": math.nan, "worst_drop": math.nan, "below": math.nan}
    since = curve[there[0] :]
    drop = (np.maximum.accumulate(since) - since).max()
    below = float((since < 0.8).mean())
    return {"final": final, "reached": there[0] + 1.0, "worst_drop": float(drop), "below": below}


def curves(
    store: Store,
    environments: Sequence[str] = ENVIRONMENTS,
    methods: Sequence[str] = METHODS,
    which: Sequence[int] | None = None,
) -> pd.DataFrame:
    """The logs of all runs, one below the other, played where missing. Columns: environment,
    defence (the method), seed, those of `train`'s log, and score (chance 0, the expert 1).

    `which` are the seeds, by default `seeds(store)`. Raises InputError if one comes twice: its run
    would be counted twice and the band would be too narrow.
    """
    chosen = seeds(store) if which is None else list(which)
    if len(set(chosen)) < len(chosen):
        raise InputError(f"One seed comes twice in {chosen}: name each once.")
    parts = []
    for environment in environments:
        demonstrations = load(environment)
        for method in methods:
            recipe = gail_recipe(environment, method, store.profile.name)
            for seed in chosen:
                log = pd.read_csv(played(store, recipe, seed) / "log.csv")
                log = log.assign(score=demonstrations.score(log["return"]))
                parts.append(log.assign(environment=environment, defence=method, seed=seed))
    return pd.concat(parts, ignore_index=True)


def unpacked(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The runs of a record (`benchmarks/gail.py --long`), as `curves` has them: of each row the
    environment, the method, the seed and the returns, one an iteration."""
    parts = []
    for row in rows:
        log = pd.DataFrame({"return": row["returns"]})
        log.insert(0, "iteration", log.index + 1)
        log["score"] = load(row["environment"]).score(log["return"])
        about = {"environment": row["environment"], "defence": row["method"], "seed": row["seed"]}
        parts.append(log.assign(**about))
    return pd.concat(parts, ignore_index=True)


def stability_table(table: pd.DataFrame) -> pd.DataFrame:
    """`stability` of every run of `curves`: a row an environment, method and seed, with the number
    of iterations played (fewer than the others': it diverged) and the return of the last tenth."""
    rows = []
    for keys, run in table.groupby(["environment", "defence", "seed"], sort=False):
        about = dict(zip(("environment", "method", "seed"), keys, strict=True))
        last = run["return"].iloc[-math.ceil(len(run) / 10) :].mean()
        about |= {"iterations": len(run), "final_return": last}
        rows.append(about | stability(run["score"]))
    return pd.DataFrame(rows)
