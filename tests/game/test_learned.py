"""The learned attackers: their networks by the papers' tables, their inputs by hand."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from l2lkit.errors import InputError
from l2lkit.game.cpu import PReLU
from l2lkit.game.learned import GradAttacker, NaiveAttacker
from l2lkit.game.networks import NETWORKS, WIDE, ResBlock, make_network
from l2lkit.game.padding import at_any_size


def classifier(seed=0):
    torch.manual_seed(seed)
    return (
        nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(4 * 64, 4),
        )
        .double()
        .eval()
    )


def batch(count=4, size=8, seed=1):
    torch.manual_seed(seed)
    x = (torch.rand(count, 3, size, size, dtype=torch.float64) * 1.4 - 0.2).clamp(0, 1)
    return x, torch.arange(count) % 4


def attacker(kind=GradAttacker, seed=2, **options):
    """An attacker of large perturbations, whose batch norms have seen a batch."""
    torch.manual_seed(seed)
    g = kind("2018", 3, 0.1, width=1 / 4, **options).double()
    nn.init.constant_(g.network[-1].weight, 3.0)
    for module in g.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean of all batches seen: here of one
    g.network(torch.rand(16, g.network[0].in_channels, 8, 8, dtype=torch.float64))
    return g


def mean_gradient(f, x, y):
    """∇ₓ of the batch's mean cross-entropy, as the authors' code asks for it."""
    x = x.detach().clone().requires_grad_()
    F.cross_entropy(f(x), y).backward()
    return x.grad


# The networks ------------------------------------------------------------------------------


def conv(kernel, cin, cout, bias=True):
    return kernel * kernel * cin * cout + bias * cout


def residual(cin, cout):
    """Two 3×3 convolutions, two PReLU slopes, batch norm without parameters; a 1×1 skip."""
    skip = conv(1, cin, cout) if cin != cout else 0
    return conv(3, cin, cout) + conv(3, cout, cout) + 2 + skip


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("slope", [0.25, -0.1, 0.7])
def test_prelu_is_torchs_number_for_number(slope, precision):
    torch.manual_seed(0)
    x = torch.randn(2, 8, 5, 5).contiguous(memory_format=torch.channels_last)
    x[0, 0, 0] = 0.0
    above, found = torch.randn(2, 8, 5, 5).to(precision), []
    for layer in (PReLU(init=slope), nn.PReLU(init=slope)):
        images = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            y = layer(images)
        y.backward(above)
        found.append((y, images.grad, layer.weight.grad))
        assert y.dtype == precision and images.grad.dtype == layer.weight.grad.dtype
    (y, dx, da), theirs = found
    assert torch.equal(y, theirs[0]) and torch.equal(dx, theirs[1])
    torch.testing.assert_close(da, theirs[2])  # a sum; the order may be another


def by_table(name, cin, w=1):
    """The number of parameters by the papers' tables, all inner channels multiplied by w."""
    if name == "2018":  # Table 3: six layers, each with batch norm (2 numbers a channel)
        a, b, c = 16 * w, 32 * w, 64 * w
        layers = conv(3, cin, a) + conv(4, a, b) + conv(4, b, c) + conv(4, c, b) + conv(4, b, a)
        return int(layers + conv(1, a, 3) + 2 * (a + b + c + b + a + 3))
    if name.endswith("slim"):  # v2 Table 1, ICLR 2020 Table 7; the code's scalar before tanh
        a, b, c = 128 * w, 256 * w, 16 * w
        stem, last = conv(3, cin, a, False) + 2 * a, conv(3, c + cin, 3, False)
        extra = {"v2-slim": 0, "iclr2020-slim": 2 * c, "code-slim": 2 * c + 1}[name]
        return int(stem + residual(a, b) + residual(b, a) + conv(4, a, c) + last + extra)
    if name == "unet":  # L2L-DA: base width 64, twice halved; batch norm but for both ends
        a, b, c = 64 * w, 128 * w, 256 * w
        down = conv(3, cin, a) + conv(4, a, b) + conv(4, b, c)
        up = conv(4, c, b) + conv(4, 2 * b, a) + conv(3, 2 * a, 3)
        return int(down + up + 2 * (b + c + b + a))
    if name == "unet-code":  # the authors' code: 64-64-128, no bias, no norm innermost
        a, b = 64 * w, 128 * w
        down = conv(3, cin, a, False) + conv(4, a, a, False) + conv(4, a, b, False)
        up = conv(4, b, a, False) + conv(4, 2 * a, a, False) + conv(3, 2 * a, 3, False)
        return int(down + up + 3 * 2 * a)
    a, b, c = 64 * w, 128 * w, 256 * w  # v2 Table 1 (wide), ICLR 2020 Table 1
    inner = conv(3, cin, a, False) + 2 * a + residual(a, b) + residual(b, c) + residual(c, b)
    if name == "v2-wide":
        return int(inner + residual(b, a) + conv(3, a, 3))
    return int(inner + conv(3, b, 3))


PRINTED = [name for name in NETWORKS if not name.endswith("-folded")]


@pytest.mark.parametrize("name", PRINTED)
@pytest.mark.parametrize("cin", [3, 6])
@pytest.mark.parametrize("width", [1.0, 0.5, 1 / 8])
def test_number_of_parameters_by_the_papers_tables(name, cin, width):
    network = make_network(name, cin, width=width)
    assert sum(p.numel() for p in network.parameters()) == by_table(name, cin, width)


@pytest.mark.parametrize("name", WIDE)
def test_a_folded_network_works_on_two_by_two_pixels_with_twice_the_channels(name):
    torch.manual_seed(0)
    network = make_network(f"{name}-folded", 2, 1, width=1 / 16).eval()
    (inner,) = (m for m in network if isinstance(m, nn.Sequential))
    same = make_network(name, 8, 4, width=1 / 8)
    assert [p.shape for p in inner.parameters()] == [p.shape for p in same.parameters()]
    x = torch.rand(3, 2, 8, 6)
    corners = [x[:, c, i::2, j::2] for c in range(2) for i in range(2) for j in range(2)]
    small, expected = inner(torch.stack(corners, 1)), torch.zeros(3, 1, 8, 6)
    for k, (i, j) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        expected[:, 0, i::2, j::2] = small[:, k]
    torch.testing.assert_close(network(x), expected)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("channels", "size"), [(3, 32), (1, 28), (3, 8)])
def test_output_shape(name, channels, size):
    network = at_any_size(make_network(name, 2 * channels, channels, width=1 / 16))
    assert network(torch.rand(2, 2 * channels, size, size)).shape == (2, channels, size, size)


def test_the_2018_network_layer_by_layer():
    """Table 3: type, channels, kernel, stride, padding; batch norm in every layer."""
    network = make_network("2018", 6)
    convolutions = [m for m in network if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))]
    assert [
        (
            "DeConv" if isinstance(m, nn.ConvTranspose2d) else "Conv",
            m.out_channels,
            m.kernel_size[0],
            m.stride[0],
            m.padding[0],
        )
        for m in convolutions
    ] == [
        ("Conv", 16, 3, 1, 1),
        ("Conv", 32, 4, 2, 1),
        ("Conv", 64, 4, 2, 1),
        ("DeConv", 32, 4, 2, 1),
        ("DeConv", 16, 4, 2, 1),
        ("Conv", 3, 1, 1, 0),
    ]
    kinds = [type(m) for m in network]
    activations = [m for m in kinds if m is nn.ReLU]
    assert sum(k is nn.BatchNorm2d for k in kinds) == 6 and len(activations) == 5
    assert kinds[-1] is nn.BatchNorm2d  # tanh, the sixth activation, is the attacker's


def layers(network):
    """What a table prints of a network: convolutions as kernel, channels, stride and padding, with
    the norms and activations that follow, blocks by their channels."""
    words = []
    for m in network:
        if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d)):
            kind = "DeConv" if isinstance(m, nn.ConvTranspose2d) else "Conv"
            sizes = m.kernel_size[0], m.out_channels, m.stride[0], m.padding[0]
            words.append(f"{kind} {' '.join(map(str, sizes))}")
        elif isinstance(m, ResBlock):
            words.append(f"ResBlock {m.body[2].out_channels}")
        else:
            words[-1] += {nn.BatchNorm2d: " BN", nn.ReLU: " ReLU"}[type(m)]
    return words


def test_the_printed_networks_layer_by_layer():
    """v2 Table 1, ICLR 2020 Tables 1 and 7. The slim stem's stride is 2, where both print 1."""
    blocks = ["ResBlock 128", "ResBlock 256", "ResBlock 128"]
    wide = ["Conv 3 64 1 1 BN ReLU", *blocks]
    assert layers(make_network("iclr2020", 6)) == [*wide, "Conv 3 3 1 1"]
    assert layers(make_network("v2-wide", 6)) == [*wide, "ResBlock 64 BN", "Conv 3 3 1 1"]
    assert layers(make_network("iclr2020-norm", 6)) == [
        *wide[:-1],
        "ResBlock 128 BN",
        "Conv 3 3 1 1",
    ]
    for name, deconvolution in (
        ("v2-slim", "DeConv 4 16 2 1"),
        ("iclr2020-slim", "DeConv 4 16 2 1 BN ReLU"),
        ("code-slim", "DeConv 4 16 2 1 BN ReLU"),
    ):
        slim = make_network(name, 6)
        head = ["Conv 3 128 2 1 BN ReLU", "ResBlock 256", "ResBlock 128 BN"]
        assert layers(slim.body) == [*head, deconvolution]
        assert layers([slim.last]) == ["Conv 3 3 1 1"]
        assert slim.last.in_channels == 16 + 6  # the input skips to it


def test_the_slim_networks_last_layer_sees_the_input():
    """Behind a body that gives nothing, the output is the last convolution on the input, times
    the scalar, which begins at 5."""
    network = make_network("code-slim", 6, width=1 / 16).eval()
    nn.init.zeros_(network.body[-2].weight)  # the batch norm after the deconvolution
    x = torch.rand(2, 6, 8, 8)
    expected = 5 * F.conv2d(x, network.last.weight[:, -6:], padding=1)
    torch.testing.assert_close(network(x), expected)


def test_residual_block_by_hand():
    torch.manual_seed(0)
    block, x = ResBlock(3, 5).double(), torch.rand(4, 3, 6, 6, dtype=torch.float64)
    bound = 2**0.5 * (6 / (9 * (3 + 5))) ** 0.5  # Xavier uniform with gain √2
    assert 0.9 * bound < block.body[2].weight.abs().max() <= bound
    assert block.skip.weight.abs().max() <= (6 / (3 + 5)) ** 0.5

    def layer(h, convolution):
        mean, var = h.mean((0, 2, 3), keepdim=True), h.var((0, 2, 3), keepdim=True, unbiased=False)
        h = (h - mean) / (var + 1e-5).sqrt()
        h = torch.where(h > 0, h, 0.25 * h)  # PReLU begins with slope 1/4
        return F.conv2d(h, convolution.weight, convolution.bias, padding=1)

    h = layer(layer(x, block.body[2]), block.body[5])
    torch.testing.assert_close(block(x), h + F.conv2d(x, block.skip.weight, block.skip.bias))


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("resnet", 3), "choose 2018"),
        (("2018", 3, 3, 0.0), "width"),
        (("2018", 3, 3, float("nan")), "width"),
    ],
)
def test_make_network_refuses(arguments, what):
    with pytest.raises(InputError, match=what):
        make_network(*arguments)


@pytest.mark.parametrize(
    "options", [{"steps": 0}, {"gradient": "sign"}, {"epsilon": 2.0}, {"network": "vnet"}]
)
def test_grad_attacker_refuses(options):
    with pytest.raises(InputError):
        GradAttacker(width=1 / 16, **options)


# What they are fed, and what they give -----------------------------------------------------


@settings(max_examples=15)
@given(st.floats(0, 1), st.floats(0.1, 1e6), st.sampled_from(NETWORKS))
def test_tanh_keeps_any_network_in_the_ball(epsilon, gain, name):
    torch.manual_seed(0)
    g = GradAttacker(name, epsilon=epsilon, width=1 / 16, steps=2).double()
    [m for m in g.network.modules() if isinstance(m, nn.Conv2d)][-1].weight.data.mul_(gain)
    x, y = batch()
    delta = g(classifier(), x, y)
    assert delta.abs().max() <= epsilon + 1e-12
    assert (x + delta).min() >= 0 and (x + delta).max() <= 1


def test_naive_is_epsilon_tanh_of_the_image_alone():
    def never(x):
        raise AssertionError("Naive L2L does not ask the classifier")

    g, (x, y) = attacker(NaiveAttacker).eval(), batch()
    expected = (x + 0.1 * torch.tanh(g.network(x))).clamp(0, 1) - x
    torch.testing.assert_close(g(never, x, y), expected)
    torch.testing.assert_close(g(never, x, (y + 1) % 4), expected)


class Spy(nn.Module):
    """Keeps what it is fed, and answers zeros."""

    def forward(self, x):
        self.seen = x
        return torch.zeros_like(x[:, :3])


@pytest.mark.parametrize("scaling", ["per-image", "batch-max", "none"])
def test_grad_is_fed_the_image_and_the_scaled_gradient(scaling):
    f, (x, y) = classifier(), batch()
    g = attacker(gradient=scaling)
    g.network = Spy()
    g(f, x, y)
    gradient = mean_gradient(f, x, y)
    if scaling == "per-image":
        gradient = torch.stack([row / row.abs().max() for row in gradient])
    elif scaling == "batch-max":
        gradient = gradient / gradient.abs().max()  # the authors' formula
    else:
        gradient = gradient * len(x)  # each image's own ∇ₓℓ, as the papers print it
    torch.testing.assert_close(g.network.seen, torch.cat([x, gradient], 1))
    assert not g.network.seen.requires_grad


@settings(max_examples=10)
@given(st.integers(0, 1000), st.permutations(range(6)), st.integers(1, 6))
def test_per_image_scaling_does_not_see_the_batch(seed, order, count):
    f, (x, y) = classifier(), batch(6, seed=seed)
    g, part = attacker().eval(), torch.tensor(order[:count])
    whole = g(f, x, y)
    torch.testing.assert_close(g(f, x[part], y[part]), whole[part], rtol=0, atol=1e-10)
    assert not g.batch_dependent


def test_batch_max_scaling_does_see_the_batch():
    f, (x, y) = classifier(), batch(6)
    g = attacker(gradient="batch-max").eval()
    single = torch.cat([g(f, x[i : i + 1], y[i : i + 1]) for i in range(6)])
    assert not torch.allclose(single, g(f, x, y), atol=1e-4)
    assert g.batch_dependent


def two_steps(g, f, x, y, detach=False):
    """2-Step L2L by hand, with the same network twice and a projection after each step."""

    def inside(delta):
        delta = delta.clamp(-g.epsilon, g.epsilon)
        return torch.minimum(torch.maximum(delta, -x), 1 - x)

    def step(at):
        gradient = mean_gradient(f, at, y)
        largest = gradient.abs().flatten(1).max(1).values.view(-1, 1, 1, 1)
        return g.epsilon * torch.tanh(g.network(torch.cat([at, gradient / largest], 1)))

    first = inside(step(x))
    if detach:
        first = first.detach()
    return first, inside(first + step(x + first))


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_two_steps_by_hand(mode):
    f, (x, y) = classifier(), batch()
    g = attacker(steps=2).train(mode == "train")
    expected = two_steps(g, f, x, y)
    got = list(g.iterates(f, x, y))
    assert len(got) == 2
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
    # The projection is at work: unprojected, the two steps leave the ball.
    assert (expected[1].abs() > g.epsilon - 1e-9).any()


def test_gradients_reach_phi_through_the_first_perturbation():
    f, (x, y) = classifier(), batch()
    g = attacker(steps=2).eval()
    weights = list(g.network.parameters())

    def ascent(delta):
        return torch.autograd.grad(F.cross_entropy(f(x + delta), y), weights)

    got = ascent(g(f, x, y))
    whole = ascent(two_steps(g, f, x, y)[1])
    cut = ascent(two_steps(g, f, x, y, detach=True)[1])
    for a, b in zip(got, whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-12)
    sizes = [(a - c).norm() / a.norm().clamp(min=1e-12) for a, c in zip(got, cut, strict=True)]
    assert max(sizes) > 0.01


@pytest.mark.parametrize("scaling", ["per-image", "batch-max", "none"])
def test_a_zero_gradient_is_no_nan(scaling):
    f, (x, y) = classifier(), batch()
    nn.init.zeros_(f[-1].weight)
    g = attacker(gradient=scaling, steps=2)
    delta = g(f, x, y)
    F.cross_entropy(f(x + delta), y).backward()
    assert delta.isfinite().all()
    assert all(p.grad.isfinite().all() for p in g.parameters())


def test_a_uniform_start_is_a_point_of_the_ball_that_the_generator_draws():
    """One step from a random δ⁰ is the projected step at x + δ⁰; two calls differ."""
    f, g, (x, y) = classifier(), attacker(), batch()
    g.eval().start = "uniform"
    rng = [torch.Generator().manual_seed(i) for i in range(len(x))]
    found = g(f, x, y, rng)
    drawn = torch.stack(
        [torch.rand(x.shape[1:], generator=torch.Generator().manual_seed(i)) for i in range(len(x))]
    ).double()
    start = (x + 0.1 * (2 * drawn - 1)).clamp(0, 1) - x
    gradient = mean_gradient(f, x + start, y)
    gradient = gradient / gradient.abs().amax((1, 2, 3), keepdim=True)
    step = 0.1 * g.network(torch.cat([x + start, gradient], 1)).tanh()
    wanted = (x + (start + step).clamp(-0.1, 0.1)).clamp(0, 1) - x
    torch.testing.assert_close(found, wanted)
    assert not torch.equal(g(f, x, y), g(f, x, y))
