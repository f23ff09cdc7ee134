"""How much of a ``dim x dim`` scatter is stored: all, or its diagonal.

Instruments with this parameter hold the whole up to ``WIDEST_FULL`` dimensions by default and the
diagonal above.
"""

from typing import Literal

from sonde.core.instrument import WIDEST_FULL

AnyScatter = Literal["auto", "full", "diag"]


def is_frugal(scatter: str, dim: int) -> bool:
    """Return whether only variances are stored, for wide rows under ``"auto"``.

    Examples
    --------
    >>> is_frugal("auto", 768), is_frugal("auto", 4096), is_frugal("full", 4096)
    (False, True, False)
    """
    return scatter == "auto" and dim > WIDEST_FULL
