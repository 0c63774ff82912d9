"""benchmarks/questions.py: its variants of Grad L2L by hand, and how it compares."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from scripts import load
from torch import nn

from l2lkit.game.recipe import Optimiser
from l2lkit.runs.store import Store

questions = load("questions")
EPSILON = 0.1


@pytest.fixture
def f():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 5)).double()


@pytest.fixture
def batch():
    torch.manual_seed(1)
    return 0.3 + 0.4 * torch.rand(6, 3, 4, 4, dtype=torch.float64), torch.arange(6) % 5


def made(kind, steps=1):
    torch.manual_seed(2)
    maker = questions.Variant(
        made=getattr(questions, kind), epsilon=EPSILON, network="2018", width=1 / 8, steps=steps
    )
    return maker((7, 3, 4, 4), 5).double().eval()


def gradient(f, x, y):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(f(x), y, reduction="sum"), x)[0]


def scaled(gradient):
    return gradient / gradient.abs().flatten(1).amax(1).view(-1, 1, 1, 1)


@pytest.mark.parametrize("kind", ["OnSignStep", "SignOutput", "SeesSign"])
def test_what_a_variant_adds_by_hand(f, batch, kind):
    (x, y), g = batch, made(kind)
    grad = scaled(gradient(f, x, y))
    if kind == "SeesSign":
        grad = grad.sign()
    out = g.network(torch.cat([x, grad], 1))
    wanted = {
        "OnSignStep": torch.tanh(2 * grad.sign() + out),
        "SignOutput": 0.9999 * out.sign(),
        "SeesSign": out.tanh(),
    }[kind]
    torch.testing.assert_close(g(f, x, y), EPSILON * wanted)


def test_the_straight_gradient_is_that_of_tanh(f, batch):
    (x, y), g = batch, made("SignOutput")
    weights = torch.rand_like(x)
    out = g.network(torch.cat([x, scaled(gradient(f, x, y))], 1))
    phi = [p for p in g.parameters() if p.requires_grad]
    wanted = torch.autograd.grad((weights * EPSILON * out.tanh()).sum(), phi)
    delta = list(g.iterates(f, x, y))[-1]
    torch.testing.assert_close(torch.autograd.grad((weights * delta).sum(), phi), wanted)


def test_noise_comes_before_the_corrected_step(f, batch):
    (x, y), g = batch, made("OnNoisyStep")
    torch.manual_seed(3)
    noisy = (x + 2 * EPSILON * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
    grad = scaled(gradient(f, noisy, y))
    step = EPSILON * torch.tanh(2 * grad.sign() + g.network(torch.cat([noisy, grad], 1)))
    torch.manual_seed(3)
    torch.testing.assert_close(g.play(f, x, y).delta, (noisy + step).clamp(0, 1) - x)
    assert g(f, x, y).abs().max() <= EPSILON + 1e-12


def test_free_with_a_learned_step_uses_the_gradient_of_the_pass_before(f, batch):
    (x, y), g = batch, made("FreeGrad")
    none = torch.zeros_like(x)
    first = EPSILON * torch.tanh(g.network(torch.cat([x, none], 1)))
    delta = g.play(f, x, y).delta
    torch.testing.assert_close(delta, first)
    F.cross_entropy(f(x + delta), y).backward()
    grad = scaled(gradient(f, (x + first).detach(), y))
    step = EPSILON * torch.tanh(
        2 * grad.sign() + g.network(torch.cat([(x + first).detach(), grad], 1))
    )
    second = (first + step).clamp(-EPSILON, EPSILON)
    torch.testing.assert_close(g.play(f, x, y).delta, second)
    torch.testing.assert_close(g.play(f, x.flip(0), y).delta, first.flip(0))  # another batch


def test_a_pool_lets_the_present_phi_rest_while_an_earlier_one_plays(f, batch):
    (x, y), g = batch, made("Pool")
    torch.manual_seed(0)
    rested = 0
    for _ in range(60):
        phi = [p for p in g.parameters() if p.requires_grad]
        before = [p.detach().clone() for p in phi]
        played = g.play(f, x, y).delta
        assert all(torch.equal(p, b) for p, b in zip(phi, before, strict=True))
        rested += not any(d.any() for d in torch.autograd.grad(played.square().sum(), phi))
    assert 8 <= rested <= 32  # of the 41 batches with a past, half in the mean


def test_two_steps_of_phi_move_it_before_the_game_does(f, batch):
    (x, y), g = batch, made("SeveralSteps")
    losses = [F.cross_entropy(f(x + g(f, x, y)), y).item()]
    for _ in range(20):
        g.play(f, x, y)
    losses.append(F.cross_entropy(f(x + g(f, x, y)), y).item())
    assert losses[1] > losses[0]
    assert all(p.grad is None for p in f.parameters())


def test_what_g_sees_by_hand(f, batch):
    (x, y), g = batch, made("SeesGradientAlone")
    grad = scaled(gradient(f, x, y))
    out = g.network(torch.cat([torch.zeros_like(x), grad], 1)).tanh()
    torch.testing.assert_close(g(f, x, y), EPSILON * out)
    g = made("SeesLabel")
    planes = g.planes.weight[y].view(6, 3, 1, 1).expand(6, 3, 4, 4)
    out = g.network(torch.cat([x, grad, planes], 1)).tanh()
    torch.testing.assert_close(g(f, x, y), EPSILON * out)


def test_what_the_second_of_two_steps_sees_by_hand(f, batch):
    (x, y), g = batch, made("SeesDelta", steps=2)
    delta = torch.zeros_like(x)
    for _ in range(2):
        seen = torch.cat([x + delta, scaled(gradient(f, x + delta, y)), delta / EPSILON], 1)
        delta = (delta + EPSILON * g.network(seen).tanh()).clamp(-EPSILON, EPSILON)
        delta = (x + delta).clamp(0, 1) - x
    torch.testing.assert_close(g(f, x, y), delta)
    assert delta.any()


@pytest.mark.parametrize(("kind", "blocks"), [("OneBlock", 1), ("SixBlocks", 6)])
def test_the_depth_of_g(kind, blocks):
    g = made(kind)
    assert sum(isinstance(m, questions.ResBlock) for m in g.modules()) == blocks
    assert g(nn.Sequential(nn.Flatten(), nn.Linear(48, 5)).double(), *_images()).any()


def _images():
    return torch.rand(2, 3, 4, 4, dtype=torch.float64), torch.tensor([0, 1])


def test_each_image_keeps_its_delta_from_visit_to_visit(f, batch):
    (x, y), solver = batch, questions.PerImage(epsilon=EPSILON, step_size=EPSILON / 2)
    first = solver.play(f, x, y).delta
    step = EPSILON / 2 * gradient(f, (x + first).flip(0), y.flip(0)).sign()
    wanted = (first.flip(0) + step).clamp(-EPSILON, EPSILON)
    torch.testing.assert_close(solver.play(f, x.flip(0), y.flip(0)).delta, wanted)
    assert not torch.equal(solver.play(f, x.roll(1, 3), y).delta, solver.play(f, x, y).delta)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_an_extragradient_step_by_hand(momentum):
    """On f = xy from (1, 0): a plain step there, then each player from the start along the
    gradient found there; momentum sees the second gradients alone."""
    rate, place = 0.1, torch.tensor([1.0, 0.0], dtype=torch.float64)
    plain = Optimiser(lr=rate, momentum=momentum, weight_decay=0.0)
    x, y = (nn.Parameter(value.clone()) for value in place)
    players = [
        questions.extragradient(plain).build([x], ascend=False),
        questions.extragradient(plain).build([y], ascend=True),
    ]
    velocity = torch.zeros(2, dtype=torch.float64)

    def direction(at):
        return torch.stack([-at[1], at[0]])

    for _ in range(3):
        ahead = place + rate * (direction(place) + momentum * velocity)
        velocity = direction(ahead) + momentum * velocity
        place = place + rate * velocity
        for _ in range(2):
            x.grad, y.grad = y.detach().clone(), x.detach().clone()
            for player in players:
                player.step()
        torch.testing.assert_close(torch.stack([x, y]).detach(), place)


def test_an_optimistic_step_by_hand():
    rate, gradients = 0.1, (1.0, 3.0, -2.0)
    plain = Optimiser(lr=rate, momentum=0.0, weight_decay=0.0)
    place = nn.Parameter(torch.zeros((), dtype=torch.float64))
    optimiser = questions.optimistic(plain).build([place], ascend=False)
    for value in gradients:
        place.grad = torch.tensor(value, dtype=torch.float64)
        optimiser.step()
    assert place.item() == pytest.approx(-rate * (1 + (2 * 3 - 1) + (2 * -2 - 3)))


@pytest.mark.parametrize("question", questions.QUESTIONS)
def test_no_two_rows_of_a_question_are_one_model(question):
    store = Store("quick", device="cpu")
    recipes = questions.QUESTIONS[question](store)
    keys = {label: replace(r, defence="").key() for label, r in recipes.items()}
    assert len({str(key) for key in keys.values()}) == len(recipes)
    assert {r.warm_start for r in recipes.values()} == {"iclr2020/plain"}


def test_the_table_pairs_by_seed_and_counts_what_failed():
    rows = [
        {"defence": d, "seed": s, "status": "ok", "epochs": 4, "Clean": 1.0, "Worst": w}
        | dict.fromkeys(questions.WORST, w)
        for d, values in {"base": (0.5, 0.7), "other": (0.6, 0.9)}.items()
        for s, w in enumerate(values)
    ]
    rows.append(rows[-1] | {"seed": 2, "status": "collapsed", "Worst": 0.0})
    table = questions.table(rows, {"base": 2.0, "other": 3.0}, "base")
    assert table.loc["other", "Worst"] == "75.0 ± 21.2"
    assert table.loc["other", "above base"] == "15.0 ± 7.1"
    assert table["CPU s"].tolist() == ["8", "12"]
    assert table["seeds"].tolist() == ["2 of 2", "2 of 3"]
