"""AdvGAN (Xiao et al. 2018), one of the attacks of L2L-DA's tables."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from l2lkit.errors import check_positive
from l2lkit.game.cw import margin
from l2lkit.game.learned import NaiveAttacker
from l2lkit.game.networks import folded
from l2lkit.game.solver import Maker, Play, Scale, Shape


class AdvGANAttacker(NaiveAttacker):
    """δ = ε tanh g(x) that fools the classifier and a critic.

    The critic tells x from x + δ and learns along: it descends its cross-entropy while g climbs
    `realism` times that, and the margin by which the classifier errs, cut off at 0 (their hinge).
    Their penalty on ‖δ‖ is left out: the ε-ball bounds δ here. g is one of L2L-DA's U-Nets, so that
    the generators compared differ in how they are trained and not in size.
    """

    own_value = True

    def __init__(
        self,
        channels: int = 3,
        epsilon: float = 0.031,
        width: float = 1.0,
        realism: float = 0.1,
        network: str = "unet",
    ):
        super().__init__(network, channels, epsilon, width)
        self.realism = realism
        c1, c2 = (max(1, round(c * width)) for c in (64, 128))
        self.critic = nn.Sequential(
            nn.Conv2d(channels, c1, 4, 2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(c1, c2, 4, 2, padding=1),
            nn.LeakyReLU(0.2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(c2, 1),
        )

    def play(self, classifier: nn.Module, images: Tensor, labels: Tensor) -> Play:
        """The perturbations, and what g climbs and, with the sign turned, the critic too."""
        delta = super().play(classifier, images, labels).delta
        fooled = -margin(classifier(images + delta), labels).clamp(min=0).mean()
        # 2p − p is p with the gradient turned round: one ascent moves both players.
        turned = {n: 2 * p.detach() - p for n, p in self.critic.named_parameters()}
        seen = torch.cat([images, images + delta])
        real = functional_call(self.critic, turned, seen)[:, 0]
        truth = torch.cat([torch.ones(len(images)), torch.zeros(len(images))]).to(real)
        error = F.binary_cross_entropy_with_logits(real, truth)
        return Play(images, labels, delta, fooled + self.realism * error)


@dataclass(frozen=True, kw_only=True)
class AdvGAN(Maker):
    """AdvGAN's generator and critic, one optimiser for both."""

    width: float = 1.0
    realism: float = 0.1
    network: str = "unet"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(epsilon=self.epsilon, width=self.width)

    def __call__(self, shape: Shape, classes: int) -> AdvGANAttacker:
        return AdvGANAttacker(shape[1], self.epsilon, self.width, self.realism, self.network)

    def scaled(self, scale: Scale) -> "AdvGAN":
        return replace(self, width=scale.width, network=folded(self.network))
