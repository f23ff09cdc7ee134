"""The properties that every method must have (its laws): ``sonde.testing.check(MyMethod)``.

No other part of sonde imports this package, and it needs no test framework.
"""

from sonde.core._lazy import lazy

__all__, __getattr__, __dir__ = lazy(__name__)
