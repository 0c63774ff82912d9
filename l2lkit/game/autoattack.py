"""AutoAttack, run by the library that packages its authors' code."""

import importlib.util
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from l2lkit.errors import InputError, check_positive
from l2lkit.game.solver import Generators, Solver, check_epsilon, project

LOG = logging.getLogger("auto-attack")  # the library's
LOG.addHandler(logging.NullHandler())
LOG.propagate = False  # whoever wants to read what it says asks for `flags`
INSTALL = "AutoAttack is not installed: pip install 'l2lkit[autoattack]' adds it."


@dataclass(frozen=True, kw_only=True)
class AutoAttack(Solver):
    """AutoAttack (Croce and Hein 2020): attacks without a step size to tune, each on the images
    that the ones before it left. The defaults are its standard version.

    The algorithm is the authors' own, as the library `pyautoattack` packages it (it needs torch
    alone; ART's version has DeepFool in the place of FAB, and torchattacks insists on an old
    requests). `attacks`: any of apgd-ce, apgd-dlr, apgd-t, fab, fab-t and square, in this order of
    running; `targets`: classes tried by the targeted ones (at most all others are); `queries`: of
    Square, which uses no gradients. Images are float32. Numbers are drawn for the whole batch from
    one seed, which the first image's generator gives, so an evaluation runs on batches of 100.

    Raises InputError if the library is missing, and for the DLR losses (apgd-dlr, apgd-t), which
    compare three and four logits, on a classifier with fewer.
    """

    epsilon: float = 0.031
    attacks: tuple[str, ...] = ("apgd-ce", "apgd-t", "fab-t", "square")
    targets: int = 9
    queries: int = 5000
    stochastic = True
    batch_dependent = True

    def __post_init__(self) -> None:
        check_epsilon(self.epsilon)
        check_positive(targets=self.targets, queries=self.queries)
        known = ("apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square")
        if not self.attacks or set(self.attacks) - set(known):
            raise InputError(f"attacks must be some of {', '.join(known)}, not {self.attacks}.")

    @property
    def label(self) -> str:
        """AutoAttack, and in brackets what differs from its standard version."""
        if replace(self, epsilon=0.031) == AutoAttack():
            return "AutoAttack"
        cost = {
            "apgd-t": f" ×{self.targets}",
            "fab-t": f" ×{self.targets}",
            "square": f" ×{self.queries}",
        }
        return f"AutoAttack ({', '.join(a + cost.get(a, '') for a in self.attacks)})"

    def iterates(
        self, classifier: nn.Module, images: Tensor, labels: Tensor, generators: Generators = None
    ) -> Iterator[Tensor]:
        if images.dtype != torch.float32:
            raise InputError(f"AutoAttack needs float32 images, not {images.dtype}.")
        require_autoattack()
        import pyautoattack

        with torch.no_grad():
            classes = classifier(images[:1]).shape[1]
        for attack, least in (("apgd-dlr", 3), ("apgd-t", 4)):
            if attack in self.attacks and classes < least:
                raise InputError(
                    f"AutoAttack's {attack} needs {least} classes and there are {classes}: leave "
                    "it out of `attacks`; fab-t does without."
                )
        first = generators[0] if generators else None
        seed = int(torch.randint(2**31, (), generator=first))
        trace = sys.gettrace()  # the library takes it away
        cuda = [images.device] if images.is_cuda else []
        with torch.random.fork_rng(devices=cuda):
            adversary = pyautoattack.AutoAttack(
                classifier,
                attacks=list(self.attacks),
                device=images.device,
                eps=self.epsilon,
                seed=seed,
                version="custom",
            )
            adversary.verbose = False
            adversary.apgd.n_restarts = adversary.fab.n_restarts = 1
            adversary.apgd_targeted.n_target_classes = min(self.targets, classes - 1)
            adversary.fab.n_target_classes = min(self.targets, classes - 1)
            adversary.square.n_queries = self.queries
            try:
                adversarial, _ = adversary.run_standard_evaluation(
                    images, labels, batch_size=len(images)
                )
            finally:
                sys.settrace(trace)
        yield project(adversarial - images, images, self.epsilon)


@contextmanager
def flags() -> Iterator[list[str]]:
    """Inside, what AutoAttack's own checks say of the classifiers it attacks is added to the list:
    each sentence once, with the numbers it first had."""
    said: list[str] = []
    known: set[str] = set()
    handler = logging.Handler(logging.WARNING)

    def emit(record: logging.LogRecord) -> None:
        sentence = record.getMessage().split(" See ")[0]  # of a file that is not here
        if (kind := re.sub(r"[\d.]+", "", sentence)) not in known:
            known.add(kind)
            said.append(sentence)

    handler.emit = emit  # type: ignore[method-assign]  # one instance, so no subclass
    LOG.addHandler(handler)
    try:
        yield said
    finally:
        LOG.removeHandler(handler)


def autoattack_installed() -> bool:
    """Whether the library that AutoAttack needs is installed."""
    return importlib.util.find_spec("pyautoattack") is not None


def require_autoattack() -> None:
    """Raise InputError unless that library is installed."""
    if not autoattack_installed():
        raise InputError(INSTALL)
