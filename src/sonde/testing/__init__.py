"""Test helpers: a scan as a test, and the laws that every method must obey.

``assert_scan(model, data, "accuracy>=.95")`` and ``check(MyMethod)``. No other part of sonde
imports this package; only the plugin of pytest needs a test framework.
"""

from sonde.core._lazy import lazy

__all__, __getattr__, __dir__ = lazy(__name__)
