from sonde.metrics.intervals import Metric as Metric
from sonde.metrics.intervals import difference as difference
from sonde.metrics.maps import aupro as aupro
from sonde.metrics.maps import pixel_auroc as pixel_auroc
from sonde.metrics.probabilities import brier_score as brier_score
from sonde.metrics.probabilities import expected_calibration_error as expected_calibration_error
from sonde.metrics.ranking import aupr as aupr
from sonde.metrics.ranking import auroc as auroc
from sonde.metrics.ranking import fpr_at_tpr as fpr_at_tpr
from sonde.metrics.rejection import prediction_rejection as prediction_rejection
from sonde.metrics.roc import Roc as Roc
from sonde.metrics.roc import roc as roc
from sonde.metrics.routing import Cascade as Cascade
from sonde.metrics.settings import SettingChoice as SettingChoice
from sonde.metrics.settings import choose_settings as choose_settings
from sonde.metrics.steps import joint_match as joint_match
from sonde.metrics.steps import localisation as localisation
from sonde.metrics.steps import step_f1 as step_f1
from sonde.metrics.weak_groups import WeakGroup as WeakGroup
from sonde.metrics.weak_groups import weak_groups as weak_groups
from sonde.metrics.within import auroc_within as auroc_within
from sonde.metrics.wrong_labels import WrongLabels as WrongLabels
from sonde.metrics.wrong_labels import wrong_labels as wrong_labels

__all__: list[str]
