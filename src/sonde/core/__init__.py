"""The nouns that everything else plugs into. Nothing in here imports upward.

A name is imported when it is first used: errors and wording need no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sonde.core.batch import Batch, SiteSchema
    from sonde.core.cache_rule import CachedTokens, CacheRule
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
    from sonde.core.explainer import Explainer, Judge
    from sonde.core.inputs import InputBatch, Inputs, Model
    from sonde.core.instrument import Detector, Every, Instrument, Read, Subsample, Where
    from sonde.core.plan import Plan, Split
    from sonde.core.result import Result, Scorer, infinite_where_nonfinite
    from sonde.core.shift import Comparison, Shift, Side
    from sonde.core.site import Reducer, Site
    from sonde.core.state import State, size_bytes
    from sonde.core.statistic import Learner, Statistic
    from sonde.core.stream import Stream

_HOMES = {
    "Add": "edit",
    "AffineMap": "edit",
    "Batch": "batch",
    "COLUMNS": "columns",
    "CacheRule": "cache_rule",
    "CachedTokens": "cache_rule",
    "Calibration": "calibration",
    "CalibrationError": "errors",
    "Clamp": "edit",
    "Comparison": "shift",
    "Detector": "instrument",
    "Edit": "edit",
    "EditContext": "edit",
    "Every": "instrument",
    "Explainer": "explainer",
    "InputBatch": "inputs",
    "InputError": "errors",
    "Inputs": "inputs",
    "Instrument": "instrument",
    "Judge": "explainer",
    "Learner": "statistic",
    "Model": "inputs",
    "Plan": "plan",
    "Project": "edit",
    "Read": "instrument",
    "Reducer": "site",
    "Replace": "edit",
    "Result": "result",
    "Scale": "edit",
    "Scorer": "result",
    "ShapeError": "errors",
    "Shift": "shift",
    "Side": "shift",
    "Site": "site",
    "SiteError": "errors",
    "SiteSchema": "batch",
    "SondeError": "errors",
    "SondeWarning": "errors",
    "Split": "plan",
    "State": "state",
    "StateError": "errors",
    "Statistic": "statistic",
    "StoreError": "errors",
    "Stream": "stream",
    "Subsample": "instrument",
    "Where": "instrument",
    "infinite_where_nonfinite": "result",
    "near": "errors",
    "size_bytes": "state",
}

__all__ = [
    "COLUMNS",
    "Add",
    "AffineMap",
    "Batch",
    "CacheRule",
    "CachedTokens",
    "Calibration",
    "CalibrationError",
    "Clamp",
    "Comparison",
    "Detector",
    "Edit",
    "EditContext",
    "Every",
    "Explainer",
    "InputBatch",
    "InputError",
    "Inputs",
    "Instrument",
    "Judge",
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


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sonde.core' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"sonde.core.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
