"""A probe for the hidden states of neural networks: read, fit, act.

The names below are those that people type daily; the rest is reached through its package, e.g.
``sonde.measure.cka`` or ``sonde.detect.Mahalanobis``. Nothing heavy is imported before it is used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from sonde import _opening

if TYPE_CHECKING:
    from sonde import compress, detect, edit, explain, layers, measure
    from sonde.core import (
        Calibration,
        CalibrationError,
        InputError,
        Model,
        Reducer,
        ShapeError,
        Site,
        SiteError,
        SondeError,
        SondeWarning,
        StateError,
        StoreError,
        Stream,
    )
    from sonde.data import load
    from sonde.report import Report, scan
    from sonde.run.bundles.fitted import Fitted
    from sonde.run.bundles.merge import merge
    from sonde.run.calibrating.calibrate import calibrate
    from sonde.run.fitting.fit import fit
    from sonde.run.reading.read import read
    from sonde.run.scoring.score import score
    from sonde.run.training.callback import TrackCallback
    from sonde.run.training.track import Track
    from sonde.run.watching.guard import Guard
    from sonde.tap import Tap, editing
    from sonde.tap.cache.evicting import caching
    from sonde.weights import undo

__version__ = "0.1.0"

_HOMES = {
    "Calibration": "sonde.core",
    "CalibrationError": "sonde.core",
    "Fitted": "sonde.run.bundles.fitted",
    "Guard": "sonde.run.watching.guard",
    "InputError": "sonde.core",
    "Model": "sonde.core",
    "Reducer": "sonde.core",
    "Report": "sonde.report",
    "ShapeError": "sonde.core",
    "Site": "sonde.core",
    "SiteError": "sonde.core",
    "SondeError": "sonde.core",
    "SondeWarning": "sonde.core",
    "StateError": "sonde.core",
    "StoreError": "sonde.core",
    "Stream": "sonde.core",
    "Tap": "sonde.tap",
    "Track": "sonde.run.training.track",
    "TrackCallback": "sonde.run.training.callback",
    "caching": "sonde.tap.cache.evicting",
    "calibrate": "sonde.run.calibrating.calibrate",
    "compress": "",
    "detect": "",
    "edit": "",
    "explain": "",
    "editing": "sonde.tap",
    "fit": "sonde.run.fitting.fit",
    "layers": "",
    "load": "sonde.data",
    "measure": "",
    "merge": "sonde.run.bundles.merge",
    "read": "sonde.run.reading.read",
    "scan": "sonde.report",
    "score": "sonde.run.scoring.score",
    "undo": "sonde.weights",
}

__all__ = [
    "Calibration",
    "CalibrationError",
    "Fitted",
    "Guard",
    "InputError",
    "Model",
    "Reducer",
    "Report",
    "ShapeError",
    "Site",
    "SiteError",
    "SondeError",
    "SondeWarning",
    "StateError",
    "StoreError",
    "Stream",
    "Tap",
    "Track",
    "TrackCallback",
    "caching",
    "calibrate",
    "compress",
    "detect",
    "edit",
    "editing",
    "explain",
    "fit",
    "layers",
    "load",
    "measure",
    "merge",
    "read",
    "scan",
    "score",
    "undo",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sonde' has no attribute {name!r}")
    home = _HOMES[name]
    value = (
        getattr(importlib.import_module(home), name)
        if home
        else importlib.import_module(f"sonde.{name}")
    )
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])


_opening.watch()
