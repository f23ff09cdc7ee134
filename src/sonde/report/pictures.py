"""Pictures of scores from Python: each function returns the text of an SVG file.

A notebook shows what they return, ``.save(path)`` writes it as SVG or PNG. The pages of
``sonde evaluate`` and ``sonde score`` hold the same pictures.
"""

from typing import Any

from sonde.metrics import auroc as _auroc
from sonde.report._axes import WIDE
from sonde.report._format import number
from sonde.report._pictures_scores import auroc_picture, histogram_picture, roc_picture
from sonde.report._standalone import Svg, drawn
from sonde.run.curves import RESAMPLES, roc_points
from sonde.run.curves import histogram as _histogram

__all__ = ["Svg", "auroc_by_site", "histogram", "roc"]


def histogram(
    usual: Any,
    unusual: Any = None,
    threshold: float | None = None,
    *,
    title: str = "",
    bins: int = 40,
    width: int = WIDE,
) -> Svg:
    """Return the histogram of the scores of usual rows, and of unusual ones beside them.

    Parameters
    ----------
    usual, unusual : array (row,)
        Scores, higher = more unusual. Infinite ones are counted but not drawn.
    threshold : float, optional
        Drawn as a dashed line, e.g. ``calibration.threshold(0.05)``.
    title : str
        What the scores are of.
    bins : int, default=40
    width : int, default=770

    Raises
    ------
    InputError
        If there is no finite score, or a NaN.

    Examples
    --------
    >>> histogram([0.1, 0.2, 0.4], [0.9], threshold=0.5)[:4]
    '<svg'
    """
    found = _histogram(usual, () if unusual is None else unusual, bins)
    kinds = ("usual",) if unusual is None else ("usual", "unusual")
    made = histogram_picture({**found, "threshold": threshold}, title, kinds)
    return drawn([made] if made else [], width)


def roc(
    scores: Any,
    unusual: Any,
    group: Any = None,
    *,
    title: str = "",
    resamples: int = RESAMPLES,
    seed: int = 0,
    width: int = 480,
) -> Svg:
    """Return the ROC curve with a 95 % band over resampled groups.

    Parameters
    ----------
    scores, unusual, group, resamples, seed
        As in ``sonde.metrics.auroc``.
    title : str
    width : int, default=480

    Examples
    --------
    >>> roc([0.1, 0.4, 0.4, 0.8], [0, 0, 1, 1], resamples=20)[:4]
    '<svg'
    """
    curve = roc_points(scores, unusual, group, resamples, seed)
    found = _auroc(scores, unusual, group, resamples=resamples, seed=seed)
    said = number(float(found.value))
    if found.low == found.low:
        said += f" ({number(found.low)} to {number(found.high)})"
    return drawn([roc_picture(curve, title, said)], width)


def auroc_by_site(rows: list[dict[str, Any]], instrument: str, *, width: int = WIDE) -> Svg:
    """Return the AUROC of one detector at each site, with intervals.

    Parameters
    ----------
    rows : list of dict
        What ``sonde.run.evaluate.evaluate`` returns.
    instrument : str
        The detector.
    width : int, default=770

    Raises
    ------
    InputError
        If no row of this detector has an AUROC.
    """
    made = auroc_picture([row for row in rows if row["instrument"] == instrument], instrument)
    return drawn([made] if made else [], width)
