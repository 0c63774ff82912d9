"""What tells things apart: settings, weights and source, also of code from a notebook."""

import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from l2lkit.checks import Subject, measures
from l2lkit.checks.attacks import EPSILON
from l2lkit.diverse.advgan import AdvGAN
from l2lkit.diverse.generator import Diverse, DiverseAttacker
from l2lkit.game.autoattack import AutoAttack
from l2lkit.game.cw import CW, CWTanh
from l2lkit.game.fixed import FGSM, PGM
from l2lkit.game.free import FreeAttacker
from l2lkit.game.identity import code, fingerprint, identity, weights
from l2lkit.game.learned import GradAttacker, Learned, NaiveAttacker
from l2lkit.game.search import RandomSearch
from l2lkit.game.solver import Solver

SMALL = {"network": "v2-slim", "width": 1 / 32}
SOLVERS: list[Solver] = [
    FGSM(),
    PGM(),
    CW(),
    CWTanh(),
    RandomSearch(),
    AutoAttack(),
    NaiveAttacker(**SMALL),
    GradAttacker(**SMALL),
    DiverseAttacker(width=1 / 32),
    FreeAttacker((4, 3, 8, 8)),
]


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
def test_a_key_changes_with_epsilon_and_with_nothing_that_was_not_touched(solver):
    other = solver.varied(epsilon=0.01)
    assert other.epsilon == 0.01 and solver.epsilon == 0.031
    assert fingerprint(other.key()) != fingerprint(solver.key())
    assert fingerprint(other.varied(epsilon=0.031).key()) == fingerprint(solver.key())
    assert solver.key()["class"] == type(solver).__name__ and "source" not in solver.key()


@given(
    st.floats(0.001, 1),
    st.integers(1, 100),
    st.floats(0.001, 1),
    st.sampled_from(["uniform", "gaussian", "zero"]),
)
def test_two_attacks_are_equal_where_their_keys_are(epsilon, steps, step_size, start):
    one = PGM(epsilon=epsilon, steps=steps, step_size=step_size, start=start)
    for other in (PGM(), replace(one), replace(one, steps=steps + 1)):
        assert (one == other) == (fingerprint(one.key()) == fingerprint(other.key()))


@pytest.mark.parametrize("attacker", [s for s in SOLVERS if s.learns], ids=lambda s: s.label)
def test_a_learned_solver_is_another_when_a_weight_has_moved(attacker):
    before = attacker.key()
    with torch.no_grad():
        next(attacker.parameters()).view(-1)[0] += 1e-6
    assert attacker.key() != before and attacker.key()["settings"] == before["settings"]


def test_settings_of_other_kinds_do_not_meet():
    makers = [Learned(steps=1), Learned(steps=2), Learned(steps=1, width=0.5), Diverse(), AdvGAN()]
    bound = [partial(NaiveAttacker, width=w) for w in (0.1, 0.2)]
    keys = [fingerprint(identity(thing)) for thing in (*makers, *bound, NaiveAttacker)]
    assert len(set(keys)) == len(keys)


class Odd(NaiveAttacker):
    """Keeps settings that are no single numbers."""

    def __init__(self, schedule):
        torch.manual_seed(0)
        super().__init__(**SMALL)
        self.schedule = schedule


def test_settings_that_are_lists_tables_tensors_or_functions_count_too():
    values = [[1, 2], [2, 1], {"a": 1}, {"a": 2}, {"a", "b"}, {"b"}, len, sorted, Path("a")]
    values += [torch.ones(2), torch.zeros(2), np.float32(1), np.float32(2), PGM(), PGM(steps=3)]
    values += [lambda x: x, lambda x: 2 * x, object()]
    keys = [fingerprint(Odd(value).key()) for value in values]
    assert len(set(keys)) == len(keys)
    assert keys == [fingerprint(Odd(value).key()) for value in values]


def test_code_that_looks_the_same_is_told_by_what_is_bound_to_it():
    def around(value):
        class Inner(NaiveAttacker):
            def scale(self):
                return value

        return [lambda s, c: value, lambda s, c, k=value: k, Inner]

    for one, two in zip(around(1.0), around(2.0), strict=True):
        assert identity(one) != identity(two)
        assert identity(one) == identity(one)
    naive, grad = (lambda s, c: NaiveAttacker()), (lambda s, c: GradAttacker())
    assert identity(naive) != identity(grad)


def test_weights_are_told_by_name_type_and_shape_too():
    one, two = nn.Linear(4, 2, bias=False), nn.Linear(2, 4, bias=False)
    with torch.no_grad():
        for module in (one, two):
            module.weight.zero_()
    assert weights(one) != weights(two)
    assert weights(one) != weights(nn.Sequential(one)) and weights(one) != weights(one.double())


@pytest.mark.parametrize(
    "measure",
    [
        lambda subject, attack: measures.step_losses(subject, attack, 4),
        lambda subject, attack: measures.highest_losses(subject, attack, 2, 4),
        lambda subject, attack: measures.roughness(subject, attack, 4),
        lambda subject, attack: subject.correct({"PGM-20": attack}, 4),
        lambda subject, attack: measures.transferred(subject, attack, {}, "", 4, 0),
    ],
    ids=["losses", "highest losses", "roughness", "correct", "transfer"],
)
def test_pgm_with_another_step_size_is_measured_again_whatever_it_is_called(measure):
    torch.manual_seed(0)
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    asked = []

    def remember(what, settings, compute):
        asked.append(fingerprint(what, settings))
        return compute()

    x, y = torch.rand(4, 3, 2, 2), torch.arange(4) % 3
    subject = Subject(classifier, x, y, remember=remember)
    for attack in (PGM(steps=2), PGM(steps=2), PGM(steps=2, step_size=0.01)):
        measure(subject, attack)
    assert asked[0] == asked[1] != asked[2]
    assert attack.epsilon == EPSILON


CELLS = '''
from IPython.core.interactiveshell import InteractiveShell

shell = InteractiveShell.instance()


def run(cell):
    shell.run_cell(cell, store_history=True).raise_error()


def source():
    run("found = source(Mine)")
    return shell.user_ns["found"]


CLASS = """
class Mine(l2l.Attacker):
    def __init__(self, shape, classes):
        super().__init__(0.03)

    def iterates(self, f, x, y, generators=None):
        {}
        yield helper(x)
"""
HELPER = """
def helper(x):
    return x * {}
"""
run("import l2lkit as l2l\\nfrom l2lkit.game.identity import source\\nSCALE = 1.0")
run(HELPER.format("SCALE"))
run(CLASS.format("# a word"))
first = source()
run(CLASS.format("# other words"))
run(HELPER.format("(SCALE)  # and more"))
assert source() == first, "comments and brackets"
run(HELPER.format("2 * SCALE"))
second = source()
assert second != first, "a function that the class names"
run("SCALE = 0.5")
third = source()
assert third != second, "a value that the function names"
run(CLASS.format("y = y + 0"))
assert source() != third, "the class itself"
'''


def test_source_from_the_cells_of_a_notebook():
    done = subprocess.run([sys.executable, "-c", CELLS], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_packages_code_is_told_room_by_room():
    assert code("game") == code("game") != code("checks") != code("game", "checks")
