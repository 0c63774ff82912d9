"""GAIL: the same game, between a policy and a discriminator whose optimiser may be learned.

    min over π  max over D  of  E_π[log D(s, a)] + E_E[log(1 − D(s, a))] − λH(π)
                                                    (ICLR 2020, section 4, equation 4)

The sign convention, here and everywhere below: D(s, a) is the probability that a pair comes from
the policy and not from the expert. So D climbs the objective, its optimum is ρ_π / (ρ_π + ρ_E),
and the policy, which goes down it, is rewarded with −log D.

`play` is the whole game; the players differ in how the discriminator moves:

    GAIL        θ_D takes an Adam step up the objective
    L2L GAIL    θ_D ← U(θ_D, g_D; θ_U), and Adam moves θ_U up the objective through that step

Algorithm 3 prints that θ_U is updated "by minimizing" the objective at the new θ_D, section 4 that
it ascends. Only the second fits equation 4: U stands in for D's optimiser, so that its output is to
be a better discriminator, and the better one has the higher objective. A U that minimised would
teach D to take the expert's pairs for the policy's. It ascends here.
"""

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from l2lkit.errors import InputError
from l2lkit.experts import (
    ENVIRONMENTS,
    Agent,
    Demonstrations,
    PolicySettings,
    Rollout,
    load,
    make,
    roll_out,
)
from l2lkit.store import (
    Store,
    fingerprint,
    load_checkpoint,
    save_checkpoint,
    write_atomically,
    write_json,
)
from l2lkit.widgets import picture

METHODS = ("GAIL", "L2L GAIL", "L2L GAIL (shared)")


# The players ------------------------------------------------------------------------------------


class Discriminator(nn.Module):
    """(s, a) -> the logit of D, with tanh hidden layers (ICLR 2020, Appendix C.2: 64, 32).

    Takes standardised observations (n, d) and whole-numbered actions (n,), which it sees one-hot;
    returns (n,). The last layer starts at zero, so that D starts at 1/2.
    """

    def __init__(self, width: int, actions: int, hidden: Sequence[int] = (64, 32)):
        super().__init__()
        self.actions = actions
        sizes = [width + actions, *hidden]
        layers: list[nn.Module] = []
        for before, after in zip(sizes, sizes[1:], strict=False):
            layers += [nn.Linear(before, after), nn.Tanh()]
        last = nn.Linear(sizes[-1], 1)
        nn.init.zeros_(last.weight), nn.init.zeros_(last.bias)
        self.net = nn.Sequential(*layers, last)

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        chosen = F.one_hot(actions, self.actions).to(observations.dtype)
        return self.net(torch.cat([observations, chosen], 1)).squeeze(1)


def objective(policy_logits: Tensor, expert_logits: Tensor) -> Tensor:
    """Equation 4 without its entropy term, from D's logits on the policy's and the expert's pairs:
    mean log D + mean log(1 − D). It is −2 log 2 where D is 1/2, and 0 at most."""
    return F.logsigmoid(policy_logits).mean() + F.logsigmoid(-expert_logits).mean()


def reward(logits: Tensor, kind: str) -> Tensor:
    """What the policy is paid for a pair with this logit of D.

    "survive": −log D, never negative, as equation 4 has it. "finish": log(1 − D), never positive.
    The order of pairs is the same; what differs is what an episode's end is worth. Where a good
    episode is a short one, as on the Mountain Car, a positive reward would pay for not arriving;
    Ho and Ermon's released code switches to the negative one there, and so do we.
    """
    return F.softplus(-logits) if kind == "survive" else -F.softplus(logits)


class Updater(nn.Module):
    """U(θ_D, g_D; θ_U): the learned optimiser, 2m -> 8m -> 4m -> m with PReLU after the first two
    layers and θ_D added to the output (ICLR 2020, Appendix C.2).

    Takes θ and its gradient, (…, m) each, and returns the new θ. With m = 1 and inputs (m, 1) it
    is the scalable variant: the same 67 weights move every coordinate of θ_D. The last layer starts
    at zero, so that U starts as the identity; a random one would scatter D at the first step.
    """

    def __init__(self, m: int):
        super().__init__()
        self.m, last = m, nn.Linear(4 * m, m)
        nn.init.zeros_(last.weight), nn.init.zeros_(last.bias)
        self.net = nn.Sequential(
            nn.Linear(2 * m, 8 * m), nn.PReLU(), nn.Linear(8 * m, 4 * m), nn.PReLU(), last
        )

    def forward(self, theta: Tensor, gradient: Tensor) -> Tensor:
        return theta + self.net(torch.cat([theta, gradient], -1))


def parameter_count(m: int) -> int:
    """The number of U's parameters for m of θ_D: 52m² + 13m + 2.

    For the paper's discriminator on CartPole m = 2,561, and U has 341 million parameters: 5.5 GB
    in float32 with gradients and Adam's two moments (16 bytes a parameter).
    """
    return 52 * m * m + 13 * m + 2


# The game ---------------------------------------------------------------------------------------


# Adam's rate for θ_U. Appendix C.2 takes θ_D's, 0.01 in Ho and Ermon's code: at that rate one step
# changes U's output by up to the layer's width times 0.01, every later output adds to θ_D again,
# and the dense U diverges within ten iterations (D of 16 and 8 units). At 1e-7 (shared: 1e-6) D
# still says 1/2 after a hundred. In between no power of ten came near GAIL's stability, on two
# seeds; at these ones both environments were learnt at least in part.
RATES = {"L2L GAIL": 1e-5, "L2L GAIL (shared)": 1e-3}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One run of the game. `method` is one of METHODS; "(shared)" has the coordinate-wise updater.

    `hidden` is the discriminator's; `lr` is Adam's rate for θ_D (GAIL; Ho and Ermon's released
    code has 0.01, one step an iteration) and `updater_lr` the one for θ_U, None for RATES' of the
    method. `entropy` is λ. `reward` is "survive" or "finish" (see `reward`). `policy` is TRPO's
    part.
    """

    environment: str
    method: str = "GAIL"
    iterations: int = 300
    hidden: tuple[int, ...] = (64, 32)
    lr: float = 0.01
    updater_lr: float | None = None
    entropy: float = 0.0
    reward: str = "survive"
    policy: PolicySettings = PolicySettings()

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(f"Unknown method '{self.method}': choose from {', '.join(METHODS)}.")
        if self.reward not in ("survive", "finish"):
            raise InputError(f"reward must be survive or finish, not '{self.reward}'.")
        for name in ("iterations", "lr", "updater_lr"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise InputError(f"{name} must be positive, not {value}.")
        if not (math.isfinite(self.entropy) and self.entropy >= 0):
            raise InputError(f"entropy must be 0 or more, not {self.entropy}.")

    @property
    def rate(self) -> float:
        """Adam's rate, for whichever of θ_D and θ_U it moves."""
        return self.lr if self.method == "GAIL" else self.updater_lr or RATES[self.method]


@dataclass
class Game:
    """The players of one run: the agent with its policy, the discriminator, U where there is one,
    the optimiser of D or U, and the expert's pairs."""

    recipe: Recipe
    agent: Agent
    discriminator: Discriminator
    updater: Updater | None
    optimiser: torch.optim.Optimizer
    expert: tuple[Tensor, Tensor]

    @classmethod
    def build(
        cls, recipe: Recipe, demonstrations: Demonstrations, seed: int, device: str = "cpu"
    ) -> "Game":
        """New players; `seed` decides their first weights. D and U live on `device`."""
        if demonstrations.environment != recipe.environment:
            raise InputError(
                f"The demonstrations are on {demonstrations.environment}, the recipe on "
                f"{recipe.environment}: load those of the recipe's environment."
            )
        seen = demonstrations.observations
        mean, std = seen.mean(0), seen.std(0) + 1e-8
        agent = Agent(recipe.environment, recipe.policy, mean, std, seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            discriminator = Discriminator(seen.shape[1], agent.actions, recipe.hidden).to(device)
            m = parameters_to_vector(discriminator.parameters()).numel()
            updater = None
            if recipe.method != "GAIL":
                with torch.device(device):
                    updater = Updater(1 if recipe.method.endswith("(shared)") else m)
        learner = updater or discriminator
        optimiser = torch.optim.Adam(learner.parameters(), recipe.rate, maximize=True)
        observations = torch.from_numpy(agent.standardised(seen)).to(device)
        actions = torch.from_numpy(demonstrations.actions).to(device)
        return cls(recipe, agent, discriminator, updater, optimiser, (observations, actions))

    def state(self) -> dict:
        """All tensors of the game, for a checkpoint."""
        parts = {"agent": self.agent.state(), "D": self.discriminator.state_dict(),
                 "optimiser": self.optimiser.state_dict()}  # fmt: skip
        return parts | ({"U": self.updater.state_dict()} if self.updater else {})

    def load(self, state: dict) -> None:
        self.agent.load(state["agent"])
        self.discriminator.load_state_dict(state["D"])
        self.optimiser.load_state_dict(state["optimiser"])
        if self.updater:
            self.updater.load_state_dict(state["U"])

    def pairs(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """The rollout's pairs as D takes them."""
        device = self.expert[0].device
        observations = self.agent.standardised(rollout.observations)
        flat = torch.from_numpy(observations.reshape(-1, observations.shape[-1]))
        return flat.to(device), torch.from_numpy(rollout.actions.reshape(-1)).to(device)


def ascend(game: Game, pairs: tuple[Tensor, Tensor]) -> tuple[float, float]:
    """One move of the discriminator up the objective, on the policy's `pairs` and the expert's.

    Returns, from before the move, the objective and D's accuracy (the mean of its two classes').
    """
    d, optimiser = game.discriminator, game.optimiser
    on_policy, on_expert = d(*pairs), d(*game.expert)
    value = objective(on_policy, on_expert)
    right = (on_policy > 0).float().mean() + (on_expert < 0).float().mean()
    optimiser.zero_grad()
    if game.updater is None:
        value.backward()
        optimiser.step()
    else:
        weights = list(d.parameters())
        gradient = parameters_to_vector(torch.autograd.grad(value, weights))
        theta = parameters_to_vector(weights).detach()
        moved = step(game.updater, theta, gradient)
        new = unflatten(d, moved)
        after = objective(functional_call(d, new, pairs), functional_call(d, new, game.expert))
        after.backward()
        optimiser.step()
        vector_to_parameters(moved.detach(), weights)
    return value.item(), right.item() / 2


def step(updater: Updater, theta: Tensor, gradient: Tensor) -> Tensor:
    """U(θ, g) for vectors (m,): at once, or coordinate by coordinate if U was made for m = 1."""
    if updater.m == 1:
        return updater(theta[:, None], gradient[:, None])[:, 0]
    return updater(theta, gradient)


def unflatten(module: nn.Module, vector: Tensor) -> dict[str, Tensor]:
    """The module's parameters by name, as views of a vector (m,)."""
    named = dict(module.named_parameters())
    parts = vector.split([p.numel() for p in named.values()])
    return {name: part.view_as(p) for (name, p), part in zip(named.items(), parts, strict=True)}


LIMIT = 1e9  # rewards beyond it would overflow in the value function's squares


def play(game: Game, seed: Sequence[int]) -> dict[str, float]:
    """One iteration of Algorithm 3: trajectories, the discriminator's move, the policy's TRPO step
    on the new discriminator's rewards. Returns the iteration's row of the log."""
    recipe, agent = game.recipe, game.agent
    rollout = agent.sample(seed)
    pairs = game.pairs(rollout)
    value, accuracy = ascend(game, pairs)
    with torch.no_grad():
        paid = reward(game.discriminator(*pairs), recipe.reward).cpu().numpy()
    sane = bool((np.abs(paid) < LIMIT).all())
    if sane:
        agent.improve(rollout, paid.reshape(rollout.actions.shape), recipe.entropy, seed)
    return {
        "return": float(rollout.returns.mean()), "objective": value, "accuracy": accuracy,
        "reward": float(paid.mean()) if sane else math.nan, "steps": rollout.actions.size,
    }  # fmt: skip


def train(
    recipe: Recipe, demonstrations: Demonstrations, *, seed: int, resume: dict | None = None,
    on_iteration: Callable[[Game, list[dict]], None] | None = None, device: str = "cpu",
) -> tuple[Game, pd.DataFrame]:  # fmt: skip
    """Play `recipe` against the demonstrations; return the players and the log.

    `on_iteration` is given the game and the log as they go on changing; `resume` is what it saved
    of them, {"game": game.state(), "log"}. A resumed run ends exactly as if it had never stopped,
    since every iteration starts fresh episodes and draws its random numbers from (seed, iteration).

    The log has a row an iteration. From the policy's own episodes, before its step: `return` (the
    environment's, mean over the first episode of each copy), `objective` (equation 4 without its
    entropy term) and `accuracy` of D, from before its move, and `reward`, the mean that D paid
    after it. Then `steps`, the environment's steps in this iteration, and `seconds`. Where D
    has run away, its logits beyond LIMIT, `reward` is NaN and the run ends there: it diverged.

    Raises InputError for demonstrations on another environment.
    """
    log: list[dict] = []
    game = Game.build(recipe, demonstrations, seed, device)
    if resume:
        game.load(resume["game"])
        log = list(resume["log"])
    for i in range(len(log), recipe.iterations):
        if diverged(log):
            break
        started = time.perf_counter()
        row = play(game, (seed, i))
        log.append({"iteration": i + 1, **row, "seconds": time.perf_counter() - started})
        if on_iteration:
            on_iteration(game, log)
    return game, pd.DataFrame(log)


def diverged(log: list[dict]) -> bool:
    return bool(log) and math.isnan(log[-1]["reward"])


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
    return {
        "final": final, "reached": float(there[0] + 1), "worst_drop": float(drop),
        "below": float((since < 0.8).mean()),
    }  # fmt: skip


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """`stability` of every run of `curves`: a row an environment, method and seed, with the number
    of iterations played (fewer than the others': it diverged) and the return of the last tenth."""
    rows = []
    for keys, run in table.groupby(["environment", "defence", "seed"], sort=False):
        found = stability(run["score"])
        last = run["return"].iloc[-math.ceil(len(run) / 10) :].mean()
        rows.append(dict(zip(("environment", "method", "seed"), keys, strict=True))
                    | {"iterations": len(run), "final_return": last} | found)  # fmt: skip
    return pd.DataFrame(rows)


# Runs of a store --------------------------------------------------------------------------------

# Episodes that end when they succeed; see `reward`.
FINISH = ("MountainCar-v0", "Acrobot-v1")
PATIENCE = {"MountainCar-v0": 2}  # times as many iterations: it takes long to arrive at all
SCALES: dict[str, dict[str, Any]] = {
    "smoke": {"iterations": 4, "hidden": (8, 8), "policy": PolicySettings(pairs=1000)},
    "quick": {"iterations": 90, "hidden": (16, 8), "policy": PolicySettings(pairs=2000)},
    "paper": {"iterations": 1000},
}
SNAPSHOTS = 20


def recipe(environment: str, method: str, profile: str) -> Recipe:
    """The game at a profile's scale. `paper` has the paper's discriminator and batches and plays
    1,000 iterations (the Mountain Car: 2,000), since what is claimed is about long training; Ho and
    Ermon play 300."""
    scale = SCALES[profile]
    scale = scale | {"iterations": scale["iterations"] * PATIENCE.get(environment, 1)}
    ending = "finish" if environment in FINISH else "survive"
    return Recipe(environment=environment, method=method, reward=ending, **scale)


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
        """This run with the networks of a snapshot in place. The players are shared: what an
        earlier call returned changes with it."""
        self.game.agent.actor.load_state_dict(self.snapshots[iteration]["policy"])
        self.game.discriminator.load_state_dict(self.snapshots[iteration]["D"])
        return self


def where(store: Store, recipe: Recipe, demonstrations: Demonstrations, seed: int) -> Path:
    key = fingerprint(asdict(recipe), recipe.rate, demonstrations.fingerprint)
    name = f"{recipe.method.lower().replace(' ', '-')}-{key}"
    return store.runs / "gail" / recipe.environment / name / f"seed-{seed}"


def trained(
    store: Store, recipe: Recipe, seed: int, demonstrations: Demonstrations | None = None
) -> Run:
    """The game of a recipe and seed; played now, or further, if it is not finished.

    A checkpoint is written with each snapshot. With the paper's dense updater it is 4 GB large.
    """
    demonstrations = demonstrations or load(recipe.environment)
    directory = where(store, recipe, demonstrations, seed)
    resume = load_checkpoint(directory, "checkpoint") if directory.exists() else None
    snapshots: dict[int, dict] = dict(resume["snapshots"]) if resume else {}
    every = max(1, recipe.iterations // SNAPSHOTS)

    def on_iteration(game: Game, log: list[dict]) -> None:
        i = len(log)
        if i % every == 0 or i in (1, recipe.iterations) or diverged(log):
            now = {"policy": game.agent.actor.state_dict(), "D": game.discriminator.state_dict()}
            snapshots[i] = copy.deepcopy(now)
            save_checkpoint(
                directory, "checkpoint",
                {"game": game.state(), "log": log, "snapshots": snapshots},
            )  # fmt: skip
        what = f"{recipe.method}, {recipe.environment}, seed {seed}, "
        store.on_progress(f"{what}iteration {i}/{recipe.iterations}", 1 / recipe.iterations)

    with store.threads():
        game, log = train(
            recipe, demonstrations, seed=seed, resume=resume, on_iteration=on_iteration,
            device=str(store.device),
        )  # fmt: skip
    if not (directory / "record.json").exists():
        write_atomically(directory / "log.csv", lambda p: log.to_csv(p, index=False))
        status = "ok" if len(log) == recipe.iterations else "diverged"
        record = {"status": status, "recipe": asdict(recipe), "seed": seed, **provenance(store)}
        write_json(directory / "record.json", record | {"wall_seconds": log["seconds"].sum()})
    return Run(game, log, snapshots)


def provenance(store: Store) -> dict:
    """The store's, with the versions of what plays here."""
    packages = ("gymnasium", "stable-baselines3", "sb3-contrib")
    machine = store.machine()
    return machine | {"versions": machine["versions"] | {p: version(p) for p in packages}}


def curves(
    store: Store, environments: Sequence[str] = ENVIRONMENTS, methods: Sequence[str] = METHODS,
    which: Sequence[int] | None = None,
) -> pd.DataFrame:  # fmt: skip
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
            for seed in chosen:
                directory = played(store, environment, method, seed)
                log = pd.read_csv(directory / "log.csv")
                log = log.assign(score=demonstrations.score(log["return"]))
                parts.append(log.assign(environment=environment, defence=method, seed=seed))
    return pd.concat(parts, ignore_index=True)


def finished(store: Store, environment: str, method: str, seed: int) -> bool:
    setting = recipe(environment, method, store.profile.name)
    return (where(store, setting, load(environment), seed) / "record.json").exists()


def played(store: Store, environment: str, method: str, seed: int) -> Path:
    """Where the profile's run of this name and seed lies, played now if it is not finished."""
    setting = recipe(environment, method, store.profile.name)
    if not finished(store, environment, method, seed):
        trained(store, setting, seed)
    return where(store, setting, load(environment), seed)


# Pictures ---------------------------------------------------------------------------------------


LOOKS: dict[str, dict[str, Any]] = {
    method: {"color": f"C{i}", "marker": "osD"[i], "ls": ("-", "--", ":")[i]}
    for i, method in enumerate(METHODS)
}


def learning_curves(table: pd.DataFrame) -> Figure:
    """Figure 6: return against iteration, a picture an environment; the mean over seeds and a band
    from the lowest to the highest. Dashed, the expert; dotted, chance. `table` as of `curves`."""
    environments = list(dict.fromkeys(table["environment"]))
    fig, axes = plt.subplots(
        1, len(environments), squeeze=False, figsize=(5 * len(environments) + 1, 4)
    )
    for ax, environment in zip(axes[0], environments, strict=True):
        part = table[table["environment"] == environment]
        for method, runs in part.groupby("defence", sort=False):
            line = runs.groupby("iteration")["return"].agg(["mean", "min", "max"])
            look = LOOKS[str(method)]
            ax.plot(line.index, line["mean"], label=method, markevery=0.1, **look)
            ax.fill_between(line.index, line["min"], line["max"], alpha=0.15, color=look["color"])
        _marks(ax, environment)
        ax.set(title=environment, xlabel="iteration")
    axes[0][0].set_ylabel("return")
    count = table["seed"].nunique()
    title = f"mean and range,\n{count} seeds" if count > 1 else "1 seed"
    fig.legend(*axes[0][0].get_legend_handles_labels(), title=title, loc="outside right upper")
    return fig


def seed_curves(table: pd.DataFrame) -> Figure:
    """Every single run: a row an environment, a column a method, a line a seed. A mean hides what
    Figure 6 is about, a run that drops while the others hold."""
    environments = list(dict.fromkeys(table["environment"]))
    methods = list(dict.fromkeys(table["defence"]))
    fig, grid = plt.subplots(
        len(environments), len(methods), squeeze=False, sharex="row", sharey="row",
        figsize=(3.4 * len(methods) + 0.5, 2.3 * len(environments) + 0.5),
    )  # fmt: skip
    for axes, environment in zip(grid, environments, strict=True):
        for ax, method in zip(axes, methods, strict=True):
            runs = table[(table["environment"] == environment) & (table["defence"] == method)]
            for i, (_, run) in enumerate(runs.groupby("seed")):
                dashes = ("-", "--", "-.", ":")[i % 4]
                ax.plot(run["iteration"], run["return"], lw=1.2, ls=dashes, color=f"C{i % 10}")
            _marks(ax, environment)
        axes[0].set_ylabel(f"{environment}\nreturn")
    for ax, method in zip(grid[0], methods, strict=True):
        ax.set_title(method)
    for ax in grid.flat:
        ax.set_xlabel("iteration")
    return fig


def _marks(ax: Axes, environment: str) -> None:
    shown = load(environment)
    ax.axhline(shown.expert, color="0.2", ls="--", lw=1.2, label="expert", zorder=1)
    ax.axhline(shown.chance, color="0.2", ls=":", lw=1.2, label="chance", zorder=1)


# What a picture of the state space spans: two coordinates, their names and ranges; CartPole's
# cart stands still in the middle.
PLANES: dict[str, tuple[tuple[int, int], tuple[str, str], tuple[float, float]]] = {
    "CartPole-v1": ((2, 3), ("angle of the pole (rad)", "angular velocity"), (0.21, 2.0)),
    "MountainCar-v0": ((0, 1), ("position", "velocity"), (0.0, 0.07)),
}


def state_space(run: Run, title: str = "", points: int = 61) -> Figure:
    """Where the policy pushes and what the discriminator thinks of it, on a plane of states.

    Left: the mean push, from −1 (left) to 1 (right). Right: the mean D over the policy's actions,
    the probability that it is not the expert who acts. Dots are states of the expert's.
    """
    agent, d = run.game.agent, run.game.discriminator
    if agent.environment not in PLANES:
        raise InputError(f"No plane of {agent.environment} to draw: add one to gail.PLANES.")
    (i, j), names, (width, height) = PLANES[agent.environment]
    x = np.linspace(-width, width, points) if width else np.linspace(-1.2, 0.6, points)
    y = np.linspace(-height, height, points)
    states = np.zeros((points * points, len(agent.mean)), np.float32)
    states[:, i], states[:, j] = (a.ravel() for a in np.meshgrid(x, y))
    chances = torch.from_numpy(agent.logits(states)).softmax(1)
    push = chances @ torch.linspace(-1, 1, agent.actions)
    seen = torch.from_numpy(agent.standardised(states)).to(run.game.expert[0].device)
    doubt = torch.zeros(len(states))
    with torch.no_grad():
        for a in range(agent.actions):
            chosen = torch.full((len(states),), a, device=seen.device)
            doubt += chances[:, a] * torch.sigmoid(d(seen, chosen)).cpu()
    fig, axes = plt.subplots(1, 2, figsize=(10, 4), sharex=True, sharey=True)
    pictures = (
        ("mean push of the policy", push, "PuOr", -1),
        ("mean D of its actions", doubt, "cividis", 0),
    )
    expert = run.game.expert[0].cpu().numpy() * agent.std + agent.mean
    few = expert[:: max(1, len(expert) // 300)]
    for ax, (name, values, colours, low) in zip(axes, pictures, strict=True):
        shown = ax.pcolormesh(
            x, y, values.view(points, points), cmap=colours, vmin=low, vmax=1, rasterized=True
        )
        ax.scatter(few[:, i], few[:, j], s=6, c="k", edgecolors="w", linewidths=0.4)
        ax.set(title=name, xlabel=names[0], xlim=x[[0, -1]], ylim=y[[0, -1]])
        fig.colorbar(shown, ax=ax)
    axes[0].set_ylabel(names[1])
    fig.suptitle(title)
    return fig


def explorer(store: Store, environment: str) -> widgets.Widget:
    """Scrub through a finished training: method, seed and iteration; nothing is trained again."""
    method = widgets.Dropdown(options=METHODS, description="method")
    seed = widgets.Dropdown(options=seeds(store), description="seed")
    moment = widgets.SelectionSlider(options=[0], description="iteration")
    image = widgets.Image(format="png", width=900)
    runs: list[Run] = []

    def draw(_: Any = None) -> None:
        run = runs[-1].at(moment.value)
        back = run.log["return"][moment.value - 1]
        title = f"{method.value}, iteration {moment.value}: return {back:.0f}"
        image.value = picture(state_space(run, title))

    def choose(_: Any = None) -> None:
        setting = recipe(environment, method.value, store.profile.name)
        runs[:] = [trained(store, setting, seed.value)]
        moment.options = list(runs[-1].snapshots)
        moment.value = moment.options[-1]
        draw()

    choose()
    for control, react in ((method, choose), (seed, choose), (moment, draw)):
        control.observe(react, names="value")
    return widgets.VBox([widgets.HBox([method, seed, moment]), image])


def episode(agent: Agent, seed: int = 0) -> NDArray[np.float32]:
    """The states (T, d) of one episode in which the agent takes its most likely actions."""
    envs = make(agent.environment, 1)
    run = roll_out(envs, agent.steps, lambda s: agent.act(s, None), [seed])
    return run.observations[run.first]


def film(episodes: Mapping[str, NDArray], environment: str) -> bytes:
    """Episodes, name -> states (T, d), side by side as a GIF; one that is over stands still.

    Raises InputError for an environment that has no drawing here.
    """
    if environment not in _DRAWINGS:
        raise InputError(f"Nothing here draws {environment}: choose {' or '.join(_DRAWINGS)}.")
    longest = max(len(states) for states in episodes.values())
    frames = []
    for t in range(0, longest + 20, max(1, longest // 100)):
        frame = Image.new("P", (240 * len(episodes), 170), 0)
        frame.putpalette([255, 255, 255, 40, 40, 40, 1, 115, 178, 222, 143, 5, 200, 200, 200])
        pen = ImageDraw.Draw(frame)
        for k, (name, states) in enumerate(episodes.items()):
            _DRAWINGS[environment](pen, 240 * k, states[min(t, len(states) - 1)])
            pen.text((240 * k + 8, 4), name, fill=1, font_size=14)
            pen.text((240 * k + 8, 22), f"step {min(t, len(states))}", fill=1, font_size=12)
            pen.line([240 * k, 0, 240 * k, 170], fill=4)
        frames.append(frame)
    buffer = BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=60, loop=0)
    return buffer.getvalue()


def _draw_cart(pen: ImageDraw.ImageDraw, left: int, state: NDArray) -> None:
    x, y = left + 120 + 45 * float(state[0]), 135
    pen.line([left, y + 12, left + 240, y + 12], fill=1)
    pen.rectangle([x - 18, y - 8, x + 18, y + 8], fill=2)
    tip = (x + 75 * math.sin(state[2]), y - 8 - 75 * math.cos(state[2]))
    pen.line([(x, y - 8), tip], fill=3, width=6)


def _draw_car(pen: ImageDraw.ImageDraw, left: int, state: NDArray) -> None:
    def place(position: float) -> tuple[float, float]:
        return left + (position + 1.2) / 1.8 * 239, 150 - 45 * (math.sin(3 * position) + 1)

    pen.line([place(p) for p in np.linspace(-1.2, 0.6, 60)], fill=1, width=2)
    goal = place(0.5)
    pen.line([goal, (goal[0], goal[1] - 22)], fill=3, width=3)
    x, y = place(float(state[0]))
    pen.ellipse([x - 7, y - 15, x + 7, y - 1], fill=2)


_DRAWINGS = {"CartPole-v1": _draw_cart, "MountainCar-v0": _draw_car}
