"""Stills: what a widget shows, without it."""

from io import BytesIO
from types import SimpleNamespace

import ipywidgets as widgets
import numpy as np
import pytest
import torch
from PIL import Image

from l2lkit.data import Dataset
from l2lkit.show import cards, stills
from l2lkit.show.widgets import Described

pytestmark = pytest.mark.usefixtures("theme")


def picture(colour: str) -> bytes:
    png = BytesIO()
    Image.new("RGB", (3, 2), colour).save(png, "PNG")
    return png.getvalue()


def deck() -> cards.Deck:
    images = torch.full((1, 3, 8, 8), 51, dtype=torch.uint8)
    labels = torch.tensor([1])
    names = ("cat", "dog")
    data = Dataset("two", "two", names, images, labels, images, labels, augment=False)
    before, after = np.array([0.1, 0.9], np.float32), np.array([0.75, 0.25], np.float32)
    shown, delta = cards.Deck(), torch.full((3, 8, 8), 0.03)
    shown.show(data, 0, [("PGM Net", "PGM-20", cards.Attacked(delta, before, after))])
    return shown


def test_every_picture_in_a_widget_is_found_with_its_words():
    first, second = (Described(value=picture(c), tooltip=c) for c in ("red", "blue"))
    box = widgets.VBox([widgets.HBox([widgets.Label("x"), first]), second])
    assert list(stills.stills(box)) == [(picture("red"), "red"), (picture("blue"), "blue")]


def test_the_still_of_a_deck_says_what_each_classifier_says(monkeypatch):
    drawn = []
    whole = stills.pictures.perturbation_grid
    monkeypatch.setattr(
        stills.pictures, "perturbation_grid", lambda *a: drawn.append(a) or whole(*a)
    )
    ((png, words),) = stills.stills(deck())
    assert words == "test image 0, class dog, PGM-20: PGM Net says cat (75%)."
    assert Image.open(BytesIO(png)).size > (100, 100)
    ((clean, attacked), times) = drawn[0]
    assert times == (1, 30) and (clean.predicted, attacked.predicted) == ("dog", "cat")
    np.testing.assert_allclose(attacked.image, 0.2, atol=1e-6)
    assert not clean.perturbation.any()
    np.testing.assert_allclose(attacked.perturbation, 0.03)


def test_stills_are_shown_and_kept_among_the_figures(tmp_path, capsys):
    store = SimpleNamespace(figures=tmp_path, machine=dict, code="abc")
    box = widgets.VBox([Described(value=picture(c), tooltip=c) for c in ("red", "blue")])
    stills.show(store, box, "two")
    assert (tmp_path / "two.png").read_bytes() == picture("red")
    assert (tmp_path / "two_2.png").read_bytes() == picture("blue")
    assert "A still: blue" in (tmp_path / "two_2.json").read_text()
