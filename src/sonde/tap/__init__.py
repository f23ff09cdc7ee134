"""From a live PyTorch model to a stream of rows: the only place that touches modules and hooks."""

from sonde.engine.paired_stream import PairedStream
from sonde.tap.decoding.context import DecodeContext, OtherLogits, OtherState
from sonde.tap.decoding.prompts import OtherPrompts
from sonde.tap.decoding.rule import Decode
from sonde.tap.generating.replay import replay
from sonde.tap.gradients.losses import RowLosses, cross_entropy
from sonde.tap.gradients.squared import SquaredGradients, squared_gradients
from sonde.tap.hand.editing import editing
from sonde.tap.hand.gate import Gate, Scores
from sonde.tap.hand.recording import calls_of
from sonde.tap.hand.restart import RecordedForward, record_forward
from sonde.tap.hand.tap import Tap
from sonde.tap.hand.where import TokenIds
from sonde.tap.hooks.cache import cache_argument, cache_of
from sonde.tap.model.fingerprint import config_hash, fingerprint, known_config_hash
from sonde.tap.model.forward_code import forward_code
from sonde.tap.model.heads import find_head
from sonde.tap.model.input_types import place_of
from sonde.tap.model.objectives import kl_uniform, max_logit, nll
from sonde.tap.model.placement import placement
from sonde.tap.model.probe import Probe, probe
from sonde.tap.model.sites import resolve
from sonde.tap.model.structure import known_structure, structure
from sonde.tap.reading.live import LiveStream, live_stream
from sonde.tap.reading.weights import WeightStream, weight_stream
from sonde.tap.watching.onlooker import Onlooker

__all__ = [
    "Decode",
    "DecodeContext",
    "Gate",
    "LiveStream",
    "Onlooker",
    "OtherLogits",
    "OtherPrompts",
    "OtherState",
    "PairedStream",
    "Probe",
    "RecordedForward",
    "RowLosses",
    "Scores",
    "SquaredGradients",
    "Tap",
    "TokenIds",
    "WeightStream",
    "cache_argument",
    "cache_of",
    "calls_of",
    "config_hash",
    "cross_entropy",
    "editing",
    "find_head",
    "fingerprint",
    "forward_code",
    "kl_uniform",
    "known_config_hash",
    "known_structure",
    "live_stream",
    "max_logit",
    "nll",
    "place_of",
    "placement",
    "probe",
    "record_forward",
    "replay",
    "resolve",
    "squared_gradients",
    "structure",
    "weight_stream",
]
