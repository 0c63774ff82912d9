"""GAIL's throughput: environment steps a second and seconds an iteration.

    python benchmarks/gail.py [--environment NAME] [--iterations N] [--pairs N]
    python benchmarks/gail.py --memory                 the paper's dense updater: memory and time
    python benchmarks/gail.py --imitation DEMONSTRATIONS.npz      in the library's own environment

The first plays GAIL and both variants of L2L GAIL with the discriminator (s, a) -> 64 -> 32 -> 1
(the dense updater with 16 -> 8, which has 3.4 million parameters in place of 341). The last needs
neither l2lkit nor its versions, but the package `imitation` (and `sb3-contrib`): it trains that
library's GAIL with the same TRPO settings, environment, expert's pairs, pairs an iteration and
number of steps. Everything runs on one thread; prints JSON, a line a run.
"""

import argparse
import json
import resource
import time


def ours(environment: str, method: str, iterations: int, pairs: int) -> dict:
    from l2lkit import experts, gail

    hidden = (16, 8) if method == "L2L GAIL" else (64, 32)
    recipe = gail.Recipe(
        environment=environment, method=method, iterations=iterations, hidden=hidden,
        reward="finish" if environment in gail.FINISH else "survive",
        policy=experts.PolicySettings(pairs=pairs),
    )  # fmt: skip
    shown = experts.load(environment)
    game = gail.Game.build(recipe, shown, 0)
    gail.play(game, (1, 0))  # warm up
    started = time.perf_counter()
    game, log = gail.train(recipe, shown, seed=0)
    seconds = time.perf_counter() - started
    returns = game.agent.evaluate(20, seed=1)
    return {"method": method, "hidden": hidden} | figures(
        environment, int(log["steps"].sum()), seconds, iterations, float(returns.mean())
    )


def figures(
    environment: str, steps: int, seconds: float, iterations: float, returns: float
) -> dict:
    return {
        "environment": environment, "steps": steps, "steps_per_second": round(steps / seconds),
        "seconds_per_iteration": round(seconds / iterations, 4), "return": returns,
    }  # fmt: skip


def memory(moves: int = 5) -> dict:
    """The paper's updater on CartPole, moved a few times on 5,000 pairs of either side."""
    import numpy as np
    import torch

    from l2lkit import experts, gail

    shown = experts.load("CartPole-v1")
    recipe = gail.Recipe(environment="CartPole-v1", method="L2L GAIL")
    game = gail.Game.build(recipe, shown, 0)
    observations, actions = game.expert
    seconds = []
    for _ in range(moves):
        started = time.perf_counter()
        gail.ascend(game, (observations + 0.1 * torch.randn_like(observations), actions))
        seconds.append(time.perf_counter() - started)
    assert game.updater is not None
    count = sum(p.numel() for p in game.updater.parameters())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "parameters": count, "gigabytes_float32_with_adam": 16 * count / 1e9,
        "peak_gigabytes": peak / 1e9, "seconds_per_move": float(np.median(seconds[1:])),
    }  # fmt: skip


def theirs(path: str, environment: str, iterations: int, pairs: int, copies: int) -> dict:
    """The `imitation` library's GAIL on the same terms."""
    import gymnasium
    import numpy as np
    from imitation.algorithms.adversarial.gail import GAIL
    from imitation.data.types import Transitions
    from imitation.rewards.reward_nets import BasicRewardNet
    from sb3_contrib import TRPO
    from stable_baselines3.common.evaluation import evaluate_policy
    from stable_baselines3.common.vec_env import DummyVecEnv
    from torch import nn

    with np.load(path) as found:
        observations, actions, ends = (found[k] for k in ("observations", "actions", "ends"))
    following = np.concatenate([observations[1:], observations[-1:]])
    dones = np.zeros(len(actions), dtype=bool)
    dones[ends - 1] = True
    shown = Transitions(
        obs=observations, acts=actions, next_obs=following, dones=dones,
        infos=np.array([{}] * len(actions)),
    )  # fmt: skip

    from imitation.data.wrappers import RolloutInfoWrapper

    venv = DummyVecEnv([lambda: RolloutInfoWrapper(gymnasium.make(environment))] * copies)
    trpo = TRPO(
        "MlpPolicy", venv, n_steps=pairs // copies, batch_size=min(500, pairs), gamma=0.995,
        gae_lambda=0.97, target_kl=0.01, cg_damping=0.1, n_critic_updates=5, learning_rate=1e-3,
        policy_kwargs={"net_arch": [64, 32]}, seed=0, device="cpu",
    )  # fmt: skip
    space = venv.observation_space, venv.action_space
    net = BasicRewardNet(*space, hid_sizes=(64, 32), activation=nn.Tanh)
    trainer = GAIL(
        demonstrations=shown, demo_batch_size=min(pairs, len(actions)), venv=venv, gen_algo=trpo,
        reward_net=net, n_disc_updates_per_round=1, gen_train_timesteps=pairs,
        gen_replay_buffer_capacity=pairs, disc_opt_kwargs={"lr": 0.01},
        allow_variable_horizon=True,
    )  # fmt: skip
    started = time.perf_counter()
    trainer.train(iterations * pairs)
    seconds = time.perf_counter() - started
    test = DummyVecEnv([lambda: gymnasium.make(environment)])
    returns, _ = evaluate_policy(trpo, test, 20, deterministic=True)
    return {"method": "imitation's GAIL", "hidden": (64, 32)} | figures(
        environment, iterations * pairs, seconds, iterations, float(returns)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--environment", default="CartPole-v1")
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--pairs", type=int, default=5000)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--imitation", metavar="DEMONSTRATIONS.npz")
    args = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    if args.memory:
        print(json.dumps(memory()))
    elif args.imitation:
        terms = (args.environment, args.iterations, args.pairs, 10)
        print(json.dumps(theirs(args.imitation, *terms)))
    else:
        for method in ("GAIL", "L2L GAIL", "L2L GAIL (shared)"):
            print(json.dumps(ours(args.environment, method, args.iterations, args.pairs)))


if __name__ == "__main__":
    main()
