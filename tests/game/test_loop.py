"""The training loop: single steps against steps written by hand, whole runs against themselves."""

import random
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from l2lkit.errors import InputError
from l2lkit.game import loop
from l2lkit.game import step as game_step
from l2lkit.game.classifiers import make_classifier
from l2lkit.game.fixed import FGSM, PGM
from l2lkit.game.free import Free
from l2lkit.game.loop import train
from l2lkit.game.orders import step_as_printed, step_in_turns
from l2lkit.game.recipe import Optimiser, Recipe
from l2lkit.game.step import Players
from l2lkit.recipes import PROFILES, RECIPES, at_scale, recipe

PLAIN_SGD = Optimiser(lr=0.05, momentum=0.0, weight_decay=0.0)
COLUMNS = [
    "epoch",
    "train_loss",
    "train_accuracy",
    "delta",
    "clean_loss",
    "clean_accuracy",
    "adv_loss",
    "adv_accuracy",
    "lr",
    "attacker_lr",
    "seconds",
]


def tiny(name="grad", **changes) -> Recipe:
    """The recommended recipe, small, and with optimisers that do nothing but θ ∓ lr·∇."""
    small = replace(
        recipe(name),
        classifier="wrn-10-1",
        epochs=1,
        batch_size=16,
        optimiser=PLAIN_SGD,
    )
    if small.learned:
        learned = replace(small.attack, network="2018", width=1 / 8, epsilon=0.1)
        slow = replace(PLAIN_SGD, lr=0.02)
        small = replace(small, attack=learned, attacker_optimiser=slow)
    return replace(small, **changes)


def free(attack):
    return tiny("plain", attack=attack, attacker_optimiser=attack.optimiser, batch_size=32)


def play(game, x, y):
    """The step that the recipe's update asks for."""
    steps = {"printed": step_as_printed, "alternating": step_in_turns}
    return steps.get(game.recipe.update, game_step.step)(game, x, y)


def players(recipe, data, seed=0):
    """In float64, and with batch norms that have seen a batch, so that modes matter."""
    torch.manual_seed(seed)
    game = Players.build(recipe, data, torch.device("cpu"))
    game.classifier.double().train()
    x, y = batch(data, slice(16, 48))
    game.classifier(x)
    if isinstance(game.attack, nn.Module):
        game.attack.double().train()
        game.attack(game.classifier, x, y)
    return game


def batch(data, part=slice(0, 16)):
    return data.train_images[part].double() / 255, data.train_labels[part]


def perturb(g, f, x, y):
    """Grad L2L's perturbation: the image and its gradient, each image's divided by its largest."""
    at = x.clone().requires_grad_()
    gradient = torch.autograd.grad(F.cross_entropy(f(at), y, reduction="sum"), at)[0]
    gradient = gradient / gradient.abs().flatten(1).max(1).values.view(-1, 1, 1, 1)
    delta = g.epsilon * torch.tanh(g.network(torch.cat([x, gradient], 1)))
    return (x + delta).clamp(0, 1) - x


def step(module, loss, rate):
    """The module's parameters after θ + rate·∇loss."""
    parameters = list(module.parameters())
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True)
    return [(p + rate * g).detach() for p, g in zip(parameters, gradients, strict=True)]


def same(parameters, expected):
    for p, e in zip(parameters, expected, strict=True):
        torch.testing.assert_close(p.detach(), e, rtol=0, atol=1e-11)


def change(before, after):
    return sum((a - b).abs().sum().item() for a, b in zip(before, after, strict=True))


# One step ----------------------------------------------------------------------------------


@pytest.mark.parametrize("clean_weight", [0.0, 0.7])
def test_a_simultaneous_step_by_hand(colours, clean_weight):
    game, (x, y) = players(tiny(clean_weight=clean_weight), colours), batch(colours)
    f, g = deepcopy(game.classifier), deepcopy(game.attack)
    f.eval()  # for the query only
    delta = perturb(g, f, x, y)
    f.train()
    logits = f(x + delta)
    loss = F.cross_entropy(logits, y)
    total = loss + (clean_weight * F.cross_entropy(f(x), y) if clean_weight else 0)
    theta, phi = step(f, total, -0.05), step(g, loss, +0.02)

    got = play(game, x, y)
    for mine, theirs in zip((loss, logits, delta), got, strict=True):
        torch.testing.assert_close(theirs, mine.detach())
        assert not theirs.requires_grad
    same(game.classifier.parameters(), theta)
    same(game.attack.parameters(), phi)
    # Batch statistics moved with the images trained on, and with nothing else.
    for a, b in zip(game.classifier.buffers(), f.buffers(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("clean_weight", [0.0, 0.7])
def test_an_alternating_step_by_hand(colours, clean_weight):
    """The classifier steps against the fixed φ, then the attacker against the new θ, in the modes
    of the authors' code."""
    changed = tiny(update="alternating", clean_weight=clean_weight)
    game, (x, y) = players(changed, colours), batch(colours)
    f, g = deepcopy(game.classifier), deepcopy(game.attack)
    f.train(), g.eval()
    with torch.enable_grad():
        delta = perturb(g, f, x, y).detach()
    loss = F.cross_entropy(f(x + delta), y)
    if clean_weight:
        loss = loss + clean_weight * F.cross_entropy(f(x), y)
    theta = step(f, loss, -0.05)
    for p, new in zip(f.parameters(), theta, strict=True):
        p.data.copy_(new)
    f.eval(), g.train()
    phi = step(g, F.cross_entropy(f(x + perturb(g, f, x, y)), y), +0.02)

    before = [p.clone() for p in game.attack.parameters()]
    play(game, x, y)
    same(game.classifier.parameters(), theta)
    same(game.attack.parameters(), phi)
    assert change(before, phi) > 1e-4


def moved(module, parameters):
    """The module with these parameters."""
    with torch.no_grad():
        for p, new in zip(module.parameters(), parameters, strict=True):
            p.copy_(new)
    return module


@pytest.mark.parametrize("clean_weight", [0.0, 1.0])
def test_a_printed_step_by_hand(colours, clean_weight):
    """Algorithm 2 of 2018 (with a clean step) and of the later versions: u and δ at the old θ, θ
    down, φ up on the new θ, u and δ not computed again; u is the gradient as it is."""
    changed = tiny(update="printed", clean_weight=clean_weight)
    changed = replace(changed, attack=replace(changed.attack, gradient="none"))
    game, (x, y) = players(changed, colours), batch(colours)
    f, g = deepcopy(game.classifier), deepcopy(game.attack)
    f.eval()
    at = x.clone().requires_grad_()
    u = torch.autograd.grad(F.cross_entropy(f(at), y, reduction="sum"), at)[0]
    delta = (x + 0.1 * torch.tanh(g.network(torch.cat([x, u], 1)))).clamp(0, 1) - x
    f.train()
    if clean_weight:
        moved(f, step(f, F.cross_entropy(f(x), y), -0.05))
    loss = F.cross_entropy(f(x + delta.detach()), y)
    moved(f, step(f, loss, -0.05))
    f.eval()
    phi = step(g, F.cross_entropy(f(x + delta), y), +0.02)

    before = [p.clone() for p in game.attack.parameters()]
    got = play(game, x, y)
    torch.testing.assert_close(got[0], loss.detach())
    torch.testing.assert_close(got[2], delta.detach())
    same(game.classifier.parameters(), f.parameters())
    same(game.attack.parameters(), phi)
    assert change(before, phi) > 1e-4
    for a, b in zip(game.classifier.buffers(), f.buffers(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_designed_attack_in_the_printed_order(colours):
    """Algorithm 1 of 2018: a clean step, then the attack on what it left, then a step on that."""
    fgsm = replace(tiny("fgsm"), attack=FGSM(epsilon=0.1), update="printed", clean_weight=1.0)
    game, (x, y) = players(fgsm, colours), batch(colours)
    f = deepcopy(game.classifier).train()
    moved(f, step(f, F.cross_entropy(f(x), y), -0.05))
    f.eval()
    at = x.clone().requires_grad_()
    gradient = torch.autograd.grad(F.cross_entropy(f(at), y), at)[0]
    attacked = (x + 0.1 * gradient.sign()).clamp(0, 1)
    f.train()
    theta = step(f, F.cross_entropy(f(attacked), y), -0.05)
    play(game, x, y)
    same(game.classifier.parameters(), theta)


@pytest.mark.parametrize(
    "attack", [None, FGSM(epsilon=0.1), PGM(epsilon=0.1, steps=3, step_size=0.05, start="zero")]
)
def test_a_step_against_a_fixed_attack_by_hand(colours, attack):
    small = replace(tiny("plain"), attack=attack)
    game, (x, y) = players(small, colours), batch(colours)
    f = deepcopy(game.classifier).eval()
    delta = torch.zeros_like(x)
    for _ in range(0 if attack is None else getattr(attack, "steps", 1)):
        at = (x + delta).requires_grad_()
        gradient = torch.autograd.grad(F.cross_entropy(f(at), y), at)[0]
        size = getattr(attack, "step_size", attack.epsilon)
        delta = (x + (delta + size * gradient.sign()).clamp(-0.1, 0.1)).clamp(0, 1) - x
    f.train()
    theta = step(f, F.cross_entropy(f(x + delta), y), -0.05)
    play(game, x, y)
    same(game.classifier.parameters(), theta)
    for a, b in zip(game.classifier.buffers(), f.buffers(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", ["naive", "grad", "2step"])
@pytest.mark.parametrize("update", ["simultaneous", "alternating"])
def test_the_classifier_goes_down_and_the_attacker_up(colours, kind, update):
    small = tiny(kind, update=update)
    small = replace(small, optimiser=replace(PLAIN_SGD, lr=1e-3))
    game, (x, y) = players(small, colours), batch(colours)
    f, g = deepcopy(game.classifier), deepcopy(game.attack)
    play(game, x, y)

    def loss(f, g, training):
        """The loss of both players' copies, in the modes in which the step was taken."""
        f, g = deepcopy(f).train(training), deepcopy(g).train(training)
        query = deepcopy(f).eval() if update == "simultaneous" else f
        delta = g(query, x, y).detach()
        return F.cross_entropy(f(x + delta), y).item()

    if update == "simultaneous":
        for player in (game.classifier, game.attack):
            player.train()
        assert loss(f, game.attack, True) > loss(f, g, True)
        f.eval()
        delta = g(f, x, y).detach()
        after, before = (
            F.cross_entropy(deepcopy(h).train()(x + delta), y) for h in (game.classifier, f)
        )
        assert after < before
        return
    delta = deepcopy(g).eval()(deepcopy(f).train(), x, y).detach()
    after, before = (
        F.cross_entropy(deepcopy(h).train()(x + delta), y) for h in (game.classifier, f)
    )
    assert after < before
    new = deepcopy(game.classifier).eval()

    def ascent(h):
        h = deepcopy(h).train()
        return F.cross_entropy(new(x + h(new, x, y)), y).item()

    assert ascent(game.attack) > ascent(g)


def test_free_training_is_its_algorithm(colours):
    """Two batches, three replays each: Algorithm 1 of Shafahi et al. (2019) by hand."""
    game = players(free(Free(epsilon=0.1, replays=3)), colours)
    f, delta = deepcopy(game.classifier), torch.zeros(16, 3, 16, 16, dtype=torch.float64)
    game.attack.double()
    for part in (slice(0, 16), slice(16, 32)):
        x, y = batch(colours, part)
        x = 0.05 + 0.9 * x  # off 0 and 1, where rounding decides what the range clips
        for _ in range(3):
            noise = delta.clone().requires_grad_()
            loss = F.cross_entropy(f((x + noise).clamp(0, 1)), y)
            (climb,) = torch.autograd.grad(loss, noise, retain_graph=True)
            theta = step(f, loss, -0.05)
            with torch.no_grad():
                for p, new in zip(f.parameters(), theta, strict=True):
                    p.copy_(new)
            delta = (delta + 0.1 * climb.sign()).clamp(-0.1, 0.1)
            play(game, x, y)
    same(game.classifier.parameters(), f.parameters())
    torch.testing.assert_close(game.attack.delta.detach()[:16].clamp(-0.1, 0.1), delta)
    assert 0.3 < delta.abs().mean() / 0.1 < 1  # signs turned: some pixels are back at zero


def test_free_replays_every_batch(colours):
    seen = []
    small = free(Free(epsilon=0.1, replays=3))
    with pytest.MonkeyPatch.context() as patch:
        one_step = game_step.step

        def watch(game, x, y, weight):
            seen.append(y.tolist())
            return one_step(game, x, y, weight)

        patch.setattr(loop, "step", watch)
        train(small, colours, seed=0)
    assert len(seen) == 6 and seen[0] == seen[1] == seen[2] != seen[3] == seen[4] == seen[5]


def test_free_perturbs_no_other_images(colours):
    game = players(free(Free()), colours)
    x, y = batch(colours, slice(0, 48))
    with pytest.raises(InputError, match="has none for images of shape"):
        game.attack(game.classifier, x, y)


def test_a_trades_step_by_hand(colours):
    """Clean cross-entropy plus β KL(f(x) ‖ f(x + δ)), with the gradient through both answers."""
    attack = PGM(epsilon=0.1, steps=2, step_size=0.06, start="gaussian", against="prediction")
    game = players(tiny("plain", attack=attack, trades=6.0), colours)
    x, y = batch(colours)
    f = deepcopy(game.classifier)
    f.eval()
    torch.manual_seed(5)
    delta = attack(f, x, y)
    f.train()
    log_q, p = f(x + delta).log_softmax(1), f(x).softmax(1)
    divergence = (p * (p.log() - log_q)).sum(1).mean()
    f_for_clean = F.cross_entropy(f(x), y)
    theta = step(f, f_for_clean + 6 * divergence, -0.05)
    torch.manual_seed(5)
    loss, _, got = play(game, x, y)
    torch.testing.assert_close(got, delta)
    torch.testing.assert_close(loss, F.cross_entropy(log_q, y).detach())  # what the log shows
    same(game.classifier.parameters(), theta)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kind", ["sgd", "nesterov", "adam", "sign"])
def test_three_steps_of_every_optimiser_by_hand(kind, layout):
    """Also where the gradient comes in another layout than the weight's."""
    rng = torch.Generator().manual_seed(0)
    start, *given = (torch.randn(4, 3, 3, 3, generator=rng, dtype=torch.float64) for _ in range(4))
    setting = {
        "sgd": Optimiser(lr=0.1, weight_decay=0.2),
        "nesterov": Optimiser(lr=0.1, weight_decay=0.2, nesterov=True),
        "adam": Optimiser(kind="adam", lr=0.1, betas=(0.5, 0.8), weight_decay=0.2),
        "sign": Optimiser(kind="sign", lr=0.1),
    }[kind]
    weight = nn.Parameter(start.clone(memory_format=layout))
    optimiser = setting.build([weight], ascend=False)
    w, m, v = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    for t, gradient in enumerate(given, 1):
        optimiser.zero_grad()
        (weight * gradient).sum().backward()
        optimiser.step()
        g = gradient + 0.2 * w
        if kind == "sign":
            w = w - 0.1 * gradient.sign()
        elif kind == "adam":
            m, v = 0.5 * m + 0.5 * g, 0.8 * v + 0.2 * g**2
            w = w - 0.1 * (m / (1 - 0.5**t)) / ((v / (1 - 0.8**t)).sqrt() + 1e-8)
        else:
            m = 0.9 * m + g
            w = w - 0.1 * (g + 0.9 * m if kind == "nesterov" else m)
        torch.testing.assert_close(weight.detach(), w)


def test_momentum_and_decay_pull_an_ascending_player_too():
    """Weight decay shrinks φ while the gradient of the loss is climbed."""
    for kind in ("sgd", "adam"):
        weight = nn.Parameter(torch.tensor([1.0]))
        optimiser = Optimiser(kind=kind, lr=0.1, weight_decay=0.5).build([weight], ascend=True)
        weight.grad = torch.zeros(1)
        optimiser.step()
        assert weight.item() < 1
        weight = nn.Parameter(torch.tensor([0.0]))
        optimiser = Optimiser(kind=kind, lr=0.1, weight_decay=0.5).build([weight], ascend=True)
        weight.grad = torch.ones(1)
        optimiser.step()
        assert weight.item() == pytest.approx(0.1, rel=1e-5)


# Learning rates ----------------------------------------------------------------------------


def test_the_papers_schedules():
    authors = recipe("iclr2020/grad").optimiser  # 0.1, a tenth at epochs 30, 60 and 90 of 100
    rates = [authors.lr_at(e, 100) for e in (0, 29, 30, 59, 60, 89, 90, 99)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 1e-3, 1e-3, 1e-4, 1e-4])
    wide = recipe("iclr2020/plain").optimiser  # a fifth at 60, 120 and 160 of 200
    rates = [wide.lr_at(e, 200) for e in (59, 60, 119, 120, 159, 160)]
    assert rates == pytest.approx([0.1, 0.02, 0.02, 0.004, 0.004, 0.0008])


def test_milestones_of_both_players_reach_the_log(colours):
    small = tiny(epochs=4)
    small = replace(
        small,
        optimiser=replace(PLAIN_SGD, milestones=(0.25, 0.75), decay=0.5),
        attacker_optimiser=replace(PLAIN_SGD, lr=0.02, milestones=(0.5,)),
    )
    game, log, _ = train(small, colours, seed=0)
    assert log.lr.tolist() == pytest.approx([0.05, 0.025, 0.025, 0.0125])
    assert log.attacker_lr.tolist() == pytest.approx([0.02, 0.02, 0.002, 0.002])
    assert game.optimisers["classifier"].param_groups[0]["lr"] == pytest.approx(0.0125)
    assert game.optimisers["attacker"].param_groups[0]["lr"] == pytest.approx(0.002)


# Whole runs --------------------------------------------------------------------------------


def untimed(log):
    return log.drop(columns="seconds")


def test_the_same_seed_is_the_same_run_and_another_is_not(colours):
    data = replace(colours, augment=True)
    small = tiny("pgm", epochs=2)  # with a random start
    (a, log_a, _), (b, log_b, _), (_, log_c, _) = (train(small, data, seed=s) for s in (3, 3, 4))
    pd.testing.assert_frame_equal(untimed(log_a), untimed(log_b), check_exact=True)
    assert change(a.classifier.parameters(), b.classifier.parameters()) == 0
    assert (log_a.train_loss != log_c.train_loss).all()
    assert list(log_a) == COLUMNS and log_a.epoch.tolist() == [1, 2]


@pytest.mark.parametrize("kind", ["pgm", "2step"])
@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_a_resumed_run_is_the_uninterrupted_one(colours, kind, epoch):
    data = replace(colours, augment=True)
    small = tiny(kind, epochs=3, optimiser=Optimiser(milestones=(0.5,)))
    if kind == "2step":
        small = replace(small, attacker_optimiser=Optimiser(kind="adam"))
    states = []
    whole, log, status = train(
        small, data, seed=1, on_epoch=lambda state: states.append(deepcopy(state))
    )
    assert [s["epoch"] for s in states] == [1, 2, 3]
    torch.manual_seed(12345)
    resumed, log_again, status_again = train(
        small, data, seed=1, resume=deepcopy(states[epoch - 1])
    )
    pd.testing.assert_frame_equal(untimed(log), untimed(log_again), check_exact=True)
    assert status == status_again
    a, b = whole.state(), resumed.state()
    for part in ("f", "g") if kind == "2step" else ("f",):
        assert a[part].keys() == b[part].keys()
        assert all(torch.equal(a[part][k], b[part][k]) for k in a[part])
    if epoch == 3:  # the game was over
        assert not resumed.optimisers
        return
    buffers = [
        o.state_dict()["state"]
        for o in (whole.optimisers["classifier"], resumed.optimisers["classifier"])
    ]
    assert all(
        torch.equal(buffers[0][k]["momentum_buffer"], buffers[1][k]["momentum_buffer"])
        for k in buffers[0]
    )


def test_a_resume_does_not_repeat_epochs(colours):
    states = []
    train(tiny(epochs=2), colours, seed=1, on_epoch=lambda s: states.append(deepcopy(s)))
    train(tiny(epochs=2), colours, seed=1, resume=states[0], on_epoch=lambda s: states.append(s))
    assert [s["epoch"] for s in states] == [1, 2, 2]


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_runs_for_an_epoch_at_smoke_scale(colours, plain, name):
    small = replace(at_scale(RECIPES[name], PROFILES["smoke"]), epochs=1, batch_size=8)
    if name == "today/las-at":  # which learns on every fifth batch otherwise
        small = replace(small, attack=replace(small.attack, every=1))
    few = {part: getattr(colours, part)[:16] for part in ("train_images", "train_labels")}
    colours = replace(colours, **few)
    start = plain[0].classifier.state_dict() if small.warm_start else None
    game, log, status = train(small, colours, seed=0, start_from=start)
    assert len(log) == 1 and np.isfinite(log.to_numpy(dtype=float)).all()
    assert status in ("ok", "collapsed")
    assert not game.classifier.training
    if small.attack is None:
        assert log.delta[0] == 0
    else:
        assert 0 < log.delta[0] <= (3 if name == "today/n-fgsm" else 1) + 1e-6
    assert (log.attacker_lr[0] > 0) == small.learned
    if small.learned:
        assert not game.attack.training
        torch.manual_seed(0)
        new = Players.build(small, colours, torch.device("cpu")).attack
        assert change(new.parameters(), game.attack.parameters()) > 0


@pytest.fixture(scope="module")
def plain(colours):
    return train(tiny("plain", epochs=10), colours, seed=0)


def test_plain_net_learns_four_colours(plain):
    _, log, status = plain
    assert status == "ok"
    assert log.clean_accuracy.iloc[-1] == 1 and log.train_accuracy.iloc[-1] == 1
    assert log.train_loss.iloc[-1] < log.train_loss[0] / 2


def test_a_warm_start_begins_with_the_given_weights(colours):
    small = tiny("fgsm", warm_start="iclr2020/plain", optimiser=replace(PLAIN_SGD, lr=1e-12))
    with pytest.raises(InputError, match="starts from iclr2020/plain"):
        train(small, colours, seed=0)
    torch.manual_seed(77)
    start = make_classifier("wrn-10-1", 4, 3, 16)
    game, _, _ = train(small, colours, seed=0, start_from=start.state_dict())
    for a, b in zip(game.classifier.parameters(), start.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_a_loss_that_is_not_finite_stops_the_run(colours):
    absurd = tiny("plain", epochs=3, optimiser=replace(PLAIN_SGD, lr=1e30))
    states = []
    _, log, status = train(absurd, colours, seed=0, on_epoch=lambda s: states.append(deepcopy(s)))
    assert status == "diverged"
    assert len(log) == len(states) == 1 and not np.isfinite(log.train_loss[0])
    # A resume does not go on with it either.
    _, again, status = train(absurd, colours, seed=0, resume=states[0])
    assert status == "diverged" and len(again) == 1


def test_a_classifier_that_only_guesses_has_collapsed(colours):
    """On images that are all the same, no network is right on more than one class of four."""
    grey = replace(
        colours,
        train_images=torch.full_like(colours.train_images, 128),
        test_images=torch.full_like(colours.test_images, 128),
    )
    _, log, status = train(tiny("plain", epochs=2), grey, seed=0)
    assert log.clean_accuracy.tolist() == [0.25, 0.25]
    assert status == "collapsed" and len(log) == 2


def test_the_callers_random_numbers_are_left_alone(colours):
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    train(tiny("pgm"), replace(colours, augment=True), seed=0)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert random.getstate() == before[2]


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"update": "both"},
        {"update": "printed", "trades": 1.0},
        {"precision": "float16"},
        {"clean_weight": -1.0},
        {"clean_weight": float("nan")},
    ],
)
def test_a_wrong_recipe_is_refused(changes):
    with pytest.raises(InputError):
        tiny(**changes)


@pytest.mark.parametrize(
    "changes", [{"lr": 0.0}, {"lr": float("inf")}, {"kind": "lion"}, {"decay": -0.1}]
)
def test_a_wrong_optimiser_is_refused(changes):
    with pytest.raises(InputError):
        Optimiser(**changes)
