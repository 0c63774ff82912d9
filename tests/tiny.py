"""A scale at which a run takes seconds; `dataclasses.replace` gives a test its own."""

from l2lkit.recipes import Profile

TINY = Profile(
    name="smoke",
    seeds=1,
    eval_images=8,
    curve_images=4,
    random_draws=2,
    train_images=24,
    test_images=8,
    width=1 / 32,
    batch_size=8,
    precision="float32",
)
