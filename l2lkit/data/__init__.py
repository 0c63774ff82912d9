"""Datasets as tensors, and the batches that are drawn from them.

`load` reads the official files (in torchvision's layout), a folder tree or zip of images, or
draws the embedded digits. Whatever is wrong with the files comes out as one InputError.
"""

from l2lkit.data.batches import batches
from l2lkit.data.dataset import Dataset
from l2lkit.data.loading import default_data_dir, load

__all__ = ["Dataset", "batches", "default_data_dir", "load"]
