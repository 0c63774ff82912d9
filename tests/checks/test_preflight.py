"""What is looked at before any attack, on classifiers with one flaw each."""

import math

import pytest
import torch
from masked import Linear, images
from torch import nn

from l2lkit.checks.preflight import Usable, interval, prepare
from l2lkit.errors import InputError
from l2lkit.game.solver import input_gradient


def pictures(count=16):
    x, y = images(count)
    return x / 255, y


def failing(classifier, x=None, y=None):
    given = pictures()
    ready = prepare(classifier, given[0] if x is None else x, given[1] if y is None else y)
    return {f.item for f in ready.findings if f.verdict == "fails"}, ready


class Flawed(Linear):
    def __init__(self, before=None, after=None):
        super().__init__()
        self.before, self.after = before, after

    def forward(self, x):
        logits = super().forward(self.before(x) if self.before else x)
        return self.after(logits) if self.after else logits


class Counting(Linear):
    """Answers that hang on how often it was asked."""

    asked = 0

    def forward(self, x):
        self.asked += 1
        return super().forward(x) * (1 + self.asked)


def batch_norm():
    """Batch statistics in eval mode too."""
    norm = nn.BatchNorm2d(3, track_running_stats=False)
    return nn.Sequential(norm, Linear())


IN_PLACE = "leaves its images as they are"


@pytest.mark.parametrize(
    ("classifier", "items"),
    [
        (Linear(), set()),
        (Linear().forward, set()),  # any callable
        (Flawed(after=lambda z: z.softmax(1)), {"logits, not probabilities"}),
        (Flawed(after=lambda z: z.log_softmax(1)), set()),
        (Flawed(before=lambda x: x.detach()), {"gradients reach the image"}),
        (Flawed(before=lambda x: torch.round(255 * x) / 255), {"gradients reach the image"}),
        (Linear(scale=1e6), {"gradients reach the image"}),
        (Flawed(before=lambda x: x.add_(1e-4)), {IN_PLACE}),
        (batch_norm(), {"the same answer alone as in a batch"}),
        (
            Linear(noise=0.1),
            {"the same answer twice", "the same answer alone as in a batch"},
        ),
        (Counting(), {"the same answer twice", "the same answer alone as in a batch"}),
        (Flawed(after=lambda z: z.roll(1, 1)), {"clean accuracy above chance"}),
    ],
)
def test_each_flaw_is_named_and_no_other(classifier, items):
    assert failing(classifier)[0] == items


def test_a_classifier_that_writes_into_its_images_leaves_ours_alone():
    x, y = pictures()
    before = x.clone()
    _, ready = failing(Flawed(before=lambda x: x.add_(1e-4)), x, y)
    input_gradient(
        ready.classifier, ready.images, ready.labels
    )  # autograd forbids it without copies
    assert torch.equal(x, before)


def test_train_mode_is_told_and_left():
    one, two = nn.Sequential(Linear()), nn.Sequential(Linear(), nn.Dropout())
    one.eval(), two.eval(), two[1].train()
    words = [
        next(f for f in failing(f)[1].findings if f.item == "eval mode").figure for f in (one, two)
    ]
    assert words == ["yes", "parts were in train mode; measured in eval mode"]
    assert two[1].training and not two[0].training


def test_images_that_are_not_numbers_for_it_count_neither_way():
    """Of 16 images, 4 have NaN for logits, 4 others for the gradient alone."""
    x, y = pictures()

    class Half(Linear):
        def forward(self, images):
            rows = []
            for image, logits in zip(images, super().forward(images), strict=True):
                place = next(i for i in range(16) if torch.equal(image, x[i]))
                endless = (image - image.detach()).sum().sqrt()  # zero, with a slope that is not
                rows.append(logits * math.nan if place < 4 else logits)
                if 4 <= place < 8:
                    rows[-1] = logits + endless
            return torch.stack(rows)

    items, ready = failing(Half(), x, y)
    assert items == {"finite logits and gradients"}
    assert ready.kept.tolist() == list(range(8, 16)) and torch.equal(ready.images, x[8:])
    assert next(f for f in ready.findings if "finite" in f.item).figure.startswith("8 of 16")
    with pytest.raises(InputError, match="not finite on any image"):
        prepare(Flawed(after=lambda z: z * math.nan), x, y)


class Small(Linear):
    """A machine with room for `most` images."""

    def __init__(self, most, error):
        super().__init__()
        self.most, self.error, self.seen = most, error, 0

    def forward(self, x):
        if len(x) > self.most and torch.is_grad_enabled():
            raise self.error
        self.seen = max(self.seen, len(x))
        return super().forward(x)


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("not enough memory: you tried")],
)
def test_without_memory_fewer_images_go_at_once_and_it_is_said(error):
    items, ready = failing(Small(5, error))
    (said,) = [f.figure for f in ready.findings if f.item == "fits into memory"]
    assert items == set() and said.startswith("4 images at a time")
    x, y = pictures()
    # The wrapped classifier takes any batch, with the same gradient.
    gradient = input_gradient(ready.classifier, x, y)
    torch.testing.assert_close(gradient, input_gradient(Linear(), x, y))
    with pytest.raises(InputError, match="OutOfMemory|not enough memory"):
        prepare(Small(0, error), *pictures())


def test_parts_and_copies_change_no_logit():
    x, _ = pictures()
    for options in ({"copies": True}, {"cut_off": True}, {"at_once": 3}):
        torch.testing.assert_close(Usable(Linear(), **options)(x), Linear()(x))


X, Y = pictures()
BAD = [
    (Linear(), 255 * X, Y, r"run from .* to 1\d\d.*divide them by 255"),
    (Linear(), X - 0.5, Y, "undo their normalisation"),
    (Linear(), X * math.nan, Y, r"Images must lie in \[0, 1\]"),
    (Linear(), X, Y - 1, "Labels count from 0"),
    (Linear(), X, Y + 1, "label 4, and the classifier's 4 classes end at 3"),
    (Linear(), X[:0], Y[:0], "no images"),
    (Linear(), X, Y.int(), "Labels must be int64"),
    (Linear(), X[:, :1], Y, r"cannot take images of 1×8×8 \(RuntimeError.*size and channels"),
    (nn.Sequential(Linear(), nn.Linear(4, 1)), X, Y, "one output"),
    (lambda x: {"logits": x}, X, Y, "answers with a dict"),
    (lambda x: x, X, Y, r"must return logits \(N, classes\)"),
    (lambda x: 1 / 0, X, Y, None),
]


@pytest.mark.parametrize(("classifier", "x", "y", "says"), BAD)
def test_what_cannot_be_measured_is_one_sentence(classifier, x, y, says):
    if says is None:  # a mistake of their own code is theirs to see
        with pytest.raises(ZeroDivisionError):
            prepare(classifier, x, y)
        return
    with pytest.raises(InputError, match=says) as error:
        prepare(classifier, x, y)
    assert "\n" not in str(error.value)


def test_wilsons_interval_by_its_formula():
    for k, n in ((0, 20), (7, 20), (500, 500), (123, 500)):
        z, p = 1.959964, k / n
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        assert interval(k, n) == pytest.approx((middle - half, middle + half), abs=1e-6)
