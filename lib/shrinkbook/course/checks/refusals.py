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
    except Exception as error:
        raise AssertionError(f"{what} raises {type(error).__name__}; it should be a ValueError") from None
    raise AssertionError(f"{what} should raise a ValueError")
