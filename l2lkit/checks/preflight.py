"""What is looked at before any attack: whether a classifier and its images are what attacks take
them for."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from scipy.stats import binomtest
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from l2lkit.errors import InputError
from l2lkit.game.evaluate import BATCH, evaluating
from l2lkit.game.guard import Classifier
from l2lkit.game.solver import check_batch

ALONE = 8  # images that are shown one by one too


class Finding(NamedTuple):
    """One look: its name, whether it "holds" or "fails" (empty: a fact without a verdict), what was
    seen, and what it means where it fails."""

    item: str
    verdict: str
    figure: str
    otherwise: str


class Usable(nn.Module):
    """A classifier as attacks can use it: any callable as a module; images copied for one that
    writes into them; logits tied to the image, with slope zero, where it cuts the gradient off; and
    at most `at_once` images at a time, computed again on the way back, where memory is short."""

    def __init__(
        self,
        classifier: Classifier,
        *,
        copies: bool = False,
        cut_off: bool = False,
        at_once: int | None = None,
    ):
        super().__init__()
        self.classifier = classifier
        self.copies, self.cut_off, self.at_once = copies, cut_off, at_once

    def forward(self, x: Tensor) -> Tensor:
        size = self.at_once or len(x)
        if len(x) <= size:
            return self._whole(x)
        parts = [checkpoint(self._whole, part, use_reentrant=False) for part in x.split(size)]
        return torch.cat(parts)

    def _whole(self, x: Tensor) -> Tensor:
        logits = self.classifier(x.clone() if self.copies else x)
        return logits + 0 * x.flatten(1).sum(1, keepdim=True) if self.cut_off else logits


@dataclass(frozen=True)
class Ready:
    """A classifier, its number of classes, images and labels that attacks can work on, which of the
    images given these are (M,), and what was found on the way."""

    classifier: nn.Module
    classes: int
    images: Tensor
    labels: Tensor
    kept: Tensor
    findings: list[Finding]


def prepare(classifier: Classifier, images: Tensor, labels: Tensor) -> Ready:
    """Look at a classifier (any callable from images (N, C, H, W) in [0, 1] to logits (N, classes))
    and the images and labels (N,) that it is to be measured on.

    Images whose logits or gradients are not finite are left out: they count neither as right nor
    as fooled. Raises InputError where there is nothing to measure: images outside [0, 1], labels
    outside the classes, a classifier that cannot take the images or gives no logits.
    """
    _check_images(images, labels)
    network = classifier if isinstance(classifier, nn.Module) else Usable(classifier)
    device = next((p.device for p in network.parameters()), images.device)
    images, labels = images.to(device), labels.to(device)
    findings = [_range(images)]
    modes = {m.training for m in network.modules()}
    words = "was in train mode; measured in eval mode" if modes == {True} else ""
    words = words or ("parts were in train mode; measured in eval mode" if True in modes else "yes")
    findings.append(Finding("eval mode", "holds" if words == "yes" else "", words, ""))
    with evaluating(network, labels=labels):
        network, changed = _own_copies(network, images[:ALONE])
        findings.append(changed)
        network, at_once, told = _in_memory(network, images, labels)
        findings += told
        logits, gradients, tied = _look(network, images, labels, at_once)
        if not tied:
            network = Usable(network, cut_off=True)
        _check_classes(logits, labels)
        findings += _outputs(network, images, labels, logits, at_once)
    finite = logits.isfinite().all(1) & gradients.isfinite().flatten(1).all(1)
    if not finite.any():
        raise InputError(
            "The classifier's logits or gradients are not finite on any image: look for a division "
            "by zero, a logarithm of zero or weights that are not finite."
        )
    findings += _gradients(gradients, finite, tied)
    kept = finite.nonzero().flatten()
    right = int((logits.argmax(1) == labels)[kept].sum())
    findings.append(_accuracy(right, labels[kept]))
    classes = logits.shape[1]
    return Ready(network, classes, images[kept], labels[kept], kept, findings)


def interval(count: int, total: int) -> tuple[float, float]:
    """Wilson's interval of 95% for a share (Wilson 1927), as scipy computes it."""
    ci = binomtest(count, total).proportion_ci(method="wilson")
    return float(ci.low), float(ci.high)


# The single looks ------------------------------------------------------------------------------


def _check_images(images: Tensor, labels: Tensor) -> None:
    check_batch(images, labels)
    if not len(images):
        raise InputError("There are no images to measure on.")
    low, high = float(images.min()), float(images.max())
    if not (low >= 0 and high <= 1):  # NaN too
        fix = "divide them by 255" if low >= 0 else "undo their normalisation"
        raise InputError(
            f"Images must lie in [0, 1], and these run from {low:.3g} to {high:.3g}: {fix}, and "
            "let the classifier normalise (--mean and --std wrap it)."
        )
    if int(labels.min()) < 0:
        raise InputError(f"Labels count from 0, and there is {int(labels.min())}: mend them.")


def _range(images: Tensor) -> Finding:
    low, high = float(images.min()), float(images.max())
    words = f"{low:.3g} to {high:.3g}"
    dark = high < 0.02
    return Finding(
        "images in [0, 1]",
        "fails" if dark else "holds",
        words,
        "Nearly black: they were divided by 255 twice." if dark else "",
    )


def _own_copies(network: nn.Module, images: Tensor) -> tuple[nn.Module, Finding]:
    """A classifier that writes into its images gets copies."""
    shown = images.clone()
    _answer(network, shown)
    item = "leaves its images as they are"
    if torch.equal(shown, images):
        return network, Finding(item, "holds", "yes", "")
    means = "It writes into the images, and attacks would move with it: it got copies here."
    return Usable(network, copies=True), Finding(item, "fails", "no", means)


def _in_memory(
    network: nn.Module, images: Tensor, labels: Tensor
) -> tuple[nn.Module, int, list[Finding]]:
    """How many images go at once, forward and back; fewer are tried where memory ends."""
    most = size = min(len(images), BATCH if images.is_cuda else 100)  # AutoAttack takes 100
    while True:
        try:
            _gradient(network, images[:size], labels[:size])
            break
        except RuntimeError as error:
            if not _out_of_memory(error) or size == 1:
                words = "The classifier fails on the images"
                raise InputError(_first_line(words, error)) from error
            size = max(1, size // 2)
    if size == most:
        return network, size, []
    words = f"{size} images at a time, since {min(most, 2 * size)} need more memory than there is"
    return Usable(network, at_once=size), size, [Finding("fits into memory", "", words, "")]


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error)


def _first_line(words: str, error: Exception) -> str:
    return f"{words} ({type(error).__name__}: {str(error).strip().splitlines()[0][:150]}): mend it."


def _answer(network: nn.Module, x: Tensor) -> Tensor:
    """Logits (N, classes); InputError for anything else."""
    size = "×".join(map(str, x.shape[1:]))
    with torch.no_grad():
        try:
            logits: Any = network(x)
        except RuntimeError as error:
            if _out_of_memory(error):
                raise
            words = f"The classifier cannot take images of {size}"
            fix = ": bring the images to the size and channels it wants."
            raise InputError(_first_line(words, error).removesuffix(": mend it.") + fix) from error
        except (TypeError, IndexError, ValueError) as error:
            raise InputError(_first_line("The classifier fails on the images", error)) from error
    if not isinstance(logits, Tensor):
        raise InputError(
            f"The classifier answers with a {type(logits).__name__}, not with a tensor of logits: "
            "wrap it so that it returns its logits alone."
        )
    if logits.ndim != 2 or len(logits) != len(x) or not logits.is_floating_point():
        raise InputError(
            f"The classifier answers {len(x)} images with {logits.dtype} of shape "
            f"{tuple(logits.shape)}: it must return logits (N, classes)."
        )
    if logits.shape[1] < 2:
        raise InputError(
            "The classifier has one output: let it return two logits, as torch.cat([-z, z], 1)."
        )
    return logits


def _check_classes(logits: Tensor, labels: Tensor) -> None:
    classes, last = logits.shape[1], int(labels.max())
    if last >= classes:
        raise InputError(
            f"There is the label {last}, and the classifier's {classes} classes end at "
            f"{classes - 1}: take the data it was trained on."
        )


def _gradient(network: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, bool]:
    """The loss's gradient in x, and whether the graph leads there at all: if not it is zero."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        logits = network(x)
        if y.max() >= logits.shape[1]:
            _check_classes(logits, y)
        loss = F.cross_entropy(logits, y, reduction="sum")
        if not loss.requires_grad:
            return torch.zeros_like(x), False
        (gradient,) = torch.autograd.grad(loss, x, allow_unused=True)
    return (torch.zeros_like(x), False) if gradient is None else (gradient, True)


def _look(
    network: nn.Module, images: Tensor, labels: Tensor, size: int
) -> tuple[Tensor, Tensor, bool]:
    """Logits and gradients of all images, and whether the logits hang on them by autograd."""
    logits, gradients, tied = [], [], True
    for x, y in zip(images.split(size), labels.split(size), strict=True):
        logits.append(_answer(network, x).float())
        gradient, led = _gradient(network, x, y)
        gradients.append(gradient)
        tied &= led
    return torch.cat(logits), torch.cat(gradients), tied


def _outputs(
    network: nn.Module, images: Tensor, labels: Tensor, logits: Tensor, size: int
) -> Iterator[Finding]:
    """What the logits say: probabilities, classes, a second pass, images one by one."""
    finite = logits[logits.isfinite().all(1)]
    sums = (finite.sum(1) - 1).abs() < 1e-3
    probabilities = len(finite) > 0 and bool((finite >= 0).all() and sums.all())
    words = "probabilities" if probabilities else "logits"
    yield Finding(
        "logits, not probabilities",
        "fails" if probabilities else "holds",
        words,
        "A softmax at the end: cross-entropy takes another, its loss is bounded, and its gradient "
        "vanishes where the classifier is sure. Return what goes into the softmax.",
    )
    used = len(labels.unique())
    words = f"{logits.shape[1]} outputs, {used} classes among the labels"
    yield Finding("classes and labels agree", "holds", words, "")
    again = torch.cat([_answer(network, x).float() for x in images.split(size)])
    different = int((_apart(again, logits)).sum())
    yield Finding(
        "the same answer twice",
        "fails" if different else "holds",
        f"{different} of {len(images)} images with other logits",
        "It draws random numbers or keeps a state: one pass measures luck; attack the mean over "
        "draws (EOT).",
    )
    few = images[:ALONE]
    alone = torch.cat([_answer(network, x[None]).float() for x in few])
    different = int(_apart(alone, logits[:ALONE]).sum())
    yield Finding(
        "the same answer alone as in a batch",
        "fails" if different else "holds",
        f"{different} of {len(few)} images with other logits",
        "The answer hangs on the other images of the batch: batch statistics are in use at test "
        "time, or it draws random numbers.",
    )


def _apart(one: Tensor, two: Tensor) -> Tensor:
    """Whether the logits (N, classes) differ by more than rounding, image by image."""
    most = two.nan_to_num(0, 0, 0).abs().amax(1, keepdim=True).clamp(min=1e-6)
    return ~torch.isclose(one / most, two / most, rtol=0, atol=1e-3, equal_nan=True).all(1)


def _gradients(gradients: Tensor, finite: Tensor, tied: bool) -> Iterator[Finding]:
    n = len(finite)
    lost = n - int(finite.sum())
    yield Finding(
        "finite logits and gradients",
        "fails" if lost else "holds",
        f"{lost} of {n} images without" + (", left out of all that follows" if lost else ""),
        "Not a number: these images count neither as right nor as fooled. Look for logarithms and "
        "divisions.",
    )
    flat = int((~gradients[finite].flatten(1).any(1)).sum())
    share = flat / max(1, n - lost)
    words = f"zero on {flat} of {n - lost} images ({share:.0%})"
    yield Finding(
        "gradients reach the image",
        "fails" if share > 0.05 else "holds",
        words if tied else "cut off: autograd finds no way from the logits to the image",
        "Attacks by gradient stand still there, whatever they report: remove the step that cuts "
        "or flattens it, or give it a slope on the way back (BPDA).",
    )


def _accuracy(right: int, labels: Tensor) -> Finding:
    n = len(labels)
    chance = float(labels.bincount().max()) / n
    low, high = interval(right, n)
    return Finding(
        "clean accuracy above chance",
        "holds" if low > chance else "fails",
        f"{right / n:.1%} ({low:.1%} to {high:.1%}); the commonest class alone {chance:.1%}",
        "It does not know these images: look at their normalisation (--mean, --std), the order of "
        "the classes and the weights.",
    )
