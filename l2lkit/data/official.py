"""The official files of CIFAR, SVHN and MNIST, read and fetched by torchvision."""

from pathlib import Path

import torch
from torch import Tensor
from torchvision import datasets
from torchvision.datasets.mnist import read_image_file, read_label_file
from torchvision.datasets.utils import check_integrity

from l2lkit.data.dataset import NO_AUGMENT, OFFICIAL, Dataset
from l2lkit.errors import InputError


def _official_files(name: str) -> dict[str, str | None]:
    """The files torchvision reads, relative to the data folder, with their MD5 if it has one."""
    if name == "mnist":
        parts = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
        return {f"MNIST/raw/{part}-ubyte": None for part in parts}
    if name == "svhn":
        return {file: md5 for _, file, md5 in map(datasets.SVHN.split_list.get, ("train", "test"))}
    kind = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
    listed = [*kind.train_list, *kind.test_list, [kind.meta["filename"], kind.meta["md5"]]]
    return {f"{kind.base_folder}/{file}": md5 for file, md5 in listed}


def load(name: str, root: Path, download: bool) -> Dataset:
    """The dataset `name` of `dataset.OFFICIAL` from its official files in `root`; `download`
    fetches missing ones. Raises InputError for missing, damaged or ill-fitting files."""
    try:
        (x, y, names), (test_x, test_y, _) = (
            _read_split(name, root, train, download) for train in (True, False)
        )
    except ImportError:
        raise
    except Exception as error:  # torchvision has no error of its own: asserts, URLError, OSError...
        raise _explain(name, root, error, download) from error
    try:
        augment = name not in NO_AUGMENT
        return Dataset(name, OFFICIAL[name][0], names, x, y, test_x, test_y, augment)
    except InputError as error:
        raise InputError(f"{root}: {error}") from error


def _read_split(
    name: str, root: Path, train: bool, download: bool
) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Images, labels and class names, by torchvision."""
    if name == "svhn":
        svhn = datasets.SVHN(root, split="train" if train else "test", download=download)
        return torch.tensor(svhn.data), torch.tensor(svhn.labels), tuple("0123456789")
    if name == "mnist":
        mnist = datasets.MNIST(root, train, download=download)
        return mnist.data[:, None], mnist.targets, tuple("0123456789")
    kind = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
    cifar = kind(root, train, download=download)
    images = torch.tensor(cifar.data).permute(0, 3, 1, 2).contiguous()
    return images, torch.tensor(cifar.targets), tuple(cifar.classes)


def _explain(name: str, root: Path, error: Exception, download: bool) -> InputError:
    """The one message for official files that are missing, damaged or cannot be downloaded."""
    (title, _, _, source), files = OFFICIAL[name], _official_files(name)
    if not all((root / file).is_file() for file in files):
        cause = f" and the download failed ({' '.join(str(error).split())})" if download else ""
        return InputError(
            f"{title} is not in {root}{cause}: put the official files there ({source}), "
            "name another folder or a .zip of images with --data, or choose "
            "--dataset digits, which needs no files."
        )
    for file, md5 in files.items():
        try:
            if name == "mnist":
                (read_image_file if "images" in file else read_label_file)(str(root / file))
            intact = check_integrity(root / file, md5)
        except Exception:  # whatever the reader trips over, this is the file
            intact = False
        if not intact:
            return InputError(
                f"{root / file} is damaged or not the official file: delete it and download "
                f"{title} again."
            )
    return InputError(f"{title} in {root} cannot be read ({error}): download it again.")
