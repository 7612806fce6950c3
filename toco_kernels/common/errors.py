"""One message style for bad arguments: the argument's name, what it must be, what it was."""


def bad_value(argument: str, must: str, was: object) -> ValueError:
    """`raise bad_value("k", "be at least 1", k)`: k must be at least 1, got 0."""
    return ValueError(f"{argument} must {must}, got {was}")


def bad_type(argument: str, must: str, was: object) -> TypeError:
    """The same for types and dtypes."""
    return TypeError(f"{argument} must {must}, got {was}")
