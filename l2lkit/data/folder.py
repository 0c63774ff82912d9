"""Images from a folder tree or a zip file, split/class/image."""

import io
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from l2lkit.data.dataset import CIFAR10_CLASSES, NO_AUGMENT, OFFICIAL, Dataset
from l2lkit.errors import InputError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


def load_images(name: str, place: Path) -> Dataset:
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
