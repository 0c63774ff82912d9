"""The one error for bad input, and the checks of plain settings that raise it."""

import math
from collections.abc import Sequence
from numbers import Real

WHOLE = ("steps", "inner_steps", "draws", "epochs", "batch_size", "replays", "every")


class InputError(ValueError):
    """A user's mistake or a missing file; the message is one sentence that names the fix."""


def whole_number(name: str, text: str) -> int:
    """The text as a whole number; InputError if it is none."""
    try:
        return int(text)
    except ValueError:
        raise InputError(f"{name} must be a whole number, not '{text}'.") from None


def fraction(text: str) -> float:
    """A number, or two with / between them, as 8/255. ValueError if it is neither."""
    top, slash, bottom = text.partition("/")
    try:
        return float(top) / float(bottom) if slash else float(top)
    except ZeroDivisionError:
        return math.inf


def is_number(value: object) -> bool:
    """Whether it is a finite number, and no text or truth value."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def check_positive(**values: float) -> None:
    """Raise InputError unless all are finite and above 0, and those that count are whole."""
    for name, value in values.items():
        if not (is_number(value) and value > 0):
            raise InputError(f"{name} must be a positive number, not {value}.")
        if name in WHOLE and value % 1:
            raise InputError(f"{name} must be a whole number, not {value}.")


def check_not_negative(**values: float) -> None:
    """Raise InputError unless all are finite and 0 or more."""
    for name, value in values.items():
        if not (is_number(value) and value >= 0):
            raise InputError(f"{name} must be 0 or more, not {value}.")


def check_choice(**values: tuple[str, Sequence[str]]) -> None:
    """Raise InputError unless each value is one of its choices."""
    for name, (value, choices) in values.items():
        if value not in choices:
            raise InputError(f"{name} must be one of {', '.join(choices)}, not '{value}'.")
