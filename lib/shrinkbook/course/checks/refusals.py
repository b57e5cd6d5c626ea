"""Bad input has to be refused."""

from collections.abc import Callable


def refused(what: str, act: Callable[[], object]) -> None:
    """An AssertionError unless the call raises a ValueError.

    Args:
        what: the call, as a person would write it.
    """
    try:
        act()
    except ValueError:
        return
    raise AssertionError(f"{what} should raise a ValueError, as the docstring says")
