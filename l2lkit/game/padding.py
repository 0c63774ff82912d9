"""Networks that halve their images, for images of any size."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


def at_any_size(network: nn.Module, halvings: int | None = None) -> nn.Module:
    """The network, for images of any height and width. One that halves them k times on its way
    (`halvings`, by default the number of its convolutions with a stride and of times that it puts
    2×2 pixels into channels) needs multiples of 2ᵏ:
    zeros are put on at the right and below, and what it gives there is cut off. Images that fit are
    left as they are, and so are the names of the weights."""
    if halvings is None:
        layers = list(network.modules())
        halvings = sum(type(m) is nn.Conv2d and m.stride != (1, 1) for m in layers)
        halvings += sum(type(m) is nn.PixelUnshuffle for m in layers)
    if halvings:
        padded = partial(_padded, network.forward, 2**halvings)
        network.forward = padded  # a module around it would rename the weights
    return network


def _padded(forward: Callable[..., Tensor], multiple: int, x: Tensor, *others: Any) -> Tensor:
    h, w = x.shape[2:]
    if h % multiple or w % multiple:
        x = F.pad(x, (0, -w % multiple, 0, -h % multiple))
    return forward(x, *others)[:, :, :h, :w]
