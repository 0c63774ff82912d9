"""Figures made of images: what attacks do to one, what data look like."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from l2lkit.data import Dataset
from l2lkit.errors import InputError
from l2lkit.results.experiments import Panel

_BARE = {"xticks": [], "yticks": [], "frame_on": False}


def magnify(perturbation: ArrayLike | torch.Tensor, m: float) -> NDArray[np.float32]:
    """A perturbation as a picture in [0, 1], same shape: clip(0.5 + m * perturbation, 0, 1).

    Grey is zero; beyond +-0.5 / m the picture saturates. ICLR 2020 version, Figure 5 (m = 5, 30).
    """
    return np.clip(0.5 + m * _array(perturbation), 0, 1)


def perturbation_grid(
    panels: Sequence[Panel], magnifications: Sequence[float] = (1, 5, 30)
) -> Figure:
    """Figure 5 of the ICLR 2020 version: a row per attack, a block of columns per classifier.

    Magnification 1 shows the adversarial image itself, the others `magnify` of the perturbation.
    Under each first picture: the class predicted, its confidence, and whether it was fooled.
    Raises InputError for no panels or images of another shape.
    """
    if not panels:
        raise InputError("The perturbation grid is empty: give it at least one Panel.")
    rows = list(dict.fromkeys(p.row for p in panels))
    blocks = list(dict.fromkeys(p.column for p in panels))
    n, m = len(rows), len(magnifications)
    fig = plt.figure(figsize=((1.65 * m + 0.4) * len(blocks), 2.0 * n + 0.7))
    grids = {}
    for block, sub in zip(blocks, fig.subfigures(1, len(blocks), squeeze=False)[0], strict=True):
        sub.suptitle(block, fontweight="bold")
        grids[block] = sub.subplots(n, m, squeeze=False, subplot_kw=_BARE)
        for ax, times in zip(grids[block][0], magnifications, strict=True):
            ax.set_title("adversarial" if times == 1 else f"$\\delta$ × {times:g}", fontsize=11)
        for ax, row in zip(grids[block][:, 0], rows, strict=True):
            ax.set_ylabel(row)
    for p in panels:
        image, delta = _array(p.image), _array(p.perturbation)
        if image.ndim != 3 or image.shape[0] not in (1, 3) or image.shape != delta.shape:
            raise InputError(
                "A panel needs image and perturbation of one shape (C, H, W) with C 1 or 3, not "
                f"{image.shape} and {delta.shape}."
            )
        axes = grids[p.column][rows.index(p.row)]
        for ax, times in zip(axes, magnifications, strict=True):
            _show(ax, np.clip(image + delta, 0, 1) if times == 1 else magnify(delta, times))
        verdict = "correct" if p.predicted == p.label else f"fooled (is {p.label})"
        axes[0].set_xlabel(f"{p.predicted} {p.confidence:.0%}\n{verdict}", fontsize=10)
    return fig


def image_grid(data: Dataset, rows: int = 4, columns: int = 10) -> Figure:
    """The first test images of the first classes, a column each."""
    columns = min(columns, data.num_classes)
    size = (1.05 * columns, 1.1 * rows + 0.3)
    fig, grid = plt.subplots(rows, columns, squeeze=False, figsize=size, subplot_kw=_BARE)
    for label, axes in enumerate(grid.T):
        for ax, image in zip(axes, data.test_images[data.test_labels == label], strict=False):
            _show(ax, _array(image) / 255)
        axes[0].set_title(data.class_names[label], fontsize=11)
    return fig


def draws_view(
    image: torch.Tensor, perturbations: torch.Tensor, answers: Sequence[str], epsilon: float
) -> Figure:
    """Several perturbations (K, C, H, W) of one image (C, H, W), 30 times magnified (grey is
    zero), each with the classifier's answer; first the image, then the deviation of each pixel over
    the draws (mean over channels), from black at 0 to white at ε, the most it can be."""
    deviation = perturbations.std(0, correction=0).mean(0, keepdim=True) / epsilon
    shown = [_array(image), _array(deviation), *(magnify(delta, 30) for delta in perturbations)]
    titles = ["image", "deviation", *(f"“{answer}”" for answer in answers)]
    columns = -(-len(shown) // 2)
    fig, grid = plt.subplots(2, columns, figsize=(1.5 * columns, 1.75 * 2))
    for ax in grid.flat:
        ax.axis("off")
    for ax, picture, title in zip(grid.flat[: len(shown)], shown, titles, strict=True):
        _show(ax, picture)
        ax.set_title(title, fontsize=9)
    return fig


def _show(ax: Axes, image: NDArray) -> None:
    """Draw an image (C, H, W) in [0, 1] with C 1 (grey) or 3."""
    ax.imshow(image.transpose(1, 2, 0).squeeze(), cmap="gray", vmin=0, vmax=1)


def _array(image: ArrayLike | torch.Tensor) -> NDArray[np.float32]:
    return torch.as_tensor(image).detach().cpu().float().numpy()
