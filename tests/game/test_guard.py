"""What a caller may hand to an attack or an evaluation, one contract for all attacks."""

import copy
import math
from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn

from l2lkit.checks import Budget, Subject, examine
from l2lkit.diverse.advgan import AdvGANAttacker
from l2lkit.diverse.generator import DiverseAttacker
from l2lkit.errors import InputError
from l2lkit.game.autoattack import AutoAttack, autoattack_installed
from l2lkit.game.cw import CW, CWTanh
from l2lkit.game.evaluate import correct, evaluate, perturb, trajectory, transfer
from l2lkit.game.fixed import FGSM, PGM
from l2lkit.game.free import FreeAttacker
from l2lkit.game.guard import Guarded
from l2lkit.game.learned import GradAttacker, NaiveAttacker
from l2lkit.game.loop import train
from l2lkit.game.recipe import Recipe
from l2lkit.game.search import RandomSearch
from l2lkit.game.solver import Attacker, Solver, input_gradient, is_fooled, is_right, project
from l2lkit.game.survives import survives


class Own(Solver):
    """An attack as a user may write it: it asks autograd itself, and works in place."""

    def __init__(self, epsilon):
        self.epsilon = epsilon

    def iterates(self, classifier, images, labels, generators=None):
        x = images.clone().requires_grad_()
        classifier(x).logsumexp(1).sum().backward()
        yield project(self.epsilon * x.grad.nan_to_num(0).sign(), images, self.epsilon)
        images.zero_()


class OwnLearned(Attacker):
    """A learned one that asks autograd itself, with a pattern that may leave the image range."""

    def __init__(self, epsilon):
        super().__init__(epsilon)
        self.pattern = nn.Parameter(torch.linspace(-2, 2, 48).view(3, 4, 4))

    def iterates(self, classifier, images, labels, generators=None):
        x = images.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(classifier(x).sum(), x)
        yield self.epsilon * (self.pattern + gradient).tanh()


ATTACKS = {
    "fgsm": lambda e: FGSM(epsilon=e),
    "pgm": lambda e: PGM(epsilon=e, steps=3),
    "pgm trades": lambda e: PGM(epsilon=e, steps=3, start="gaussian", against="prediction"),
    "cw": lambda e: CW(epsilon=e, steps=8),
    "cw-tanh": lambda e: CWTanh(epsilon=e, inner_steps=3),
    "random": lambda e: RandomSearch(epsilon=e, draws=3),
    "naive": lambda e: NaiveAttacker("2018", 3, e, width=1 / 8),
    "grad": lambda e: GradAttacker("2018", 3, e, width=1 / 8),
    "2-step": lambda e: GradAttacker("v2-slim", 3, e, width=1 / 32, steps=2, gradient="none"),
    "batch-max": lambda e: GradAttacker("iclr2020", 3, e, width=1 / 32, gradient="batch-max"),
    "l2l-da": lambda e: DiverseAttacker(3, 4, e, width=1 / 32, steps=2),
    "advgan": lambda e: AdvGANAttacker(3, e, width=1 / 32),
    "free": lambda e: FreeAttacker((6, 3, 4, 4), e),
    "own": Own,
    "own learned": OwnLearned,
}
if autoattack_installed():
    ATTACKS["autoattack"] = lambda e: AutoAttack(
        epsilon=e, attacks=("apgd-ce", "fab-t", "square"), targets=1, queries=5
    )
unit = st.floats(0, 1, width=32)
every_attack = pytest.mark.parametrize("name", ATTACKS)


def attack_of(name, epsilon=0.05):
    torch.manual_seed(0)
    attack = ATTACKS[name](epsilon)
    return attack.eval() if isinstance(attack, nn.Module) else attack


class Net(nn.Module):
    """A small classifier that can be scripted."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.Tanh(), nn.Linear(8, 4))
        with torch.no_grad():
            self.body[1].weight.mul_(5)
            self.body[1].bias.sub_(self.body[1].weight.sum(1) / 2)

    def forward(self, x):
        return self.body(x)


NET = Net().eval()


@pytest.fixture
def batch():
    """Six images with a row of black and one of white pixels, and the net's own answers."""
    torch.manual_seed(1)
    x = torch.rand(6, 3, 4, 4)
    x[:, :, 0], x[:, :, 1] = 0, 1
    return x, NET(x).argmax(1)


def generators(count=6):
    return [torch.Generator().manual_seed(i) for i in range(count)]


def in_the_ball(delta, x, epsilon):
    return bool(
        delta.isfinite().all()
        and delta.abs().max() <= epsilon + 1e-6
        and (x + delta).min() >= 0
        and (x + delta).max() <= 1
    )


# The caller's settings -----------------------------------------------------------------------


def inference():
    return torch.inference_mode()


def half():
    return torch.autocast("cpu", torch.bfloat16)


def elsewhere():
    return torch.device("meta")


class Double:
    def __enter__(self):
        torch.set_default_dtype(torch.float64)

    def __exit__(self, *_):
        torch.set_default_dtype(torch.float32)


SETTINGS = [torch.no_grad, inference, half, Double, elsewhere]


@pytest.mark.parametrize("setting", SETTINGS)
@every_attack
def test_an_attack_is_the_same_in_every_mode_of_the_caller(name, setting, batch):
    x, y = batch
    expected = attack_of(name)(NET, x, y, generators()).detach()
    attack = attack_of(name)
    with setting():
        delta = attack(NET, x, y, generators())
        assert torch.equal(delta, expected)
        assert not delta.requires_grad or setting in (half, Double, elsewhere)
    assert torch.get_default_dtype() == torch.float32 and torch.is_grad_enabled()


@pytest.mark.parametrize("setting", SETTINGS)
def test_an_evaluation_is_the_same_in_every_mode_of_the_caller(setting, batch):
    attacks = {name: attack_of(name) for name in ("pgm", "cw", "random", "grad", "own learned")}
    expected = correct(NET, {"clean": None} | attacks, *batch)
    with setting():
        got = correct(NET, {"clean": None} | attacks, *batch)
        withstood = survives(NET, PGM(epsilon=0.05, steps=3), *batch)
    assert all(torch.equal(got[name], expected[name]) for name in expected)
    assert torch.equal(withstood, survives(NET, PGM(epsilon=0.05, steps=3), *batch))


def test_what_was_made_in_inference_mode_is_attacked_too(batch):
    x, y = batch
    expected = {name: attack_of(name)(NET, x, y, generators()) for name in ("pgm", "grad")}
    with torch.inference_mode():
        net, there = Net().eval(), x.clone()
        attacks = {name: attack_of(name) for name in expected}
        assert net.body[1].weight.is_inference() and there.is_inference()
        for name, attack in attacks.items():
            assert torch.equal(attack(net, there, y.clone(), generators()), expected[name])
        assert correct(net, {"clean": None, "pgm": attacks["pgm"]}, there, y)["clean"].all()


@pytest.mark.parametrize("setting", [torch.no_grad, inference, half, Double])
def test_training_is_the_same_in_every_mode_of_the_caller(setting, colours):
    recipe = Recipe(
        name="tiny", defence="tiny", source="", attack=PGM(steps=1), classifier="wrn-10-1",
        epochs=1, batch_size=32,
    )  # fmt: skip
    small = colours.subset(32, 8)
    expected = train(recipe, small, seed=0)[0].classifier.state_dict()
    with setting():
        tensors = {k: v.clone() for k, v in vars(small).items() if isinstance(v, torch.Tensor)}
        there = replace(small, **tensors)  # as if it had been loaded here
        state = train(recipe, there, seed=0)[0].classifier.state_dict()
    assert all(torch.equal(state[k], expected[k]) for k in expected)
    assert not any(v.is_inference() for v in state.values())


@every_attack
def test_no_attack_leaves_gradients_behind(name, batch):
    attack_of(name)(NET, *batch)
    assert all(p.grad is None and p.requires_grad for p in NET.parameters())


def test_a_learned_attack_is_differentiable_where_the_caller_wants_it(batch):
    g = attack_of("grad")
    assert g(NET, *batch).requires_grad
    with torch.no_grad():
        assert not g(NET, *batch).requires_grad
    assert all(p.requires_grad for p in g.parameters())


# Images, labels, answers ---------------------------------------------------------------------

BAD = [
    ("0 to 255", lambda x, y: (x * 255, y), r"must lie in \[0, 1\].*divide by 255"),
    ("normalised", lambda x, y: (x - 0.5, y), r"must lie in \[0, 1\]"),
    ("NaN", lambda x, y: (x.clone().fill_(math.nan), y), r"must lie in \[0, 1\]"),
    ("infinite", lambda x, y: (x.clone().fill_(math.inf), y), r"must lie in \[0, 1\]"),
    ("from one", lambda x, y: (x, y * 0 + 4), "classifier has 4 classes.*0 to 3"),
    ("ignored", lambda x, y: (x, y * 0 - 100), "run from -100 to -100.*0 to 3"),
    ("uint8", lambda x, y: ((x * 255).byte(), y), "divide uint8"),
    ("fewer labels", lambda x, y: (x, y[:-1]), "one for each image"),
    ("one-hot", lambda x, y: (x, nn.functional.one_hot(y, 4)), "int64 of shape"),
]
UNSEEN = ("naive", "advgan", "free")  # they never ask the classifier, and so not for its classes


@pytest.mark.parametrize(("kind", "spoil", "says"), BAD, ids=[k for k, *_ in BAD])
@every_attack
def test_images_and_labels_that_do_not_fit_are_one_sentence(name, kind, spoil, says, batch):
    x, y = spoil(*batch)
    if not (name in UNSEEN and kind in ("from one", "ignored")):
        with pytest.raises(InputError, match=says):
            attack_of(name)(NET, x, y)
    with pytest.raises(InputError, match=says):
        evaluate({"net": NET}, {"attack": attack_of(name)}, x, y)


def test_generators_are_one_for_each_image(batch):
    with pytest.raises(InputError, match="3 generators for 6 images"):
        PGM()(NET, *batch, generators(3))


ANSWERS = [
    ("a tuple", lambda x: (NET(x), x), "gives a tuple"),
    ("a dictionary", lambda x: {"logits": NET(x)}, "gives a dict"),
    ("one output", lambda x: NET(x)[:, :1], r"gives \(6, 1\)"),
    ("one number", lambda x: NET(x)[:, 0], r"gives \(6,\)"),
    ("an image", lambda x: x, r"gives \(6, 3, 4, 4\)"),
    ("classes", lambda x: NET(x).argmax(1), r"gives \(6,\) of torch.int64"),
    ("too few", lambda x: NET(x)[:3], r"gives \(3, 4\)"),
    ("nothing", lambda x: None, "gives a NoneType"),
    ("another size", lambda x: NET(x[..., :2]), r"cannot take .*\(6, 3, 4, 4\).*RuntimeError"),
]


@pytest.mark.parametrize(("kind", "classifier", "says"), ANSWERS, ids=[k for k, *_ in ANSWERS])
@pytest.mark.parametrize("name", [n for n in ATTACKS if n not in UNSEEN])
def test_answers_that_are_no_logits_are_one_sentence(name, kind, classifier, says, batch):
    says = says.replace("6", "[16]") if name == "autoattack" else says
    with pytest.raises(InputError, match=says):
        attack_of(name)(classifier, *batch)


@every_attack
def test_a_classifier_that_lets_no_gradient_through_is_one_sentence(name, batch):
    class Detached(Net):
        def forward(self, x):
            return self.body(x.detach())

    for f in (torch.no_grad()(NET.forward), Detached().eval()):
        if name in (*UNSEEN, "random"):
            attack_of(name)(f, *batch)
        else:
            with pytest.raises(InputError, match="no gradient goes through"):
                attack_of(name)(f, *batch)


def test_every_entrance_says_so(batch):
    x, y = batch
    for f, says in ((lambda x: (NET(x),), "gives a tuple"), (3, "an? int cannot be called")):
        for enter in (
            lambda f: trajectory(f, None, x, y),
            lambda f: perturb(f, PGM(steps=1), x, y),
            lambda f: transfer(NET, PGM(steps=1), {"f": f}, x, y),
            lambda f: survives(f, PGM(steps=1), x, y),
            lambda f: examine(Subject(f, x, y), Budget(draws=2)),
        ):
            with pytest.raises(InputError, match=says):
                enter(f)


@cache
def programs():
    x = torch.rand(6, 3, 4, 4)
    scripted = torch.jit.script(copy.deepcopy(NET))
    any_number = ({0: torch.export.Dim.AUTO},)
    return {
        "scripted": scripted,
        "frozen": torch.jit.freeze(scripted),
        "traced": torch.jit.trace(NET, x),
        "exported": torch.export.export(NET, (x,), dynamic_shapes=any_number).module(),
        "symbolic": torch.fx.symbolic_trace(NET),
        "not learning": copy.deepcopy(NET).requires_grad_(False),
        "a function": lambda images: NET(images),
        "a method": NET.forward,
    }


KINDS = [n for n in ("pgm", "cw", "random", "grad", "own", "autoattack") if n in ATTACKS]


@pytest.mark.parametrize("name", KINDS)
def test_programs_and_functions_are_attacked_like_modules(name, batch):
    x, y = batch
    expected = perturb(NET, attack_of(name), x, y)
    for kind, f in programs().items():
        delta = perturb(f, attack_of(name), x, y)
        assert in_the_ball(delta, x, 0.05), kind
        if not name.startswith("cw"):  # Adam makes much of a gradient's last digits
            torch.testing.assert_close(delta, expected, msg=kind)


# Copies ----------------------------------------------------------------------------------------


class InPlace(nn.Module):
    """Normalises its input in place."""

    def __init__(self):
        super().__init__()
        self.net = Net()

    def forward(self, z):
        z -= 0.5
        z /= 0.25
        return self.net(z)


@every_attack
def test_a_classifier_may_change_its_input(name, batch):
    x, y = batch
    kept = x.clone()
    expected = attack_of(name)(lambda z: NET((z - 0.5) / 0.25), x, y, generators())
    delta = attack_of(name)(InPlace(), x, y, generators())
    torch.testing.assert_close(delta, expected)
    assert torch.equal(x, kept) and in_the_ball(delta, x, 0.05)
    evaluate({"f": InPlace()}, {"clean": None, "attack": attack_of(name)}, x, y)
    assert torch.equal(x, kept)


def test_an_examination_leaves_the_images_alone(batch):
    x, y = batch
    kept = x.clone()
    examine(Subject(InPlace(), x, y), Budget(draws=2))
    assert torch.equal(x, kept)


def test_a_guarded_classifier_still_shows_its_layers():
    f = Guarded(NET, torch.tensor([0]))
    assert f.body is NET.body and copy.deepcopy(f).body is not NET.body
    with pytest.raises(AttributeError):
        f.tail  # noqa: B018


# Numbers that are none -------------------------------------------------------------------------


class Root(nn.Module):
    """Its gradient is infinite, or no number, at black pixels."""

    def forward(self, x):
        return NET(x.sqrt())


class Gap(nn.Module):
    """Gives NaN for some inputs near the clean ones, and never another class."""

    def forward(self, x):
        logits = x.flatten(1)[:, :4] * 0 + torch.tensor([1.0, 0, 0, 0])
        odd = (x * 1e4).sum((1, 2, 3)).long() % 2 == 1
        return torch.where(odd[:, None], torch.nan, logits)


@every_attack
@pytest.mark.parametrize("classifier", [Root(), Gap()])
@pytest.mark.parametrize("epsilon", [1e-4, 0.05, 1.0])
def test_delta_stays_in_the_ball_where_gradients_are_no_numbers(name, classifier, epsilon, batch):
    x, y = batch
    delta = attack_of(name, epsilon)(classifier, x, y)
    assert in_the_ball(delta, x, epsilon)


@every_attack
@settings(max_examples=8)
@given(
    hnp.arrays("float32", (6, 3, 4, 4), elements=st.sampled_from([0.0, 1.0]) | unit),
    st.sampled_from([0.0, 1e-6, 1.0]) | unit,
)
def test_delta_stays_in_the_ball(name, images, epsilon):
    x = torch.from_numpy(images)
    for classifier in (NET, Root()):
        delta = attack_of(name, epsilon)(classifier, x, torch.tensor([0, 1, 2, 3, 0, 1]))
        assert in_the_ball(delta, x, epsilon)


@pytest.mark.parametrize("name", ["cw", "grad", "cw-tanh"])
def test_nan_is_no_success(name, batch):
    """Against an ε so small that nothing changes the answer, no attack may be credited."""
    x, _ = batch
    y = Root()(x).argmax(1)
    assert evaluate({"f": Root()}, {"a": attack_of(name, 1e-6)}, x, y).accuracy[0] == 1


def test_nan_is_neither_right_nor_a_success():
    nan = torch.tensor([[math.nan, 0, 0], [0, math.nan, 1], [2, 1, 0], [0, 1, 0]])
    y = torch.zeros(4, dtype=torch.int64)
    assert is_right(nan, y).tolist() == [False, False, True, False]
    assert is_fooled(nan, y).tolist() == [False, False, False, True]


def test_random_search_does_not_stop_at_nan():
    """Half of all draws give NaN and none another class: the search goes on to its last draw."""
    seen = []

    def f(x):
        seen.append(len(x))
        return Gap()(x)

    x, y = torch.full((8, 1, 2, 2), 0.5), torch.zeros(8, dtype=torch.int64)
    RandomSearch(epsilon=0.1, draws=5)(f, x, y)
    assert seen == [8] * 6


def test_a_diverged_classifier_is_never_right(batch):
    x, _ = batch
    broken = copy.deepcopy(NET)
    broken.body[1].weight.data.fill_(math.nan)
    y = torch.zeros(6, dtype=torch.int64)  # where argmax puts NaN
    assert not correct(broken, {"clean": None}, x, y)["clean"].any()


def test_input_gradient_is_a_number_everywhere(batch):
    assert input_gradient(Root(), *batch).isfinite().all()


class Wrong(Solver):
    epsilon = 0.1

    def __init__(self, give):
        self.give = give

    def iterates(self, classifier, images, labels, generators=None):
        yield from self.give(images)


@pytest.mark.parametrize(
    ("give", "says"),
    [
        (lambda x: [x + 0.05], "gives a δ of .* the perturbation and not the image"),
        (lambda x: [x * 0 + 0.2], "gives a δ of 0.2 where ε is 0.1"),
        (lambda x: [x[0]], "it must give δ"),
        (lambda x: [x.numpy()], "gives ndarray"),
        (lambda x: [], "yields no perturbation"),
    ],
)
def test_an_attack_of_ones_own_that_gives_no_perturbation_in_the_ball(give, says, batch):
    with pytest.raises(InputError, match=says):
        Wrong(give)(NET, *batch)


def test_what_is_no_number_is_no_change_and_what_leaves_the_image_range_ends_there(batch):
    x, _ = batch
    nan = torch.full_like(x, math.nan)
    assert not Wrong(lambda x: [nan])(NET, *batch).any()
    delta = Wrong(lambda x: [torch.full_like(x, 0.1)])(NET, *batch)
    assert torch.equal(delta, (x + 0.1).clamp(0, 1) - x)
