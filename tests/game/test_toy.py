"""The two-number game against its closed forms."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from l2lkit.errors import InputError
from l2lkit.game import toy as minimax

steps_sizes = st.floats(1e-4, 0.9)


@given(steps_sizes, st.integers(1, 60))
def test_simultaneous_grows_by_the_same_factor_each_step(step, steps):
    r = minimax.radius(minimax.play("simultaneous", step, steps))
    np.testing.assert_allclose(r, (1 + step**2) ** (np.arange(steps + 1) / 2), rtol=1e-12)


def test_the_papers_circle_is_open_by_three_in_ten_thousand():
    turn = round(2 * math.pi / 1e-4)
    assert turn == 62832
    r = minimax.radius(minimax.play("simultaneous", 1e-4, turn))
    assert r[-1] == pytest.approx(math.exp(1e-4 * math.pi), abs=1e-7)
    assert r[-1] == pytest.approx(1.000314, abs=1e-6)


@given(steps_sizes, st.integers(1, 300), st.floats(-2, 2), st.floats(-2, 2))
def test_alternating_conserves_its_quadratic_form(step, steps, x, y):
    path = minimax.play("alternating", step, steps, (x, y))
    kept = (path**2).sum(axis=1) + step * path.prod(axis=1)
    np.testing.assert_allclose(kept, kept[0], rtol=1e-9, atol=1e-12)


@given(steps_sizes, st.integers(1, 60))
def test_extragradient_shrinks_by_its_factor(step, steps):
    r = minimax.radius(minimax.play("extragradient", step, steps))
    np.testing.assert_allclose(r, (1 - step**2 + step**4) ** (np.arange(steps + 1) / 2), rtol=1e-10)
    assert r[-1] < r[0]


@pytest.mark.parametrize("step", [0.1, 0.3, 0.45])
def test_optimistic_settles_to_its_factor(step):
    r = minimax.radius(minimax.play("optimistic", step, 400))
    factor = math.sqrt((1 + math.sqrt(1 - 4 * step**2)) / 2)
    assert r[-1] / r[-2] == pytest.approx(factor, rel=1e-9)


def test_optimistic_turns_outwards_past_one_over_root_three():
    inside, outside = (minimax.radius(minimax.play("optimistic", s, 2000)) for s in (0.57, 0.585))
    assert inside[-1] < 1e-3 and outside[-1] > 1e3


@pytest.mark.parametrize("step", [0.01, 0.1, 0.3])
def test_learned_player_finds_damping(step):
    path, coefficients = minimax.play_learned(step, int(80 * math.pi / step))
    a, b = coefficients[-1]
    assert path.shape == coefficients.shape
    assert tuple(coefficients[0]) == (1.0, 0.0)
    assert a > 1 and b < 0
    r = minimax.radius(path)
    assert r[-1] < 0.05 * r[0] and r.max() < 2.6
    # At rest the map is linear with determinant 1 + step * b: the area shrinks by it each step.
    (x0, y0), (x1, y1), (x2, y2) = path[-3:]
    shrink = (x1 * y2 - x2 * y1) / (x0 * y1 - x1 * y0)
    assert shrink == pytest.approx(1 + step * b, rel=1e-4)


def test_learned_player_at_a_tiny_rate_is_the_alternating_one():
    learned, _ = minimax.play_learned(0.1, 50, rate=1e-14)
    np.testing.assert_allclose(learned, minimax.play("alternating", 0.1, 50), atol=1e-10)


@pytest.mark.parametrize("method", minimax.METHODS)
def test_contract_of_every_method(method):
    path = minimax.play(method, 0.1, 7, (0.5, -0.25))
    assert path.shape == (8, 2) and path.dtype == np.float64
    assert tuple(path[0]) == (0.5, -0.25)
    assert not minimax.play(method, 0.1, 7, (0.0, 0.0)).any()  # the equilibrium stays put


def test_field_is_the_update_direction():
    x, y, u, v = minimax.field(2.0, 5)
    assert x.shape == (5, 5) and x.max() == 2.0 and y.min() == -2.0
    np.testing.assert_array_equal(u, -y)
    np.testing.assert_array_equal(v, x)


@pytest.mark.parametrize(
    "arguments",
    [
        ("newton", 0.1, 5),
        ("simultaneous", 0.0, 5),
        ("simultaneous", -0.1, 5),
        ("simultaneous", math.nan, 5),
        ("simultaneous", math.inf, 5),
        ("simultaneous", 0.1, 0),
        ("simultaneous", 0.1, 2.5),
        ("simultaneous", 0.1, 5, (math.nan, 0.0)),
        ("simultaneous", 0.1, 5, (1.0, 0.0, 0.0)),
        ("simultaneous", 1e3, 500),
        ("extragradient", 1e3, 500),
    ],
)
def test_bad_input_says_what_to_do(arguments):
    with pytest.raises(InputError):
        minimax.play(*arguments)


def test_bad_rate_and_field():
    with pytest.raises(InputError, match="rate"):
        minimax.play_learned(0.1, 5, rate=0.0)
    with pytest.raises(InputError, match="floats"):
        minimax.play_learned(100.0, 500, rate=100.0)
    with pytest.raises(InputError, match="extent"):
        minimax.field(0.0, 5)
    with pytest.raises(InputError, match="n >= 2"):
        minimax.field(1.0, 1)
