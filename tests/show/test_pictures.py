"""Figures made of images."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from l2lkit.errors import InputError
from l2lkit.results.experiments import Panel
from l2lkit.show import pictures

pytestmark = pytest.mark.usefixtures("theme")


def panels(channels=3, columns=("PGM Net", "2-Step L2L")) -> list[Panel]:
    image = torch.rand(channels, 8, 8, generator=torch.Generator().manual_seed(0))
    return [
        Panel(row, column, image, image.sign() * 0.03, "cat", predicted, 0.9)
        for row, predicted in (("FGSM", "cat"), ("PGM-20", "dog"))
        for column in columns
    ]


def test_magnify_by_hand():
    shown = pictures.magnify(torch.tensor([0.0, 0.01, -0.01, 0.031, -0.031]), 30)
    np.testing.assert_allclose(shown, [0.5, 0.8, 0.2, 1.0, 0.0], atol=1e-6)
    np.testing.assert_allclose(pictures.magnify(np.array([0.031]), 5), [0.655], atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_has_a_block_of_columns_per_classifier(channels):
    given = panels(channels)
    fig = pictures.perturbation_grid(given)
    assert len(fig.axes) == 2 * 2 * 3
    shown = [im for ax in fig.axes for im in ax.images]
    assert len(shown) == 12 and {im.get_clim() for im in shown} == {(0, 1)}
    adversarial = np.clip(np.asarray(given[0].image) + 0.03, 0, 1).transpose(1, 2, 0).squeeze()
    np.testing.assert_allclose(fig.axes[0].images[0].get_array(), adversarial, atol=1e-6)
    words = [ax.get_xlabel() for ax in fig.axes]
    assert words.count("cat 90%\nright") == words.count("dog 90%\nwrong: is cat") == 2


def test_a_row_without_perturbation_has_the_image_alone():
    (given, *_) = panels()
    clean = replace(given, row="no attack", perturbation=0 * given.perturbation)
    first, *others = pictures.perturbation_grid([clean]).axes
    np.testing.assert_allclose(first.images[0].get_array(), given.image.permute(1, 2, 0), atol=1e-6)
    assert not any(ax.images for ax in others)


def test_grid_leaves_a_missing_pair_blank():
    fig = pictures.perturbation_grid(panels()[:3], magnifications=(1, 30))
    assert len(fig.axes) == 2 * 2 * 2
    assert sum(bool(ax.images) for ax in fig.axes) == 6


def test_grid_refuses_what_it_cannot_show():
    with pytest.raises(InputError, match="at least one"):
        pictures.perturbation_grid([])
    bad = Panel("FGSM", "PGM Net", np.zeros((8, 8)), np.zeros((8, 8)), "a", "a", 1.0)
    with pytest.raises(InputError, match="C, H, W"):
        pictures.perturbation_grid([bad])
