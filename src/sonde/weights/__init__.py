"""Changes of a model's weights: planned, looked at, folded into a new model, taken back."""

from sonde.weights.change import Change, Exchange, LowRank, Sparse
from sonde.weights.rewrite import Rewrite, RewritePlan, module_of, tensor_hash, with_tensors

__all__ = [
    "Change",
    "Exchange",
    "LowRank",
    "Rewrite",
    "RewritePlan",
    "Sparse",
    "module_of",
    "tensor_hash",
    "with_tensors",
]
