"""The perturbation explorer: test images under attack, live in a notebook.

Its pictures are made in a thread beside the notebook, so that a move never waits for the one
before: `Latest` keeps the newest and ends what is still being computed.
"""

import html
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import ipywidgets as widgets
import torch
from torch import Tensor, nn
from traitlets import dlink

from l2lkit.checks.attacks import EPSILON
from l2lkit.checks.preflight import prepare
from l2lkit.data import Dataset
from l2lkit.errors import InputError
from l2lkit.game.cw import CW
from l2lkit.game.fixed import FGSM, PGM
from l2lkit.game.solver import Solver
from l2lkit.recipes import DEFENCES
from l2lkit.results import experiments
from l2lkit.runs.store import Store
from l2lkit.show import cards
from l2lkit.show.widgets import WRAP, toggles

PGM_T = "PGM-T"
Job = TypeVar("Job")


class Superseded(Exception):
    """A newer move has come: what is being computed is no longer wanted."""


class Latest(Generic[Job]):
    """Does jobs in a thread beside the notebook, one at a time. Of the jobs that wait only the
    latest is kept, and it ends the running one at its next `check`."""

    def __init__(self, work: Callable[[Job], None]):
        self._work, self._thread, self._lock = work, ThreadPoolExecutor(1), threading.Lock()
        self._newest: Future[None] = self._thread.submit(lambda: None)

    def submit(self, job: Job) -> None:
        with self._lock:
            self._newest.cancel()  # unless it has begun
            self._newest = self._thread.submit(self._run, job)

    def check(self) -> None:
        """For the running job: raise Superseded if a newer one waits."""
        with self._lock:
            if not self._newest.running():
                raise Superseded

    def wait(self) -> None:
        """Return when nothing runs or waits."""
        wait([self._newest])

    def _run(self, job: Job) -> None:
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
    draw: int


class AttackExplorer(widgets.VBox):
    """Test images under attack, several classifiers side by side: choose image, classifiers,
    attack, ε, the steps of PGM, and the magnification.

    Shows the clean image, and for each classifier the adversarial one, the perturbation magnified
    (grey is zero), the probabilities before and after, and whether it was fooled. ICLR 2020
    version, Figure 5 and Figure 9's ε. A move is answered from a thread; the latest wins, and ends
    what the one before it is still computing. `wait()` returns when all is shown.

    `classifiers` and `attacks` have what is offered by its name, PGM with any number of steps as
    PGM_T; of the classifiers those `chosen` are shown first, on the image `example`.
    """

    def __init__(
        self,
        data: Dataset,
        classifiers: Mapping[str, nn.Module],
        attacks: Mapping[str, Solver],
        *,
        chosen: Sequence[str],
        example: int = 0,
        epsilon: float = EPSILON,
        computing: Callable[[], AbstractContextManager[None]] = nullcontext,
    ):
        self._data, self._computing = data, computing
        self._classifiers, self._attacks = classifiers, attacks
        self._known: dict[tuple[str, View], cards.Attacked] = {}
        self._row = self._draws = 0
        self._latest = Latest(self._answer)
        self.wait = self._latest.wait

        narrow = widgets.Layout(width="auto")
        self._thumbnails = widgets.HTML()
        images = experiments.examples(data, columns=10)
        self.image = widgets.ToggleButtons(options=images, layout=narrow)
        self.image.add_class(f"l2l-{self.image.model_id}")
        self.more = widgets.Button(description="other images", layout=narrow)
        self.classifiers = toggles(list(classifiers), chosen)
        self.attack = widgets.Dropdown(options=list(self._attacks), description="attack")
        self.attack.value, self.attack.layout.width = PGM_T, "276px"
        self.attack.style.description_width = "80px"
        self.attack.add_class("l2l-left")
        self.epsilon = widgets.FloatSlider(
            value=epsilon,
            max=max(0.1, 2 * epsilon),
            step=0.001,
            readout_format=".3f",
            description="ε",
        )
        self.steps = widgets.IntSlider(value=20, min=1, max=100, description="steps T")
        self.again = widgets.Button(description="new draw")
        self.again.layout.width = "auto"  # a layout of its own, for it is hidden alone
        self.again.tooltip = "the same attack with other random numbers"
        magnifications = [(f"{m}×", m) for m in (1, 5, 30)]
        self.times = widgets.ToggleButtons(options=magnifications, value=30, layout=narrow)
        self.times.style.button_width = "4em"
        self.status, self.deck = widgets.HTML("&nbsp;"), cards.Deck()
        dlink((self.times, "value"), (self.deck, "times"))

        if example in images.values():
            self.image.value = example
        self._draw_thumbnails()
        for control in (self.image, self.attack, self.epsilon, self.steps, *self.classifiers):
            control.observe(self._moved, names="value")
        self.more.on_click(self._other_images)
        self.again.on_click(self._draw_again)
        name = widgets.Layout(width="80px")
        rows = (
            [widgets.Label("image", layout=name), self.image, self.more],
            [widgets.Label("classifiers", layout=name), *self.classifiers],
            [self.attack, self.epsilon, self.steps, self.again],
            [widgets.Label("magnify", layout=name), self.times],
        )
        lines = [widgets.HBox(row, layout=WRAP) for row in rows]
        super().__init__([self._thumbnails, *lines, self.status, self.deck])
        self._moved()
        self.wait()

    def _draw_thumbnails(self) -> None:
        """The buttons' pictures: what HTML can style, ipywidgets' buttons cannot."""
        button = f".l2l-{self.image.model_id} button"
        rules = [
            f"{button} {{ width: 52px; height: 66px; padding: 46px 0 0; line-height: 20px; "
            "background: 4px 2px / 44px no-repeat; image-rendering: pixelated; }"
        ]
        for k, index in enumerate(dict(self.image.options).values(), 1):
            url = cards.picture_url(self._data.test_images[index] / 255)
            rules.append(f"{button}:nth-child({k}) {{ background-image: url({url}); }}")
        self._thumbnails.value = f"<style>{' '.join(rules)}</style>"

    def _other_images(self, _: object) -> None:
        self._row += 1
        place = self.image.index
        self.image.unobserve(self._moved, "value")  # new options choose the first of them
        self.image.options = experiments.examples(self._data, self._row, 10)
        self.image.index = place
        self.image.observe(self._moved, "value")
        self._draw_thumbnails()
        self._moved()

    def _draw_again(self, _: object) -> None:
        self._draws += 1
        self._moved()

    def _moved(self, _: object = None) -> None:
        attack = self.attack.value
        self.steps.layout.display = None if attack == PGM_T else "none"
        self.again.layout.display = None if self._attacks[attack].stochastic else "none"
        chosen = tuple(c.description for c in self.classifiers if c.value)
        epsilon, steps = self.epsilon.value, self.steps.value
        self._latest.submit(View(self.image.value, chosen, attack, epsilon, steps, self._draws))

    def _answer(self, view: View) -> None:
        try:
            self._show(view)
            self.status.value = "&nbsp;"
        except Superseded:
            raise
        except InputError as error:
            self.status.value = html.escape(str(error))
        except Exception as error:  # a thread has nobody else to tell
            self.status.value = html.escape(f"{type(error).__name__}: {error}")

    def _show(self, view: View) -> None:
        data, name = self._data, view.attack
        attack = self._attacks[name].within(view.epsilon)
        if name == PGM_T:
            name, attack = f"PGM-{view.steps}", attack.varied(steps=view.steps)
        image, label = data.test_images[view.index].float() / 255, int(data.test_labels[view.index])
        seed = view.index + view.draw * len(data.test_images)
        count = attack.passes * len(view.defences)
        passes, reported = 0, time.monotonic()

        def on_pass() -> None:
            nonlocal passes, reported
            self._latest.check()
            passes += 1
            if time.monotonic() - reported > 0.2:
                reported = time.monotonic()
                self.status.value = (
                    f'<progress max="{count}" value="{min(passes, count)}"></progress> {name}: '
                    f"{passes} of at most {count} passes; the next move interrupts"
                )

        one = replace(view, defences=())
        self._known = {key: v for key, v in self._known.items() if key[1] == one}
        for defence in view.defences:
            if (defence, one) not in self._known:
                classifier = Watched(self._classifiers[defence], on_pass)
                with self._computing():
                    attacked = cards.attack_image(classifier, attack, image, label, seed)
                self._known[defence, one] = attacked
        shown = [(defence, name, self._known[defence, one]) for defence in view.defences]
        self.deck.show(data, view.index, shown)


class PerturbationExplorer(AttackExplorer):
    """The explorer on the store's models and every attack that it knows. It begins with an image
    on which Plain Net is fooled and PGM Net is not."""

    def __init__(
        self,
        store: Store,
        names: Sequence[str] = DEFENCES,
        chosen: Sequence[str] = ("plain", "pgm", "2step"),
    ):
        models = [store.model(name, store.seed) for name in names]
        named = experiments.named_attacks(store, store.seed)
        attacks = {PGM_T if name == "PGM-20" else name: a for name, a in named.items()}
        super().__init__(
            store.data,
            {model.defence: model.classifier for model in models},
            attacks | {"CW": CW(epsilon=EPSILON)},
            chosen=[store.recipe(name).defence for name in chosen],
            example=experiments.contrast(store),
            computing=store.computing,
        )


def explore(
    classifier: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float = EPSILON,
    class_names: Sequence[str] | None = None,
    attacker: Solver | None = None,
) -> AttackExplorer:
    """The explorer on a classifier of one's own: any callable from images (N, C, H, W) in [0, 1] to
    logits; labels int64 (N,). Images are shown, and attacked, in 8 bits. `attacker` is an attack of
    one's own beside FGSM, PGM and CW. Raises InputError as `l2lkit.check`."""
    ready = prepare(classifier, images, labels)
    names = tuple(class_names or map(str, range(ready.classes)))
    if len(names) <= int(ready.labels.max()):
        raise InputError(f"There are {len(names)} class names for {ready.classes} classes.")
    pixels = (ready.images * 255).round().to(torch.uint8)
    data = Dataset(
        "pictures", "pictures", names, pixels, ready.labels, pixels, ready.labels, augment=False
    )
    pgm: dict[str, Solver] = {PGM_T: PGM().within(epsilon), "FGSM": FGSM(), "CW": CW()}
    own = {"own attacker": attacker} if attacker else {}
    name = type(classifier).__name__ if isinstance(classifier, nn.Module) else "classifier"
    return AttackExplorer(
        data, {name: ready.classifier.eval()}, pgm | own, chosen=[name], epsilon=epsilon
    )
