"""The scales at which a recipe is played."""

from dataclasses import dataclass, replace

from l2lkit import names
from l2lkit.errors import InputError
from l2lkit.game.recipe import Optimiser, Recipe
from l2lkit.game.solver import Maker


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A scale: how much data, how large the networks, how long, how many seeds. `eval_images` is
    the number of test images in the tables, `curve_images` that in the figures' sweeps, None the
    whole test set; `random_draws` is the N of random search. `precision` is what the small ones
    train in, float32 where the device has no arithmetic in bfloat16 (`Store`). `threads` is what
    one model trains and is measured with on a CPU, None for all: a small network gains next to
    nothing from a second thread, so a run gives each core a model, and its results do not depend
    on the cores."""

    name: str
    seeds: int
    eval_images: int | None
    curve_images: int | None
    random_draws: int
    train_images: int | None = None
    test_images: int | None = None
    classifier: str = "wrn-10-1-stride2"
    width: float = 1.0
    plain_epochs: int = 1
    epochs: int = 1
    batch_size: int = 64
    plain_lr: float = 0.1
    lr: float = 0.05
    attacker_lr: float = 5e-3
    replays: int = 4
    steps: int = 4
    trades: float = 1.0
    precision: str = "bfloat16"
    threads: int | None = 1

    @property
    def small(self) -> bool:
        """Whether it takes minutes: then players are kept after every epoch, and AutoAttack is a
        short one."""
        return self.name in ("smoke", "quick")


PROFILES = {
    "smoke": Profile(
        name="smoke",
        seeds=1,
        eval_images=8,
        curve_images=4,
        random_draws=3,
        train_images=640,
        test_images=64,
        width=1 / 32,
        plain_epochs=14,
    ),
    "quick": Profile(
        name="quick",
        seeds=1,
        eval_images=120,
        curve_images=48,
        random_draws=20,
        train_images=3000,
        test_images=1000,
        width=1 / 16,
        plain_epochs=14,
        epochs=4,
    ),
    "night": Profile(
        name="night",
        seeds=1,
        eval_images=1000,
        curve_images=200,
        random_draws=100,
        classifier="wrn-10-2-stride2",
        width=1 / 16,
        plain_epochs=15,
        epochs=15,
        batch_size=256,
        lr=0.1,
        attacker_lr=1e-3,
        trades=6.0,
    ),
    "paper": Profile(
        name="paper",
        seeds=5,
        eval_images=None,
        curve_images=1000,
        random_draws=10_000,
        threads=None,
    ),
}


def at_scale(recipe: Recipe, profile: Profile) -> Recipe:
    """The recipe at the profile's size; the paper profile's is the recipe itself.

    The first convolution of a small run's classifier halves the images, and wide attackers and
    U-Nets work on 2×2 pixels at a time: the same minutes then buy more training. A small run starts
    from the Plain Net, as the two older versions do: from scratch, the learned attackers push a
    small classifier to chance before it has learnt anything. An Adam attacker of a short run learns
    faster, since it has a small fraction of the paper's steps to learn in; a classifier with Adam
    keeps its rate. Free training has as many epochs as the others, too few to divide by its
    replays, and fewer replays. L2L-DA, which meets every image twice in a batch, has half the
    epochs. Its generator has `steps` steps, just enough to reach ε, and Adam: with the paper's SGD
    it has not begun to attack when the game ends. TRADES has the smaller β of the two its authors
    report where the run is short: at 6 the small classifier ends at chance.
    """
    if profile.name == "paper":
        return recipe
    if recipe.optimiser is None:
        raise InputError(f"{recipe.name} has no scale of its own: take the classifier's.")
    version = recipe.name.split("/")[0]
    attack, climb, epochs = recipe.attack, recipe.attacker_optimiser, profile.epochs
    if isinstance(attack, Maker):
        epochs = max(1, epochs // attack.draws)
        attack = attack.scaled(profile)
        if attack.wants_adam:
            climb = Optimiser(kind="adam", weight_decay=0, clip=climb.clip)
        if climb.kind == "adam":
            climb = replace(climb, lr=profile.attacker_lr)
    plain, old = attack is None, version in ("2018", "v2", "v2-svhn")
    rate = profile.plain_lr if plain else profile.lr
    return replace(
        recipe,
        attack=attack,
        attacker_optimiser=climb,
        classifier=profile.classifier,
        epochs=profile.plain_epochs if plain else epochs,
        batch_size=profile.batch_size,
        trades=min(recipe.trades, profile.trades),
        optimiser=replace(
            recipe.optimiser,
            lr=recipe.optimiser.lr if recipe.optimiser.kind == "adam" else rate,
            milestones=(0.5, 0.8),
            decay=0.2,
        ),
        warm_start=None if plain else f"{version if old else 'iclr2020'}/plain",
        precision=profile.precision,
    )


def profile(name: str) -> Profile:
    names.check_profile(name)
    return PROFILES[name]
