"""Detectors score rows, always higher = more unusual; shifts compare two data sets."""

from sonde.detect.ash import ASH
from sonde.detect.classifier_two_sample import ClassifierTwoSample
from sonde.detect.clue import CLUE
from sonde.detect.contrast_probe import ContrastProbe
from sonde.detect.costarr import COSTARR
from sonde.detect.dice import DICE
from sonde.detect.dict_lookup import DictLookup
from sonde.detect.energy import Energy
from sonde.detect.entropy import Entropy
from sonde.detect.fdbd import FDBD
from sonde.detect.feature_gaps import FeatureGaps
from sonde.detect.fod import FOD
from sonde.detect.fourier_mmd import FourierMMD
from sonde.detect.frechet import Frechet
from sonde.detect.gen import GEN
from sonde.detect.grad_norm import GradNorm
from sonde.detect.hotelling import Hotelling
from sonde.detect.kl_matching import KLMatching
from sonde.detect.knn import KNN
from sonde.detect.linear_probe import LinearProbe
from sonde.detect.mahalanobis import Mahalanobis
from sonde.detect.mass_mean import MassMean
from sonde.detect.max_logit import MaxLogit
from sonde.detect.mmd import MMD
from sonde.detect.msp import MSP
from sonde.detect.nac import NAC
from sonde.detect.nn_guide import NNGuide
from sonde.detect.odin import ODIN
from sonde.detect.padim import PaDiM
from sonde.detect.patch_core import PatchCore
from sonde.detect.pawn import PAWN
from sonde.detect.react import ReAct
from sonde.detect.reconstruction_shift import ReconstructionShift
from sonde.detect.relative_mahalanobis import RelativeMahalanobis
from sonde.detect.reranking import rerank, top_majority
from sonde.detect.scale import SCALE
from sonde.detect.she import SHE
from sonde.detect.simple_net import SimpleNet
from sonde.detect.subspace_shift import SubspaceShift
from sonde.detect.token_statistics import TokenStatistics
from sonde.detect.trajectory_verifier import TrajectoryVerifier
from sonde.detect.unit_shift import UnitShift
from sonde.detect.vim import ViM

__all__ = [
    "ASH",
    "CLUE",
    "COSTARR",
    "DICE",
    "FDBD",
    "FOD",
    "GEN",
    "KNN",
    "MMD",
    "MSP",
    "NAC",
    "ODIN",
    "PAWN",
    "SCALE",
    "SHE",
    "ClassifierTwoSample",
    "ContrastProbe",
    "DictLookup",
    "Energy",
    "Entropy",
    "FeatureGaps",
    "FourierMMD",
    "Frechet",
    "GradNorm",
    "Hotelling",
    "KLMatching",
    "LinearProbe",
    "Mahalanobis",
    "MassMean",
    "MaxLogit",
    "NNGuide",
    "PaDiM",
    "PatchCore",
    "ReAct",
    "ReconstructionShift",
    "RelativeMahalanobis",
    "SimpleNet",
    "SubspaceShift",
    "TokenStatistics",
    "TrajectoryVerifier",
    "UnitShift",
    "ViM",
    "rerank",
    "top_majority",
]
