"""What only a GPU can show. Everything here skips where there is none."""

from dataclasses import replace

import pytest
import torch

from l2lkit import recipes
from l2lkit.data import Dataset
from l2lkit.game import evaluate as evaluation
from l2lkit.game.fixed import FGSM, PGM
from l2lkit.game.loop import train
from l2lkit.game.step import Players, step

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture
def data():
    draw = torch.Generator().manual_seed(0)
    x = torch.randint(256, (96, 3, 32, 32), generator=draw, dtype=torch.uint8)
    y = torch.arange(96) % 10
    return Dataset("noise", "noise", tuple("0123456789"), x[:64], y[:64], x[64:], y[64:], True)


def small(name):
    setting = recipes.at_scale(recipes.recipe(name), recipes.PROFILES["smoke"])
    return replace(setting, epochs=1, batch_size=16, warm_start=None, precision="float32")


@pytest.mark.parametrize("name", ["plain", "fgsm", "pgm", "naive", "grad", "2step"])
def test_a_step_never_waits_for_the_device(data, name):
    data = data.to("cuda")
    players = Players.build(small(name), data, torch.device("cuda"))
    x, y = data.train_images[:16].float() / 255, data.train_labels[:16]
    step(players, x, y)  # the first one allocates and chooses kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(players, x, y)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", ["plain", "pgm", "grad"])
def test_an_epoch_is_that_of_the_cpu(data, name):
    """Not PGM's random starts, which every device draws for itself."""
    setting = small(name)
    if name == "pgm":
        setting = replace(setting, attack=replace(setting.attack, start="zero"))
    _, here, _ = train(setting, data, seed=0)
    _, there, _ = train(setting, data.to("cuda"), seed=0)
    assert there.train_loss[0] == pytest.approx(here.train_loss[0], rel=0.02)


def test_attacks_give_what_they_give_on_the_cpu(data):
    torch.manual_seed(0)
    f = Players.build(small("plain"), data, torch.device("cpu")).classifier.eval()
    x, y = data.test_images.float() / 255, data.test_labels
    for attack in (FGSM(), PGM(steps=5)):
        here = evaluation.perturb(f, attack, x, y)
        there = evaluation.perturb(f.to("cuda"), attack, x.to("cuda"), y.to("cuda")).cpu()
        f.to("cpu")
        assert (here - there).abs().le(1e-4).float().mean() > 0.95
