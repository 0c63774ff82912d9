"""AutoAttack against a worst case known exactly."""

import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from masked import EPSILON, QUICK, Linear, images, robust

from l2lkit.checks.attacks import auto_attack
from l2lkit.errors import InputError
from l2lkit.game import evaluate as evaluation
from l2lkit.game.autoattack import AutoAttack


def test_autoattack_finds_the_exact_worst_case_of_a_linear_classifier():
    x, y = images(60)
    x, f = x / 255, Linear()
    exact = robust(f, x, y, EPSILON)
    assert 15 < exact.sum() < 45  # the question is open
    for attack in (replace(QUICK, attacks=("apgd-ce",)), QUICK, replace(QUICK, attacks=("fab-t",))):
        right = evaluation.correct(f, {"AutoAttack": attack}, x, y)["AutoAttack"]
        assert torch.equal(right, exact), attack
    # Square has no gradients and too few queries here: it fools some of these and no others.
    square = evaluation.correct(f, {"": replace(QUICK, attacks=("square",))}, x, y)[""]
    assert exact.sum() <= square.sum() < len(x) and not (exact & ~square).any()


@settings(max_examples=10)
@given(epsilon=st.sampled_from([0.0, 0.031, 1.0]), seed=st.integers(0, 100))
def test_autoattack_stays_in_the_ball_and_never_helps(epsilon, seed):
    x, y = images(6, seed=seed)
    x[:2] = x[:2] // 128 * 255  # pixels at both ends of the range
    x, f = x / 255, Linear()
    y[0] = (f(x[:1]).argmax(1) + 1) % 4  # one that is wrong already
    before = torch.get_rng_state()
    rng = [torch.Generator().manual_seed(seed) for _ in range(6)]
    delta = replace(QUICK, epsilon=epsilon, queries=5)(f, x, y, rng)
    assert torch.equal(torch.get_rng_state(), before)
    assert delta.shape == x.shape and delta.dtype == x.dtype
    assert delta.abs().max() <= epsilon + 1e-7
    assert (x + delta).min() >= 0 and (x + delta).max() <= 1
    assert not delta[0].any()
    clean, attacked = (f(x + d).argmax(1) == y for d in (0, delta))
    assert not (attacked & ~clean).any()


def test_autoattack_leaves_no_trace_and_repeats():
    x, y = images(12)
    x, f = x / 255, Linear(noise=0.0)
    f.weight.grad = torch.ones_like(f.weight)
    attack = replace(QUICK, attacks=("apgd-ce", "fab-t", "square"))
    events = []

    def tracer(*event):
        events.append(event)

    old = sys.gettrace()
    sys.settrace(tracer)
    try:
        a, b = (evaluation.perturb(f, attack, x, y, seed=5) for _ in range(2))
        kept = sys.gettrace()
    finally:
        sys.settrace(old)
    assert kept is tracer
    assert torch.equal(a, b)
    assert not torch.equal(a, evaluation.perturb(f, attack, x, y, seed=6))
    assert torch.equal(f.weight.grad, torch.ones_like(f.weight)) and f.weight.requires_grad
    one = evaluation.perturb(f, attack, x, y, seed=5, batch_size=1)
    assert torch.equal(one, a)


def test_the_defaults_are_the_standard_version():
    import pyautoattack

    theirs = pyautoattack.AutoAttack(Linear(), eps=0.1)
    ours = AutoAttack()
    assert list(ours.attacks) == theirs.attacks_to_run
    assert ours.targets == theirs.apgd_targeted.n_target_classes == theirs.fab.n_target_classes
    assert ours.queries == theirs.square.n_queries
    assert theirs.apgd.n_restarts == theirs.fab.n_restarts == 1
    assert AutoAttack(epsilon=0.1).label == "AutoAttack"
    assert QUICK.label == "AutoAttack (apgd-ce, apgd-t ×3, square ×50)"


@pytest.mark.parametrize(
    ("options", "classes", "words"),
    [
        ({"attacks": ("pgd",)}, 4, "must be some of"),
        ({"attacks": ()}, 4, "must be some of"),
        ({"epsilon": 8}, 4, "8/255"),
        ({"queries": 0}, 4, "positive"),
        ({"attacks": ("apgd-t",)}, 3, "apgd-t needs 4 classes and there are 3"),
        ({"attacks": ("apgd-dlr",)}, 2, "apgd-dlr needs 3 classes and there are 2"),
    ],
)
def test_what_autoattack_refuses(options, classes, words):
    x, y = images(4, classes)
    with pytest.raises(InputError, match=words):
        AutoAttack(**options)(Linear(classes), x / 255, y)


def test_autoattack_is_for_float32():
    x, y = images(4)
    with pytest.raises(InputError, match="float32"):
        AutoAttack()(Linear().double(), x.double() / 255, y)


@pytest.mark.parametrize("classes", [2, 3])
def test_two_or_three_classes_are_attacked_without_the_targeted_loss(classes):
    x, y = images(12, classes)
    x, attack = x / 255, auto_attack(standard=False, classes=classes)
    right = evaluation.correct(Linear(classes), {"": attack}, x, y)[""]
    assert torch.equal(right, robust(Linear(classes), x, y, EPSILON))
