"""A dataset in memory, and what is known of the official ones."""

import hashlib
import re
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from l2lkit.errors import InputError

NAMES = ("digits", "cifar10", "cifar100", "svhn", "mnist")
CIFAR10_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
# Per official dataset: title, number of classes, numbers of training and test images, and the
# official files with the place where they are looked for.
OFFICIAL = {
    "cifar10": (
        "CIFAR-10",
        10,
        (50_000, 10_000),
        "cifar-10-python.tar.gz, unpacked to cifar-10-batches-py/",
    ),
    "cifar100": (
        "CIFAR-100",
        100,
        (50_000, 10_000),
        "cifar-100-python.tar.gz, unpacked to cifar-100-python/",
    ),
    "svhn": ("SVHN", 10, (73_257, 26_032), "train_32x32.mat and test_32x32.mat"),
    "mnist": ("MNIST", 10, (60_000, 10_000), "the four *-ubyte files, unpacked, in MNIST/raw/"),
}
NO_AUGMENT = ("digits", "svhn", "mnist")  # a flipped or half cut-off digit is another digit


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training and a test split, in memory.

    Images are uint8 (N, C, H, W) in 0-255 with C of 1 or 3; labels are int64 (N,) and index
    `class_names`. `title` is what a caption calls the data; `augment` says whether training
    crops and flips. Raises InputError where the arrays do not fit together.
    """

    name: str
    title: str
    class_names: tuple[str, ...]
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    augment: bool

    def __post_init__(self) -> None:
        def need(condition: bool, problem: str) -> None:
            if not condition:
                raise InputError(f"{self.title}: {problem}; get an intact copy of the data.")

        for split, images, labels in self._splits():
            need(images.dtype == torch.uint8, f"the {split} images are not 8-bit")
            need(labels.dtype == torch.int64, f"the {split} labels are not int64")
            shape, count = tuple(images.shape), labels.numel()
            need(len(shape) == 4, f"the {split} images have shape {shape}, not (N, C, H, W)")
            need(shape[1] in (1, 3), f"the {split} images have {shape[1]} channels, not 1 or 3")
            need(images.numel() > 0, f"the {split} split has no image")
            need(labels.shape == shape[:1], f"{shape[0]} {split} images but {count} labels")
            low, high, last = int(labels.min()), int(labels.max()), self.num_classes - 1
            inside = low >= 0 and high <= last
            need(inside, f"the {split} labels run from {low} to {high}, outside 0 to {last}")
        sizes = tuple(self.train_images.shape[1:]), tuple(self.test_images.shape[1:])
        need(sizes[0] == sizes[1], f"training images are {sizes[0]} but test images {sizes[1]}")

    def _splits(self) -> list[tuple[str, Tensor, Tensor]]:
        return [
            ("training", self.train_images, self.train_labels),
            ("test", self.test_images, self.test_labels),
        ]

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def channels(self) -> int:
        return self.train_images.shape[1]

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that change with any pixel, label, shape or class name."""
        digest = hashlib.sha256(repr(self.class_names).encode())
        for _, images, labels in self._splits():
            for array in (images, labels):
                digest.update(repr(tuple(array.shape)).encode())
                digest.update(array.cpu().flatten().numpy().data)
        return digest.hexdigest()[:16]

    def test(self, count: int | None = None) -> tuple[Tensor, Tensor]:
        """The first `count` test images as floats in [0, 1], and their labels."""
        return self.test_images[:count].float() / 255, self.test_labels[:count]

    def to(self, device: torch.device | str) -> "Dataset":
        """The same data with its tensors on `device`."""
        return replace(
            self,
            train_images=self.train_images.to(device),
            train_labels=self.train_labels.to(device),
            test_images=self.test_images.to(device),
            test_labels=self.test_labels.to(device),
        )

    def subset(self, train: int | None = None, test: int | None = None) -> "Dataset":
        """The first `train` and `test` images, or all where None or there are no more.

        The title then says so. Raises InputError for a number below 1.
        """
        if min(n for n in (train, test, 1) if n is not None) < 1:
            raise InputError(f"A subset of {train} and {test} images is empty: ask for at least 1.")
        smaller = replace(
            self,
            train_images=self.train_images[:train],
            train_labels=self.train_labels[:train],
            test_images=self.test_images[:test],
            test_labels=self.test_labels[:test],
        )
        n, m = len(smaller.train_images), len(smaller.test_images)
        if (n, m) == (len(self.train_images), len(self.test_images)):
            return self
        base = re.sub(r" \(first [\d,]+ training, [\d,]+ test images\)$", "", self.title)
        return replace(smaller, title=f"{base} (first {n:,} training, {m:,} test images)")
