"""Controls: what a user could train in the place of L2L, beside the rows of `rows`.

They have the setting of ICLR 2020 (classifier, ε, optimiser, epochs), so that the rows compare; the
methods are their authors', the schedules are not. No run trains them unless it is asked to:
`l2lkit train today/n-fgsm`, or `benchmarks/questions.py`.
"""

from l2lkit.game.fixed import PGM
from l2lkit.game.recipe import Optimiser, Recipe
from l2lkit.game.single_step import NFGSM, SDI
from l2lkit.game.strategy import Strategy


def controls() -> list[Recipe]:
    """PGM with few steps, and those of today's methods that stand closest to a learned attack.

    PGM-2 and PGM-3 ask for two and three gradients of an image, one more than Grad and 2-Step L2L,
    which have a network to run and to train in its place. Their step is ε/2, as Andriushchenko and
    Flammarion (2020) have it for two. AWP stands on PGM Net."""
    few = [
        Recipe(
            name=f"today/pgm{steps}",
            defence=f"PGM-{steps} Net",
            source="PGM with few steps of ε/2 from a uniform start, a control of ours",
            attack=PGM(steps=steps, step_size=0.031 / 2),
        )
        for steps in (2, 3)
    ]
    return [
        *few,
        Recipe(
            name="today/n-fgsm",
            defence="N-FGSM",
            source="de Jorge et al. 2022, Algorithm 1",
            attack=NFGSM(),
        ),
        Recipe(
            name="today/fgsm-sdi",
            defence="FGSM-SDI",
            source="Jia et al. 2022, learnable adversarial initialization",
            attack=SDI(),
        ),
        Recipe(
            name="today/awp",
            defence="PGM-AWP",
            source="Wu et al. 2020, Algorithm 1",
            attack=PGM(steps=10, step_size=0.007),
            update="awp",
        ),
        Recipe(
            name="today/las-at",
            defence="LAS-AT",
            source="Jia et al. 2022, learnable attack strategy, with the settings of its code",
            attack=Strategy(),
            attacker_optimiser=Optimiser(lr=1e-4, momentum=0.0, weight_decay=0.0, clip=1.0),
        ),
    ]


CONTROLS = tuple(recipe.name for recipe in controls())
