"""How well scores tell, with intervals over groups: for labelled rows, steps, pixels."""

from sonde.metrics.intervals import Metric, difference
from sonde.metrics.maps import aupro, pixel_auroc
from sonde.metrics.probabilities import brier_score, expected_calibration_error
from sonde.metrics.ranking import aupr, auroc, fpr_at_tpr
from sonde.metrics.rejection import prediction_rejection
from sonde.metrics.roc import Roc, roc
from sonde.metrics.routing import Cascade
from sonde.metrics.steps import joint_match, localisation, step_f1
from sonde.metrics.weak_groups import WeakGroup, weak_groups
from sonde.metrics.within import auroc_within

__all__ = [
    "Cascade",
    "Metric",
    "Roc",
    "WeakGroup",
    "aupr",
    "aupro",
    "auroc",
    "auroc_within",
    "brier_score",
    "difference",
    "expected_calibration_error",
    "fpr_at_tpr",
    "joint_match",
    "localisation",
    "pixel_auroc",
    "prediction_rejection",
    "roc",
    "step_f1",
    "weak_groups",
]
