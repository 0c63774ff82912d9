"""Tiny data that several test files share, and one thread for the tiny networks."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

from l2lkit.data import Dataset

settings.register_profile("l2lkit", deadline=None)
settings.load_profile("l2lkit")

COLOURS = np.array([[220, 40, 40], [40, 220, 40], [40, 40, 220], [200, 200, 60]])


def coloured(count, size, seed):
    """uint8 images (N, 3, size, size), each of one of four colours with noise, and their class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 4
    images = COLOURS[labels][:, :, None, None] + rng.normal(0, 25, (count, 3, size, size))
    return images.clip(0, 255).astype(np.uint8), labels


def pytest_collection_modifyitems(items):
    """Files with slow tests come first: of two processes, neither then ends alone with one."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def theme():
    """The project's style for one test, which leaves no figure open."""
    from l2lkit.show import style  # seaborn takes a second to import

    with mpl.rc_context():
        style.use_style()
        yield
    plt.close("all")


@pytest.fixture(scope="session")
def colours():
    """64 training and 16 test images of four colours, 16×16."""
    (x, y), (test_x, test_y) = coloured(64, 16, seed=0), coloured(16, 16, seed=1)
    arrays = [torch.from_numpy(a) for a in (x, y, test_x, test_y)]
    return Dataset("colours", "colours", tuple("rgby"), *arrays, augment=False)


def image_folder(root):
    """A folder split/class/image of the same four colours, 8×8: 24 training and 8 test images."""
    for split, count, seed in (("train", 24, 0), ("test", 8, 1)):
        images, labels = coloured(count, 8, seed)
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            path = root / split / "rgby"[label] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.transpose(1, 2, 0)).save(path)
    return root


@pytest.fixture
def folder(tmp_path):
    return image_folder(tmp_path / "images")
