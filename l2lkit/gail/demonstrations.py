"""What an expert showed: its episodes as plain arrays, in a file of their own."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l2lkit.errors import InputError
from l2lkit.files import write_atomically
from l2lkit.gail.agent import Agent, by_chance, roll_out
from l2lkit.gail.environments import Floats, make, sizes
from l2lkit.game.identity import fingerprint

SHIPPED = Path(__file__).parent / "shipped"


@dataclass(frozen=True)
class Demonstrations:
    """An expert's episodes as plain arrays.

    observations: (M, d) float32; actions: (M,) whole numbers; ends: (E,), increasing, one past
    each episode's last pair (so the last is M); returns: (E,). To place other returns by:
    `expert_returns` and `random_returns`, those of 100 further episodes of the expert and of 100
    of uniformly random actions. Numbers of other types are converted. Raises InputError if a shape,
    a value or a range does not fit.
    """

    environment: str
    observations: Floats
    actions: NDArray[np.int64]
    ends: NDArray[np.int64]
    returns: Floats
    expert_returns: Floats
    random_returns: Floats

    def __post_init__(self) -> None:
        envs = make(self.environment, 1)
        self._convert(observations=np.float32, returns=np.float32)
        self._convert(expert_returns=np.float32, random_returns=np.float32)
        self._convert(actions=np.float64, ends=np.float64)  # whole numbers, as is seen to below
        pairs, episodes = len(self.actions), len(self.ends)
        width, choices = sizes(envs)
        if pairs == 0 or episodes == 0:
            raise InputError(
                "The demonstrations are empty: record at least one episode, or leave the path out "
                "to use those that come with l2lkit."
            )
        if self.observations.shape != (pairs, width) or self.actions.ndim != 1:
            raise InputError(
                f"Demonstrations on {self.environment} need observations of shape (M, {width}) "
                f"and M actions, not {self.observations.shape} and {self.actions.shape}."
            )
        if not np.isfinite(self.observations).all():
            raise InputError("The demonstrations hold observations that are not finite numbers.")
        whole = np.equal(np.mod(self.actions, 1), 0).all()
        if not whole or self.actions.min() < 0 or self.actions.max() >= choices:
            raise InputError(f"Actions on {self.environment} must be from 0 to {choices - 1}.")
        steps = np.diff(self.ends, prepend=0)
        rising = not (steps % 1).any() and (steps > 0).all() and self.ends[-1] == pairs
        if not rising or len(self.returns) != episodes:
            raise InputError(
                f"Episode ends must rise to the number of pairs, {pairs}, with one return each, "
                f"not {self.ends.tolist()[:5]}… with {len(self.returns)} returns."
            )
        if len(self.expert_returns) == 0 or len(self.random_returns) == 0:
            raise InputError("The demonstrations need the returns of the expert and of chance.")
        self._convert(actions=np.int64, ends=np.int64)

    def _convert(self, **types: Any) -> None:
        for name, kind in types.items():
            try:
                converted = np.atleast_1d(np.asarray(getattr(self, name)).astype(kind))
                object.__setattr__(self, name, converted)
            except (TypeError, ValueError) as error:
                raise InputError(f"The {name} must be an array of numbers ({error}).") from error

    @property
    def fingerprint(self) -> str:
        """Ten hex digits that change with any pair."""
        parts = (self.observations, self.actions, self.ends)
        return fingerprint(self.environment, [a.tobytes().hex() for a in parts])

    @property
    def expert(self) -> float:
        """The expert's mean return."""
        return float(self.expert_returns.mean())

    @property
    def chance(self) -> float:
        """The mean return of uniformly random actions."""
        return float(self.random_returns.mean())

    def score(self, returns: NDArray | float) -> NDArray[np.float64]:
        """Returns on the scale where chance is 0 and the expert 1: it works for negative ones."""
        return (np.asarray(returns, dtype=np.float64) - self.chance) / (self.expert - self.chance)

    def save(self, path: Path) -> None:
        arrays = {k: v for k, v in asdict(self).items() if k != "environment"}
        name = np.array(self.environment)

        def write(p: Path) -> None:
            with p.open("wb") as file:  # a path would get .npz appended
                np.savez_compressed(file, environment=name, **arrays)

        write_atomically(path, write)


def load(environment: str, path: str | Path | None = None) -> Demonstrations:
    """The demonstrations in an .npz file, by default those that come with l2lkit.

    Raises InputError if there is no such file, it is damaged or made for another environment.
    """
    make(environment, 1).close()
    path = Path(path) if path else SHIPPED / f"{environment}.npz"
    command = f"python -m l2lkit demonstrations --environment {environment}"
    try:
        with np.load(path) as file:
            arrays = dict(file)
        made_for = str(arrays.pop("environment"))
        demonstrations = Demonstrations(made_for, **arrays)
    except FileNotFoundError:
        words = f"There are no demonstrations at {path}: record some with {command}."
        raise InputError(words) from None
    except InputError:
        raise
    except Exception as error:
        words = f"{path} holds no demonstrations ({error}): make it again with {command}."
        raise InputError(words) from None
    if made_for != environment:
        raise InputError(f"The demonstrations in {path} are for {made_for}, not {environment}.")
    return demonstrations


def record(agent: Agent, episodes: int = 10, seed: int = 0) -> Demonstrations:
    """`episodes` greedy episodes of the agent, with the returns that Demonstrations needs."""
    envs = make(agent.environment, episodes)
    run = roll_out(envs, agent.steps, agent.policy(), (seed, 0))
    kept = run.first.T  # episode by episode
    return Demonstrations(
        agent.environment,
        observations=run.observations.swapaxes(0, 1)[kept],
        actions=run.actions.T[kept],
        ends=kept.sum(1).cumsum(),
        returns=run.returns,
        expert_returns=agent.evaluate(100, seed + 1),
        random_returns=by_chance(agent.environment, 100, (seed, 1)).returns,
    )
