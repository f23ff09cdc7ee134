"""The properties that every method must have (its laws): ``sonde.testing.check(MyMethod)``.

No other part of sonde imports this package, and it needs no test framework.
"""

from sonde.testing.decode_laws import causal_model
from sonde.testing.explainer_laws import ExplainerCase
from sonde.testing.kinds import KINDS, Law, check, laws_of
from sonde.testing.layer_laws import LayerCase
from sonde.testing.rewrite_laws import RewriteCase
from sonde.testing.statistic_laws import Case

__all__ = [
    "KINDS",
    "Case",
    "ExplainerCase",
    "Law",
    "LayerCase",
    "RewriteCase",
    "causal_model",
    "check",
    "laws_of",
]
