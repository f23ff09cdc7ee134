"""Every picture of a scan, in the order of its page."""

from typing import Any

from sonde.report._picture import Picture
from sonde.report._pictures_answers import (
    confusion_picture,
    labels_picture,
    prediction_picture,
)
from sonde.report._pictures_depth import depth_pictures, measure_pictures
from sonde.report._pictures_sites import similarity_picture, spectrum_picture
from sonde.report._pictures_units import units_picture
from sonde.report._pictures_versus import (
    detectors_picture,
    rows_pictures,
    scores_picture,
    shift_picture,
)


def scan_pictures(report: dict[str, Any]) -> list[Picture]:
    """Return the pictures that the JSON of a scan has numbers for."""
    if not report["sites"]:
        return []
    parts = {name: report.get(name) for name in ("similarity", "labels", "prediction", "versus")}
    table = (report.get("answers") or {}).get("confusion")
    made = [
        confusion_picture(table) if table else None,
        *depth_pictures(report),
        spectrum_picture(report),
        similarity_picture(parts["similarity"]) if parts["similarity"] else None,
        units_picture(report.get("units") or []),
        labels_picture(report) if parts["labels"] else None,
        prediction_picture(parts["prediction"]) if parts["prediction"] else None,
        *measure_pictures(report),
        detectors_picture(report) if parts["versus"] else None,
        shift_picture(report) if parts["versus"] else None,
        scores_picture(report) if parts["versus"] else None,
        *rows_pictures(report),
    ]
    return [picture for picture in made if picture is not None]
