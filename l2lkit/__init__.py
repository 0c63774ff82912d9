"""l2lkit: learning to defend by learning to attack, one game with an exchangeable inner player.

Read in this order: `attacks` and `attackers` (who moves δ), `training` (the game), `evaluation`
(who survives), `recipes` (the papers' settings as data), `store` and `experiments` (results).
"""

from l2lkit.errors import InputError
from l2lkit.store import Model, Store

__all__ = ["InputError", "Model", "Store"]
