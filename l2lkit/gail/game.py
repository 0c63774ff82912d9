"""GAIL: the same game, between a policy and a discriminator whose optimiser may be learned.

    min over π  max over D  of  E_π[log D(s, a)] + E_E[log(1 − D(s, a))] − λH(π)
                                                    (ICLR 2020, section 4, equation 4)

The sign convention, here and everywhere below: D(s, a) is the probability that a pair comes from
the policy and not from the expert. So D climbs the objective, its optimum is ρ_π / (ρ_π + ρ_E),
and the policy, which goes down it, is rewarded with −log D.

`iterate` is the whole game; the players differ in how the discriminator moves:

    GAIL        θ_D takes an Adam step up the objective
    L2L GAIL    θ_D ← U(θ_D, g_D; θ_U), and Adam moves θ_U up the objective through that step

Algorithm 3 prints that θ_U is updated "by minimizing" the objective at the new θ_D, section 4 that
it ascends. Only the second fits equation 4: U stands in for D's optimiser, so that its output is to
be a better discriminator, and the better one has the higher objective. A U that minimised would
teach D to take the expert's pairs for the policy's. It ascends here.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from l2lkit.errors import InputError
from l2lkit.gail.agent import Agent, PolicySettings, Rollout, scale_of
from l2lkit.gail.demonstrations import Demonstrations
from l2lkit.gail.environments import make, sizes
from l2lkit.gail.networks import Discriminator, Updater, check_memory
from l2lkit.game.guard import own_settings

METHODS = ("GAIL", "L2L GAIL", "L2L GAIL (shared)")


# What they play for -----------------------------------------------------------------------------


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


# The game ---------------------------------------------------------------------------------------


# Adam's rate for θ_U. Appendix C.2 takes θ_D's, 0.01 in Ho and Ermon's code: at that rate one step
# changes U's output by up to the layer's width times 0.01, every later output adds to θ_D again,
# and the dense U diverges within ten iterations (D of 16 and 8 units). Below 1e-6 D hardly leaves
# 1/2. In between no rate came near GAIL's stability. On seeds 0 to 2 at the profile quick, of 3e-6,
# 1e-5 and 3e-5 only 1e-5 reached the expert in all six runs, and of 1e-4, 3e-4 and 1e-3 the shared
# U held the most of the expert's return at 1e-4, the lowest.
RATES = {"L2L GAIL": 1e-5, "L2L GAIL (shared)": 1e-4}


@dataclass(frozen=True, kw_only=True)
class GailRecipe:
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


def updated(recipe: GailRecipe) -> int:
    """The m that U is made for: the number of D's parameters, 1 if it is shared, 0 without U."""
    if recipe.method == "GAIL":
        return 0
    if recipe.method.endswith("(shared)"):
        return 1
    layers = [sum(sizes(make(recipe.environment, 1))), *recipe.hidden, 1]
    return sum((a + 1) * b for a, b in zip(layers, layers[1:], strict=False))


@dataclass
class Game:
    """The players of one run: the agent with its policy, the discriminator, U where there is one,
    the optimiser of D or U, and the expert's pairs."""

    recipe: GailRecipe
    agent: Agent
    discriminator: Discriminator
    updater: Updater | None
    optimiser: torch.optim.Optimizer
    expert: tuple[Tensor, Tensor]

    @classmethod
    def build(
        cls, recipe: GailRecipe, demonstrations: Demonstrations, seed: int, device: str = "cpu"
    ) -> "Game":
        """New players; `seed` decides their first weights. D and U live on `device`. Raises
        InputError for demonstrations on another environment and for a U that memory cannot hold."""
        if demonstrations.environment != recipe.environment:
            raise InputError(
                f"The demonstrations are on {demonstrations.environment}, the recipe on "
                f"{recipe.environment}: load those of the recipe's environment."
            )
        seen = demonstrations.observations
        agent = Agent(recipe.environment, recipe.policy, *scale_of(seen), seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            discriminator = Discriminator(seen.shape[1], agent.actions, recipe.hidden).to(device)
            updater = None
            if recipe.method != "GAIL":
                m = updated(recipe)
                check_memory(m, device)
                with torch.device(device):
                    updater = Updater(m)
        learner = updater or discriminator
        optimiser = torch.optim.Adam(learner.parameters(), recipe.rate, maximize=True)
        observations = torch.from_numpy(agent.standardised(seen)).to(device)
        actions = torch.from_numpy(demonstrations.actions).to(device)
        return cls(recipe, agent, discriminator, updater, optimiser, (observations, actions))

    def state(self, over: bool = False) -> dict:
        """All tensors of the game, for a checkpoint; those of a game that is `over` leave the
        optimiser's moments out, two thirds of the whole where U is dense."""
        parts = {"agent": self.agent.state(), "D": self.discriminator.state_dict()}
        if self.updater:
            parts["U"] = self.updater.state_dict()
        return parts if over else parts | {"optimiser": self.optimiser.state_dict()}

    def load(self, state: dict) -> None:
        """The players of `state`. A finished game may come without its U, as the dense ones in the
        box that the package brings: then there is none, and the game is for looking at."""
        self.agent.load(state["agent"])
        self.discriminator.load_state_dict(state["D"])
        if self.updater and "U" in state:
            self.updater.load_state_dict(state["U"])
        elif self.updater and "optimiser" not in state:
            self.updater = None
        if "optimiser" in state:
            self.optimiser.load_state_dict(state["optimiser"])

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
        moved = game.updater(theta, gradient)
        new = unflatten(d, moved)
        after = objective(functional_call(d, new, pairs), functional_call(d, new, game.expert))
        after.backward()
        optimiser.step()
        vector_to_parameters(moved.detach(), weights)
    return value.item(), right.item() / 2


def unflatten(module: nn.Module, vector: Tensor) -> dict[str, Tensor]:
    """The module's parameters by name, as views of a vector (m,)."""
    named = dict(module.named_parameters())
    parts = vector.split([p.numel() for p in named.values()])
    return {name: part.view_as(p) for (name, p), part in zip(named.items(), parts, strict=True)}


LIMIT = 1e9  # rewards beyond it would overflow in the value function's squares


def iterate(game: Game, seed: Sequence[int]) -> dict[str, float]:
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
    row = {"return": float(rollout.returns.mean()), "objective": value, "accuracy": accuracy}
    row["reward"] = float(paid.mean()) if sane else math.nan
    return row | {"steps": rollout.actions.size}


@own_settings()
def train(
    recipe: GailRecipe,
    demonstrations: Demonstrations,
    *,
    seed: int,
    resume: dict | None = None,
    on_iteration: Callable[[Game, list[dict]], None] | None = None,
    device: str = "cpu",
) -> tuple[Game, pd.DataFrame]:
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
        row = iterate(game, (seed, i))
        log.append({"iteration": i + 1, **row, "seconds": time.perf_counter() - started})
        if on_iteration:
            on_iteration(game, log)
    return game, pd.DataFrame(log)


def diverged(log: list[dict]) -> bool:
    return bool(log) and math.isnan(log[-1]["reward"])


# Scales -----------------------------------------------------------------------------------------

# Episodes that end when they succeed; see `reward`.
FINISH = ("MountainCar-v0", "Acrobot-v1")
PATIENCE = {"MountainCar-v0": 2}  # times as many iterations: it takes long to arrive at all
# Small batches take the whole Fisher matrix: of a tenth of their pairs it is too rough.
PAIRS_1000, PAIRS_2000 = (PolicySettings(pairs=n, fisher_every=1) for n in (1000, 2000))
SCALES: dict[str, dict[str, Any]] = {
    "smoke": {"iterations": 4, "hidden": (8, 8), "policy": PAIRS_1000},
    "quick": {"iterations": 60, "hidden": (16, 8), "policy": PAIRS_2000},
    "night": {"iterations": 90, "hidden": (16, 8), "policy": PAIRS_2000},
    "paper": {"iterations": 1000},
}
SNAPSHOTS = 20


def gail_recipe(environment: str, method: str, profile: str) -> GailRecipe:
    """The game at a profile's scale. `paper` has the paper's discriminator and batches and plays
    1,000 iterations (the Mountain Car: 2,000), since what is claimed is about long training; Ho and
    Ermon play 300."""
    scale = SCALES[profile]
    scale = scale | {"iterations": scale["iterations"] * PATIENCE.get(environment, 1)}
    ending = "finish" if environment in FINISH else "survive"
    return GailRecipe(environment=environment, method=method, reward=ending, **scale)
