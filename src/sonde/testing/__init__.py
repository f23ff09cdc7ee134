"""The laws that every method keeps, for tests: ``sonde.testing.check(MyMethod)``.

No part of sonde imports this at run time, and it needs no test framework.
"""

from sonde.testing.decode_laws import causal_model
from sonde.testing.kinds import KINDS, Law, check, laws_of
from sonde.testing.statistic_laws import Case

__all__ = ["KINDS", "Case", "Law", "causal_model", "check", "laws_of"]
