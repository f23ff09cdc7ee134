"""Test whether a detector was calibrated on enough rows for any alarm."""

from sonde.run.fitting.fitted import Fitted


def lacking(fitted: Fitted, name: tuple[str, str], alpha: float) -> tuple[int, int] | None:
    """Return (calibration rows, rows needed) if no p-value can reach ``alpha``, else None."""
    calibration = getattr(fitted.scorers.get(name), "calibration", None)
    whole = getattr(calibration, "whole", calibration)
    if whole is None or whole.n >= whole.needed(alpha):
        return None
    return whole.n, whole.needed(alpha)


def few_text(alpha: float, n: int, needed: int) -> str:
    """Return a note that ``n`` calibration rows are too few for any alarm, with advice."""
    return (
        f"p <= {alpha:g} needs at least {needed} calibration rows, got {n}. Calibrate on more "
        "rows (sonde calibrate), or use a larger --alarm."
    )
