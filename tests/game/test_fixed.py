"""The hand-designed attacks: one contract for all, and each against what is known exactly."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn

from l2lkit.errors import InputError
from l2lkit.game.cw import CW, CWTanh, margin
from l2lkit.game.fixed import FGSM, PGM
from l2lkit.game.interpolation import Interpolation, InterpolationAttacker
from l2lkit.game.learned import GradAttacker, NaiveAttacker
from l2lkit.game.search import RandomSearch, attack_by_name
from l2lkit.game.solver import input_gradient, project


def learned(kind, **options):
    return lambda epsilon: kind("2018", 3, epsilon, width=1 / 8, **options)


ATTACKS = {
    "fgsm": lambda epsilon: FGSM(epsilon=epsilon),
    "pgm-uniform": lambda epsilon: PGM(epsilon=epsilon, steps=3, step_size=0.1),
    "pgm-gaussian": lambda epsilon: PGM(epsilon=epsilon, steps=3, start="gaussian"),
    "pgm-zero": lambda epsilon: PGM(epsilon=epsilon, steps=3, step_size=0.1, start="zero"),
    "cw": lambda epsilon: CW(epsilon=epsilon, steps=5, lr=0.1),
    "cw-tanh": lambda epsilon: CWTanh(epsilon=epsilon, inner_steps=3, lr=0.1),
    "random": lambda epsilon: RandomSearch(epsilon=epsilon, draws=3),
    "naive": learned(NaiveAttacker),
    "grad": learned(GradAttacker),
    "grad batch-max": learned(GradAttacker, gradient="batch-max"),
    "2-step": learned(GradAttacker, steps=2, gradient="none"),
    "interpolation": lambda epsilon: Interpolation(epsilon=epsilon),
    "2-step interpolation": learned(InterpolationAttacker, steps=2),
}
unit = st.floats(0, 1, width=32)
batches = hnp.arrays(np.float32, (2, 3, 4, 4), elements=st.sampled_from([0.0, 1.0]) | unit)


def convolutional(classes=4):
    """A small classifier with batch statistics, dropout and parameters to leave alone."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.Tanh(),
        nn.Dropout(0.2),
        nn.Flatten(),
        nn.Linear(64, classes),
    )


def linear(pixels, classes=2, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, classes)).double()


def batch(count, *shape, seed=1):
    """Images with some pixels exactly 0 and 1, float64."""
    torch.manual_seed(seed)
    return (torch.rand(count, *shape, dtype=torch.float64) * 1.4 - 0.2).clamp(0, 1)


def steepest(f, x, y, epsilon):
    """The best ℓ∞ perturbation against two linear classes: ε·sign(w_t − w_y), inside [0, 1]."""
    w = f[1].weight.detach()
    sign = torch.sign(w[1 - y] - w[y]).view_as(x)
    return torch.minimum(torch.maximum(epsilon * sign, -x), 1 - x)


# One contract for all ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ATTACKS)
@settings(max_examples=10)
@given(epsilon=st.sampled_from([0.0, 1.0, 0.031]) | unit, images=batches)
def test_stays_in_the_ball_and_in_the_image_range(name, epsilon, images):
    torch.manual_seed(0)
    f, attack, x = convolutional().eval(), ATTACKS[name](epsilon), torch.from_numpy(images)
    delta = attack(f, x, torch.tensor([0, 3])).detach()
    assert delta.shape == x.shape and delta.dtype == x.dtype
    assert delta.abs().max() <= epsilon + 1e-7
    assert (x + delta).min() >= 0 and (x + delta).max() <= 1
    if epsilon == 0:
        assert not delta.any()


@pytest.mark.parametrize("name", ATTACKS)
def test_leaves_the_classifier_as_it_is(name):
    torch.manual_seed(0)
    f, x, y = convolutional().eval(), batch(4, 3, 4, 4).float(), torch.tensor([0, 1, 2, 3])
    f[0].train()  # a mode of its own in one place
    F.cross_entropy(f(x), y).backward()
    modes = [m.training for m in f.modules()]
    state = {k: v.clone() for k, v in f.state_dict().items()}
    grads = [p.grad.clone() for p in f.parameters()]
    attack = ATTACKS[name](0.1)
    attack(f, x, y)
    assert [m.training for m in f.modules()] == modes
    assert all(torch.equal(v, state[k]) for k, v in f.state_dict().items())
    pairs = zip(f.parameters(), grads, strict=True)
    assert all(torch.equal(p.grad, g) and p.requires_grad for p, g in pairs)
    assert not x.requires_grad and x.grad is None


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize(
    ("images", "labels", "what"),
    [
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([0, 1]), "divide uint8"),
        (torch.zeros(3, 4, 4), torch.tensor([0, 1, 2]), r"\(N, C, H, W\)"),
        (torch.zeros(2, 3, 4, 4), torch.tensor([0]), r"shape \(2,\)"),
        (torch.zeros(2, 3, 4, 4), torch.tensor([[0], [1]]), r"shape \(2,\)"),
        (torch.zeros(2, 3, 4, 4), torch.tensor([0, 1], dtype=torch.int32), "int64"),
        (torch.zeros(2, 3, 4, 4), torch.tensor([0.0, 1.0]), "int64"),
    ],
)
def test_refuses_a_wrong_batch(name, images, labels, what):
    with pytest.raises(InputError, match=what):
        ATTACKS[name](0.1)(convolutional().eval(), images, labels)


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("epsilon", [-0.01, 1.01, math.nan, math.inf, 8])
def test_refuses_a_wrong_epsilon(name, epsilon):
    with pytest.raises(InputError, match="between 0 and 1"):
        ATTACKS[name](epsilon)


@pytest.mark.parametrize(
    ("kind", "setting", "value"),
    [
        (PGM, "steps", 0),
        (PGM, "step_size", 0.0),
        (PGM, "step_size", math.nan),
        (PGM, "start", "corner"),
        (PGM, "against", "logits"),
        (CW, "steps", 0),
        (CW, "c", -1.0),
        (CW, "lr", math.inf),
        (CWTanh, "inner_steps", 0),
        (CWTanh, "c_min", 0.0),
        (CWTanh, "c_max", math.inf),
        (RandomSearch, "draws", 0),
    ],
)
def test_refuses_a_wrong_setting(kind, setting, value):
    with pytest.raises(InputError, match=setting):
        kind(**{setting: value})


# The projection, the margin, the gradient --------------------------------------------------


@given(
    hnp.arrays(np.float64, 6, elements=st.floats(-2, 2)),
    hnp.arrays(np.float64, 6, elements=st.floats(0, 1)),
    unit,
)
def test_project_gives_the_nearest_point(delta, image, epsilon):
    got = project(torch.from_numpy(delta), torch.from_numpy(image), epsilon).numpy()
    # In one pixel, the feasible perturbations are an interval; the nearest point is its median
    # with the ends.
    ends = np.maximum(-epsilon, -image), np.minimum(epsilon, 1 - image)
    np.testing.assert_allclose(got, np.median([delta, *ends], axis=0), atol=1e-15)


def test_project_clips_and_does_not_do_what_the_papers_print():
    delta, epsilon = torch.tensor([0.5, -0.5, 0.01]), 0.1
    printed = delta.sign() * delta.abs().clamp(min=epsilon)  # sign(δ)∘max(|δ|, ε)
    got = project(delta, torch.full((3,), 0.5), epsilon)
    torch.testing.assert_close(got, torch.tensor([0.1, -0.1, 0.01]))
    assert not torch.isclose(got, printed).any()


def test_margin_by_hand():
    logits = torch.tensor([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0], [5.0, 5.0, 0.0]])
    assert margin(logits, torch.tensor([0, 1, 0])).tolist() == [1.0, -2.0, 0.0]


def test_input_gradient_against_differences():
    torch.manual_seed(3)
    f, x, y = convolutional().double().eval(), batch(2, 3, 4, 4), torch.tensor([1, 2])
    gradient, h = input_gradient(f, x, y), 1e-5
    for i, place in enumerate([(0, 0, 0), (2, 3, 1)]):
        up, down = x.clone(), x.clone()
        up[i][place] += h
        down[i][place] -= h
        slope = (
            F.cross_entropy(f(up), y, reduction="sum")
            - F.cross_entropy(f(down), y, reduction="sum")
        ) / (2 * h)
        assert gradient[i][place].item() == pytest.approx(slope.item(), rel=1e-5, abs=1e-9)


# Against closed forms and brute force ------------------------------------------------------


@pytest.mark.parametrize("epsilon", [0.0, 0.031, 0.3, 1.0])
@pytest.mark.parametrize("start", ["fgsm", "uniform", "gaussian", "zero"])
def test_fgsm_and_pgm_are_optimal_against_two_linear_classes(start, epsilon):
    f, x = linear(3 * 64), batch(8, 3, 8, 8)
    y = torch.arange(8) % 2
    attack = FGSM(epsilon=epsilon)
    if start != "fgsm":
        attack = PGM(epsilon=epsilon, steps=10, step_size=0.25, start=start)
    torch.testing.assert_close(attack(f, x, y), steepest(f, x, y, epsilon), rtol=0, atol=1e-12)


@settings(max_examples=10)
@given(st.floats(0.01, 0.2), st.integers(0, 10_000))
def test_cw_succeeds_exactly_where_the_margin_allows(epsilon, seed):
    f, x = linear(12, seed=seed), batch(16, 3, 2, 2, seed=seed + 1)
    y = f(x).argmax(1)
    best = margin(f(x + steepest(f, x, y, epsilon)), y)  # the smallest there is in the ball
    clear = best.abs() > 0.02 * f[1].weight.abs().sum() * epsilon
    fooled = margin(f(x + CW(epsilon=epsilon)(f, x, y)), y) < 0
    assert torch.equal(fooled[clear], best[clear] < 0)


def test_cw_leaves_alone_what_is_wrong_already():
    f, x = linear(12), batch(16, 3, 2, 2)
    y = torch.arange(16) % 2
    wrong = f(x).argmax(1) != y
    assert 0 < wrong.sum() < 16
    assert not CW(epsilon=0.1)(f, x, y)[wrong].any()
    assert not CWTanh(epsilon=0.1)(f, x, y)[wrong].any()


def test_attacks_against_the_corners_of_the_ball():
    """Cross-entropy of a linear classifier is convex in x: its maximum is at a corner, and with
    two pixels four corners are all there are."""
    epsilon, f, x = 0.2, linear(2, classes=3, seed=5), batch(20, 1, 1, 2, seed=6)
    y = torch.arange(20) % 3
    corners = torch.stack(
        [
            project(epsilon * torch.tensor(s).view(1, 1, 1, 2), x, epsilon)
            for s in itertools.product([-1.0, 1.0], repeat=2)
        ]
    )

    def loss(delta):
        return F.cross_entropy(f(x + delta), y, reduction="none").detach()

    best = torch.stack([loss(c) for c in corners]).amax(0)
    for attack in (
        FGSM(epsilon=epsilon),
        PGM(epsilon=epsilon, steps=40, step_size=0.05),
        RandomSearch(epsilon=epsilon, draws=20),
    ):
        assert (loss(attack(f, x, y)) <= best + 1e-12).all()
    torch.manual_seed(0)
    found = torch.stack(
        [loss(PGM(epsilon=epsilon, steps=40, step_size=0.05)(f, x, y)) for _ in range(10)]
    )
    torch.testing.assert_close(found.amax(0), best)  # ten starts find it for every image


def test_pgm_against_a_grid_on_two_pixels():
    torch.manual_seed(7)
    f = nn.Sequential(nn.Flatten(), nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 3)).double()
    epsilon, x, y = 0.1, batch(6, 1, 1, 2, seed=8), torch.arange(6) % 3
    side = torch.linspace(-epsilon, epsilon, 81, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side).view(-1, 1, 1, 1, 2)
    with torch.no_grad():
        every = project(grid, x, epsilon) + x
        losses = F.cross_entropy(
            f(every.flatten(0, 1)), y.repeat(len(grid)), reduction="none"
        ).view(len(grid), 6)
        found = F.cross_entropy(
            f(x + PGM(epsilon=epsilon, steps=100)(f, x, y)), y, reduction="none"
        )
    torch.testing.assert_close(found, losses.amax(0), rtol=1e-3, atol=0)


def test_pgm_against_a_plain_loop():
    torch.manual_seed(9)
    f, x, y = convolutional().double().eval(), batch(4, 3, 4, 4), torch.tensor([0, 1, 2, 3])
    delta = torch.zeros_like(x)
    for expected in PGM(epsilon=0.05, steps=7, step_size=0.013, start="zero").iterates(f, x, y):
        adversarial = (x + delta).requires_grad_()
        F.cross_entropy(f(adversarial), y).backward()
        adversarial = adversarial.detach() + 0.013 * adversarial.grad.sign()
        adversarial = torch.minimum(torch.maximum(adversarial, x - 0.05), x + 0.05).clamp(0, 1)
        delta = adversarial - x
        torch.testing.assert_close(expected, delta, rtol=0, atol=1e-12)


def test_pgm_against_the_prediction_climbs_the_divergence():
    """As TRADES prints it: KL(f(x) ‖ f(x + δ)), whatever the labels say."""
    torch.manual_seed(0)
    f = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x, delta = torch.rand(5, 3, 2, 2).double(), None
    attack = PGM(epsilon=0.1, steps=4, step_size=0.03, against="prediction")
    generators = [torch.Generator().manual_seed(i) for i in range(5)]
    noise = torch.stack([torch.rand(3, 2, 2, generator=g) for g in generators]).double()
    delta = (x + 0.1 * (2 * noise - 1)).clamp(0, 1) - x
    p = f(x).softmax(1).detach()
    for _ in range(4):
        d = delta.clone().requires_grad_()
        divergence = (p * (p.log() - f(x + d).log_softmax(1))).sum()
        (climb,) = torch.autograd.grad(divergence, d)
        delta = (x + (delta + 0.03 * climb.sign()).clamp(-0.1, 0.1)).clamp(0, 1) - x
    for labels in (torch.zeros(5, dtype=torch.int64), torch.ones(5, dtype=torch.int64)):
        again = [torch.Generator().manual_seed(i) for i in range(5)]
        torch.testing.assert_close(attack(f, x, labels, again), delta)


@pytest.mark.parametrize("start", ["uniform", "gaussian", "zero"])
def test_iterates_are_a_prefix_of_a_longer_run(start):
    torch.manual_seed(9)
    f, x, y = convolutional().eval(), batch(3, 3, 4, 4).float(), torch.tensor([0, 1, 2])
    runs = []
    for steps in (4, 9):
        torch.manual_seed(1)
        runs.append(list(PGM(steps=steps, start=start).iterates(f, x, y)))
    assert [len(run) for run in runs] == [4, 9]
    assert all(torch.equal(a, b) for a, b in zip(runs[0], runs[1], strict=False))
    torch.manual_seed(1)
    assert torch.equal(PGM(steps=4, start=start)(f, x, y), runs[1][3])


class Constant(nn.Module):
    """Its loss does not depend on the image, so that PGM stays where it starts."""

    def forward(self, x):
        return x.flatten(1)[:, :2] * 0


def test_the_three_starts():
    x, y = torch.full((4, 3, 16, 16), 0.5), torch.zeros(4, dtype=torch.int64)
    torch.manual_seed(0)
    uniform, gaussian, zero = (
        PGM(epsilon=0.031, steps=1, start=s)(Constant(), x, y)
        for s in ("uniform", "gaussian", "zero")
    )
    assert not zero.any()
    # 3072 draws each: the deviations of U(−ε, ε) and N(0, 0.001), to 5 %
    assert uniform.std().item() == pytest.approx(0.031 / math.sqrt(3), rel=0.05)
    assert 0.03 < uniform.abs().max() <= 0.031 + 1e-7
    assert gaussian.std().item() == pytest.approx(0.001, rel=0.05)
    assert gaussian.abs().max() > 0.0025


@pytest.mark.parametrize(
    "attack", [PGM(steps=2), PGM(steps=2, start="gaussian"), RandomSearch(draws=3)]
)
def test_generators_make_images_independent_of_their_batch(attack):
    f, x, y = linear(12), batch(5, 3, 2, 2), torch.tensor([0, 1, 0, 1, 0])

    def generators():
        return [torch.Generator().manual_seed(i) for i in range(5)]

    together = attack(f, x, y, generators())
    single = [attack(f, x[i : i + 1], y[i : i + 1], [g]) for i, g in enumerate(generators())]
    torch.testing.assert_close(together, torch.cat(single), rtol=0, atol=1e-12)


def test_cw_tanh_is_zero_or_fools_inside_the_ball():
    f, x = linear(12), batch(24, 3, 2, 2)
    y = f(x).argmax(1)
    epsilon = 0.04
    delta = CWTanh(epsilon=epsilon)(f, x, y)
    hit = delta.flatten(1).any(1)
    assert 0 < hit.sum() < 24
    assert (margin(f(x + delta), y)[hit] < 0).all()
    assert delta.abs().max() < epsilon
    # No image may be hit that no perturbation fools, and none missed that half of ε fools.
    assert (margin(f(x + steepest(f, x, y, epsilon)), y)[hit] < 0).all()
    assert (margin(f(x + steepest(f, x, y, epsilon / 2)), y)[~hit] > 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cw_tanh_in_a_batch_is_a_loop_over_the_images(dtype):
    f, x = linear(12).to(dtype), batch(12, 3, 2, 2).to(dtype)
    y = f(x).argmax(1)
    attack = CWTanh(epsilon=0.05)
    together = attack(f, x, y)
    single = torch.cat([attack(f, x[i : i + 1], y[i : i + 1]) for i in range(12)])
    hits = together.flatten(1).any(1)
    assert torch.equal(hits, single.flatten(1).any(1)) and 0 < hits.sum() < 12
    torch.testing.assert_close(together, single, rtol=1e-3, atol=1e-4)


def test_cw_tanh_ends_where_only_larger_balls_fool():
    """Images that fool at twice ε but never at ε: the search must give up on them."""
    calls = 0

    class Counting(nn.Module):
        def forward(self, x):
            nonlocal calls
            calls += 1
            assert calls < 5000, "the search does not end"
            return f(x)

    f, x = linear(12), batch(24, 3, 2, 2)
    y = f(x).argmax(1)
    for epsilon in (0.0, 0.01):
        calls, open_ = 0, margin(f(x + steepest(f, x, y, 2 * epsilon)), y) > 0
        delta = CWTanh(epsilon=epsilon)(Counting(), x, y)
        assert open_.any() and not delta[open_].any()


class Threshold(nn.Module):
    """Class 0 up to a brightness, class 1 above it."""

    def __init__(self, threshold):
        super().__init__()
        self.threshold = threshold

    def forward(self, x):
        above = (x.flatten(1)[:, 0] > self.threshold).float()
        return torch.stack([1 - above, above], 1)


@pytest.mark.parametrize("draws", [1, 4, 20])
def test_random_search_finds_as_often_as_chance_says(draws):
    """Of U(0.3, 0.7), one tenth lies above 0.66: N draws fool with probability 1 − 0.9ᴺ."""
    count, p = 4000, 1 - 0.9**draws
    x, y = torch.full((count, 1, 1, 1), 0.5), torch.zeros(count, dtype=torch.int64)
    torch.manual_seed(draws)
    f = Threshold(0.66)
    delta = RandomSearch(epsilon=0.2, draws=draws)(f, x, y)
    fooled = f(x + delta).argmax(1) == 1
    assert abs(fooled.float().mean().item() - p) < 4.5 * math.sqrt(p * (1 - p) / count)
    # The unfooled keep their last draw, uniform on the rest of the ball.
    rest = (x + delta).flatten()[~fooled]
    assert rest.mean().item() == pytest.approx(0.48, abs=0.01)
    assert rest.min() >= 0.3 - 1e-6 and rest.max() <= 0.66


# By name -----------------------------------------------------------------------------------


def test_attack_by_name():
    assert attack_by_name("clean") is None
    assert attack_by_name("fgsm", 0.1) == FGSM(epsilon=0.1)
    # The papers' evaluation: T steps of 0.003 at ε = 0.031 from a uniform start.
    assert attack_by_name("pgm-100") == PGM(
        epsilon=0.031, steps=100, step_size=0.003, start="uniform"
    )
    assert attack_by_name("cw", 0.2) == CW(epsilon=0.2)
    assert attack_by_name("cw-tanh", 0.2) == CWTanh(epsilon=0.2)
    assert attack_by_name("random-50") == replace(RandomSearch(), draws=50)


@pytest.mark.parametrize(
    "name", ["", "pgd-20", "pgm", "pgm-", "pgm-2.5", "pgm--3", "random-x", "FGSM", "cw-2", "pgm-²"]
)
def test_an_unknown_attack_lists_the_known_ones(name):
    with pytest.raises(InputError, match="choose clean, fgsm, pgm-T"):
        attack_by_name(name)


@pytest.mark.parametrize("name", ["pgm-0", "random-0"])
def test_an_attack_of_no_steps_is_refused(name):
    with pytest.raises(InputError, match="positive"):
        attack_by_name(name)
