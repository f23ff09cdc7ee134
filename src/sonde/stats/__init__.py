"""The shared sketches: mergeable statistics that many methods read."""

from sonde.stats.calibrated import Calibrated, CalibratedScorer
from sonde.stats.hash_sample import HashSample, HashSampleState
from sonde.stats.moments import Moments, MomentsState

__all__ = [
    "Calibrated",
    "CalibratedScorer",
    "HashSample",
    "HashSampleState",
    "Moments",
    "MomentsState",
]
