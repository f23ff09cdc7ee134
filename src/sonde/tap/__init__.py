"""From a live PyTorch model to a stream of rows: the only place that touches modules and hooks."""

from sonde.tap.fingerprint import config_hash, fingerprint
from sonde.tap.heads import find_head
from sonde.tap.live import LiveStream, live_stream
from sonde.tap.probe import Probe, probe
from sonde.tap.sites import resolve

__all__ = [
    "LiveStream",
    "Probe",
    "config_hash",
    "find_head",
    "fingerprint",
    "live_stream",
    "probe",
    "resolve",
]
