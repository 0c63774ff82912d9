"""An attacked image as a card of HTML: pictures, verdict and probabilities, with text beside all
that is drawn. Notebooks show cards live; `page` is the explorer that needs no kernel.

HTML and not a plot: an image of 32×32 pixels is 3 kB, the browser enlarges it, text stays text, and
the whole card is made in a few milliseconds.
"""

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from io import BytesIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from l2lkit import experiments
from l2lkit.attacks import Attack
from l2lkit.evaluation import perturb
from l2lkit.figures import magnify
from l2lkit.recipes import DEFENCES
from l2lkit.store import Store

BARS = 10  # classes that a card has bars for
GRID = (0.008, 0.016, 0.031, 0.047, 0.062)  # ε of the page without a kernel, after 0
PAGE_IMAGES = 4
LEGEND = "bars: above before, below after the attack"

STYLE = (files("l2lkit") / "cards.css").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Attacked:
    """One image (C, H, W) in [0, 1] under attack: δ of the same shape and units, and the
    classifier's probabilities (classes,) without and with it."""

    image: torch.Tensor
    delta: torch.Tensor
    before: NDArray[np.float32]
    after: NDArray[np.float32]


def attack_image(
    classifier: nn.Module, attack: Attack | None, image: torch.Tensor, label: int, seed: int = 0
) -> Attacked:
    """`attack` (None leaves the image as it is) on one image (C, H, W) of class `label`."""
    x = image[None]
    y = torch.tensor([label], device=image.device)
    delta = torch.zeros_like(x)
    if attack is not None:
        delta = perturb(classifier, attack, x, y, seed=seed)
    with torch.no_grad():
        before, after = classifier(torch.cat([x, x + delta])).float().softmax(1).cpu().numpy()
    return Attacked(x[0].cpu(), delta[0].cpu(), before, after)


def picture_url(pixels: NDArray | torch.Tensor) -> str:
    """A picture (C, H, W) in [0, 1], C 1 or 3, as a PNG in a data: address."""
    values = np.asarray(torch.as_tensor(pixels).clamp(0, 1) * 255 + 0.5, dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(values.transpose(1, 2, 0).squeeze()).save(buffer, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def verdict(shown: Attacked, label: int, names: Sequence[str]) -> tuple[str, str]:
    """("right" | "fooled" | "wrong", the same in words): wrong is wrong without an attack."""
    before, after = int(shown.before.argmax()), int(shown.after.argmax())
    says = f"{names[after]}, {shown.after[after]:.0%}"
    if before != label:
        return "wrong", f"✗ wrong even clean: {says}"
    if after != label:
        return "fooled", f"✗ fooled: {says}"
    return "right", f"✓ still right: {says}"


def card(
    title: str, shown: Attacked, label: int, names: Sequence[str], times: float, what: str
) -> str:
    """The adversarial image, δ × `times` (grey is zero; at 1× as small as it is), the verdict, and
    the probabilities before (upper bar) and after (lower bar). `what` names the attack."""
    kind, words = verdict(shown, label, names)
    adversarial = shown.image + shown.delta
    magnified = torch.from_numpy(magnify(shown.delta, times))
    size, mean = shown.delta.abs().max().item(), shown.delta.abs().mean().item()
    alts = (
        f"adversarial image: {what} on {title}, {words}",
        f"perturbation × {times:g}: {what} on {title}, largest value {size:.3f}",
    )
    pictures = "".join(
        _figure(picture_url(pixels), alt, caption)
        for pixels, alt, caption in zip(
            (adversarial, magnified), alts, ("adversarial", f"δ × {times:g}"), strict=True
        )
    )
    return (
        f'<section class="l2l-card"><h4>{html.escape(title)}</h4>'
        f'<p class="l2l-verdict l2l-{kind}">{html.escape(words)}</p>'
        f'<div class="l2l-pictures">{pictures}</div>'
        f'<p class="l2l-size">|δ|: largest {size:.3f}, mean {mean:.3f}</p>'
        f"{_bars(shown, kind, names)}</section>"
    )


def clean_card(image: torch.Tensor, title: str, words: str) -> str:
    picture = _figure(picture_url(image), f"clean image: {title}", "clean")
    return (
        f'<section class="l2l-card l2l-clean"><h4>{html.escape(title)}</h4>'
        f'<p class="l2l-verdict">{html.escape(words)}</p>'
        f'<div class="l2l-pictures">{picture}</div><p class="l2l-size">{LEGEND}</p></section>'
    )


def deck(cards: Sequence[str]) -> str:
    """Cards side by side, as many as fit."""
    return f'<div class="l2l-deck">{"".join(cards)}</div>'


def _figure(url: str, alt: str, caption: str) -> str:
    return (
        f'<figure><img src="{url}" alt="{html.escape(alt)}" decoding="sync">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def _bars(shown: Attacked, kind: str, names: Sequence[str]) -> str:
    largest = np.argsort(-np.maximum(shown.before, shown.after), kind="stable")[:BARS]
    rows = "".join(
        f"<tr><th>{html.escape(names[i])}</th>"
        f'<td class="l2l-track"><i style="width:{shown.before[i]:.1%}"></i>'
        f'<b class="l2l-{kind}" style="width:{shown.after[i]:.1%}"></b></td>'
        f"<td>{shown.before[i]:.0%}</td><td>{shown.after[i]:.0%}</td></tr>"
        for i in sorted(largest)
    )
    return (
        "<table><thead><tr><th>class</th><td>probability</td><td>before</td><td>after</td></tr>"
        f"</thead><tbody>{rows}</tbody></table>"
    )


def examples(store: Store, row: int, columns: int = 10) -> dict[str, int]:
    """Class name -> the index of its test image number `row` (from 0, and over again)."""
    found = {}
    for label, name in enumerate(store.data.class_names[:columns]):
        places = (store.data.test_labels == label).nonzero().flatten()
        if len(places):
            found[name] = int(places[row % len(places)])
    return found


# Without a kernel ------------------------------------------------------------------------------


def page(store: Store) -> str:
    """The explorer as one HTML file that asks the network for nothing: the six defences of the
    store's first seed, some images, every attack of `experiments.named_attacks` over a grid of ε,
    all computed now (or found among the measurements)."""
    models = [store.model(name, store.seed) for name in DEFENCES]
    chosen = list(examples(store, 0).items())
    chosen = chosen[:: max(len(chosen) // PAGE_IMAGES, 1)][:PAGE_IMAGES]
    indices = [index for _, index in chosen]
    attacks = experiments.named_attacks(store, store.seed)
    data = store.measured(
        "explorer",
        [[m.id for m in models], {k: _identity(a) for k, a in attacks.items()}, GRID, indices],
        partial(_cells, store, list(attacks), indices),
    )
    data |= {
        "classes": list(store.data.class_names),
        "legend": LEGEND,
        "epsilons": [0, *GRID],
        "attacks": list(attacks),
        "defences": [m.defence for m in models],
        "images": [
            {"index": i, "label": int(store.data.test_labels[i]),
             "url": picture_url(store.data.test_images[i].cpu().float() / 255)}
            for i in indices
        ],
    }  # fmt: skip
    script = (files("l2lkit") / "cards.js").read_text(encoding="utf-8")
    content = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    note = f"Attacks computed beforehand. {store.caption(seeds=1)}"
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width'>"
        f"<title>Perturbation explorer: {html.escape(store.dataset)}</title>"
        f"<style>{STYLE}</style><main class=l2l-page>"
        f'<form id=controls></form><p id=summary role=status class=l2l-unseen></p>'
        f'<div id=deck class="l2l-deck"></div>'
        f"<p>{html.escape(note)}</p></main>"
        f'<script type="application/json" id=data>{content}</script><script>{script}</script>'
        "</html>\n"
    )


def _identity(attack: Attack) -> str:
    """What tells an attack from others: its settings, or for a network a digest of its weights."""
    if not isinstance(attack, nn.Module):
        return repr(attack)
    digest = hashlib.sha256()
    for tensor in attack.state_dict().values():
        digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _cells(store: Store, labels: Sequence[str], indices: Sequence[int]) -> dict:
    """For each defence and attack a picture of all δ (a row an image, a column an ε; 128 is zero
    and 127 steps are one ε), and the probabilities in thousandths, clean and by image and ε."""
    x = store.data.test_images[indices].float() / 255
    y = store.data.test_labels[indices]
    cells, clean = [], []
    for name in DEFENCES:
        classifier = store.model(name, store.seed).classifier
        clean.append(_thousandths(classifier, x))
        row = []
        for label in labels:
            deltas, chances = [], []
            for epsilon in GRID:
                attack = experiments.named_attacks(store, store.seed, epsilon)[label]
                delta = torch.cat(
                    [
                        perturb(classifier, attack, x[k : k + 1], y[k : k + 1], seed=index)
                        for k, index in enumerate(indices)
                    ]
                )
                deltas.append(delta.cpu() / epsilon)
                chances.append(_thousandths(classifier, x + delta))
            row.append({"deltas": _sprite(deltas), "after": chances})
        cells.append(row)
    return {"clean": clean, "cells": cells}


def _thousandths(classifier: nn.Module, x: torch.Tensor) -> list[list[int]]:
    with torch.no_grad():
        return (classifier(x).float().softmax(1) * 1000).round().int().tolist()


def _sprite(deltas: Sequence[torch.Tensor]) -> str:
    tall = torch.cat([torch.cat(list(d), 1) for d in deltas], 2)  # (C, images × H, grid × W)
    return picture_url((tall * 127 + 128) / 255)

