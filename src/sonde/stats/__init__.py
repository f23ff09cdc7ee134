"""The shared sketches: mergeable statistics that many methods read."""

from sonde.stats.calibrated import Calibrated, CalibratedScorer
from sonde.stats.class_moments import ClassMoments, ClassMomentsState, UnlabelledState
from sonde.stats.cross_moments import CrossMoments, CrossMomentsState
from sonde.stats.hash_sample import HashSample, HashSampleState
from sonde.stats.moments import Moments, MomentsState
from sonde.stats.scalars import Scalars, ScalarsState

__all__ = [
    "Calibrated",
    "CalibratedScorer",
    "ClassMoments",
    "ClassMomentsState",
    "CrossMoments",
    "CrossMomentsState",
    "HashSample",
    "HashSampleState",
    "Moments",
    "MomentsState",
    "Scalars",
    "ScalarsState",
    "UnlabelledState",
]
