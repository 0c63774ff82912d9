"""Images from a folder tree or a zip file, split/class/image, by the same rules for both."""

import io
import os
import re
import stat
import unicodedata
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from l2lkit.data.dataset import CIFAR10_CLASSES, NO_AUGMENT, OFFICIAL, Dataset
from l2lkit.errors import InputError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
TRAIN = ("train", "training")
TEST = ("test", "testing", "val", "valid", "validation")  # the first of them that is there
# What systems leave in folders: hidden files, previews, settings, bins.
JUNK = re.compile(
    r"(^|/)(\.[^/]*|__MACOSX|@eaDir|#recycle|\$RECYCLE\.BIN|System Volume Information|lost\+found"
    r"|(eh)?thumbs\.db|desktop\.ini|icon\r)(/|$)",
    re.IGNORECASE,
)
DEPTH = 4  # folders below one another that are looked into: links may go round in circles


def load_images(name: str, place: Path) -> Dataset:
    """A folder tree or zip of split/class/image, at the top or in the one folder there."""
    if place.is_dir():
        try:
            root = place / (top_of(place) or "")
            return _from_paths(name, place, _below(root), lambda path: (root / path).read_bytes())
        except OSError as error:
            raise InputError(
                f"{place} cannot be read ({error}): see to its permissions."
            ) from error
    try:
        archive = zipfile.ZipFile(place)
    except (zipfile.BadZipFile, OSError) as error:
        raise InputError(
            f"{place} is no intact zip file: pass a folder or another .zip."
        ) from error
    with archive:
        # Some packers of Windows write \ where the format wants /.
        entries = {e.filename.replace("\\", "/"): e for e in archive.infolist()}
        _check_entries(place, entries.values())
        top = _top(lambda prefix: _folders_in(entries, prefix)) or ""
        paths = [p.removeprefix(top) for p in entries if p.startswith(top)]
        return _from_paths(name, place, paths, lambda path: archive.read(entries[top + path]))


def top_of(folder: Path) -> str | None:
    """Where in a folder its splits are; None if it has none."""
    return _top(lambda path: [p.name for p in os.scandir(folder / path) if p.is_dir()])


def _top(folders: Callable[[str], Iterable[str]]) -> str | None:
    """The path, "" or with / at the end, of the folder with the training split: the outermost, or
    while that holds but one folder, the one in it. `folders` names those in a path."""
    path = ""
    for _ in range(DEPTH):
        names = {n for n in folders(path) if not JUNK.search(n)}
        if any(n.lower() in TRAIN for n in names):
            return path
        if len(names) != 1:
            return None
        path += names.pop() + "/"
    return None


def _folders_in(entries: Iterable[str], prefix: str) -> list[str]:
    inside = [e.removeprefix(prefix).split("/") for e in entries if e.startswith(prefix)]
    return [parts[0] for parts in inside if len(parts) > 1]


def _below(root: Path) -> list[str]:
    """Files and folders below, relative, with / between parts and, after a folder, at the end.
    Links are followed."""

    def unreadable(error: OSError) -> None:
        raise error

    paths = []
    for here, folders, files in os.walk(root, onerror=unreadable, followlinks=True):
        inside = Path(here).relative_to(root)
        folders[:] = [f for f in folders if not JUNK.search(f)]
        paths += [(inside / f).as_posix() for f in files]
        paths += [(inside / f).as_posix() + "/" for f in folders]
        if len(inside.parts) >= DEPTH - 1:
            folders.clear()
    return paths


def _check_entries(place: Path, entries: Iterable[zipfile.ZipInfo]) -> None:
    for entry in entries:
        if entry.flag_bits & 1:
            raise InputError(f"{place} is locked with a password: unpack it and pass the folder.")
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise InputError(
                f"{entry.filename} in {place} is a link: pack the files themselves (zip without "
                "-y), or pass the folder."
            )


def _from_paths(name: str, place: Path, paths: list[str], read: Callable[[str], bytes]) -> Dataset:
    """`paths` are relative to the splits' folder, as of `_below`."""
    files_of: dict[str, dict[str, list[str]]] = {}  # split -> class -> files
    for path in sorted(p for p in paths if not JUNK.search(p)):
        split, _, rest = path.partition("/")
        label, _, file = rest.partition("/")
        if split.lower() in TRAIN + TEST and "/" in rest:
            label = unicodedata.normalize("NFC", label)  # macOS writes é as two characters
            files = files_of.setdefault(split, {}).setdefault(label, [])
            if file and not path.endswith("/"):
                if not file.lower().endswith(IMAGE_SUFFIXES) or "/" in file:
                    raise InputError(f"{path} in {place} is not split/class/image: remove it.")
                files.append(path)
    (first, train), (second, test) = _split(place, files_of, TRAIN), _split(place, files_of, TEST)
    for split, classes in ((first, train), (second, test)):
        if not any(classes.values()):
            raise InputError(f"{place} has no image in {split}/CLASS/: put the images there.")
    for label, files in train.items():
        if not files:
            raise InputError(
                f"{place} has no image in {first}/{label}/: fill or remove the folder."
            )
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


def _split(
    place: Path, files_of: dict[str, dict[str, list[str]]], names: tuple[str, ...]
) -> tuple[str, dict[str, list[str]]]:
    """The first of these splits that is there, by the name it has, and its classes."""
    for name in names:
        there = [split for split in files_of if split.lower() == name]
        if len(there) > 1:
            raise InputError(f"{place} has {' and '.join(there)}: which one is it? Keep one.")
        if there:
            return there[0], files_of[there[0]]
    return names[0], {}


def _check_classes(name: str, place: Path, train: tuple[str, ...], test: tuple[str, ...]) -> None:
    if extra := sorted(set(test) - set(train)):
        raise InputError(f"{place} has the class {extra[0]!r} only for testing: remove or add it.")
    if len(train) < 2:
        raise InputError(f"{place} has the class {train[0]!r} alone: a classifier needs two.")
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
            # A camera's picture may say that it is to be turned.
            image = ImageOps.exif_transpose(Image.open(io.BytesIO(read(path))))
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
