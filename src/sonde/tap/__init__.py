"""From a live PyTorch model to a stream of rows: the only place that touches modules and hooks."""

from sonde.tap._vary import placement
from sonde.tap.editing import editing
from sonde.tap.fingerprint import config_hash, fingerprint, known_config_hash
from sonde.tap.heads import find_head
from sonde.tap.live import LiveStream, live_stream
from sonde.tap.onlooker import Onlooker
from sonde.tap.probe import Probe, probe
from sonde.tap.replay import replay
from sonde.tap.sites import resolve
from sonde.tap.tap import Tap

__all__ = [
    "LiveStream",
    "Onlooker",
    "Probe",
    "Tap",
    "config_hash",
    "editing",
    "find_head",
    "fingerprint",
    "known_config_hash",
    "live_stream",
    "placement",
    "probe",
    "replay",
    "resolve",
]
