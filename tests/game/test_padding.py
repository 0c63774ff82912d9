"""Attackers on images whose sides do not divide by what their networks need."""

import copy

import pytest
import torch
from conftest import coloured
from torch import nn

from l2lkit.data import Dataset
from l2lkit.diverse.advgan import AdvGANAttacker
from l2lkit.diverse.generator import Diverse, DiverseAttacker
from l2lkit.game.learned import GradAttacker, Learned, NaiveAttacker
from l2lkit.game.loop import train
from l2lkit.game.networks import NETWORKS, make_network
from l2lkit.game.padding import at_any_size
from l2lkit.game.recipe import Recipe

F = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 4)).eval()
SIZES = [(31, 31), (30, 30), (7, 5), (8, 12), (1, 1)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_takes_every_size(network, size):
    torch.manual_seed(0)
    x, y = torch.rand(2, 3, *size), torch.tensor([0, 1])
    for attack in (
        NaiveAttacker(network, 3, 0.1, 1 / 32),
        GradAttacker(network, 3, 0.1, 1 / 32, steps=2),
    ):
        delta = attack.eval()(F, x, y)
        assert delta.shape == x.shape and delta.abs().max() <= 0.1 + 1e-6
        assert torch.equal(copy.deepcopy(attack)(F, x, y), delta)


@pytest.mark.parametrize("size", SIZES)
def test_the_generators_take_every_size(size):
    torch.manual_seed(0)
    x, y = torch.rand(2, 3, *size), torch.tensor([0, 1])
    for attack in (DiverseAttacker(3, 4, width=1 / 32, steps=2), AdvGANAttacker(3, width=1 / 32)):
        assert attack.eval()(F, x, y).shape == x.shape
        if min(size) > 3:  # the critic halves them twice
            assert attack.play(F, x, y).delta.shape[2:] == size


@pytest.mark.parametrize("network", NETWORKS)
def test_what_fits_is_left_as_it_is_and_the_rest_is_padded_with_zeros(network):
    torch.manual_seed(0)
    plain = make_network(network, 3, 3, 1 / 32).eval()
    any_size = at_any_size(copy.deepcopy(plain))
    x = torch.rand(2, 3, 16, 8)
    assert torch.equal(any_size(x), plain(x))
    assert list(any_size.state_dict()) == list(plain.state_dict())
    if network in ("2018", "v2-slim", "unet", "unet-folded"):
        wider = torch.zeros(2, 3, 16, 8)
        wider[:, :, :15, :5] = x[:, :, :15, :5]
        least = {"v2-slim": 6}.get(network, 8)  # the next multiple of 2, of 4 and of 8
        assert torch.equal(any_size(x[:, :, :15, :5]), plain(wider[..., :least])[:, :, :15, :5])


@pytest.mark.parametrize("size", [31, 30])
@pytest.mark.parametrize(
    "attack",
    [*(Learned(steps=1, network=n, width=1 / 32) for n in NETWORKS), Diverse(width=1 / 32)],
)
def test_a_game_on_odd_sizes(attack, size):
    images, labels = (torch.from_numpy(a) for a in coloured(8, size, 0))
    data = Dataset("odd", "odd", tuple("rgby"), images, labels, images, labels, False)
    game = Recipe(
        name="odd", defence="odd", source="", attack=attack, classifier="wrn-10-1", epochs=1,
        batch_size=8,
    )  # fmt: skip
    _, log, _ = train(game, data, seed=0)
    assert log["train_loss"].notna().all() and log["delta"][0] > 0
