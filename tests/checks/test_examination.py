"""`check` on classifiers of known vice: each is caught, the honest one is not accused."""

import pytest
import torch
from masked import Linear, Quantised, images, robust

import l2lkit as l2l
from l2lkit.checks import examination, full_check
from l2lkit.checks.evidence import CHECKED
from l2lkit.checks.examination import ACCURACY, BEFORE, COLUMNS, GROUPS, MISSING
from l2lkit.errors import InputError
from l2lkit.game.autoattack import flags

X, Y = images(24)
X = X / 255


class CutOff(Linear):
    def forward(self, x):
        return super().forward(x.detach())


@pytest.fixture(scope="module")
def honest():
    return full_check(Linear().eval(), X, Y, surrogate=Linear(scale=0.5).eval(), draws=5)


def test_an_honest_classifier_is_not_accused(honest):
    assert honest.failed == []
    frame = honest.frame
    assert tuple(frame.columns) == COLUMNS and set(frame.group) <= set(GROUPS)
    assert list(dict.fromkeys(frame.group)) == [g for g in GROUPS if g in set(frame.group)]
    missing = set(frame[frame.group == MISSING]["item"])
    assert "white box beats black box" not in missing and "adaptive attacks" in missing
    # PGM on a linear classifier reaches the exact worst case.
    row = frame[frame["item"] == "the worst of PGM-20, PGM-100 and CW"].iloc[0]
    exact = robust(Linear(), X, Y, 0.031).double().mean().item()
    assert row.group == ACCURACY and row.value == pytest.approx(exact) and row.images == 24


@pytest.mark.parametrize(
    ("classifier", "items"),
    [
        (Linear(scale=1e6), {"gradients reach the image", "unbounded attacks reach 100 %"}),
        (Linear(noise=0.03), {"the same answer twice", "not randomised"}),
        (Quantised(), {"gradients reach the image", "differentiable, with gradients"}),
        (CutOff(), {"gradients reach the image", "unbounded attacks reach 100 %"}),
    ],
)
def test_each_cheat_is_caught(classifier, items):
    found = l2l.check(classifier.eval(), X, Y, draws=5)
    failed = found[found.verdict == "fails"]
    assert set(failed["item"]) >= items
    assert (failed.meaning != "").all() and (found[found.verdict == "holds"].meaning == "").all()


def test_epsilon_is_the_callers(honest):
    small = full_check(Linear().eval(), X, Y, epsilon=4 / 255, draws=5)
    value = small.frame.set_index("item").value
    exact = robust(Linear(), X, Y, 4 / 255).double().mean().item()
    assert value["the worst of PGM-20, PGM-100 and CW"] == pytest.approx(exact)
    numbers = small.numbers.set_index("quantity").value
    assert numbers["ε"] == 4 / 255 and numbers["largest δ"] == pytest.approx(1, abs=1e-4)
    assert numbers["smallest step"] == pytest.approx(0.003 * (4 / 255) / 0.031)
    for epsilon in (0, 2, float("nan")):
        with pytest.raises(InputError):
            l2l.check(Linear(), X, Y, epsilon=epsilon)


def test_what_was_seen_before_comes_first_and_time_is_told():
    seen = []
    with pytest.raises(KeyboardInterrupt):

        def stop(frame, seconds):
            seen.append((frame, seconds))
            raise KeyboardInterrupt

        full_check(Linear(), X, Y, on_ready=stop)
    ((frame, seconds),) = seen
    assert set(frame.group) == {BEFORE} and seconds > 0


class Counting(Linear):
    """Counts images that pass: a pass without the way back is a third of one with it."""

    def __init__(self):
        super().__init__()
        self.passes = 0.0

    def forward(self, x):
        self.passes += len(x) * (1 if x.requires_grad else 1 / 3)
        return super().forward(x)


def test_the_time_told_is_that_of_as_many_passes_as_are_made():
    pytest.importorskip("pyautoattack")
    made = []
    for count in (8, 16):  # an ε at which nothing is fooled, which takes longest
        network, begun = Counting().eval(), []
        full_check(
            network, X[:count], Y[:count], epsilon=5e-4,
            on_ready=lambda *_, n=network, b=begun: b.append(n.passes),
        )  # fmt: skip  # a call in two lines
        made.append(network.passes - begun[0])
    each = (made[1] - made[0]) / 8
    assert each == pytest.approx(examination.PASSES, rel=0.02)
    assert (made[0] - 8 * each) / CHECKED == pytest.approx(examination.FEW, rel=0.05)


@pytest.mark.slow
def test_the_verdicts_accuracy_is_autoattacks_run_by_itself():
    pyautoattack = pytest.importorskip("pyautoattack")
    f = Linear().eval()
    adversary = pyautoattack.AutoAttack(f, eps=0.031, seed=0, version="standard", device="cpu")
    adversary.apgd_targeted.n_target_classes = adversary.fab.n_target_classes = 3
    adversarial, _ = adversary.run_standard_evaluation(X, Y, batch_size=24)
    alone = (f(adversarial).argmax(1) == Y).double().mean().item()
    found = full_check(f, X, Y, epsilon=0.031, standard=True, draws=5).frame
    with_all = found[found.group == ACCURACY].iloc[-1].value
    assert alone == with_all == robust(f, X, Y, 0.031).double().mean().item()


def test_autoattacks_flags_are_shown():
    pytest.importorskip("pyautoattack")
    attack = l2l.AutoAttack(attacks=("apgd-t",), targets=1)
    with flags() as said:
        attack(Linear(noise=0.03).eval(), X, Y)
        attack(Quantised().eval(), X, Y)
    assert any("randomized" in words for words in said)
    assert any("zero gradient" in words for words in said)
    with flags() as said:
        attack(Linear().eval(), X, Y)
    assert said == []
    torch.manual_seed(0)
    found = l2l.check(Linear(noise=0.001).eval(), X, Y, draws=5).set_index("item").figure
    assert "randomized" in found["AutoAttack's own flags"]
