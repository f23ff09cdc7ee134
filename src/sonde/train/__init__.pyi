from sonde.train.align import Align as Align
from sonde.train.attention_entropy import AttentionEntropy as AttentionEntropy
from sonde.train.cauchy_schwarz import CauchySchwarzBottleneck as CauchySchwarzBottleneck
from sonde.train.contrast import Contrast as Contrast
from sonde.train.contrast import similarity_smoothing as similarity_smoothing
from sonde.train.counter_current import CounterCurrent as CounterCurrent
from sonde.train.distil import Distil as Distil
from sonde.train.generic_to_specific import GenericToSpecific as GenericToSpecific
from sonde.train.generic_to_specific import shared_mask as shared_mask
from sonde.train.input_decoder import InputDecoder as InputDecoder
from sonde.train.latent_terms import LatentTerms as LatentTerms
from sonde.train.learned_views import LearnedViews as LearnedViews
from sonde.train.masked_features import MaskedFeatures as MaskedFeatures
from sonde.train.mixup import Mixup as Mixup
from sonde.train.nested_dropout import NestedDropout as NestedDropout
from sonde.train.next_tokens import NextTokens as NextTokens
from sonde.train.orthogonal import Orthogonal as Orthogonal
from sonde.train.rate_reduction import RateReduction as RateReduction
from sonde.train.resize import Resize as Resize
from sonde.train.scope import Scope as Scope
from sonde.train.select import Select as Select
from sonde.train.separate import Separate as Separate
from sonde.train.sparse_training import SparseTraining as SparseTraining
from sonde.train.structured_transfer import StructuredTransfer as StructuredTransfer
from sonde.train.subspace_projection import SubspaceProjection as SubspaceProjection
from sonde.train.template_bank import TemplateBank as TemplateBank

__all__: list[str]
