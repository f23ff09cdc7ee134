"""Figures about hidden states: one site, a pair, or all layers at once."""

from sonde.measure.activation_coverage import ActivationCoverage, activation_coverage
from sonde.measure.active_variables import ActiveVariables, active_variables
from sonde.measure.alignment_quality import AlignmentQuality, alignment_quality
from sonde.measure.anisotropy import Anisotropy, anisotropy
from sonde.measure.attention_entropy import AttentionEntropy, attention_entropy
from sonde.measure.bottleneck_degree import BottleneckDegree, bottleneck_degree
from sonde.measure.cauchy_schwarz_information import (
    CauchySchwarzInformation,
    cauchy_schwarz_information,
)
from sonde.measure.cca import CCA, cca
from sonde.measure.cka import CKA, cka
from sonde.measure.cknna import CKNNA, cknna
from sonde.measure.class_separability import ClassSeparability, class_separability
from sonde.measure.cluster_indices import ClusterIndices, cluster_indices
from sonde.measure.coding_rate import CodingRate, coding_rate
from sonde.measure.compression_fidelity import compression_fidelity
from sonde.measure.correlation_match import CorrelationMatch, correlation_match
from sonde.measure.covariance import Covariance, covariance
from sonde.measure.crossnobis import Crossnobis, crossnobis
from sonde.measure.dci import DCI, dci
from sonde.measure.dead_units import DeadUnits, dead_units
from sonde.measure.depth_use import depth_use
from sonde.measure.disparity_decomposition import disparity_decomposition
from sonde.measure.effective_rank import EffectiveRank, effective_rank
from sonde.measure.emergence import emergence
from sonde.measure.entropy_rank import EntropyRank, entropy_rank
from sonde.measure.fair_accuracy_limit import fair_accuracy_limit
from sonde.measure.feature_complexity import FeatureComplexity, feature_complexity
from sonde.measure.gradient_conflict import GradientConflict, gradient_conflict
from sonde.measure.gradient_signal_to_noise import (
    GradientSignalToNoise,
    gradient_signal_to_noise,
)
from sonde.measure.gride import Gride, gride
from sonde.measure.grokking_stages import GrokkingStages, grokking_stages
from sonde.measure.gulp import GULP, gulp
from sonde.measure.info_mec import InfoMEC, info_mec
from sonde.measure.info_nce import InfoNCE, info_nce
from sonde.measure.information_imbalance import InformationImbalance, information_imbalance
from sonde.measure.information_plane import InformationPlane, information_plane
from sonde.measure.isometry_error import isometry_error
from sonde.measure.kernel_cka import KernelCKA, kernel_cka
from sonde.measure.layer_cka import LayerCKA, layer_cka
from sonde.measure.massive_activations import MassiveActivations, massive_activations
from sonde.measure.matrix_entropy import MatrixEntropy, matrix_entropy
from sonde.measure.minimum_entropy_coupling import minimum_entropy_coupling
from sonde.measure.mle_dimension import MLEDimension, mle_dimension
from sonde.measure.modularity import Modularity, modularity
from sonde.measure.mutual_information import MutualInformation, mutual_information
from sonde.measure.mutual_information_gap import MutualInformationGap, mutual_information_gap
from sonde.measure.mutual_knn import MutualKNN, mutual_knn
from sonde.measure.neural_collapse import NeuralCollapse, neural_collapse
from sonde.measure.norms import Norms, norms
from sonde.measure.participation_ratio import ParticipationRatio, participation_ratio
from sonde.measure.procrustes import Procrustes, procrustes
from sonde.measure.pwcca import PWCCA, pwcca
from sonde.measure.rate_reduction import RateReduction, rate_reduction
from sonde.measure.readout import Readout, readout
from sonde.measure.regression import Regression, regression
from sonde.measure.rsa import RSA, rsa
from sonde.measure.sap import SAP, sap
from sonde.measure.saturated_units import SaturatedUnits, saturated_units
from sonde.measure.shortcut_bias import ShortcutBias, ShortcutRows, shortcut_bias
from sonde.measure.spectrum import Spectrum, spectrum
from sonde.measure.spurious_shift import SpuriousShift, spurious_shift
from sonde.measure.stable_rank import StableRank, stable_rank
from sonde.measure.stitch import stitch
from sonde.measure.subpopulation_curve import (
    SubpopulationCurve,
    accuracies_at_angles,
    subpopulation_curve,
)
from sonde.measure.svcca import SVCCA, svcca
from sonde.measure.token_entropy import TokenEntropy, token_entropy
from sonde.measure.total_correlation import TotalCorrelation, total_correlation
from sonde.measure.two_nn import TwoNN, two_nn
from sonde.measure.uniformity import Uniformity, uniformity
from sonde.measure.unit_clusters import UnitClusters, unit_clusters
from sonde.measure.unit_entropy import UnitEntropy, unit_entropy
from sonde.measure.update_similarity import UpdateSimilarity, update_similarity
from sonde.measure.update_size import UpdateSize, update_size
from sonde.measure.v_information import VInformation, v_information

__all__ = [
    "CCA",
    "CKA",
    "CKNNA",
    "DCI",
    "GULP",
    "PWCCA",
    "RSA",
    "SAP",
    "SVCCA",
    "ActivationCoverage",
    "ActiveVariables",
    "AlignmentQuality",
    "Anisotropy",
    "AttentionEntropy",
    "BottleneckDegree",
    "CauchySchwarzInformation",
    "ClassSeparability",
    "ClusterIndices",
    "CodingRate",
    "CorrelationMatch",
    "Covariance",
    "Crossnobis",
    "DeadUnits",
    "EffectiveRank",
    "EntropyRank",
    "FeatureComplexity",
    "GradientConflict",
    "GradientSignalToNoise",
    "Gride",
    "GrokkingStages",
    "InfoMEC",
    "InfoNCE",
    "InformationImbalance",
    "InformationPlane",
    "KernelCKA",
    "LayerCKA",
    "MLEDimension",
    "MassiveActivations",
    "MatrixEntropy",
    "Modularity",
    "MutualInformation",
    "MutualInformationGap",
    "MutualKNN",
    "NeuralCollapse",
    "Norms",
    "ParticipationRatio",
    "Procrustes",
    "RateReduction",
    "Readout",
    "Regression",
    "SaturatedUnits",
    "ShortcutBias",
    "ShortcutRows",
    "Spectrum",
    "SpuriousShift",
    "StableRank",
    "SubpopulationCurve",
    "TokenEntropy",
    "TotalCorrelation",
    "TwoNN",
    "Uniformity",
    "UnitClusters",
    "UnitEntropy",
    "UpdateSimilarity",
    "UpdateSize",
    "VInformation",
    "accuracies_at_angles",
    "activation_coverage",
    "active_variables",
    "alignment_quality",
    "anisotropy",
    "attention_entropy",
    "bottleneck_degree",
    "cauchy_schwarz_information",
    "cca",
    "cka",
    "cknna",
    "class_separability",
    "cluster_indices",
    "coding_rate",
    "compression_fidelity",
    "correlation_match",
    "covariance",
    "crossnobis",
    "dci",
    "dead_units",
    "depth_use",
    "disparity_decomposition",
    "effective_rank",
    "emergence",
    "entropy_rank",
    "fair_accuracy_limit",
    "feature_complexity",
    "gradient_conflict",
    "gradient_signal_to_noise",
    "gride",
    "grokking_stages",
    "gulp",
    "info_mec",
    "info_nce",
    "information_imbalance",
    "information_plane",
    "isometry_error",
    "kernel_cka",
    "layer_cka",
    "massive_activations",
    "matrix_entropy",
    "minimum_entropy_coupling",
    "mle_dimension",
    "modularity",
    "mutual_information",
    "mutual_information_gap",
    "mutual_knn",
    "neural_collapse",
    "norms",
    "participation_ratio",
    "procrustes",
    "pwcca",
    "rate_reduction",
    "readout",
    "regression",
    "rsa",
    "sap",
    "saturated_units",
    "shortcut_bias",
    "spectrum",
    "spurious_shift",
    "stable_rank",
    "stitch",
    "subpopulation_curve",
    "svcca",
    "token_entropy",
    "total_correlation",
    "two_nn",
    "uniformity",
    "unit_clusters",
    "unit_entropy",
    "update_similarity",
    "update_size",
    "v_information",
]
