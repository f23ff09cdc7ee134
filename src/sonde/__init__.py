"""A probe for the hidden states of neural networks: read, fit, act.

The names below are those that people type daily; the rest is reached through its package, e.g.
``sonde.measure.cka`` or ``sonde.detect.Mahalanobis``. Nothing heavy is imported before it is used.
"""

from sonde import _opening
from sonde.core._lazy import lazy

__version__ = "0.1.0"

__all__, __getattr__, __dir__ = lazy(__name__)

_opening.watch()
