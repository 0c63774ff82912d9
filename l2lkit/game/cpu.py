"""Every trick that makes this run faster on a CPU and changes no number. Nothing here is method.

Measured on two cores; each docstring says what a trick saves.
"""

import ctypes
from contextlib import suppress
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

BATCH = 50  # images of an evaluation at a time: what fits a core's cache takes half the time


def keep_memory() -> None:
    """Let this process keep the memory of freed tensors for the next ones. By default glibc gives
    every large block back to the system and gets it anew, page by page, which is a fifth to a
    third of a small network's time on a CPU. Other C libraries are left as they are."""
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: never shrink the heap
        mallopt(-3, 2**25)  # M_MMAP_THRESHOLD: blocks up to 32 MB, the most it allows, live there


def pooled(x: Tensor) -> Tensor:
    """The mean over the pixels, (N, C, H, W) -> (N, C). The way back through `Tensor.mean` is a
    gradient with strides of zero, for which a CPU's next kernel leaves its fast path: 3% of an
    input gradient of WRN-10-1."""
    return F.avg_pool2d(x, x.shape[-2:]).flatten(1)


class _Slopes(torch.autograd.Function):
    """x where x > 0, else a x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor) -> Tensor:
        y = torch.prelu(x, a.to(x.dtype))
        ctx.save_for_backward(x.to(y.dtype), a.to(y.dtype))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *above: Tensor) -> tuple[Tensor, Tensor]:
        x, a = ctx.saved_tensors
        right = torch.ops.aten.threshold_backward(above[0], x, 0)  # where x > 0
        left = above[0] - right
        # In place: in float32 a new tensor of this size is a new page from the system each time.
        return right.addcmul_(left, a), left.mul_(x).sum().view(1)


class PReLU(nn.PReLU):
    """torch's PReLU with one slope. On a CPU torch's way back takes one number at a time, a
    seventh of Grad L2L's step in bfloat16; this one gives the same numbers from whole vectors."""

    def forward(self, x: Tensor) -> Tensor:
        return _Slopes.apply(x, self.weight) if x.device.type == "cpu" else super().forward(x)
