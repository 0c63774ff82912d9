"""Any dataset by its name: official files, a folder or zip of images, or the embedded digits."""

import os
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from l2lkit.data import digits
from l2lkit.data.dataset import NAMES, OFFICIAL, Dataset
from l2lkit.data.folder import load_images, top_of
from l2lkit.errors import InputError
from l2lkit.files import write_atomically


def default_data_dir() -> Path:
    """The folder L2LKIT_DATA names, else `data` in the project (the nearest folder, from the
    working directory upwards, with a pyproject.toml; the working directory if there is none)."""
    if os.environ.get("L2LKIT_DATA"):
        return Path(os.path.expanduser(os.environ["L2LKIT_DATA"]))
    here = Path.cwd()
    project = next((p for p in (here, *here.parents) if (p / "pyproject.toml").is_file()), here)
    return project / "data"


def load(name: str, data: str | Path | None = None, download: bool = False) -> Dataset:
    """Load a dataset by name.

    `data` is a folder with the official files in torchvision's layout (default_data_dir() when
    None), or a folder tree or .zip of `split/class/image`, with splits `train` (or `training`) and
    `test` (or `testing`, `val`, `valid`, `validation` in its place), at the top or in the one
    folder there; for the latter `name` is free. `download` lets torchvision fetch missing official
    files into the folder. "digits" needs no files: the images are drawn once and kept in the folder
    as a cache.

    Raises InputError for an unknown name, for a place that is named and not there, and for missing,
    damaged or ill-fitting files.
    """
    place = default_data_dir() if data is None else Path(os.path.expanduser(data))
    if (data is not None or place.suffix.lower() == ".zip") and not os.path.exists(place):
        raise InputError(
            f"There is no {place}: see to the path's spelling, or make the folder if official "
            "files are to be downloaded into it."
        )
    own = data is not None and name not in NAMES  # then the folder has to hold it
    drawn = name == "digits" and data is None
    if not drawn and (os.path.isfile(place) or own or _holds_splits(place, data is not None)):
        return load_images(name, place)
    if name == "digits":
        return _load_digits(place)
    if name in OFFICIAL:
        from l2lkit.data import official  # torchvision takes seconds to import

        return official.load(name, place, download)
    raise InputError(
        f"There is no dataset {name!r}: choose one of {', '.join(NAMES)}, or pass --data with a "
        "folder or .zip that holds train/CLASS/IMAGE and test/CLASS/IMAGE."
    )


def _holds_splits(folder: Path, named: bool) -> bool:
    """Whether a folder has split/class/image: one that is named also in the one folder there."""
    try:
        top = top_of(folder)
    except OSError:
        return False
    return top == "" or (named and top is not None)


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

    def write(path: Path) -> None:
        with path.open("wb") as file:  # a path would get .npz appended
            np.savez(file, *train, *test)

    with suppress(InputError):  # no cache on a read-only or full disk: they are drawn again
        write_atomically(cache, write)
    return dataset(train, test)
