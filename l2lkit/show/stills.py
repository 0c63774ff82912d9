"""What a widget shows, as pictures: for readers who have no kernel, as in a code host's preview of
a notebook and in the report."""

from collections.abc import Iterator
from functools import partial
from io import BytesIO
from pathlib import Path

import ipywidgets as widgets
import matplotlib.pyplot as plt
import torch
from IPython.display import Image, Markdown, display

from l2lkit.files import write_atomically
from l2lkit.results.experiments import Panel
from l2lkit.runs.store import Store
from l2lkit.show import cards, pictures
from l2lkit.show.style import about


def show(store: Store, widget: widgets.Widget, name: str) -> None:
    """Display a widget and below it a still of each picture in it with its words, which are kept
    among the store's figures as name.png, name_2.png, …"""
    display(widget)
    for i, (png, words) in enumerate(stills(widget), 1):
        caption, kept = f"A still: {words}", f"{name}_{i}" if i > 1 else name
        write_atomically(store.figures / f"{kept}.png", partial(Path.write_bytes, data=png))
        about(store, kept, caption)
        display(Image(png), metadata={"image/png": {"alt": caption}})
        display(Markdown(f"*{caption}*"))


def stills(widget: widgets.Widget) -> Iterator[tuple[bytes, str]]:
    """The PNG of every picture in a widget, and what it shows in words."""
    if isinstance(widget, cards.Deck):
        yield _deck(widget)
    elif isinstance(widget, widgets.Image):
        yield widget.value, widget.tooltip
    for child in getattr(widget, "children", ()):
        yield from stills(child)


def _deck(deck: cards.Deck) -> tuple[bytes, str]:
    """The cards of a deck as `pictures.perturbation_grid`: clean above, attacked below."""
    content = deck.content
    classes, label = content["classes"], content["classes"][content["label"]]
    attacks = {card["attack"] for card in content["cards"]}
    attacked = attacks.pop() if len(attacks) == 1 else "attacked"

    def picture(pixels: bytes, dtype: torch.dtype) -> torch.Tensor:
        flat = torch.frombuffer(bytearray(pixels), dtype=dtype)
        return flat.view(content["height"], content["width"], -1).permute(2, 0, 1).float()

    image, panels, words = picture(content["image"], torch.uint8) / 255, [], []
    for card in content["cards"]:
        delta = picture(card["delta"], torch.float32)
        for row, part, chances in (
            ("no attack", 0 * delta, card["before"]),
            (attacked, delta, card["after"]),
        ):
            best = max(range(len(classes)), key=chances.__getitem__)
            answer, sure = classes[best], chances[best]
            panels.append(Panel(row, card["title"], image, part, label, answer, sure))
        words.append(f"{card['title']} says {answer} ({sure:.0%})")
    fig, buffer = pictures.perturbation_grid(panels, (1, deck.times)), BytesIO()
    fig.savefig(buffer, format="png", dpi=100)
    plt.close(fig)
    shown = f"test image {content['index']}, class {label}, {attacked}: {'; '.join(words)}."
    return buffer.getvalue(), shown
