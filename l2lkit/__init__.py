"""l2lkit: learning to defend by learning to attack, one game with an exchangeable inner player.

`game` is the paper: read `solver`, `fixed`, `learned`, `step`, `evaluate` there, in this order. The
names below are the front door; each is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from l2lkit.checks import Subject as Subject
    from l2lkit.checks import check as check
    from l2lkit.data import Dataset as Dataset
    from l2lkit.data import load as load
    from l2lkit.diverse.generator import Diverse as Diverse
    from l2lkit.errors import InputError as InputError
    from l2lkit.game.autoattack import AutoAttack as AutoAttack
    from l2lkit.game.cw import CW as CW
    from l2lkit.game.evaluate import evaluate as evaluate
    from l2lkit.game.fixed import FGSM as FGSM
    from l2lkit.game.fixed import PGM as PGM
    from l2lkit.game.free import Free as Free
    from l2lkit.game.learned import GradAttacker as GradAttacker
    from l2lkit.game.learned import Learned as Learned
    from l2lkit.game.learned import NaiveAttacker as NaiveAttacker
    from l2lkit.game.loop import train as train
    from l2lkit.game.recipe import Optimiser as Optimiser
    from l2lkit.game.recipe import Recipe as Recipe
    from l2lkit.game.search import RandomSearch as RandomSearch
    from l2lkit.game.solver import Attacker as Attacker
    from l2lkit.game.solver import Solver as Solver
    from l2lkit.game.solver import project as project
    from l2lkit.recipes import recipe as recipe
    from l2lkit.runs.model import Model as Model
    from l2lkit.runs.store import Store as Store
    from l2lkit.show.explorer import explore as explore

_HOMES = {  # where each public name lives
    "Subject": "checks",
    "check": "checks",
    "Dataset": "data",
    "load": "data",
    "Diverse": "diverse.generator",
    "InputError": "errors",
    "AutoAttack": "game.autoattack",
    "CW": "game.cw",
    "evaluate": "game.evaluate",
    "FGSM": "game.fixed",
    "PGM": "game.fixed",
    "Free": "game.free",
    "GradAttacker": "game.learned",
    "Learned": "game.learned",
    "NaiveAttacker": "game.learned",
    "train": "game.loop",
    "Optimiser": "game.recipe",
    "Recipe": "game.recipe",
    "RandomSearch": "game.search",
    "Attacker": "game.solver",
    "Solver": "game.solver",
    "project": "game.solver",
    "recipe": "recipes",
    "Model": "runs.model",
    "Store": "runs.store",
    "explore": "show.explorer",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'l2lkit' has no attribute '{name}'")
    return getattr(import_module(f"l2lkit.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
