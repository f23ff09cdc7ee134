"""The nouns that everything else plugs into. Nothing in here imports upward."""

from sonde.core.batch import Batch, SiteSchema
from sonde.core.calibration import Calibration
from sonde.core.columns import COLUMNS
from sonde.core.edit import Add, AffineMap, Clamp, Edit, EditContext, Project, Replace, Scale
from sonde.core.errors import (
    CalibrationError,
    InputError,
    ShapeError,
    SiteError,
    SondeError,
    SondeWarning,
    StateError,
    StoreError,
    near,
)
from sonde.core.inputs import InputBatch, Inputs, Model
from sonde.core.instrument import Detector, Every, Instrument, Read, Subsample, Where
from sonde.core.plan import Plan, Split
from sonde.core.result import Result, Scorer, infinite_where_nonfinite
from sonde.core.shift import Comparison, Shift, Side
from sonde.core.site import Reducer, Site
from sonde.core.state import State, size_bytes
from sonde.core.statistic import Learner, Statistic
from sonde.core.stream import Stream

__all__ = [
    "COLUMNS",
    "Add",
    "AffineMap",
    "Batch",
    "Calibration",
    "CalibrationError",
    "Clamp",
    "Comparison",
    "Detector",
    "Edit",
    "EditContext",
    "Every",
    "InputBatch",
    "InputError",
    "Inputs",
    "Instrument",
    "Learner",
    "Model",
    "Plan",
    "Project",
    "Read",
    "Reducer",
    "Replace",
    "Result",
    "Scale",
    "Scorer",
    "ShapeError",
    "Shift",
    "Side",
    "Site",
    "SiteError",
    "SiteSchema",
    "SondeError",
    "SondeWarning",
    "Split",
    "State",
    "StateError",
    "Statistic",
    "StoreError",
    "Stream",
    "Subsample",
    "Where",
    "infinite_where_nonfinite",
    "near",
    "size_bytes",
]
