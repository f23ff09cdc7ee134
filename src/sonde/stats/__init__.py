"""The shared sketches: mergeable statistics that many methods read, and the maths they share."""

from sonde.stats.adjusted_p import adjusted_p
from sonde.stats.attention import query_entropy
from sonde.stats.auroc import AUROC, auroc, midranks
from sonde.stats.auroc_bounds import auroc_bounds, rank_p_value, separation
from sonde.stats.batch_hsic import BatchHsic, BatchHsicState, hsic_triple
from sonde.stats.calibrated import Calibrated, CalibratedScorer, Kept
from sonde.stats.class_calibration import By, ClassCalibration
from sonde.stats.class_moments import ClassMoments, ClassMomentsState, UnlabelledState
from sonde.stats.coding import gaussian_rate, rate_gain
from sonde.stats.content_sketch import ContentSketch, ContentSketchState
from sonde.stats.coreset import Coreset, CoresetState
from sonde.stats.cross_moments import CrossMoments, CrossMomentsState
from sonde.stats.direction_moments import ClassDirectionMoments, DirectionMoments, unit_rows
from sonde.stats.entry_counts import EntryCounts, EntryCountsState
from sonde.stats.extremes import Extremes, ExtremesState
from sonde.stats.false_discovery import benjamini_hochberg
from sonde.stats.fourier import FourierFeatures, FourierMoments, median_sigma
from sonde.stats.group_means import GroupMeans, GroupMeansState
from sonde.stats.grouped_hsic_sums import GroupedHsicSums, GroupedHsicSumsState
from sonde.stats.halves import half_error, random_halves
from sonde.stats.hash_sample import HashSample, HashSampleState
from sonde.stats.head_weights import HeadWeights, HeadWeightsState
from sonde.stats.held_scores import HeldScores, HeldScoresState, SampledCalibration
from sonde.stats.histogram import Histogram, HistogramState
from sonde.stats.hsic_sums import HsicSums, HsicSumsState
from sonde.stats.intervals import clopper_pearson, grouped_share, wilson
from sonde.stats.kernel_sums import (
    conditional_divergence,
    gaussian_kernel,
    quadratic_information,
)
from sonde.stats.latent import latent_parts
from sonde.stats.log_histogram import LogHistogram, LogHistogramState, log_bins, log_centres
from sonde.stats.moments import Moments, MomentsState
from sonde.stats.neighbour_average import neighbour_average
from sonde.stats.neighbour_sums import NeighbourSums, NeighbourSumsState
from sonde.stats.neighbours import distance_chunks, largest_products, nearest
from sonde.stats.octave_sample import OctaveSample, OctaveSampleState
from sonde.stats.poincare import poincare_distance, to_ball
from sonde.stats.position_moments import PositionMoments, PositionMomentsState
from sonde.stats.quantiles import Quantiles, QuantilesState
from sonde.stats.ridge import ridge_map, ridge_of_rows
from sonde.stats.scalars import Scalars, ScalarsState
from sonde.stats.scaled_histogram import ScaledHistogram, ScaledHistogramState
from sonde.stats.score_map import score_map
from sonde.stats.shrinkage import (
    InverseRoot,
    Shrinkage,
    check_shrinkage,
    inverse_root,
    oas_weight,
    shrunk,
)
from sonde.stats.sinkhorn import balanced_assignment
from sonde.stats.soft_top_k import soft_top_k
from sonde.stats.sparsemax import sparsemax
from sonde.stats.symbols import Symbols, SymbolsState
from sonde.stats.token_metrics import TOKEN_METRICS, token_metrics
from sonde.stats.token_norms import TokenNorms, TokenNormsState
from sonde.stats.top_k import TopK, TopKState
from sonde.stats.training import Examples, Trainer, TrainingState
from sonde.stats.two_groups import TwoGroups
from sonde.stats.update_moments import UpdateMoments
from sonde.stats.weights import LiveWeights, Tally, Weights
from sonde.stats.white_spectrum import white_eigenvalues, white_mean

__all__ = [
    "AUROC",
    "TOKEN_METRICS",
    "BatchHsic",
    "BatchHsicState",
    "By",
    "Calibrated",
    "CalibratedScorer",
    "ClassCalibration",
    "ClassDirectionMoments",
    "ClassMoments",
    "ClassMomentsState",
    "ContentSketch",
    "ContentSketchState",
    "Coreset",
    "CoresetState",
    "CrossMoments",
    "CrossMomentsState",
    "DirectionMoments",
    "EntryCounts",
    "EntryCountsState",
    "Examples",
    "Extremes",
    "ExtremesState",
    "FourierFeatures",
    "FourierMoments",
    "GroupMeans",
    "GroupMeansState",
    "GroupedHsicSums",
    "GroupedHsicSumsState",
    "HashSample",
    "HashSampleState",
    "HeadWeights",
    "HeadWeightsState",
    "HeldScores",
    "HeldScoresState",
    "Histogram",
    "HistogramState",
    "HsicSums",
    "HsicSumsState",
    "InverseRoot",
    "Kept",
    "LiveWeights",
    "LogHistogram",
    "LogHistogramState",
    "Moments",
    "MomentsState",
    "NeighbourSums",
    "NeighbourSumsState",
    "OctaveSample",
    "OctaveSampleState",
    "PositionMoments",
    "PositionMomentsState",
    "Quantiles",
    "QuantilesState",
    "SampledCalibration",
    "Scalars",
    "ScalarsState",
    "ScaledHistogram",
    "ScaledHistogramState",
    "Shrinkage",
    "Symbols",
    "SymbolsState",
    "Tally",
    "TokenNorms",
    "TokenNormsState",
    "TopK",
    "TopKState",
    "Trainer",
    "TrainingState",
    "TwoGroups",
    "UnlabelledState",
    "UpdateMoments",
    "Weights",
    "adjusted_p",
    "auroc",
    "auroc_bounds",
    "balanced_assignment",
    "benjamini_hochberg",
    "check_shrinkage",
    "clopper_pearson",
    "conditional_divergence",
    "distance_chunks",
    "gaussian_kernel",
    "gaussian_rate",
    "grouped_share",
    "half_error",
    "hsic_triple",
    "inverse_root",
    "largest_products",
    "latent_parts",
    "log_bins",
    "log_centres",
    "median_sigma",
    "midranks",
    "nearest",
    "neighbour_average",
    "oas_weight",
    "poincare_distance",
    "quadratic_information",
    "query_entropy",
    "random_halves",
    "rank_p_value",
    "rate_gain",
    "ridge_map",
    "ridge_of_rows",
    "score_map",
    "separation",
    "shrunk",
    "soft_top_k",
    "sparsemax",
    "to_ball",
    "token_metrics",
    "unit_rows",
    "white_eigenvalues",
    "white_mean",
    "wilson",
]
