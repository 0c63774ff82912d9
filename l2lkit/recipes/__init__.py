"""Every training run as data: a table's row is a recipe, and a profile says at which scale."""

from l2lkit.names import printed, recommended
from l2lkit.recipes.controls import CONTROLS
from l2lkit.recipes.rows import (
    DEFENCES,
    INTERPOLATION,
    RECIPES,
    SLIM,
    TODAY,
    against,
    recipe,
)
from l2lkit.recipes.scales import PROFILES, Profile, at_scale, profile

__all__ = [
    "CONTROLS",
    "DEFENCES",
    "INTERPOLATION",
    "PROFILES",
    "RECIPES",
    "SLIM",
    "TODAY",
    "Profile",
    "against",
    "at_scale",
    "printed",
    "profile",
    "recipe",
    "recommended",
]
