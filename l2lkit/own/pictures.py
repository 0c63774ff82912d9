"""Pictures of anybody's, with the labels that their classifier knows them by."""

import torch
from torch import Tensor

from l2lkit.data import Dataset, load
from l2lkit.names import check_images


def load_pictures(
    place: str | None, dataset: str | None, count: int
) -> tuple[Dataset, Tensor, Tensor]:
    """The dataset at a place, and its first `count` test images as floats in [0, 1] with labels.

    A class folder whose name is a whole number is that class of the classifier, where all are so
    named; otherwise classes count from 0 in the order of their names. Raises InputError as
    `l2lkit.load`.
    """
    check_images(count)
    data = load(dataset or ("pictures" if place else "digits"), place)
    images, labels = data.test(count)
    if all(name.isdecimal() for name in data.class_names):
        labels = torch.tensor([int(name) for name in data.class_names])[labels]
    return data, images, labels
