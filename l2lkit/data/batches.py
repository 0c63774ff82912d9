"""The batches that training draws: in random order, and for natural images cropped and flipped."""

from collections.abc import Iterator

import torch
from torch import Tensor

PADDING = 4  # pixels of zeros around an image before it is cropped back to its size


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
    rows, columns = (torch.cat(parts).to(device).split(sizes) for parts in zip(*drawn, strict=True))
    for part, down, across in zip(parts, rows, columns, strict=True):
        yield crop_and_flip(images[part], down, across).float() / 255, labels[part]
