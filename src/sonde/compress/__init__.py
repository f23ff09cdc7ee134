"""Make smaller: a model's weights, its key-value cache, gradients, and texts that it predicts.

``GPTQ().plan(model, {"calibration": texts}).fold(model)`` packs the weights of linear layers.
``with sonde.caching(model, SnapKV(budget=0.25)) as cache:`` opens a cache by one of the rules here.
``SequenceCoder(model).encode(ids)`` writes a text in the bits that the model needs to guess it.
"""

from sonde.compress.adaptive_modules import (
    AdaptiveModel,
    AdaptiveModules,
    enough,
    gated_learners,
)
from sonde.compress.allocate import allocate
from sonde.compress.alternate_slim import AlternateSlim
from sonde.compress.attention_retrieval import AttentionRetrieval, RetrievedText
from sonde.compress.awq import AWQ
from sonde.compress.bd_rate import bd_rate
from sonde.compress.bit_allocation import BitAllocation
from sonde.compress.bit_stack import BitStack
from sonde.compress.block_rounding import BlockRounding, partition
from sonde.compress.conditional_codec import ConditionalCodec
from sonde.compress.coordinate_rounding import CoordinateRounding
from sonde.compress.cross_layer_cache import (
    CrossLayerCache,
    CrossLayerMoments,
    cross_layer_moments,
)
from sonde.compress.data_free_compress import DataFreeCompress
from sonde.compress.decide_once import DecideOnce
from sonde.compress.decouple_q import DecoupleQ
from sonde.compress.distill_dataset import DistillDataset, DistilledData, batch_norm_moments
from sonde.compress.drop_blocks import DropBlocks
from sonde.compress.dynamic_prune import DynamicModel, DynamicPrune, hot_filters
from sonde.compress.early_exit import EarlyExit, EarlyExits, exit_threshold
from sonde.compress.entropy_bottleneck import EntropyBottleneck, LatentCodec
from sonde.compress.entropy_bounded_coder import BoundedCode, EntropyBoundedCoder
from sonde.compress.error_feedback import error_feedback
from sonde.compress.expected_attention import ExpectedAttention, expected_attention_of
from sonde.compress.expert_use import ExpertUse, expert_use
from sonde.compress.extract_experts import ExtractExperts, SlicedModel
from sonde.compress.feature_pca import FeaturePCA
from sonde.compress.fidelity import Fidelity, fidelity
from sonde.compress.gptq import GPTQ
from sonde.compress.grams import LayerGrams, layer_grams
from sonde.compress.group_requests import count_loads, group_requests
from sonde.compress.h2o import H2O
from sonde.compress.head_budgets import HeadBudgets
from sonde.compress.key_diff import KeyDiff
from sonde.compress.key_norm import KeyNorm
from sonde.compress.low_rank_weights import LowRankWeights
from sonde.compress.merge_experts import MergeExperts
from sonde.compress.natural_codec import NaturalCodec
from sonde.compress.once_for_all_bits import OnceForAllBits
from sonde.compress.power_sgd_codec import PowerSgdCodec
from sonde.compress.pre_gate import PreGate
from sonde.compress.prompt_compressor import CompressedPrompt, KeepProbe, PromptCompressor
from sonde.compress.prune_channels import PruneChannels
from sonde.compress.prune_weights import PruneWeights
from sonde.compress.pyramid import pyramid
from sonde.compress.qsgd_codec import QsgdCodec
from sonde.compress.quant_cache import QuantCache
from sonde.compress.random_k_codec import RandomKCodec
from sonde.compress.recent_cache import RecentCache
from sonde.compress.rtn import RTN
from sonde.compress.scalar_codec import ScalarCodec
from sonde.compress.sequence_coder import SequenceCoder
from sonde.compress.share_experts import share_experts
from sonde.compress.share_steps import share_steps
from sonde.compress.sign_codec import SignCodec
from sonde.compress.sign_quant import SignQuant
from sonde.compress.slice_context import SliceCodec, SliceContext
from sonde.compress.slice_width import SliceWidth
from sonde.compress.smooth_quant import SmoothQuant
from sonde.compress.snap_kv import SnapKV
from sonde.compress.sparse_gpt import SparseGPT
from sonde.compress.streaming_cache import StreamingCache
from sonde.compress.token_budget import shortened, token_budget
from sonde.compress.token_merging import TokenMerging
from sonde.compress.token_pruning import TokenPruning
from sonde.compress.top_k_codec import TopKCodec
from sonde.compress.tova import TOVA
from sonde.compress.unit_use import UnitUse, unit_use
from sonde.compress.weight_codebook import WeightCodebook
from sonde.weights import QuantLinear, ThinLinear, kernels, pack, unpack

__all__ = [
    "AWQ",
    "GPTQ",
    "H2O",
    "RTN",
    "TOVA",
    "AdaptiveModel",
    "AdaptiveModules",
    "AlternateSlim",
    "AttentionRetrieval",
    "BitAllocation",
    "BitStack",
    "BlockRounding",
    "BoundedCode",
    "CompressedPrompt",
    "ConditionalCodec",
    "CoordinateRounding",
    "CrossLayerCache",
    "CrossLayerMoments",
    "DataFreeCompress",
    "DecideOnce",
    "DecoupleQ",
    "DistillDataset",
    "DistilledData",
    "DropBlocks",
    "DynamicModel",
    "DynamicPrune",
    "EarlyExit",
    "EarlyExits",
    "EntropyBottleneck",
    "EntropyBoundedCoder",
    "ExpectedAttention",
    "ExpertUse",
    "ExtractExperts",
    "FeaturePCA",
    "Fidelity",
    "HeadBudgets",
    "KeepProbe",
    "KeyDiff",
    "KeyNorm",
    "LatentCodec",
    "LayerGrams",
    "LowRankWeights",
    "MergeExperts",
    "NaturalCodec",
    "OnceForAllBits",
    "PowerSgdCodec",
    "PreGate",
    "PromptCompressor",
    "PruneChannels",
    "PruneWeights",
    "QsgdCodec",
    "QuantCache",
    "QuantLinear",
    "RandomKCodec",
    "RecentCache",
    "RetrievedText",
    "ScalarCodec",
    "SequenceCoder",
    "SignCodec",
    "SignQuant",
    "SliceCodec",
    "SliceContext",
    "SliceWidth",
    "SlicedModel",
    "SmoothQuant",
    "SnapKV",
    "SparseGPT",
    "StreamingCache",
    "ThinLinear",
    "TokenMerging",
    "TokenPruning",
    "TopKCodec",
    "UnitUse",
    "WeightCodebook",
    "allocate",
    "batch_norm_moments",
    "bd_rate",
    "count_loads",
    "cross_layer_moments",
    "enough",
    "error_feedback",
    "exit_threshold",
    "expected_attention_of",
    "expert_use",
    "fidelity",
    "gated_learners",
    "group_requests",
    "hot_filters",
    "kernels",
    "layer_grams",
    "pack",
    "partition",
    "pyramid",
    "share_experts",
    "share_steps",
    "shortened",
    "token_budget",
    "unit_use",
    "unpack",
]
