"""What stands between an attack and what its caller hands it: see `Solver.run`.

The caller's torch settings do not reach in, the images are copies, and a classifier that does not
answer with logits is refused in one sentence.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from l2lkit.errors import InputError

Classifier = Callable[[Tensor], Tensor]  # images (N, C, H, W) -> logits (N, K), as an nn.Module
# What code raises that is handed what it was not made for.
FAULTS = (RuntimeError, TypeError, ValueError, LookupError, AttributeError, AssertionError)


@contextmanager
def own_settings(gradients: bool = True) -> Iterator[None]:
    """Inside, nothing that the caller has set in torch counts: gradients are on (or off, as
    asked), there is no inference mode and no autocast, and new tensors are float32 on the CPU."""
    dtype = torch.get_default_dtype()
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.set_grad_enabled(gradients))
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if dtype != torch.float32:
            torch.set_default_dtype(torch.float32)
            stack.callback(torch.set_default_dtype, dtype)
        yield


@contextmanager
def exact_float32() -> Iterator[None]:
    """Inside, a GPU's convolutions of float32 numbers are in float32, and not in TF32, which keeps
    10 of their 23 bits."""
    convolutions = getattr(torch.backends.cudnn, "conv")  # noqa: B009  # torch adds it at import
    before = convolutions.fp32_precision
    convolutions.fp32_precision = "ieee"
    try:
        yield
    finally:
        convolutions.fp32_precision = before


@contextmanager
def frozen(*things: object) -> Iterator[None]:
    """Inside, no graph is built towards the parameters of these modules, and none gets a `.grad`:
    an attack asks for gradients in x."""
    modules = [thing for thing in things if isinstance(thing, nn.Module)]
    learning = [p for module in modules for p in module.parameters() if p.requires_grad]
    for p in learning:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in learning:
            p.requires_grad_(True)


def ordinary(thing: Any) -> Any:
    """The thing itself; a copy where its tensors come from `torch.inference_mode`, for no gradient
    goes through those."""
    if not isinstance(thing, nn.Module):
        return thing
    tensors = [*thing.parameters(), *thing.buffers()]
    return copy.deepcopy(thing) if any(t.is_inference() for t in tensors) else thing


class Guarded(nn.Module):
    """A classifier as attacks see it. It gets a copy of the images, so that it may change them in
    place, and has to answer with logits that have a place for every one of `labels`. Whatever else
    it has, its layers for example, is found under the same names as before.

    Raises InputError for an answer that is no logits, for labels outside, and where the classifier
    itself raises.
    """

    def __init__(self, classifier: Classifier, labels: Tensor):
        super().__init__()
        if isinstance(classifier, Guarded):
            classifier = classifier.classifier  # guarded once is enough
        if not callable(classifier):
            raise InputError(
                f"A classifier is called with images and gives logits; a "
                f"{type(classifier).__name__} cannot be called."
            )
        self.classifier: Classifier = ordinary(classifier)
        self.labels = labels
        self.checked = 0  # the number of classes that the labels were compared with
        self.training = getattr(classifier, "training", False)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            inner = self.__dict__.get("_modules", {}).get("classifier")
            if inner is None:
                raise
            return getattr(inner, name)

    def forward(self, images: Tensor) -> Tensor:
        try:
            logits = self.classifier(images.clone())
        except (InputError, torch.OutOfMemoryError):
            raise
        except FAULTS as error:
            raise InputError(
                f"The classifier cannot take images of shape {tuple(images.shape)}, {images.dtype} "
                f"on {images.device} ({type(error).__name__}: {_first_line(error)}): give it what "
                "it was made for, or wrap it in a function."
            ) from error
        _check_logits(logits, len(images))
        if torch.is_grad_enabled() and images.requires_grad and not logits.requires_grad:
            raise InputError(
                "Attacks climb the loss, and no gradient goes through this classifier: take "
                "torch.no_grad or detach out of it, or search without gradients (RandomSearch)."
            )
        if logits.shape[1] != self.checked:
            _check_labels(self.labels, logits.shape[1])
            self.checked = logits.shape[1]
        return logits


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


def _check_logits(logits: Any, count: int) -> None:
    is_tensor = isinstance(logits, Tensor)
    right = is_tensor and logits.is_floating_point() and logits.ndim == 2
    if right and len(logits) == count and logits.shape[1] > 1:
        return
    got = f"{tuple(logits.shape)} of {logits.dtype}" if is_tensor else f"a {type(logits).__name__}"
    raise InputError(
        f"A classifier must answer {count} images with logits, a float tensor ({count}, K) for K "
        f"of 2 or more classes, and this one gives {got}: wrap it in a function that returns its "
        "logits."
    )


def _check_labels(labels: Tensor, classes: int) -> None:
    if len(labels) and not (labels.min() >= 0 and labels.max() < classes):
        raise InputError(
            f"Labels run from {labels.min()} to {labels.max()} and the classifier has {classes} "
            f"classes: they must be 0 to {classes - 1}."
        )


def check_images(images: Tensor) -> None:
    """Raise InputError unless all values are numbers in [0, 1]."""
    if images.numel() and not (images.min() >= 0 and images.max() <= 1):
        raise InputError(
            f"Images must lie in [0, 1], and these run from {images.min():g} to {images.max():g}: "
            "divide by 255 and leave normalisation to the classifier."
        )


def within_ball(delta: Tensor, images: Tensor, epsilon: float, name: str) -> Tensor:
    """δ as it came where it is a perturbation within ε of images that stay in [0, 1]. What is not a
    number in it is no change, and what leads out of [0, 1] ends there. InputError for another shape
    and for anything larger than ε."""
    if not isinstance(delta, Tensor) or delta.shape != images.shape:
        got = tuple(delta.shape) if isinstance(delta, Tensor) else type(delta).__name__
        raise InputError(f"{name} gives {got} for images {tuple(images.shape)}: it must give δ.")
    if not delta.numel():
        return delta
    attacked, most = images + delta, epsilon + 2 * torch.finfo(delta.dtype).eps
    if (attacked.min() >= 0) & (attacked.max() <= 1) & (delta.abs().max() <= most):
        return delta
    delta = torch.where(delta.isfinite(), delta, 0.0)
    largest = delta.abs().max().item()
    if largest > most:
        raise InputError(
            f"{name} gives a δ of {largest:.3g} where ε is {epsilon:g}: let it give the "
            "perturbation and not the image, and bring that into the ball with l2lkit.project."
        )
    return (images + delta).clamp(0, 1) - images
