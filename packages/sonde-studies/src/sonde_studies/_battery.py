"""Detectors that can score one image of a classifier, and the reasons against the others."""

from dataclasses import dataclass, replace
from typing import Any

from sonde.core import Detector
from sonde.detect import (
    ASH,
    COSTARR,
    DICE,
    FDBD,
    FOD,
    GEN,
    KNN,
    MSP,
    NAC,
    ODIN,
    SCALE,
    SHE,
    DictLookup,
    Energy,
    Entropy,
    GradNorm,
    KLMatching,
    Mahalanobis,
    MaxLogit,
    NNGuide,
    PaDiM,
    PatchCore,
    ReAct,
    RelativeMahalanobis,
    SimpleNet,
    ViM,
)

LAST, GRID = "body:out", "body.1:out"
SMALL = FOD(width=32, heads=4, layers=2, batch=8, rate=5e-3, passes=20)
"""Of FOD's net: that of its own study; the default makes 50,000 steps on these images."""


@dataclass(frozen=True)
class Contestant:
    """A detector, and the reading of a model that it needs.

    Parameters
    ----------
    detector : Detector
    reading : dict
        Options of ``sonde.read``.
    """

    detector: Detector
    reading: dict[str, Any]

    @property
    def name(self) -> str:
        """Class name of the detector."""
        return type(self.detector).__name__


def of_rows() -> list[Contestant]:
    """Return the detectors that score the last hidden layer or the logits, with defaults."""
    ready: list[Detector] = [
        *(MSP(), MaxLogit(), Energy(), Entropy(), GEN(), KLMatching(), GradNorm()),
        *(Mahalanobis(), RelativeMahalanobis(), KNN(k=10), NNGuide(), ViM()),
        *(ReAct(), ASH(), SCALE(), DICE(), SHE(), FDBD(), COSTARR()),
    ]
    return [
        *(Contestant(detector, {"sites": LAST}) for detector in ready),
        Contestant(NAC(), {"sites": LAST, "objective": "kl_uniform"}),
        Contestant(ODIN(), {"sites": LAST, **ODIN().reading()}),
    ]


def of_patches(tiny: bool = False) -> list[Contestant]:
    """Return the detectors that score an image by its worst patch of the last feature map."""
    patches = {"sites": GRID, "reducer": "patches"}
    net = SimpleNet(passes=1, steps=1) if tiny else SimpleNet()
    fod = replace(SMALL, passes=1) if tiny else SMALL
    return [
        *(Contestant(detector, patches) for detector in (PaDiM(), DictLookup(), net, fod)),
        Contestant(PatchCore(), patches | PatchCore().reading()),
    ]


CANNOT = {
    "CLUE": "judges a trace of reasoning, and needs traces that failed",
    "ContrastProbe": "needs each statement with both answers",
    "FeatureGaps": "needs prompts that contrast, and answers known as wrong",
    "LinearProbe": "needs rows that are known as unusual or wrong",
    "MassMean": "needs rows that are known as unusual or wrong",
    "PAWN": "judges a text by the likelihood of its tokens",
    "TokenStatistics": "judges a text by the likelihood of its tokens",
    "TrajectoryVerifier": "judges the steps of a trajectory",
}
"""Detectors that are left out, and why; a test holds that none is forgotten."""
