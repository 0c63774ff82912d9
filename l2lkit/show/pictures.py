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
from l2lkit.show.style import PALETTE

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

    Magnification 1 shows the image itself, attacked, the others `magnify` of the perturbation; a
    row without any perturbation has only the image. Under each image: the class predicted, its
    confidence, and whether it is right.
    Raises InputError for no panels or images of another shape.
    """
    if not panels:
        raise InputError("The perturbation grid is empty: give it at least one Panel.")
    rows = list(dict.fromkeys(p.row for p in panels))
    blocks = list(dict.fromkeys(p.column for p in panels))
    n, m = len(rows), len(magnifications)
    side = min(1.4, 9.2 / (m * len(blocks)))
    fig = plt.figure(figsize=((side * m + 0.2) * len(blocks) + 0.3, (side + 0.45) * n + 0.5))
    grids = {}
    for block, sub in zip(blocks, fig.subfigures(1, len(blocks), squeeze=False)[0], strict=True):
        sub.suptitle(block, fontweight="bold", fontsize=12)
        grids[block] = sub.subplots(n, m, squeeze=False, subplot_kw=_BARE)
        for ax, times in zip(grids[block][0], magnifications, strict=True):
            ax.set_title("image" if times == 1 else f"$\\delta$ × {times:g}", fontsize=10)
        for ax, row in zip(grids[block][:, 0], rows, strict=True):
            ax.set_ylabel(row.replace(" attacker", "\nattacker"), fontsize=10)
    for p in panels:
        image, delta = _array(p.image), _array(p.perturbation)
        if image.ndim != 3 or image.shape[0] not in (1, 3) or image.shape != delta.shape:
            raise InputError(
                "A panel needs image and perturbation of one shape (C, H, W) with C 1 or 3, not "
                f"{image.shape} and {delta.shape}."
            )
        axes = grids[p.column][rows.index(p.row)]
        for ax, times in zip(axes, magnifications, strict=True):
            if times == 1:
                _show(ax, np.clip(image + delta, 0, 1))
            elif delta.any():
                _show(ax, magnify(delta, times))
            else:
                ax.set_box_aspect(image.shape[1] / image.shape[2])
        right = p.predicted == p.label
        words = f"{p.predicted} {p.confidence:.0%}\n{'right' if right else f'wrong: is {p.label}'}"
        look = {"color": "0.15"} if right else {"color": PALETTE[3], "fontweight": "bold"}
        axes[0].set_xlabel(words, fontsize=9, **look)
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
    image: torch.Tensor,
    perturbations: torch.Tensor,
    answers: Sequence[str],
    epsilon: float,
    label: str,
) -> Figure:
    """Several perturbations (K, C, H, W) of one image (C, H, W) of the class `label`, 30 times
    magnified (grey is zero), each with the classifier's answer; first the image, then the deviation
    of each pixel over the draws (mean over channels) in units of ε, the most it can be."""
    deviation = perturbations.std(0, correction=0).mean(0) / epsilon
    columns = -(-(2 + len(perturbations)) // 2)
    fig, grid = plt.subplots(2, columns, figsize=(9.5, 3.9), subplot_kw=_BARE)
    first, second, *others = grid.flat
    _show(first, _array(image))
    first.set_title(f"clean: {label}", fontsize=10)
    map_ = second.imshow(_array(deviation), cmap="cividis", vmin=0)
    second.set_title("deviation", fontsize=10)
    fig.colorbar(map_, ax=second, location="bottom", label="× ε", aspect=12, pad=0.02)
    for ax, delta, answer in zip(others, perturbations, answers, strict=False):
        _show(ax, magnify(delta, 30))
        ax.set_title(f"answer: {answer}", fontsize=10)
    return fig


def _show(ax: Axes, image: NDArray) -> None:
    """Draw an image (C, H, W) in [0, 1] with C 1 (grey) or 3."""
    ax.imshow(image.transpose(1, 2, 0).squeeze(), cmap="gray", vmin=0, vmax=1)


def _array(image: ArrayLike | torch.Tensor) -> NDArray[np.float32]:
    return torch.as_tensor(image).detach().cpu().float().numpy()
