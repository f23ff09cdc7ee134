"""Changes of a model's weights: planned, looked at, folded into a new model, taken back."""

from sonde.weights.change import Change, Exchange, LowRank, Sparse
from sonde.weights.folding import fold_edit, fold_writers
from sonde.weights.live import as_model, module_of, tensor_hash, with_tensors
from sonde.weights.merging import Merged, MergeRule, merge_models
from sonde.weights.needs import AtSites, Examples
from sonde.weights.residual import residual_readers, residual_writers
from sonde.weights.rewrite import Rewrite, RewritePlan
from sonde.weights.saving import Saved, save_edited
from sonde.weights.undoing import undo

__all__ = [
    "AtSites",
    "Change",
    "Examples",
    "Exchange",
    "LowRank",
    "MergeRule",
    "Merged",
    "Rewrite",
    "RewritePlan",
    "Saved",
    "Sparse",
    "as_model",
    "fold_edit",
    "fold_writers",
    "merge_models",
    "module_of",
    "residual_readers",
    "residual_writers",
    "save_edited",
    "tensor_hash",
    "undo",
    "with_tensors",
]
