"""l2lkit: learning to defend by learning to attack, one game with an exchangeable inner player.

Read in this order: `attacks` and `attackers` (who moves δ), `training` (the game), `evaluation`
(who survives), `recipes` (the papers' settings as data), `store` and `experiments` (results).
"""

import os

# OpenMP's waiting threads spin by default, and one other busy process then slows torch down many
# times over. It is read when torch is first imported; a user's own choice stands.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from l2lkit.errors import InputError  # noqa: E402
from l2lkit.store import Model, Store  # noqa: E402

__all__ = ["InputError", "Model", "Store"]
