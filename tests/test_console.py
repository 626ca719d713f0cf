import pytest

from liger_export.console import interrupt, raise_swallowed_interrupt


def test_an_interrupt_that_something_swallowed_is_raised_once_more() -> None:
    raise_swallowed_interrupt()
    with pytest.raises(KeyboardInterrupt):
        interrupt()
    with pytest.raises(KeyboardInterrupt):
        raise_swallowed_interrupt()
    raise_swallowed_interrupt()
