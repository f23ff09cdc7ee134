"""Scores made alarms: combined over layers and detectors, and watched over time."""

from sonde.alarms.combination import bonferroni, cauchy, simes, twice_mean
from sonde.alarms.cusum import Cusum
from sonde.alarms.eprocess import ChangeDetector, EProcess, bet, mixture_wealth
from sonde.alarms.fusion import FusedScore, fuse, surprise

__all__ = [
    "ChangeDetector",
    "Cusum",
    "EProcess",
    "FusedScore",
    "bet",
    "bonferroni",
    "cauchy",
    "fuse",
    "mixture_wealth",
    "simes",
    "surprise",
    "twice_mean",
]
