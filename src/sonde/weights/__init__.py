"""Changes of a model's weights: planned, inspected, folded into a new model, undone."""

from sonde.weights.change import (
    Change,
    Coded,
    Exchange,
    LowRank,
    Packed,
    Pruned,
    Quantised,
    Resized,
    Sparse,
    Stacked,
    Thin,
)
from sonde.weights.dense import DenseWeight, dense_weights
from sonde.weights.folding import fold_edit, fold_writers
from sonde.weights.linear_block import LinearBlock
from sonde.weights.live import as_model, dequantised, module_of, tensor_hash, with_tensors
from sonde.weights.merging import Merged, MergeRule, merge_models
from sonde.weights.needs import AtSites, Examples
from sonde.weights.packing import pack, unpack
from sonde.weights.quant_linear import Grid, QuantLinear, kernels
from sonde.weights.residual import residual_readers, residual_writers
from sonde.weights.rewrite import Rewrite, RewritePlan
from sonde.weights.saving import Saved, save_edited
from sonde.weights.shared_tensor import SharedStack
from sonde.weights.thin_linear import ThinLinear
from sonde.weights.tuning import mean_loss, tuned
from sonde.weights.undoing import undo
from sonde.weights.unpacked_linear import CodebookLinear, StackLinear
from sonde.weights.unpacking import unpacked

__all__ = [
    "AtSites",
    "Change",
    "CodebookLinear",
    "Coded",
    "DenseWeight",
    "Examples",
    "Exchange",
    "Grid",
    "LinearBlock",
    "LowRank",
    "MergeRule",
    "Merged",
    "Packed",
    "Pruned",
    "QuantLinear",
    "Quantised",
    "Resized",
    "Rewrite",
    "RewritePlan",
    "Saved",
    "SharedStack",
    "Sparse",
    "StackLinear",
    "Stacked",
    "Thin",
    "ThinLinear",
    "as_model",
    "dense_weights",
    "dequantised",
    "fold_edit",
    "fold_writers",
    "kernels",
    "mean_loss",
    "merge_models",
    "module_of",
    "pack",
    "residual_readers",
    "residual_writers",
    "save_edited",
    "tensor_hash",
    "tuned",
    "undo",
    "unpack",
    "unpacked",
    "with_tensors",
]
