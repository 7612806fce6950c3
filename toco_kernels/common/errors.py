"""One message style for bad arguments: the argument's name, what it must be, what it was."""

from numbers import Integral, Real


def bad_value(argument: str, must: str, was: object) -> ValueError:
    """`raise bad_value("k", "be at least 1", k)`: k must be at least 1, got 0."""
    return ValueError(f"{argument} must {must}, got {was}")


def number(value: object, argument: str) -> float:
    """`value` as a float; it must be a number, and no tensor: that would get no gradient, and a GPU would wait."""
    if not isinstance(value, Real):
        raise bad_type(argument, "be a number", type(value).__name__)
    return float(value)


def integer(value: object, argument: str, least: int) -> int:
    """`value`, which must be an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, (int, Integral)) or value < least:
        raise bad_value(argument, f"be an integer >= {least}", repr(value))
    return value if isinstance(value, int) else int(value)


def bad_type(argument: str, must: str, was: object) -> TypeError:
    """The same for types and dtypes."""
    return TypeError(f"{argument} must {must}, got {was}")
