"""Learned attackers g(·; φ): the papers' networks, and the three ways of feeding them; AdvGAN,
trained in another way; last, the player of Free adversarial training.

An attacker answers the same call as the attacks of `l2lkit.attacks`,

    perturbation = attacker(classifier, images, labels)

and is an `nn.Module` whose parameters φ the training loop steps up. The perturbation is
differentiable in φ, and, for x + δ seen by the classifier, so is the loss.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call

from l2lkit import distributed
from l2lkit.attacks import (
    Generators,
    check_batch,
    check_epsilon,
    check_positive,
    input_gradient,
    last,
    margin,
    project,
    uniform,
)
from l2lkit.errors import InputError
from l2lkit.generators import UNet

NETWORKS = ("2018", "v2-slim", "v2-wide", "iclr2020", "unet")
GRADIENTS = ("per-image", "batch-max", "none")


class _Slopes(torch.autograd.Function):
    """x where x > 0, else a x."""

    @staticmethod
    def forward(ctx, x: Tensor, a: Tensor) -> Tensor:
        y = torch.prelu(x, a.to(x.dtype))
        ctx.save_for_backward(x.to(y.dtype), a.to(y.dtype))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, *above: Tensor) -> tuple[Tensor, Tensor]:
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


class ResBlock(nn.Module):
    """The attackers' residual block (ICLR 2020, Figure 7): twice batch norm without affine
    parameters, PReLU and a 3×3 convolution; a 1×1 convolution on the skip path when the number
    of channels changes. Initialised as the authors' code does."""

    def __init__(self, cin: int, cout: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(cin, affine=False), PReLU(), nn.Conv2d(cin, cout, 3, padding=1),
            nn.BatchNorm2d(cout, affine=False), PReLU(), nn.Conv2d(cout, cout, 3, padding=1),
        )  # fmt: skip
        self.skip = nn.Conv2d(cin, cout, 1) if cin != cout else nn.Identity()
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                gain = 2**0.5 if module.kernel_size == (3, 3) else 1.0
                nn.init.xavier_uniform_(module.weight, gain)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.skip(x)


def stem(cin: int, cout: int, stride: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(cin, cout, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(cout, eps=1e-3),
        nn.ReLU(inplace=True),
    ]


class SlimNetwork(nn.Module):
    """The slim network with the skip from the input to the last layer (v2 Table 1; ICLR 2020
    Appendix B, Table 7). The table gives the stem stride 1 while the text and the decoder need
    one halving before the blocks end; as in the authors' code the stem halves. Their learnable
    scalar (initially 5) before tanh is kept."""

    def __init__(self, cin: int, channels: int, width: float):
        super().__init__()
        c128, c256, c16 = (scaled(c, width) for c in (128, 256, 16))
        self.body = nn.Sequential(
            *stem(cin, c128, stride=2), ResBlock(c128, c256), ResBlock(c256, c128),
            nn.BatchNorm2d(c128, affine=False),
            nn.ConvTranspose2d(c128, c16, 4, 2, padding=1), nn.BatchNorm2d(c16), nn.ReLU(),
        )  # fmt: skip
        self.last = nn.Conv2d(c16 + cin, channels, 3, padding=1, bias=False)
        self.scale = nn.Parameter(torch.tensor(5.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.last(torch.cat([self.body(x), x], 1))


def scaled(channels: int, width: float) -> int:
    return max(1, round(channels * width))


def make_network(name: str, cin: int, channels: int = 3, width: float = 1.0) -> nn.Module:
    """An attacker network g: (N, cin, H, W) in, (N, channels, H, W) before tanh out.

    `2018`: six convolutions with batch norm (2018 version, Table 3); H and W must divide by 4.
    `v2-slim`: down- and upsampling with a skip (v2 Table 1, ICLR 2020 Table 7); H, W even.
    `v2-wide`: residual blocks 128-256-128-64 (v2 Table 1, and the authors' code).
    `iclr2020`: residual blocks 128-256-128 (ICLR 2020, Table 1).
    `unet`: L2L-DA's U-Net without y and z (its section 5.1); H and W must divide by 4.

    `width` multiplies all inner channel counts. Raises InputError for an unknown name or a width
    that is not positive.
    """
    check_positive(width=width)
    if name == "2018":
        c16, c32, c64 = (scaled(c, width) for c in (16, 32, 64))
        return nn.Sequential(
            nn.Conv2d(cin, c16, 3, padding=1), nn.BatchNorm2d(c16), nn.ReLU(),
            nn.Conv2d(c16, c32, 4, 2, padding=1), nn.BatchNorm2d(c32), nn.ReLU(),
            nn.Conv2d(c32, c64, 4, 2, padding=1), nn.BatchNorm2d(c64), nn.ReLU(),
            nn.ConvTranspose2d(c64, c32, 4, 2, padding=1), nn.BatchNorm2d(c32), nn.ReLU(),
            nn.ConvTranspose2d(c32, c16, 4, 2, padding=1), nn.BatchNorm2d(c16), nn.ReLU(),
            nn.Conv2d(c16, channels, 1), nn.BatchNorm2d(channels),
        )  # fmt: skip
    if name == "v2-slim":
        return SlimNetwork(cin, channels, width)
    if name == "unet":
        return UNet(cin, channels, width)
    if name in ("v2-wide", "iclr2020"):
        widths = [64, 128, 256, 128] + ([64] if name == "v2-wide" else [])
        c = [scaled(w, width) for w in widths]
        blocks = [ResBlock(a, b) for a, b in zip(c, c[1:], strict=False)]
        return nn.Sequential(
            *stem(cin, c[0]), *blocks,
            nn.BatchNorm2d(c[-1], affine=False), nn.Conv2d(c[-1], channels, 3, padding=1),
        )  # fmt: skip
    raise InputError(f"Unknown attacker network '{name}': choose {', '.join(NETWORKS)}.")


class NaiveAttacker(nn.Module):
    """Naive L2L: δ = ε tanh g(x), from the image alone (ICLR 2020, section 2.2)."""

    batch_dependent = False

    def __init__(
        self, network: str = "iclr2020", channels: int = 3, epsilon: float = 0.031,
        width: float = 1.0,
    ):  # fmt: skip
        super().__init__()
        check_epsilon(epsilon)
        self.epsilon = epsilon
        self.network = make_network(network, channels, channels, width)

    def iterates(
        self, classifier: nn.Module, images: Tensor, labels: Tensor, generators: Generators = None
    ) -> Iterator[Tensor]:
        check_batch(images, labels)
        yield project(self.epsilon * self.network(images).tanh(), images, self.epsilon)

    def forward(
        self, classifier: nn.Module, images: Tensor, labels: Tensor, generators: Generators = None
    ) -> Tensor:
        return next(self.iterates(classifier, images, labels, generators))


class AdvGANAttacker(NaiveAttacker):
    """AdvGAN (Xiao et al. 2018): δ = ε tanh g(x) that fools the classifier and a critic.

    The critic tells x from x + δ and learns along: it descends its cross-entropy while g climbs
    `realism` times that, and the margin by which the classifier errs, cut off at 0 (their hinge).
    Their penalty on ‖δ‖ is left out: the ε-ball bounds δ here. g is L2L-DA's U-Net, so that the
    generators compared differ in how they are trained and not in size. The training loop asks for
    its `objective` in place of the loss that the classifier descends.
    """

    def __init__(
        self, channels: int = 3, epsilon: float = 0.031, width: float = 1.0, realism: float = 0.1
    ):
        super().__init__("unet", channels, epsilon, width)
        self.realism = realism
        c1, c2 = (max(1, round(c * width)) for c in (64, 128))
        self.critic = nn.Sequential(
            nn.Conv2d(channels, c1, 4, 2, padding=1), nn.LeakyReLU(0.2),
            nn.Conv2d(c1, c2, 4, 2, padding=1), nn.LeakyReLU(0.2),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c2, 1),
        )  # fmt: skip

    def objective(
        self, classifier: nn.Module, images: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What g climbs and, with the sign turned, the critic too; and the perturbations."""
        delta = self(classifier, images, labels)
        fooled = -margin(classifier(images + delta), labels).clamp(min=0).mean()
        # 2p − p is p with the gradient turned round: one ascent moves both players.
        turned = {n: 2 * p.detach() - p for n, p in self.critic.named_parameters()}
        seen = torch.cat([images, images + delta])
        real = functional_call(self.critic, turned, seen)[:, 0]
        truth = torch.cat([torch.ones(len(images)), torch.zeros(len(images))]).to(real)
        told = F.binary_cross_entropy_with_logits(real, truth)
        return fooled + self.realism * told, delta


class GradAttacker(nn.Module):
    """Grad L2L (`steps=1`) and K-Step L2L: the network as the cell of a length-K recurrence.

    δ ← Π(δ + ε tanh g(x + δ, ∇ₓℓ(f(x + δ), y))), K times from δ = 0 with the same φ and a
    projection after each step (ICLR 2020, section 2.2, "Gradient" and "Multi-Step"; K = 2 there).
    Gradients reach φ through all perturbations; the queried ∇ₓℓ is taken as a constant.

    `gradient` names how ∇ₓℓ is scaled before it enters the network: "batch-max" divides by the
    largest magnitude in the batch (the authors' code; then one image's perturbation depends on
    its batch), "per-image" by each image's own, "none" leaves it as the papers print it. `start`
    is "zero", or "uniform" in the ε-ball: then every call starts elsewhere, as L2L-DA restarts it
    (its section 4.3).
    """

    start = "zero"

    def __init__(
        self, network: str = "iclr2020", channels: int = 3, epsilon: float = 0.031,
        width: float = 1.0, steps: int = 1, gradient: str = "per-image",
    ):  # fmt: skip
        super().__init__()
        check_epsilon(epsilon)
        check_positive(steps=steps)
        if gradient not in GRADIENTS:
            raise InputError(f"gradient must be one of {', '.join(GRADIENTS)}, not '{gradient}'.")
        self.epsilon, self.steps, self.gradient = epsilon, steps, gradient
        self.network = make_network(network, 2 * channels, channels, width)

    @property
    def batch_dependent(self) -> bool:
        return self.gradient == "batch-max"

    def scale(self, gradient: Tensor) -> Tensor:
        if self.gradient == "none":
            return gradient
        dims = (1, 2, 3) if self.gradient == "per-image" else (0, 1, 2, 3)
        return gradient / gradient.abs().amax(dims, keepdim=True).clamp(min=1e-30)

    def iterates(
        self, classifier: nn.Module, images: Tensor, labels: Tensor, generators: Generators = None
    ) -> Iterator[Tensor]:
        check_batch(images, labels)
        delta = torch.zeros_like(images)
        if self.start == "uniform":
            delta = project(uniform(images, self.epsilon, generators), images, self.epsilon)
        for _ in range(self.steps):
            x = images + delta
            gradient = self.scale(input_gradient(classifier, x, labels))
            step = self.epsilon * self.network(torch.cat([x, gradient], 1)).tanh()
            delta = project(delta + step, images, self.epsilon)
            yield delta

    def forward(
        self, classifier: nn.Module, images: Tensor, labels: Tensor, generators: Generators = None
    ) -> Tensor:
        return last(self.iterates(classifier, images, labels, generators))


class FreeAttacker(nn.Module):
    """Free adversarial training's player (Shafahi et al. 2019): φ is the perturbation itself.

    `delta` (N, C, H, W) belongs to a place in the batch, not to an image: it starts at zero, stays
    from batch to batch, and is kept in the ε-ball. It attacks the batches it is trained on and no
    others; InputError for images of another shape or more of them.
    """

    def __init__(self, shape: tuple[int, int, int, int], epsilon: float = 0.031):
        super().__init__()
        check_epsilon(epsilon)
        self.epsilon = epsilon
        self.delta = nn.Parameter(torch.zeros(shape))

    def forward(
        self, classifier: nn.Module, images: Tensor, labels: Tensor, generators: Generators = None
    ) -> Tensor:
        check_batch(images, labels)
        if len(images) > len(self.delta) or images.shape[1:] != self.delta.shape[1:]:
            raise InputError(
                f"This perturbation is {tuple(self.delta.shape)}: it has none for images of shape "
                f"{tuple(images.shape)}."
            )
        with torch.no_grad():  # not `project`: through its clamp no gradient reaches |δ| = ε
            self.delta.clamp_(-self.epsilon, self.epsilon)
        delta = distributed.share(self.delta)[: len(images)]
        return (images + delta).clamp(0, 1) - images
