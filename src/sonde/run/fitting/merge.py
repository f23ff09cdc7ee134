"""``sonde.merge``: merge fitted bundles of different data, or of different units."""

from functools import reduce
from pathlib import Path

from sonde.core.errors import InputError
from sonde.run.fitting.calibrations import are_calibrations, merge_calibrations
from sonde.run.fitting.fitted import Fitted, as_fitted


def merge(*bundles: Fitted | str | Path) -> Fitted:
    """Return the bundle that one pass over all the data would give, up to rounding.

    Parameters
    ----------
    *bundles : Fitted, or the paths of bundles
        Fitted with the same instruments on the same model and sites, on different data; or copies
        of one bundle that were calibrated on different data.

    Raises
    ------
    StateError
        If the bundles do not fit together, or share units or most rows, which would count twice.
    """
    if not bundles:
        raise InputError("merge: expected at least one fitted bundle, got none.")
    return reduce(_merged, (as_fitted(bundle, "merge") for bundle in bundles))


def _merged(a: Fitted, b: Fitted) -> Fitted:
    return merge_calibrations(a, b) if are_calibrations(a, b) else Fitted.merge(a, b)
