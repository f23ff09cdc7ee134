"""How much of a ``dim x dim`` scatter is held: the whole of it, or its diagonal.

Instruments with this parameter hold the whole up to ``WIDEST_FULL`` dimensions by default and the
diagonal above.
"""

from typing import Literal

from sonde.core.instrument import WIDEST_FULL

AnyScatter = Literal["auto", "full", "diag"]


def is_frugal(scatter: str, dim: int) -> bool:
    """Return whether the variances alone are kept, because rows are wide and ``"auto"`` was asked.

    Examples
    --------
    >>> is_frugal("auto", 768), is_frugal("auto", 4096), is_frugal("full", 4096)
    (False, True, False)
    """
    return scatter == "auto" and dim > WIDEST_FULL
