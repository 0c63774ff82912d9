"""L2L-DA's generator and AdvGAN: by hand, by plain autograd, and by the laws of every attack."""

from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from test_learned import batch, classifier, mean_gradient
from torch import nn

from l2lkit.diverse.advgan import AdvGANAttacker
from l2lkit.diverse.generator import Diverse, DiverseAttacker, spread
from l2lkit.errors import InputError
from l2lkit.game.cw import margin
from l2lkit.game.evaluate import perturb, trajectory
from l2lkit.game.learned import GradAttacker
from l2lkit.game.recipe import Optimiser
from l2lkit.game.solver import going_on
from l2lkit.game.step import Players, step
from l2lkit.game.unet import UNETS, ConditionalBatchNorm, UNet
from l2lkit.recipes import RECIPES, against


def diverse(seed=3, **options):
    """A generator of visible perturbations, whose batch norms have seen a batch."""
    torch.manual_seed(seed)
    g = DiverseAttacker(3, 4, 0.1, width=1 / 16, **options).double()
    for module in g.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.xavier_uniform_(module.weight, 2.0)
    f, (x, y) = classifier(), batch()
    g.train()(f, x, y)
    return g.eval()


# The network -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", UNETS)
def test_latent_and_class_are_felt_and_only_where_they_are_inputs(name):
    torch.manual_seed(0)
    net = UNet(name, 3, 3, 1 / 8, latent=8, classes=4).eval()
    nn.init.normal_(net.norms[0].bias.weight)
    x, y, z = torch.rand(2, 3, 8, 8), torch.tensor([0, 1]), torch.randn(2, 8)
    mixed = net.mix(z, (8, 8))
    out = net(x, y, mixed)
    assert out.shape == (2, 3, 8, 8)
    assert not torch.allclose(out, net(x, y, net.mix(z + 1, (8, 8))))
    assert not torch.allclose(out, net(x, y.flip(0), mixed))
    plain = UNet(name, 3, 3, 1 / 8).eval()
    assert torch.equal(plain(x, y, plain.mix(z, (8, 8))), plain(x, y.flip(0)))


@pytest.mark.parametrize("name", UNETS)
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_z_joins_the_input_of_every_layer_down(layer, name):
    """What the two convolutions add up to is one convolution of the layer's input with z tiled
    beside it: z itself, as the text has it, or what two layers with ReLU make of it."""
    net = UNet(name, 6, 3, 1 / 8, latent=8).double().eval()
    conv, conv_z = net.down[layer], net.down_z[layer]
    x, z = torch.rand(2, 6, 8, 8).double(), torch.randn(2, 8).double()
    seen = {}
    conv.register_forward_hook(lambda module, given, out: seen.update(x=given[0], out=out))
    mixed = net.mix(z, (8, 8))
    net(x, None, mixed)
    if name.startswith("unet-code"):
        for linear in (net.encoder[0], net.encoder[2]):
            z = (z @ linear.weight.T + linear.bias).clamp(min=0)
    tiled = z[:, :, None, None].expand(-1, -1, *seen["x"].shape[2:])
    joined = F.conv2d(
        torch.cat([seen["x"], tiled], 1),
        torch.cat([conv.weight, conv_z.weight], 1),
        conv.bias,
        conv.stride,
        conv.padding,
    )
    torch.testing.assert_close(seen["out"] + mixed[layer], joined)


def test_a_folded_network_works_on_two_by_two_pixels_with_twice_the_channels():
    torch.manual_seed(0)
    net = UNet("unet-folded", 3, 1, 1 / 8, latent=8, classes=4).eval()
    same = UNet("unet", 12, 4, 1 / 4, latent=8, classes=4).eval()
    same.load_state_dict(net.state_dict())
    x, y, z = torch.rand(2, 3, 16, 8), torch.tensor([0, 1]), torch.randn(2, 8)
    corners = torch.stack(
        [x[:, c, i::2, j::2] for c in range(3) for i in range(2) for j in range(2)], 1
    )
    small = same(corners, y, same.mix(z, (8, 4)))
    out = net(x, y, net.mix(z, (16, 8)))
    for k, (i, j) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        torch.testing.assert_close(out[:, 0, i::2, j::2], small[:, k])


def test_the_authors_network_layer_by_layer():
    """64, 64 and 128 channels down, no bias in any convolution, and norms behind the second layer
    down and the two up, the innermost layer having none."""
    net = UNet("unet-code", 3, 1, latent=8, classes=10)
    wanted = [(3, 64, 3, 1), (64, 64, 4, 2), (64, 128, 4, 2), (128, 64, 4, 2), (128, 64, 4, 2)]
    wanted.append((128, 1, 3, 1))
    layers = [*net.down, *net.up, net.last]
    described = [(m.in_channels, m.out_channels, m.kernel_size[0], m.stride[0]) for m in layers]
    assert described == wanted
    assert all(m.bias is None for m in (*layers, *net.down_z))
    assert [isinstance(n, ConditionalBatchNorm) for n in net.norms] == [True, False, True, True]
    assert [tuple(e.shape) for e in net.norms[0].parameters()] == [(1, 64), (10, 64)]
    assert all(n.norm.eps == 1e-10 for n in net.norms if isinstance(n, ConditionalBatchNorm))


@pytest.mark.parametrize("shared", [False, True])
def test_conditional_norm_by_hand(shared):
    norm = ConditionalBatchNorm(2, 3, shared)
    nn.init.normal_(norm.gain.weight), nn.init.normal_(norm.bias.weight)
    x, y = torch.randn(5, 2, 4, 4), torch.tensor([0, 2, 1, 1, 0])
    mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
    epsilon = 1e-10 if shared else 1e-5
    scaled = (x - mean[:, None, None]) / (variance[:, None, None] + epsilon).sqrt()
    for i, label in enumerate(y):
        gain, bias = norm.gain.weight[0 if shared else label], norm.bias.weight[label]
        torch.testing.assert_close(
            norm(x, y)[i], gain[:, None, None] * scaled[i] + bias[:, None, None]
        )


# The attack --------------------------------------------------------------------------------


def test_one_step_without_y_delta_and_z_is_the_2018_grad_attacker_with_the_unet():
    """Same φ, same perturbation: ε tanh g(x, ∇ₓℓ), projected."""
    bare = diverse(steps=1, latent=0, labels=False, accumulated=False, gradient="none")
    grad = GradAttacker("unet", 3, 0.1, width=1 / 16, gradient="none").double().eval()
    grad.network.load_state_dict(bare.network.state_dict())
    f, (x, y) = classifier(), batch()
    assert torch.equal(bare(f, x, y), grad(f, x, y))
    assert bare(f, x, y).abs().max() > 0.01


@pytest.mark.parametrize("network", UNETS)
def test_two_steps_by_hand(network):
    """Equation 5 written out: the network sees x, and the gradient at x_adv over its norm per image
    and channel; δ is clipped to ±ε and x_adv to [0, 1]."""
    g, f, (x, y) = diverse(steps=2, network=network), classifier(), batch()
    x[:, :, :4] = 0  # there δ may be negative, and what is added to the image may not
    rng = [torch.Generator().manual_seed(i) for i in range(len(x))]
    z = torch.stack(
        [torch.randn(8, generator=torch.Generator().manual_seed(i)) for i in range(len(x))]
    ).double()
    delta, attacked = torch.zeros_like(x), x
    for found in g.iterates(f, x, y, rng):
        gradient = mean_gradient(f, attacked, y)
        gradient = gradient / gradient.flatten(2).norm(dim=2)[..., None, None]
        out = g.network(torch.cat([x, gradient, delta], 1), y, g.mix(z, x)).tanh()
        delta = (delta + 0.1 / 4 * out).clamp(-0.1, 0.1).detach()
        attacked = (x + delta).clamp(0, 1)
        torch.testing.assert_close(found, attacked - x)
    assert delta[:, :, :4].min() < 0


@pytest.mark.parametrize("accumulated", [True, False])
def test_a_generator_without_delta_as_input_does_not_see_it(accumulated):
    """Table 1b. With one gradient and another δ so far, the step it takes is the same."""
    g, (x, y) = diverse(accumulated=accumulated), batch()
    mixed, gradient = g.mix(torch.zeros(len(x), 8).to(x), x), torch.rand_like(x)
    here, there = torch.zeros_like(x), torch.full_like(x, 0.05)
    one, two = (g.step(x, y, delta, gradient, mixed) - delta for delta in (here, there))
    assert torch.allclose(one, two) == (not accumulated)


@settings(max_examples=15)
@given(
    epsilon=st.floats(0, 1),
    steps=st.integers(1, 4),
    latent=st.sampled_from([0, 8]),
    labels=st.booleans(),
    accumulated=st.booleans(),
    kind=st.sampled_from(["spatial", "none"]),
)
def test_stays_in_the_ball_and_in_the_image_range(
    epsilon, steps, latent, labels, accumulated, kind
):
    g = diverse(steps=steps, latent=latent, labels=labels, accumulated=accumulated, gradient=kind)
    g.epsilon = epsilon
    f, (x, y) = classifier(), batch()
    for delta in g.iterates(f, x, y):
        assert delta.abs().max() <= epsilon + 1e-12
        assert (x + delta).min() >= -1e-12 and (x + delta).max() <= 1 + 1e-12
    if epsilon == 0 or epsilon > 1e-3:
        assert torch.equal(delta, torch.zeros_like(x)) == (epsilon == 0)


def test_draws_differ_and_a_seed_repeats_them_whatever_the_batch():
    g, f, (x, y) = diverse(), classifier(), batch()
    assert g.stochastic and not torch.equal(g(f, x, y), g(f, x, y))
    one = perturb(f, g, x, y, seed=5)
    torch.testing.assert_close(one, perturb(f, g, x, y, seed=5, batch_size=1))
    assert not torch.equal(one, perturb(f, g, x, y, seed=6))
    still = diverse(latent=0)
    assert not still.stochastic and torch.equal(still(f, x, y), still(f, x, y))


def test_trajectory_has_all_steps():
    g, f, (x, y) = diverse(), classifier(), batch()
    run = trajectory(f, g, x, y)
    assert run.steps == tuple(range(11)) and (run.delta[1:] > 0).all()


# What φ climbs -----------------------------------------------------------------------------


def test_spread_by_hand():
    images = torch.tensor([[0.0, 0.0], [1.0, 2.0], [0.5, -0.5], [1.0, 0.0]]).view(4, 1, 1, 2)
    z = torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [1.0, -1.0, 4.0], [1.0, 1.0, 0.5]])
    # The images differ by 0.5 and 0.5, by 0 and 2; z by 1, 1, 4 and by 0, 0, 0.5.
    assert spread(images, z).item() == pytest.approx((0.5 / 2 + 1 / (0.5 / 3)) / 2)


@pytest.mark.parametrize("latent", [0, 8])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("diversity", [0.0, 0.7])
@pytest.mark.parametrize("objective", ["mean", "sum"])
def test_the_objective_has_the_gradient_of_equation_8(latent, steps, diversity, objective):
    """Against plain autograd: T losses, each a pass of its own, and the diversity of the whole
    path, for the same two z. The gradient fed to the network stays a constant."""
    settings = {"steps": steps, "latent": latent, "diversity": diversity, "objective": objective}
    g, f, (x, y) = diverse(**settings), classifier(), batch()
    x[:, :, :2] = 0
    torch.manual_seed(11)
    _, _, delta, value = g.play(f, x, y)
    found = torch.autograd.grad(value, list(g.parameters()), allow_unused=True)

    draws = 2 if latent else 1
    torch.manual_seed(11)
    xs, ys, z = x.repeat(draws, 1, 1, 1), y.repeat(draws), torch.randn(draws * len(x), latent)
    z = z.to(x.dtype)
    moved, total = torch.zeros_like(xs), 0.0
    for _ in range(steps):
        gradient = mean_gradient(f, (xs + moved).clamp(0, 1), ys)
        moved = g.step(xs, ys, moved, gradient, g.mix(z, xs))
        attacked = (xs + moved).clamp(0, 1)
        total = total + F.cross_entropy(f(attacked), ys)
        if latent:
            (a, b), (za, zb) = attacked.chunk(2), z.chunk(2)
            apart = (a - b).abs().sum((1, 2, 3)) / a[0].numel()
            total = total + diversity * (apart / ((za - zb).abs().sum(1) / latent)).mean()
    climbed = total if objective == "sum" else total / steps
    wanted = torch.autograd.grad(climbed, list(g.parameters()), allow_unused=True)
    torch.testing.assert_close(delta, attacked - xs)
    assert len(delta) == draws * len(x)
    for mine, theirs in zip(found, wanted, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            torch.testing.assert_close(mine, theirs, atol=1e-9, rtol=1e-6)
    assert max(t.abs().max() for t in wanted if t is not None) > 1e-6


@pytest.mark.parametrize("latent", [0, 8])
def test_clean_images_join_the_batch_of_the_authors_code(latent):
    g, f, (x, y) = diverse(latent=latent, with_clean=True), classifier(), batch()
    images, labels, delta, _ = g.play(f, x, y)
    draws = 2 if latent else 1
    assert torch.equal(images, x.repeat(draws + 1, 1, 1, 1))
    assert torch.equal(labels, y.repeat(draws + 1))
    assert not delta[-len(x) :].any() and delta[: -len(x)].abs().amax((1, 2, 3)).min() > 0


def test_the_objective_leaves_the_classifier_alone():
    g, f, (x, y) = diverse(), classifier(), batch()
    before = {k: v.clone() for k, v in f.state_dict().items()}
    value = g.play(f, x, y).value
    value.backward(inputs=list(g.parameters()))
    assert all(p.grad is None for p in f.parameters())
    assert all(torch.equal(v, before[k]) for k, v in f.state_dict().items())


def small(recipe, **changes):
    attack = replace(recipe.attack, width=1 / 16, **changes)
    return replace(recipe, attack=attack, classifier="wrn-10-1", batch_size=8, warm_start=None)


@pytest.mark.parametrize("variant", ["", "@code"])
def test_a_step_of_the_game_by_hand(colours, variant):
    """With plain SGD, both from where they stood before the step. Algorithm 1: φ up its objective,
    θ down ℓ(x) + ℓ(x + δ) on both draws. The authors' code: θ down the mean loss of one batch of
    clean images and both draws, and no gradient longer than 1."""
    recipe = small(RECIPES[f"l2l-da-cifar10/full{variant}"], steps=2)
    plain = replace(recipe.optimiser, momentum=0.0, weight_decay=0.0, milestones=())
    recipe = replace(recipe, optimiser=plain, attacker_optimiser=plain)
    torch.manual_seed(0)
    one = Players.build(recipe, colours, torch.device("cpu"))
    two = Players.build(recipe, colours, torch.device("cpu"))
    two.load(one.state())
    x, y = colours.train_images[:8].float() / 255, colours.train_labels[:8]
    one.classifier.train(), two.classifier.train()
    torch.manual_seed(1)
    loss, logits, delta = step(one, x, y)
    assert logits.shape == (8, 4) and delta.shape == x.shape

    f, g = two.classifier, two.attack
    torch.manual_seed(1)
    f.eval()
    _, _, deltas, value = g.play(f, x, y)
    climb = torch.autograd.grad(value, list(g.parameters()))
    f.train()
    attacked = x.repeat(2, 1, 1, 1) + deltas[:16].detach()
    if variant:
        total = F.cross_entropy(f(torch.cat([attacked, x])), y.repeat(3))
        assert loss.item() == pytest.approx(total.item())
    else:
        adversarial = F.cross_entropy(f(attacked), y.repeat(2))
        assert loss.item() == pytest.approx(adversarial.item())
        total = adversarial + F.cross_entropy(f(x), y)
    fall = torch.autograd.grad(total, list(f.parameters()))
    for module, gradient, sign in ((g, climb, 1), (f, fall, -1)):
        length = sum(d.pow(2).sum() for d in gradient).sqrt()
        rate = 0.01 * (min(1.0, 1 / length) if variant else 1.0)
        with torch.no_grad():
            for p, d in zip(module.parameters(), gradient, strict=True):
                p += sign * rate * d
    for mine, theirs in ((one.classifier, f), (one.attack, g)):
        for p, q in zip(mine.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(p, q, atol=1e-6, rtol=1e-4)


def test_a_trained_generator_goes_on_from_where_it_stands(colours):
    model = small(RECIPES["l2l-da-cifar10/full"], steps=2)
    trained = diverse(steps=2).float()
    climb = Optimiser(lr=0.01)
    tuned, other = (
        against(model, partial(going_on, g), climb, "L2L-DA", epochs=1)
        for g in (trained, diverse(seed=4, steps=2).float())
    )
    game = Players.build(tuned, colours, torch.device("cpu"))
    for p, q in zip(game.attack.parameters(), trained.parameters(), strict=True):
        assert torch.equal(p, q) and p is not q
    assert tuned.key() != other.key()


@pytest.mark.parametrize(
    "attack", [Diverse(steps=2, width=1 / 16), RECIPES["l2l-da/l2l-star"].attack]
)
def test_against_a_fixed_classifier_only_the_attacker_moves(colours, attack):
    model = small(RECIPES["l2l-da-cifar10/full"], steps=2)
    recipe = against(model, attack, Optimiser(lr=0.01), "L2L-DA attacker", epochs=1)
    torch.manual_seed(0)
    game = Players.build(recipe, colours, torch.device("cpu"))
    before = {k: v.clone() for k, v in game.classifier.state_dict().items()}
    phi = [p.clone() for p in game.attack.parameters()]
    step(game, colours.train_images[:8].float() / 255, colours.train_labels[:8])
    assert all(torch.equal(v, before[k]) for k, v in game.classifier.state_dict().items())
    assert any(not torch.equal(p, q) for p, q in zip(game.attack.parameters(), phi, strict=True))


# AdvGAN ------------------------------------------------------------------------------------


def test_advgan_climbs_the_margin_while_its_critic_learns():
    """One ascent of the objective: for g the gradient of −hinge + realism · cross-entropy, for the
    critic that of −realism · cross-entropy."""
    torch.manual_seed(4)
    g = AdvGANAttacker(3, 0.1, width=1 / 16, realism=0.3).double().eval()
    f, (x, y) = classifier(), batch()
    _, _, delta, value = g.play(f, x, y)
    mine = torch.autograd.grad(value, list(g.parameters()))
    again = g(f, x, y)
    torch.testing.assert_close(delta, again)
    told = g.critic(torch.cat([x, x + again]))[:, 0]
    truth = torch.cat([torch.ones(4), torch.zeros(4)]).double()
    entropy = F.binary_cross_entropy_with_logits(told, truth)
    hinge = margin(f(x + again), y).clamp(min=0).mean()
    assert value.item() == pytest.approx((0.3 * entropy - hinge).item())
    for module, sign in ((g.network, 1), (g.critic, -1)):
        weights = list(module.parameters())
        total = 0.3 * entropy - hinge if sign > 0 else -0.3 * entropy
        wanted = torch.autograd.grad(total, weights, retain_graph=True)
        names = [n for n, _ in g.named_parameters()]
        prefix = "network" if sign > 0 else "critic"
        got = [m for n, m in zip(names, mine, strict=True) if n.startswith(prefix)]
        for a, b in zip(got, wanted, strict=True):
            torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-6)


def in_turns():
    return replace(small(RECIPES["l2l-da-cifar10/full"]), update="alternating")


# Bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DiverseAttacker(epsilon=-0.1), "ε must be"),
        (lambda: DiverseAttacker(steps=0), "steps must be"),
        (lambda: DiverseAttacker(gradient="sign"), "gradient must be one of spatial, none"),
        (lambda: Diverse(diversity=-1.0), "diversity must be 0 or more"),
        (lambda: Diverse(gradient="sign"), "gradient must be one of"),
        (lambda: Diverse(network="v2-wide"), "network must be one of unet, unet-code"),
        (lambda: Diverse(objective="max"), "objective must be one of mean, sum"),
        (lambda: Optimiser(clip=-1.0), "clip must be 0 or more"),
        (lambda: AdvGANAttacker(epsilon=2.0), "ε must be"),
        (lambda: in_turns().solver((8, 3, 16, 16), 10), "use simultaneous"),
        (lambda: replace(RECIPES["iclr2020/pgm"], optimiser=None), "nothing learns"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
