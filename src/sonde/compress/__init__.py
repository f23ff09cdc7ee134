"""Make what a model computes with smaller: its weights, and its key-value cache.

``GPTQ().plan(model, {"calibration": texts}).fold(model)`` packs the weights of linear layers.
``with sonde.caching(model, SnapKV(budget=0.25)) as cache:`` opens a cache by one of the rules here.
"""

from sonde.compress.coordinate_rounding import CoordinateRounding
from sonde.compress.fidelity import Fidelity, fidelity
from sonde.compress.gptq import GPTQ
from sonde.compress.grams import LayerGrams, layer_grams
from sonde.compress.h2o import H2O
from sonde.compress.key_diff import KeyDiff
from sonde.compress.key_norm import KeyNorm
from sonde.compress.low_rank_weights import LowRankWeights
from sonde.compress.prune_weights import PruneWeights
from sonde.compress.recent_cache import RecentCache
from sonde.compress.rtn import RTN
from sonde.compress.sign_quant import SignQuant
from sonde.compress.snap_kv import SnapKV
from sonde.compress.sparse_gpt import SparseGPT
from sonde.compress.streaming_cache import StreamingCache
from sonde.compress.tova import TOVA
from sonde.weights import QuantLinear, ThinLinear, kernels, pack, unpack

__all__ = [
    "GPTQ",
    "H2O",
    "RTN",
    "TOVA",
    "CoordinateRounding",
    "Fidelity",
    "KeyDiff",
    "KeyNorm",
    "LayerGrams",
    "LowRankWeights",
    "PruneWeights",
    "QuantLinear",
    "RecentCache",
    "SignQuant",
    "SnapKV",
    "SparseGPT",
    "StreamingCache",
    "ThinLinear",
    "fidelity",
    "kernels",
    "layer_grams",
    "pack",
    "unpack",
]
