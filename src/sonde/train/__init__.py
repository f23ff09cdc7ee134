"""Losses at sites: plain torch modules, attached by ``sonde.training`` to any model.

A loss is called with rows and with columns by the names of its arguments; its value is the number
that the measure of the same name reports.
"""

from sonde.train.align import Align
from sonde.train.attention_entropy import AttentionEntropy
from sonde.train.cauchy_schwarz import CauchySchwarzBottleneck
from sonde.train.contrast import Contrast, similarity_smoothing
from sonde.train.counter_current import CounterCurrent
from sonde.train.distil import Distil
from sonde.train.generic_to_specific import GenericToSpecific, shared_mask
from sonde.train.input_decoder import InputDecoder
from sonde.train.latent_terms import LatentTerms
from sonde.train.learned_views import LearnedViews
from sonde.train.masked_features import MaskedFeatures
from sonde.train.mixup import Mixup
from sonde.train.nested_dropout import NestedDropout
from sonde.train.orthogonal import Orthogonal
from sonde.train.rate_reduction import RateReduction
from sonde.train.resize import Resize
from sonde.train.scope import Scope
from sonde.train.select import Select
from sonde.train.separate import Separate
from sonde.train.sparse_training import SparseTraining
from sonde.train.structured_transfer import StructuredTransfer
from sonde.train.subspace_projection import SubspaceProjection

__all__ = [
    "Align",
    "AttentionEntropy",
    "CauchySchwarzBottleneck",
    "Contrast",
    "CounterCurrent",
    "Distil",
    "GenericToSpecific",
    "InputDecoder",
    "LatentTerms",
    "LearnedViews",
    "MaskedFeatures",
    "Mixup",
    "NestedDropout",
    "Orthogonal",
    "RateReduction",
    "Resize",
    "Scope",
    "Select",
    "Separate",
    "SparseTraining",
    "StructuredTransfer",
    "SubspaceProjection",
    "shared_mask",
    "similarity_smoothing",
]
