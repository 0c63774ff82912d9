"""The game in two numbers: min over x, max over y of f(x, y) = x * y.

ICLR 2020 version, section 2.1 (Figure 1) and Appendix D (Figure 8). x stands for the classifier,
y for the attacker, and (0, 0) is the only equilibrium. The players differ only in how they step.
A point (x, y) is held as the complex number x + iy, so the update direction (-y, x) is 1j * point.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from l2lkit.errors import InputError

Update = Callable[[complex, complex, float], complex]  # (point, previous point, step) -> next point


def direction(point: complex) -> complex:
    """Where both players want to go: x down its gradient, y up its own, so (-y, x)."""
    return 1j * point


def simultaneous(point: complex, previous: complex, step: float) -> complex:
    """Appendix D: both players step at once. The radius grows by sqrt(1 + step^2), always."""
    return point + step * direction(point)


def alternating(point: complex, previous: complex, step: float) -> complex:
    """y steps, then x answers the new y (Algorithm 1's order). Keeps x^2 + y^2 + step * x * y."""
    y = point.imag + step * point.real
    return complex(point.real - step * y, y)


def extragradient(point: complex, previous: complex, step: float) -> complex:
    """Step from here along the direction found one step ahead.

    The radius changes by sqrt(1 - step^2 + step^4): inwards for 0 < step < 1.
    """
    return point + step * direction(point + step * direction(point))


def optimistic(point: complex, previous: complex, step: float) -> complex:
    """Step along twice this direction less the last one: inwards for 0 < step < 1/sqrt(3).

    Up to step 1/2 the radius settles to a change of sqrt((1 + sqrt(1 - 4 step^2)) / 2) per step.
    """
    return point + step * (2 * direction(point) - direction(previous))


METHODS: dict[str, Update] = {
    "simultaneous": simultaneous,
    "alternating": alternating,
    "extragradient": extragradient,
    "optimistic": optimistic,
}


def play(
    method: str, step: float, steps: int, start: tuple[float, float] = (1.0, 0.0)
) -> NDArray[np.float64]:
    """Play the game by one of METHODS; return the path, (steps + 1, 2), start first.

    step: finite and positive; steps: at least 1; start: two finite numbers (x, y).
    Raises InputError for anything else, and where the path leaves the range of floats.
    Source: ICLR 2020 version, Appendix D ("simultaneous"); the others are the usual remedies.
    """
    if method not in METHODS:
        raise InputError(f"Unknown method {method!r}: choose one of {', '.join(METHODS)}.")
    _check(step, steps, start)
    points = [complex(*start)]
    for _ in range(steps):
        points.append(METHODS[method](points[-1], points[max(len(points) - 2, 0)], step))
    return _path(points)


def play_learned(
    step: float, steps: int, rate: float = 0.1, start: tuple[float, float] = (1.0, 0.0)
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Play with a learned inner player: y moves by U(y, g) = y + step * (a * g + b * y), g = x.

    The order is that of the ICLR 2020 version's Algorithm 3 (L2L for GAIL, Appendix C): y moves by
    U; U's parameters (a, b) climb f(x, U(y, g; a, b)) at the given rate; x then answers the new y.
    (Climb, as section 4 says; Algorithm 3 prints "minimizing".) They start at (1, 0), the
    "alternating" method. Returns the path, (steps + 1, 2), and (a, b) at each step, same shape.

    What it does: along an alternating orbit x * y is slightly below 0 on average, so climbing makes
    b negative. With (a, b) at rest the radius changes by sqrt(1 + step * b) per step, that is, the
    path spirals in, at first by way of a wider orbit because a grows. It hangs on taking turns:
    had x answered the old y, the same rule would be thrown outwards.
    Raises InputError as `play` does, and for a rate that is not finite and positive.
    """
    _check(step, steps, start)
    if not (math.isfinite(rate) and rate > 0):
        raise InputError(f"The learning rate must be finite and positive, not {rate!r}.")
    (x, y), (a, b) = start, (1.0, 0.0)
    points, coefficients = [complex(x, y)], [(a, b)]
    for _ in range(steps):
        moved = y + step * (a * x + b * y)
        a, b = a + rate * step * x * x, b + rate * step * x * y
        x, y = x - step * moved, moved
        points.append(complex(x, y))
        coefficients.append((a, b))
    return _path(points), np.array(coefficients)


def radius(path: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance from the equilibrium (0, 0) at each point of a path: (n, 2) -> (n,)."""
    return np.hypot(path[:, 0], path[:, 1])


def field(
    extent: float = 1.5, n: int = 13
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """The update direction on an n by n grid over [-extent, extent]^2: x, y, -y, x, each (n, n).

    Made for `Axes.quiver`. Raises InputError unless extent is finite and positive and n >= 2.
    Source: the arrows of Figure 8, ICLR 2020 version, Appendix D.
    """
    if not (math.isfinite(extent) and extent > 0 and n >= 2):
        raise InputError(f"A field needs a positive extent and n >= 2, not {extent!r} and {n!r}.")
    x, y = np.meshgrid(np.linspace(-extent, extent, n), np.linspace(-extent, extent, n))
    return x, y, -y, x


def _check(step: float, steps: int, start: tuple[float, float]) -> None:
    if not (math.isfinite(step) and step > 0):
        raise InputError(f"The step size must be finite and positive, not {step!r}.")
    if steps < 1 or steps != int(steps):
        raise InputError(f"The number of steps must be a whole number from 1, not {steps!r}.")
    if len(start) != 2 or not all(math.isfinite(v) for v in start):
        raise InputError(f"The start must be two finite numbers (x, y), not {start!r}.")


def _path(points: list[complex]) -> NDArray[np.float64]:
    path = np.array(points, dtype=np.complex128).view(np.float64).reshape(-1, 2)
    if not np.isfinite(path).all():
        first = int(np.argmin(np.isfinite(path).all(axis=1)))
        raise InputError(
            f"The path leaves the range of floats at step {first}: take a smaller or fewer steps."
        )
    return path
