"""What a test knows about a value and a type checker does not, checked as the test runs."""

from typing import TypeVar

T = TypeVar("T")


def present(value: T | None) -> T:
    """Return ``value``, which must not be None."""
    assert value is not None
    return value


def expect(kind: type[T], value: object) -> T:
    """Return ``value``, which must be of this kind."""
    assert isinstance(value, kind), f"expected {kind.__name__}, got {type(value).__name__}"
    return value
