"""GAIL's throughput: environment steps a second and seconds an iteration.

    python benchmarks/gail.py [--environment NAME] [--iterations N] [--pairs N] [--seed N]
    python benchmarks/gail.py --memory         the paper's dense updater: memory, disk and time
    python benchmarks/gail.py --controls       what makes L2L GAIL unsteady: writes a record
    python benchmarks/gail.py --long [--workers N]     Figure 6 over 1,000 iterations: a record
    python benchmarks/gail.py --imitation DEMONSTRATIONS.npz      in the library's own environment

The first plays GAIL and both variants of L2L GAIL with the discriminator (s, a) -> 64 -> 32 -> 1
(the dense updater with 16 -> 8, which has 3.4 million parameters in place of 341). Imitation needs
neither l2lkit nor its versions, but the package `imitation` (and `sb3-contrib`): it trains that
library's GAIL with the same TRPO settings, environment, expert's pairs, pairs an iteration and
number of steps, and once more with its own defaults and those of sb3-contrib's TRPO. Everything
runs on one thread; prints JSON, a line a run. Run both on the same idle core, one after the other.
"""

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from l2lkit.gail.game import GailRecipe


def ours(environment: str, method: str, iterations: int, pairs: int, seed: int) -> dict:
    from l2lkit.gail import game
    from l2lkit.gail.agent import PolicySettings
    from l2lkit.gail.demonstrations import load

    hidden = (16, 8) if method == "L2L GAIL" else (64, 32)
    recipe = replace(
        game.gail_recipe(environment, method, "paper"),
        iterations=iterations,
        hidden=hidden,
        policy=PolicySettings(pairs=pairs),
    )
    shown = load(environment)
    game.iterate(game.Game.build(recipe, shown, seed), (1, 0))  # warm up
    started = clocks()
    players, log = game.train(recipe, shown, seed=seed)
    spent = clocks() - started
    returns = players.agent.evaluate(100, seed=1)
    return {"method": method, "hidden": hidden, "seed": seed} | figures(
        environment, int(log["steps"].sum()), spent, iterations, float(returns.mean())
    )


def clocks() -> np.ndarray:
    """Wall and CPU time in seconds; on a busy machine the second is the fairer one."""
    return np.array([time.perf_counter(), time.process_time()])


def figures(
    environment: str, steps: int, spent: np.ndarray, iterations: float, returns: float
) -> dict:
    wall, cpu = spent
    return {
        "environment": environment,
        "steps": steps,
        "steps_per_second": round(steps / wall),
        "steps_per_cpu_second": round(steps / cpu),
        "seconds_per_iteration": round(wall / iterations, 4),
        "return": returns,
    }


def memory(directory: str) -> dict:
    """The paper's updater on CartPole: four iterations of the paper's profile, stopped after two
    and gone on with from the checkpoint, and what that takes. Needs 12 GB of memory, 9 of disk."""
    from l2lkit.gail.game import gail_recipe
    from l2lkit.results.gail import trained
    from l2lkit.runs.store import Store

    def stop(words: str, share: float) -> None:
        if "iteration 2/4" in words:
            raise KeyboardInterrupt

    recipe = replace(gail_recipe("CartPole-v1", "L2L GAIL", "paper"), iterations=4)
    store = Store("paper", device="cpu", output=directory, on_progress=stop)
    started = time.perf_counter()
    with suppress(KeyboardInterrupt):
        trained(store, recipe, 0)
    files = list(Path(directory).rglob("*.pt"))
    half = sum(p.stat().st_size for p in files)
    store.on_progress = lambda words, share: None
    run = trained(store, recipe, 0)
    seconds = time.perf_counter() - started
    assert run.game.updater is not None
    count = sum(p.numel() for p in run.game.updater.parameters())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    over = sum(p.stat().st_size for p in Path(directory).rglob("*.pt"))
    return {
        "parameters": count,
        "gigabytes_float32_with_adam": 16 * count / 1e9,
        "peak_gigabytes": peak / 1e9,
        "checkpoints": len(files),
        "checkpoint_gigabytes": half / 1e9,
        "checkpoint_gigabytes_when_over": over / 1e9,
        "seconds_with_checkpoints": seconds,
        "seconds_per_iteration": run.log["seconds"].tolist(),
        "return": run.log["return"].tolist(),
    }


def controls(seeds: Sequence[int], iterations: int = 120) -> dict:
    """L2L GAIL on CartPole, which goes on in six ways from the iteration that first scores 0.95,
    with the numbers of Figure 6 from there on; GAIL for comparison.

    "brake": after each iteration U's last layer, and so what U puts out, shrinks to nine tenths.
    """
    import pandas as pd
    import torch

    from l2lkit.gail.demonstrations import load
    from l2lkit.gail.game import Game, gail_recipe, train
    from l2lkit.results.gail import provenance, stability
    from l2lkit.runs.store import Store

    shown = load("CartPole-v1")
    store = Store("quick", device="cpu", seed=seeds[0], seeds=len(seeds))

    def brake(game: Game) -> None:
        assert game.updater is not None
        with torch.no_grad():
            for weight in game.updater.net[-1].parameters():
                weight.mul_(0.9)

    def frozen_updater(game: Game) -> None:
        game.optimiser.param_groups[0]["lr"] = 0.0

    def frozen_discriminator(game: Game) -> None:
        adam_on_discriminator(game)
        game.optimiser.param_groups[0]["lr"] = 0.0

    def adam_on_discriminator(game: Game) -> None:
        if game.updater is not None:
            weights = game.discriminator.parameters()
            game.updater, game.optimiser = None, torch.optim.Adam(weights, 0.01, maximize=True)

    def run(method: str, seed: int, change: Callable | None) -> dict:
        reached: list[int] = []

        def on_iteration(game: Game, log: list[dict]) -> None:
            if reached or shown.score(log[-1]["return"]) >= 0.95:
                reached.append(len(log))
                if change is not None:
                    change(game)

        recipe = replace(gail_recipe("CartPole-v1", method, "quick"), iterations=iterations)
        _, log = train(recipe, shown, seed=seed, on_iteration=on_iteration)
        last = float(log["return"].iloc[-iterations // 10 :].mean())
        about = {"seed": seed, "iterations": len(log), "final_return": last}
        return about | stability(shown.score(log["return"]))

    ways: dict[str, tuple[str, Callable | None]] = {
        "GAIL": ("GAIL", None),
        "L2L GAIL": ("L2L GAIL", None),
        "then D is frozen": ("L2L GAIL", frozen_discriminator),
        "then U is frozen, and goes on moving D": ("L2L GAIL", frozen_updater),
        "then Adam moves D": ("L2L GAIL", adam_on_discriminator),
        "then U has a brake": ("L2L GAIL", brake),
    }
    table = pd.DataFrame(
        {"run": name} | run(method, seed, change)
        for name, (method, change) in ways.items()
        for seed in seeds
    )
    caption = (
        "L2L GAIL until it first scores 0.95, and then? CartPole-v1, networks and batches of the "
        f"profile quick, {iterations} iterations, seeds {seeds[0]} to {seeds[-1]}."
    )
    clean = json.loads(table.to_json(orient="records"))
    return {"caption": caption, "rows": clean, "provenance": provenance(store)}


LONG = 1000  # iterations
FRESH = range(3, 8)  # seeds that no rate was chosen on


def long_recipe(environment: str, method: str) -> "GailRecipe":
    """The profile `paper` for 1,000 iterations, all methods with the narrow discriminator whose
    dense updater has 3.4 million parameters."""
    from l2lkit.gail.game import gail_recipe

    setting = gail_recipe(environment, method, "paper")
    return replace(setting, hidden=(16, 8), iterations=LONG)


def long_run(output: str | None, environment: str, method: str, seed: int) -> dict:
    from l2lkit.results.gail import trained
    from l2lkit.runs.store import Store

    store = Store("paper", device="cpu", output=output)
    store.profile = replace(store.profile, threads=1)
    log = trained(store, long_recipe(environment, method), seed).log
    about = {"environment": environment, "method": method, "seed": seed}
    about["lowest_objective"] = round(float(log["objective"].min()), 2)
    return about | {"returns": log["return"].round().astype(int).tolist()}


def long(output: str | None, workers: int) -> dict:
    """Does GAIL drop after long training, and does L2L GAIL not? All methods and environments over
    fresh seeds; goes on where it was stopped, since the games are kept under `output`."""
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from multiprocessing import get_context

    from tqdm import tqdm

    from l2lkit.gail.environments import ENVIRONMENTS
    from l2lkit.gail.game import METHODS
    from l2lkit.results.gail import provenance
    from l2lkit.runs.store import Store

    keys = [(e, m, s) for s in FRESH for e in ENVIRONMENTS for m in METHODS]
    rows = []
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        waiting = [pool.submit(long_run, output, *key) for key in keys]
        for done in tqdm(as_completed(waiting), total=len(keys)):
            rows.append(done.result())
    rows.sort(key=lambda r: (r["environment"], METHODS.index(r["method"]), r["seed"]))
    caption = (
        f"Return of every iteration. CartPole-v1 and MountainCar-v0, {LONG:,} iterations, batches "
        f"and policy of the profile paper, D with 16 and 8 units, seeds {FRESH[0]} to {FRESH[-1]}."
    )
    recipes = [asdict(long_recipe(e, m)) for e in ENVIRONMENTS for m in METHODS]
    about = provenance(Store("paper", device="cpu", output=output))
    return {"caption": caption, "rows": rows, "recipes": recipes, "provenance": about}


def theirs(
    path: str, environment: str, iterations: int, pairs: int, seed: int, defaults: bool
) -> dict:
    """The `imitation` library's GAIL: on the same terms, or with its `defaults`, eight copies and
    batches of 1,024 as its documentation has them."""
    import gymnasium
    from imitation.algorithms.adversarial.gail import GAIL
    from imitation.data.types import Transitions
    from imitation.data.wrappers import RolloutInfoWrapper
    from imitation.rewards.reward_nets import BasicRewardNet
    from sb3_contrib import TRPO
    from stable_baselines3.common.evaluation import evaluate_policy
    from stable_baselines3.common.vec_env import DummyVecEnv
    from torch import nn

    with np.load(path) as file:
        observations, actions, ends = (file[k] for k in ("observations", "actions", "ends"))
    following = np.concatenate([observations[1:], observations[-1:]])
    dones, infos = np.zeros(len(actions), dtype=bool), np.array([{}] * len(actions))
    dones[ends - 1] = True
    expert = {"obs": observations, "acts": actions, "next_obs": following}
    shown = Transitions(**expert, dones=dones, infos=infos)
    horizon = gymnasium.spec(environment).max_episode_steps
    assert horizon is not None
    copies = 8 if defaults else pairs // horizon
    venv = DummyVecEnv([lambda: RolloutInfoWrapper(gymnasium.make(environment))] * copies)
    space = venv.observation_space, venv.action_space
    terms: dict = {"allow_variable_horizon": True}
    if defaults:
        trpo, net = TRPO("MlpPolicy", venv, seed=seed, device="cpu"), BasicRewardNet(*space)
        terms["demo_batch_size"] = 1024
    else:
        trpo = TRPO(
            "MlpPolicy",
            venv,
            n_steps=pairs // copies,
            batch_size=min(500, pairs),
            gamma=0.995,
            gae_lambda=0.97,
            target_kl=0.01,
            cg_damping=0.1,
            cg_max_steps=10,
            n_critic_updates=5,
            learning_rate=1e-3,
            policy_kwargs={"net_arch": [64, 32]},
            seed=seed,
            device="cpu",
        )
        net = BasicRewardNet(*space, hid_sizes=(64, 32), activation=nn.Tanh)
        terms |= {"demo_batch_size": min(pairs, len(actions)), "n_disc_updates_per_round": 1}
        terms |= {"gen_train_timesteps": pairs, "gen_replay_buffer_capacity": pairs}
        terms["disc_opt_kwargs"] = {"lr": 0.01}
    trainer = GAIL(demonstrations=shown, venv=venv, gen_algo=trpo, reward_net=net, **terms)
    steps = trpo.n_steps * copies
    rounds = max(1, iterations * pairs // steps)
    started = clocks()
    trainer.train(rounds * steps)
    spent = clocks() - started
    test = DummyVecEnv([lambda: gymnasium.make(environment)])
    test.seed(1)
    returns = evaluate_policy(trpo, test, 100, deterministic=True)[0]
    assert isinstance(returns, float)
    name = f"imitation's GAIL{', its defaults' if defaults else ''}"
    hidden = (32, 32) if defaults else (64, 32)
    return {"method": name, "hidden": hidden, "seed": seed} | figures(
        environment, rounds * steps, spent, rounds, returns
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--environment", default="CartPole-v1")
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--pairs", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--controls", action="store_true")
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--workers", type=int, default=2, help="processes, for --long")
    parser.add_argument("--output", help="where --long keeps its games (default: the project)")
    parser.add_argument("--imitation", metavar="DEMONSTRATIONS.npz")
    args = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    if args.memory:
        with tempfile.TemporaryDirectory() as directory:
            print(json.dumps(memory(directory)))
        return
    recorded = Path(__file__).parents[1] / "results" / "recorded"
    if args.controls:
        text = json.dumps(controls(range(3)), indent=1)
        (recorded / "gail_controls.json").write_text(text + "\n", encoding="utf-8")
        return
    if args.long:
        text = json.dumps(long(args.output, args.workers))
        (recorded / "gail_long.json").write_text(text + "\n", encoding="utf-8")
        return
    terms = (args.environment, args.iterations, args.pairs, args.seed)
    if args.imitation:
        for defaults in (False, True):
            print(json.dumps(theirs(args.imitation, *terms, defaults)))
    else:
        for method in ("GAIL", "L2L GAIL", "L2L GAIL (shared)"):
            print(json.dumps(ours(terms[0], method, *terms[1:])))


if __name__ == "__main__":
    main()
