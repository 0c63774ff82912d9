"""The perturbation explorer: test images under attack, live in a notebook.

Its pictures are made in a thread beside the notebook, so that a move never waits for the one
before: `Latest` keeps the newest and ends what is still being computed.
"""

import html
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import ipywidgets as widgets
from torch import Tensor, nn

from l2lkit import cards, experiments
from l2lkit.attacks import CW, PGM, Attack
from l2lkit.errors import InputError
from l2lkit.recipes import DEFENCES
from l2lkit.store import Store
from l2lkit.widgets import WRAP, toggles

PGM_T = "PGM-T"


class Superseded(Exception):
    """A newer move has come: what is being computed is no longer wanted."""


class Latest:
    """Does jobs in a thread beside the notebook, one at a time. Of the jobs that wait only the
    latest is kept, and it ends the running one at its next `check`."""

    def __init__(self, work: Callable[[Any], None]):
        self._work = work
        self._lock = threading.Lock()
        self._waiting: list[Any] = []
        self._thread: threading.Thread | None = None

    def submit(self, job: object) -> None:
        with self._lock:
            self._waiting = [job]
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, daemon=True)
                self._thread.start()

    def check(self) -> None:
        """Raise Superseded if a newer job waits."""
        if self._waiting:
            raise Superseded

    def wait(self) -> None:
        """Return when nothing runs or waits."""
        while (thread := self._thread) is not None:
            thread.join()

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._thread = None
                    return
                job = self._waiting.pop()
            with suppress(Superseded):
                self._work(job)


class Watched(nn.Module):
    """A classifier that calls `on_pass` before each forward pass: progress, and a place to stop,
    for an attack of any kind."""

    def __init__(self, classifier: nn.Module, on_pass: Callable[[], None]):
        super().__init__()
        self.classifier, self.on_pass = classifier, on_pass

    def forward(self, x: Tensor) -> Tensor:
        self.on_pass()
        return self.classifier(x)


@dataclass(frozen=True)
class View:
    """What the perturbation explorer is asked to show."""

    index: int
    defences: tuple[str, ...]
    attack: str
    epsilon: float
    steps: int
    times: int
    draw: int


class PerturbationExplorer(widgets.VBox):
    """Test images under attack, several classifiers side by side: choose image, classifiers,
    attack, ε, the steps of PGM, and the magnification.

    Shows the clean image, and for each classifier the adversarial one, the perturbation magnified
    (grey is zero), the probabilities before and after, and whether it was fooled. ICLR 2020
    version, Figure 5 and Figure 9's ε. A move is answered from a thread; the latest wins, and ends
    what the one before it is still computing. `wait()` returns when all is shown.
    """

    def __init__(
        self,
        store: Store,
        names: Sequence[str] = DEFENCES,
        chosen: Sequence[str] = ("plain", "pgm", "2step"),
    ):
        self._store = store
        self._models = {m.defence: m for m in (store.model(n, store.seed) for n in names)}
        self._known: dict[tuple[str, View], cards.Attacked] = {}
        self._row = self._draws = 0
        self._latest = Latest(self._answer)
        self.wait = self._latest.wait

        self._pictures = widgets.HTML()  # of the thumbnails
        self.image = widgets.ToggleButtons(
            options=cards.examples(store, 0), layout=widgets.Layout(width="auto")
        )  # fmt: skip
        self.image.add_class(f"l2l-{self.image.model_id}")
        self.more = widgets.Button(description="other images", layout=widgets.Layout(width="auto"))
        shown = [store.recipe(n).defence for n in chosen]
        self.classifiers = toggles(list(self._models), shown)
        self.attack = widgets.Dropdown(
            options=list(self._attacks(experiments.EPSILON, 20)), value=PGM_T,
            description="attack", style={"description_width": "80px"},
            layout=widgets.Layout(width="276px"),
        )  # fmt: skip
        self.attack.add_class("l2l-left")
        self.epsilon = widgets.FloatSlider(
            value=experiments.EPSILON, max=0.1, step=0.001, readout_format=".3f", description="ε"
        )
        self.steps = widgets.IntSlider(value=20, min=1, max=100, description="steps T")
        self.times = widgets.ToggleButtons(
            options=[("1×", 1), ("5×", 5), ("30×", 30)], value=30, style={"button_width": "4em"},
            layout=widgets.Layout(width="auto"),
        )  # fmt: skip
        self.again = widgets.Button(
            description="new draw", tooltip="the same attack with other random numbers",
            layout=widgets.Layout(width="auto"),
        )
        self.status, self.view = widgets.HTML(), widgets.HTML()

        example = experiments.example(store)
        if example in dict(self.image.options).values():
            self.image.value = example
        self._thumbnails()
        moves = (self.image, self.attack, self.epsilon, self.steps, self.times, *self.classifiers)
        for control in moves:
            control.observe(self._moved, names="value")
        self.more.on_click(self._other_images)
        self.again.on_click(self._draw_again)
        attack = [self.attack, self.epsilon, self.steps, self.again]
        rows = {
            "image": [self.image, self.more], "classifiers": self.classifiers,
            "magnify": [self.times],
        }  # fmt: skip
        layout = widgets.Layout(width="80px")
        first, second, last = (
            widgets.HBox([widgets.Label(name, layout=layout), *row], layout=WRAP)
            for name, row in rows.items()
        )
        middle = widgets.HBox(attack, layout=WRAP)
        super().__init__([self._pictures, first, second, middle, last, self.status, self.view])
        self._moved()
        self.wait()

    def _attacks(self, epsilon: float, steps: int) -> dict[str, Attack]:
        """The store's named attacks and CW; those of PGM with T `steps`, as one."""
        found: dict[str, Attack] = {}
        for name, attack in experiments.named_attacks(
            self._store, self._store.seed, epsilon
        ).items():
            if isinstance(attack, PGM):
                name, attack = PGM_T, replace(attack, steps=steps)
            found[name] = attack
        return found | {"CW": CW(epsilon=epsilon)}

    def _thumbnails(self) -> None:
        """The buttons' pictures: what HTML can style, ipywidgets' buttons cannot."""
        rules = [
            f".l2l-{self.image.model_id} button {{ width: 52px; height: 66px; padding: 46px 0 0; "
            "line-height: 20px; background-repeat: no-repeat; background-size: 44px; "
            "background-position: 4px 2px; image-rendering: pixelated; }"
        ]
        for k, index in enumerate(dict(self.image.options).values(), 1):
            url = cards.picture_url(self._store.data.test_images[index].cpu().float() / 255)
            rules.append(
                f".l2l-{self.image.model_id} button:nth-child({k}) "
                f"{{ background-image: url({url}); }}"
            )
        self._pictures.value = f"<style>{cards.STYLE} {' '.join(rules)}</style>"

    def _other_images(self, _: Any) -> None:
        self._row += 1
        place = self.image.index
        self.image.unobserve(self._moved, "value")  # new options choose the first of them
        self.image.options = cards.examples(self._store, self._row)
        self.image.index = place
        self.image.observe(self._moved, "value")
        self._thumbnails()
        self._moved()

    def _draw_again(self, _: Any) -> None:
        self._draws += 1
        self._moved()

    def _moved(self, _: Any = None) -> None:
        attack = self._attacks(self.epsilon.value, self.steps.value)[self.attack.value]
        random = getattr(attack, "stochastic", getattr(attack, "start", "zero") != "zero")
        for control, wanted in ((self.steps, isinstance(attack, PGM)), (self.again, random)):
            control.layout.display = None if wanted else "none"
        chosen = tuple(c.description for c in self.classifiers if c.value)
        self._latest.submit(
            View(self.image.value, chosen, self.attack.value, self.epsilon.value,
                 self.steps.value, self.times.value, self._draws)
        )  # fmt: skip

    def _answer(self, view: View) -> None:
        try:
            self.view.value = self._html(view)
            self.status.value = "&nbsp;"
        except Superseded:
            raise
        except InputError as error:
            self.status.value = html.escape(str(error))
        except Exception as error:  # a thread has nobody else to tell
            self.status.value = html.escape(f"{type(error).__name__}: {error}")

    def _html(self, view: View) -> str:
        data, names = self._store.data, self._store.data.class_names
        label = int(data.test_labels[view.index])
        image = data.test_images[view.index].float() / 255
        attack = self._attacks(view.epsilon, view.steps)[view.attack]
        what = f"PGM-{view.steps}" if view.attack == PGM_T else view.attack
        count = getattr(attack, "steps", 1) * len(view.defences)
        passes, told = 0, time.monotonic()

        def on_pass() -> None:
            nonlocal passes, told
            self._latest.check()
            passes += 1
            if time.monotonic() - told > 0.2:
                told = time.monotonic()
                self.status.value = (
                    f'<progress max="{count}" value="{min(passes, count)}"></progress> {what}: '
                    f"{passes} of at most {count} passes; the next move interrupts"
                )

        deck = [
            cards.clean_card(image.cpu(), f"class {names[label]}", f"test image {view.index}")
        ]
        for name in view.defences:
            key = (name, replace(view, defences=(), times=1))
            if key not in self._known:
                classifier = Watched(self._models[name].classifier, on_pass)
                seed = view.index + view.draw * len(data.test_images)
                with self._store.threads():
                    found = cards.attack_image(classifier, attack, image, label, seed)
                self._known = {k: v for k, v in self._known.items() if k[1] == key[1]}
                self._known[key] = found
            deck.append(cards.card(name, self._known[key], label, names, view.times, what))
        return cards.deck(deck)
