"""The classifiers: numbers of parameters by hand, shapes, and what each does to its input."""

import pytest
import torch
from torch import nn

from l2lkit.errors import InputError
from l2lkit.game.classifiers import make_classifier
from l2lkit.game.cpu import pooled


def count(name, classes=10, channels=3, size=32):
    with torch.device("meta"):  # counts without filling 46 million numbers
        return sum(p.numel() for p in make_classifier(name, classes, channels, size).parameters())


def wide(depth, k, classes):
    """Wide ResNet, layer by layer: convolutions without bias, batch norm 2 a channel."""
    total, cin = 9 * 3 * 16, 16
    for cout in (16 * k, 32 * k, 64 * k):
        for _ in range((depth - 4) // 6):
            total += 2 * cin + 9 * cin * cout + 2 * cout + 9 * cout * cout
            total += cin * cout if cin != cout else 0  # 1×1 shortcut
            cin = cout
    return total + 2 * cin + cin * classes + classes


def basic(widths, blocks, projection, classes):
    """CIFAR ResNet: two 3×3 convolutions and batch norms a block, a 1×1 one where it projects."""
    total, cin = 9 * 3 * widths[0] + 2 * widths[0], widths[0]
    for cout in widths:
        for _ in range(blocks):
            total += 9 * cin * cout + 9 * cout * cout + 4 * cout
            total += (cin * cout + 2 * cout) if projection and cin != cout else 0
            cin = cout
    return total + cin * classes + classes


@pytest.mark.parametrize(
    ("name", "by_hand", "published"),
    [
        ("wrn-34-10", wide(34, 10, 10), 46.16e6),
        ("wrn-28-10", wide(28, 10, 10), 36.5e6),  # Zagoruyko and Komodakis, Table 4
        ("wrn-16-4", wide(16, 4, 10), 2.75e6),
        ("wrn-10-1", wide(10, 1, 10), 0.08e6),
        ("resnet-18", basic((64, 128, 256, 512), 2, True, 10), 11_173_962),
        ("resnet-20", basic((16, 32, 64), 3, False, 10), 269_722),  # 0.27 M in He et al.
    ],
)
def test_number_of_parameters(name, by_hand, published):
    assert count(name) == by_hand
    assert by_hand == pytest.approx(published, rel=0.005 if by_hand > 1e5 else 0.05)


def test_option_a_saves_what_projections_cost():
    """272,474, the number often quoted for ResNet-20, is that of 1×1 shortcuts (option B)."""
    assert basic((16, 32, 64), 3, True, 10) == 272_474
    assert count("resnet-20") == 272_474 - (16 * 32 + 2 * 32) - (32 * 64 + 2 * 64)


def test_number_of_parameters_of_lenet():
    convolutions = (25 * 1 * 6 + 6) + (25 * 6 * 16 + 16)
    dense = (400 * 120 + 120) + (120 * 84 + 84) + (84 * 10 + 10)
    assert count("lenet-5", channels=1, size=28) == convolutions + dense == 61_706
    assert count("lenet-5", channels=1, size=32) == 61_706


@pytest.mark.parametrize(
    "name", ["wrn-10-1", "wrn-10-2-stride2", "resnet-18", "resnet-20", "lenet-5"]
)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [28, 32])
def test_output_shape(name, channels, size):
    f = make_classifier(name, 7, channels, size).eval()
    with torch.no_grad():
        assert f(torch.rand(2, channels, size, size)).shape == (2, 7)


@pytest.mark.parametrize(
    "name",
    [
        "wrn-32-4",
        "wrn-4-1",
        "wrn-0-1",
        "wrn-10-0",
        "wrn-34",
        "wrn-34-10-1",
        "resnet-19",
        "WRN-34-10",
        "vgg",
        "",
    ],
)
def test_what_does_not_exist_is_refused(name):
    with pytest.raises(InputError, match="choose|does not exist"):
        make_classifier(name, 10)


def test_stride2_is_the_same_network_on_every_other_place_of_its_first_convolution():
    torch.manual_seed(0)
    f, half = (make_classifier(name, 10).eval() for name in ("wrn-10-1", "wrn-10-1-stride2"))
    half.load_state_dict(f.state_dict())
    x = torch.rand(2, 3, 32, 32)
    f.features[0].register_forward_hook(lambda module, given, out: out[:, :, ::2, ::2])
    torch.testing.assert_close(half(x), f(x))


def test_lenet_refuses_another_size():
    with pytest.raises(InputError, match="28×28 or 32×32"):
        make_classifier("lenet-5", 10, size=16)


def test_stages_halve_the_image_twice():
    """Images of 32×32 reach the pooling as 8×8 with 64·k channels."""
    f = make_classifier("wrn-10-2", 10).eval()
    assert f.features(torch.rand(1, 3, 32, 32)).shape == (1, 128, 8, 8)


def test_pre_activation_block_by_hand():
    """A block of equal widths adds to its input; one that changes shape has its shortcut after
    the first activation. In eval mode a fresh batch norm divides by √(1 + 1e-5)."""
    f = make_classifier("wrn-16-1", 10).double().eval()
    norm = (1 + 1e-5) ** -0.5
    x = torch.randn(2, 16, 8, 8, dtype=torch.float64)

    def branch(block):
        h = (x * norm).relu()
        return h, block.conv2((block.conv1(h) * norm).relu())

    same, change = f.features[1], f.features[3]
    torch.testing.assert_close(same(x), x + branch(same)[1])
    h, inner = branch(change)
    torch.testing.assert_close(change(x), change.shortcut(h) + inner)
    assert change(x).shape == (2, 32, 4, 4)


def test_option_a_subsamples_and_pads_with_zeros():
    _, net = make_classifier("resnet-20", 10).double().eval()
    block = next(b for b in net.features if getattr(b, "stride", 1) == 2)
    nn.init.zeros_(block.bn2.weight)  # only the shortcut is left
    x = torch.randn(2, 16, 8, 8, dtype=torch.float64)
    out = block(x)
    torch.testing.assert_close(out[:, :16], x[:, :, ::2, ::2].relu())
    assert out.shape == (2, 32, 4, 4) and not out[:, 16:].any()


def test_resnet_20_normalises_inside():
    f = make_classifier("resnet-20", 10)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1).expand(2, 3, 8, 8)
    assert not f[0](mean).any()
    # One deviation above the mean is one in every channel.
    std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    torch.testing.assert_close(f[0](mean + std), torch.ones(2, 3, 8, 8))


@pytest.mark.parametrize("name", ["wrn-10-1", "resnet-18"])
def test_the_others_take_the_image_as_it_is(name):
    f = make_classifier(name, 10).eval()
    x, seen = torch.rand(2, 3, 8, 8), []
    first = next(m for m in f.modules() if isinstance(m, nn.Conv2d))
    first.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    f(x)
    assert torch.equal(seen[0], x)


def test_the_mean_over_the_pixels_and_a_gradient_that_keeps_the_layout():
    x = torch.arange(2 * 3 * 4 * 6.0).view(2, 3, 4, 6).to(memory_format=torch.channels_last)
    # Rows of 24 numbers one after another: the mean of k, …, k + 23 is k + 11.5.
    expected = 24 * torch.arange(6.0).view(2, 3) + 11.5
    torch.testing.assert_close(pooled(x), expected)
    weights = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    (gradient,) = torch.autograd.grad((pooled(x.requires_grad_()) * weights).sum(), x)
    torch.testing.assert_close(gradient, (weights / 24)[:, :, None, None].expand_as(x))
    assert gradient.is_contiguous(memory_format=torch.channels_last)
