"""The networks of GAIL's game beside the policy: the discriminator and its learned optimiser."""

from collections.abc import Sequence

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l2lkit.errors import InputError


class Discriminator(nn.Module):
    """(s, a) -> the logit of D, with tanh hidden layers (ICLR 2020, Appendix C.2: 64, 32).

    Takes standardised observations (n, d) and whole-numbered actions (n,), which it sees one-hot;
    returns (n,). The last layer starts at zero, so that D starts at 1/2.
    """

    def __init__(self, width: int, actions: int, hidden: Sequence[int] = (64, 32)):
        super().__init__()
        self.actions = actions
        sizes = [width + actions, *hidden]
        layers: list[nn.Module] = []
        for before, after in zip(sizes, sizes[1:], strict=False):
            layers += [nn.Linear(before, after), nn.Tanh()]
        last = nn.Linear(sizes[-1], 1)
        nn.init.zeros_(last.weight), nn.init.zeros_(last.bias)
        self.net = nn.Sequential(*layers, last)

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        chosen = F.one_hot(actions, self.actions).to(observations.dtype)
        return self.net(torch.cat([observations, chosen], 1)).squeeze(1)


class Updater(nn.Module):
    """U(θ_D, g_D; θ_U): the learned optimiser, 2m -> 8m -> 4m -> m with PReLU after the first two
    layers and θ_D added to the output (ICLR 2020, Appendix C.2).

    Takes θ and its gradient and returns the new θ. With m = 1 it is the scalable variant: the same
    67 weights move every coordinate of θ_D. The last layer starts at zero, so that U starts as the
    identity; a random one would scatter D at the first step.
    """

    def __init__(self, m: int):
        super().__init__()
        self.m, last = m, nn.Linear(4 * m, m)
        nn.init.zeros_(last.weight), nn.init.zeros_(last.bias)
        self.net = nn.Sequential(
            nn.Linear(2 * m, 8 * m), nn.PReLU(), nn.Linear(8 * m, 4 * m), nn.PReLU(), last
        )

    def forward(self, theta: Tensor, gradient: Tensor) -> Tensor:
        """U(θ, g) for vectors (M,): at once if M is m, coordinate by coordinate if m is 1."""
        rows = torch.stack([theta, gradient]).view(2, -1, self.m)
        return theta + self.net(torch.cat([rows[0], rows[1]], 1)).flatten()


def parameter_count(m: int) -> int:
    """The number of U's parameters for m of θ_D: 52m² + 13m + 2.

    For the paper's discriminator on CartPole m = 2,561, and U has 341 million parameters: 5.5 GB
    in float32 with gradients and Adam's two moments (16 bytes a parameter).
    """
    return 52 * m * m + 13 * m + 2


def check_memory(m: int, device: str = "cpu") -> None:
    """Raise InputError unless `device` has the memory that training U for m of θ_D takes: weights,
    gradients and Adam's moments, on the CPU with a checkpoint's copy in the making."""
    cpu = torch.device(device).type == "cpu"
    needed = parameter_count(m) * (34 if cpu else 20)
    free = psutil.virtual_memory().available if cpu else torch.cuda.mem_get_info(device)[0]
    if needed > free:
        raise InputError(
            f"The dense updater of a discriminator with {m:,} parameters needs {needed / 1e9:.1f} "
            f"GB of memory, and {free / 1e9:.1f} GB are free: free some, choose the method 'L2L "
            "GAIL (shared)', or give the recipe a narrower discriminator, such as hidden=(16, 8)."
        )
