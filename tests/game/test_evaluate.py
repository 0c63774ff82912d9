"""The protocol: independent of batches, harmless to the model, and one run where one will do."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from l2lkit.errors import InputError
from l2lkit.game import evaluate as evaluation
from l2lkit.game.cw import CW, CWTanh
from l2lkit.game.evaluate import correct, evaluate, trajectory, transfer
from l2lkit.game.fixed import FGSM, PGM
from l2lkit.game.interpolation import InterpolationAttacker
from l2lkit.game.learned import GradAttacker, NaiveAttacker
from l2lkit.game.search import RandomSearch
from l2lkit.game.solver import Solver
from l2lkit.game.survives import survives


def classifier(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.Tanh(),
        nn.Dropout(0.3),
        nn.Flatten(),
        nn.Linear(4 * 64, 3),
    ).double()


def learned(kind, **options):
    torch.manual_seed(5)
    return kind("2018", 3, 0.1, width=1 / 8, **options).double()


def images(count=16, seed=1):
    torch.manual_seed(seed)
    x = torch.rand(count, 3, 8, 8, dtype=torch.float64)
    return x, classifier().eval()(x).argmax(1)  # labels on which the classifier is right


ATTACKS = {
    "clean": lambda e: None,
    "fgsm": lambda e: FGSM(epsilon=e),
    "pgm": lambda e: PGM(epsilon=e, steps=4, step_size=0.02),
    "pgm-gaussian": lambda e: PGM(epsilon=e, steps=4, step_size=0.02, start="gaussian"),
    "cw": lambda e: CW(epsilon=e, steps=8),
    "cw-tanh": lambda e: CWTanh(epsilon=e, inner_steps=4, lr=0.05),
    "random": lambda e: RandomSearch(epsilon=e, draws=5),
    "naive": lambda e: NaiveAttacker("2018", 3, e, 1 / 8).double(),
    "2-step": lambda e: GradAttacker("2018", 3, e, 1 / 8, steps=2).double(),
    "batch-max": lambda e: GradAttacker("2018", 3, e, 1 / 8, gradient="batch-max").double(),
    "interpolation": lambda e: InterpolationAttacker("2018", 3, e, 1 / 8).double(),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_no_result_depends_on_the_batch_size(name):
    x, y = images()
    torch.manual_seed(7)
    attack = ATTACKS[name](0.05)
    one, seven, whole = (
        trajectory(classifier(), attack, x, y, seed=3, batch_size=size) for size in (1, 7, 16)
    )
    for other in (one, seven):
        assert other.steps == whole.steps
        assert torch.equal(other.correct, whole.correct)
        torch.testing.assert_close(other.loss, whole.loss, rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(other.delta, whole.delta, rtol=1e-5, atol=1e-7)


def test_the_seed_decides_the_random_start():
    x, y = images()
    f, pgm = classifier(), PGM(epsilon=0.05, steps=1)
    a, b, c = (trajectory(f, pgm, x, y, seed=s).loss for s in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a[1], c[1])
    torch.manual_seed(99)  # the global generator has no part in it
    assert torch.equal(trajectory(f, pgm, x, y, seed=0).loss, a)


@pytest.mark.parametrize("name", ATTACKS)
def test_epsilon_zero_is_exactly_the_clean_accuracy(name):
    x, y = images()
    y[::3] = (y[::3] + 1) % 3  # some wrong ones
    f = classifier().float()
    attack = ATTACKS[name](0.0)
    if isinstance(attack, nn.Module):
        attack.float()
    run = trajectory(f, attack, x.float(), y)
    clean = f.eval()(x.float())
    for losses, right, delta in zip(run.loss, run.correct, run.delta, strict=True):
        assert torch.equal(right, clean.argmax(1) == y)
        assert torch.equal(losses, F.cross_entropy(clean, y, reduction="none"))
        assert not delta.any()


@pytest.mark.parametrize("start", ["zero", "uniform"])
@pytest.mark.parametrize("against", ["labels", "prediction"])
def test_an_image_survives_if_no_iterate_of_the_whole_run_fools(start, against):
    x, y = images(40)
    y[::5] = (y[::5] + 1) % 3  # some that are wrong without an attack
    pgm = PGM(epsilon=0.03, steps=8, step_size=0.01, start=start, against=against)
    f = classifier()
    whole = trajectory(f, pgm, x, y, seed=3)
    rng = [torch.Generator().manual_seed(3 * 1_000_003 + i) for i in range(len(x))]
    at_start = f.eval()(x + pgm.begin(f, x, y, rng)[0]).argmax(1) == y
    every = whole.correct.all(0) & at_start
    assert 0 < every.sum() < len(x) - 8 and not whole.correct.all(1).any()
    for size in (7, 40):
        assert torch.equal(survives(f, pgm, x, y, seed=3, batch_size=size), every)


@pytest.mark.parametrize("start", ["uniform", "zero"])
def test_where_every_answer_is_wrong_nothing_is_left_to_attack(start):
    x, y = images()
    f = classifier()
    wrong = (f.eval()(x).argmax(1) + 1) % 3
    assert not survives(f, PGM(start=start, against="prediction"), x, wrong).any()


def test_images_that_are_fooled_cost_no_more_passes():
    x, y = images()
    f, seen = classifier(), []
    f[0].register_forward_hook(lambda module, given, out: seen.append(len(out)))
    assert not survives(f, PGM(epsilon=0.3, steps=50, step_size=0.05), x, y).any()
    assert sum(seen) < 16 * 2 * 50 / 4


def test_a_trajectory_by_hand():
    x, y = images()
    f, epsilon = classifier(), 0.01
    run = trajectory(f, PGM(epsilon=epsilon, steps=3, step_size=0.004, start="zero"), x, y)
    assert run.steps == (0, 1, 2, 3)
    f.eval()
    delta = torch.zeros_like(x)
    for step in range(4):
        at = (x + delta).requires_grad_()
        logits = f(at)
        loss = F.cross_entropy(logits, y, reduction="none")
        torch.testing.assert_close(run.loss[step], loss.detach())
        assert torch.equal(run.correct[step], logits.argmax(1) == y)
        torch.testing.assert_close(run.delta[step], delta.flatten(1).abs().mean(1) / epsilon)
        moved = delta + 0.004 * torch.autograd.grad(loss.sum(), at)[0].sign()
        delta = (x + moved.clamp(-epsilon, epsilon)).clamp(0, 1) - x
    assert 0 < run.correct[3].sum() < len(x)


def snapshot(*modules):
    return [
        (
            [m.training for m in module.modules()],
            {k: v.clone() for k, v in module.state_dict().items()},
            [p.grad.clone() for p in module.parameters()],
        )
        for module in modules
    ]


@pytest.mark.parametrize("failing", [False, True])
def test_players_come_back_as_they_were(failing):
    """Modes submodule by submodule, parameters, buffers and gradients, also after an error."""
    x, y = images()
    f, g = classifier().train(), learned(GradAttacker).train()
    F.cross_entropy(f(x + g(f, x, y)), y).backward()
    f[1].eval()  # a frozen batch norm in a training classifier
    g.network[4].eval()
    before = snapshot(f, g)
    if failing:
        with pytest.raises(InputError):
            trajectory(f, g, x, y.float())
    else:
        correct(f, {"clean": None, "pgm": PGM(steps=2), "own": g}, x, y)
        transfer(f, g, {"itself": f, "other": classifier(1)}, x, y)
    for old, new in zip(before, snapshot(f, g), strict=True):
        assert old[0] == new[0]
        assert all(torch.equal(v, new[1][k]) for k, v in old[1].items())
        assert all(torch.equal(a, b) for a, b in zip(old[2], new[2], strict=True))


def test_a_classifier_in_training_is_measured_in_eval_mode():
    x, y = images()
    a = correct(classifier().train(), {"pgm": PGM(epsilon=0.05)}, x, y)["pgm"]
    b = correct(classifier().eval(), {"pgm": PGM(epsilon=0.05)}, x, y)["pgm"]
    assert torch.equal(a, b)


def test_pgm_of_many_lengths_is_one_run_and_equals_separate_ones(monkeypatch):
    x, y = images()
    f, runs = classifier(), []

    def counted(classifier, attack, *rest, **options):
        runs.append(attack)
        return trajectory(classifier, attack, *rest, **options)

    monkeypatch.setattr(evaluation, "trajectory", counted)
    attacks = {
        "clean": None,
        "pgm-5": PGM(epsilon=0.05, steps=5),
        "fgsm": FGSM(epsilon=0.05),
        "pgm-2": PGM(epsilon=0.05, steps=2),
        "wide": PGM(epsilon=0.1, steps=2),
        "coarse": PGM(epsilon=0.05, steps=2, step_size=0.05),
        "again": PGM(epsilon=0.05, steps=5),
        "zero": PGM(epsilon=0.05, steps=9, start="zero"),
    }
    shared = correct(f, attacks, x, y, seed=4)
    assert list(shared) == list(attacks)
    assert len(runs) == 6  # clean, fgsm, one PGM of five steps, wide, coarse, zero
    for name, attack in attacks.items():
        alone = trajectory(f, attack, x, y, seed=4).correct[-1]
        assert torch.equal(shared[name], alone), name


def test_transfer_to_the_surrogate_itself_is_white_box():
    x, y = images()
    f = classifier()
    attacks = (
        PGM(epsilon=0.05, steps=5),
        RandomSearch(epsilon=0.05, draws=5),
        learned(GradAttacker, steps=2),
    )
    for attack in attacks:
        white = correct(f, {"attack": attack}, x, y, seed=2)["attack"]
        black = transfer(f, attack, {"itself": f, "other": classifier(1)}, x, y, seed=2)
        assert torch.equal(black["itself"], white)


def test_transfer_attacks_the_surrogate_and_not_the_target():
    x, y = images()
    surrogate, target = classifier().eval(), classifier(1).eval()
    right = transfer(surrogate, FGSM(epsilon=0.1), {"target": target}, x, y)["target"]
    adversarial = x + FGSM(epsilon=0.1)(surrogate, x, y)
    assert torch.equal(right, target(adversarial).argmax(1) == y)


class Sizes(Solver):
    """An attack that does nothing but count the images of each batch."""

    epsilon = 0.1

    def __init__(self, batch_dependent):
        self.batch_dependent, self.seen = batch_dependent, []

    def iterates(self, classifier, images, labels, generators=None):
        self.seen.append(len(images))
        yield torch.zeros_like(images)


@pytest.mark.parametrize("batch_size", [30, 100, 500])
def test_batch_dependent_attackers_run_on_batches_of_100(batch_size):
    x, y = images(230)
    for run in (trajectory, lambda f, a, *rest, **o: transfer(f, a, {"f": f}, *rest, **o)):
        fixed, free = Sizes(True), Sizes(False)
        run(classifier(), fixed, x, y, batch_size=batch_size)
        run(classifier(), free, x, y, batch_size=batch_size)
        assert fixed.seen == [100, 100, 30]
        assert sum(free.seen) == 230 and max(free.seen) == min(batch_size, 230)


def test_evaluate_is_one_row_for_each_pair():
    x, y = images()
    y[:4] = (y[:4] + 1) % 3  # 12 of 16 are right
    frame = evaluate(
        {"a": classifier(), "b": classifier(1)}, {"Clean": None, "FGSM": FGSM(epsilon=0.1)}, x, y
    )
    assert list(zip(frame.defence, frame.attack, strict=True)) == [
        ("a", "Clean"),
        ("a", "FGSM"),
        ("b", "Clean"),
        ("b", "FGSM"),
    ]
    assert frame.accuracy[0] == 0.75 and (frame.images == 16).all()
    f = classifier(1).eval()
    adversarial = x + FGSM(epsilon=0.1)(f, x, y)
    expected = (f(adversarial).argmax(1) == y).double().mean().item()
    assert frame.accuracy[3] == pytest.approx(expected)


def test_steps_that_are_asked_for():
    x, y = images()
    pgm = PGM(epsilon=0.05, steps=6)
    some, every = (trajectory(classifier(), pgm, x, y, at=at) for at in ([0, 3, 6], None))
    assert some.steps == (0, 3, 6) and every.steps == tuple(range(7))
    assert torch.equal(some.loss, every.loss[[0, 3, 6]])


@pytest.mark.parametrize("value", [-0.01, 1.01, float("nan"), 255.0])
def test_images_outside_the_range_are_refused(value):
    x, y = images()
    x[3, 1, 2, 2] = value
    for call in (
        lambda: correct(classifier(), {"clean": None}, x, y),
        lambda: transfer(classifier(), FGSM(), {"a": classifier()}, x, y),
    ):
        with pytest.raises(InputError, match=r"lie in \[0, 1\]"):
            call()


def test_no_images_and_no_batch_are_refused():
    x, y = images()
    with pytest.raises(InputError, match="no images"):
        trajectory(classifier(), None, x[:0], y[:0])
    with pytest.raises(InputError, match="batch_size"):
        trajectory(classifier(), None, x, y, batch_size=0)
    with pytest.raises(InputError, match="uint8"):
        trajectory(classifier(), None, (x * 255).to(torch.uint8), y)
