"""Two one-step solvers of today beside FGSM-RS, which is `PGM(steps=1)` from a uniform start.

N-FGSM puts noise before FGSM's step and does not clip after it; FGSM-SDI lets a network choose
where the step begins.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import Tensor, cat, nn

from l2lkit.errors import check_choice, check_positive
from l2lkit.game.networks import NETWORKS, folded, make_network
from l2lkit.game.padding import at_any_size
from l2lkit.game.solver import (
    Attacker,
    Generators,
    Maker,
    Play,
    Scale,
    Shape,
    Solver,
    check_epsilon,
    input_gradient,
    project,
    uniform,
)


@dataclass(frozen=True, kw_only=True)
class NFGSM(Solver):
    """N-FGSM (de Jorge et al. 2022, Algorithm 1): δ = η + ε sign ∇ₓℓ(f(x + η), y), where η is
    uniform in [−kε, kε] and k is `noise`; the paper's is 2.

    The paper does not clip δ, so in training δ is up to (k + 1) ε large and leaves the ball of all
    other solvers here: that is `play`. Called as an attack it keeps to the contract, and δ is
    clipped to ε. Images stay in [0, 1] after the noise and after the step.
    """

    epsilon: float = 0.031
    noise: float = 2.0

    stochastic = True

    def __post_init__(self) -> None:
        check_epsilon(self.epsilon)
        check_positive(noise=self.noise)

    def unclipped(
        self, classifier: nn.Module, images: Tensor, labels: Tensor, generators: Generators = None
    ) -> Tensor:
        """δ as the classifier trains on it, |δ| ≤ (k + 1) ε."""
        noisy = (images + uniform(images, self.noise * self.epsilon, generators)).clamp(0, 1)
        step = self.epsilon * input_gradient(classifier, noisy, labels).sign()
        return (noisy + step).clamp(0, 1) - images

    def iterates(
        self, classifier: nn.Module, images: Tensor, labels: Tensor, generators: Generators = None
    ) -> Iterator[Tensor]:
        delta = self.unclipped(classifier, images, labels, generators)
        yield project(delta, images, self.epsilon)

    def play(self, classifier: nn.Module, images: Tensor, labels: Tensor) -> Play:
        return Play(images, labels, self.unclipped(classifier, images, labels))


class SDIAttacker(Attacker):
    """FGSM-SDI (Jia et al. 2022, "learnable adversarial initialization"): a network looks at the
    image and at the sign of its gradient and gives the start η = ε tanh g(x, sign ∇ₓℓ); one step
    of size ε along the sign of the gradient at x + η follows, and the projection. φ climbs the
    loss at its end, through η where the projection does not clip. Yields η, then δ.
    """

    def __init__(
        self,
        network: str = "code-slim",
        channels: int = 3,
        epsilon: float = 0.031,
        width: float = 1.0,
    ):
        super().__init__(epsilon)
        self.network = at_any_size(make_network(network, 2 * channels, channels, width))

    @property
    def passes(self) -> int:
        return 2

    def iterates(
        self, classifier: nn.Module, images: Tensor, labels: Tensor, generators: Generators = None
    ) -> Iterator[Tensor]:
        sign = input_gradient(classifier, images, labels).sign()
        start = self.epsilon * self.network(cat([images, sign], 1)).tanh()
        start = project(start, images, self.epsilon)
        yield start
        step = self.epsilon * input_gradient(classifier, images + start, labels).sign()
        yield project(start + step, images, self.epsilon)


@dataclass(frozen=True, kw_only=True)
class SDI(Maker):
    """Makes an `SDIAttacker`. The paper's generator is a small residual network of its own and
    moves in some iterations only; here it is one of `make_network` and moves in every step, from
    the classifier's pass, as the L2L attackers do."""

    network: str = "code-slim"
    width: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(network=(self.network, NETWORKS))

    def __call__(self, shape: Shape, classes: int) -> SDIAttacker:
        return SDIAttacker(self.network, shape[1], self.epsilon, self.width)

    def scaled(self, scale: Scale) -> "SDI":
        return replace(self, width=scale.width, network=folded(self.network))
