"""An attacked image as a card: pictures, verdict and probabilities, with text beside all that is
drawn. What is computed here is plain data; cards.js draws it, in the live notebooks (`Deck`) and in
the explorer that needs no kernel (`page`).
"""

import base64
import html
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from io import BytesIO

import anywidget
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from traitlets import Dict, Int

from l2lkit.data import Dataset
from l2lkit.game.evaluate import perturb
from l2lkit.game.solver import Solver
from l2lkit.recipes import DEFENCES
from l2lkit.results import experiments
from l2lkit.runs.store import Store

GRID = (0.008, 0.016, 0.031, 0.047, 0.062)  # ε of the page without a kernel, after 0
PAGE_IMAGES = 4

SCRIPT, STYLE = (
    (files("l2lkit.show") / name).read_text(encoding="utf-8") for name in ("cards.js", "cards.css")
)


@dataclass(frozen=True)
class Attacked:
    """One image under attack: δ (C, H, W) as a fraction of the pixel range, and the classifier's
    probabilities (classes,) without and with it."""

    delta: torch.Tensor
    before: NDArray[np.float32]
    after: NDArray[np.float32]


def attack_image(
    classifier: nn.Module, attack: Solver, image: torch.Tensor, label: int, seed: int = 0
) -> Attacked:
    """`attack` on one image (C, H, W) in [0, 1] of class `label`."""
    x, y = image[None], torch.tensor([label], device=image.device)
    delta = perturb(classifier, attack, x, y, seed=seed)
    with torch.no_grad():
        before, after = classifier(torch.cat([x, x + delta])).float().softmax(1).cpu().numpy()
    return Attacked(delta[0].cpu(), before, after)


class Deck(anywidget.AnyWidget):
    """A test image and a card for each attack on it, side by side, as many as fit. `content` is
    what cards.js draws; `times` magnifies δ."""

    _esm, _css = SCRIPT, STYLE
    content = Dict().tag(sync=True)
    times = Int(30).tag(sync=True)

    def show(self, data: Dataset, index: int, cards: Iterable[tuple[str, str, Attacked]]) -> None:
        """Test image `index`, clean, and its (title, attack's name, what became of it)."""
        _, height, width = data.test_images[index].shape
        self.content = {
            "classes": list(data.class_names),
            "index": index,
            "label": int(data.test_labels[index]),
            "height": height,
            "width": width,
            "image": _pixels(data.test_images[index].cpu()),
            "cards": [
                {
                    "title": title,
                    "attack": attack,
                    "delta": _pixels(attacked.delta.float()),
                    "before": attacked.before.tolist(),
                    "after": attacked.after.tolist(),
                }
                for title, attack, attacked in cards
            ],
        }


def _pixels(picture: torch.Tensor) -> bytes:
    """The values of a picture (C, H, W), pixel by pixel."""
    return picture.permute(1, 2, 0).numpy().tobytes()


def picture_url(pixels: torch.Tensor) -> str:
    """A picture (C, H, W) in [0, 1], C 1 or 3, as a PNG in a data: address."""
    values = (pixels.clamp(0, 1) * 255 + 0.5).to(torch.uint8).cpu().numpy()
    buffer = BytesIO()
    Image.fromarray(values.transpose(1, 2, 0).squeeze()).save(buffer, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


# Without a kernel ------------------------------------------------------------------------------


def page(store: Store) -> str:
    """The explorer as one HTML file that asks the network for nothing: the six defences of the
    store's first seed, some images, every attack of `experiments.named_attacks` over a grid of ε,
    all computed now (or found among the measurements)."""
    models = store.models(DEFENCES, [store.seed])
    chosen = list(experiments.examples(store.data, columns=10).values())
    indices = chosen[:: max(len(chosen) // PAGE_IMAGES, 1)][:PAGE_IMAGES]
    attacks = experiments.named_attacks(store, store.seed)
    data = store.measured(
        "explorer",
        [[m.key for m in models], {k: a.key() for k, a in attacks.items()}, GRID, indices],
        partial(_cells, store, list(attacks), indices),
    )
    images, labels = store.data.test_images, store.data.test_labels
    data |= {
        "classes": store.data.class_names,
        "epsilons": [0, *GRID],
        "attacks": list(attacks),
        "defences": [m.defence for m in models],
        "images": [
            {"index": i, "label": int(labels[i]), "url": picture_url(images[i] / 255)}
            for i in indices
        ],
    }
    content = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    note = f"Attacks computed beforehand. {store.caption(seeds=1)}"
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width'>"
        f"<title>Perturbation explorer: {html.escape(store.dataset)}</title>"
        f"<style>{STYLE}</style><main class=l2l-page><p>{html.escape(note)}</p></main>"
        f'<script type="application/json" id=data>{content}</script>'
        f"<script type=module>{SCRIPT}\n"
        'page(document.querySelector("main"), '
        'JSON.parse(document.getElementById("data").textContent));</script></html>\n'
    )


def _cells(store: Store, labels: Sequence[str], indices: Sequence[int]) -> dict:
    """For each defence and attack a picture of all δ (a row an image, a column an ε; 128 is zero
    and 127 steps are one ε), and the probabilities in thousandths, clean and by image and ε."""
    x, y = store.data.test_images[indices].float() / 255, store.data.test_labels[indices]
    classifiers = [model.classifier for model in store.models(DEFENCES, [store.seed])]
    attacks = [experiments.named_attacks(store, store.seed, epsilon) for epsilon in GRID]

    def cell(classifier: nn.Module, label: str) -> dict:
        columns, after = [], []
        for epsilon, named in zip(GRID, attacks, strict=True):
            singly = [
                perturb(classifier, named[label], x[k : k + 1], y[k : k + 1], seed=index)
                for k, index in enumerate(indices)
            ]
            after.append(_thousandths(classifier, x + torch.cat(singly)))
            columns.append(torch.cat([delta[0] for delta in singly], 1).cpu() / epsilon)
        deltas = torch.cat(columns, 2)  # (C, images × H, grid × W)
        return {"deltas": picture_url((deltas * 127 + 128) / 255), "after": after}

    return {
        "clean": [_thousandths(classifier, x) for classifier in classifiers],
        "cells": [[cell(classifier, label) for label in labels] for classifier in classifiers],
    }


def _thousandths(classifier: nn.Module, x: torch.Tensor) -> list[list[int]]:
    with torch.no_grad():
        return (classifier(x).float().softmax(1) * 1000).round().int().tolist()
