"""Detectors: what scores rows, always higher = more unusual."""

from sonde.detect.energy import Energy
from sonde.detect.knn import KNN
from sonde.detect.mahalanobis import Mahalanobis
from sonde.detect.nac import NAC
from sonde.detect.relative_mahalanobis import RelativeMahalanobis

__all__ = [
    "KNN",
    "NAC",
    "Energy",
    "Mahalanobis",
    "RelativeMahalanobis",
]
