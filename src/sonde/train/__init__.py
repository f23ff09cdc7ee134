"""Losses at sites: plain torch modules, attached by ``sonde.training`` to any model.

A loss is called with rows and with columns by the names of its arguments; its value is the number
that the measure of the same name reports.
"""

from sonde.train.align import Align
from sonde.train.contrast import Contrast
from sonde.train.rate_reduction import RateReduction
from sonde.train.separate import Separate

__all__ = ["Align", "Contrast", "RateReduction", "Separate"]
