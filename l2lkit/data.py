"""Datasets as tensors, and the batches that are drawn from them.

`load` reads the official files (in torchvision's layout), a folder tree or zip of images, or
draws the embedded digits. Whatever is wrong with the files comes out as one InputError.
"""

import hashlib
import io
import os
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from l2lkit import digits
from l2lkit.errors import InputError

NAMES = ("digits", "cifar10", "cifar100", "svhn", "mnist")
CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
# Per official dataset: title, number of classes, numbers of training and test images, and the
# official files with the place where they are looked for.
OFFICIAL = {
    "cifar10": ("CIFAR-10", 10, (50_000, 10_000),
                "cifar-10-python.tar.gz, unpacked to cifar-10-batches-py/"),
    "cifar100": ("CIFAR-100", 100, (50_000, 10_000),
                 "cifar-100-python.tar.gz, unpacked to cifar-100-python/"),
    "svhn": ("SVHN", 10, (73_257, 26_032), "train_32x32.mat and test_32x32.mat"),
    "mnist": ("MNIST", 10, (60_000, 10_000), "the four *-ubyte files, unpacked, in MNIST/raw/"),
}  # fmt: skip
NO_AUGMENT = ("digits", "svhn", "mnist")  # a flipped or half cut-off digit is another digit
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
PADDING = 4  # pixels of zeros around an image before it is cropped back to its size


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


def default_data_dir() -> Path:
    """The folder L2LKIT_DATA names, else `data` in the project (the nearest folder, from the
    working directory upwards, with a pyproject.toml; the working directory if there is none)."""
    if os.environ.get("L2LKIT_DATA"):
        return Path(os.environ["L2LKIT_DATA"]).expanduser()
    here = Path.cwd()
    project = next((p for p in (here, *here.parents) if (p / "pyproject.toml").is_file()), here)
    return project / "data"


def load(name: str, data: str | Path | None = None, download: bool = False) -> Dataset:
    """Load a dataset by name.

    `data` is a folder with the official files in torchvision's layout (default_data_dir() when
    None), or a folder tree or .zip of `split/class/image`, with splits `train` and `test` (or
    `val` or `valid` in its place); for the latter `name` is free. `download` lets torchvision
    fetch missing official files into the folder. "digits" needs no files: the images are drawn
    once and kept in the folder as a cache.

    Raises InputError for an unknown name and for missing, damaged or ill-fitting files.
    """
    place = default_data_dir() if data is None else Path(data).expanduser()
    drawn = name == "digits" and data is None
    if not drawn and (place.is_file() or (place / "train").is_dir()):
        return _load_images(name, place)
    if name == "digits":
        return _load_digits(place)
    if name in OFFICIAL:
        from l2lkit import official  # torchvision takes seconds to import

        return official.load(name, place, download)
    raise InputError(
        f"There is no dataset {name!r}: choose one of {', '.join(NAMES)}, or pass --data with a "
        "folder or .zip that holds train/CLASS/IMAGE and test/CLASS/IMAGE."
    )


def _load_digits(folder: Path) -> Dataset:
    cache = folder / f"digits-v{digits.VERSION}.npz"

    def dataset(train: tuple, test: tuple) -> Dataset:
        x, y, test_x, test_y = (torch.from_numpy(a) for a in (*train, *test))
        names = tuple("0123456789")
        return Dataset("digits", "digits (embedded)", names, x, y, test_x, test_y, False)

    if cache.is_file():
        try:
            with np.load(cache) as kept:
                a, b, c, d = (kept[f"arr_{i}"] for i in range(4))
            return dataset((a, b), (c, d))
        except Exception as error:  # a damaged zip raises almost anything
            warnings.warn(f"{cache} is damaged ({error}); drawing the digits anew.", stacklevel=3)
    train, test = digits.make_digits(*digits.TRAIN), digits.make_digits(*digits.TEST)
    part = folder / f"{cache.name}.{os.getpid()}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            np.savez(file, *train, *test)
        part.replace(cache)
    except OSError:
        part.unlink(missing_ok=True)  # no cache on a read-only or full disk: they are drawn again
    return dataset(train, test)


def _load_images(name: str, place: Path) -> Dataset:
    """A folder tree or zip of split/class/image."""
    if place.is_dir():
        paths = [p.relative_to(place).as_posix() + "/" * p.is_dir() for p in place.rglob("*")]
        return _from_paths(name, place, paths, lambda path: (place / path).read_bytes())
    try:
        archive = zipfile.ZipFile(place)
    except zipfile.BadZipFile as error:
        raise InputError(
            f"{place} is no intact zip file: pass a folder or another .zip."
        ) from error
    with archive:
        return _from_paths(name, place, archive.namelist(), archive.read)


def _from_paths(name: str, place: Path, paths: list[str], read: Callable[[str], bytes]) -> Dataset:
    """`paths` are relative to `place`, with / between parts and, after a folder, at the end."""
    paths = [p for p in paths if not re.search(r"(^|/)(\.|__MACOSX/|Thumbs\.db$)", p)]
    tops = {p.split("/")[0] for p in paths}
    prefix = tops.pop() + "/" if len(tops) == 1 and "train" not in tops else ""

    found: dict[str, dict[str, list[str]]] = {}  # split -> class -> files
    for path in sorted(paths):
        split, _, rest = path.removeprefix(prefix).partition("/")
        label, _, file = rest.partition("/")
        if split in ("train", "test", "val", "valid") and "/" in rest:
            files = found.setdefault(split, {}).setdefault(label, [])
            if file and not path.endswith("/"):
                if not file.lower().endswith(IMAGE_SUFFIXES) or "/" in file:
                    raise InputError(f"{path} in {place} is not split/class/image: remove it.")
                files.append(path)
    train = found.get("train", {})
    test = next((found[s] for s in ("test", "val", "valid") if s in found), {})
    for split, classes in (("train", train), ("test", test)):
        if not any(classes.values()):
            raise InputError(f"{place} has no image in {split}/CLASS/: put the images there.")
    for label, files in train.items():
        if not files:
            raise InputError(f"{place} has no image in train/{label}/: fill or remove the folder.")
    names = tuple(sorted(train))
    _check_classes(name, place, names, tuple(test))

    chosen, labels = [], []
    for classes in (train, test):
        listed = [(file, names.index(label)) for label in classes for file in classes[label]]
        # In a fixed random order, so that the first n are a mix of the classes.
        order = np.random.default_rng(0).permutation(len(listed))
        chosen.append([listed[i][0] for i in order])
        labels.append(torch.tensor([listed[i][1] for i in order]))
    images = _decode(place, chosen[0] + chosen[1], read)
    n, m = map(len, chosen)
    title = _title(name, {Path(p).suffix.lower() for p in chosen[0] + chosen[1]}, n, m)
    augment = name not in NO_AUGMENT
    return Dataset(name, title, names, images[:n], labels[0], images[n:], labels[1], augment)


def _check_classes(name: str, place: Path, train: tuple[str, ...], test: tuple[str, ...]) -> None:
    if extra := sorted(set(test) - set(train)):
        raise InputError(f"{place} has the class {extra[0]!r} only for testing: remove or add it.")
    if name == "cifar10" and train != CIFAR10_CLASSES:
        raise InputError(
            f"The class folders of {place} are not CIFAR-10's ({', '.join(CIFAR10_CLASSES)}): "
            "name the dataset differently."
        )
    if name in OFFICIAL and len(train) != OFFICIAL[name][1]:
        raise InputError(
            f"{place} has {len(train)} classes but {OFFICIAL[name][0]} has {OFFICIAL[name][1]}: "
            "name the dataset differently."
        )


def _title(name: str, suffixes: set[str], train: int, test: int) -> str:
    """What captions call a folder or zip: never just the official name of the data."""
    if name not in OFFICIAL:
        return name
    title, _, sizes, _ = OFFICIAL[name]
    jpeg = bool(suffixes & {".jpg", ".jpeg"})
    kind = "JPEG" if jpeg else "/".join(sorted(s[1:].upper() for s in suffixes))
    counts = f"{train:,} training and {test:,} test images"
    if (train, test) == sizes:
        return f"{title}, {kind} copy"
    return f"{title}, JPEG copy, {counts}" if jpeg else f"{title}, {counts} ({kind})"


def _decode(place: Path, paths: list[str], read: Callable[[str], bytes]) -> Tensor:
    """The images as uint8 (N, C, H, W): C is 1 if all are grey, else 3."""
    arrays: list[np.ndarray] = []
    for path in tqdm(paths, desc=f"reading {place.name}", unit="image", leave=False, disable=None):
        try:
            image = Image.open(io.BytesIO(read(path)))
            grey = image.mode in ("1", "L", "LA")
            if image.mode.startswith(("I", "F")):
                raise InputError(f"{path} in {place} has more than 8 bits a pixel: convert it.")
            arrays.append(np.asarray(image.convert("L" if grey else "RGB")))
        except InputError:
            raise
        except Exception as error:  # damaged images and zip entries raise almost anything
            raise InputError(
                f"{path} in {place} is no intact image: replace or remove it."
            ) from error
        if arrays[-1].shape[:2] != arrays[0].shape[:2]:
            (h, w), (h0, w0) = arrays[-1].shape[:2], arrays[0].shape[:2]
            raise InputError(
                f"{path} in {place} is {w}x{h} pixels but {paths[0]} is {w0}x{h0}: "
                "bring all images to one size."
            )
    if all(a.ndim == 2 for a in arrays):
        return torch.from_numpy(np.stack(arrays)[:, None])
    rgb = [a if a.ndim == 3 else np.repeat(a[..., None], 3, axis=2) for a in arrays]
    return torch.from_numpy(np.ascontiguousarray(np.stack(rgb).transpose(0, 3, 1, 2)))


def places(n: int, h: int, w: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Where `crop_and_flip` takes each of n images (h, w) from: rows (n, h), columns (n, w), on the
    CPU, as its `generator` draws them: n row offsets and n column offsets in 0-8, then n coins (1
    mirrors). So every device sees the same crops."""
    down, across = torch.randint(2 * PADDING + 1, (2, n, 1), generator=generator)
    mirror = torch.randint(2, (n, 1), generator=generator).bool()
    columns = across + torch.where(mirror, torch.arange(w).flip(0), torch.arange(w))
    return down + torch.arange(h), columns


def crop_and_flip(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Pad each image (N, C, H, W) with 4 zeros a side and take it back from `places`."""
    padded = torch.nn.functional.pad(images, [PADDING] * 4)
    n, c = (torch.arange(size, device=images.device) for size in images.shape[:2])
    return padded[
        n[:, None, None, None], c[:, None, None], rows[:, None, :, None], columns[:, None, None, :]
    ]


def batches(
    images: Tensor, labels: Tensor, batch_size: int, generator: torch.Generator, augment: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch in random order: float32 images (B, C, H, W) in [0, 1] and int64 labels (B,), on
    the device of `images` (uint8).

    Every image comes once. The last batch may be smaller than `batch_size`; a single image left
    over joins the batch before it, for batch norm cannot train on one. `generator` is a CPU one;
    its state decides the order and, with `augment`, the crops and flips. All of it is drawn and
    sent to the device before the first batch, which then waits for nothing.
    """
    (h, w), device = images.shape[2:], images.device
    order = torch.randperm(len(images), generator=generator)
    parts = list(order.to(device).split(batch_size))
    if batch_size > 1 and len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    if not augment:
        for part in parts:
            yield images[part].float() / 255, labels[part]
        return
    drawn = [places(len(part), h, w, generator) for part in parts]
    sizes = [len(part) for part in parts]
    rows, columns = (torch.cat(found).to(device).split(sizes) for found in zip(*drawn, strict=True))
    for part, down, across in zip(parts, rows, columns, strict=True):
        yield crop_and_flip(images[part], down, across).float() / 255, labels[part]
