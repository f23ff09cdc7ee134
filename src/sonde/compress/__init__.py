"""Make what a model computes with smaller: its key-value cache.

``with sonde.caching(model, SnapKV(budget=0.25)) as cache:`` opens a cache by one of the rules here.
"""

from sonde.compress.h2o import H2O
from sonde.compress.key_diff import KeyDiff
from sonde.compress.key_norm import KeyNorm
from sonde.compress.recent_cache import RecentCache
from sonde.compress.snap_kv import SnapKV
from sonde.compress.streaming_cache import StreamingCache
from sonde.compress.tova import TOVA

__all__ = ["H2O", "TOVA", "KeyDiff", "KeyNorm", "RecentCache", "SnapKV", "StreamingCache"]
